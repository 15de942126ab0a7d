"""Decode a file with PyAV: intact frames only, with stand-ins for the lost ones that are counted."""

import warnings
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np

from vilamp_lite.video.claims import refuse_absurd_counts, verdict
from vilamp_lite.video.display import (
    MAX_PIXELS,
    Size,
    Stored,
    between_bars,
    display_matrix,
    displayed_size,
    slants,
    upright,
)
from vilamp_lite.video.gif import is_whole_gif_picture
from vilamp_lite.video.opening import (
    ENCRYPTED,
    TOO_LARGE,
    Opened,
    codec_from,
    open_video,
    warn_of_other_streams,
    why_not_decoded,
)
from vilamp_lite.video.timeline import (
    Plan,
    Scan,
    Timeline,
    VideoError,
    VideoInfo,
    lost_frames,
    rewound,
    scan_packets,
    tick,
    usual_step,
    version_of,
    warn_of_gaps,
)

Pictures = Generator[tuple[np.ndarray, int], None, None]  # RGB picture [H, W, 3] and the position of its frame


@dataclass
class Damage:
    """Counts what decoding had to leave out, or to fit in."""

    packets: int = 0
    place: int | None = None  # byte where the first of them begins
    stand_ins: int = 0
    other_size: tuple[int, Size] | None = None  # time and size of the first picture that has another than the first's


def read_timeline(path: Path) -> Timeline:
    """Scan a file, look at its first frame, and refuse it if it is cut short; it is opened once."""
    version = version_of(path) if path.is_file() else (0, 0)
    if version[0]:
        refuse_absurd_counts(path)
    container, stream = open_video(path)
    with container:
        warn_of_other_streams(path, container, stream)
        scan = Scan()
        packets = scan_packets(path, container, stream, scan)
        frame = next(intact_frames(path, stream, packets, Damage()), None)
        deque(packets, maxlen=0)
        if not scan.ticks:
            raise VideoError(f"{path}: its video stream holds no frames with a timestamp; re-encode it with ffmpeg")
        claims = verdict(path, container, stream, scan)
        ticks = np.unique(np.array(scan.ticks, np.int64))
        if frame is None:
            raise VideoError(f"{path}: {why_not_decoded(path)}")
        if same := len(scan.ticks) - len(ticks):
            warnings.warn(f"{path}: {same} of its frames are not shown: each has the time of another", stacklevel=4)
        matrix = display_matrix(path, frame)
        if slants(matrix):
            warnings.warn(
                f"{path}: its header slants the pictures, or is damaged; they are shown straight, in the nearest of "
                "eight positions",
                stacklevel=4,
            )
        height, width = displayed_size((frame.height, frame.width), stream.sample_aspect_ratio, matrix)
        if height * width > MAX_PIXELS:
            raise VideoError(f"{path}: {TOO_LARGE}")
        end = scan.end if scan.end > ticks[-1] else int(ticks[-1]) + usual_step(ticks, stream)
        if claims.end is not None:
            end = max(end, int(claims.end / stream.time_base))
        if len(lost := lost_frames(ticks, scan.ticks, claims.holes, stream.time_base)):
            at = float((lost[0] - ticks[0]) * stream.time_base)
            ticks = np.union1d(ticks, lost)
            are_missing = f"{len(lost):,} of {len(ticks):,} frames {'is' if len(lost) == 1 else 'are'} missing"
            warnings.warn(f"{path}: is damaged: {are_missing}, the first at {at:.2f} s", stacklevel=4)
        if claims.doubt:
            warnings.warn(f"{path}: {claims.doubt}", stacklevel=4)
        length = (end - int(ticks[0])) * stream.time_base
        codec, comment = stream.codec.canonical_name, container.metadata.get("comment", "")
        fps = float(len(ticks) / length)
        info = VideoInfo(path, float(length), fps, len(ticks), width, height, codec, comment)
        kind, packets = container.format.name, np.array(scan.ticks, np.int64)
        stored = Stored(
            displayed_size((frame.height, frame.width), None, matrix), matrix, stream.codec_context.sample_aspect_ratio
        )
        base, first = stream.time_base, scan.first
        timeline = Timeline(info, stored, ticks, lost, end, base, kind, scan.hidden, packets, first, version)
    warn_of_gaps(timeline)
    return timeline


def intact_frames(
    path: Path, stream: av.VideoStream, packets: Iterable[av.Packet], damage: Damage, lost: Iterable[int] = ()
) -> Iterator[av.VideoFrame]:
    """Decode packets and yield the frames that are as they were encoded, in order of presentation.

    Measured on H.264 and MPEG-4 files with flipped bytes: of the frames from the first sign of damage to the next
    keyframe nearly all are visibly wrong (they are predicted from the spoilt one), and most of them are delivered
    without any flag. So all of those are left out. HEVC and VP9 decoders notice less: a changed byte within a picture's
    data can pass for another picture. The same holds for what follows the times of frames that are lost.
    """
    missing = deque(lost)
    spoilt_at: int | None = None
    latest: int | None = None
    for packet in chain(packets, [None]):  # None: hand out what the decoder still holds
        # Some decoders make noise of encrypted data, without an error.
        if packet and latest is None and packet.has_sidedata("encryption_info"):
            raise VideoError(f"{path}: {ENCRYPTED}")
        try:
            frames = _decoded(stream, packet)
        except av.error.FFmpegError as error:
            if packet and packet.has_sidedata("encryption_info"):
                raise VideoError(f"{path}: {ENCRYPTED}") from error
            damage.packets += 1
            if damage.place is None and packet:
                damage.place = packet.pos
            spoilt_at = tick(packet) if packet else latest
            continue
        for frame in frames:
            if frame.pts is None:
                continue
            while missing and missing[0] < frame.pts:
                spoilt_at = missing.popleft()
            if frame.is_corrupt:
                damage.packets += 1
                spoilt_at = frame.pts
            elif spoilt_at is not None and frame.key_frame and frame.pts > spoilt_at:
                spoilt_at = None
            if latest is not None and frame.pts < latest:
                is_avi = stream.container.format.name == "avi"
                cause = "AVI can't hold this codec's B-frames" if is_avi else "recordings joined, or damage"
                at = float(frame.pts * stream.time_base)
                raise VideoError(
                    f"{path}: its timestamps are out of order at {at:.2f} s ({cause}); re-encode it with ffmpeg"
                )
            latest = frame.pts
            if spoilt_at is None:
                yield frame


def _decoded(stream: av.VideoStream, packet: av.Packet | None) -> list[av.VideoFrame]:
    if packet and stream.codec.name == "gif" and not is_whole_gif_picture(bytes(packet)):
        raise av.error.InvalidDataError(0, "not as many pixels as the picture has")
    return stream.decode(packet)


class PyAVFile:
    """A scanned file, decoded by PyAV as often as one likes."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._left: Opened | None = None

    def __getstate__(self) -> dict[str, Any]:
        """All but the open file: a copy, or another process, opens its own."""
        return self.__dict__ | {"_left": None}

    def pictures(self, plan: Plan, *, leave_open: bool = False) -> Pictures:
        """Yield the planned pictures; the nearest intact frame stands in for a lost one.

        With `leave_open`, the next pass goes on with this one's open file, where that can be rewound.
        """
        timeline, damage = self._timeline, Damage()
        path, ticks = timeline.info.path, timeline.ticks
        container, stream = self._at_its_start()
        # Who ends the stream early is also told what was skipped until then.
        with suppress(GeneratorExit), ExitStack() as file:
            file.enter_context(container)
            frames = intact_frames(path, stream, timeline.same_packets(container, stream), damage, timeline.lost)
            before, frame = None, next(frames, None)
            converted = picture = None
            for target, position in zip(plan.targets, plan.positions, strict=True):
                while frame is not None and frame.pts < ticks[position]:
                    before, frame = frame, next(frames, None)
                chosen = frame
                if frame is None or frame.pts != ticks[position]:
                    chosen = _stand_in(timeline, damage, target, plan.reach, before, frame)
                    damage.stand_ins += 1
                if chosen is not converted:
                    converted, picture = chosen, _shown(chosen, stream, timeline, damage)
                yield picture, int(np.searchsorted(ticks, chosen.pts))
            if leave_open:
                file.pop_all()
                self._left = container, stream
        if damage.packets or damage.stand_ins:
            skipped = (
                f"skipped {damage.packets:,} damaged packet{'s' * (damage.packets > 1)}; " if damage.packets else ""
            )
            warnings.warn(
                f"{path}: {skipped}{damage.stand_ins:,} of {len(plan.positions):,} samples show the nearest intact "
                "frame instead of their own",
                stacklevel=4,  # who takes the batches, if no thread does: past `batches` and `FrameStream`
            )
        if damage.other_size:
            since, (height, width) = damage.other_size
            info = timeline.info
            warnings.warn(
                f"{path}: its pictures change at {timeline.seconds(since):.2f} s from {info.width} × {info.height} to "
                f"{width} × {height}; all are shown at the first one's size, with bars where the shape differs",
                stacklevel=4,
            )

    def _at_its_start(self) -> Opened:
        """The file that was left open, rewound, or opened anew."""
        self._timeline.require_same_file()
        left, self._left = self._left, None
        if left and rewound(*left, self._timeline):
            return left
        return open_video(self._timeline.info.path)


def _shown(frame: av.VideoFrame, stream: av.VideoStream, timeline: Timeline, damage: Damage) -> np.ndarray:
    """Convert a frame to an upright picture [H, W, 3] as stored; one unlike the first as the first is displayed."""
    matrix = display_matrix(timeline.info.path, frame)
    # One thread: to start more for each picture takes longer than to convert it.
    picture = upright(frame.to_ndarray(format="rgb24", threads=1), matrix)
    first, aspect = timeline.stored, stream.codec_context.sample_aspect_ratio
    if picture.shape[:2] == first.size and (aspect == first.pixel_aspect or not aspect):
        return picture
    size = displayed_size((frame.height, frame.width), aspect, matrix)
    damage.other_size = damage.other_size or (frame.pts, size)
    return between_bars(picture, size, (timeline.info.height, timeline.info.width))


def _stand_in(
    timeline: Timeline, damage: Damage, target: float, reach: float, *around: av.VideoFrame | None
) -> av.VideoFrame:
    """Choose the nearest intact frame for a sample whose own frame is lost."""
    nearest = min(
        (frame for frame in around if frame is not None), key=lambda frame: abs(frame.pts - target), default=None
    )
    if nearest is None or abs(nearest.pts - target) > reach:
        info, at = timeline.info, timeline.seconds(target)
        is_joined = timeline.container == "mpegts" and damage.place is not None
        codec = codec_from(info.path, damage.place) if is_joined else None
        if codec not in (None, info.codec):
            raise VideoError(
                f"{info.path}: its codec changes from {info.codec} to {codec} before {at:.2f} s (recordings joined); "
                "re-encode it with ffmpeg"
            )
        raise VideoError(
            f"{info.path}: is damaged: no intact frame near {at:.2f} s of {info.duration:.2f} s; "
            "copy or download it again, or let ffmpeg paint over the damage by re-encoding it"
        )
    return nearest
