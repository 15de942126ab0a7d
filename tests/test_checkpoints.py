"""Checkpoints: ours, the authors' format, and LLaVA-OneVision turned into a ViLaMP."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from random_checkpoint import save_released
from safetensors.torch import load_file, save_file
from tiny_models import OFFICIAL, SIGLIP, tiny_inputs, tiny_model
from transformers import (
    CLIPModel,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    SiglipConfig,
    SiglipModel,
)

from vilamp_lite.checkpoints import (
    from_llava_onevision,
    load_checkpoint,
    load_config,
    load_processor,
    load_released_checkpoint,
)
from vilamp_lite.common.hub import read_safetensors
from vilamp_lite.configuration import CLIP_VIT_B_32, SIGLIP_SO400M, ViLaMPConfig
from vilamp_lite.modeling import ViLaMPForConditionalGeneration
from vilamp_lite.processing import ViLaMPProcessor

# --- The authors' format (what it computes is checked in test_modeling.py) -------------------------------------------


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint in the authors' format, to be altered."""
    return Path(shutil.copytree(OFFICIAL / "checkpoint", tmp_path / "checkpoint"))


def change_json(file: Path, **changes: object) -> None:
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_released_configuration(tmp_path: Path) -> None:
    config = load_config(OFFICIAL / "checkpoint")
    assert (config.max_keyframes, config.similarity_threshold, config.relevance_threshold) == (3, 0.9, -1)
    released = ViLaMPConfig.released()
    for name in ("fill", "connectors", "merge_before_projection", "reference", "before_first", "merge_redundancy"):
        assert getattr(config, name) == getattr(released, name)
    assert config.text_config.rope_parameters["rope_theta"] == 1_000_000.0
    assert (config.text_config.hidden_size, config.text_config.num_key_value_heads) == (24, 2)
    assert config.vision_config.num_hidden_layers == 2
    model = load_checkpoint(OFFICIAL / "checkpoint")
    model.save_pretrained(tmp_path)
    assert same(load_checkpoint(tmp_path), model)
    assert model.merger.temperature.item() == pytest.approx(0.05)
    assert model.generation_config.eos_token_id == 91
    assert not model.training


def test_random_checkpoint_in_the_authors_format(tmp_path: Path) -> None:
    tiny = ViLaMPConfig.tiny()
    parts = ("vision_config", "text_config", "selector_config")
    model = ViLaMPForConditionalGeneration(
        ViLaMPConfig.released(**{part: getattr(tiny, part).to_dict() for part in parts}, max_keyframes=5)
    )
    save_released(model, tmp_path)
    loaded = load_checkpoint(tmp_path)
    assert same(loaded, model)
    assert (loaded.config.max_keyframes, loaded.config.relevance_threshold) == (5, 0.2)
    assert loaded.generation_config.eos_token_id == model.generation_config.eos_token_id == 257
    prompt = load_processor(tmp_path, loaded.config).prompts(["Hi"])
    assert torch.equal(prompt["input_ids"], ViLaMPProcessor.byte_level(model.config).prompts(["Hi"])["input_ids"])


def test_sharded_weights(checkpoint: Path) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    names = sorted(weights)
    (checkpoint / "model.safetensors").unlink()
    index = {}
    for number in range(3):
        shard = f"model-{number + 1:05}-of-00003.safetensors"
        save_file({name: weights[name] for name in names[number::3]}, checkpoint / shard)
        index |= dict.fromkeys(names[number::3], shard)
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert same(load_released_checkpoint(checkpoint), load_released_checkpoint(OFFICIAL / "checkpoint"))

    (checkpoint / "model-00002-of-00003.safetensors").write_bytes(b"short")
    with pytest.raises(ValueError, match=r"model-00002-of-00003\.safetensors is damaged"):
        load_released_checkpoint(checkpoint)
    (checkpoint / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lacks model-00002-of-00003\.safetensors"):
        read_safetensors(checkpoint)


def test_clip_configuration_elsewhere(checkpoint: Path, tmp_path: Path) -> None:
    """Config.json may name a path of the authors' machine, a folder of this one, or nothing."""
    wanted = load_released_checkpoint(OFFICIAL / "checkpoint")
    change_json(checkpoint / "config.json", clip_model_path="/their/machine/models/clip-tiny")
    assert same(load_released_checkpoint(checkpoint), wanted)
    shutil.move(checkpoint / "clip-tiny", tmp_path / "elsewhere")
    change_json(checkpoint / "config.json", clip_model_path=str(tmp_path / "elsewhere"))
    assert same(load_released_checkpoint(checkpoint), wanted)
    change_json(checkpoint / "config.json", clip_model_path="/their/machine/models/clip-tiny")
    config = load_config(checkpoint)
    assert config.selector_config.projection_dim == CLIP_VIT_B_32["projection_dim"]
    assert config.selector_config.vision_config.hidden_size == 768
    with pytest.raises(
        ValueError, match=r"of another shape: merger\.query_map\.weight \(24, 10\), expected \(24, 512\)"
    ):
        load_released_checkpoint(checkpoint)


def test_vision_tower_configuration_is_so400m_by_default(checkpoint: Path) -> None:
    (checkpoint / "siglip-config.json").unlink()
    config = load_config(checkpoint)
    assert {name: getattr(config.vision_config, name) for name in SIGLIP_SO400M} == SIGLIP_SO400M
    with pytest.raises(ValueError, match="missing: vision_tower"):
        load_released_checkpoint(checkpoint)


def test_missing_and_unexpected_weights_are_listed(checkpoint: Path) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    # Old versions of transformers stored what follows from the configuration: these are no weights.
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(3)
    weights["model.frame_selector.model.text_model.embeddings.position_ids"] = torch.ones(3)
    save_file(weights, checkpoint / "model.safetensors")
    assert same(load_released_checkpoint(checkpoint), load_released_checkpoint(OFFICIAL / "checkpoint"))
    del weights["model.composer_projector.tau"], weights["lm_head.weight"]
    weights |= {"model.vision_resampler.query": torch.zeros(2)}
    save_file(weights, checkpoint / "model.safetensors")
    with pytest.raises(ValueError, match="do not fit") as caught:
        load_released_checkpoint(checkpoint)
    message = str(caught.value)
    assert "missing: language_model.lm_head.weight, merger.temperature" in message
    assert "unexpected: language_model.model.vision_resampler.query" in message


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", None, r"is not a checkpoint: there is no config\.json"),
        ("config.json", "{", "is not JSON"),
        ("config.json", "[]", "must hold a JSON object, got a list"),
        ("config.json", {"composer_type": "single_token"}, "composer_type is 'single_token'"),
        ("config.json", {"composer_type": None}, "names no composer_type .* LLaVA-OneVision in lmms-lab's own format"),
        ("config.json", {"mm_projector_type": "linear"}, "mm_projector_type is 'linear'"),
        ("config.json", {"frame_selector_type": "Cluster"}, "frame_selector_type is 'Cluster'"),
        ("config.json", {"mm_spatial_pool_mode": "max"}, "mm_spatial_pool_mode is 'max'"),
        ("config.json", {"model_type": "llava"}, "holds a llava"),
        ("model.safetensors", None, r"lacks model\.safetensors"),
        ("model.safetensors.index.json", "{}", "names no weights"),
        *(
            ("model.safetensors.index.json", f'{{"weight_map": {{"a": {what}}}}}', r"index\.json names no file for a;")
            for what in ("3", "null", "[1]", "{}")
        ),
        ("config.json", "[" * 100_000, r"config\.json is not JSON"),
        ("model.safetensors.index.json", '{"weight_map":' * 100_000, r"index\.json is not JSON"),
        ("clip-tiny/config.json", "[" * 100_000, "can't load .*clip-tiny"),
        ("clip-tiny/config.json", "{", "can't load"),
        ("generation_config.json", "{", "can't load"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_damaged_checkpoint_and_another_codes_are_refused(
    checkpoint: Path, name: str, content: str | dict | None, message: str
) -> None:
    if content is None:
        (checkpoint / name).unlink()
    elif isinstance(content, dict):
        change_json(checkpoint / name, **content)
    else:
        (checkpoint / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(checkpoint)


def test_changes_reach_the_model_and_are_checked() -> None:
    model = load_checkpoint(OFFICIAL / "checkpoint", max_keyframes=5, reference="preceding", dtype=torch.bfloat16)
    assert (model.config.max_keyframes, model.config.reference, model.dtype) == (5, "preceding", torch.bfloat16)
    with pytest.raises(ValueError, match="no field keyframes"):
        load_checkpoint(OFFICIAL / "checkpoint", keyframes=5)
    with pytest.raises(ValueError, match="temperature is learned"):
        load_checkpoint(OFFICIAL / "checkpoint", temperature=0.3)


def test_tokenizers_of_a_released_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    config = load_config(checkpoint)
    with pytest.raises(ValueError, match=r"no tokenizer for the language model; name one with tokenizer"):
        load_processor(checkpoint, config)
    bytes_ = ViLaMPProcessor.byte_level(ViLaMPConfig.tiny())
    bytes_.tokenizer.save_pretrained(checkpoint)
    with pytest.raises(ValueError, match=r"no tokenizer for the selector; name one with selector_tokenizer"):
        load_processor(checkpoint, config)
    bytes_.selector_tokenizer.save_pretrained(tmp_path / "clip-tokenizer")
    given = load_processor(checkpoint, config, selector_tokenizer=tmp_path / "clip-tokenizer")
    bytes_.selector_tokenizer.save_pretrained(checkpoint / "clip-tiny")
    found = load_processor(checkpoint, config)
    for processor in (given, found):
        assert processor.selector_tokenizer("a")["input_ids"] == bytes_.selector_tokenizer("a")["input_ids"]
        assert processor.image_processor.size["height"] == 384
        assert processor.selector_image_processor.crop_size["height"] == 32


@pytest.mark.parametrize("kind", ["released", "ours", "onevision"])
def test_weights_that_would_load_as_something_else_are_refused(kind: str, tmp_path: Path) -> None:
    loads = {
        "released": load_checkpoint,
        "ours": load_checkpoint,
        "onevision": lambda folder: from_llava_onevision(folder, selector=tmp_path / "clip"),
    }
    if kind == "released":
        shutil.copytree(OFFICIAL / "checkpoint", tmp_path / kind)
    elif kind == "ours":
        tiny_model().save_pretrained(tmp_path / kind)
    else:
        onevision(tmp_path, 0)
    file = tmp_path / kind / "model.safetensors"
    weights = load_file(file)
    cases = {
        r"stores weights as float8_e4m3 \(": {
            name: value.to(torch.float8_e4m3fn) if value.ndim == 2 else value for name, value in weights.items()
        },
        r"stores weights as int8 \(": {
            name: value.to(torch.int8) if value.ndim == 2 else value for name, value in weights.items()
        },
        "unexpected: .* more": weights | {f"{name}_scale": torch.ones(1) for name in weights},
        r"a wrapper, which put 'module\.'": {f"module.{name}": value for name, value in weights.items()},
        r"a wrapper, which put 'base_model\.model\.'": {f"base_model.model.{name}": weights[name] for name in weights},
        "missing: .* more; unexpected: .* more": {f"student.{name}": value for name, value in weights.items()},
    }
    for message, stored in cases.items():
        save_file(stored, file, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=message) as caught:
            loads[kind](tmp_path / kind)
        assert len(str(caught.value)) < 700
    save_file(weights, file, metadata={"format": "pt"})
    loads[kind](tmp_path / kind)
    config = tmp_path / kind / "config.json"
    text = config.read_text()
    config.write_text(json.dumps(json.loads(text) | {"quantization_config": {"quant_method": "gptq", "bits": 4}}))
    with pytest.raises(ValueError, match=r"is quantised \(its config\.json says gptq\), and quantised weights are not"):
        loads[kind](tmp_path / kind)
    config.write_text(text)
    # A second set of weights, whichever of them is the better one.
    index, shard = file.with_name("model.safetensors.index.json"), file.with_name("model-00001-of-00001.safetensors")
    index.write_text(json.dumps({"weight_map": dict.fromkeys(weights, file.name)}))
    loads[kind](tmp_path / kind)  # the same one
    index.write_text(json.dumps({"weight_map": dict.fromkeys(weights, shard.name)}))
    for stored in (weights, {name: value.to(torch.int8) for name, value in weights.items()}):
        for single, in_shards in ((stored, weights), (weights, stored)):
            save_file(single, file, metadata={"format": "pt"})
            save_file(in_shards, shard, metadata={"format": "pt"})
            with pytest.raises(ValueError, match=r"holds model\.safetensors and model\.safetensors\.index\.json"):
                loads[kind](tmp_path / kind)
    index.unlink()
    shard.unlink()
    save_file(weights, file, metadata={"format": "pt"})
    for name in ("lora", ""):
        (tmp_path / kind / name).mkdir(exist_ok=True)
        (tmp_path / kind / name / "adapter_config.json").write_text('{"peft_type": "LORA"}')
        with pytest.raises(ValueError, match=rf"holds a LoRA adapter beside its weights \({name}/?adapter_config"):
            loads[kind](tmp_path / kind)
        if name:
            shutil.rmtree(tmp_path / kind / name)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / kind / name).unlink()
    with pytest.raises(ValueError, match="is a LoRA adapter"):
        loads[kind](tmp_path / kind)


# --- Ours ------------------------------------------------------------------------------------------------------------


def test_our_own_checkpoint(tmp_path: Path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path)
    processor = ViLaMPProcessor.byte_level(model.config)
    processor.save_pretrained(tmp_path)
    loaded = load_checkpoint(tmp_path, max_keyframes=2)
    assert same(loaded, model)
    assert loaded.config.max_keyframes == 2
    read = load_processor(tmp_path, loaded.config)
    assert read.tokenizer("añ<|im_end|>")["input_ids"] == processor.tokenizer("añ<|im_end|>")["input_ids"]
    weights = load_file(tmp_path / "model.safetensors")
    del weights["video_newline"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="missing: video_newline"):
        load_checkpoint(tmp_path)


# --- LLaVA-OneVision -------------------------------------------------------------------------------------------------


def onevision(folder: Path, seed: int, **text: object) -> LlavaOnevisionForConditionalGeneration:
    """A tiny LLaVA-OneVision and a tiny CLIP, saved."""
    torch.manual_seed(seed)
    tiny = ViLaMPConfig.tiny()
    config = LlavaOnevisionConfig(
        vision_config=tiny.vision_config.to_dict(),
        text_config=tiny.text_config.to_dict() | text,
        video_token_index=259,
        image_token_index=258,
    )
    model = LlavaOnevisionForConditionalGeneration(config).eval()
    model.save_pretrained(folder / "onevision")
    CLIPModel(tiny.selector_config).save_pretrained(folder / "clip")
    return model


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_with_every_frame_a_keyframe_vilamp_is_llava_onevision(seed: int, tied: bool, tmp_path: Path) -> None:
    theirs = onevision(tmp_path, seed, tie_word_embeddings=tied)
    num_frames = 6
    ours = from_llava_onevision(
        tmp_path / "onevision", selector=tmp_path / "clip", max_keyframes=num_frames, similarity_threshold=1.0
    )
    inputs = tiny_inputs(num_frames, seed, text=(5, 6, 259, 7, 8, 9))
    placeholders = [259] * (9 * num_frames + 1)
    wanted = theirs(
        input_ids=torch.tensor([[5, 6, *placeholders, 7, 8, 9]]),
        pixel_values_videos=inputs["pixel_values_videos"][None],
    ).logits
    torch.testing.assert_close(ours(**inputs, logits_to_keep=0).logits, wanted, rtol=0, atol=1e-5)
    assert wanted.std() > 0.01
    fewer = from_llava_onevision(tmp_path / "onevision", selector=tmp_path / "clip", max_keyframes=2)
    assert (fewer(**inputs).logits - wanted[:, -1:]).abs().max() > 1e-4


def test_new_parts_start_neutral_and_learn(tmp_path: Path) -> None:
    onevision(tmp_path, 0)
    model = from_llava_onevision(tmp_path / "onevision", selector=tmp_path / "clip", max_keyframes=2, fill="gaps")
    inputs = tiny_inputs(8, text=(5, 6, 259, 7, 8, 9))
    patches, query = model.patch_features(inputs["pixel_values_videos"]), model.embed_query(inputs["query_input_ids"])
    tokens, _ = model.merger(patches, patches[0], query[0])
    assert (tokens - patches.mean(dim=1)).abs().max() < 1e-3
    assert patches.abs().max() > 1  # so that 1e-3 means something
    assert same(model.merged_connector, model.keyframe_connector)
    assert model.merged_connector is not model.keyframe_connector

    model.train()
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    for name, parameter in model.named_parameters():
        if not name.startswith(("selector", "vision_tower.post_layernorm")):  # not used, or only to choose
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name
    # And it leaves the start: one step of a common optimiser changes the weights of the patches.
    torch.optim.Adam(model.merger.parameters(), lr=1e-3).step()
    moved, _ = model.merger(patches, patches[0], query[0])
    assert (moved - patches.mean(dim=1)).abs().max() > 1e-2


def test_onevisions_of_other_versions_of_transformers(tmp_path: Path) -> None:
    """Their weights had other names in 4.45, with the language model's own head, and in 4.52, below one `model`."""
    onevision(tmp_path, 0)
    wanted = from_llava_onevision(tmp_path / "onevision", selector=tmp_path / "clip")
    file = tmp_path / "onevision" / "model.safetensors"
    weights = load_file(file)
    first = {"model.language_model.": "language_model.model.", "lm_head.": "language_model.lm_head.", "model.": ""}
    second = {"language_model.model.": "model.language_model.", "language_model.lm_head.": "lm_head."}
    second |= {name: f"model.{name}" for name in ("vision_tower.", "multi_modal_projector.", "image_newline")}

    def renamed(names: dict[str, str]) -> dict[str, torch.Tensor]:
        found = {name: next(((a, b) for a, b in names.items() if name.startswith(a)), ("", "")) for name in weights}
        return {b + name.removeprefix(a): weights[name] for name, (a, b) in found.items()}

    for names in (first, second):
        stored = renamed(names)
        for vision in ("vision_tower.vision_model.", "vision_tower."):
            kept = {name.replace("vision_tower.vision_model.", vision): value for name, value in stored.items()}
            save_file(kept, file, metadata={"format": "pt"})
            assert same(from_llava_onevision(tmp_path / "onevision", selector=tmp_path / "clip"), wanted)


def test_a_file_in_place_of_its_folder_is_named(tmp_path: Path) -> None:
    onevision(tmp_path, 0)
    with pytest.raises(ValueError, match=r"onevision/config\.json as AutoConfig: it is a file; name the folder"):
        from_llava_onevision(tmp_path / "onevision" / "config.json", selector=tmp_path / "clip")
    with pytest.raises(ValueError, match=r"config\.json is a file; name the folder"):
        load_checkpoint(OFFICIAL / "checkpoint" / "config.json")


def test_onevision_in_lmms_labs_format_is_named(checkpoint: Path) -> None:
    change_json(checkpoint / "config.json", composer_type=None)
    with pytest.raises(ValueError, match=r"lmms-lab's own format; .* llava-hf"):
        from_llava_onevision(checkpoint, selector=checkpoint / "clip-tiny")


def test_onevision_takes_other_settings(tmp_path: Path) -> None:
    onevision(tmp_path, 0)
    paths = {"path": tmp_path / "onevision", "selector": tmp_path / "clip"}
    shared = from_llava_onevision(**paths, connectors="shared", merge_before_projection=False, dtype=torch.bfloat16)
    assert shared.merged_connector is shared.keyframe_connector
    assert shared.dtype == torch.bfloat16
    for name, value in CLIPModel.from_pretrained(tmp_path / "clip").state_dict().items():  # exact, not rounded
        assert torch.equal(shared.selector.state_dict()[name], value), name
    assert same(from_llava_onevision(**paths, seed=1), from_llava_onevision(**paths, seed=1))
    with pytest.raises(ValueError, match="can start neutral only"):
        from_llava_onevision(**paths, merge_redundancy="raw")
    with pytest.raises(ValueError, match=f"can't load {tmp_path}"):
        from_llava_onevision(tmp_path / "nothing", selector=tmp_path / "clip")
    with pytest.raises(ValueError, match="must hold a LLaVA-OneVision, got a clip"):
        from_llava_onevision(tmp_path / "clip", selector=tmp_path / "clip")


def test_onevision_with_a_siglip_selector_saves_and_loads(tmp_path: Path) -> None:
    onevision(tmp_path, 0)
    SiglipModel(SiglipConfig.from_dict(SIGLIP)).save_pretrained(tmp_path / "siglip")
    model = from_llava_onevision(tmp_path / "onevision", selector=tmp_path / "siglip")
    model.save_pretrained(tmp_path / "vilamp")
    loaded = ViLaMPForConditionalGeneration.from_pretrained(tmp_path / "vilamp")
    assert same(loaded, model)
    inputs = tiny_inputs(text=(5, 259, 7))
    # Read from a file, weights lie elsewhere in memory, and a BLAS may then add in another order.
    torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits, rtol=0, atol=1e-6)
