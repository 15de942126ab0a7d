"""The photo tour is what its description and its README say, and can be made again."""

import json
import re
import runpy
from collections import Counter
from itertools import islice, pairwise
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

DATA = Path(__file__).parents[1] / "data"
VIDEO = DATA / "photo_tour.mp4"


@pytest.fixture(scope="module")
def tour():
    return json.loads((DATA / "photo_tour.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def maker():
    pytest.importorskip("skimage")  # it holds the photographs and comes with the extra [dev]
    return SimpleNamespace(**runpy.run_path(str(DATA / "make_photo_tour.py")))


def decode(path):
    with av.open(path) as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24")


def psnr(a, b):
    error = np.mean((a.astype(np.float32) - b) ** 2)
    return 10 * np.log10(255**2 / max(error, 1e-6))


def test_container():
    assert VIDEO.stat().st_size < 6_000_000
    with av.open(VIDEO) as container:
        (stream,) = container.streams
        context = stream.codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        assert (context.width, context.height) == (640, 360)
        assert (context.colorspace, context.color_range) == (1, 1)  # BT.709, limited range
        assert stream.average_rate == 30
        assert stream.frames == 3600
        assert stream.duration * stream.time_base == 120
        packets = [packet for packet in container.demux(stream) if packet.size]
    assert len(packets) == 3600
    keyframes = sorted(packet.pts * packet.time_base for packet in packets if packet.is_keyframe)
    assert max(b - a for a, b in pairwise([*keyframes, 120])) <= 2


def test_scenes_tile_the_video_and_every_photo_has_its_own_queries(tour, maker):
    scenes = tour["scenes"]
    assert tour == maker.describe()
    assert (tour["video"], tour["fps"], tour["duration"]) == (VIDEO.name, 30, 120)
    assert [scene["scene"] for scene in scenes] == list(range(len(scenes)))
    assert (scenes[0]["start"], scenes[-1]["end"]) == (0, 120)
    for one, following in pairwise(scenes):
        assert one["end"] == following["start"]
        assert one["photo"] != following["photo"]
    times_shown = Counter(scene["photo"] for scene in scenes)
    assert len(times_shown) >= 12
    assert sorted(times_shown.values())[-3:] == [1, 2, 2]
    owners = {(query, scene["photo"]) for scene in scenes for query in scene["queries"]}
    assert len(owners) == len({query for query, _ in owners})
    for scene in scenes:
        assert 5 <= scene["end"] - scene["start"] <= 12
        assert (scene["end"] * 30).is_integer()
        assert sum(scene["start"] <= second < scene["end"] for second in range(120)) >= 5
        assert len(scene["queries"]) == len(set(scene["queries"])) == 3
        assert all(text.strip() for text in (scene["title"], *scene["queries"]))


def test_readme_gives_every_licence(tour, maker):
    rows = [line for line in (DATA / "README.md").read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    licences = {cells[1].strip(): cells[5] for cells in (row.split("|") for row in rows) if len(cells) == 7}
    for photo in {scene["photo"] for scene in tour["scenes"]}:
        assert re.search(r"CC0|CC BY 2\.0|public domain", licences[photo]), photo
        assert any(f"{maker.PHOTOS[photo].package}/{maker.PHOTOS[photo].path}" in row for row in rows), photo


def test_cuts_are_where_the_description_says(tour):
    with av.open(VIDEO) as container:
        luma = np.stack([frame.to_ndarray()[:360:4, ::4] for frame in container.decode(video=0)])
    change = np.abs(np.diff(luma.astype(np.int16), axis=0)).mean(axis=(1, 2))
    cuts = np.array([round(scene["start"] * 30) - 1 for scene in tour["scenes"][1:]])
    within = np.delete(change, cuts)
    assert change[cuts].min() > 2 * within.max()


def test_making_it_again_gives_the_same_frames(maker, tmp_path):
    # Only the first eleven seconds, for time: one scene, a cut, and the start of the next. The encoder looks
    # ahead, so that the last frames of a shorter video differ; they are made and not compared.
    again = tmp_path / "again.mp4"
    maker.encode(islice(maker.render_frames(), 390), again)
    scores = [psnr(a, b) for a, b in islice(zip(decode(again), decode(VIDEO), strict=False), 330)]
    assert min(scores) >= 40


def test_every_scene_starts_with_its_rendered_frame(tour, maker):
    # Against the source, not another encoding: chroma subsampling and compression cost this much.
    sources = {round(entry["start"] * 30): s for entry, s in zip(tour["scenes"], maker.SCENES, strict=True)}
    starts = {index: frame for index, frame in enumerate(decode(VIDEO)) if index in sources}
    scores = [psnr(starts[index], next(maker.render_scene(scene))) for index, scene in sources.items()]
    assert min(scores) >= 30
