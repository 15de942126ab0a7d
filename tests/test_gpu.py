"""On a GPU: `pytest -m gpu`. What it gives there, a random model gives on the CPU too. Skipped where there is none."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_inputs, tiny_model
from torch.nn import functional as F

from vilamp_lite.clip import pixels_of
from vilamp_lite.configuration import CLIP_VIT_B_32, ViLaMPConfig
from vilamp_lite.generation import TOKENS_AT_ONCE, answer
from vilamp_lite.processing import ViLaMPProcessor
from vilamp_lite.video.source import stream_frames

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU that torch can use"),
]
TOUR = Path(__file__).parents[1] / "data" / "photo_tour.mp4"
# Largest difference of a logit, relative to the largest logit: the types keep 24, 11 and 8 bits.
TOLERANCES = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
KERNELS = ["eager", "sdpa"] + (["flash_attention_2"] if find_spec("flash_attn") else [])


@torch.no_grad()
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_logits_are_those_of_the_cpu(dtype: torch.dtype) -> None:
    inputs = tiny_inputs(12)
    # A soft merge, so that rounding isn't multiplied by 1 / 0.01.
    expected = tiny_model(temperature=0.5)(**inputs, logits_to_keep=6).logits
    for kernel in KERNELS:
        if kernel == "flash_attention_2" and dtype == torch.float32:
            continue  # it has no float32
        model = tiny_model(temperature=0.5).to("cuda", dtype)
        model.set_attn_implementation(kernel)
        logits = model(**inputs, logits_to_keep=6).logits.float().cpu()
        assert (logits - expected).abs().max() <= TOLERANCES[dtype] * expected.abs().max(), kernel


@torch.no_grad()
def test_a_streamed_video_and_its_answer_are_those_of_the_cpu() -> None:
    answers = []
    for device in ("cpu", "cuda"):
        model = tiny_model(temperature=0.5).to(device)
        processor = ViLaMPProcessor.byte_level(model.config)
        sequence = model.encode_video(TOUR, "Where is the cat?", processor, max_frames=20)
        assert sequence.embeds.device.type == device
        said = answer(model, processor, "Where is the cat?", sequence, max_new_tokens=5)
        answers.append((sequence.keyframes.tolist(), said.tokens.tolist()))
    assert answers[0] == answers[1]


@torch.no_grad()
def test_a_long_prompt_is_read_at_once_as_in_pieces() -> None:
    model = tiny_model().to("cuda")
    processor = ViLaMPProcessor.byte_level(model.config)
    prompt = processor.prompts(["word " * TOKENS_AT_ONCE])
    video = {"video_embeds": [torch.randn(9, model.config.text_config.hidden_size, device="cuda")]}
    options = {"max_new_tokens": 4, "do_sample": False}
    pieces = model.generate(**prompt, **video, **options, prefill_chunk_size=TOKENS_AT_ONCE)
    assert torch.equal(model.generate(**prompt, **video, **options), pieces)


def test_pixels_made_there_are_the_cpus_within_a_grey_level() -> None:
    processor = ViLaMPProcessor.byte_level(ViLaMPConfig.paper())
    (batch,) = stream_frames(TOUR, batch_size=4, max_frames=4)
    for maker in (processor.image_processor, processor.selector_image_processor):
        exact, there = (pixels_of(batch.frames, maker, 384, torch.device(device)).cpu() for device in ("cpu", "cuda"))
        level = 1 / 255 / torch.tensor(maker.image_std)[:, None, None]
        assert ((there - exact).abs() <= 1.01 * level).all()


@torch.no_grad()
def test_a_full_size_selector_finds_frames_as_alike_as_on_the_cpu() -> None:
    """A CLIP of the paper's size, with random weights; TF32 would differ by 5e-5."""
    model = tiny_model(selector_config=CLIP_VIT_B_32)
    (batch,) = stream_frames(TOUR, batch_size=16, max_frames=16)
    pixels = ViLaMPProcessor.byte_level(model.config).selector_pixels(batch.frames)

    def cosines() -> torch.Tensor:
        units = F.normalize(model.embed_frames(pixels).double().cpu(), dim=-1)
        return units @ units.T

    expected = cosines()
    model.to("cuda")
    assert (cosines() - expected).abs().max() <= 2e-6
