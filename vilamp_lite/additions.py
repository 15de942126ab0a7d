"""What this project adds to the paper, each with a switch and a study."""

from torch import nn

from vilamp_lite.configuration import ViLaMPConfig


class KeyframeBlock(nn.TransformerEncoderLayer):
    """Lets a keyframe's patches [B, M, D] see each other once, in both directions.

    Not in the paper, see `ViLaMPConfig.keyframe_block`.
    """

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
