"""What a video costs: visual tokens, FLOPs, memory and seconds, for ViLaMP and its peers at full size.

Everything is a closed form of the models' shapes; `count_flops` counts ViLaMP's FLOPs instead, with torch's counter on
the meta device, and a test holds the two together. What the figures mean:

* FLOPs are 2 × multiply-adds of matrix products and convolutions. Norms, activations, softmax, rotary embeddings,
  pooling and the selection itself are left out: they are a small part of the work, and torch's counter omits them too.
* Attention in the language model is counted twice over: as a square, all L² pairs of tokens, which kernels that mask
  afterwards execute and torch counts; and causally, the L (L + 1) / 2 pairs that the mask leaves, which kernels
  that skip the rest execute. Vision towers attend in both directions, and decoding reads all that came before: there
  the two agree.
* Memory is what tensors hold: weights, the KV cache, and the activations at the peak of each stage. An allocator's
  reserve, a kernel's workspace and the driver's context are left out. 1 GB is 10⁹ bytes, of a data sheet's GB too.
* Seconds are estimates, not measurements: FLOPs at a stated part of the GPU's peak, with attention counted causally;
  bytes at the same part of its bandwidth while decoding; and frames at a stated rate while the video is decoded.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, PreTrainedConfig

from vilamp_lite.checks import choice, finite_number, positive_int
from vilamp_lite.configuration import ViLaMPConfig
from vilamp_lite.modeling import ViLaMPForConditionalGeneration

BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
ATTENTION = ("square", "causal", "none")

# Chosen so that a reader can do the sums: the text around the video, and the answer.
_PROMPT_TOKENS = 64
_ANSWER_TOKENS = 128
_FRAMES_AT_ONCE = 8
# Sampled frames a second in one pass: about what PyAV gives on two CPU cores for 640×360 H.264 at 30 frames a second of
# which one is sampled. It hangs on the file and the machine: measure yours.
DECODE_RATE = 100.0
UTILISATION = 0.4


@dataclass(frozen=True)
class Gpu:
    """What a vendor's data sheet says of a GPU.

    Attributes:
        name: as people call it.
        memory: bytes.
        half: FLOP/s of dense bfloat16 or float16 products.
        single: FLOP/s in float32, without TF32.
        bandwidth: bytes/s of its memory.
    """

    name: str
    memory: float
    half: float
    single: float
    bandwidth: float


GPUS = {
    "a100-40gb": Gpu("A100 40 GB", 40e9, 312e12, 19.5e12, 1.56e12),
    "a100-80gb": Gpu("A100 80 GB", 80e9, 312e12, 19.5e12, 2.04e12),
    "rtx-4090": Gpu("RTX 4090 24 GB", 24e9, 165e12, 82.6e12, 1.01e12),
    "h100-80gb": Gpu("H100 SXM 80 GB", 80e9, 989e12, 67e12, 3.35e12),
}


@dataclass(frozen=True)
class Workload:
    """What is asked of a model.

    Attributes:
        num_frames: N, frames of the video that are sampled.
        prompt_tokens: of the text around the video.
        answer_tokens: generated; the first comes out of the prefill, the others are decoded.
        dtype: of weights, activations and cache: "bfloat16", "float16" or "float32".
        batch_size: frames in a vision tower at a time.

    Raises:
        ValueError: a number out of range, or an unknown type.
    """

    num_frames: int
    prompt_tokens: int = _PROMPT_TOKENS
    answer_tokens: int = _ANSWER_TOKENS
    dtype: str = "bfloat16"
    batch_size: int = _FRAMES_AT_ONCE

    def __post_init__(self) -> None:
        """Check every field."""
        positive_int("num_frames", self.num_frames)
        if self.prompt_tokens != 0:
            positive_int("prompt_tokens", self.prompt_tokens)
        positive_int("answer_tokens", self.answer_tokens)
        positive_int("batch_size", self.batch_size)
        choice("dtype", self.dtype, tuple(BYTES))

    @property
    def bytes(self) -> int:
        """Of one number."""
        return BYTES[self.dtype]


# --- Shapes ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Transformer:
    """The shape of a stack of transformer layers.

    Attributes:
        layers: how many.
        width: of a token.
        mlp: width inside the MLP.
        heads: of the queries.
        kv_heads: of keys and values; as many as `heads` without grouping.
        head_size: of each.
        gated: whether the MLP has three matrices (a gate, as in Qwen2) or two.
    """

    layers: int
    width: int
    mlp: int
    heads: int
    kv_heads: int
    head_size: int
    gated: bool = False

    @property
    def weights(self) -> int:
        """Parameters in matrices; biases and norms, about 0.1 % more, are left out."""
        attention = 2 * self.width * (self.heads + self.kv_heads) * self.head_size
        return self.layers * (attention + (3 if self.gated else 2) * self.width * self.mlp)

    def linear_flops(self, tokens: int) -> int:
        """FLOPs of the products with weights, for so many tokens."""
        return 2 * tokens * self.weights

    def attention_flops(self, pairs: int) -> int:
        """FLOPs of the products of queries with keys and of weights with values, for so many pairs of tokens."""
        return 4 * pairs * self.layers * self.heads * self.head_size

    def activations(self, tokens: int) -> int:
        """Numbers held at the peak, in an MLP: inputs of stack and layer, what attention made, its norm, the MLP's."""
        return tokens * (4 * self.width + (3 if self.gated else 2) * self.mlp)


@dataclass(frozen=True)
class VisionTower:
    """A vision transformer and what it reads.

    Attributes:
        name: of the published model.
        body: its layers.
        patches: that one input is cut into.
        patch_values: colour values in a patch.
        class_tokens: beside the patches.
        frames: of one input, which attend to each other jointly.
    """

    name: str
    body: Transformer
    patches: int
    patch_values: int
    class_tokens: int = 0
    frames: int = 1

    @property
    def tokens(self) -> int:
        """Of one input."""
        return self.patches + self.class_tokens

    @property
    def weights(self) -> int:
        """Parameters in matrices and position embeddings."""
        return self.body.weights + self.body.width * (self.patch_values + self.tokens // self.frames)

    def flops(self, num_frames: int) -> tuple[int, int]:
        """FLOPs of the linear products and of attention for N frames; the last input is padded."""
        inputs = -(-num_frames // self.frames)
        embedding = 2 * self.patches * self.patch_values * self.body.width
        linear = inputs * (embedding + self.body.linear_flops(self.tokens))
        return linear, inputs * self.body.attention_flops(self.tokens**2)

    def activations(self, num_frames: int) -> int:
        """Numbers held at the peak of a layer while N frames are read at once."""
        return self.body.activations(-(-num_frames // self.frames) * self.tokens)


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model whose head has weights of its own.

    Attributes:
        name: of the published model.
        body: its layers.
        vocabulary: number of tokens.
    """

    name: str
    body: Transformer
    vocabulary: int

    @property
    def weights(self) -> int:
        """Parameters in matrices, head and embeddings."""
        return self.body.weights + 2 * self.vocabulary * self.body.width

    def prefill(self, tokens: int) -> tuple[int, int, int]:
        """FLOPs of the linear products, and of attention as a square and causally; logits of the last token alone."""
        linear = self.body.linear_flops(tokens) + self._head_flops
        pairs = tokens * (tokens + 1) // 2
        return linear, self.body.attention_flops(tokens**2), self.body.attention_flops(pairs)

    def decode(self, tokens: int, steps: int) -> tuple[int, int]:
        """FLOPs of the linear products and of attention for `steps` tokens, one by one, after `tokens` others."""
        pairs = steps * tokens + steps * (steps + 1) // 2
        linear = steps * (self.body.linear_flops(1) + self._head_flops)
        return linear, self.body.attention_flops(pairs)

    def cache(self, tokens: int) -> int:
        """Numbers in the KV cache: keys and values of every layer."""
        return 2 * tokens * self.body.layers * self.body.kv_heads * self.body.head_size

    @property
    def _head_flops(self) -> int:
        return 2 * self.vocabulary * self.body.width


def _plain(layers: int, width: int, mlp: int, heads: int, gated: bool = False) -> Transformer:
    return Transformer(layers, width, mlp, heads, heads, width // heads, gated)


# From the models' published configurations. EVA-ViT-G and UMT-L are given with all their layers.
SIGLIP = VisionTower("SigLIP-so400m/14-384", _plain(27, 1152, 4304, 16), 27**2, 3 * 14**2)
CLIP_L = VisionTower("CLIP ViT-L/14-336", _plain(24, 1024, 4096, 16), 24**2, 3 * 14**2, class_tokens=1)
EVA_G = VisionTower("EVA-ViT-G/14-224", _plain(40, 1408, 6144, 16), 16**2, 3 * 14**2, class_tokens=1)
UMT_L = VisionTower("UMT-L/16-224", _plain(24, 1024, 4096, 16), 4 * 14**2, 3 * 16**2, frames=4)
DINOV2_G = VisionTower("DINOv2-g/14-378", _plain(40, 1536, 4096, 24, gated=True), 27**2, 3 * 14**2, class_tokens=1)
# Two frames make one grid of patches, of which the language model gets a quarter: 2 × 64 tokens of 512 patches.
QWEN2_VL = VisionTower("Qwen2-VL's ViT", _plain(32, 1280, 5120, 16), 4 * 2 * 64, 2 * 3 * 14**2, frames=2)
QWEN2_7B = LanguageModel("Qwen2-7B", Transformer(28, 3584, 18944, 28, 4, 128, gated=True), 152064)
VICUNA_7B = LanguageModel("Vicuna-7B", _plain(32, 4096, 11008, 32, gated=True), 32000)


@dataclass(frozen=True)
class Peer:
    """Another video-language model, as its own files document it.

    Attributes:
        title: its name.
        towers: its vision towers.
        language: its language model.
        tokens_per_frame: the least that its files document.
        connector: sizes of the connector's layers, from input to output; empty where its form is not known here.
        connector_inputs: how many vectors a frame gives to the connector.
        documented_frames: the most that its files speak of; None where they don't.
        context: tokens that its language model takes; None where its files don't say.
        max_kept: frames that reach the language model and all towers but the last; None for all.
    """

    title: str
    towers: tuple[VisionTower, ...]
    language: LanguageModel
    tokens_per_frame: int
    connector: tuple[int, ...] = ()
    connector_inputs: int = 0
    documented_frames: int | None = None
    context: int | None = None
    max_kept: int | None = None


PEERS = {
    "llama-vid": Peer("LLaMA-VID", (EVA_G,), VICUNA_7B, 2, context=65_536),
    "videochat-flash": Peer(
        "VideoChat-Flash", (UMT_L,), QWEN2_7B, 16, (1024, 3584, 3584), 16, documented_frames=10_000
    ),
    "longva": Peer(
        "LongVA", (CLIP_L,), QWEN2_7B, 144, (1024, 3584, 3584), 576, documented_frames=2_000, context=224_000
    ),
    "longvu": Peer("LongVU", (SIGLIP, DINOV2_G), QWEN2_7B, 64, max_kept=400),
    "llava-video": Peer("LLaVA-Video", (SIGLIP,), QWEN2_7B, 169, (1152, 3584, 3584), 729, documented_frames=64),
    "qwen2-vl": Peer("Qwen2-VL", (QWEN2_VL,), QWEN2_7B, 64, (5120, 5120, 3584), 64, documented_frames=768),
}


# --- Results ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """What one stage of a model costs.

    Attributes:
        name: of the stage.
        counts: what its figures count, in words.
        linear: FLOPs of products with weights, and in the merge of cosines and weighted sums.
        square: FLOPs of attention over all pairs of tokens.
        causal: FLOPs of attention over the pairs that a causal mask leaves.
        activations: bytes held at the stage's peak, besides weights and cache: its own, and the video's tokens.
        cache: bytes of the KV cache at its end.
        single: whether it computes in float32 whatever the weights' type.
    """

    name: str
    counts: str
    linear: int = 0
    square: int = 0
    causal: int = 0
    activations: int = 0
    cache: int = 0
    single: bool = False

    def flops(self, attention: str = "causal") -> int:
        """All its FLOPs, with attention as a "square", "causal", or "none" of it.

        Raises:
            ValueError: another word.
        """
        choice("attention", attention, ATTENTION)
        return self.linear + {"square": self.square, "causal": self.causal, "none": 0}[attention]


@dataclass(frozen=True)
class Costs:
    """What a model costs for a workload.

    Attributes:
        model: its name.
        workload: what is asked of it.
        visual_tokens: that the language model reads.
        context: tokens that the language model takes; None where it is not known.
        parameters: in matrices and embeddings.
        weights: bytes of them.
        stages: in order; encoding, "prefill" and "decode".
        passes: how often the video is decoded.
    """

    model: str
    workload: Workload
    visual_tokens: int
    context: int | None
    parameters: int
    weights: int
    stages: tuple[Stage, ...]
    passes: int = 1

    @property
    def tokens(self) -> int:
        """Of the video, the prompt and the answer."""
        return self.visual_tokens + self.workload.prompt_tokens + self.workload.answer_tokens

    @property
    def kv_cache(self) -> int:
        """Bytes of the KV cache when the answer is complete."""
        return self.stages[-1].cache

    @property
    def peak_activations(self) -> int:
        """Bytes of activations in the stage that holds the most."""
        return max(stage.activations for stage in self.stages)

    @property
    def peak_memory(self) -> int:
        """Bytes in the stage that needs the most: weights, cache and activations."""
        return max(map(self.memory, self.stages))

    def memory(self, stage: Stage) -> int:
        """Bytes while a stage runs: all weights, the cache and its activations."""
        return self.weights + stage.cache + stage.activations

    def flops(self, attention: str = "causal", *, without: Iterable[str] = ("decode",)) -> int:
        """FLOPs up to the first token, or of all stages but those named.

        Raises:
            ValueError: an unknown way of counting.
        """
        return sum(stage.flops(attention) for stage in self.stages if stage.name not in without)

    def schedule(
        self, gpu: Gpu, *, utilisation: float = UTILISATION, decode_rate: float = DECODE_RATE
    ) -> list[dict[str, Any]]:
        """Go through the stages on a GPU: what each costs, whether it fits, and how long it takes by estimate.

        Args:
            gpu: one of `GPUS`, or your own.
            utilisation: the part of the GPU's peak FLOP/s and bandwidth that is reached, from above 0 to 1.
            decode_rate: frames sampled per second in one pass of video decoding.

        Returns:
            A row for each stage, "video decoding" first: stage, counts, `flops_linear`, `flops_attention_square`,
            `flops_attention_causal`, `memory` in bytes, `fits`, `seconds`.

        Raises:
            ValueError: a utilisation or a rate out of range.
        """
        if finite_number("utilisation", utilisation, above=0) > 1:
            raise ValueError(f"utilisation is a part of the peak, at most 1, got {utilisation}")
        finite_number("decode_rate", decode_rate, above=0)
        seconds = self.passes * self.workload.num_frames / decode_rate
        words = f"{self.passes} × the file on the CPU, at {decode_rate:g} sampled frames/s; resizing left out"
        rows = [_row(Stage("video decoding", words), self.weights, gpu, seconds)]
        for stage in self.stages:
            single = stage.single or self.workload.dtype == "float32"
            seconds = stage.flops() / (gpu.single if single else gpu.half)
            if stage.name == "decode":
                # Each token reads all weights of the language model and the cache so far, for few FLOPs.
                seconds = max(seconds, self._decode_bytes / gpu.bandwidth)
            rows.append(_row(stage, self.memory(stage), gpu, seconds / utilisation))
        return rows

    @property
    def _decode_bytes(self) -> int:
        """Read from memory while decoding; at most, since the cache only ends up so large."""
        steps = self.workload.answer_tokens - 1
        # FLOPs per step are two for each weight that is read.
        return self.stages[-1].linear // 2 * self.workload.bytes + steps * self.kv_cache


def _row(stage: Stage, memory: int, gpu: Gpu, seconds: float) -> dict[str, Any]:
    return {
        "stage": stage.name,
        "counts": stage.counts,
        "flops_linear": stage.linear,
        "flops_attention_square": stage.square,
        "flops_attention_causal": stage.causal,
        "memory": memory,
        "fits": memory <= gpu.memory,
        "seconds": seconds,
    }


# --- ViLaMP ----------------------------------------------------------------------------------------------------------


def vilamp_costs(config: ViLaMPConfig, workload: Workload, num_keyframes: int | None = None) -> Costs:
    """What this package's ViLaMP costs, streaming: the paper's model, or the released one, chunk by chunk.

    Args:
        config: a SigLIP or CLIP vision tower, a CLIP selector and a Qwen2 or Llama, of any size.
        workload: what is asked.
        num_keyframes: K'; min(N, K), the most there can be, when left out.

    Raises:
        ValueError: another kind of model, an unsuitable number of keyframes, or a `keyframe_block`.
    """
    frames = workload.num_frames
    visual_tokens = config.visual_tokens(frames, num_keyframes)
    keyframes = min(frames, config.max_keyframes) if num_keyframes is None else num_keyframes
    others = frames - keyframes
    if config.keyframe_block:
        raise ValueError("costs are of the paper's model, which has no keyframe_block")
    selector, query_tower, projections, selector_weights = _selector(config)
    tower, language = _tower(config.vision_config), _language(config.text_config)

    linear, attention = selector.flops(frames)
    query_tokens = config.selector_config.text_config.max_position_embeddings
    linear += 2 * (frames * projections[0] + projections[1]) + query_tower.linear_flops(query_tokens)
    text_square = query_tower.attention_flops(query_tokens**2)
    text_causal = query_tower.attention_flops(query_tokens * (query_tokens + 1) // 2)
    tokens_made = workload.bytes * visual_tokens * language.body.width
    batch = min(frames, workload.batch_size)
    selecting = Stage(
        "selector",
        f"CLIP on {frames:,} frames and the query, in float32; the walk itself left out",
        linear,
        attention + text_square,
        attention + text_causal,
        BYTES["float32"] * selector.activations(batch),
        single=True,
    )

    linear, attention = tower.flops(frames)
    seeing = Stage(
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
    merging = Stage(
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
    connecting = Stage(
        "connectors",
        words,
        read * _connector_flops(widths),
        activations=workload.bytes * batch_patches * (size + 2 * widths[1]) + references + tokens_made,
    )

    merger_weights = size**2 * (maps + (config.merge_redundancy == "mapped"))
    merger_weights += query * size if config.merge_relevance == "mapped" else 0
    connectors = 2 if config.connectors == "dual" else 1
    half = tower.weights + language.weights + merger_weights + connectors * _connector_flops(widths) // 2
    return Costs(
        "ViLaMP" if config.merge_before_projection else "ViLaMP, released preset",
        workload,
        visual_tokens,
        getattr(config.text_config, "max_position_embeddings", None),
        selector_weights + half,
        BYTES["float32"] * selector_weights + workload.bytes * half,
        (selecting, seeing, merging, connecting, *_answering(language, visual_tokens, workload)),
        passes=2,
    )


def released_code_costs(workload: Workload, num_keyframes: int | None = None, **changes: Any) -> Costs:
    """What the released code costs, which holds all frames' features at once (observed, see notebook 04).

    At the merge's peak that is the vision tower's [N, M, D_v], six tensors [N, M, D] — projected, reference and four
    mapped ones — and the query repeated to [N, M, 512]. Each frame, keyframes too, is projected, mapped and merged.

    Args:
        workload: what is asked.
        num_keyframes: K'; min(N, K) when left out.
        changes: fields of `ViLaMPConfig.released` to set otherwise.

    Raises:
        ValueError: as `vilamp_costs`.
    """
    config = ViLaMPConfig.released(**changes)
    costs = vilamp_costs(config, workload, num_keyframes)
    patches = workload.num_frames * config.num_patches
    width, text, query = config.vision_config.hidden_size, config.text_config.hidden_size, config.query_size
    features = workload.bytes * patches * width
    changed = {
        "vision tower": {"activations": costs.stages[1].activations + features},
        "connectors": {
            "linear": patches * _connector_flops((width, text, text)),
            "activations": features + workload.bytes * patches * 3 * text,
            "counts": "one MLP on every patch of all frames, all held at once",
        },
        "merging": {
            "linear": patches * (2 * (3 * text**2 + query * text) + 6 * text),
            "activations": features + workload.bytes * patches * (6 * text + query),
            "counts": "four maps, cosines and sum for every patch of all frames, six tensors [N, M, D] held at once",
        },
    }
    stages = tuple(replace(stage, **changed.get(stage.name, {})) for stage in costs.stages)
    return replace(costs, model="ViLaMP, released code", stages=stages, passes=1)


def _answering(language: LanguageModel, visual_tokens: int, workload: Workload) -> tuple[Stage, Stage]:
    """The stages "prefill" and "decode"."""
    tokens, steps = visual_tokens + workload.prompt_tokens, workload.answer_tokens - 1
    width = language.body.width
    # The caller holds the video's tokens, of which there is a copy among the embeddings.
    held = workload.bytes * width * visual_tokens
    linear, square, causal = language.prefill(tokens)
    prefill = Stage(
        "prefill",
        f"{language.name} on {visual_tokens:,} visual and {workload.prompt_tokens} other tokens; logits of the last",
        linear,
        square,
        causal,
        workload.bytes * language.body.activations(tokens) + held,
        workload.bytes * language.cache(tokens),
    )
    linear, attention = language.decode(tokens, steps)
    decode = Stage(
        "decode",
        f"{language.name}, {steps} tokens one by one after the first; time from weights and cache read",
        linear,
        attention,
        attention,
        workload.bytes * language.body.activations(1) + held,
        workload.bytes * language.cache(tokens + steps),
    )
    return prefill, decode


def _connector_flops(widths: Sequence[int]) -> int:
    """FLOPs of an MLP for one vector."""
    return 2 * sum(a * b for a, b in itertools.pairwise(widths))


_KINDS = {
    "siglip_vision_model": False,
    "clip_vision_model": False,
    "clip_text_model": False,
    "qwen2": True,
    "llama": True,
}


def _body(config: PreTrainedConfig) -> Transformer:
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


def _tower(config: PreTrainedConfig) -> VisionTower:
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


def _selector(config: ViLaMPConfig) -> tuple[VisionTower, Transformer, tuple[int, int], int]:
    """A CLIP's vision tower, its text layers, the weights of its two projections, and all its weights."""
    selector = _of_kind(config.selector_config, "clip")
    tower, text = _tower(selector.vision_config), _body(selector.text_config)
    projections = (tower.body.width * selector.projection_dim, text.width * selector.projection_dim)
    embeddings = selector.text_config.vocab_size + selector.text_config.max_position_embeddings
    return tower, text, projections, tower.weights + text.weights + sum(projections) + embeddings * text.width


def _language(config: PreTrainedConfig) -> LanguageModel:
    body = _body(_of_kind(config, "qwen2", "llama"))
    if config.tie_word_embeddings:
        raise ValueError("costs know language models with a head of their own: set tie_word_embeddings=False")
    return LanguageModel(f"{config.model_type}, {body.layers} layers", body, config.vocab_size)


def _of_kind(config: PreTrainedConfig, *kinds: str) -> PreTrainedConfig:
    """Take a configuration of one of a few kinds."""
    choice("model_type", config.model_type, kinds)
    return config


# --- Peers -----------------------------------------------------------------------------------------------------------


def peer_costs(name: str, workload: Workload) -> Costs:
    """What a peer costs if it is given N frames, whether or not its own files go so far.

    Frames pass through its towers a few at a time and only tokens are kept, as frugally as ViLaMP does it here. The
    work of merging or resampling tokens is left out, and so are connectors whose form is not known here.

    Args:
        name: in `PEERS`.
        workload: what is asked.

    Raises:
        ValueError: an unknown name.
    """
    peer = PEERS[choice("peer", name, tuple(PEERS))]
    frames, size = workload.num_frames, workload.bytes
    kept = min(frames, peer.max_kept or frames)
    visual_tokens = kept * peer.tokens_per_frame
    tokens_made = size * visual_tokens * peer.language.body.width
    batch = min(frames, workload.batch_size)
    linear = square = 0
    # The last tower sees all frames: where frames are dropped, it is by what that tower makes of them.
    for tower, seen in zip(peer.towers, [kept] * (len(peer.towers) - 1) + [frames], strict=True):
        parts = tower.flops(seen)
        linear, square = linear + parts[0], square + parts[1]
    names = " and ".join(tower.name for tower in peer.towers)
    seeing = Stage(
        "vision tower",
        f"{names} on {frames:,} frames" + (f", {kept} kept" if kept < frames else ""),
        linear,
        square,
        square,
        size * max(tower.activations(batch) for tower in peer.towers) + tokens_made,
    )
    connecting = Stage(
        "connectors",
        f"an MLP on {peer.connector_inputs} vectors of each frame" if peer.connector else "left out: form not known",
        kept * peer.connector_inputs * _connector_flops(peer.connector),
        activations=size * batch * peer.connector_inputs * sum(peer.connector) + tokens_made,
    )
    parameters = peer.language.weights + sum(tower.weights for tower in peer.towers)
    parameters += _connector_flops(peer.connector) // 2
    return Costs(
        peer.title,
        workload,
        visual_tokens,
        peer.context,
        parameters,
        size * parameters,
        (seeing, connecting, *_answering(peer.language, visual_tokens, workload)),
    )


MODELS = ("vilamp", "vilamp-released", "released-code", *PEERS)


def model_costs(name: str, workload: Workload, num_keyframes: int | None = None) -> Costs:
    """What a model of `MODELS` costs.

    Args:
        name: "vilamp" (`ViLaMPConfig.paper()`), "vilamp-released" (`ViLaMPConfig.released()`), both streaming as this
            package does; "released-code", which holds all frames at once; or a peer's.
        workload: what is asked.
        num_keyframes: K' of the first three; min(N, 32) when left out.

    Raises:
        ValueError: an unknown name, or keyframes for a peer, which has none.
    """
    if choice("model", name, MODELS) in PEERS:
        if num_keyframes is not None:
            raise ValueError(f"{name} has no keyframes: leave out their number")
        return peer_costs(name, workload)
    if name == "released-code":
        return released_code_costs(workload, num_keyframes)
    config = ViLaMPConfig.paper() if name == "vilamp" else ViLaMPConfig.released()
    return vilamp_costs(config, workload, num_keyframes)


def costs_by_frames(
    models: Iterable[str],
    frames: Iterable[int],
    gpu: Gpu = GPUS["a100-80gb"],
    *,
    utilisation: float = UTILISATION,
    decode_rate: float = DECODE_RATE,
    **workload: Any,
) -> list[dict[str, Any]]:
    """Tabulate models by frames, the counterpart of the paper's Fig. 1 and Table 5.

    Args:
        models: names in `MODELS`.
        frames: values of N.
        gpu: for what fits, and for the time.
        utilisation: as in `Costs.schedule`.
        decode_rate: as in `Costs.schedule`.
        workload: further fields of `Workload`.

    Returns:
        A row for each model and N: model, frames, visual_tokens, FLOPs to the first token (`flops_square`,
        `flops_causal`) and of its prefill alone (`prefill_square`, `prefill_causal`), bytes (weights, kv_cache,
        activations, memory), `fits`, `seconds_to_first_token`, `documented` (whether the model's own files speak of so
        many frames; None where they name no number).

    Raises:
        ValueError: as `model_costs` and `Costs.schedule`.
    """
    rows = []
    frames = list(frames)
    # The paper speaks of 10,000 frames; the released evaluation reads at most 600.
    limits = {"vilamp": 10_000, "vilamp-released": 10_000, "released-code": 600}
    for name in models:
        limit = PEERS[name].documented_frames if name in PEERS else limits.get(name)
        for number in frames:
            costs = model_costs(name, Workload(number, **workload))
            prefill = next(stage for stage in costs.stages if stage.name == "prefill")
            stages = costs.schedule(gpu, utilisation=utilisation, decode_rate=decode_rate)
            rows.append(
                {
                    "model": costs.model,
                    "frames": number,
                    "visual_tokens": costs.visual_tokens,
                    "flops_square": costs.flops("square"),
                    "flops_causal": costs.flops("causal"),
                    "prefill_square": prefill.flops("square"),
                    "prefill_causal": prefill.flops("causal"),
                    "weights": costs.weights,
                    "kv_cache": costs.kv_cache,
                    "activations": costs.peak_activations,
                    "memory": costs.peak_memory,
                    "fits": costs.peak_memory <= gpu.memory,
                    "seconds_to_first_token": sum(row["seconds"] for row in stages if row["stage"] != "decode"),
                    "documented": None if limit is None else number <= limit,
                }
            )
    return rows


# What a table of FLOPs may have counted, and left out.
SCOPES = {
    "prefill": ("selector", "vision tower", "merging", "connectors", "decode"),
    "prefill, connectors, merging": ("selector", "vision tower", "decode"),
    "prefill, connectors, merging, selector": ("vision tower", "decode"),
    "prefill, connectors, merging, vision tower": ("selector", "decode"),
    "all to the first token": ("decode",),
}


def shares_of_peer(num_frames: int = 8192, peer: str = "videochat-flash") -> list[dict[str, Any]]:
    """Divide ViLaMP's FLOPs by a peer's, in every way of counting that comes to mind (paper, Table 5).

    The paper is said to find 18.4 % of VideoChat-Flash's FLOPs at 8,192 frames (trust C); it is not known what was
    counted. Video tokens alone are read: no prompt, no answer.

    Args:
        num_frames: N.
        peer: a name in `PEERS`.

    Returns:
        A row for each of three ways of working ("paper" and "released" stream, "released code" does not), 196 or 729
        tokens per keyframe, three ways of counting attention, and `SCOPES`: way, tokens_per_keyframe, attention,
        scope, flops, peer_flops, share.

    Raises:
        ValueError: an unknown peer, or a number of frames below 1.
    """
    workload = Workload(num_frames, prompt_tokens=0)
    other = peer_costs(peer, workload)
    ways = {
        "paper": lambda pooling: vilamp_costs(ViLaMPConfig.paper(keyframe_pooling=pooling), workload),
        "released": lambda pooling: vilamp_costs(ViLaMPConfig.released(keyframe_pooling=pooling), workload),
        "released code": lambda pooling: released_code_costs(workload, keyframe_pooling=pooling),
    }
    rows = []
    for (way, costs_with), pooling in itertools.product(ways.items(), ("bilinear", "none")):
        costs = costs_with(pooling)
        for attention, (scope, without) in itertools.product(ATTENTION, SCOPES.items()):
            flops, others = (each.flops(attention, without=without) for each in (costs, other))
            rows.append(
                {
                    "way": way,
                    "tokens_per_keyframe": 196 if pooling == "bilinear" else 729,
                    "attention": attention,
                    "scope": scope,
                    "flops": flops,
                    "peer_flops": others,
                    "share": flops / others,
                }
            )
    return rows


# --- Counting --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counted:
    """FLOPs of one stage as torch's counter finds them; the fields are those of `Stage`."""

    linear: int
    square: int = 0
    causal: int = 0


@torch.no_grad()
def count_flops(config: ViLaMPConfig, workload: Workload, num_keyframes: int | None = None) -> dict[str, Counted]:
    """Count ViLaMP's FLOPs instead of computing them: the model itself runs, on the meta device, under torch's counter.

    On that device there are shapes and no numbers: all frames pass in one batch, keyframes stand at equal distances.
    torch counts attention as a square, whatever the mask. What a causal kernel does is counted by reading the tokens
    one by one: the i-th attends to i, so that the sum over all positions follows from the first and the last.

    Args:
        config: as in `vilamp_costs`.
        workload: what is asked.
        num_keyframes: K'; min(N, K) when left out.

    Returns:
        The stages' names, as in `vilamp_costs`, with what was counted.

    Raises:
        ValueError: as `vilamp_costs`.
    """
    visual_tokens = config.visual_tokens(workload.num_frames, num_keyframes)
    with torch.device("meta"):
        model = ViLaMPForConditionalGeneration(config).eval()
    vision, selector = config.vision_config.image_size, config.selector_config.vision_config.image_size
    frames = workload.num_frames
    chosen = num_keyframes or min(frames, config.max_keyframes)
    keyframes = torch.arange(chosen) * frames // chosen
    query_tokens = config.selector_config.text_config.max_position_embeddings

    with _counter() as selecting:
        model.embed_frames(_meta(frames, 3, selector, selector))
        query = model.embed_query(_meta(1, query_tokens).long())[0]
    with _counter() as seeing:
        patches = model.patch_features(_meta(frames, 3, vision, vision))
    with _counter() as mixing:
        model.mix_tokens([patches], frames, keyframes, query)

    tokens, steps = visual_tokens + workload.prompt_tokens, workload.answer_tokens - 1
    with _counter() as prefill:
        _read(model, tokens)
    first, last = (_step(model, position) for position in (1, tokens))
    connectors = sum(mixing.get_flop_counts()["Connector"].values())
    counted = {
        "selector": _split(selecting),
        "vision tower": _split(seeing),
        "merging": Counted(mixing.get_total_flops() - connectors),
        "connectors": Counted(connectors),
        "prefill": replace(_split(prefill), causal=tokens * (first.square + last.square) // 2),
        "decode": Counted(0),
    }
    if steps:
        first, last = (_step(model, position) for position in (tokens + 1, tokens + steps))
        attention = steps * (first.square + last.square) // 2
        counted["decode"] = Counted(steps * first.linear, attention, attention)
    return counted


def _counter() -> FlopCounterMode:
    return FlopCounterMode(display=False)


def _meta(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, device="meta")


def _split(counter: FlopCounterMode) -> Counted:
    """Tell attention from other products: it alone multiplies batches of matrices, none of them weights."""
    by_kind = counter.get_flop_counts()["Global"]
    attention = by_kind.get(torch.ops.aten.bmm, 0)
    if not attention:
        raise RuntimeError("torch's counter saw no attention: its kernel is one that the counter does not know")
    return Counted(counter.get_total_flops() - attention, attention, attention)


def _read(model: ViLaMPForConditionalGeneration, tokens: int, cache: DynamicCache | None = None) -> None:
    """Let the language model read so many tokens after those in the cache."""
    model.language_model(
        inputs_embeds=_meta(1, tokens, model.config.text_config.hidden_size),
        past_key_values=cache,
        # Without a cache the positions would be looked at, which tensors without numbers do not bear.
        use_cache=True,
        logits_to_keep=1,
    )


def _step(model: ViLaMPForConditionalGeneration, position: int) -> Counted:
    """Count one token that attends to `position` tokens, itself included."""
    text = model.config.text_config
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    cache = DynamicCache(config=text)
    for layer in range(text.num_hidden_layers):
        past = _meta(1, text.num_key_value_heads, position - 1, size)
        cache.update(past, past, layer)
    with _counter() as counter:
        _read(model, 1, cache)
    return _split(counter)
