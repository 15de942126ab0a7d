"""Questions and videos that the miniature's stages train on, drawn from a bank of scenes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vilamp_lite.tinyworld.bank import SceneBank
from vilamp_lite.tinyworld.questions import FAMILIES, SCENE_FRAMES
from vilamp_lite.tinyworld.render import COLORS, SHAPES, Scene

COLOR_NAMES = tuple(COLORS)


def describe_scenes(scenes: Sequence[Scene]) -> tuple[np.ndarray, np.ndarray]:
    """Say what scenes show, and where.

    Returns:
        int8 [S, 10, 8], how many things of each shape and color; int8 [S, 16, 2], numbers of shape and color in each
        cell, −1 for nothing.
    """
    shown = np.zeros((len(scenes), len(SHAPES), len(COLOR_NAMES)), np.int8)
    cells = np.full((len(scenes), 16, 2), -1, np.int8)
    for number, scene in enumerate(scenes):
        for thing in scene.things:
            shape, color = SHAPES.index(thing.shape), COLOR_NAMES.index(thing.color)
            shown[number, shape, color] += 1
            cells[number, thing.cell] = shape, color
    return shown, cells


@dataclass(frozen=True)
class Example:
    """A question and a video in a bank's frames.

    Attributes:
        question: what is asked.
        answer: what is right.
        frames: int64 [N], numbers of frames in the bank.
        needle: bool [N], which of them belong to needles.
        scene: int64 [N], which of the video's scenes each belongs to.
    """

    question: str
    answer: str
    frames: np.ndarray
    needle: np.ndarray
    scene: np.ndarray


class Examples:
    """Draws questions whose needles and haystacks are scenes of a bank, as `tinyworld.haystack` does with new ones."""

    def __init__(self, bank: SceneBank) -> None:
        """Find out which scenes can serve as what."""
        self.bank = bank
        shown, cells = describe_scenes(bank.scenes)
        self.shown, self.cells = shown, cells
        by_shape = shown.sum(axis=2)
        random, pair = np.arange(len(shown)) < bank.num_random, np.arange(len(shown)) >= bank.num_random
        self.without = [np.flatnonzero(random & (by_shape[:, shape] == 0)) for shape in range(len(SHAPES))]
        self.single = [
            [np.flatnonzero(random & (by_shape[:, shape] == 1) & (shown[:, shape, color] == 1)) for color in range(8)]
            for shape in range(len(SHAPES))
        ]
        self.pairs = [
            [np.flatnonzero(pair & (by_shape[:, one] == 1) & (by_shape[:, other] == 1)) for other in range(len(SHAPES))]
            for one in range(len(SHAPES))
        ]
        shapes = range(len(SHAPES))
        singles = [pool for pools in self.single for pool in pools]
        pairs = [self.pairs[one][other] for one in shapes for other in shapes if one != other]
        for pool in (*self.without, *singles, *pairs):
            if bank.lengths[pool].max(initial=0) < 2 * SCENE_FRAMES[0]:
                raise ValueError(
                    f"{bank.num_random} random scenes and {len(bank.scenes) - bank.num_random} pairs can't serve every "
                    "question: take a larger bank"
                )

    def draw(self, random: np.random.Generator, family: str, num_frames: int) -> Example:
        """Draw a question of a family, and a video of `num_frames` frames in which its needles are hidden."""
        shape = int(random.integers(len(SHAPES)))
        options = FAMILIES[family].options(SHAPES[shape])
        answer = options[random.integers(len(options))]
        needles = self._needles(random, family, shape, answer)
        scenes, lengths = (np.array(column) for column in zip(*needles, strict=True))
        left = num_frames - int(lengths.sum())
        if left < 0:
            raise ValueError(f"{num_frames} frames can't hold the needles of {num_frames - left}")
        hay = random.choice(self.without[shape], left // SCENE_FRAMES[0] + 1)
        hay_lengths = np.diff(np.minimum(np.cumsum(self.bank.lengths[hay]), left), prepend=0)
        hay, hay_lengths = hay[hay_lengths > 0], hay_lengths[hay_lengths > 0]
        place = np.sort(random.integers(0, len(hay) + 1, len(scenes)))
        is_needle = np.insert(np.zeros(len(hay), bool), place, True)
        lengths = np.insert(hay_lengths, place, lengths)
        first = self.bank.first_frame[np.insert(hay, place, scenes)]
        start = np.cumsum(lengths) - lengths
        frames = np.repeat(first - start, lengths) + np.arange(num_frames)
        number = np.repeat(np.arange(len(lengths)), lengths)
        text = FAMILIES[family].text.format(shape=SHAPES[shape])
        return Example(text, answer, frames, is_needle[number], number)

    def _needles(self, random: np.random.Generator, family: str, shape: int, answer: str) -> list[tuple[int, int]]:
        """Scenes that give the answer, and how many of their frames are shown, in random order."""
        if family in ("companion", "two companions"):
            wanted = [SHAPES.index(word) for word in answer.split(" and ")]
            pools = [self.pairs[shape][other] for other in wanted]
        elif family == "roll call":
            shown = [
                color for color in range(8) if color != COLOR_NAMES.index(answer) for _ in range(random.integers(2, 4))
            ]
            pools = [self.single[shape][color] for color in shown]
        else:
            pools = [self.single[shape][COLOR_NAMES.index(word)] for word in answer.split(" and ")]
        least = 2 * SCENE_FRAMES[0] if family.startswith("two") else SCENE_FRAMES[0]
        scenes = []
        for pool in pools:
            long_enough = pool[self.bank.lengths[pool] >= least]
            scenes.append(int(random.choice(long_enough)))
        random.shuffle(scenes)
        return [(scene, least if family == "roll call" else int(self.bank.lengths[scene])) for scene in scenes]


def questions_about(
    shown: np.ndarray, random: np.random.Generator, count: int, most_easy: int | None = None
) -> list[tuple[str, str]]:
    """Draw questions that a few frames of different scenes answer, with their answers.

    Args:
        shown: [F, 10, 8], how many things of each shape and color each frame shows.
        random: draws among all the questions there are.
        count: at most so many.
        most_easy: at most so many of them that one thing or one frame answers (attribute, companion); any number when
            left out.
    """
    found = []
    by_shape = shown.sum(axis=2)
    size = by_shape.sum(axis=1)
    for shape, name in enumerate(SHAPES):
        frames = np.flatnonzero(by_shape[:, shape])
        if not len(frames) or by_shape[frames, shape].max() > 1:
            continue
        has = shown[:, shape].any(axis=0)
        seen = [color for color, there in zip(COLOR_NAMES, has, strict=True) if there]
        if len(seen) == 1:
            found.append(("attribute", name, seen[0]))
        elif len(seen) == 2:
            found.append(("two needles", name, " and ".join(seen)))
        elif len(seen) == len(COLOR_NAMES) - 1:
            found.append(("roll call", name, COLOR_NAMES[int(has.argmin())]))
        if (size[frames] == 2).all():
            others = sorted(
                int(other) for frame in frames for other in np.flatnonzero(by_shape[frame]) if other != shape
            )
            if len(others) == 1:
                found.append(("companion", name, SHAPES[others[0]]))
            elif len(others) == 2 and others[0] != others[1]:
                found.append(("two companions", name, f"{SHAPES[others[0]]} and {SHAPES[others[1]]}"))
    # There are many more of the easy questions, and most of them about one color: these come last.
    order = random.permutation(len(found))
    easy = [number for number in order if found[number][0] in ("attribute", "companion")][:most_easy]
    easy.sort(key=lambda number: found[number][0] == "attribute")
    chosen = ([number for number in order if found[number][0] not in ("attribute", "companion")] + easy)[:count]
    random.shuffle(chosen)
    return [(FAMILIES[found[i][0]].text.format(shape=found[i][1]), found[i][2]) for i in chosen]
