"""What the miniature adds to the paper's model: keyframe block, sharper attention at length, interpolated positions."""

import math

import pytest
import torch
from tiny_models import tiny_inputs, tiny_model

from vilamp_lite.configuration import QWEN2_7B, ViLaMPConfig
from vilamp_lite.modeling import ViLaMPForConditionalGeneration
from vilamp_lite.tinyworld.miniature import miniature_config

SMALL = {"vocab_size": 260, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
SMALL |= {"num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 256, "eos_token_id": 257}
TEXTS = {
    "qwen2": QWEN2_7B | SMALL,
    "qwen3": QWEN2_7B | SMALL | {"model_type": "qwen3", "head_dim": 8},
    "granite": QWEN2_7B | SMALL | {"model_type": "granite", "attention_multiplier": 0.3},  # another scale than usual
}

# --- The keyframe block ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"keyframe_pooling": "none", "text_config": TEXTS["qwen3"]}], ids=str)
@torch.no_grad()
def test_the_block_sees_its_own_frame_and_all_of_it(changes: dict) -> None:
    model = tiny_model(keyframe_block=True, **changes)
    each = model.config.tokens_per_keyframe
    patches = torch.randn(3, 25, 24)
    tokens = model.keyframe_tokens(patches).unflatten(0, (3, each))
    changed = patches.clone()
    changed[1, 12] += 1
    moved = (model.keyframe_tokens(changed).unflatten(0, (3, each)) - tokens).abs().amax(dim=2)
    assert moved[1].min() > 1e-5
    assert moved[[0, 2]].max() < 1e-6
    torch.testing.assert_close(model.keyframe_tokens(patches[1:2]), tokens[1], rtol=0, atol=1e-5)

    model.keyframe_block = None
    without = model.keyframe_tokens(patches).unflatten(0, (3, each))
    assert (without - tokens).abs().max() > 1e-3
    moved = (model.keyframe_tokens(changed).unflatten(0, (3, each)) - without).abs().amax(dim=2)
    assert (moved[1] == 0).any()


# --- Scaled attention ------------------------------------------------------------------------------------------------


def prompts(lengths: tuple[int, ...] = (9,)) -> dict[str, torch.Tensor]:
    """Plain text, padded on the left."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(5, 250, (length,), generator=generator) for length in lengths]
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad(rows, batch_first=True, padding_side="left"),
        "attention_mask": pad([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left"),
    }


def pair(kind: str, base: int) -> tuple[ViLaMPForConditionalGeneration, ViLaMPForConditionalGeneration]:
    """The same weights with scaled attention and without, large enough that attention is not even."""
    models = [tiny_model(text_config=TEXTS[kind], attention_log_base=b) for b in (base, None)]
    with torch.no_grad():
        for name, value in models[1].language_model.named_parameters():
            if "q_proj.weight" in name or "k_proj.weight" in name:
                value.normal_(std=0.4)
    models[0].load_state_dict(models[1].state_dict())
    for model in models:
        model.set_attn_implementation("eager")
    return models[0], models[1]


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize(("base", "length"), [(3, 9), (48, 9), (9, 81)])
@torch.no_grad()
def test_logits_are_scaled_as_documented(kind: str, base: int, length: int) -> None:
    """The first layer reads the same in both models, so its logits differ by the factor alone."""
    scaled, plain = pair(kind, base)
    inputs = prompts((length,))
    with_factor = scaled(**inputs, output_attentions=True).attentions[0]
    without = plain(**inputs, output_attentions=True).attentions[0]
    factor = math.log(length) / math.log(base)
    expected = (factor * without.log()).softmax(dim=-1)  # −inf, what comes later, stays 0
    torch.testing.assert_close(with_factor, expected, rtol=0, atol=1e-5)
    assert (with_factor - without).abs().max() > 0.02


@torch.no_grad()
def test_a_word_more_is_scaled_by_the_whole_length() -> None:
    """With the cache of what was read, the length counts that too, with a mask or without."""
    scaled, plain = pair("qwen3", 12)
    ids = prompts((12,))["input_ids"]
    for masked in (True, False):
        both = []
        for model in (scaled, plain):
            # All but the last word are read without scaling, so that only the last step is compared.
            cache = plain(input_ids=ids[:, :-1], use_cache=True).past_key_values
            mask = {"attention_mask": torch.ones_like(ids)} if masked else {}
            both.append(model(input_ids=ids[:, -1:], past_key_values=cache, **mask).logits)
        torch.testing.assert_close(*both, rtol=0, atol=1e-5)


def test_gradients_are_the_same_when_layers_are_computed_again() -> None:
    """Checkpointing runs the layers a second time in the backward pass, with the same sharpness."""
    model, plain = pair("qwen3", 3)
    inputs = prompts((9,)) | {"labels": prompts((9,))["input_ids"]}

    def gradients(model: ViLaMPForConditionalGeneration, again: bool) -> list[torch.Tensor]:
        model.train()
        if again:
            model.language_model.gradient_checkpointing_enable()
        parameters = list(model.language_model.model.layers.parameters())
        return list(torch.autograd.grad(model(**inputs, use_cache=False).loss, parameters))

    once, twice = gradients(model, again=False), gradients(model, again=True)
    torch.testing.assert_close(twice, once)
    unscaled = gradients(plain, again=False)
    assert any(not torch.allclose(own, other) for own, other in zip(once, unscaled, strict=True))


@torch.no_grad()
def test_the_parts_are_left_as_they_were() -> None:
    """Called by themselves, they say the same before and after the whole model reads, generates, and fails."""
    model, _ = pair("qwen3", 3)
    inputs = prompts((9,))
    pixels, query = torch.randn(3, 3, 32, 32), torch.randint(256, (1, 4))

    def parts() -> list[torch.Tensor]:
        return [
            model.language_model(inputs["input_ids"]).logits,
            model.embed_frames(pixels),
            model.embed_query(query),
            model.patch_features(torch.ones(1, 3, 70, 70)),
        ]

    before = parts()
    model(**inputs)
    model.generate(**inputs, max_new_tokens=2, prefill_chunk_size=4)
    with pytest.raises(RuntimeError):
        model(inputs_embeds=torch.ones(1, 9, 7))
    for now, then in zip(parts(), before, strict=True):
        assert torch.equal(now, then)


def test_generation_scales_by_the_tokens_so_far() -> None:
    """Each step of generation is scaled by its own length; an observer at the layers writes the factors down."""
    model = tiny_model(attention_log_base=16)
    inputs = tiny_inputs()
    prefill = 5 + model.config.visual_tokens(7)
    layer = model.language_model.model.layers[0].self_attn
    factors = []
    layer.register_forward_pre_hook(lambda module, _: factors.append(module.scaling * module.head_dim**0.5))
    model.generate(**inputs, max_new_tokens=4, do_sample=False, eos_token_id=None)
    lengths = [prefill, prefill + 1, prefill + 2, prefill + 3]
    assert factors == pytest.approx([math.log(length) / math.log(16) for length in lengths])


# --- Interpolated positions ------------------------------------------------------------------------------------------


def videos(*lengths: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(length, 32, generator=generator) for length in lengths]


IDS = torch.tensor([[5, 6, -200, 7, 8, 9]] * 2)


def test_a_long_video_is_spread_evenly_over_its_positions() -> None:
    model = tiny_model(video_positions=4)
    placed = model.place_videos(IDS, videos(8, 3))
    # Two words; the video, each token half a position further, or a whole one; three words.
    long = [0, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 8]
    short = [0] * 5 + [0, 1, 2, 3, 4, 5, 6, 7]
    assert placed.position_ids.tolist() == [long, short]
    steps = model.place_videos(IDS, videos(8, 3), video_steps=[1, 0.25]).position_ids
    assert steps.tolist() == [list(range(13)), [0] * 5 + [0, 1, 1.25, 1.5, 1.75, 2.75, 3.75, 4.75]]


def test_without_them_each_token_takes_a_position() -> None:
    placed = tiny_model().place_videos(IDS, videos(8, 3))
    assert placed.position_ids.dtype == torch.long  # some language models look positions up
    assert placed.position_ids.tolist() == [list(range(13)), [0] * 5 + list(range(8))]


@torch.no_grad()
def test_the_language_model_reads_at_these_positions() -> None:
    """As the same model without interpolation does, when it is told the positions."""
    model, plain = tiny_model(video_positions=4), tiny_model()
    plain.load_state_dict(model.state_dict())
    video = videos(8)
    placed = model.place_videos(IDS[:1], video)
    told = {name: getattr(placed, name) for name in ("inputs_embeds", "attention_mask", "position_ids")}
    expected = plain(**told, logits_to_keep=0).logits
    torch.testing.assert_close(model(input_ids=IDS[:1], video_embeds=video, logits_to_keep=0).logits, expected)
    without = plain(input_ids=IDS[:1], video_embeds=video, logits_to_keep=0).logits
    assert (without - expected).abs().max() > 1e-4
    # A video of four tokens has four positions in both.
    short = videos(4)
    same = [one(input_ids=IDS[:1], video_embeds=short).logits for one in (model, plain)]
    torch.testing.assert_close(*same)


@torch.no_grad()
def test_generation_goes_on_from_the_last_position() -> None:
    """Each word's logits are those of reading everything before it at once."""
    model = tiny_model(video_positions=4)
    generated = model.generate(
        input_ids=IDS, video_embeds=videos(8, 3), max_new_tokens=4, do_sample=False, eos_token_id=None,
        output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    for row, video in enumerate(videos(8, 3)):
        whole = torch.cat([IDS[row], generated.sequences[row]])[None]
        read = model(input_ids=whole, video_embeds=[video], logits_to_keep=5).logits[0, :-1]
        torch.testing.assert_close(torch.stack([step[row] for step in generated.logits]), read, rtol=0, atol=1e-5)


# --- Configuration ---------------------------------------------------------------------------------------------------


def test_the_miniature_has_all_three_and_the_presets_none() -> None:
    for preset in (ViLaMPConfig.paper(), ViLaMPConfig.released(), ViLaMPConfig.tiny()):
        assert (preset.keyframe_block, preset.attention_log_base, preset.video_positions) == (False, None, None)
    config = miniature_config()
    assert (config.keyframe_block, config.attention_log_base, config.video_positions) == (True, 48, 64)


def test_bad_values_are_refused() -> None:
    for name, value, message in (
        ("keyframe_block", 1, "must be of type bool"),
        ("attention_log_base", 1, "must be at least 2, got 1"),
        ("attention_log_base", 48.0, "must be an integer"),
        ("video_positions", 0, "must be an integer of at least 1"),
    ):
        with pytest.raises(ValueError, match=f"{name} {message}"):
            ViLaMPConfig.tiny(**{name: value})


def test_a_language_model_without_scale_or_rotation_is_refused() -> None:
    bloom = {"model_type": "bloom", "hidden_size": 16, "n_layer": 1, "n_head": 2, "vocab_size": 260}
    with pytest.raises(ValueError, match="attention_log_base can't be used with a bloom"):
        tiny_model(text_config=bloom, attention_log_base=48)
    with pytest.raises(ValueError, match="video_positions can't be used with a bloom"):
        tiny_model(text_config=bloom, video_positions=64)
    tiny_model(text_config=bloom)
