"""decord as a second decoder, only with the files that it was found to decode like PyAV, to the bit."""

from collections.abc import Iterator

import av
import numpy as np

from vilamp_lite.video.decoding import Pictures
from vilamp_lite.video.display import is_quarter_turn
from vilamp_lite.video.opening import films, open_video
from vilamp_lite.video.timeline import Plan, Timeline, VideoError, demux

# The codecs that decord 0.6.0 was found to decode like PyAV, to the bit, where every keyframe is a clean start.
_CODECS = ("h264", "hevc", "vp9")  # every keyframe of VP9 is one
# What the first byte of a unit inside a keyframe says: that it is a clean start, and that it states the pictures' size.
_IS_CLEAN = {
    "h264": lambda header: header & 0x1F == 5,  # IDR picture
    "hevc": lambda header: header >> 1 & 0x3F in (19, 20),  # IDR picture, with or without leading ones
}
_STATES_SIZE = {
    "h264": lambda header: header & 0x1F == 7,  # sequence parameter set
    "hevc": lambda header: header >> 1 & 0x3F == 33,
}
_VP9_SIZE = 8  # bytes of a keyframe, which hold it but for the last bits
_DECORD_THREADS = 2
_DECORD_BATCH = 32  # memory: decord holds a batch twice


class DecordFile:
    """A scanned file, decoded by decord as often as one likes."""

    def __init__(self, timeline: Timeline) -> None:
        """Open it, or raise VideoError if decord would get it wrong."""
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
        self._reader, self._timeline, self._errors = reader, timeline, (decord.DECORDError, RuntimeError)

    def pictures(self, plan: Plan, *, leave_open: bool = True) -> Pictures:
        """Yield the planned pictures; decord's file stays open."""
        timeline = self._timeline
        timeline.require_same_file()
        for start in range(0, len(plan.positions), _DECORD_BATCH):
            # decord is given each frame once, in ascending order, so that it decodes forwards.
            positions, copies = np.unique(plan.positions[start : start + _DECORD_BATCH], return_inverse=True)
            try:
                pictures = self._reader.get_batch(positions.tolist()).asnumpy()
            except self._errors as error:
                at = timeline.seconds(timeline.ticks[positions[0]])
                raise VideoError(
                    f"{timeline.info.path}: decord stopped after {at:.2f} s of {timeline.info.duration:.2f} s; use "
                    "backend='auto' or 'pyav'"
                ) from error
            for row in copies:
                yield pictures[row], int(positions[row])


def _decord_objection(timeline: Timeline) -> str | None:
    """Say what about a file decord 0.6.0 hangs on, skips or shows wrongly; None if nothing."""
    if not timeline.container.startswith("mov"):
        return f"the container {timeline.container}, only with MP4 and MOV"
    if timeline.info.codec not in _CODECS:
        return f"the codec {timeline.info.codec}, only with {', '.join(_CODECS)}"
    if timeline.hidden:
        return f"an edit list: it would show the {timeline.hidden} frames hidden by it"
    if not is_quarter_turn(timeline.stored.matrix):
        return "a header that mirrors the pictures, or more than turns them"
    container, stream = open_video(timeline.info.path)
    with container:
        if len(films(container, stream)) > 1:
            return "several video streams: it may show another"
        statements = set()
        for packet in demux(container, stream):
            if not packet.is_keyframe:
                continue
            if not _starts_cleanly(packet, timeline.info.codec):
                return "keyframes that aren't clean starts (open GOPs, intra refresh): it seeks and shows wrong frames"
            statements |= _statements(packet, timeline.info.codec)
    if len(statements) > 1:
        return "pictures that change size: it squeezes them all into the first one's"
    return None


def _starts_cleanly(keyframe: av.Packet, codec: str) -> bool:
    """Tell whether decoding can start at a keyframe of an MP4 file and be exact."""
    return codec == "vp9" or any(_IS_CLEAN[codec](unit[0]) for unit in _units(keyframe))


def _statements(keyframe: av.Packet, codec: str) -> set[bytes]:
    """What a keyframe says about the size of the pictures from it on."""
    if keyframe.has_sidedata("new_extradata"):
        return {bytes(keyframe.get_sidedata("new_extradata"))}
    if codec == "vp9":
        return {bytes(keyframe)[:_VP9_SIZE]}
    return {unit for unit in _units(keyframe) if _STATES_SIZE[codec](unit[0])}


def _units(packet: av.Packet) -> Iterator[bytes]:
    """Yield the units in an H.264 or HEVC packet as MP4 stores it: 4 bytes of length, then data."""
    data, at = bytes(packet), 0
    while at + 4 < len(data):
        end = at + 4 + int.from_bytes(data[at : at + 4])
        yield data[at + 4 : end]
        at = end
