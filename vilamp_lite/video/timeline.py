"""When each frame of a file is shown, read from its packets, and which frame serves each sample."""

import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np

from vilamp_lite.video.display import Stored

_EXACT = ("matroska,webm", "ivf", "yuv4mpegpipe", "dv")  # containers whose packets say where in the file their data lie
_HEADERS = 32  # bytes at most between the data of two packets where nothing but their own headers lies between
_MARKED_EARLY = 3  # packets from the one that FFmpeg marks as incomplete to the one behind the break
_REORDERED = 16  # frames at most that come before one in the file and after it in time

# Nothing is sampled where a picture stands for longer than this: a clock that jumps (a live stream's first frame at 0,
# the others at the time of day) would otherwise make millions of samples of a few frames.
_LONGEST_STILL = 7200  # seconds


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
        lost: Those of them whose frames are missing from the file.
        end: When the last frame ends, in the same units.
        time_base: Seconds per tick.
        container: FFmpeg's name of the container.
        hidden: Number of frames that an edit list hides.
        packets: `ticks` in the order of the file, with repetitions, without lost ones.
        first: What the first packet of the video was.
        version: Size in bytes and time of the last change.
    """

    info: VideoInfo
    stored: Stored
    ticks: np.ndarray
    lost: np.ndarray
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
    """What the packets of a file say, in the time base of its video stream.

    Attributes:
        ticks: Presentation time of each frame in the order of the file.
        end: When the last one ends.
        hidden: Packets that an edit list hides.
        reached: When the last packet of any stream ends, in seconds.
        first: What the first packet of the video was.
        listed: Packets in the index that the file brings along.
        place: Where the data of the latest packet begin in the file.
        claimed: Where the data of all packets so far end.
        gaps: Places of two packets between which other bytes lie, and the number of the video's packets before.
        torn: Numbers of the video's packets up to each that is incomplete, and whether a keyframe is there.
    """

    ticks: list[int] = field(default_factory=list)
    end: int | None = None
    hidden: int = 0
    reached: Fraction = Fraction(0)
    first: tuple[int | None, ...] | None = None
    listed: int = 0
    place: int = 0
    claimed: int = 0
    gaps: list[tuple[int, int, int]] = field(default_factory=list)
    torn: list[tuple[int, bool]] = field(default_factory=list)

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
        except (StopIteration, av.error.FFmpegError, IndexError):  # PyAV's, at the end, of a stream found on the way
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
    base, video = stream.time_base, stream.index
    latest = newest = None
    second = int(1 / base)
    scan.listed = len(stream.index_entries)
    is_exact = container.format.name in _EXACT
    is_around = container.format.name == "dv"  # its pictures hold its sound
    ends: dict[int, int] = {}  # of each stream, in its own time base: a fraction for each packet would double the time
    for packet in demux(container):
        index = packet.stream_index
        if is_exact and (index == video or not is_around) and (place := packet.pos) is not None:
            _note_place(scan, place, packet.size)
        if index == video:
            if scan.first is None:
                scan.first = identity(packet)
            yield packet
        dts = packet.dts
        shown = dts if packet.pts is None else packet.pts
        if shown is None:
            continue
        end = shown + (packet.duration or 0)
        if end > ends.get(index, end - 1):
            ends[index] = end
        if index != video:
            continue
        if packet.is_discard:
            scan.hidden += 1
            continue
        if latest is not None and dts is not None and latest - dts > second:
            raise _runs_backwards(path, latest * base, dts * base)
        latest = dts
        if newest is None or shown > newest:
            newest = shown
        elif shown < newest and packet.is_keyframe:
            # None is shown before a keyframe's forerunners: its decoder would hand the frames out in the wrong order.
            raise _runs_backwards(path, newest * base, shown * base)
        scan.ticks.append(shown)
        if scan.end is None or end > scan.end:
            scan.end = end
        if scan.torn and scan.torn[-1][0] >= scan.packets - _MARKED_EARLY and packet.is_keyframe:
            scan.torn[-1] = scan.torn[-1][0], True
        if packet.is_corrupt:
            scan.torn.append((scan.packets, packet.is_keyframe))
    scan.reached = max((end * container.streams[index].time_base for index, end in ends.items()), default=Fraction(0))


def _note_place(scan: Scan, place: int, size: int) -> None:
    """Note where in the file a packet's data lie, and what lies before."""
    if place > scan.claimed + _HEADERS:
        scan.gaps.append((scan.place, place, scan.packets))
    # Several packets of a block share a place.
    scan.claimed = (scan.claimed if place == scan.place else max(scan.claimed, place)) + size
    scan.place = place


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


def lost_frames(ticks: np.ndarray, packets: list[int], holes: Iterable[int], time_base: Fraction) -> np.ndarray:
    """Say when frames were shown that are lost before some of the packets: a usual step apart, but none in a gap.

    Args:
        ticks: Times of the frames that came, ascending.
        packets: The same in the order of the file.
        holes: Numbers of the packets.
        time_base: Seconds per tick.
    """
    steps = np.diff(ticks)
    step = steps[steps < 1.5 * np.median(steps)].mean() if len(steps) else 1
    lost = [np.empty(0, np.int64)]
    for hole in holes:
        around = packets[max(hole - _REORDERED, 0) : hole + _REORDERED]
        near = ticks[np.searchsorted(ticks, min(around)) : np.searchsorted(ticks, max(around)) + 1]
        for before, after in pairwise(near.tolist()):
            if (after - before) * time_base > _LONGEST_STILL:
                continue  # its length says nothing about their number
            missing = round((after - before) / step) - 1
            lost.append(before + np.arange(1, missing + 1) * (after - before) // (missing + 1))
    return np.unique(np.concatenate(lost))


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
