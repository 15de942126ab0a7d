"""Shapes that answer questions about themselves: GPUs, towers, language models, a workload."""

from dataclasses import dataclass

from vilamp_lite.common.checks import choice, positive_int

BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
ATTENTION = ("square", "causal", "none")
# Chosen so that a reader can do the sums: the text around the video, and the answer.
_PROMPT_TOKENS = 64
_ANSWER_TOKENS = 128
FRAMES_AT_ONCE = 8


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
    """

    num_frames: int
    prompt_tokens: int = _PROMPT_TOKENS
    answer_tokens: int = _ANSWER_TOKENS
    dtype: str = "bfloat16"
    batch_size: int = FRAMES_AT_ONCE

    def __post_init__(self) -> None:
        """Check every field."""
        for name in ("num_frames", "prompt_tokens", "answer_tokens", "batch_size"):
            if (name, getattr(self, name)) != ("prompt_tokens", 0):
                positive_int(name, getattr(self, name))
        choice("dtype", self.dtype, tuple(BYTES))

    @property
    def bytes(self) -> int:
        """Of one number."""
        return BYTES[self.dtype]


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
# Two frames make one grid of patches. The language model gets a quarter of them: 2 × 64 tokens of 512 patches.
QWEN2_VL = VisionTower("Qwen2-VL's ViT", _plain(32, 1280, 5120, 16), 4 * 2 * 64, 2 * 3 * 14**2, frames=2)
QWEN2_7B = LanguageModel("Qwen2-7B", Transformer(28, 3584, 18944, 28, 4, 128, gated=True), 152064)
VICUNA_7B = LanguageModel("Vicuna-7B", _plain(32, 4096, 11008, 32, gated=True), 32000)
