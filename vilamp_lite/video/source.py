"""Video files in, sampled frames out: one forward pass, the memory of one batch.

The paper reads its videos at one frame per second. `stream_frames` samples by timestamp, so the answer is right for
29.97 fps, for variable rates and for edited files, and it returns every planned sample or raises `VideoError`: a
video never comes out silently shorter than it is.

A first pass reads the packets without decoding them (about 1 % of the cost of decoding). It yields the presentation
time of every frame, so that the frames to deliver are known, and a file cut short is refused, before decoding starts.

>>> for frames, indices, timestamps in stream_frames("talk.mp4", fps=1.0, max_frames=10_000):  # doctest: +SKIP
...     embeds = encoder.encode_frames(frames)
"""

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from fractions import Fraction
from itertools import islice
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from vilamp_lite.video.decoding import Damage, Pictures, intact_frames, pyav_pictures, upright
from vilamp_lite.video.decord import decord_pictures, open_with_decord
from vilamp_lite.video.timeline import (
    Timeline,
    VideoError,
    VideoInfo,
    opened,
    plan_samples,
    refuse_cut_file,
    scan_packets,
    usual_step,
)

Backend = Literal["auto", "decord", "pyav"]


_BACKENDS = ("auto", "decord", "pyav")


_MIN_FPS, _MAX_FPS = 1e-6, 1000


class FrameBatch(NamedTuple):
    """Consecutive samples of a video.

    Attributes:
        frames: RGB pictures, uint8 [B, H, W, 3].
        indices: Position of each picture among the file's frames in order of presentation, int64 [B].
        timestamps: Presentation time of each picture, seconds from the video's first frame, float64 [B].
    """

    frames: np.ndarray
    indices: np.ndarray
    timestamps: np.ndarray


class FrameStream(Iterator[FrameBatch]):
    """The samples of a video, a batch at a time; made by `stream_frames`, before anything is decoded.

    Attributes:
        num_frames: Samples in all batches together.
        info: What the file holds.
    """

    def __init__(self, batches: Generator[FrameBatch, None, None], num_frames: int, info: VideoInfo):
        self.num_frames = num_frames
        self.info = info
        self._batches = batches

    def __next__(self) -> FrameBatch:
        return next(self._batches)

    def close(self) -> None:
        """End the stream early and close the file."""
        self._batches.close()


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """Describe a video file without decoding more than one frame.

    Args:
        path: The video file.

    Returns:
        Its length, rate, displayed size and codec. The frames are counted packet by packet, since headers lie.

    Raises:
        ValueError: If `path` isn't a path.
        VideoError: If the file can't be read, holds no video, or is cut short.
    """
    return read_timeline(_checked_path(path)).info


def stream_frames(
    path: str | os.PathLike[str],
    *,
    fps: float = 1.0,
    max_frames: int | None = None,
    batch_size: int = 32,
    size: tuple[int, int] | None = None,
    backend: Backend = "auto",
) -> FrameStream:
    """Sample a video by timestamp and stream the pictures in order.

    Sample i is the frame nearest to i / fps seconds after the first frame (of two equally near, the earlier), for
    every i / fps below the video's duration. Where the video has fewer frames than are asked for, frames repeat.

    Args:
        path: The video file.
        fps: Samples per second of video, from 1e-6 to 1000.
        max_frames: Keep at most this many samples, spread evenly over the whole video; the others aren't decoded
            into pictures.
        batch_size: Samples per batch; the last batch may hold fewer.
        size: Height and width to resize the pictures to (bicubic); as stored when left out.
        backend: "pyav", "decord", or "auto", which is PyAV: unlike decord it notices damage inside a frame, it needs
            less memory, and it is about as fast.

    Returns:
        An iterator over batches. Together they hold exactly the planned samples, `num_frames` of them.

    Raises:
        ValueError: If an argument makes no sense. Raised by the call, before the first batch.
        VideoError: If the file can't be read, is cut short, or isn't one that the backend reads correctly (raised
            by the call), or if too much of it is damaged (raised by the iterator when it gets there).

    Warns:
        UserWarning: If damaged packets were skipped; the nearest intact frame, at most max(1, 1 / fps) seconds
            away, stands in for a lost one.
    """
    path = _checked_path(path)
    fps = _checked_fps(fps)
    max_frames = None if max_frames is None else _checked_count("max_frames", max_frames)
    batch_size = _checked_count("batch_size", batch_size)
    size = None if size is None else _checked_size(size)
    if backend not in _BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(_BACKENDS)}, got {backend!r}")

    timeline = read_timeline(path)
    plan = plan_samples(timeline, fps, max_frames)
    if backend == "decord":
        pictures = decord_pictures(open_with_decord(timeline), timeline, plan)
    else:
        pictures = pyav_pictures(timeline, plan)
    count = len(plan.positions)
    return FrameStream(_batched(pictures, timeline, count, batch_size, size), count, timeline.info)


def frames_at(path: str | os.PathLike[str], samples: Sequence[int], **sampling: Any) -> np.ndarray:
    """Collect a few samples of a stream, such as its keyframes; memory holds these and one batch.

    Nothing after the last of them is decoded, but for the rest of its batch.

    Args:
        path: The video file.
        samples: Numbers of the samples, 0 for the first, in any order.
        **sampling: As for `stream_frames`; with the same values, sample n is the stream's n-th.

    Returns:
        Their RGB pictures, uint8 [len(samples), H, W, 3].

    Raises:
        ValueError: If `samples` is empty or holds anything but numbers of samples, or as `stream_frames`. Raised
            before decoding starts.
        VideoError: As `stream_frames`.
    """
    try:
        wanted = np.asarray(samples)
    except ValueError as error:
        raise ValueError(f"samples must be a non-empty list of sample numbers, got {samples!r}") from error
    if wanted.ndim != 1 or not len(wanted) or not np.issubdtype(wanted.dtype, np.integer) or wanted.min() < 0:
        raise ValueError(f"samples must be a non-empty list of sample numbers, got {samples!r}")
    stream, last = stream_frames(path, **sampling), wanted.max()
    if last >= stream.num_frames:
        raise ValueError(f"samples must lie in 0…{stream.num_frames - 1} with this sampling, got {last}")
    pictures, start = {}, 0
    with closing(stream):
        while start <= last:
            frames = next(stream).frames
            here = np.unique(wanted[(wanted >= start) & (wanted < start + len(frames))])
            pictures |= {int(n): frames[n - start].copy() for n in here}
            start += len(frames)
    return np.stack([pictures[int(n)] for n in wanted])


def _checked_path(path: Any) -> Path:
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise ValueError(f"path must be a non-empty str or os.PathLike, got {path!r}")
    return Path(path)


def _checked_fps(fps: Any) -> Fraction:
    if isinstance(fps, bool) or not isinstance(fps, Real) or not _MIN_FPS <= fps <= _MAX_FPS:
        raise ValueError(f"fps must be a number from {_MIN_FPS:g} to {_MAX_FPS}, got {fps!r}")
    # By its decimals: the float 0.1 is a little more than 1/10, and would add a 13th sample to two minutes.
    return fps if isinstance(fps, Fraction) else Fraction(repr(float(fps)))


def _checked_count(name: str, count: Any) -> int:
    if isinstance(count, bool) or not isinstance(count, Integral) or count < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {count!r}")
    return int(count)


def _checked_size(size: Any) -> tuple[int, int]:
    if not isinstance(size, tuple | list) or len(size) != 2:
        raise ValueError(f"size must be a pair (height, width), got {size!r}")
    return _checked_count("size[0] (height)", size[0]), _checked_count("size[1] (width)", size[1])


def read_timeline(path: Path) -> Timeline:
    """Scan a file, refuse it if it is cut short, and look at its first frame."""
    with opened(path) as (container, stream):
        scan = scan_packets(path, container, stream)
        if not scan.ticks:
            raise VideoError(f"{path}: its video stream holds no frames with a timestamp; re-encode it with ffmpeg")
        ticks = np.unique(np.array(scan.ticks, np.int64))
        refuse_cut_file(path, container, stream, scan, ticks)
        frame = next(intact_frames(path, Damage()), None)
        if frame is None:
            raise VideoError(f"{path}: none of its {len(ticks)} frames can be decoded; the file is damaged")
        height, width = upright(frame.to_ndarray(format="gray"), frame.rotation).shape
        last = int(ticks[-1])
        end = scan.end if scan.end > last else last + usual_step(ticks, stream)
        length = (end - int(ticks[0])) * stream.time_base
        info = VideoInfo(
            path, float(length), float(len(ticks) / length), len(ticks), width, height, stream.codec.canonical_name
        )
        return Timeline(info, ticks, end, stream.time_base, container.format.name, scan.hidden)


def _batched(
    pictures: Pictures, timeline: Timeline, count: int, batch_size: int, size: tuple[int, int] | None
) -> Generator[FrameBatch, None, None]:
    height, width = size or (timeline.info.height, timeline.info.width)
    try:
        for start in range(0, count, batch_size):
            rows = min(batch_size, count - start)
            frames = np.empty((rows, height, width, 3), np.uint8)
            positions = np.empty(rows, np.int64)
            for row, (picture, position) in enumerate(islice(pictures, rows)):
                frames[row] = _resized(picture, height, width)
                positions[row] = position
            if start + rows == count:
                pictures.close()  # before the last batch: who knows their number won't ask for another
            yield FrameBatch(frames, positions, timeline.seconds(timeline.ticks[positions]))
    finally:
        pictures.close()


def _resized(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize a picture, the same way for either decoder."""
    if picture.shape[:2] == (height, width):
        return picture
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))
