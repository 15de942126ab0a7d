"""Needles in haystacks: a question's scenes at a chosen depth of a video of any length (the paper's Fig. 2, VideoNIAH).

The haystack is made of random scenes that never show the shape in question, but all the others and all colors.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vilamp_lite.common.checks import choice, positive_int
from vilamp_lite.common.files import require_new, write_json
from vilamp_lite.common.progress import progress_bar
from vilamp_lite.tinyworld.questions import SPLITS, Question, random_scene, scene_seed
from vilamp_lite.tinyworld.render import Scene, write_video


@dataclass(frozen=True)
class Haystack:
    """A video that answers one question.

    Attributes:
        question: what is asked.
        scenes: the whole video in order, needles included.
        needle_frames: for each of the question's needles, its first frame and the one after its last.
    """

    question: Question
    scenes: tuple[Scene, ...]
    needle_frames: tuple[tuple[int, int], ...]


@lru_cache(maxsize=4)
def pool_scenes(pool: int, split: str = "test") -> tuple[Scene, ...]:
    """The scenes of a pool, see `hide`."""
    number = SPLITS.index(choice("split", split, SPLITS))
    return tuple(random_scene(2 * place + number) for place in range(positive_int("pool", pool)))


def hide(
    question: Question, num_frames: int, depth: float, seed: int, split: str = "test", pool: int | None = None
) -> Haystack:
    """Hide a question's needles in a haystack.

    The first needle stands at the depth, as near as the scenes' borders allow (half a scene); a second one anywhere.
    More than two, a roll call's, are spread over the whole video, whatever the depth.

    Args:
        question: its needles are hidden.
        num_frames: N, of the whole video.
        depth: from 0, the video's start, to 1, its end.
        seed: of the haystack.
        split: whose scenes the haystack is made of.
        pool: how many different scenes there are to make haystacks of, so that many can share what they cost; a video
            repeats none before it has shown all. Without limit when left out.

    Raises:
        ValueError: the needles are longer than the video, a depth outside 0 to 1, an unknown split, or a pool in which
            every scene shows the shape in question.
    """
    needles = question.needles
    left = positive_int("num_frames", num_frames) - sum(needle.num_frames for needle in needles)
    if left < 0:
        raise ValueError(f"{num_frames} frames can't hold this question's needles of {num_frames - left}")
    if not 0 <= depth <= 1:
        raise ValueError(f"depth must lie from 0 to 1, got {depth}")
    random = np.random.default_rng((seed, 2))
    hay = _hay(random, question.shape, left, split, pool)
    if len(needles) > 2:
        depths = (np.arange(len(needles)) + random.random(len(needles))) / len(needles)
    else:
        depths = np.array([depth, random.random()])[: len(needles)]
    borders = np.cumsum([0, *(scene.num_frames for scene in hay)])
    places = [int(np.abs(borders - wanted * left).argmin()) for wanted in depths]

    scenes, spans, frame = [], {}, 0
    for place in range(len(hay) + 1):
        for number in (n for n, at in enumerate(places) if at == place):
            scenes.append(needles[number])
            spans[number] = (frame, frame := frame + needles[number].num_frames)
        if place < len(hay):
            scenes.append(hay[place])
            frame += hay[place].num_frames
    return Haystack(question, tuple(scenes), tuple(spans[number] for number in range(len(needles))))


def save(haystack: Haystack, path: str | PathLike[str], *, overwrite: bool = False) -> Path:
    """Write the video at one frame per second, and beside it X.json, see `describe_haystack`.

    Args:
        haystack: what it shows.
        path: the video, X.mp4.
        overwrite: whether files that are there may be replaced.

    Returns:
        The path of the JSON file.
    """
    description = Path(path).with_suffix(".json")
    for file in (Path(path), description):
        require_new(file, overwrite=overwrite)
    num_frames = sum(scene.num_frames for scene in haystack.scenes)
    with progress_bar(num_frames, "frames", "draw the video") as bar:
        write_video(path, _counted(haystack.scenes, bar))
    write_json(description, describe_haystack(haystack, path, num_frames))
    return description


def _counted(scenes: Iterable[Scene], bar: tqdm) -> Iterator[Scene]:
    for scene in scenes:
        yield scene
        bar.update(scene.num_frames)


def describe_haystack(haystack: Haystack, path: str | PathLike[str], num_frames: int) -> dict[str, Any]:
    """What stands beside a video file: its name and length, question, options, answer, needle frames."""
    question = haystack.question
    return {
        "video": Path(path).name,
        "num_frames": num_frames,
        "family": question.family,
        "question": question.text,
        "options": question.options,
        "answer": question.answer,
        "needle_frames": haystack.needle_frames,
    }


def _hay(random: np.random.Generator, shape: str, num_frames: int, split: str, pool: int | None) -> list[Scene]:
    """Scenes without the shape, of `num_frames` together; the last one may be cut short."""
    if pool is not None and all(_shows(scene, shape) for scene in pool_scenes(pool, split)):
        raise ValueError(f"pool must hold a scene without a {shape}: {pool} are too few")
    scenes: list[Scene] = []
    left = num_frames
    drawn = _drawn(random, split, pool)
    while left:
        scene = next(drawn)
        if _shows(scene, shape):
            continue
        scenes.append(replace(scene, num_frames=min(scene.num_frames, left)))
        left -= scenes[-1].num_frames
    return scenes


def _drawn(random: np.random.Generator, split: str, pool: int | None) -> Iterator[Scene]:
    """Random scenes without end: new ones, or a pool's in random order, over and over."""
    while pool is None:
        yield random_scene(scene_seed(random, split))
    scenes = pool_scenes(pool, split)
    while True:
        yield from (scenes[place] for place in random.permutation(len(scenes)))


def _shows(scene: Scene, shape: str) -> bool:
    return any(thing.shape == shape for thing in scene.things)
