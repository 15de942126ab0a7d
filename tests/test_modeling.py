"""The assembled model: order and number of its tokens, batches, caches, gradients, streaming."""

import json
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import GOLDEN, OFFICIAL, SIGLIP, SMALL, VARIANTS, official_pixels, tiny_inputs, tiny_model
from transformers import AutoModel
from video_files import write_video

from vilamp_lite.checkpoints import load_released_checkpoint
from vilamp_lite.configuration import QWEN2_7B, SIGLIP_SO400M, ViLaMPConfig
from vilamp_lite.merging import merge_frames, pool_patches
from vilamp_lite.modeling import TokenKind, ViLaMPForConditionalGeneration
from vilamp_lite.processing import ViLaMPProcessor
from vilamp_lite.released import straight_through_gate

MERGE_CASES = sorted(GOLDEN.glob("merge_*.npz"))

# --- Parity with the released code: from the vision tower's output to loss and gradients -----------------------------


def golden_model(case: dict[str, np.ndarray], variant: str) -> ViLaMPForConditionalGeneration:
    """The model of a merge_* file: projector, merger, newline and language model with the file's weights."""
    weights = {name[2:]: torch.from_numpy(np.asarray(value)) for name, value in case.items() if name.startswith("w.")}
    hidden, patch_size = weights["model.mm_projector.0.weight"].shape
    config = ViLaMPConfig.released(
        vision_config=SIGLIP_SO400M | SMALL | {"hidden_size": patch_size},
        selector_config={
            "model_type": "clip",
            "projection_dim": len(case["clip_text_emb"]),
            "text_config": SMALL | {"vocab_size": 64, "bos_token_id": 0, "eos_token_id": 63},
            "vision_config": SMALL | {"image_size": 32, "patch_size": 8},
        },
        text_config=QWEN2_7B
        | {"vocab_size": 64, "hidden_size": hidden, "intermediate_size": 48, "num_hidden_layers": 2}
        | {"num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 63},
        **VARIANTS[variant],
    )
    model = ViLaMPForConditionalGeneration(config).eval()
    left, unexpected = model.load_state_dict({our_name(name): value for name, value in weights.items()}, strict=False)
    assert not unexpected
    assert {name.split(".")[0] for name in left} == {"selector", "vision_tower"}
    return model


def our_name(name: str) -> str:
    """The released code's parameter names, written out anew here so that the package's table is tested too."""
    maps = {"linear_q": "query_map", "linear_iq": "relevance_map", "linear_k": "reference_map"}
    maps |= {"linear_ik": "redundancy_map", "tau": "temperature"}
    if "composer_projector" in name:
        part, *rest = name.removeprefix("model.composer_projector.").split(".")
        return ".".join(["merger", maps[part], *rest])
    if name == "model.image_newline":
        return "video_newline"
    if "mm_projector" in name:
        return name.replace("model.mm_projector", "keyframe_connector")
    return f"language_model.{name}"


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("path", MERGE_CASES, ids=lambda path: path.stem)
def test_merge_goldens(path: Path, variant: str) -> None:
    case = dict(np.load(path))
    model = golden_model(case, variant)
    keyframes = torch.from_numpy(case["keyframe_mask"]).nonzero()[:, 0]
    features = torch.from_numpy(case["vision_features"]).float()
    num_frames, query = len(features), torch.from_numpy(case["text_emb_used_as_query"])

    reference = model.reference_frames(num_frames, keyframes)
    assert reference.tolist() == case[f"ref_index_{variant}"].tolist()
    projected = model.keyframe_connector(features)
    first = int(keyframes[0])
    close = {"rtol": 0, "atol": 1e-4}
    assert np.allclose(projected[first].detach(), case["projected_keyframe0"], **close)
    assert np.allclose(pool_patches(projected)[first].detach(), case["pooled_keyframe0"], **close)
    composed, _ = merge_frames(model.merger, projected, reference, query)
    assert np.allclose(composed.detach(), case[f"composed_{variant}"], **close)

    ahead = {frame: features[frame] for frame in model.early_references(num_frames, keyframes)}
    sequence = model.mix_tokens(features.split(4), num_frames, keyframes, query, ahead)
    if variant == "official":
        assert np.allclose(sequence.embeds.detach(), case["visual_tokens_official"], **close)
    merged = sequence.kind_of_token == TokenKind.MERGED
    others = torch.from_numpy(case["keyframe_mask"] == 0)
    assert np.allclose(sequence.embeds[merged].detach(), case[f"composed_{variant}"][others], **close)

    ids, labels = (torch.from_numpy(case[name]).long()[None] for name in ("input_ids", "labels"))
    output = model(input_ids=ids, video_embeds=[sequence.embeds], labels=labels, logits_to_keep=6)
    assert np.allclose(output.logits[0].detach(), case[f"logits_{variant}"], **close)
    assert abs(output.loss.item() - case[f"loss_{variant}"]) < 1e-4
    placed = model.place_videos(ids, [sequence.embeds], labels=labels).labels
    assert placed[0].tolist() == case["labels_out"].tolist()
    if variant == "official":
        output.loss.backward()
        gradients = {name[5:]: value for name, value in case.items() if name.startswith("grad.")}
        assert gradients or "n9" not in path.stem
        parameters = dict(model.named_parameters())
        for name, expected in gradients.items():
            limit = min(1e-4, 1e-3 * float(np.abs(expected).max()))  # some gradients are smaller than 1e-4
            assert np.allclose(parameters[our_name(name)].grad, expected, rtol=0, atol=limit), name


@pytest.mark.parametrize(("suffix", "variant"), [("", "official"), ("_corrected_first", "fixed_first")])
def test_official_tiny(suffix: str, variant: str) -> None:
    expected, case = np.load(OFFICIAL / "expected.npz"), json.loads((OFFICIAL / "case.json").read_text())
    model = load_released_checkpoint(OFFICIAL / "checkpoint", **VARIANTS[variant])
    vision, clip = official_pixels(case["vision_image_size"]), official_pixels(case["clip_image_size"])
    ids, query_ids = (torch.from_numpy(expected[name]).long().view(1, -1) for name in ("input_ids", "query_input_ids"))
    close = {"rtol": 0, "atol": 1e-4}
    with torch.no_grad():
        frames, query = model.embed_frames(clip), model.embed_query(query_ids)
        assert np.allclose(frames, expected["clip_image_embeds"], **close)
        assert np.allclose(query, expected["clip_text_embeds"], **close)
        selection = model.select(frames, query[0])
        assert selection.indices.tolist() == case["keyframes"] == np.flatnonzero(expected["keyframe_mask"]).tolist()
        assert np.allclose(selection.relevance, expected["query_relevance"], **close)
        assert np.allclose(model.patch_features(vision[:1])[0], expected["patch_features_frame0"], **close)
        sequence = model.encode_frames(vision, clip, query[0])
        assert len(sequence.embeds) == case["visual_tokens"]
        placed = model.place_videos(ids, [sequence.embeds]).inputs_embeds
        assert np.allclose(placed[0], expected[f"inputs_embeds{suffix}"], **close)
        inputs = {
            "input_ids": ids,
            "pixel_values_videos": vision,
            "selector_pixel_values": clip,
            "query_input_ids": query_ids,
        }
        assert np.allclose(model(**inputs, logits_to_keep=6).logits[0], expected[f"logits_last6{suffix}"], **close)
    if variant == "official":
        answer = model.generate(**inputs, max_new_tokens=12, do_sample=False, eos_token_id=None)
        assert answer[0].tolist() == expected["greedy_generated_ids"].tolist()


# --- The sequence ----------------------------------------------------------------------------------------------------


def expected_sequence(model: ViLaMPForConditionalGeneration, patches: torch.Tensor, keyframes: list[int], query):
    """The sequence built frame by frame, each merge by itself: slow and plain."""
    reference = model.reference_frames(len(patches), torch.tensor(keyframes))
    rows = []
    for frame, own in enumerate(patches):
        if frame in keyframes:
            tokens = model.keyframe_connector(own[None])
            tokens = pool_patches(tokens) if model.config.keyframe_pooling == "bilinear" else tokens
            rows.append((model.keyframe_block(tokens) if model.config.keyframe_block else tokens)[0])
        else:
            own, other = own[None], patches[reference[frame]][None]
            if not model.config.merge_before_projection:
                own, other = model.merged_connector(own), model.merged_connector(other)
            token, _ = model.merger(own, other, query)
            rows.append(model.merged_connector(token) if model.config.merge_before_projection else token)
    if model.config.video_newline:
        rows.append(model.video_newline[None])
    return torch.cat(rows)


SWITCHES = [
    {},
    {"connectors": "shared"},
    {"merge_before_projection": False},
    {"connectors": "shared", "merge_before_projection": False, "merge_redundancy": "mapped"},
    {"keyframe_pooling": "none"},
    {"video_newline": False},
    {"before_first": "self"},
    {"reference": "released"},
    {"reference": "released", "before_first": "self"},
    {"redundancy_weight": 0.3, "temperature": 0.2},
    {"keyframe_block": True},
]


@pytest.mark.parametrize("changes", SWITCHES, ids=str)
@pytest.mark.parametrize("keyframes", [[0], [3, 4, 8], [2, 9], list(range(11))], ids=str)
@torch.no_grad()
def test_every_switch_against_a_plain_loop(changes: dict, keyframes: list[int]) -> None:
    model = tiny_model(**changes)
    patches, query = torch.randn(11, 25, 24), torch.randn(12)
    wanted = expected_sequence(model, patches, keyframes, query)
    ahead = {frame: patches[frame] for frame in model.early_references(11, torch.tensor(keyframes))}
    for batch_size in (1, 4, 11):
        got = model.mix_tokens(patches.split(batch_size), 11, torch.tensor(keyframes), query, ahead)
        torch.testing.assert_close(got.embeds, wanted, rtol=0, atol=1e-4)
    assert len(got.embeds) == model.config.visual_tokens(11, len(keyframes))
    assert got.keyframes.tolist() == keyframes
    video = got.frame_of_token >= 0
    assert got.frame_of_token[video].tolist() == sorted(got.frame_of_token[video].tolist())
    counts = got.frame_of_token[video].bincount(minlength=11).tolist()
    assert counts == [model.config.tokens_per_keyframe if frame in keyframes else 1 for frame in range(11)]
    assert (got.kind_of_token == TokenKind.NEWLINE).sum() == int(model.config.video_newline)


def test_mix_tokens_refuses_another_number_of_frames() -> None:
    model, query = tiny_model(), torch.randn(12)
    for found, batches in (("got 4", [4]), ("got more", [4, 4])):
        patches = [torch.randn(size, 25, 24) for size in batches]
        with pytest.raises(ValueError, match=found):
            model.mix_tokens(patches, 6, torch.tensor([0]), query)


@torch.no_grad()
def test_reference_patches_are_dropped_when_no_longer_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory of the stream: the paper's reference holds one keyframe's mapped patches at a time."""
    model = tiny_model(merge_redundancy="mapped")
    mapped, alive, map_reference = [], [], model.merger.map_reference

    def watched(patches):
        result = map_reference(patches)
        mapped.append(weakref.ref(result))
        return result

    def batches():
        for _ in range(40):
            yield torch.randn(1, 25, 24)
            alive.append(sum(reference() is not None for reference in mapped))

    monkeypatch.setattr(model.merger, "map_reference", watched)
    model.mix_tokens(batches(), 40, torch.arange(0, 40, 4), torch.randn(12))
    assert len(mapped) == 10
    assert max(alive) == 1


def test_no_keyframe_is_an_error() -> None:
    model = tiny_model(relevance_threshold=1.0, fill="none")
    with pytest.raises(ValueError, match="lower it, or set fill='gaps'"):
        model(**tiny_inputs())


# --- The language model ----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_logits_are_made_for_the_needed_positions_only() -> None:
    model, inputs = tiny_model(), tiny_inputs()
    everything = model(**inputs, logits_to_keep=0).logits
    assert everything.shape[1] == 5 + model.config.visual_tokens(7)
    seen = []
    model.language_model.lm_head.register_forward_hook(lambda module, args, out: seen.append(args[0].shape[1]))
    torch.testing.assert_close(model(**inputs).logits, everything[:, -1:])
    torch.testing.assert_close(model(**inputs, logits_to_keep=3).logits, everything[:, -3:])
    labels = torch.tensor([[-100, -100, -100, -100, 8, 9]])
    loss = model(**inputs, labels=labels).loss
    # Two supervised tokens need the two positions before them, and the last position is asked for.
    assert seen == [1, 3, 3]
    wanted = torch.nn.functional.cross_entropy(everything[0, -3:-1], torch.tensor([8, 9]))
    torch.testing.assert_close(loss, wanted)
    model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert seen[3:] == [1, 1, 1]


def batch_of(*singles: dict) -> dict:
    """One batch of several prompts and videos, padded on the left."""
    pad = lambda name: torch.nn.utils.rnn.pad_sequence(  # noqa: E731
        [single[name][0] for single in singles], batch_first=True, padding_side="left"
    )
    ids = pad("input_ids")
    lengths = torch.tensor([single["input_ids"].shape[1] for single in singles])
    return {
        "input_ids": ids,
        "attention_mask": (torch.arange(ids.shape[1])[None] >= ids.shape[1] - lengths[:, None]).long(),
        "pixel_values_videos": torch.cat([single["pixel_values_videos"] for single in singles]),
        "selector_pixel_values": torch.cat([single["selector_pixel_values"] for single in singles]),
        "query_input_ids": torch.cat([single["query_input_ids"] for single in singles]),
        "video_num_frames": torch.tensor([len(single["pixel_values_videos"]) for single in singles]),
    }


VIDEOS = [(3, 1, (5, -200, 7)), (9, 2, (5, 6, 4, -200, 7, 8, 9)), (6, 3, (-200, 30))]


@torch.no_grad()
def test_a_batch_equals_its_rows() -> None:
    model = tiny_model()
    singles = [tiny_inputs(*video) for video in VIDEOS]
    batch = batch_of(*singles)
    alone = torch.cat([model(**single).logits for single in singles])
    torch.testing.assert_close(model(**batch).logits, alone, rtol=0, atol=1e-5)
    sampled = {"do_sample": True, "top_k": 1}  # of the first alone, so that chance plays no part
    for way in ({"do_sample": False}, sampled, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}):
        options = way | {"max_new_tokens": 6, "eos_token_id": None}
        own = torch.cat([model.generate(**single, **options) for single in singles])
        assert torch.equal(model.generate(**batch, **options), own)
    # Padding on the right means the same.
    flipped = batch | {"input_ids": batch["input_ids"].clone(), "attention_mask": batch["attention_mask"].clone()}
    for row, single in enumerate(singles):
        length = single["input_ids"].shape[1]
        flipped["input_ids"][row] = torch.nn.functional.pad(single["input_ids"][0], (0, 7 - length))
        flipped["attention_mask"][row] = (torch.arange(7) < length).long()
    torch.testing.assert_close(model(**flipped).logits, alone, rtol=0, atol=1e-5)


def test_batch_loss_counts_every_supervised_token_once() -> None:
    model = tiny_model()
    singles = [tiny_inputs(*video) for video in VIDEOS[:2]]
    batch = batch_of(*singles)
    labels = torch.where(batch["attention_mask"].bool() & (batch["input_ids"] >= 7), batch["input_ids"], -100)
    loss = model(**batch, labels=labels).loss
    losses, counts = [], []
    for single in singles:
        own = torch.where(single["input_ids"] >= 7, single["input_ids"], -100)
        losses.append(model(**single, labels=own).loss)
        counts.append(int((own != -100).sum()))
    wanted = sum(loss * count for loss, count in zip(losses, counts, strict=True)) / sum(counts)
    torch.testing.assert_close(loss, wanted, rtol=0, atol=1e-5)


GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 260}
GPT2 |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}


@pytest.mark.parametrize("changes", [{}, {"text_config": GPT2}], ids=["rotary positions", "absolute positions"])
@torch.no_grad()
def test_a_cache_changes_nothing(changes: dict) -> None:
    """Generation keeps a cache; a loop that reads everything anew for each token finds the same tokens."""
    model = tiny_model(**changes)
    batch = batch_of(*(tiny_inputs(*video) for video in VIDEOS))
    cached = model.generate(**batch, max_new_tokens=8, do_sample=False, eos_token_id=None)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    for _ in range(8):
        inputs = batch | {"input_ids": ids, "attention_mask": mask}
        new = model(**inputs, use_cache=False).logits[:, -1].argmax(dim=-1, keepdim=True)
        ids, mask = torch.cat([ids, new], dim=1), torch.cat([mask, torch.ones_like(new)], dim=1)
    assert cached.tolist() == ids[:, -8:].tolist()
    # A step by hand, without position_ids, in a batch that is padded.
    first = model(**batch, use_cache=True)
    length = first.past_key_values.get_seq_length()
    lengths = [len(text) - 1 + model.config.visual_tokens(n) for n, _, text in VIDEOS]
    whole = torch.stack([(torch.arange(length + 1) >= length - own).long() for own in lengths])
    step = model(input_ids=cached[:, :1], attention_mask=whole, past_key_values=first.past_key_values)
    again = model(**batch | {"input_ids": ids[:, :-7], "attention_mask": mask[:, :-7]})
    torch.testing.assert_close(step.logits, again.logits, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_cache_step_equals_reading_everything() -> None:
    model, inputs = tiny_model(), tiny_inputs()
    first = model(**inputs, use_cache=True)
    step = model(input_ids=torch.tensor([[33]]), past_key_values=first.past_key_values)
    longer = inputs | {"input_ids": torch.cat([inputs["input_ids"], torch.tensor([[33]])], dim=1)}
    torch.testing.assert_close(step.logits, model(**longer).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"attention_log_base": 8}], ids=str)
@pytest.mark.parametrize("chunk", [1, 5, 1000])
def test_a_prompt_read_in_chunks_is_read_alike(changes: dict, chunk: int) -> None:
    """Padded rows, beams, samples; the language model never reads more than a chunk at a time."""
    model, lengths = tiny_model(**changes), []
    batch = batch_of(*(tiny_inputs(*video) for video in VIDEOS))
    longest = max(model.config.visual_tokens(n) + len(text) - 1 for n, _, text in VIDEOS)
    options = {"max_new_tokens": 5, "eos_token_id": None, "output_logits": True, "return_dict_in_generate": True}
    plain = model.generate(**batch, **options, do_sample=False, prefill_chunk_size=10**6)
    model.language_model.register_forward_pre_hook(
        lambda _module, _inputs, named: lengths.append(named["inputs_embeds"].shape[1]), with_kwargs=True
    )
    chunked = model.generate(**batch, **options, do_sample=False, prefill_chunk_size=chunk)
    assert max(lengths) <= chunk
    assert sum(lengths) == longest + 4
    assert torch.equal(chunked.sequences, plain.sequences)
    torch.testing.assert_close(torch.stack(chunked.logits), torch.stack(plain.logits), rtol=0, atol=1e-5)
    for way in ({"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}):
        answers = [
            model.generate(**batch, **way, max_new_tokens=5, eos_token_id=None, prefill_chunk_size=size)
            for size in (chunk, 10**6)
        ]
        assert torch.equal(*answers)


def test_a_video_is_encoded_once_per_answer() -> None:
    model, calls = tiny_model(), []
    model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    model.generate(**tiny_inputs(6), max_new_tokens=5, num_beams=3, eos_token_id=None)
    assert len(calls) <= 2  # six frames at once, and perhaps one that is read ahead


def test_sampling_temperature_is_not_the_merges(tmp_path: Path) -> None:
    model = tiny_model(temperature=0.05)
    assert model.generation_config.temperature in (None, 1.0)
    model.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    loaded = ViLaMPForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.generation_config.temperature in (None, 1.0)
    assert loaded.generation_config.eos_token_id == 257


def test_new_parts_are_initialised_when_a_file_lacks_them(tmp_path: Path) -> None:
    model = tiny_model(temperature=0.05)
    weights = model.state_dict()
    del weights["merger.temperature"], weights["video_newline"]
    made = ViLaMPForConditionalGeneration.from_pretrained(None, config=model.config, state_dict=weights)
    assert made.merger.temperature.item() == pytest.approx(0.05)
    assert 0.01 < made.video_newline.std() < 1


def test_options_reach_the_language_model() -> None:
    output = tiny_model()(**tiny_inputs(), output_hidden_states=True)
    assert len(output.hidden_states) == 3


def test_what_trainers_do() -> None:
    """They set fields, resize vocabularies, and train in mixed precision."""
    model = tiny_model()
    model.resize_token_embeddings(300)
    assert model(**tiny_inputs()).logits.shape[-1] == 300
    exact = tiny_model()(**tiny_inputs()).logits
    with torch.autocast("cpu", torch.bfloat16):
        mixed = tiny_model()(**tiny_inputs()).logits
    assert (mixed.float() - exact).abs().max() < 0.1 * exact.abs().max()


def test_scores_stay_exact_under_autocast() -> None:
    model = tiny_model()
    patches, query = torch.randn(4, 25, 24), torch.randn(12)
    merger = model.merger
    for linear in (merger.query_map, merger.relevance_map):
        linear.weight.data.mul_(50)
    _, exact = merger(patches, patches[0], query)
    with torch.autocast("cpu", torch.bfloat16):
        mapped = merger.map_query(query), merger.map_reference(patches[0])
        _, mixed = merger.merge(patches, mapped[1], mapped[0])
    # The maps are half precision; at α = 0.01, scores in half precision would be off by 0.4 before the softmax.
    assert (mixed - exact).abs().sum(dim=1).max() / 2 < 0.25


@torch.no_grad()
def test_plain_text_is_the_language_models() -> None:
    model, ids = tiny_model(), torch.tensor([[4, 5, 6]])
    torch.testing.assert_close(model(input_ids=ids, logits_to_keep=0).logits, model.language_model(ids).logits)


NO_PIXELS = dict.fromkeys(("pixel_values_videos", "selector_pixel_values", "query_input_ids"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_ids": torch.tensor([[5, 6, 7]])}, "prompt 0 must hold one video token"),
        ({"input_ids": torch.tensor([[-200, 6, -200]])}, "prompt 0 must hold one video token .*got 2"),
        (NO_PIXELS, "no video came with them"),
        ({"pixel_values_videos": None}, "selector_pixel_values, query_input_ids came without pixel_values_videos"),
        ({"input_ids": None, "inputs_embeds": torch.randn(1, 3, 32)}, "leave out pixel_values_videos, selector_pixel"),
        ({"query_input_ids": None}, "need query_input_ids"),
        ({"selector_pixel_values": None}, "need selector_pixel_values"),
        ({"selector_pixel_values": torch.randn(3, 3, 32, 32)}, "must hold the same frames, got 7 and 3"),
        ({"pixel_values_videos": torch.randn(3, 70, 70)}, "pixel_values_videos must have 4 axes"),
        ({"video_num_frames": torch.tensor([3, 3])}, "video_num_frames must name the frames"),
        ({"video_num_frames": torch.tensor([6])}, "video_num_frames must name the frames"),
        ({"video_num_frames": torch.tensor(6)}, "video_num_frames must name the frames"),
        ({"inputs_embeds": torch.randn(1, 3, 32)}, "either input_ids or inputs_embeds"),
        ({"logits_to_keep": -1}, "logits_to_keep must be a number of positions"),
        ({"logits_to_keep": torch.tensor([0])}, "logits_to_keep must be a number of positions"),
        ({"attention_mask": torch.ones(1, 3)}, "attention_mask must have input_ids' shape"),
        ({"labels": torch.ones(1, 3)}, "labels must have input_ids' shape"),
        ({"labels": torch.full((1, 6), -100)}, "labels supervise no token"),
        ({"video_embeds": [torch.randn(5, 32)]}, "not as both"),
        (NO_PIXELS | {"video_embeds": [torch.randn(5, 16)]}, r"video_embeds must be tensors \[T, 32\]"),
        (NO_PIXELS | {"video_embeds": ["tokens"]}, r"video_embeds must be tensors \[T, 32\]"),
        (NO_PIXELS | {"video_embeds": [torch.randn(40_000, 32)]}, "do not fit the language model's"),
    ],
)
def test_inputs_that_do_not_go_together(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_model()(**tiny_inputs() | changes)


def test_generation_refuses_what_forward_refuses() -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match="no video came with them"):
        model.generate(input_ids=torch.tensor([[5, -200, 7]]))
    with pytest.raises(ValueError, match="generate needs input_ids"):
        model.generate(pixel_values_videos=torch.randn(2, 3, 70, 70))
    with pytest.raises(ValueError, match="leave out use_cache=False"):
        model.generate(**tiny_inputs(), use_cache=False)


@torch.no_grad()
def test_numpy_pixels_are_taken() -> None:
    inputs = tiny_inputs()
    arrays = inputs | {name: inputs[name].numpy() for name in ("pixel_values_videos", "selector_pixel_values")}
    assert torch.equal(tiny_model()(**arrays).logits, tiny_model()(**inputs).logits)


def test_frames_that_earlier_ones_refer_to_must_be_read_ahead() -> None:
    model, patches, query = tiny_model(), torch.randn(6, 25, 24), torch.randn(12)
    with pytest.raises(ValueError, match="read_ahead must hold frame 3"):
        model.mix_tokens(patches.split(2), 6, torch.tensor([3]), query)
    # In one batch with it, they are not early.
    whole = model.mix_tokens([patches], 6, torch.tensor([3]), query)
    again = model.mix_tokens([patches[:0], patches[:5], patches[:0], patches[5:]], 6, [3], query, {3: patches[3]})
    torch.testing.assert_close(again.embeds, whole.embeds)


@torch.no_grad()
def test_a_merge_makes_one_token_a_frame_or_none() -> None:
    model, patches, query = tiny_model(), torch.randn(6, 25, 24), torch.randn(12)
    for merge in (
        lambda features, _: features.mean(dim=1)[:2],
        lambda features, _: features,
    ):
        with pytest.raises(ValueError, match="merge must return one token for each of 5 frames, or none at all"):
            model.mix_tokens([patches], 6, torch.tensor([0]), query, merge=merge)


# --- Gradients -------------------------------------------------------------------------------------------------------


def test_straight_through_gate_is_one_with_a_gradient() -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for seed in range(20):
            relevance = torch.randn(int(10 ** (seed / 5)), generator=torch.Generator().manual_seed(seed)).to(dtype)
            assert (straight_through_gate(relevance) == 1).all()
    relevance = torch.randn(5, dtype=torch.float64, requires_grad=True)
    (straight_through_gate(relevance) * torch.arange(5)).sum().backward()
    probabilities = relevance.detach().softmax(0)
    values = torch.arange(5, dtype=torch.float64)
    torch.testing.assert_close(relevance.grad, probabilities * (values - (probabilities * values).sum()))


@pytest.mark.parametrize("gate", [True, False])
def test_the_gate_leads_to_the_selector(gate: bool) -> None:
    model, inputs = tiny_model(relevance_gate=gate), tiny_inputs()
    labels = inputs["input_ids"].clamp(min=0)
    output = model(**inputs, labels=labels)
    ungated = tiny_model(relevance_gate=False)(**inputs, labels=labels)
    assert torch.equal(output.logits, ungated.logits)
    output.loss.backward()
    reached = [p.grad is not None and bool(p.grad.any()) for p in model.selector.vision_model.parameters()]
    assert any(reached) is gate


@pytest.mark.parametrize("changes", SWITCHES[:5], ids=str)
def test_every_trained_part_gets_a_gradient(changes: dict) -> None:
    model, inputs = tiny_model(**changes), tiny_inputs()
    model.activation_checkpointing_enable()
    model.train()
    model(**inputs, labels=inputs["input_ids"].clamp(min=0)).loss.backward()
    for name, parameter in model.named_parameters():
        # The selector only chooses; the norm after the tower's last layer is not used.
        if not name.startswith(("selector", "vision_tower.post_layernorm")):
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name


# --- Devices and types -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_on_the_cpu(dtype: torch.dtype) -> None:
    """Pixels come in float32 and logits come near float32's: half precision keeps 8 or 11 bits of each number."""
    inputs = tiny_inputs()
    exact = tiny_model(temperature=0.5)(**inputs).logits
    half = tiny_model(temperature=0.5).to(dtype)(**inputs).logits
    assert half.dtype == dtype
    assert (half.float() - exact).abs().max() < (0.1 if dtype == torch.bfloat16 else 0.01) * exact.abs().max()
    answer = tiny_model().to(dtype).generate(**inputs, max_new_tokens=4, num_beams=2)
    assert answer.shape[0] == 1


@pytest.mark.parametrize("preset", ["paper", "released"])
@torch.no_grad()
def test_full_size_shapes_on_the_meta_device(preset: str) -> None:
    """Everything from pixels to visual tokens follows the parameters' device and type."""
    with torch.device("meta"):
        model = ViLaMPForConditionalGeneration(getattr(ViLaMPConfig, preset)()).to(torch.bfloat16)
    patches = model.patch_features(torch.rand(4, 3, 384, 384))
    assert patches.shape == (4, 729, 1152)
    assert model.embed_frames(torch.rand(4, 3, 224, 224)).shape == (4, 512)
    query = model.embed_query(torch.tensor([[49406, 2368, 49407]]))[0]
    sequence = model.mix_tokens([patches], 4, torch.tensor([1, 3]), query, {1: patches[1]})
    assert sequence.embeds.shape == (model.config.visual_tokens(4, 2), 3584)
    for made in (patches, query, sequence.embeds):
        assert (made.device.type, made.dtype) == ("meta", torch.bfloat16)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_implementations_reach_every_part(implementation: str, tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    model = ViLaMPForConditionalGeneration.from_pretrained(tmp_path, attn_implementation=implementation)
    for part in (model.selector, model.vision_tower, model.language_model):
        assert part.config._attn_implementation == implementation
    torch.testing.assert_close(model(**tiny_inputs()).logits, tiny_model()(**tiny_inputs()).logits, rtol=0, atol=1e-5)


def test_the_vision_tower_keeps_one_layers_states() -> None:
    model = tiny_model()
    pixels = torch.randn(2, 3, 70, 70)
    output = model.vision_tower(pixels, output_hidden_states=[-1])
    assert [states is not None for states in output.hidden_states] == [False, False, True]
    everything = model.vision_tower(pixels, output_hidden_states=True).hidden_states
    for layer in (-1, 0, 1, -3):
        model.config.vision_feature_layer = layer
        assert torch.equal(model.patch_features(pixels), everything[layer])


def test_a_tower_without_a_grid_of_patches_is_refused() -> None:
    swin = {"model_type": "swin", "image_size": 64, "patch_size": 4, "hidden_size": 24}
    model = tiny_model(vision_config=swin | {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 1]})
    with pytest.raises(ValueError, match="a vision tower must give 256 patches for each of 1 frames"):
        model.patch_features(torch.randn(1, 3, 64, 64))


@torch.no_grad()
def test_class_tokens_are_left_out() -> None:
    """A CLIP tower prepends one; DINOv2 with registers prepends five."""
    for kind in ("clip_vision_model", "dinov2_with_registers"):
        model = tiny_model(
            vision_config=SMALL | {"model_type": kind, "image_size": 56, "patch_size": 14, "hidden_size": 24}
        )
        patches = model.patch_features(torch.randn(2, 3, 56, 56))
        assert patches.shape == (2, 16, 24)
        states = model.vision_tower(torch.zeros(1, 3, 56, 56), output_hidden_states=True).hidden_states[-1]
        assert states.shape[1] > 16
        torch.testing.assert_close(model.patch_features(torch.zeros(1, 3, 56, 56)), states[:, -16:])


@pytest.mark.parametrize("text", [{"model_type": "llama", "vocab_size": 260} | SMALL, GPT2], ids=["llama", "gpt2"])
def test_any_causal_language_model_and_any_selector_like_clip(text: dict) -> None:
    model = tiny_model(
        text_config=text | {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}, selector_config=SIGLIP
    )
    assert model.config.query_size == 16
    answer = model.generate(**tiny_inputs(), max_new_tokens=3, do_sample=False, eos_token_id=None)
    assert answer.shape == (1, 3)


# --- Files -----------------------------------------------------------------------------------------------------------


TIED = {"text_config": ViLaMPConfig.tiny().text_config.to_dict() | {"tie_word_embeddings": True}}


@pytest.mark.parametrize("changes", [{}, {"connectors": "shared", "video_newline": False}, TIED])
def test_save_and_load_bit_equal(changes: dict, tmp_path: Path) -> None:
    model = tiny_model(**changes)
    model.merger.temperature.data.fill_(0.123)
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    for loaded in (ViLaMPForConditionalGeneration.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        assert isinstance(loaded, ViLaMPForConditionalGeneration)
        saved, read = model.state_dict(), loaded.state_dict()
        assert saved.keys() == read.keys()
        assert all(torch.equal(saved[name], read[name]) for name in saved)
        assert (loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight) is (changes is TIED)
        # Weights from a file lie elsewhere in memory, and a BLAS may then add in another order.
        logits = loaded(**tiny_inputs()).logits
        torch.testing.assert_close(logits, model(**tiny_inputs()).logits, rtol=0, atol=1e-6)


def test_half_precision_files_keep_the_selector_exact(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    half = ViLaMPForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16)
    types = {name: {p.dtype for p in part.parameters()} for name, part in half.named_children()}
    assert types.pop("selector") == {torch.float32}
    assert set.union(*types.values()) == {torch.bfloat16}
    assert half.generate(**tiny_inputs(), max_new_tokens=3, eos_token_id=None).shape == (1, 3)


# --- Streaming a file ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("clips") / "clip.mp4", 100)


@pytest.mark.parametrize("changes", [{}, {"before_first": "self"}, {"reference": "released"}], ids=str)
@torch.no_grad()
def test_encode_video_equals_all_in_memory(changes: dict, clip: Path) -> None:
    model = tiny_model(**changes)
    processor = ViLaMPProcessor.byte_level(model.config)
    question, sampling = "Where is the cat?", {"fps": 3.0, "max_frames": 20}
    inputs = processor(clip, question, **sampling)
    query = model.embed_query(inputs["query_input_ids"], inputs["query_attention_mask"])[0]
    whole = model.encode_frames(inputs["pixel_values_videos"], inputs["selector_pixel_values"], query)
    assert whole.keyframes[0] > 0  # so that a frame has to be read ahead
    for batch_size in (3, 8):
        streamed = model.encode_video(clip, question, processor, **sampling, batch_size=batch_size)
        assert streamed.keyframes.tolist() == whole.keyframes.tolist()
        torch.testing.assert_close(streamed.embeds, whole.embeds, rtol=0, atol=1e-4)
        assert len(streamed.timestamps) == 20
    settings = {"input_ids": inputs["input_ids"], "max_new_tokens": 6, "do_sample": False}
    answer = model.generate(video_embeds=[streamed.embeds], **settings)
    assert answer.tolist() == model.generate(**inputs | settings).tolist()


def test_a_video_that_does_not_fit_is_not_decoded(clip: Path) -> None:
    model = tiny_model()
    model.config.text_config.max_position_embeddings = 40
    processor = ViLaMPProcessor.byte_level(model.config)
    processor.selector_pixels = lambda _: pytest.fail("decoded")
    with pytest.raises(ValueError, match="53 tokens do not fit the language model's 40"):
        model.encode_video(clip, "?", processor, fps=2.0)


def test_encode_video_uses_the_configurations_rate(clip: Path) -> None:
    model = tiny_model(fps=2.0)
    sequence = model.encode_video(clip, "?", ViLaMPProcessor.byte_level(model.config))
    np.testing.assert_allclose(sequence.timestamps, np.arange(20) / 2, atol=1e-6)
    assert set(sequence.keyframes.tolist()) <= set(range(20))


@torch.no_grad()
def test_the_configured_threshold_is_what_two_keyframes_may_share() -> None:
    frames, query = torch.tensor([[1.0] + [0] * 11, [0.6, 0.8] + [0] * 10]), torch.eye(12)[0]
    for threshold, count in ((0.59, 1), (0.61, 2)):
        assert len(tiny_model(similarity_threshold=threshold, fill="none").select(frames, query).order) == count


def test_the_selector_keeps_its_precision_under_autocast() -> None:
    """Mixed precision in training must choose the keyframes that inference chooses: thresholds see every bit."""
    model, inputs = tiny_model(), tiny_inputs()
    pixels, query = inputs["selector_pixel_values"], inputs["query_input_ids"]
    with torch.no_grad():
        frames, asked = model.embed_frames(pixels), model.embed_query(query)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(model.embed_frames(pixels), frames)
            assert torch.equal(model.embed_query(query), asked)
