"""PhotoScene labels, ranks, hits and coverage."""

import json
from pathlib import Path

import numpy as np
import pytest

from vilamp_lite.evaluation.scenes import (
    PhotoScene,
    coverage,
    hit_at,
    load_scenes,
    queries_of,
    rank_of_photo,
    scene_of_frames,
)

SCENES = [
    PhotoScene("cat", "A cat", 0.0, 5.5, ("a cat", "where is it?")),
    PhotoScene("rocket", "A rocket", 5.5, 9.0, ("a rocket",)),
    PhotoScene("cat", "The cat again", 9.0, 12.0, ("a cat", "whiskers")),
]
PHOTOS = np.array(["cat", "cat", "rocket", "cat", "moon"])


def test_the_tours_scenes_load() -> None:
    scenes = load_scenes(Path(__file__).resolve().parents[1] / "data" / "photo_tour.json")
    assert len(scenes) == 15
    assert scene_of_frames(scenes, np.arange(120)).tolist() == sorted(scene_of_frames(scenes, np.arange(120)))


def test_scene_of_frames() -> None:
    assert scene_of_frames(SCENES, np.array([0.0, 5.4, 5.5, 8.9, 9.0, 11.9])).tolist() == [0, 0, 1, 1, 2, 2]
    for outside in (-0.1, 12.0, float("nan")):
        with pytest.raises(ValueError, match="outside the scenes"):
            scene_of_frames(SCENES, np.array([1.0, outside]))


def test_queries_are_asked_once() -> None:
    assert queries_of(SCENES) == [
        ("a cat", "cat"),
        ("where is it?", "cat"),
        ("a rocket", "rocket"),
        ("whiskers", "cat"),
    ]


def test_rank_goes_by_the_best_frame() -> None:
    relevance = np.array([0.1, 0.2, 0.5, 0.6, 0.4])
    assert [rank_of_photo(relevance, PHOTOS, photo) for photo in ("cat", "rocket", "moon")] == [1, 2, 3]
    with pytest.raises(ValueError, match="no frame shows 'dog'"):
        rank_of_photo(relevance, PHOTOS, "dog")


def test_hits_and_coverage() -> None:
    order = np.array([4, 0, 2])
    assert [hit_at(order, PHOTOS, "rocket", k) for k in (1, 2, 3, 9)] == [False, False, True, True]
    assert hit_at(order, PHOTOS, "moon", 1)
    assert coverage(order, PHOTOS) == 1
    assert coverage(np.array([0, 1, 3]), PHOTOS) == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="k must be an integer"):
        hit_at(order, PHOTOS, "moon", 0)


def test_bad_files_are_named(tmp_path: Path) -> None:
    for text in ("", "[]", '{"scenes": [{"photo": "cat"}]}', '{"scenes": "cat"}'):
        path = tmp_path / "scenes.json"
        path.write_text(text)
        with pytest.raises(ValueError, match=r"scenes\.json is not a list of scenes"):
            load_scenes(path)
    with pytest.raises(ValueError, match=r"missing\.json"):
        load_scenes(tmp_path / "missing.json")
    scene = {"photo": "cat", "title": "A cat", "start": 0, "end": 5, "queries": ["a cat"]}
    for change in ({"start": 4}, {"start": 6}, {"end": 5}, {"end": float("nan")}):
        (tmp_path / "gap.json").write_text(json.dumps({"scenes": [scene, scene | {"start": 5, "end": 9} | change]}))
        with pytest.raises(ValueError, match="without gaps"):
            load_scenes(tmp_path / "gap.json")


def test_bad_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="relevance holds NaN"):
        rank_of_photo(np.array([0.1, np.nan, 0.2, 0.3, 0.4]), PHOTOS, "cat")
    for keyframes, groups in (([5], PHOTOS), ([-1], PHOTOS), ([], PHOTOS[:0])):
        with pytest.raises(ValueError, match="keyframes must lie among"):
            coverage(np.array(keyframes), groups)
    with pytest.raises(ValueError, match="scenes is empty"):
        scene_of_frames([], np.array([0.0]))
