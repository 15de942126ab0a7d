"""The miniature: TinyWorld's bundled model, its configuration and its processor."""

from typing import Any

from transformers import SiglipImageProcessorPil

from vilamp_lite.configuration import QWEN2_7B, ViLaMPConfig
from vilamp_lite.modeling import ViLaMPForConditionalGeneration
from vilamp_lite.processing import ViLaMPProcessor
from vilamp_lite.tinyworld.encoder import tinyworld_tokenizer, vocabulary
from vilamp_lite.tinyworld.render import SIDE


def miniature_config(**changes: Any) -> ViLaMPConfig:
    """TinyWorld's model, which `vilamp train miniature` trains: 16 patches, K = 4, 3 layers of width 128.

    Against `paper()` it adds the keyframe block, the scaled attention logits and the interpolated positions, keeps
    all of a keyframe's patches, starts the merge's temperature at 0.07, and has a Qwen3 for its language model.

    Args:
        changes: fields to set otherwise.
    """
    words = len(vocabulary())
    miniature = {
        "vision_config": {"model_type": "tinyworld_vision"},
        "selector_config": {"model_type": "tinyworld", "text_config": {"vocab_size": words}},
        "text_config": QWEN2_7B
        | {"vocab_size": words, "hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 3}
        | {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 131072}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e9}, "tie_word_embeddings": True}
        # Qwen3 normalises queries and keys, and weights start larger than in wide models: both learn several times
        # sooner at this size to look up the thing that a question names.
        | {"model_type": "qwen3", "head_dim": 32, "initializer_range": 0.08}
        | {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
        "max_keyframes": 4,
        "temperature": 0.07,
        "keyframe_pooling": "none",
        "keyframe_block": True,
        "attention_log_base": 48,
        "video_positions": 64,
    }
    return ViLaMPConfig(**miniature | changes)


def miniature_processor(model: ViLaMPForConditionalGeneration) -> ViLaMPProcessor:
    """The processor of a TinyWorld model: words as tokens, pixels from −1 to 1."""

    def pixels() -> SiglipImageProcessorPil:
        return SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE})

    return ViLaMPProcessor(
        model.config, tinyworld_tokenizer(ends=False), tinyworld_tokenizer(ends=True), pixels(), pixels()
    )
