"""Video files in, sampled frames out: one forward pass, the memory of one batch.

The paper reads its videos at one frame per second. `stream_frames` samples by timestamp, so the answer is right for
29.97 fps, for variable rates and for edited files, and it returns every planned sample or raises `VideoError`: a
video never comes out silently shorter than it is.

A first pass reads the packets without decoding them (about 1 % of the cost of decoding). It yields the presentation
time of every frame, so that the frames to deliver are known, and a file cut short is refused, before decoding starts.

>>> for frames, indices, timestamps in stream_frames("talk.mp4", fps=1.0, max_frames=10_000):  # doctest: +SKIP
...     embeds = encoder.encode_frames(frames)
"""

import math
import os
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, islice
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, NamedTuple

import av
import numpy as np
from PIL import Image

Backend = Literal["auto", "decord", "pyav"]

_BACKENDS = ("auto", "decord", "pyav")
_MIN_FPS, _MAX_FPS = 1e-6, 1000
# Containers whose header states the length of the video. For others (MPEG-TS, raw streams) FFmpeg only estimates it
# from the packets, so it can't tell that some are missing.
_LENGTH_IN_HEADER = ("mov", "matroska", "avi", "flv", "asf")
# The codecs that decord 0.6.0 was found to decode like PyAV, to the bit, where every keyframe is a clean start: what
# the first byte of a unit inside such a keyframe says. (Every keyframe of VP9 is one.)
_CLEAN_START = {
    "h264": lambda header: header & 0x1F == 5,  # IDR picture
    "hevc": lambda header: header >> 1 & 0x3F in (19, 20),  # IDR picture, with or without leading ones
    "vp9": None,
}
_DECORD_THREADS = 2
_DECORD_BATCH = 32  # memory: decord holds a batch twice


class VideoError(ValueError):
    """A video file that can't be read in full; the message says which, why, where, and what to do."""


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds.

    Attributes:
        path: The file.
        duration: Seconds from the first frame's start to the last frame's end.
        fps: Average frames per second.
        num_frames: Frames that are shown; frames hidden by an edit list don't count.
        width: Pixels across, as displayed (after rotation).
        height: Pixels down, as displayed (after rotation).
        codec: FFmpeg's name of the codec, such as "h264".
    """

    path: Path
    duration: float
    fps: float
    num_frames: int
    width: int
    height: int
    codec: str


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
    return _read_timeline(_checked_path(path)).info


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

    timeline = _read_timeline(path)
    plan = _plan_samples(timeline, fps, max_frames)
    if backend == "decord":
        pictures = _decord_pictures(_open_with_decord(timeline), timeline, plan)
    else:
        pictures = _pyav_pictures(timeline, plan)
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


# --- Arguments ---------------------------------------------------------------------------------------------------


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


# --- The file's timeline -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Timeline:
    """When each frame of a file is shown.

    Attributes:
        info: Public description of the file.
        ticks: Presentation time of each frame in units of `time_base`, ascending, int64 [N].
        end: When the last frame ends, in the same units.
        time_base: Seconds per tick.
        container: FFmpeg's name of the container.
        hidden: Number of frames that an edit list hides.
    """

    info: VideoInfo
    ticks: np.ndarray
    end: int
    time_base: Fraction
    container: str
    hidden: int

    def seconds(self, ticks: Any) -> Any:
        """Turn ticks into seconds from the first frame."""
        return (ticks - self.ticks[0]) * float(self.time_base)


@dataclass
class _Scan:
    """What the packets of a file say, in the time base of its video stream."""

    ticks: list[int]
    end: int = 0
    hidden: int = 0
    reached: Fraction = Fraction(0)  # seconds, over all streams

    @property
    def packets(self) -> int:
        return len(self.ticks) + self.hidden


def _read_timeline(path: Path) -> _Timeline:
    with _opened(path) as (container, stream):
        scan = _scan_packets(path, container, stream)
        if not scan.ticks:
            raise VideoError(f"{path}: its video stream holds no frames with a timestamp; re-encode it with ffmpeg")
        ticks = np.unique(np.array(scan.ticks, np.int64))
        _refuse_cut_file(path, container, stream, scan, ticks)
        frame = next(_intact_frames(path, _Damage()), None)
        if frame is None:
            raise VideoError(f"{path}: none of its {len(ticks)} frames can be decoded; the file is damaged")
        height, width = _upright(frame.to_ndarray(format="gray"), frame.rotation).shape
        last = int(ticks[-1])
        end = scan.end if scan.end > last else last + _usual_step(ticks, stream)
        length = (end - int(ticks[0])) * stream.time_base
        info = VideoInfo(
            path, float(length), float(len(ticks) / length), len(ticks), width, height, stream.codec.canonical_name
        )
        return _Timeline(info, ticks, end, stream.time_base, container.format.name, scan.hidden)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Open a file and find its video stream."""
    if path.is_dir():
        raise VideoError(f"{path}: is a directory; pass a video file")
    if not path.is_file():
        reason = "is not a regular file" if path.exists() else "no such file"
        raise VideoError(f"{path}: {reason}; pass the path of a video file")
    if not path.stat().st_size:
        raise VideoError(f"{path}: is empty (0 bytes); copy or download it again")
    try:
        # An absolute path, so that FFmpeg never takes part of a file's name for a protocol.
        container = av.open(path.absolute(), metadata_errors="ignore")
    except (av.error.FFmpegError, OSError) as error:
        raise VideoError(
            f"{path}: cannot be opened as a video ({error.strerror}); it is of another kind, damaged, or cut short"
        ) from error
    with container:
        streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
        if container.format.name == "tty":
            raise VideoError(f"{path}: is a text file; pass a video file")  # FFmpeg would show it as a film
        if not streams:
            raise VideoError(f"{path}: has no video stream; pass a file that holds pictures")
        if streams[0].codec_context is None:
            raise VideoError(f"{path}: this build of PyAV can't decode its video; re-encode it as H.264")
        yield container, streams[0]


def _demux(container: av.container.InputContainer, *streams: av.VideoStream) -> Iterator[av.Packet]:
    """Yield the packets that hold data; a container too broken to go on ends early."""
    packets = container.demux(*streams)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, av.error.FFmpegError):
            return
        if packet.size:  # an empty one repeats a frame (AVI), but the decoder would take it for the end
            yield packet


def _tick(packet: av.Packet) -> int | None:
    return packet.dts if packet.pts is None else packet.pts


def _scan_packets(path: Path, container: av.container.InputContainer, stream: av.VideoStream) -> _Scan:
    scan = _Scan([])
    latest = None
    second = 1 / stream.time_base
    ends: dict[int, int] = {}  # of each stream, in its own time base: a fraction for each packet would double the time
    for packet in _demux(container):
        tick = _tick(packet)
        if tick is None:
            continue
        end = tick + (packet.duration or 0)
        index = packet.stream_index
        ends[index] = max(ends.get(index, 0), end)
        if index != stream.index:
            continue
        if latest is not None and packet.dts is not None and latest - packet.dts > second:
            raise VideoError(
                f"{path}: its timestamps run backwards, from {float(latest * stream.time_base):.2f} s to "
                f"{float(packet.dts * stream.time_base):.2f} s (recordings joined, or damage); re-encode it with ffmpeg"
            )
        latest = packet.dts
        if packet.is_discard:
            scan.hidden += 1
        else:
            scan.ticks.append(tick)
            scan.end = max(scan.end, end)
    scan.reached = max((end * container.streams[index].time_base for index, end in ends.items()), default=Fraction(0))
    return scan


def _usual_step(ticks: np.ndarray, stream: av.VideoStream) -> int:
    """Return how long a frame whose packet doesn't say so is shown: the median distance between frames, in ticks."""
    if len(ticks) > 1:
        return int(np.median(np.diff(ticks)))
    return max(1, round(1 / ((stream.guessed_rate or 25) * stream.time_base)))


def _refuse_cut_file(
    path: Path,
    container: av.container.InputContainer,
    stream: av.VideoStream,
    scan: _Scan,
    ticks: np.ndarray,
) -> None:
    """Raise VideoError if the header promises more video than the packets hold."""
    kind = container.format.name
    base = stream.time_base
    if kind.startswith("mov") and stream.frames:
        listed = sum(entry.size > 0 for entry in stream.index_entries)  # the index lists every frame
        if scan.packets >= listed:
            return
        reached, declared = scan.end * base, stream.duration and (stream.start_time + stream.duration) * base
    elif kind.startswith(_LENGTH_IN_HEADER):
        # The video's own length where the header states it; else the file's, in which sound may outlast the pictures.
        if declared := _declared_end(stream):
            reached = scan.end * base
        else:
            reached, declared = scan.reached, Fraction(container.duration or 0, av.time_base)
        # Headers are rounded, and a sparse video's last frame may be shown for as long as any other.
        slack = max(Fraction(1, 2), 2 * int(np.diff(ticks).max(initial=0)) * base)
        if reached + slack >= declared:
            return
    else:
        return
    raise VideoError(
        f"{path}: is cut short: the pictures stop at {float(reached):.2f} s of {float(declared or 0):.2f} s; copy or "
        f"download it again, or keep what there is with `ffmpeg -i {path.name} -c copy whole{path.suffix}`"
    )


def _declared_end(stream: av.VideoStream) -> Fraction | None:
    """Return the video's end in seconds as the header has it, or None."""
    if stream.duration:
        return ((stream.start_time or 0) + stream.duration) * stream.time_base
    hours, *rest = stream.metadata.get("DURATION", "").split(":")  # Matroska: 00:01:30.500000000
    try:
        minutes, seconds = rest
        return 3600 * int(hours) + 60 * int(minutes) + Fraction(seconds)
    except ValueError:
        return None


# --- The plan ----------------------------------------------------------------------------------------------------


class _Plan(NamedTuple):
    """Which frame serves each sample.

    Attributes:
        targets: Ideal time of each sample, ticks of the file, float64 [S].
        positions: Position of the nearest frame in `_Timeline.ticks`, ascending, int64 [S].
        reach: Furthest that a stand-in for a lost frame may be from the target, in ticks.
    """

    targets: np.ndarray
    positions: np.ndarray
    reach: float


def _plan_samples(timeline: _Timeline, fps: Fraction, max_frames: int | None) -> _Plan:
    first = int(timeline.ticks[0])
    length = timeline.end - first
    step = 1 / (fps * timeline.time_base)
    count = math.ceil(length / step)
    if max_frames is None or count <= max_frames:
        samples = np.arange(count)
    else:
        samples = np.round(np.linspace(0, count - 1, max_frames))
    targets = first + samples * float(min(step, length))
    return _Plan(targets, _nearest(timeline.ticks, targets), float(max(step, 1 / timeline.time_base)))


def _nearest(ticks: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the position in ascending `ticks` [N] nearest to each target [S]; of two equally near, the earlier."""
    after = np.searchsorted(ticks, targets).clip(max=len(ticks) - 1)
    before = (after - 1).clip(min=0)
    return np.where(targets - ticks[before] <= ticks[after] - targets, before, after)


# --- Decoding ----------------------------------------------------------------------------------------------------

_Pictures = Generator[tuple[np.ndarray, int], None, None]  # RGB picture [H, W, 3] and the position of its frame


@dataclass
class _Damage:
    """Counts what decoding had to leave out."""

    packets: int = 0
    stand_ins: int = 0


def _intact_frames(path: Path, damage: _Damage) -> Generator[av.VideoFrame, None, None]:
    """Decode a file and yield the frames that are as they were encoded, in order of presentation.

    Measured on H.264 and MPEG-4 files with flipped bytes: of the frames from the first sign of damage to the next
    keyframe nearly all are visibly wrong (they are predicted from the spoilt one), and most of them are delivered
    without any flag. So all of those are left out. `explode` makes the decoder report damage that it would otherwise
    paint over. HEVC and VP9 decoders notice less: a changed byte within a picture's data can pass for another picture.
    """
    with _opened(path) as (container, stream):
        # Not PyAV's default, "SLICE": with it the H.264 decoder reports no damage at all, `explode` or not.
        stream.thread_type = "AUTO"
        stream.codec_context.options = {"err_detect": "explode"}
        spoilt_at: int | None = None
        latest: int | None = None
        for packet in chain(_demux(container, stream), [None]):  # None: hand out what the decoder still holds
            try:
                frames = stream.decode(packet)
            except av.error.FFmpegError:
                damage.packets += 1
                spoilt_at = _tick(packet) if packet else latest
                continue
            for frame in frames:
                if frame.pts is None:
                    continue
                if frame.is_corrupt:
                    damage.packets += 1
                    spoilt_at = frame.pts
                elif spoilt_at is not None and frame.key_frame and frame.pts > spoilt_at:
                    spoilt_at = None
                if latest is not None and frame.pts < latest:
                    raise VideoError(
                        f"{path}: its timestamps are out of order at {float(frame.pts * stream.time_base):.2f} s "
                        "(AVI can't hold this codec's B-frames); re-encode it with ffmpeg"
                    )
                latest = frame.pts
                if spoilt_at is None:
                    yield frame


def _pyav_pictures(timeline: _Timeline, plan: _Plan) -> _Pictures:
    path, ticks, damage = timeline.info.path, timeline.ticks, _Damage()
    # Who ends the stream early is also told what was skipped until then.
    with suppress(GeneratorExit), closing(_intact_frames(path, damage)) as frames:
        before, frame = None, next(frames, None)
        converted = picture = None
        for target, position in zip(plan.targets, plan.positions, strict=True):
            while frame is not None and frame.pts < ticks[position]:
                before, frame = frame, next(frames, None)
            chosen = frame
            if frame is None or frame.pts != ticks[position]:
                chosen = _stand_in(timeline, target, plan.reach, before, frame)
                damage.stand_ins += 1
            if chosen is not converted:
                # One thread: to start more for each picture takes longer than to convert it.
                converted, picture = chosen, _upright(chosen.to_ndarray(format="rgb24", threads=1), chosen.rotation)
            yield picture, int(np.searchsorted(ticks, chosen.pts))
    if damage.packets or damage.stand_ins:
        warnings.warn(
            f"{path}: skipped {damage.packets} damaged packets; {damage.stand_ins} of {len(plan.positions)} samples "
            "show the nearest intact frame instead of their own",
            stacklevel=4,  # who takes the batches, if no thread does: past `_batched` and `FrameStream`
        )


def _stand_in(timeline: _Timeline, target: float, reach: float, *around: av.VideoFrame | None) -> av.VideoFrame:
    """Choose the nearest intact frame for a sample whose own frame is lost."""
    nearest = min(
        (frame for frame in around if frame is not None), key=lambda frame: abs(frame.pts - target), default=None
    )
    if nearest is None or abs(nearest.pts - target) > reach:
        at = timeline.seconds(target)
        raise VideoError(
            f"{timeline.info.path}: is damaged: no intact frame near {at:.2f} s of {timeline.info.duration:.2f} s; "
            "copy or download it again, or let ffmpeg paint over the damage by re-encoding it"
        )
    return nearest


def _upright(picture: np.ndarray, rotation: int) -> np.ndarray:
    """Turn a picture [H, W, ...] the way its header says, `rotation` degrees anticlockwise, in quarter turns."""
    return np.rot90(picture, round(rotation / 90))


def _open_with_decord(timeline: _Timeline) -> Any:
    """Open a file with decord, or raise VideoError if decord would get it wrong."""
    path = timeline.info.path
    try:
        # Imported here: not every platform has a wheel, and loading it costs memory that PyAV's users needn't pay.
        import decord
    except ImportError as error:
        raise VideoError(f"{path}: decord isn't installed here; use backend='auto' or 'pyav'") from error
    if objection := _decord_objection(timeline):
        raise VideoError(f"{path}: decord can't be trusted with {objection}; use backend='auto' or 'pyav'")
    try:
        reader = decord.VideoReader(str(path.absolute()), num_threads=_DECORD_THREADS)
    except (decord.DECORDError, RuntimeError) as error:
        raise VideoError(f"{path}: decord can't open it; use backend='auto' or 'pyav'") from error
    if len(reader) != len(timeline.ticks):
        raise VideoError(
            f"{path}: decord finds {len(reader)} frames of {len(timeline.ticks)}; use backend='auto' or 'pyav'"
        )
    return reader


def _decord_objection(timeline: _Timeline) -> str | None:
    """Say what about a file decord 0.6.0 hangs on, skips or shows wrongly; None if nothing."""
    if not timeline.container.startswith("mov"):
        return f"the container {timeline.container}, only with MP4 and MOV"
    if timeline.info.codec not in _CLEAN_START:
        return f"the codec {timeline.info.codec}, only with {', '.join(_CLEAN_START)}"
    if timeline.hidden:
        return f"an edit list: it would show the {timeline.hidden} frames hidden by it"
    if not _starts_cleanly(timeline):
        return "keyframes that aren't clean starts (open GOPs, intra refresh): it seeks to them and shows wrong frames"
    return None


def _starts_cleanly(timeline: _Timeline) -> bool:
    """Tell whether decoding can start at each keyframe of an MP4 file and be exact."""
    is_clean = _CLEAN_START[timeline.info.codec]
    if is_clean is None:
        return True
    with _opened(timeline.info.path) as (container, stream):
        return all(
            any(map(is_clean, _unit_headers(bytes(packet))))
            for packet in _demux(container, stream)
            if packet.is_keyframe
        )


def _unit_headers(data: bytes) -> Iterator[int]:
    """Yield the first byte of each unit in an H.264 or HEVC packet as MP4 stores it: 4 bytes of length, then data."""
    at = 0
    while at + 4 < len(data):
        yield data[at + 4]
        at += 4 + int.from_bytes(data[at : at + 4])


def _decord_pictures(reader: Any, timeline: _Timeline, plan: _Plan) -> _Pictures:
    from decord import DECORDError

    for start in range(0, len(plan.positions), _DECORD_BATCH):
        # decord is given each frame once, in ascending order, so that it decodes forwards.
        positions, copies = np.unique(plan.positions[start : start + _DECORD_BATCH], return_inverse=True)
        try:
            pictures = reader.get_batch(positions.tolist()).asnumpy()
        except (DECORDError, RuntimeError) as error:
            at = timeline.seconds(timeline.ticks[positions[0]])
            raise VideoError(
                f"{timeline.info.path}: decord stopped after {at:.2f} s of {timeline.info.duration:.2f} s; use "
                "backend='auto' or 'pyav'"
            ) from error
        for row in copies:
            yield pictures[row], int(positions[row])


def _batched(
    pictures: _Pictures, timeline: _Timeline, count: int, batch_size: int, size: tuple[int, int] | None
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
