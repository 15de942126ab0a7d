"""A long TinyWorld video, made once and kept: ten thousand frames at one per second are 2 hours and 46 minutes.

It is made in parts, so that an interrupted run goes on where it was, and the parts are joined without encoding again.
Beside X.mp4 stands X.json: the question, its needles, and the file's SHA-256.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
from filelock import FileLock

from vilamp_lite.common.files import write_json, written_whole
from vilamp_lite.common.fingerprints import file_sha256
from vilamp_lite.common.progress import progress_bar
from vilamp_lite.tinyworld.haystack import Haystack, describe_haystack, hide
from vilamp_lite.tinyworld.questions import sample_questions
from vilamp_lite.tinyworld.render import FORMAT_TAG, Scene, is_tinyworld, write_video
from vilamp_lite.video.source import probe

PART_FRAMES = 1000  # at least; a part ends with a scene


@dataclass(frozen=True)
class LongVideo:
    """A video on disk and what it hides.

    Attributes:
        path: the file, one frame per second.
        haystack: its scenes, the question, and where the needles are.
    """

    path: Path
    haystack: Haystack


def long_video(
    folder: Path, num_frames: int, depth: float = 0.5, family: str = "attribute", seed: int = 0
) -> LongVideo:
    """Make a needle in a haystack of any length, or find the one that was made before.

    A file whose checksum is not the recorded one, or that hides something else, is made anew; while one process makes
    it, others wait. The same arguments draw the same pictures anywhere; x264 stores them in other bytes from run to
    run, a little differently.

    Memory: one scene.

    Args:
        folder: where videos are kept.
        num_frames: N, one per second.
        depth: of the needle, from 0 to 1.
        family: of the question, in `FAMILIES`.
        seed: of the question and the haystack.

    Raises:
        ValueError: something else has the video's name, or one of its parts'.
        OSError: the folder can't be written to; finished parts are kept.
    """
    (question,) = sample_questions(family, 1, seed)
    haystack = hide(question, num_frames, depth, seed)
    path = folder / f"{family.replace(' ', '_')}-{num_frames}-depth{float(depth)}-seed{seed}.mp4"
    about = describe_haystack(haystack, path, num_frames)
    if not _is_intact(path, about):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not _is_intact(path, about):
                _make(haystack, num_frames, path, about)
    return LongVideo(path, haystack)


def _make(haystack: Haystack, num_frames: int, path: Path, about: dict[str, Any]) -> None:
    description, folder = path.with_suffix(".json"), path.with_suffix(".parts")
    for file, other in ((path, description), (description, path)):
        if file.exists() and not _is_ours(file) and not _is_ours(other):
            raise ValueError(f"{file} is there, and no TinyWorld video: choose another folder")
    folder.mkdir(exist_ok=True)
    parts = _write_parts(haystack.scenes, num_frames, folder)
    _join(parts, path)
    write_json(description, about | {"sha256": file_sha256(path)})
    for part in parts:
        part.unlink()
    with suppress(OSError):  # others' files stay in it
        folder.rmdir()


def _is_ours(file: Path) -> bool:
    """Tell whether a file is one of ours, however damaged: a TinyWorld video, or what stands beside one."""
    try:
        if file.suffix == ".mp4":
            return is_tinyworld(probe(file))
        return "needle_frames" in json.loads(file.read_text())
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def _is_intact(path: Path, about: dict[str, Any]) -> bool:
    try:
        found = json.loads(path.with_suffix(".json").read_text())
        return found == json.loads(json.dumps(about)) | {"sha256": file_sha256(path)}
    except (OSError, ValueError, RecursionError):
        return False


def _write_parts(scenes: Iterable[Scene], num_frames: int, folder: Path) -> list[Path]:
    """Write the parts that are not there yet; all of them, in order."""
    paths = []
    with progress_bar(num_frames, "frames", "draw the video") as bar:
        for number, part in enumerate(_in_parts(scenes)):
            paths.append(folder / f"{number:06d}.mp4")
            if not paths[-1].exists():
                write_video(paths[-1], part)
            elif not _is_ours(paths[-1]):
                raise ValueError(f"{paths[-1]} is there, and no part of a TinyWorld video: choose another folder")
            bar.update(sum(scene.num_frames for scene in part))
    return paths


def _in_parts(scenes: Iterable[Scene]) -> Iterator[list[Scene]]:
    part: list[Scene] = []
    for scene in scenes:
        part.append(scene)
        if sum(one.num_frames for one in part) >= PART_FRAMES:
            yield part
            part = []
    if part:
        yield part


def _join(parts: list[Path], path: Path) -> None:
    """Put the parts' packets one after the other into one file; all were encoded alike."""
    with written_whole(path) as waiting, av.open(waiting, "w", options={"movflags": "+faststart"}) as joined:
        joined.metadata["comment"] = FORMAT_TAG
        stream, seconds = None, 0
        for part in parts:
            with av.open(part) as source:
                (video,) = source.streams.video
                stream = stream or joined.add_stream_from_template(video)
                start = round(seconds / video.time_base)
                for packet in source.demux(video):
                    if packet.pts is None:  # the end
                        continue
                    packet.pts, packet.dts = packet.pts + start, packet.dts + start
                    packet.stream = stream
                    joined.mux(packet)
                seconds += video.frames
