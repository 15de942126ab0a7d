"""Decode a file with PyAV: intact frames only, with stand-ins for the lost ones that are counted."""

import warnings
from collections.abc import Generator
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import av
import numpy as np

from vilamp_lite.video.timeline import Plan, Timeline, VideoError, demux, opened, tick

Pictures = Generator[tuple[np.ndarray, int], None, None]  # RGB picture [H, W, 3] and the position of its frame


@dataclass
class Damage:
    """Counts what decoding had to leave out."""

    packets: int = 0
    stand_ins: int = 0


def intact_frames(path: Path, damage: Damage) -> Generator[av.VideoFrame, None, None]:
    """Decode a file and yield the frames that are as they were encoded, in order of presentation.

    Measured on H.264 and MPEG-4 files with flipped bytes: of the frames from the first sign of damage to the next
    keyframe nearly all are visibly wrong (they are predicted from the spoilt one), and most of them are delivered
    without any flag. So all of those are left out. `explode` makes the decoder report damage that it would otherwise
    paint over. HEVC and VP9 decoders notice less: a changed byte within a picture's data can pass for another picture.
    """
    with opened(path) as (container, stream):
        # Not PyAV's default, "SLICE": with it the H.264 decoder reports no damage at all, `explode` or not.
        stream.thread_type = "AUTO"
        stream.codec_context.options = {"err_detect": "explode"}
        spoilt_at: int | None = None
        latest: int | None = None
        for packet in chain(demux(container, stream), [None]):  # None: hand out what the decoder still holds
            try:
                frames = stream.decode(packet)
            except av.error.FFmpegError:
                damage.packets += 1
                spoilt_at = tick(packet) if packet else latest
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


def pyav_pictures(timeline: Timeline, plan: Plan) -> Pictures:
    """Yield the planned pictures; the nearest intact frame stands in for a lost one."""
    path, ticks, damage = timeline.info.path, timeline.ticks, Damage()
    # Who ends the stream early is also told what was skipped until then.
    with suppress(GeneratorExit), closing(intact_frames(path, damage)) as frames:
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
                converted, picture = chosen, upright(chosen.to_ndarray(format="rgb24", threads=1), chosen.rotation)
            yield picture, int(np.searchsorted(ticks, chosen.pts))
    if damage.packets or damage.stand_ins:
        warnings.warn(
            f"{path}: skipped {damage.packets} damaged packets; {damage.stand_ins} of {len(plan.positions)} samples "
            "show the nearest intact frame instead of their own",
            stacklevel=4,  # who takes the batches, if no thread does: past `_batched` and `FrameStream`
        )


def _stand_in(timeline: Timeline, target: float, reach: float, *around: av.VideoFrame | None) -> av.VideoFrame:
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


def upright(picture: np.ndarray, rotation: int) -> np.ndarray:
    """Turn a picture [H, W, ...] the way its header says, `rotation` degrees anticlockwise, in quarter turns."""
    return np.rot90(picture, round(rotation / 90))
