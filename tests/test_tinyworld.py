"""TinyWorld: drawn the same everywhere, honest questions, needles where they are said to be."""

import itertools
import json
from collections import Counter, defaultdict
from pathlib import Path

import av
import numpy as np
import pytest

from vilamp_lite import tinyworld
from vilamp_lite.tinyworld.haystack import hide, save
from vilamp_lite.tinyworld.questions import FAMILIES, random_scene, sample_questions
from vilamp_lite.tinyworld.render import (
    COLORS,
    FORMAT_TAG,
    SHAPES,
    Scene,
    Thing,
    render_scene,
    render_scenes,
    write_video,
)
from vilamp_lite.video.source import stream_frames

CHANCE = {"attribute": 1 / 8, "companion": 1 / 9, "roll call": 1 / 8, "two needles": 1 / 28, "two companions": 1 / 36}


def test_the_room_lists_all_that_it_has() -> None:
    assert sorted(dir(tinyworld)) == sorted(tinyworld.__all__)


# --- Pictures --------------------------------------------------------------------------------------------------------


def test_a_scene_is_the_same_everywhere() -> None:
    scene = random_scene(5)
    frames = render_scene(scene)
    assert frames.shape == (scene.num_frames, 64, 64, 3)
    assert frames.dtype == np.uint8
    assert np.array_equal(frames, render_scene(random_scene(5)))
    assert not np.array_equal(frames, render_scene(Scene(6, scene.things, scene.num_frames)))
    # Written down once, so that a machine or a NumPy that draws otherwise is noticed; ±1 for rounding.
    red = [[226, 226, 122, 122], [218, 228, 151, 105], [222, 224, 172, 140], [239, 227, 221, 228]]
    star = render_scene(Scene(1, (Thing("star", "red", 5),), 1))[0]
    np.testing.assert_allclose(star[20:24, 24:28, 0].astype(int), red, atol=1)


def test_frames_of_a_scene_are_near_duplicates() -> None:
    """Within a scene frames move by little; between scenes nearly everything differs."""
    scenes = [render_scene(random_scene(seed)).astype(float) for seed in range(60)]
    within = [np.abs(frames[1:] - frames[:-1]).mean() for frames in scenes]
    between = [np.abs(one[0] - other[0]).mean() for one, other in itertools.pairwise(scenes)]
    assert np.mean(within) < np.mean(between) / 2
    assert min(np.abs(frames[1:] - frames[:-1]).max() for frames in scenes) > 0


def test_a_thing_has_its_color_in_its_cell() -> None:
    for shape, color, cell in itertools.product(SHAPES, COLORS, (0, 6, 15)):
        shown = render_scene(Scene(3, (Thing(shape, color, cell),), 4))
        row, column = divmod(cell, 4)
        middle = shown[:, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16].reshape(-1, 3).astype(float)
        distance = np.abs(middle - np.asarray(COLORS[color])).max(axis=1)
        # At least two dozen pixels of 256, in each frame, come close to the color.
        assert (distance < 40).sum() >= 4 * 24, (shape, color, cell)


def test_shapes_differ() -> None:
    masks = {}
    for shape in SHAPES:
        frames = render_scene(Scene(8, (Thing(shape, "white", 5),), 12)).astype(float)
        masks[shape] = frames[0, 12:36, 12:36].mean(axis=2) > 170
    for one in SHAPES:
        for other in SHAPES:
            overlap = (masks[one] & masks[other]).sum() / (masks[one] | masks[other]).sum()
            assert (overlap > 0.9) == (one == other), (one, other)


def test_render_in_batches() -> None:
    scenes = [random_scene(seed) for seed in range(9)]
    whole = np.concatenate([render_scene(scene) for scene in scenes])
    for batch_size in (1, 7, 64, 1000):
        batches = list(render_scenes(scenes, batch_size))
        assert all(len(batch) == batch_size for batch in batches[:-1])
        assert np.array_equal(np.concatenate(batches), whole)


def test_a_video_file_holds_the_scenes(tmp_path: Path) -> None:
    scenes = [random_scene(seed) for seed in range(6)]
    whole = np.concatenate([render_scene(scene) for scene in scenes]).astype(float)
    assert write_video(tmp_path / "world.mp4", scenes) == len(whole)
    with av.open(tmp_path / "world.mp4") as container:
        assert container.metadata["comment"] == FORMAT_TAG
    stream = stream_frames(tmp_path / "world.mp4")
    assert stream.num_frames == len(whole)
    read = np.concatenate([batch.frames for batch in stream]).astype(float)
    error = np.sqrt(((read - whole) ** 2).mean(axis=(1, 2, 3)))
    assert error.max() < 6  # about the grain; a wrong frame is off by 20 and more


def test_impossible_scenes() -> None:
    for things, frames, message in (
        ((), 0, "at least one frame"),
        ((Thing("star", "red", 16),), 1, "different cells from 0 to 15"),
        ((Thing("star", "red", 1), Thing("moon", "red", 1)), 1, "different cells"),
        ((Thing("cube", "red", 1),), 1, "no such thing in TinyWorld: a red cube"),
        ((Thing("star", "beige", 1),), 1, "no such thing in TinyWorld: a beige star"),
    ):
        with pytest.raises(ValueError, match=message):
            render_scene(Scene(0, things, frames))


# --- Questions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_balanced_and_true(family: str) -> None:
    questions = sample_questions(family, 200, seed=0)
    assert questions == sample_questions(family, 200, seed=0)
    assert questions != sample_questions(family, 200, seed=1)
    for question in questions:
        assert len(question.options) == len(set(question.options)) == round(1 / CHANCE[family])
        assert question.answer == truth(question)
    shapes = Counter(question.shape for question in questions)
    assert set(shapes.values()) == {20}
    places = Counter(question.options.index(question.answer) for question in questions)
    assert max(places.values()) - min(places.get(place, 0) for place in range(len(question.options))) <= 1


def truth(question) -> str:
    """The answer, read off the scenes."""
    seen = [[(thing.shape, thing.color) for thing in scene.things] for scene in question.needles]
    colors = [color for things in seen for shape, color in things if shape == question.shape]
    companions = [shape for things in seen for shape, _ in things if shape != question.shape]
    match question.family:
        case "attribute":
            return colors[0]
        case "companion":
            return companions[0]
        case "roll call":
            assert len(set(colors)) == 7
            assert all(2 <= count <= 3 for count in Counter(colors).values())
            return next(color for color in COLORS if color not in colors)
        case "two needles":
            return " and ".join(sorted(colors, key=list(COLORS).index))
        case "two companions":
            return " and ".join(sorted(companions, key=SHAPES.index))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_question_alone_does_not_give_the_answer(family: str) -> None:
    """The best a model can do that has learned by heart which answer a text mostly has."""
    seen = defaultdict(Counter)
    for question in sample_questions(family, 3000, seed=0, split="train"):
        seen[question.text][question.answer] += 1
    asked = sample_questions(family, 3000, seed=0, split="test")
    right = sum(seen[question.text].most_common(1)[0][0] == question.answer for question in asked)
    # Four standard errors of a guess; the most common answer of a text is common by chance.
    chance = CHANCE[family]
    assert abs(right / len(asked) - chance) < 4 * np.sqrt(chance * (1 - chance) / len(asked))


def test_splits_never_share_a_scene() -> None:
    for family in FAMILIES:
        for split, parity in (("train", 0), ("test", 1)):
            haystack = hide(sample_questions(family, 1, 0, split)[0], 512, 0.5, 0, split)
            assert {scene.seed % 2 for scene in haystack.scenes} == {parity}


def test_bad_questions() -> None:
    for asked, message in (
        (("riddle", 1, 0), "family must be one of"),
        (("attribute", 0, 0), "count must be"),
        (("attribute", 1, 0, "validation"), "split must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            sample_questions(*asked)


# --- Haystacks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_frames", [256, 2048])
@pytest.mark.parametrize("depth", [0, 0.3, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_needles_are_where_they_are_said_to_be(family: str, depth: float, num_frames: int) -> None:
    (question,) = sample_questions(family, 1, seed=4)
    haystack = hide(question, num_frames, depth, seed=2)
    assert haystack == hide(question, num_frames, depth, seed=2)
    frames = [scene for scene in haystack.scenes for _ in range(scene.num_frames)]
    assert len(frames) == num_frames
    for needle, (start, stop) in zip(question.needles, haystack.needle_frames, strict=True):
        assert frames[start:stop] == [needle] * needle.num_frames
    shown = [number for number, scene in enumerate(frames) if any(t.shape == question.shape for t in scene.things)]
    assert shown == sorted(number for start, stop in haystack.needle_frames for number in range(start, stop))
    start, stop = haystack.needle_frames[0]
    if len(question.needles) <= 2:
        # Another needle may stand before it.
        assert abs(start - depth * (num_frames - (stop - start))) <= 6 + 12
    else:
        assert max(b - a for (a, _), (b, _) in itertools.pairwise(haystack.needle_frames)) < 512


def test_distractors_share_colors_and_companions() -> None:
    """Nothing but the shape in question tells a needle from the hay."""
    (question,) = sample_questions("companion", 1, seed=0)
    haystack = hide(question, 2048, 0.5, seed=0)
    hay = [thing for scene in haystack.scenes if scene not in question.needles for thing in scene.things]
    assert {thing.shape for thing in hay} == set(SHAPES) - {question.shape}
    assert {thing.color for thing in hay} == set(COLORS)


def test_impossible_haystacks() -> None:
    (question,) = sample_questions("roll call", 1, seed=0)
    with pytest.raises(ValueError, match="20 frames can't hold"):
        hide(question, 20, 0.5, 0)
    with pytest.raises(ValueError, match="depth must lie from 0 to 1"):
        hide(question, 512, 1.5, 0)


def test_save_writes_video_and_description(tmp_path: Path) -> None:
    (question,) = sample_questions("attribute", 1, seed=0)
    haystack = hide(question, 64, 0.5, seed=0)
    about = json.loads(save(haystack, tmp_path / "needle.mp4").read_text())
    assert about["question"] == question.text
    assert about["answer"] in about["options"]
    assert about["num_frames"] == stream_frames(tmp_path / "needle.mp4").num_frames == 64
    assert about["needle_frames"] == [list(span) for span in haystack.needle_frames]
