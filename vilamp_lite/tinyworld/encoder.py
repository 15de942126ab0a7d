"""TinyWorld's own dual encoder: frames, patches and questions as vectors, small enough to train on a laptop.

It follows the shape of CLIP and SigLIP in transformers, so that the model, the processor and `load_encoder` treat it
like any other checkpoint. A patch is one cell of TinyWorld's grid and is seen by itself: what stands beside a thing
can't leak into its patch, as it would after a transformer that looks at the whole frame.
"""

from typing import Any, ClassVar

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.configuration_utils import SubConfigSpec
from transformers.modeling_outputs import BaseModelOutput

from vilamp_lite.tinyworld.questions import FAMILIES
from vilamp_lite.tinyworld.render import COLORS, GRID, SHAPES, SIDE

_PAD, _START, _END, _UNKNOWN = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|unknown|>"
# The chat format's own words, and captions'.
_PLAIN_WORDS = ["system", "you", "are", "a", "helpful", "assistant", ".", "user", "something", "and", "?"]


class TinyWorldVisionConfig(PreTrainedConfig):
    """The vision tower: a small convolutional network that sees one patch at a time."""

    model_type = "tinyworld_vision"
    base_config_key = "vision_config"

    image_size: int = SIDE
    patch_size: int = SIDE // GRID
    hidden_size: int = 96


class TinyWorldTextConfig(PreTrainedConfig):
    """The text tower: a transformer over words."""

    model_type = "tinyworld_text"
    base_config_key = "text_config"

    vocab_size: int = 64
    max_position_embeddings: int = 24
    hidden_size: int = 96
    intermediate_size: int = 192
    num_hidden_layers: int = 1
    num_attention_heads: int = 4


class TinyWorldConfig(PreTrainedConfig):
    """The dual encoder: frames and texts in one space of `projection_dim`."""

    model_type = "tinyworld"
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        "vision_config": SubConfigSpec(AutoConfig, "tinyworld_vision", {}),
        "text_config": SubConfigSpec(AutoConfig, "tinyworld_text", {}),
    }

    vision_config: dict[str, Any] | PreTrainedConfig | None = None
    text_config: dict[str, Any] | PreTrainedConfig | None = None
    pooling_size: int = 384
    projection_dim: int = 96


class TinyWorldVisionModel(PreTrainedModel):
    """Frames into patches, each seen by itself."""

    config: TinyWorldVisionConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)

    def __init__(self, config: TinyWorldVisionConfig) -> None:
        """Build the tower with random weights."""
        super().__init__(config)
        width = config.hidden_size
        self.patch_network = nn.Sequential(
            nn.Conv2d(3, 24, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(24, 48, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(48, width, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(width * (config.patch_size // 8) ** 2, width),
            nn.LayerNorm(width),
        )
        self.post_init()

    def forward(self, pixel_values: torch.Tensor, **options: Any) -> BaseModelOutput:
        """Turn frames [B, 3, 64, 64], values from −1 to 1, into patches [B, 16, D], its only hidden state."""
        side = self.config.patch_size
        squares = pixel_values.unfold(2, side, side).unfold(3, side, side).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
        patches = self.patch_network(squares).unflatten(0, (len(pixel_values), -1))
        return BaseModelOutput(last_hidden_state=patches, hidden_states=(patches,))


class TinyWorldModel(PreTrainedModel):
    """Frames and texts as vectors in one space, compared by cosine (SigLIP's loss: sigmoid of scale · cos + bias).

    A frame's vector comes from the maximum over its patches: what counts is whether something is there.

    Attributes:
        vision: the tower of the frames.
        patch_head: what is looked for in each patch, before the maximum.
        frame_head: from the maximum to the common space.
        words: the text tower's embeddings.
        positions: of its words.
        text_layers: its transformer; its output is the mean over words.
        text_head: to the common space.
        scale: learned, the logarithm of the cosine's factor.
        bias: learned, added to the scaled cosine.
    """

    config: TinyWorldConfig
    input_modalities = ("image", "text")

    def __init__(self, config: TinyWorldConfig) -> None:
        """Build the towers with random weights."""
        super().__init__(config)
        vision, text = config.vision_config, config.text_config
        self.vision = TinyWorldVisionModel(vision)
        self.patch_head = nn.Sequential(
            nn.Linear(vision.hidden_size, config.pooling_size),
            nn.GELU(),
            nn.Linear(config.pooling_size, config.pooling_size),
        )
        self.frame_head = nn.Sequential(nn.GELU(), nn.Linear(config.pooling_size, config.projection_dim))
        self.words = nn.Embedding(text.vocab_size, text.hidden_size)
        self.positions = nn.Parameter(torch.randn(text.max_position_embeddings, text.hidden_size) * 0.02)
        self.text_layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                text.hidden_size,
                text.num_attention_heads,
                text.intermediate_size,
                dropout=0.0,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(text.num_hidden_layers)
        )
        self.text_head = nn.Linear(text.hidden_size, config.projection_dim)
        self.scale = nn.Parameter(torch.tensor(3.0))
        self.bias = nn.Parameter(torch.tensor(-7.0))
        self.post_init()

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Embed frames [B, 3, 64, 64], values from −1 to 1, as [B, projection_dim], not normalised."""
        return self.pool(self.vision(pixel_values).last_hidden_state)

    def pool(self, patches: torch.Tensor) -> torch.Tensor:
        """Embed frames whose patches are known: [B, 16, D] to [B, projection_dim]."""
        return self.frame_head(self.patch_head(patches).amax(dim=1))

    def get_text_features(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Embed texts [B, L] as [B, projection_dim], not normalised."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        states = self.words(input_ids) + self.positions[: input_ids.shape[1]]
        for layer in self.text_layers:
            states = layer(states, src_key_padding_mask=mask == 0)
        weights = mask[..., None].to(states.dtype)
        return self.text_head((states * weights).sum(dim=1) / weights.sum(dim=1))


def vocabulary() -> list[str]:
    """Every word of TinyWorld's questions and answers, and of the chat around them, in the order of their ids."""
    questions = " ".join(family.text.replace("{shape}", "") for family in FAMILIES.values()).replace("?", "")
    words = dict.fromkeys([*_PLAIN_WORDS, *questions.split(), *SHAPES, *COLORS])
    return [_PAD, _START, _END, _UNKNOWN, *words]


def require_known_words(question: str) -> None:
    """Refuse a question that TinyWorld's models can't read.

    Raises:
        ValueError: it has a word outside `vocabulary`, or one of the chat's markers.
    """
    words = "".join(f" {letter} " if letter in "?." else letter for letter in question.lower()).split()
    known_words = set(vocabulary()) - {_PAD, _START, _END, _UNKNOWN}
    unknown = [word for word in words if word not in known_words]
    if unknown:
        known = "; ".join(family.text.format(shape=SHAPES[3]) for family in FAMILIES.values())
        raise ValueError(
            f"the miniature does not know {', '.join(map(repr, unknown))}; it was trained on such questions as: {known}"
        )


def tinyworld_tokenizer(ends: bool) -> PreTrainedTokenizerFast:
    """Make the tokenizer whose tokens are words; others become `<|unknown|>`.

    Args:
        ends: whether texts end in the end token, as the text tower's do; the language model's do not.
    """
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary())}, unk_token=_UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"[?.]"), "isolated")]
    )
    if ends:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"$A {_END}", special_tokens=[(_END, vocabulary().index(_END))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=_UNKNOWN, bos_token=_START, eos_token=_END, pad_token=_PAD
    )


for _config, _model in ((TinyWorldVisionConfig, TinyWorldVisionModel), (TinyWorldConfig, TinyWorldModel)):
    AutoConfig.register(_config.model_type, _config)
    AutoModel.register(_config, _model)


AutoConfig.register(TinyWorldTextConfig.model_type, TinyWorldTextConfig)
