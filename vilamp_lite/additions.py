"""What this project adds to the paper, for small models that read long videos; `paper()` has none of it.

Each has a switch in `ViLaMPConfig` and a study with and without it.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from vilamp_lite.configuration import ViLaMPConfig


class KeyframeBlock(nn.TransformerEncoderLayer):
    """Lets a keyframe's patches [B, M, D] see each other once, in both directions (`keyframe_block`)."""

    def __init__(self, config: ViLaMPConfig) -> None:
        """Build it for the language model's width."""
        text = config.text_config
        super().__init__(
            text.hidden_size,
            text.num_attention_heads,
            2 * text.hidden_size,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )


def scaled_modules(language_model: nn.Module) -> list[nn.Module]:
    """The language model's attention modules, those that scale their logits."""
    return [module for module in language_model.modules() if isinstance(getattr(module, "scaling", None), float)]


@contextmanager
def sharper_attention(language_model: nn.Module, length: int, base: int | None) -> Iterator[None]:
    """Multiply attention logits by log L / log base while a sequence is read (`attention_log_base`).

    A softmax over more tokens is flatter; this keeps a model that was trained on short videos sharp on long ones. The
    language model is as before when the block ends.

    Args:
        language_model: whose attention is scaled.
        length: L, the tokens that the last one attends to; in a padded batch the longest row decides for all.
        base: None changes nothing.
    """
    if base is None:
        yield
        return
    modules = scaled_modules(language_model)
    before = [module.scaling for module in modules]
    factor = math.log(max(length, 2)) / math.log(base)
    try:
        for module, scaling in zip(modules, before, strict=True):
            module.scaling = scaling * factor
        yield
    finally:
        for module, scaling in zip(modules, before, strict=True):
            module.scaling = scaling


def position_step(config: ViLaMPConfig, num_tokens: int) -> float:
    """How far each of a video's tokens moves the position: 1, or less in one of more than `video_positions`."""
    return 1.0 if config.video_positions is None else min(1.0, config.video_positions / num_tokens)
