"""What a ViLaMP is made of: three models and two levels of distillation, as in the paper or as in the released code.

`ViLaMPConfig.paper()` and `ViLaMPConfig.released()` are the two presets; every difference between them is a field.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from vilamp_lite.common.checks import choice, cosine, describe, finite_number, positive_int

# The published models' own configurations. SigLIP's last layer of 27 is dropped, and with it its pooling head.
SIGLIP_SO400M = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
    "vision_use_head": False,
}

CLIP_VIT_B_32 = {"model_type": "clip", "projection_dim": 512}

QWEN2_7B = {
    "model_type": "qwen2",
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
    "tie_word_embeddings": False,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
}

_CHOICES = {
    "fill": ("none", "gaps"),
    "merge_relevance": ("mapped", "raw"),
    "merge_redundancy": ("mapped", "raw"),
    "connectors": ("dual", "shared"),
    "keyframe_pooling": ("bilinear", "none"),
    "reference": ("preceding", "released"),
    "before_first": ("first", "self"),
}

_PLAIN = {
    "merge_before_projection": bool,
    "video_newline": bool,
    "relevance_gate": bool,
    "keyframe_block": bool,
    "vision_feature_layer": int,
    "projector_hidden_act": str,
    "video_token_id": int,
}

# What this project reads of each model.
_NEEDED = {
    "vision_config": ("image_size", "patch_size", "hidden_size"),
    "text_config": ("hidden_size", "vocab_size"),
    "selector_config": ("text_config", "vision_config"),
}

# What transformers itself passes to a configuration; anything else that is not a field is a slip of the pen.
_HOUSEKEEPING = {
    *("_name_or_path", "name_or_path", "model_type", "torch_dtype", "num_labels", "attn_implementation"),
    *("output_attentions", "_commit_hash"),
    # These it also writes, when it trains or quantises a model.
    *("use_cache", "pad_token_id", "bos_token_id", "eos_token_id", "quantization_config"),
}


class ViLaMPConfig(PreTrainedConfig):
    """Configuration of `ViLaMPForConditionalGeneration`.

    The defaults are the paper's choices (`paper()`); `released()` changes the fields that its docstring lists. One
    default is not the paper's: frames before the first keyframe have no redundancy term there, and here `before_first`
    compares them with the first keyframe.

    Args:
        vision_config: any vision tower of `AutoModel`; it makes the patches (paper: SigLIP-so400m/14-384).
        text_config: any causal language model of `AutoModelForCausalLM` (paper: Qwen2-7B).
        selector_config: any model with `get_image_features` and `get_text_features` (paper: CLIP ViT-B/32).
        max_keyframes: K, the most keyframes (Algorithm 1).
        similarity_threshold: τ, the largest cosine two keyframes may have.
        relevance_threshold: the least R_f of a keyframe; None for the paper's rule, which has none.
        fill: "gaps" adds evenly spaced frames until there are min(N, K) keyframes; "none" does not.
        redundancy_weight: λ of the merge, fixed.
        temperature: α of the merge at the start; it is learned.
        merge_relevance: "mapped" compares query and patches through two learned maps, "raw" as they are.
        merge_redundancy: "mapped" compares patch and reference through two learned maps, "raw" as they are.
        connectors: "dual", one MLP for keyframe patches and one for merged tokens; "shared", one for both.
        merge_before_projection: True merges the vision tower's features, False the connector's.
        keyframe_pooling: "bilinear" halves a keyframe's grid of patches after the connector; "none" keeps all.
        video_newline: whether one learned vector ends the video.
        reference: "preceding" compares a frame with the nearest keyframe at or before it; "released" with the frame
            that the released code takes by a slip (`released_reference`).
        before_first: what frames before the first keyframe are compared with, "first" or "self".
        relevance_gate: whether pixels are multiplied by a factor of 1 that carries a gradient to the selector.
        keyframe_block: whether the patches of a keyframe attend to each other once before the language model reads
            them. Not in the paper: a small language model binds things of one frame poorly without it.
        attention_log_base: scale the language model's attention logits by log L / log(this) at L tokens; None for the
            paper's model, which does not. It keeps a model that was trained on short videos sharp on long ones.
        video_positions: the positions that a video takes at most: a longer one's tokens are spread evenly over so many
            (position interpolation); None for the paper's model, in which each token takes one. A model reads positions
            poorly that it never met in training.
        fps: frames sampled per second of video.
        vision_feature_layer: which hidden state of the vision tower is used, −1 for the last one before any final norm.
        projector_hidden_act: activation between a connector's two layers.
        video_token_id: the token in the text that the video takes the place of; negative ids serve where the
            vocabulary has none.
    """

    model_type = "vilamp"
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        "vision_config": SubConfigSpec(AutoConfig, "siglip_vision_model", SIGLIP_SO400M),
        "text_config": SubConfigSpec(AutoConfig, "qwen2", QWEN2_7B),
        "selector_config": SubConfigSpec(AutoConfig, "clip", CLIP_VIT_B_32),
    }

    vision_config: dict[str, Any] | PreTrainedConfig | None = None
    text_config: dict[str, Any] | PreTrainedConfig | None = None
    selector_config: dict[str, Any] | PreTrainedConfig | None = None
    max_keyframes: int = 32
    similarity_threshold: float = 0.85
    relevance_threshold: float | None = None
    fill: str = "none"
    redundancy_weight: float = 1.0
    temperature: float = 0.01
    merge_relevance: str = "mapped"
    merge_redundancy: str = "raw"
    connectors: str = "dual"
    merge_before_projection: bool = True
    keyframe_pooling: str = "bilinear"
    video_newline: bool = True
    reference: str = "preceding"
    before_first: str = "first"
    relevance_gate: bool = False
    keyframe_block: bool = False
    attention_log_base: int | None = None
    video_positions: int | None = None
    fps: float = 1.0
    vision_feature_layer: int = -1
    projector_hidden_act: str = "gelu"
    video_token_id: int = -200
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        """Build the sub-configurations and check every field."""
        unknown = sorted(set(kwargs) - _HOUSEKEEPING)
        if unknown:
            raise ValueError(f"ViLaMPConfig has no field {', '.join(unknown)}")
        positive_int("max_keyframes", self.max_keyframes)
        cosine("similarity_threshold", self.similarity_threshold)
        if self.relevance_threshold is not None:
            cosine("relevance_threshold", self.relevance_threshold)
        if self.attention_log_base is not None and positive_int("attention_log_base", self.attention_log_base) < 2:
            raise ValueError(f"attention_log_base must be at least 2, got {self.attention_log_base}")
        if self.video_positions is not None:
            positive_int("video_positions", self.video_positions)
        finite_number("redundancy_weight", self.redundancy_weight)
        finite_number("temperature", self.temperature, above=0)
        finite_number("fps", self.fps, above=0)
        for name, options in _CHOICES.items():
            choice(name, getattr(self, name), options)
        for name, kind in _PLAIN.items():
            if type(getattr(self, name)) is not kind:
                raise ValueError(f"{name} must be of type {kind.__name__}, got {describe(getattr(self, name))}")
        try:
            super().__post_init__(**kwargs)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"vision_config, text_config and selector_config must be configurations ({error})"
            ) from error
        for part, needed in _NEEDED.items():
            missing = [name for name in needed if getattr(getattr(self, part), name, None) is None]
            if missing:
                kind = getattr(self, part).model_type
                raise ValueError(f"{part} can't be a {kind}: it has no {', '.join(missing)}")
        # States come before each of the tower's layers and behind the last.
        layers = getattr(self.vision_config, "num_hidden_layers", math.inf)
        if not -layers - 1 <= self.vision_feature_layer <= layers:
            raise ValueError(
                f"vision_feature_layer must be from {-layers - 1} to {layers}, since the vision tower has {layers} "
                f"layers; got {self.vision_feature_layer}"
            )
        if not hasattr(self.selector_config, "projection_dim") and self.selector_config.model_type != "siglip":
            raise ValueError(
                f"selector_config must be like CLIP's or SigLIP's, got a {self.selector_config.model_type}"
            )
        if self.tie_word_embeddings and not self.text_config.tie_word_embeddings:
            raise ValueError("tie_word_embeddings is the language model's: set it in text_config")
        self.tie_word_embeddings = bool(self.text_config.tie_word_embeddings)

    @classmethod
    def paper(cls, **changes: Any) -> "ViLaMPConfig":
        """The paper's model at full size: SigLIP-so400m/14-384, CLIP ViT-B/32, Qwen2-7B, K = 32, τ = 0.85, 1 fps.

        On one point the paper is silent: its query (CLIP's space) and patches (SigLIP's) can't be compared directly.
        Here relevance goes through two learned maps, and redundancy is taken between the patches as they are.
        """
        return cls(**changes)

    @classmethod
    def released(cls, **changes: Any) -> "ViLaMPConfig":
        """The released code's model at full size, with which the published checkpoint was trained.

        It differs from `paper()` in: a relevance floor of 0.2 and gap filling; learned maps for redundancy too; one
        connector, before the merge; frames before the first keyframe compared with themselves; the reference frame's
        slip; and the relevance gate.
        """
        released = {
            "relevance_threshold": 0.2,
            "fill": "gaps",
            "merge_redundancy": "mapped",
            "connectors": "shared",
            "merge_before_projection": False,
            "reference": "released",
            "before_first": "self",
            "relevance_gate": True,
        }
        return cls(**released | changes)

    @classmethod
    def tiny(cls, **changes: Any) -> "ViLaMPConfig":
        """A model of the same form, small enough for tests: 5×5 patches of 14 pixels, widths of 16 to 32.

        Its vocabulary holds the 256 bytes and a few special tokens (`ViLaMPProcessor.byte_level`).
        """
        small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        tiny = {
            "vision_config": SIGLIP_SO400M | small | {"hidden_size": 24, "image_size": 70},
            "selector_config": {
                "model_type": "clip",
                "projection_dim": 12,
                "text_config": small
                | {"vocab_size": 260, "max_position_embeddings": 77, "bos_token_id": 256, "eos_token_id": 257},
                "vision_config": small | {"image_size": 32, "patch_size": 8},
            },
            "text_config": QWEN2_7B
            | {"vocab_size": 260, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
            | {"num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 256, "eos_token_id": 257}
            | {"pad_token_id": 256},
            "max_keyframes": 4,
        }
        return cls(**tiny | changes)

    @property
    def num_patches(self) -> int:
        """M, the patches that the vision tower makes of a frame."""
        return (self.vision_config.image_size // self.vision_config.patch_size) ** 2

    @property
    def tokens_per_keyframe(self) -> int:
        """Tokens that a keyframe keeps: 196 of 729 with pooling, M without."""
        if self.keyframe_pooling == "none":
            return self.num_patches
        return math.ceil(math.isqrt(self.num_patches) / 2) ** 2

    @property
    def query_size(self) -> int:
        """Size of the selector's embeddings of frames and queries."""
        selector = self.selector_config
        return selector.projection_dim if hasattr(selector, "projection_dim") else selector.text_config.projection_size

    @property
    def merge_size(self) -> int:
        """D, the size of the features that are merged."""
        return self.vision_config.hidden_size if self.merge_before_projection else self.text_config.hidden_size

    def visual_tokens(self, num_frames: int, num_keyframes: int | None = None) -> int:
        """Count a video's tokens: 196·K + (N − K) + 1 with the presets (paper: M·K + (N − K)).

        Without `num_keyframes` there are min(N, K), the most that there can be.
        """
        num_frames = positive_int("num_frames", num_frames)
        keyframes = min(num_frames, self.max_keyframes) if num_keyframes is None else num_keyframes
        if positive_int("num_keyframes", keyframes) > num_frames:
            raise ValueError(f"num_keyframes must be at most num_frames, got {keyframes} of {num_frames}")
        return self.tokens_per_keyframe * keyframes + num_frames - keyframes + int(self.video_newline)

    def require_room(self, num_frames: int, prompt_tokens: int = 0, new_tokens: int = 0) -> None:
        """Refuse a sequence longer than the language model's context, before anything is decoded.

        Args:
            num_frames: N; min(N, K) of them count as keyframes.
            prompt_tokens: of the text around the video.
            new_tokens: of the answer.

        Raises:
            ValueError: it does not fit; the message says how many tokens there are of what, and what to change.
        """
        visual, text = self.visual_tokens(num_frames), prompt_tokens + new_tokens
        # A model without position embeddings states no limit.
        context = getattr(self.text_config, "max_position_embeddings", None) or math.inf
        if visual + text <= context:
            return
        keyframes = min(num_frames, self.max_keyframes)
        remedy = "max_frames, fps or max_keyframes" if text < context - self.tokens_per_keyframe else "max_new_tokens"
        if prompt_tokens >= context - self.tokens_per_keyframe:
            remedy = "the length of the question"
        raise ValueError(
            f"{visual + text:,} tokens do not fit the language model's {context:,}: {visual:,} of the video "
            f"({keyframes:,} keyframes of {self.tokens_per_keyframe}, {num_frames - keyframes:,} other frames), "
            f"{prompt_tokens:,} of the prompt, {new_tokens:,} of the answer; lower {remedy}"
        )


def refuse_temperature(changes: Mapping[str, Any]) -> None:
    """A field that only says where a learned number started; changing it would change nothing."""
    if "temperature" in changes:
        raise ValueError("a checkpoint's temperature is learned: set `model.merger.temperature` after loading")


AutoConfig.register("vilamp", ViLaMPConfig)
