"""Five families of questions about TinyWorld; each can be answered by some ways of choosing and merging frames only.

A question names one shape. Its needles are the only scenes of the video that show this shape; everything else in the
video, the haystack, shows all colors and all other shapes, so that neither tells the answer.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vilamp_lite.common.checks import choice, positive_int
from vilamp_lite.tinyworld.render import COLORS, GRID, SHAPES, Scene, Thing

SPLITS = ("train", "test")
SCENE_FRAMES = (4, 12)  # frames of a scene, at least and at most
_COLORS = tuple(COLORS)
_SEEDS = 2**40
Needles = list[tuple[list[tuple[str, str]], int]]  # what each needle scene shows (shape, color), and for how long


@dataclass(frozen=True)
class Question:
    """A question about one shape, and the scenes that answer it.

    Attributes:
        family: a name in `FAMILIES`.
        text: what is asked.
        options: every answer the family allows; chance is 1 / len(options).
        answer: one of them.
        shape: what the question is about; no scene but the needles may show it.
        needles: the scenes that answer it.
    """

    family: str
    text: str
    options: tuple[str, ...]
    answer: str
    shape: str
    needles: tuple[Scene, ...]


@dataclass(frozen=True)
class Family:
    """A kind of question.

    Attributes:
        text: the question, with {shape} for the shape.
        options: from the shape, every possible answer.
        needles: from a random generator, shape and answer, what the needle scenes show and how long they are.
        separates: which ways of seeing a video can and can't answer it.
    """

    text: str
    options: Callable[[str], tuple[str, ...]]
    needles: Callable[[np.random.Generator, str, str], Needles]
    separates: str


def random_scene(seed: int) -> Scene:
    """Make a scene of 3 to 5 random things that lasts 4 to 12 frames, all from its seed."""
    random = np.random.default_rng((seed, 1))
    things = [(random.choice(SHAPES), random.choice(_COLORS)) for _ in range(random.integers(3, 6))]
    return Scene(seed, _placed(random, things), int(random.integers(SCENE_FRAMES[0], SCENE_FRAMES[1] + 1)))


def pair_scene(seed: int) -> Scene:
    """Make a scene of two random things of different shapes, like those of the companion questions' needles."""
    random = np.random.default_rng((seed, 2))
    shapes, colors = random.choice(SHAPES, 2, replace=False), random.choice(_COLORS, 2)
    things = list(zip(shapes, colors, strict=True))
    return Scene(seed, _placed(random, things), int(random.integers(SCENE_FRAMES[0], SCENE_FRAMES[1] + 1)))


def scene_seed(random: np.random.Generator, split: str) -> int:
    """Draw a scene's seed; those of the two splits never meet: even numbers train, odd ones test."""
    return 2 * int(random.integers(_SEEDS)) + SPLITS.index(choice("split", split, SPLITS))


def sample_questions(family: str, count: int, seed: int, split: str = "test") -> list[Question]:
    """Draw questions in which every shape is asked about, and every answer right, equally often, give or take one.

    Args:
        family: a name in `FAMILIES`.
        count: how many.
        seed: of the draw.
        split: "train" or "test"; their scenes never meet.
    """
    kind = FAMILIES[choice("family", family, tuple(FAMILIES))]
    number = list(FAMILIES).index(family)
    random = np.random.default_rng((seed, SPLITS.index(choice("split", split, SPLITS)), number))
    shapes = _in_turn(random, SHAPES, positive_int("count", count))
    places = _in_turn(random, range(len(kind.options(SHAPES[0]))), count)
    questions = []
    for shape, place in zip(shapes, places, strict=True):
        options = kind.options(shape)
        answer = options[place]
        needles = tuple(
            Scene(scene_seed(random, split), _placed(random, things), frames)
            for things, frames in kind.needles(random, shape, answer)
        )
        questions.append(Question(family, kind.text.format(shape=shape), options, answer, shape, needles))
    return questions


def _in_turn(random: np.random.Generator, items: Sequence[Any], count: int) -> list[Any]:
    """Take `count` items so that each comes as often as any other, in random order."""
    rounds = [random.permutation(len(items)) for _ in range(math.ceil(count / len(items)))]
    return [items[place] for place in np.concatenate(rounds)[:count]]


def _placed(random: np.random.Generator, kinds: Sequence[tuple[str, str]]) -> tuple[Thing, ...]:
    """Put things (shape, color) into different cells."""
    cells = random.permutation(GRID**2)[: len(kinds)]
    return tuple(Thing(str(shape), str(color), int(cell)) for (shape, color), cell in zip(kinds, cells, strict=True))


def _others(random: np.random.Generator, shape: str, count: int) -> list[tuple[str, str]]:
    """Some things of other shapes."""
    shapes = random.choice([other for other in SHAPES if other != shape], count)
    return list(zip(shapes, random.choice(_COLORS, count), strict=True))


def _usual_length(random: np.random.Generator) -> int:
    return int(random.integers(SCENE_FRAMES[0], SCENE_FRAMES[1] + 1))


def _long_length(random: np.random.Generator) -> int:
    """At least twice the miniature's K = 4: enough frames of one scene to use up every keyframe."""
    return int(random.integers(8, SCENE_FRAMES[1] + 1))


def _attribute(random: np.random.Generator, shape: str, answer: str) -> Needles:
    return [([(shape, answer), *_others(random, shape, int(random.integers(2, 5)))], _usual_length(random))]


def _companion(random: np.random.Generator, shape: str, answer: str) -> Needles:
    first, second = random.choice(_COLORS, 2)
    return [([(shape, first), (answer, second)], _usual_length(random))]


def _roll_call(random: np.random.Generator, shape: str, answer: str) -> Needles:
    shown = [color for color in _COLORS if color != answer for _ in range(random.integers(2, 4))]
    return [
        ([(shape, color), *_others(random, shape, int(random.integers(2, 5)))], SCENE_FRAMES[0])
        for color in random.permutation(shown)
    ]


def _two_needles(random: np.random.Generator, shape: str, answer: str) -> Needles:
    return [
        ([(shape, color), *_others(random, shape, int(random.integers(2, 5)))], _long_length(random))
        for color in random.permutation(answer.split(" and "))
    ]


def _two_companions(random: np.random.Generator, shape: str, answer: str) -> Needles:
    return [
        ([(shape, random.choice(_COLORS)), (companion, random.choice(_COLORS))], _long_length(random))
        for companion in random.permutation(answer.split(" and "))
    ]


def _pairs(items: Sequence[str]) -> tuple[str, ...]:
    """Two different ones, in the order of the list: one way to say each answer."""
    return tuple(f"{one} and {other}" for one, other in itertools.combinations(items, 2))


def _other_shapes(shape: str) -> tuple[str, ...]:
    return tuple(other for other in SHAPES if other != shape)


FAMILIES: dict[str, Family] = {
    "attribute": Family(
        "what color is the {shape}?",
        lambda shape: _COLORS,
        _attribute,
        "one patch of one frame is enough: a keyframe or a merged token holds it; uniform frames and a mean miss it",
    ),
    "companion": Family(
        "what is with the {shape}?",
        _other_shapes,
        _companion,
        "needs several patches of one frame: a merged token keeps the {shape} and loses its neighbour",
    ),
    "roll call": Family(
        "which color of {shape} was missing?",
        lambda shape: _COLORS,
        _roll_call,
        "needs 14 to 21 scenes, more than there are keyframes: only merged tokens hold them",
    ),
    "two needles": Family(
        "which two colors has the {shape}?",
        lambda shape: _pairs(_COLORS),
        _two_needles,
        "two scenes of many near-duplicates: relevance alone spends every keyframe on one of them",
    ),
    "two companions": Family(
        "which two are with the {shape}?",
        lambda shape: _pairs(_other_shapes(shape)),
        _two_companions,
        "needs two different keyframes: merging can't help, nor can relevance alone",
    ),
}
