"""FLOPs counted as the paper's Table 5 counts them for ViLaMP; the paper does not say how, so this is worked out."""

from typing import Any

from vilamp_lite.common.checks import positive_int
from vilamp_lite.costs.vilamp import connector_flops, language_shape, tower_shape

TABLE_5 = {64: 61.0, 256: 120.3, 1024: 356.8, 8192: 2565.2}  # TFLOPs of ViLaMP, by frames
TABLE_5_VIDEOCHAT_FLASH = {64: 29.6, 256: 113.3, 1024: 489.6, 8192: 13_896.6}
LEFT_OUT = (
    "Counted: multiply-adds, one each, of linear layers: the vision tower on every frame, the projector on all of its "
    "patches, the language model's layers on every token. The paper does not state the prompt: 90 tokens are assumed.",
    "Left out: attention's products, CLIP, the merge's maps, the head. Elsewhere here a multiply-add is 2 FLOPs, and "
    "all of these count.",
)


def flops_as_paper(num_frames: int, prompt_tokens: int = 90) -> float:
    """What Table 5 calls ViLaMP's FLOPs, for N frames; within 0.13 % of its four figures.

    Args:
        num_frames: N.
        prompt_tokens: of the text; the paper does not state them, and about 90 come nearest.
    """
    from vilamp_lite.configuration import ViLaMPConfig

    positive_int("num_frames", num_frames)
    config = ViLaMPConfig.released()
    tower, language = tower_shape(config.vision_config), language_shape(config.text_config)
    width = language.body.width
    projected = num_frames * config.num_patches * connector_flops((tower.body.width, width, width))
    read = language.body.linear_flops(config.visual_tokens(num_frames) + prompt_tokens)
    return (tower.flops(num_frames)[0] + projected + read) / 2


def table_5(*frames: int) -> list[dict[str, Any]]:
    """Rows of Table 5 and of other numbers of frames: TFLOPs here, the paper's, and how far apart in per cent."""
    rows = []
    for number in sorted({*TABLE_5, *frames}):
        here, paper = flops_as_paper(number) / 1e12, TABLE_5.get(number)
        apart = None if paper is None else 100 * (here / paper - 1)
        rows.append({"frames": number, "tflops": here, "paper": paper, "apart_percent": apart})
    return rows
