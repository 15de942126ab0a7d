"""What the released code does otherwise than the paper: gap filling, reference slip, gate, its configuration."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import fields
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, Qwen2Config

from vilamp_lite.common.hub import loaded, read_json
from vilamp_lite.configuration import CLIP_VIT_B_32, SIGLIP_SO400M, ViLaMPConfig, refuse_temperature
from vilamp_lite.merging import preceding_keyframe


def fill_gaps(num_frames: int, chosen: list[int], max_keyframes: int) -> list[int]:
    """Frames that the released code adds to reach min(N, K), gap by gap, then what is left from the end backwards.

    A gap is a longest run of frames not chosen. The smallest spacing is sought for which all gaps together need no more
    frames than the budget; a gap of length L then gets ⌈L / spacing⌉ − 1 of them at equal steps. What remains of the
    budget goes to the last frames of the last gap: the ends of videos get more than their share.
    """
    budget = min(num_frames, max_keyframes) - len(chosen)
    borders = [-1, *sorted(chosen), num_frames]
    gaps = [(a + 1, b) for a, b in itertools.pairwise(borders) if b - a > 1]

    def needed(spacing: int) -> int:
        return sum(math.ceil((stop - start) / spacing) - 1 for start, stop in gaps)

    low, high = 1, num_frames
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if needed(middle) <= budget else (middle + 1, high)

    filled: list[int] = []
    for start, stop in gaps:
        count = math.ceil((stop - start) / low) - 1
        step = math.ceil((stop - start) / (count + 1))
        filled += [min(start + i * step, stop - 1) for i in range(1, count + 1)]
    filled = list(dict.fromkeys(filled))  # equal steps can meet at a gap's last frame
    taken = set(filled)
    backwards = (frame for start, stop in reversed(gaps) for frame in reversed(range(start, stop)))
    spare = (frame for frame in backwards if frame not in taken)
    return filled + [frame for _, frame in zip(range(budget - len(filled)), spare, strict=False)]


def released_reference(num_frames: int, keyframes: torch.Tensor, before_first: str = "self") -> torch.Tensor:
    """Say what the released code compares each frame with: by a slip, the i-th keyframe's frames with frame i.

    Frames from the i-th keyframe on (i = 0 … K − 1) are compared with the i-th frame of the video, not with the i-th
    keyframe. The two agree only when the keyframes are the video's first frames.

    Args:
        num_frames: N.
        keyframes: [K] int64 frame numbers, in any order.
        before_first: what frames before the first keyframe are compared with: "self", themselves, as in the released
            code, or "first", which the slip turns into frame 0.

    Returns:
        [N] int64 frame numbers.
    """
    reference = preceding_keyframe(num_frames, keyframes, before_first)
    ordered = torch.as_tensor(keyframes).long().sort().values
    slipped = torch.searchsorted(ordered, reference)
    return torch.where(torch.isin(reference, ordered), slipped, reference)


def straight_through_gate(relevance: torch.Tensor) -> torch.Tensor:
    """Make factors [N] of exactly 1 with the gradient of softmax(R_f [N]) (released code: `images *= probs`).

    Multiplying the pixels by them changes nothing in the forward pass: (1 − p) + p rounds to 1 in every floating-point
    type. In the backward pass it leads from the pixels to the selector, if that is trained.
    """
    probabilities = relevance.softmax(dim=0)
    return (1 - probabilities).detach() + probabilities


# The authors' parameter names, by their beginnings, and ours.
RELEASED_NAMES = {
    "model.frame_selector.model.": "selector.",
    "model.vision_tower.vision_tower.vision_model.": "vision_tower.",
    "model.composer_projector.tau": "merger.temperature",
    "model.composer_projector.linear_q.": "merger.query_map.",
    "model.composer_projector.linear_iq.": "merger.relevance_map.",
    "model.composer_projector.linear_k.": "merger.reference_map.",
    "model.composer_projector.linear_ik.": "merger.redundancy_map.",
    "model.mm_projector.": "keyframe_connector.",
    "model.image_newline": "video_newline",
    "model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
}

# What the released code can be configured to and this project reproduces.
_REPRODUCED = {
    "model_type": ("llava_qwen",),
    "composer_type": ("sig_pooling",),
    "frame_selector_type": ("SeqFrameSelector",),
    "mm_projector_type": ("mlp2x_gelu",),
    "mm_spatial_pool_mode": ("bilinear",),
    "mm_spatial_pool_stride": (2,),
    "mm_vision_select_layer": (-2,),
    "mm_vision_select_feature": ("patch",),
}

# The released code sets rope_scaling to None whatever the file says, so it is not read.
_LANGUAGE_FIELDS = {field.name for field in fields(Qwen2Config)} - {"dtype", "architectures"} | {"rope_theta"}


def released_config(path: str | PathLike[str], **changes: Any) -> ViLaMPConfig:
    """Read the configuration of a checkpoint in the authors' format (see `load_released_checkpoint`).

    Raises:
        ValueError: not such a directory, or a setting of the released code that is not reproduced here.
    """
    path = Path(path)
    refuse_plain_onevision(path)
    theirs = read_json(path / "config.json")
    for name, known in _REPRODUCED.items():
        if name in theirs and theirs[name] not in known:
            raise ValueError(f"{path}/config.json: {name} is {theirs[name]!r}; reproduced here is {known[0]!r} only")
    language = {name: value for name, value in theirs.items() if name in _LANGUAGE_FIELDS}
    refuse_temperature(changes)
    released = {
        "text_config": {"model_type": "qwen2"} | language,
        "vision_config": _vision_config(path),
        "selector_config": _selector_config(path, theirs),
        "max_keyframes": theirs.get("max_frame_num", 32),
        "similarity_threshold": theirs.get("f2f_thrd", 0.85),
        "relevance_threshold": theirs.get("f2t_thrd", 0.2),
    }
    return ViLaMPConfig.released(**released | changes)


def refuse_plain_onevision(path: Path) -> None:
    """Refuse what shares its kind with the authors' format: a LLaVA-OneVision as lmms-lab saved it."""
    if "composer_type" not in read_json(path / "config.json"):
        # Of a ViLaMP: their default is another composer, which has no differential merge.
        raise ValueError(
            f"{path}/config.json names no composer_type ('sig_pooling' is reproduced here): it is a LLaVA-OneVision "
            "in lmms-lab's own format; from_llava_onevision takes the same model as llava-hf publishes it, such as "
            "llava-hf/llava-onevision-qwen2-7b-ov-hf"
        )


def _vision_config(path: Path) -> dict[str, Any]:
    """The vision tower as the released code uses it: without its last layer and its head."""
    file = path / "siglip-config.json"
    if not file.is_file():
        return SIGLIP_SO400M
    theirs = read_json(file)
    theirs = theirs.get("vision_config", theirs)
    return {
        **theirs,
        "model_type": "siglip_vision_model",
        "num_hidden_layers": theirs.get("num_hidden_layers", 27) - 1,
        "vision_use_head": False,
    }


def _selector_config(path: Path, theirs: Mapping[str, Any]) -> dict[str, Any]:
    """CLIP's configuration, inside the checkpoint or on this machine; ViT-B/32 where there is none."""
    for folder in selector_folders(path, theirs):
        if (folder / "config.json").is_file():
            return loaded(AutoConfig, folder).to_dict()
    return CLIP_VIT_B_32


def selector_folders(path: Path, theirs: Mapping[str, Any]) -> list[Path]:
    """Where CLIP's files may lie: inside the checkpoint, by config.json's path or its last part, or on this machine."""
    named = theirs.get("clip_model_path")
    return [path / named, path / Path(named).name, Path(named)] if named else []
