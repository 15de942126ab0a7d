"""Selection measured on a video whose scenes and queries are known (data/photo_tour.json).

The miniature of the paper's Table 3: keyframes as a moment retriever, scored by whether the right scene is among them.
A photograph that is shown twice answers its queries both times.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from vilamp_lite.common.checks import positive_int


@dataclass(frozen=True)
class PhotoScene:
    """A stretch of the video that shows one photograph.

    Attributes:
        photo: which photograph; two scenes may share one.
        title: what it shows, in a few words.
        start: seconds from the start of the video.
        end: seconds; the scene ends just before it.
        queries: what a person might type to find it.
    """

    photo: str
    title: str
    start: float
    end: float
    queries: tuple[str, ...]


def load_scenes(path: str | Path) -> list[PhotoScene]:
    """Read scenes in temporal order from a file such as data/photo_tour.json."""
    try:
        records = json.loads(Path(path).read_text())["scenes"]
        scenes = [
            PhotoScene(r["photo"], r["title"], float(r["start"]), float(r["end"]), tuple(r["queries"])) for r in records
        ]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is not a list of scenes: {type(error).__name__}: {error}") from error
    in_order = all(scene.start < scene.end for scene in scenes)
    if not scenes or not in_order or any(a.end != b.start for a, b in pairwise(scenes)):
        raise ValueError(f"{path}: scenes must follow each other without gaps, each ending after its start")
    return scenes


def scene_of_frames(scenes: Sequence[PhotoScene], timestamps: np.ndarray) -> np.ndarray:
    """Say which scene each frame shows: for timestamps [N] in seconds, int64 [N] positions in `scenes`."""
    if not scenes:
        raise ValueError("scenes is empty")
    timestamps = np.asarray(timestamps, dtype=np.float64)
    outside = ~((timestamps >= scenes[0].start) & (timestamps < scenes[-1].end))
    if outside.any():
        first = timestamps[outside][0]
        raise ValueError(f"timestamps: {first} s lies outside the scenes ({scenes[0].start}…{scenes[-1].end} s)")
    return np.searchsorted([scene.start for scene in scenes], timestamps, side="right") - 1


def queries_of(scenes: Sequence[PhotoScene]) -> list[tuple[str, str]]:
    """Every distinct (query, photo that answers it), in order of first appearance."""
    return list(dict.fromkeys((query, scene.photo) for scene in scenes for query in scene.queries))


def rank_of_photo(relevance: np.ndarray, photo_of_frame: np.ndarray, photo: str) -> int:
    """Rank photographs by their most relevant frame and say where one comes, 1 for first.

    Args:
        relevance: [N] R_f for one query.
        photo_of_frame: [N] which photograph each frame shows.
        photo: the right one.
    """
    if not np.isfinite(relevance).all():
        raise ValueError("relevance holds NaN or infinity")
    if photo not in photo_of_frame:
        raise ValueError(f"photo: no frame shows {photo!r}")
    best = {name: relevance[photo_of_frame == name].max() for name in np.unique(photo_of_frame)}
    return 1 + sum(score > best[photo] for score in best.values())


def hit_at(order: np.ndarray, photo_of_frame: np.ndarray, photo: str, k: int) -> bool:
    """Tell whether one of the first k keyframes [K'], as chosen, shows the right photograph (Hit@k of Table 3)."""
    return bool((photo_of_frame[np.asarray(order)[: positive_int("k", k)]] == photo).any())


def coverage(keyframes: np.ndarray, group_of_frame: np.ndarray) -> float:
    """The share of the groups (scenes, photographs; one named for each of N frames) that have a keyframe, 0 to 1."""
    keyframes = np.asarray(keyframes, dtype=np.int64)
    if not len(group_of_frame) or ((keyframes < 0) | (keyframes >= len(group_of_frame))).any():
        raise ValueError(f"keyframes must lie among the {len(group_of_frame)} frames, got {keyframes.tolist()}")
    return len(np.unique(group_of_frame[keyframes])) / len(np.unique(group_of_frame))
