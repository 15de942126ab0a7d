"""Other video-language models at full size, as their own files document them."""

from dataclasses import dataclass

from vilamp_lite.costs.shapes import (
    CLIP_L,
    DINOV2_G,
    EVA_G,
    QWEN2_7B,
    QWEN2_VL,
    SIGLIP,
    UMT_L,
    VICUNA_7B,
    LanguageModel,
    VisionTower,
)


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


PEER_MODELS = {
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
