"""What this project adds to the paper, for small models that read long videos; `paper()` has none of it.

Each has a switch in `ViLaMPConfig` and a study with and without it.
"""

import math
from typing import Any

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


def let_attention_sharpen(language_model: nn.Module) -> bool:
    """Let calls of a language model take `attention_factor`, which multiplies the logits of its attention.

    The factor travels with the call's arguments, so that gradient checkpointing finds it when it computes a layer
    again; between calls the modules are as they were.

    Returns:
        Whether there is attention whose logits are scaled by a number.
    """
    found = [module for module in language_model.modules() if isinstance(getattr(module, "scaling", None), float)]
    for module in found:
        module.register_forward_pre_hook(_sharpen, with_kwargs=True)
        module.register_forward_hook(_as_before, always_call=True)
    return bool(found)


def _sharpen(
    module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    factor = named.pop("attention_factor", None)
    if factor is not None:
        module.plain_scaling = module.scaling
        module.scaling *= factor
    return inputs, named


def _as_before(module: nn.Module, *_: object) -> None:
    if hasattr(module, "plain_scaling"):
        module.scaling = module.plain_scaling
        del module.plain_scaling


def attention_factor(config: ViLaMPConfig, length: int) -> dict[str, float]:
    """The argument that sharpens attention over L tokens: log L / log base (`attention_log_base`); none without a base.

    A softmax over more tokens is flatter; this keeps a model that was trained on short videos sharp on long ones.
    L counts the tokens that the last one attends to; in a padded batch the longest row decides for all.
    """
    base = config.attention_log_base
    return {} if base is None else {"attention_factor": math.log(max(length, 2)) / math.log(base)}


def position_step(config: ViLaMPConfig, num_tokens: int) -> float:
    """How far each of a video's tokens moves the position: 1, or less in one of more than `video_positions`."""
    return 1.0 if config.video_positions is None else min(1.0, config.video_positions / num_tokens)
