"""Long videos: the frames that were asked for, resumed where they were stopped, made anew when damaged."""

import hashlib
import json
import os
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from vilamp_lite.tinyworld import long_videos as module
from vilamp_lite.tinyworld.long_videos import long_video
from vilamp_lite.tinyworld.render import is_tinyworld, render_scenes, write_video
from vilamp_lite.video.source import probe, stream_frames

FRAMES = 150


@pytest.fixture(autouse=True)
def _short_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PART_FRAMES", 40)


def decoded(path: Path) -> np.ndarray:
    return np.concatenate([batch.frames for batch in stream_frames(path)])


def same_video(one: Path, other: Path) -> bool:
    """Every frame shows the same, up to what x264 makes of it."""
    difference = np.abs(decoded(one).astype(int) - decoded(other))
    return difference.shape[0] == FRAMES and difference.mean(axis=(1, 2, 3)).max() < 3


def test_the_joined_file_shows_every_scene_in_time(tmp_path: Path) -> None:
    video = long_video(tmp_path, FRAMES, 0.7, seed=3)
    assert probe(video.path).num_frames == FRAMES
    assert is_tinyworld(probe(video.path))
    (batch,) = stream_frames(video.path, batch_size=FRAMES)
    assert batch.timestamps.tolist() == list(range(FRAMES))
    drawn = np.concatenate(list(render_scenes(video.haystack.scenes)))
    assert np.abs(batch.frames.astype(int) - drawn).mean(axis=(1, 2, 3)).max() < 3
    # No part is shifted: each frame is nearer to its own drawing than to its neighbours' across a scene's border.
    for scene_start in np.cumsum([scene.num_frames for scene in video.haystack.scenes])[:-1]:
        own = np.abs(batch.frames[scene_start].astype(int) - drawn[scene_start]).mean()
        assert own < np.abs(batch.frames[scene_start].astype(int) - drawn[scene_start - 1]).mean()
    ((start, stop),) = video.haystack.needle_frames
    assert 0.5 < start / FRAMES < 0.9
    about = json.loads(video.path.with_suffix(".json").read_text())
    assert about["needle_frames"] == [[start, stop]]
    assert {path.suffix for path in tmp_path.iterdir()} == {".mp4", ".json", ".lock"}


def test_killed_and_resumed_to_the_same_video(tmp_path: Path) -> None:
    whole = long_video(tmp_path / "whole", FRAMES)
    folder = tmp_path / "killed"
    for delay in (0.02, 0.06, 0.15):
        child = os.fork()
        if not child:
            long_video(folder, FRAMES)
            os._exit(0)
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert same_video(long_video(folder, FRAMES).path, whole.path)
    assert {path.suffix for path in folder.iterdir()} == {".mp4", ".json", ".lock"}


def test_finished_parts_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    def stopped_at_the_third(path: Path, scenes: list) -> int:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        return write_video(path, scenes)

    monkeypatch.setattr(module, "write_video", stopped_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        long_video(tmp_path, FRAMES)
    (parts,) = tmp_path.glob("*.parts")
    assert sorted(path.name for path in parts.iterdir()) == ["000000.mp4", "000001.mp4"]
    monkeypatch.setattr(module, "write_video", lambda path, scenes: written.append(path) or write_video(path, scenes))
    long_video(tmp_path, FRAMES)
    assert not parts.exists()
    assert len(written) == 4


def test_a_video_is_made_once_and_a_damaged_one_anew(tmp_path: Path) -> None:
    path = long_video(tmp_path, FRAMES).path
    content, made = path.read_bytes(), path.stat().st_mtime_ns
    assert long_video(tmp_path, FRAMES).path.stat().st_mtime_ns == made
    (tmp_path / "whole.mp4").write_bytes(content)
    path.write_bytes(content[:-100] + bytes(100))
    assert same_video(long_video(tmp_path, FRAMES).path, tmp_path / "whole.mp4")
    path.with_suffix(".json").write_text("{")
    assert same_video(long_video(tmp_path, FRAMES).path, tmp_path / "whole.mp4")
    checksum = json.loads(path.with_suffix(".json").read_text())["sha256"]
    assert checksum == hashlib.sha256(path.read_bytes()).hexdigest()
    about = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps(about | {"question": "of an earlier version?"}))
    long_video(tmp_path, FRAMES)
    assert json.loads(path.with_suffix(".json").read_text())["question"] == about["question"]
    assert path.stat().st_mtime_ns > made
    paths = [long_video(tmp_path, FRAMES, **other).path for other in ({"seed": 1}, {"depth": 0.5000001})]
    assert len({path, *paths}) == 3


def test_files_of_others_are_refused_and_stay(tmp_path: Path) -> None:
    path = long_video(tmp_path / "made", FRAMES).path
    strangers = {path.name: b"mine", path.with_suffix(".json").name: b'{"mine": 1}'}
    strangers |= {f"{path.stem}.parts/000000.mp4": b"mine"}
    for name, content in strangers.items():
        file = tmp_path / "folder" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        with pytest.raises(ValueError, match=f"{file.name} is there, and no"):
            long_video(tmp_path / "folder", FRAMES)
        assert file.read_bytes() == content
        file.unlink()
    notes = file.with_name("notes.txt")
    notes.write_text("mine")
    long_video(tmp_path / "folder", FRAMES)
    assert [file.name for file in notes.parent.iterdir()] == ["notes.txt"]


def test_whoever_waits_takes_the_video_that_the_other_made(tmp_path: Path) -> None:
    made = long_video(tmp_path / "made", FRAMES).path
    path = tmp_path / "wanted" / made.name
    path.parent.mkdir()
    with ThreadPoolExecutor(1) as pool:
        with FileLock(path.with_suffix(".lock")):
            waiting = pool.submit(long_video, path.parent, FRAMES)
            time.sleep(1)  # more than it takes to make it
            assert not waiting.done()
            assert {file.suffix for file in path.parent.iterdir()} == {".lock"}  # it does not begin beside the other
            for file in (made, made.with_suffix(".json")):
                shutil.copy(file, path.parent)
            copied = path.stat().st_mtime_ns
        assert waiting.result().path == path
    assert path.stat().st_mtime_ns == copied
