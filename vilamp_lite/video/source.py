"""Video files in, sampled frames out: one forward pass, the memory of one batch.

The paper reads its videos at one frame per second. `SampledVideo` samples by timestamp, so the answer is right for
29.97 fps, for variable rates and for edited files, and every pass returns every planned sample or raises `VideoError`.
Frames that a file lost are told of wherever the file itself tells of them; `claims` asks it.

A scan reads the packets without decoding them (about 1 % of the cost of decoding). It yields the presentation time of
every frame, so that the frames to deliver are known, and a file cut short is refused, before decoding starts.

>>> video = SampledVideo("talk.mp4", fps=1.0, max_frames=10_000)  # doctest: +SKIP
>>> for frames, indices, timestamps in video.batches():  # doctest: +SKIP
...     embeds = encoder.encode_frames(frames)
"""

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from fractions import Fraction
from itertools import islice
from numbers import Real
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np

from vilamp_lite.common.checks import choice, positive_int
from vilamp_lite.video.ahead import ClosableIterator
from vilamp_lite.video.decoding import Pictures, PyAVFile, read_timeline
from vilamp_lite.video.decord import DecordFile
from vilamp_lite.video.display import BATCH_BYTES, MAX_PIXELS, Size, resized
from vilamp_lite.video.timeline import VideoInfo, plan_samples

Backend = Literal["auto", "decord", "pyav"]
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


@runtime_checkable
class FrameSource(Protocol):
    """Frames in temporal order that can be read more than once: what `encode_video` takes beside a path.

    Attributes:
        num_frames: N.
    """

    num_frames: int

    def batches(self, batch_size: int) -> ClosableIterator[FrameBatch]:
        """All N frames in order, up to `batch_size` at a time; a new pass each time."""
        ...

    def at(self, samples: Sequence[int]) -> np.ndarray:
        """A few of them in any order, uint8 [len(samples), H, W, 3]."""
        ...


class SampledVideo:
    """A video file sampled by timestamp: scanned and planned once, read as often as one likes.

    Sample i is the frame nearest to i / fps seconds after the first frame (of two equally near, the earlier), for
    every i / fps below the video's duration. Where the video has fewer frames than are asked for, frames repeat; but a
    clock that jumps by more than two hours without a picture is warned of, and nothing is sampled in that gap.

    Attributes:
        info: What the file holds.
        num_frames: Samples, known before anything but the first frame is decoded.
        fps: Samples per second of video.
        max_frames: The most samples that were asked for, or None.
        size: Height and width that the pictures are resized to, or None.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        fps: float = 1.0,
        max_frames: int | None = None,
        size: tuple[int, int] | None = None,
        backend: Backend = "auto",
    ) -> None:
        """Scan the file.

        Args:
            path: The video file.
            fps: Samples per second of video, from 1e-6 to 1000.
            max_frames: Keep at most this many samples, spread evenly over the whole video; the others aren't decoded
                into pictures.
            size: Height and width to resize the pictures to (bicubic); as players show them when left out.
            backend: "pyav", "decord", or "auto", which is PyAV: unlike decord it notices damage inside a frame, it
                needs less memory, and it is about as fast.

        Raises:
            VideoError: If the file can't be read, is cut short, or isn't one that the backend reads correctly.
        """
        path, rate = _checked_path(path), _checked_fps(fps)
        self.fps = float(fps)
        self.max_frames = None if max_frames is None else positive_int("max_frames", max_frames)
        self.size = None if size is None else _checked_size(size)
        choice("backend", backend, ("auto", "decord", "pyav"))
        timeline = read_timeline(path)
        self.info: VideoInfo = timeline.info
        self._timeline, self._plan = timeline, plan_samples(timeline, rate, self.max_frames)
        self._file = DecordFile(timeline) if backend == "decord" else PyAVFile(timeline)
        self.num_frames = len(self._plan.positions)

    def batches(self, batch_size: int = 32) -> FrameStream:
        """Start a pass over all samples, in order, `batch_size` at a time.

        The last batch may hold fewer, and so do all of them where that many pictures took more than 256 MB.

        Raises:
            VideoError: Where it gets to too much damage, or the file has changed since it was scanned.

        Warns:
            UserWarning: If damaged packets were skipped; the nearest intact frame, at most max(1, 1 / fps) seconds
                away, stands in for a lost one.
        """
        height, width = self._shape
        rows = min(positive_int("batch_size", batch_size), BATCH_BYTES // (height * width * 3))
        batches = self._batches(self._file.pictures(self._plan), rows)
        return FrameStream(batches, self.num_frames, self.info)

    def at(self, samples: Sequence[int]) -> np.ndarray:
        """Collect a few samples, such as the keyframes, uint8 [len(samples), H, W, 3].

        Nothing after the last of them is decoded.

        Args:
            samples: Numbers of the samples, 0 for the first, in any order.
        """
        try:
            wanted = np.asarray(samples)
        except ValueError:
            wanted = np.empty(0)
        if wanted.ndim != 1 or not len(wanted) or not np.issubdtype(wanted.dtype, np.integer) or wanted.min() < 0:
            raise ValueError(f"samples must be a non-empty list of sample numbers, got {samples!r}")
        if wanted.max() >= self.num_frames:
            raise ValueError(f"samples must lie in 0…{self.num_frames - 1} with this sampling, got {wanted.max()}")
        few, copies = np.unique(wanted, return_inverse=True)
        with closing(self._file.pictures(self._plan.of(few), leave_open=True)) as pictures:
            frames = np.empty((len(few), *self._shape, 3), np.uint8)
            for row, (picture, _) in enumerate(pictures):
                frames[row] = resized(picture, self._shape)
        return frames if np.array_equal(few, wanted) else frames[copies]

    def _batches(self, pictures: Pictures, batch_size: int) -> Generator[FrameBatch, None, None]:
        try:
            for start in range(0, self.num_frames, batch_size):
                rows = min(batch_size, self.num_frames - start)
                frames = np.empty((rows, *self._shape, 3), np.uint8)
                positions = np.empty(rows, np.int64)
                for row, (picture, position) in enumerate(islice(pictures, rows)):
                    frames[row] = resized(picture, self._shape)
                    positions[row] = position
                if start + rows == self.num_frames:
                    pictures.close()  # before the last batch: who knows their number won't ask for another
                yield FrameBatch(frames, positions, self._timeline.seconds(self._timeline.ticks[positions]))
        finally:
            pictures.close()

    @property
    def _shape(self) -> Size:
        return self.size or (self.info.height, self.info.width)


def sampled(video: str | os.PathLike[str] | FrameSource, *, default_fps: float = 1.0, **sampling: Any) -> FrameSource:
    """A file as it is asked to be sampled, with `default_fps` where no rate is; another source as it is."""
    asked = {name: value for name, value in sampling.items() if value is not None}
    if not isinstance(video, FrameSource):
        return SampledVideo(video, **({"fps": default_fps} | asked))
    if asked:
        raise ValueError(f"{', '.join(asked)} can't be chosen any more: a {type(video).__name__} is sampled already")
    return video


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """Describe a video file without decoding more than its first frame; frames are counted, since headers lie.

    Raises:
        VideoError: If the file can't be read, holds no video, or is cut short.
    """
    return read_timeline(_checked_path(path)).info


def stream_frames(path: str | os.PathLike[str], *, batch_size: int = 32, **sampling: Any) -> FrameStream:
    """Sample a video by timestamp and stream the pictures in order: `SampledVideo(…).batches(…)`, which see.

    A file that can't be read, or bad options, are refused by the call; damage is, where the iterator gets there.
    """
    return SampledVideo(path, **sampling).batches(batch_size)


def frames_at(path: str | os.PathLike[str], samples: Sequence[int], **sampling: Any) -> np.ndarray:
    """Collect a few samples of a video, uint8 [len(samples), H, W, 3]: `SampledVideo(…).at(…)`, which see.

    With the same sampling, sample n is the n-th of `stream_frames`.
    """
    return SampledVideo(path, **sampling).at(samples)


def _checked_path(path: Any) -> Path:
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise ValueError(f"path must be a non-empty str or os.PathLike, got {path!r}")
    return Path(path)


def _checked_fps(fps: Any) -> Fraction:
    if isinstance(fps, bool) or not isinstance(fps, Real) or not _MIN_FPS <= fps <= _MAX_FPS:
        raise ValueError(f"fps must be a number from {_MIN_FPS:g} to {_MAX_FPS}, got {fps!r}")
    # By its decimals: the float 0.1 is a little more than 1/10, and would add a 13th sample to two minutes.
    return fps if isinstance(fps, Fraction) else Fraction(repr(float(fps)))


def _checked_size(size: Any) -> tuple[int, int]:
    if not isinstance(size, tuple | list) or len(size) != 2:
        raise ValueError(f"size must be a pair (height, width), got {size!r}")
    height, width = positive_int("size[0] (height)", size[0]), positive_int("size[1] (width)", size[1])
    if height * width > MAX_PIXELS:
        raise ValueError(f"size must be of at most {MAX_PIXELS:,} pixels, got {size!r}")
    return height, width
