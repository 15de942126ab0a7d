"""What can be trained as a miniature: the full method, and what is compared with it. Loads no torch: help lists it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Variant:
    """One way to train a reader: what differs from the full method, and what question that answers.

    Attributes:
        question: what the comparison with the full method tells.
        config: fields of the configuration that differ.
        grounding: whether stage 3 takes place; without it the merge learns from the answers, in stage 4.
        peer: a name in `PEERS`, whose way to show a video stage 4 trains in place of ours.
        shared: the stages in which nothing differs from the full method; they are trained once for both.
    """

    question: str
    config: dict[str, Any] = field(default_factory=dict)
    grounding: bool = True
    peer: str | None = None
    shared: tuple[str, ...] = ("contrastive", "alignment", "grounding")

    @property
    def stages(self) -> tuple[str, ...]:
        """The names of its stages, in order."""
        return tuple(stage for stage in STAGES if self.grounding or stage != "grounding")


STAGES = ("contrastive", "alignment", "grounding", "mixed")

STUDIES = {
    "full": Variant("the full method"),
    "released_reference": Variant(
        "what does the released code's slip of the reference frame cost?", {"reference": "released"}
    ),
    "no_keyframe_block": Variant(
        "what does the keyframe block add?", {"keyframe_block": False}, shared=("contrastive",)
    ),
    "no_attention_scaling": Variant(
        "what does sharper attention at length add?", {"attention_log_base": None}, shared=("contrastive",)
    ),
    "no_position_interpolation": Variant("what do interpolated positions add?", {"video_positions": None}),
    "no_grounding": Variant("what do the merge's labels add?", grounding=False),
    **{
        f"peer_{peer}": Variant(f"how good is {peer} with as many tokens?", peer=peer)
        for peer in ("dense", "two_tokens", "clip_merging")
    },
}


def stage_folder(folder: Path, study: str, seed: int, stage: str) -> Path:
    """Where `train_miniature` keeps a stage of a training."""
    if stage == "contrastive":
        return folder / "encoder" / stage
    owner = "full" if stage in STUDIES[study].shared else study
    return folder / f"{owner}-seed{seed}" / stage
