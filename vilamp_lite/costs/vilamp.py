"""What ViLaMP costs for a video: visual tokens, FLOPs, memory and seconds, streaming and as the released code works.

Everything is a closed form of the models' shapes; a test counts the FLOPs with torch's counter too. What the figures
mean:

* FLOPs are 2 × multiply-adds of matrix products and convolutions. Norms, activations, softmax, rotary embeddings,
  pooling and the selection itself are left out: they are a small part of the work, and torch's counter omits them too.
* Attention in the language model is counted twice over: as a square, all L² pairs of tokens, which kernels that mask
  afterwards execute and torch counts; and causally, the L (L + 1) / 2 pairs that the mask leaves, which kernels
  that skip the rest execute. Vision towers attend in both directions, and decoding reads all that came before: there
  the two agree.
* Memory is what tensors hold: weights, the KV cache, and the activations at the peak of each stage. An allocator's
  reserve, a kernel's workspace and the driver's context are left out. 1 GB is 10⁹ bytes, of a data sheet's GB too.
* Seconds are estimates, not measurements: FLOPs at a stated part of the GPU's peak, with attention counted causally;
  bytes at half that part of its bandwidth while decoding; and frames at a stated rate while the video is decoded. A
  test holds each stage against a run on an H100.
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from vilamp_lite.common.checks import choice
from vilamp_lite.costs.shapes import BYTES, LanguageModel, Transformer, VisionTower, Workload
from vilamp_lite.costs.stages import Costs, CostStage

if TYPE_CHECKING:  # transformers loads torch for its configurations, which takes seconds
    from transformers import PreTrainedConfig

    from vilamp_lite.configuration import ViLaMPConfig


def vilamp_costs(config: "ViLaMPConfig", workload: Workload, num_keyframes: int | None = None) -> Costs:
    """What this package's ViLaMP costs, streaming: the paper's model, or the released one, chunk by chunk.

    Args:
        config: a SigLIP or CLIP vision tower, a CLIP selector and a Qwen2 or Llama, of any size.
        workload: what is asked.
        num_keyframes: K'; min(N, K), the most there can be, when left out.
    """
    frames = workload.num_frames
    visual_tokens = config.visual_tokens(frames, num_keyframes)
    keyframes = min(frames, config.max_keyframes) if num_keyframes is None else num_keyframes
    others = frames - keyframes
    if config.keyframe_block:
        raise ValueError("costs are of the paper's model, which has no keyframe_block")
    selector, query_tower, projections, selector_weights = _selector(config)
    tower, language = tower_shape(config.vision_config), language_shape(config.text_config)

    linear, attention = selector.flops(frames)
    query_tokens = config.selector_config.text_config.max_position_embeddings
    linear += 2 * (frames * projections[0] + projections[1]) + query_tower.linear_flops(query_tokens)
    text_square = query_tower.attention_flops(query_tokens**2)
    text_causal = query_tower.attention_flops(query_tokens * (query_tokens + 1) // 2)
    tokens_made = workload.bytes * visual_tokens * language.body.width
    batch = min(frames, workload.batch_size)
    selecting = CostStage(
        "selector",
        f"CLIP on {frames:,} frames and the query, in float32; the walk itself left out",
        linear,
        attention + text_square,
        attention + text_causal,
        BYTES["float32"] * selector.activations(batch),
        single=True,
    )

    linear, attention = tower.flops(frames)
    seeing = CostStage(
        "vision tower",
        f"{tower.name} on {frames:,} frames, {workload.batch_size} at a time",
        linear,
        attention,
        attention,
        workload.bytes * tower.activations(batch) + tokens_made,
    )

    size, query = config.merge_size, config.query_size
    maps = (config.merge_relevance == "mapped") + (config.merge_redundancy == "mapped")
    # Two cosines and a weighted sum for each patch, besides the maps of patches, references and the query.
    linear = others * config.num_patches * (2 * maps * size**2 + 6 * size)
    if config.merge_redundancy == "mapped":
        # Each reference in use is mapped once: at most one for each keyframe.
        linear += min(keyframes, others) * config.num_patches * 2 * size**2
    if config.merge_relevance == "mapped":
        linear += 2 * query * size
    batch_patches = batch * config.num_patches
    # With the paper's reference one is in use at a time, with the released one up to K'.
    references = BYTES["float32"] * config.num_patches * size * (keyframes if config.reference == "released" else 1)
    merging = CostStage(
        "merging",
        f"maps, cosines and sum for the patches of {others:,} frames",
        linear,
        activations=batch_patches * size * (2 * workload.bytes + BYTES["float32"]) + references + tokens_made,
    )

    widths = (config.vision_config.hidden_size, language.body.width, language.body.width)
    if config.merge_before_projection:
        read = keyframes * config.num_patches + others
        words = f"MLPs on the patches of {keyframes} keyframes and on {others:,} merged tokens"
    else:
        read = (frames + keyframes) * config.num_patches
        words = f"one MLP on every patch of {frames:,} frames, and again for {keyframes} keyframes' tokens"
    connecting = CostStage(
        "connectors",
        words,
        read * connector_flops(widths),
        activations=workload.bytes * batch_patches * (size + 2 * widths[1]) + references + tokens_made,
    )

    merger_weights = size**2 * (maps + (config.merge_redundancy == "mapped"))
    merger_weights += query * size if config.merge_relevance == "mapped" else 0
    connectors = 2 if config.connectors == "dual" else 1
    half = tower.weights + language.weights + merger_weights + connectors * connector_flops(widths) // 2
    return Costs(
        "ViLaMP" if config.merge_before_projection else "ViLaMP, released preset",
        workload,
        visual_tokens,
        getattr(config.text_config, "max_position_embeddings", None),
        selector_weights + half,
        BYTES["float32"] * selector_weights + workload.bytes * half,
        (selecting, seeing, merging, connecting, *answering(language, visual_tokens, workload)),
        passes=2,
    )


def released_code_costs(workload: Workload, num_keyframes: int | None = None, **changes: Any) -> Costs:
    """What the released code costs, which holds all frames' features at once (observed, see notebook 04).

    The merge's peak is `numbers_held` for each frame. Each frame, keyframes too, is projected, mapped and merged.

    Args:
        workload: what is asked.
        num_keyframes: K'; min(N, K) when left out.
        changes: fields of `ViLaMPConfig.released` to set otherwise.
    """
    from vilamp_lite.configuration import ViLaMPConfig

    config = ViLaMPConfig.released(**changes)
    costs = vilamp_costs(config, workload, num_keyframes)
    patches = workload.num_frames * config.num_patches
    width, text, query = config.vision_config.hidden_size, config.text_config.hidden_size, config.query_size
    features = workload.bytes * patches * width
    changed = {
        "vision tower": {"activations": costs.stages[1].activations + features},
        "connectors": {
            "linear": patches * connector_flops((width, text, text)),
            "activations": features + workload.bytes * patches * 3 * text,
            "counts": "one MLP on every patch of all frames, all held at once",
        },
        "merging": {
            "linear": patches * (2 * (3 * text**2 + query * text) + 6 * text),
            "activations": workload.bytes * workload.num_frames * numbers_held(config),
            "counts": "four maps, cosines and sum for every patch of all frames, six tensors [N, M, D] held at once",
        },
    }
    stages = tuple(replace(stage, **changed.get(stage.name, {})) for stage in costs.stages)
    return replace(costs, model="ViLaMP, released code", stages=stages, passes=1)


def numbers_held(config: "ViLaMPConfig") -> int:
    """Numbers that the released code's way holds for each frame when it merges.

    They are the vision tower's patches [M, D_v], the query repeated to [M, 512], and six tensors [M, D]: the projected
    patches, their reference and four mapped ones; fewer where a configuration does without.
    """
    maps = 2 * (config.merge_relevance == "mapped") + 2 * (config.merge_redundancy == "mapped")
    tensors = 1 + maps + (not config.merge_before_projection)
    return config.num_patches * (config.vision_config.hidden_size + tensors * config.merge_size + config.query_size)


def answering(language: LanguageModel, visual_tokens: int, workload: Workload) -> tuple[CostStage, CostStage]:
    """The stages "prefill" and "decode"."""
    tokens, steps = visual_tokens + workload.prompt_tokens, workload.answer_tokens - 1
    width = language.body.width
    # The caller holds the video's tokens, and the embeddings hold a copy of them.
    held = workload.bytes * width * visual_tokens
    linear, square, causal = language.prefill(tokens)
    prefill = CostStage(
        "prefill",
        f"{language.name} on {visual_tokens:,} visual and {workload.prompt_tokens} other tokens; logits of the last",
        linear,
        square,
        causal,
        workload.bytes * language.body.activations(tokens) + held,
        workload.bytes * language.cache(tokens),
    )
    linear, attention = language.decode(tokens, steps)
    decode = CostStage(
        "decode",
        f"{language.name}, {steps} tokens one by one after the first; time from weights and cache read",
        linear,
        attention,
        attention,
        workload.bytes * language.body.activations(1) + held,
        workload.bytes * language.cache(tokens + steps),
    )
    return prefill, decode


def connector_flops(widths: Sequence[int]) -> int:
    """FLOPs of an MLP for one vector."""
    return 2 * sum(a * b for a, b in itertools.pairwise(widths))


_KINDS = {
    "siglip_vision_model": False,
    "clip_vision_model": False,
    "clip_text_model": False,
    "qwen2": True,
    "llama": True,
}


def _body(config: "PreTrainedConfig") -> Transformer:
    """Read a transformer's shape from its configuration."""
    gated = _KINDS[choice("model_type", config.model_type, tuple(_KINDS))]
    heads = config.num_attention_heads
    return Transformer(
        config.num_hidden_layers,
        config.hidden_size,
        config.intermediate_size,
        heads,
        getattr(config, "num_key_value_heads", None) or heads,
        getattr(config, "head_dim", None) or config.hidden_size // heads,
        gated,
    )


def tower_shape(config: "PreTrainedConfig") -> VisionTower:
    """The shape of a SigLIP or CLIP vision tower."""
    body = _body(_of_kind(config, "siglip_vision_model", "clip_vision_model"))
    if getattr(config, "vision_use_head", False):
        raise ValueError("costs know no pooling head: set vision_use_head=False in vision_config")
    name = "SigLIP" if config.model_type == "siglip_vision_model" else "CLIP"
    patches = (config.image_size // config.patch_size) ** 2
    return VisionTower(
        f"{name}, {body.layers} layers, {config.image_size} px",
        body,
        patches,
        3 * config.patch_size**2,
        class_tokens=int(name == "CLIP"),
    )


def _selector(config: "ViLaMPConfig") -> tuple[VisionTower, Transformer, tuple[int, int], int]:
    """A CLIP's vision tower, its text layers, the weights of its two projections, and all its weights."""
    selector = _of_kind(config.selector_config, "clip")
    tower, text = tower_shape(selector.vision_config), _body(selector.text_config)
    projections = (tower.body.width * selector.projection_dim, text.width * selector.projection_dim)
    embeddings = selector.text_config.vocab_size + selector.text_config.max_position_embeddings
    return tower, text, projections, tower.weights + text.weights + sum(projections) + embeddings * text.width


def language_shape(config: "PreTrainedConfig") -> LanguageModel:
    """The shape of a Qwen2 or a Llama."""
    body = _body(_of_kind(config, "qwen2", "llama"))
    if config.tie_word_embeddings:
        raise ValueError("costs know language models with a head of their own: set tie_word_embeddings=False")
    return LanguageModel(f"{config.model_type}, {body.layers} layers", body, config.vocab_size)


def _of_kind(config: "PreTrainedConfig", *kinds: str) -> "PreTrainedConfig":
    """Take a configuration of one of a few kinds."""
    choice("model_type", config.model_type, kinds)
    return config


def all_at_once_memory(
    config: "ViLaMPConfig", num_frames: int, done: np.ndarray, bytes_per_number: int = 4
) -> np.ndarray:
    """What the released code's way would hold beside the model, by arithmetic.

    While it reads, pixels of both towers; then `numbers_held` for each frame.

    Args:
        config: the model's.
        num_frames: N.
        done: [looks] frames that have passed, from 0 to 2 N for the two passes.
        bytes_per_number: 4 in float32, 2 in half precision.

    Returns:
        [looks] bytes.
    """
    sides = config.vision_config.image_size, config.selector_config.vision_config.image_size
    pixels = 3 * sum(side**2 for side in sides)
    read, merged = np.minimum(done, num_frames), np.maximum(done - num_frames, 0)
    return bytes_per_number * (pixels * read + numbers_held(config) * merged)
