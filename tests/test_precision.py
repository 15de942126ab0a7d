"""float32 where thresholds decide: neither mixed precision nor TF32."""

import pytest
import torch
from tiny_models import tiny_inputs, tiny_model

from vilamp_lite.common.precision import full_precision
from vilamp_lite.encoders import load_encoder

CPU = torch.device("cpu")


def settings() -> tuple[str, str, bool]:
    return (
        torch.backends.cudnn.conv.fp32_precision,
        torch.backends.cuda.matmul.fp32_precision,
        torch.is_autocast_enabled("cpu"),
    )


def test_neither_mixed_precision_nor_tf32_inside_and_both_as_before_afterwards() -> None:
    vectors = torch.rand(2, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = settings()
        assert before[0] == "tf32", "PyTorch's own choice for convolutions"
        with full_precision(CPU):
            assert settings() == ("ieee", "ieee", False)
            assert (vectors @ vectors.T).dtype == torch.float32
        assert settings() == before
        with pytest.raises(RuntimeError, match="within"), full_precision(CPU):
            raise RuntimeError("within")
        assert settings() == before
        assert (vectors @ vectors.T).dtype == torch.bfloat16


def test_the_meta_device_has_neither() -> None:
    with full_precision(torch.device("meta")):
        assert torch.rand(2, 3, device="meta").shape == (2, 3)


def test_a_selector_works_in_full_precision() -> None:
    seen = []
    model, inputs = tiny_model(), tiny_inputs(3)
    for tower in (model.selector.vision_model, model.selector.text_model):
        tower.register_forward_hook(lambda *_: seen.append(settings()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model.embed_frames(inputs["selector_pixel_values"])
        model.embed_query(inputs["query_input_ids"])
    assert seen == [("ieee", "ieee", False)] * 2


def test_an_encoder_works_in_full_precision() -> None:
    seen = []
    encoder = load_encoder("tinyworld", "cpu")
    encoder._model.vision.register_forward_hook(lambda *_: seen.append(settings()))
    encoder.encode_frames(torch.zeros(2, 48, 48, 3, dtype=torch.uint8))
    assert seen == [("ieee", "ieee", False)]
