"""When each frame of a file is shown, read from its packets, and which frame serves each sample."""

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np

from vilamp_lite.video.display import Stored

# Containers whose header states the length of the video. For others (MPEG-TS, raw streams) FFmpeg only estimates it
# from the packets, so it can't tell that some are missing.
_LENGTH_IN_HEADER = ("mov", "matroska", "avi", "flv", "asf")


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
        width: Pixels across, as displayed: turned, and with square pixels.
        height: Pixels down, as displayed.
        codec: FFmpeg's name of the codec, such as "h264".
        comment: What the file says about itself; empty where it says nothing.
    """

    path: Path
    duration: float
    fps: float
    num_frames: int
    width: int
    height: int
    codec: str
    comment: str


@dataclass(frozen=True, eq=False)
class Timeline:
    """When each frame of a file is shown, and what tells that the file is still the same.

    Attributes:
        info: Public description of the file.
        stored: What the first picture is like in the file.
        ticks: Presentation time of each frame in units of `time_base`, ascending, int64 [N].
        end: When the last frame ends, in the same units.
        time_base: Seconds per tick.
        container: FFmpeg's name of the container.
        hidden: Number of frames that an edit list hides.
        packets: `ticks` in the order of the file, with repetitions.
        first: What the first packet of the video was.
        version: Size in bytes and time of the last change.
    """

    info: VideoInfo
    stored: Stored
    ticks: np.ndarray
    end: int
    time_base: Fraction
    container: str
    hidden: int
    packets: np.ndarray
    first: tuple[int | None, ...]
    version: tuple[int, int]

    def seconds(self, ticks: Any) -> Any:
        """Turn ticks into seconds from the first frame."""
        return (ticks - self.ticks[0]) * float(self.time_base)

    def require_same_file(self) -> None:
        """Refuse a file that has another size, or was written to since."""
        if not self.info.path.is_file() or version_of(self.info.path) != self.version:
            raise self._changed()

    def same_packets(self, container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.Packet]:
        """Yield the packets of the video; refuse others than those of the scan."""
        if stream.time_base != self.time_base:
            raise self._changed()
        known = iter(self.packets)
        for packet in demux(container, stream):
            if not packet.is_discard and (shown := tick(packet)) is not None and shown != next(known, None):
                raise self._changed()
            yield packet
        if next(known, None) is not None:
            raise self._changed()

    def _changed(self) -> VideoError:
        return VideoError(f"{self.info.path}: has changed since it was scanned; wait until it is whole, and try again")


def version_of(path: Path) -> tuple[int, int]:
    """A file's size in bytes and when it was last written to."""
    state = path.stat()
    return state.st_size, state.st_mtime_ns


@dataclass
class Scan:
    """What the packets of a file say, in the time base of its video stream."""

    ticks: list[int] = field(default_factory=list)
    end: int | None = None
    hidden: int = 0
    reached: Fraction = Fraction(0)  # seconds, over all streams
    first: tuple[int | None, ...] | None = None

    @property
    def packets(self) -> int:
        """Packets of the video, hidden ones among them."""
        return len(self.ticks) + self.hidden


def rewound(container: av.container.InputContainer, stream: av.VideoStream, timeline: Timeline) -> bool:
    """Go back to a file's first packet; False where that is not certain, for lack of an exact index."""
    start = timeline.first[1]
    if not timeline.container.startswith(("mov", "matroska")) or start is None:
        return False
    container.seek(start, stream=stream)
    packet = next(demux(container, stream), None)
    if packet is None or identity(packet) != timeline.first:
        return False
    container.seek(start, stream=stream)
    return True


def demux(container: av.container.InputContainer, *streams: av.VideoStream) -> Iterator[av.Packet]:
    """Yield the packets that hold data; a container too broken to go on ends early."""
    packets = container.demux(*streams)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, av.error.FFmpegError):
            return
        if packet.size:  # an empty one repeats a frame (AVI), but the decoder would take it for the end
            yield packet


def tick(packet: av.Packet) -> int | None:
    """When a packet is shown, in ticks of its stream; None if it does not say."""
    return packet.dts if packet.pts is None else packet.pts


def identity(packet: av.Packet) -> tuple[int | None, ...]:
    """What tells a packet from another, the second its place in decoding."""
    return packet.pts, packet.dts, packet.size


def scan_packets(
    path: Path, container: av.container.InputContainer, stream: av.VideoStream, scan: Scan
) -> Iterator[av.Packet]:
    """Note what all packets say, and hand on those of the video."""
    latest = newest = None
    second = 1 / stream.time_base
    ends: dict[int, int] = {}  # of each stream, in its own time base: a fraction for each packet would double the time
    for packet in demux(container):
        if packet.stream_index == stream.index:
            scan.first = scan.first or identity(packet)
            yield packet
        shown = tick(packet)
        if shown is None:
            continue
        end = shown + (packet.duration or 0)
        index = packet.stream_index
        ends[index] = max(ends.get(index, end), end)
        if index != stream.index:
            continue
        if latest is not None and packet.dts is not None and latest - packet.dts > second:
            raise _runs_backwards(path, latest * stream.time_base, packet.dts * stream.time_base)
        latest = packet.dts
        if packet.is_discard:
            scan.hidden += 1
            continue
        # No frame is shown before a keyframe's forerunners: its decoder would hand the frames out in the wrong order.
        if newest is not None and shown < newest and packet.is_keyframe:
            raise _runs_backwards(path, newest * stream.time_base, shown * stream.time_base)
        newest = shown if newest is None else max(newest, shown)
        scan.ticks.append(shown)
        scan.end = end if scan.end is None else max(scan.end, end)
    scan.reached = max((end * container.streams[index].time_base for index, end in ends.items()), default=Fraction(0))


def _runs_backwards(path: Path, before: Fraction, after: Fraction) -> VideoError:
    return VideoError(
        f"{path}: its timestamps run backwards, from {float(before):.2f} s to {float(after):.2f} s (recordings joined, "
        "or damage); re-encode it with ffmpeg"
    )


def usual_step(ticks: np.ndarray, stream: av.VideoStream) -> int:
    """Return how long a frame whose packet doesn't say so is shown: the median distance between frames, in ticks."""
    if len(ticks) > 1:
        return int(np.median(np.diff(ticks)))
    return max(1, round(1 / ((stream.guessed_rate or 25) * stream.time_base)))


def refuse_cut_file(
    path: Path,
    container: av.container.InputContainer,
    stream: av.VideoStream,
    scan: Scan,
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


class Plan(NamedTuple):
    """Which frame serves each sample.

    Attributes:
        targets: Ideal time of each sample, ticks of the file, float64 [S].
        positions: Position of the nearest frame in `Timeline.ticks`, ascending, int64 [S].
        reach: Furthest that a stand-in for a lost frame may be from the target, in ticks.
    """

    targets: np.ndarray
    positions: np.ndarray
    reach: float

    def of(self, samples: np.ndarray) -> "Plan":
        """The same for some of the samples, in ascending order."""
        return Plan(self.targets[samples], self.positions[samples], self.reach)


# Nothing is sampled where a picture stands for longer than this: a clock that jumps (a live stream's first frame at 0,
# the others at the time of day) would otherwise make millions of samples of a few frames.
_LONGEST_STILL = 7200  # seconds


def warn_of_gaps(timeline: Timeline) -> None:
    """Say where the clock jumps."""
    gaps = _gaps(timeline)
    if len(gaps):
        before, after = timeline.seconds(np.append(timeline.ticks, timeline.end))[gaps[0] : gaps[0] + 2]
        others = f", nor in {len(gaps) - 1} other gaps" if len(gaps) > 1 else ""
        warnings.warn(
            f"{timeline.info.path}: its clock jumps from {before:.2f} s to {after:.2f} s without a picture; nothing is "
            f"sampled in between{others}",
            stacklevel=4,  # who asks for the file to be scanned
        )


def _gaps(timeline: Timeline) -> np.ndarray:
    """Positions of the frames that are followed by none for very long."""
    return np.flatnonzero(np.diff(timeline.ticks, append=timeline.end) > float(_LONGEST_STILL / timeline.time_base))


def plan_samples(timeline: Timeline, fps: Fraction, max_frames: int | None) -> Plan:
    """Choose the nearest frame for every sample."""
    first = int(timeline.ticks[0])
    length = timeline.end - first
    step = 1 / (fps * timeline.time_base)
    start, stop = _runs(timeline, float(step), math.ceil(length / step))
    skipped = start - np.cumsum(stop - start) + (stop - start)
    count = int((stop - start).sum())
    if max_frames is None or count <= max_frames:
        samples = np.arange(count)
    else:
        samples = np.round(np.linspace(0, count - 1, max_frames)).astype(np.int64)
    samples += skipped[np.searchsorted(start - skipped, samples, side="right") - 1]
    targets = first + samples * float(min(step, length))
    return Plan(targets, _nearest(timeline.ticks, targets), float(max(step, 1 / timeline.time_base)))


def _runs(timeline: Timeline, step: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Runs of samples to take, from `start` to before `stop`: all of them, but for those far inside a gap."""
    gaps, ticks = _gaps(timeline), timeline.ticks - timeline.ticks[0]
    before, after = ticks[gaps], np.append(ticks, timeline.end)[gaps + 1]
    # The sample nearest to the frame on either side of a gap belongs to that frame.
    stop = np.append(np.floor(before / step + 0.5) + 1, count).astype(np.int64)
    start = np.append(0, np.ceil(after / step - 0.5)).astype(np.int64)
    if len(gaps) and gaps[-1] == len(ticks) - 1:  # the last frame is held: nothing comes after
        start, stop = start[:-1], stop[:-1]
    start = np.maximum(start, np.append(0, stop[:-1]))
    return start, np.maximum(start, stop)


def _nearest(ticks: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the position in ascending `ticks` [N] nearest to each target [S]; of two equally near, the earlier."""
    after = np.searchsorted(ticks, targets).clip(max=len(ticks) - 1)
    before = (after - 1).clip(min=0)
    return np.where(targets - ticks[before] <= ticks[after] - targets, before, after)
