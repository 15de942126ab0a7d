"""What a file says of its own length: sizes, counts and marks of the end, held against the packets that came.

A demuxer hands out what it finds and is silent about the rest. Each function here asks what the file claims. A file
that keeps its word costs a few reads of some bytes.
"""

import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import suppress
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, NamedTuple

import av
import numpy as np

from vilamp_lite.video.timeline import Scan, VideoError

_MUCH = 1 << 20  # bytes to search at once
_JOINED = 2  # seconds without a frame, from which on recordings are more likely joined than packets lost


class Verdict(NamedTuple):
    """What the claims of a file say about the packets that came.

    Attributes:
        cut: What tells that its end is missing; else empty.
        damage: What tells that frames are missing, or their times are wrong, where nobody can say which; else empty.
        holes: Numbers of the packets of the video before which frames are missing.
        doubt: What makes the file doubtful though no frame is known to be missing; else empty.
        end: When the last frame ends, in seconds, where the file says so.
    """

    cut: str = ""
    damage: str = ""
    holes: tuple[int, ...] = ()
    doubt: str = ""
    end: Fraction | None = None


class Asked(NamedTuple):
    """A file, what the demuxer knows of it, and what came."""

    file: BinaryIO
    size: int
    container: av.container.InputContainer
    stream: av.VideoStream
    scan: Scan

    def at(self, place: int, count: int) -> bytes:
        """Read `count` bytes; fewer at the end of the file, none outside."""
        if not 0 <= place < self.size:
            return b""
        self.file.seek(place)
        return self.file.read(min(count, self.size))  # Python makes room for all that is asked for

    def number(self, place: int, count: int, order: str = "big") -> int:
        """Read an unsigned number."""
        return int.from_bytes(self.at(place, count), order)

    def too_long(self, what: str, end: int) -> str:
        """Say by how much a part lacks its end; nothing if it doesn't."""
        return f"its {what} should end {end - self.size:,} bytes past the end of the file" if end > self.size else ""

    def seconds(self, ticks: int) -> str:
        """Ticks of the video's stream, to be read."""
        return f"{float(ticks * self.stream.time_base):.2f} s"


def verdict(path: Path, container: av.container.InputContainer, stream: av.VideoStream, scan: Scan) -> Verdict:
    """Hold what the file claims against the packets of the scan.

    Raises:
        VideoError: If it is cut short, or so damaged that nobody can say which frames are missing.
    """
    kind = container.format.name.partition(",")[0]
    with path.open("rb") as file:
        found = _CLAIMS.get(kind, _no_claim)(Asked(file, path.stat().st_size, container, stream, scan))
    if kind != "mpegts" and not (found.cut or found.damage) and scan.torn and scan.torn[-1][0] == scan.packets:
        found = Verdict("its last packet is incomplete")
    if found.cut:
        raise VideoError(
            f"{path}: is cut short: {found.cut}; copy or download it again, or keep what there is with "
            f"`ffmpeg -i {shlex.quote(str(path))} {'' if kind in _KEEPS_CUT else '-c copy '}"
            f"{shlex.quote('whole' + path.suffix)}`"
        )
    if found.damage:
        raise VideoError(f"{path}: is damaged: {found.damage}; copy or download it again")
    return found


def _is_incomplete(asked: Asked) -> bool:
    """Say whether fewer packets came than the index lists; those without data don't count."""
    entries, came = asked.stream.index_entries, asked.scan.packets
    return came < len(entries) and came < sum(entry.size > 0 for entry in entries)


def _no_claim(asked: Asked) -> Verdict:
    return Verdict()


def refuse_absurd_counts(path: Path) -> None:
    """Refuse an MP4 file that counts more frames than it has bytes, for which FFmpeg would fill the memory.

    Raises:
        VideoError: If it does.
    """
    with path.open("rb") as file:
        asked = Asked(file, path.stat().st_size, None, None, None)
        counts = [
            asked.number(start + (8 if name == b"stsz" else 4), 4) for name, start in _counting(asked, 0, asked.size)
        ]
    if max(counts, default=0) > asked.size:
        words = f"its tables count {max(counts):,} frames in {asked.size:,} bytes"
        raise VideoError(f"{path}: is damaged: {words}; copy or download it again")


# --- MP4, MOV ----------------------------------------------------------------------------------------------------

Box = tuple[bytes, int, int]  # name, start and end of the content
_IN_TRACK = {*b"tfhd tfdt trun sbgp sgpd subs saiz saio senc uuid free skip meta tfxd tfrf".split()}  # of a fragment


def _boxes(asked: Asked, start: int, end: int) -> Iterator[Box]:
    """Yield the boxes in a part of the file; the last may end behind it."""
    while start + 8 <= min(end, asked.size):
        head = asked.at(start, 16)
        size, name, header = int.from_bytes(head[:4]), head[4:8], 8
        if size == 1:
            size, header = int.from_bytes(head[8:]), 16
        elif size == 0:
            size = end - start
        if size < header:
            return
        yield name, start + header, start + size
        start += size


def _counting(asked: Asked, start: int, end: int) -> Iterator[tuple[bytes, int]]:
    """Yield name and start of the boxes that count frames."""
    for name, inner, outer in _boxes(asked, start, end):
        if name in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf"):
            yield from _counting(asked, inner, outer)
        elif name in (b"stsz", b"trun"):
            yield name, inner


def _inside(asked: Asked, box: Box, *names: bytes) -> Box | None:
    """Find a box by its path inside another."""
    for wanted in names:
        box = next((inner for inner in _boxes(asked, *box[1:]) if inner[0] == wanted), None)
        if box is None:
            return None
    return box


def _mov(asked: Asked) -> Verdict:
    boxes = list(_boxes(asked, 0, asked.size))
    movie = next((box for box in boxes if box[0] == b"moov"), None)
    if movie is None:
        return Verdict()
    if _inside(asked, movie, b"mvex"):
        return _fragmented(asked, boxes)
    return _tables(asked, movie)


def _fragmented(asked: Asked, boxes: list[Box]) -> Verdict:
    """Look at sizes, at the fragments' numbers, and at how many samples each of them counts."""
    fragments = [(start, end, name == b"moof") for name, start, end in boxes if asked.at(start + 4, 4) == b"mfhd"]
    for name, _, end in boxes:
        if name in (b"moof", b"mdat") and end > asked.size:
            return Verdict(asked.too_long(f"box {name.decode()}", end))
    for _, start, _ in (box for box in boxes if box[0] == b"sidx"):
        if cut := asked.too_long("index of segments", _segments_end(asked, start)):
            return Verdict(cut)
    if len(fragments) < sum(name == b"moof" for name, *_ in boxes):
        return Verdict(damage="one of its fragments can't be read")
    # A last box may say 0 for "up to the end": in the middle of a file that is damage.
    end = next(
        (start - 8 for name, start, _ in boxes if not name.isalnum() or not asked.number(start - 8, 4)), asked.size
    )
    rest = (asked.at(place, _MUCH + 4) for place in range(end, asked.size, _MUCH))
    if any(b"moof" in part or b"mfra" in part for part in rest):
        return Verdict(damage=f"the chain of its boxes breaks at byte {end:,}")
    numbers = np.array([asked.number(start + 12, 4) for start, _, _ in fragments], np.int64)
    jumps = np.diff(numbers, prepend=numbers[:1])
    jumps = jumps > (np.median(jumps[1:]) if len(jumps) > 2 else 1)  # where no time is missing, nothing is
    stated = [_samples(asked, start, end) if known else None for start, end, known in fragments]
    entries = asked.stream.index_entries
    if _is_incomplete(asked):
        return Verdict(damage=f"it can't be read beyond {asked.seconds(asked.scan.end)}")
    if wrong := _equal_times(asked.scan.ticks):
        return Verdict(damage=wrong)
    if not jumps.any() and None not in stated and (crowded := _crowded(asked.scan.ticks)):
        return crowded
    if not jumps.any() and None not in stated and sum(stated) <= len(entries):
        if sum(stated) > asked.scan.packets:
            return Verdict(
                damage=f"{asked.scan.packets:,} of the {sum(stated):,} frames that its fragments count can be read"
            )
        return Verdict()
    places = np.array([entry.pos for entry in entries], np.int64)
    before = np.searchsorted(np.sort(places), [*(start for start, *_ in fragments), asked.size]).tolist()
    skipped = [first for first, jump in zip(before, jumps, strict=False) if jump]
    unread = [
        after
        for count, first, after in zip(stated, before, before[1:], strict=False)
        if count is None or after - first < count
    ]
    if {0, len(places)} & set(unread):
        return Verdict(damage="its first or last fragment can't be read")
    return Verdict(holes=(*skipped, *unread))


def _segments_end(asked: Asked, start: int) -> int:
    """Return where the last segment of an index ends: it says how long each is, from its own end on."""
    version, size = asked.number(start, 1), asked.number(start - 8, 4)
    at = start + (20 if version == 0 else 28)
    first = asked.number(at - (4 if version == 0 else 8), 4 if version == 0 else 8)
    table = np.frombuffer(asked.at(at + 4, 12 * asked.number(at + 2, 2)), ">u4")
    return start - 8 + size + first + int((table[::3] & 0x7FFFFFFF).sum())


def _samples(asked: Asked, start: int, end: int) -> int | None:
    """Count the video's samples in a fragment; None where the fragment can't be read."""
    data = asked.at(start, end - start)
    asked = asked._replace(file=BytesIO(data), size=len(data))
    tracks = [box for box in _boxes(asked, 0, len(data)) if box[0] == b"traf"]
    count = 0
    for track in tracks:
        parts = list(_boxes(asked, *track[1:]))
        header = next((start for name, start, _ in parts if name == b"tfhd"), None)
        if header is None or parts[-1][2] > track[2] or not {name for name, *_ in parts} <= _IN_TRACK:
            return None
        if asked.number(header + 4, 4) == asked.stream.id:
            count += sum(asked.number(start + 4, 4) for name, start, _ in parts if name == b"trun")
    return count if tracks else None


def _tables(asked: Asked, movie: Box) -> Verdict:
    """Let the tables of an MP4 without fragments contradict one another, or the packets."""
    stream, scan = asked.stream, asked.scan
    if _is_incomplete(asked) or (scan.torn and scan.torn[-1][0] == scan.packets):
        declared = (stream.start_time or 0) + (stream.duration or 0)
        return Verdict(f"the pictures stop at {asked.seconds(scan.end)} of {asked.seconds(declared)}")
    track = next((box for box in _boxes(asked, *movie[1:]) if _is_track(asked, box)), None)
    media = track and _inside(asked, track, b"mdia")
    table = media and _inside(asked, media, b"minf", b"stbl")
    parts = {name: start for name, start, _ in _boxes(asked, *table[1:])} if table else {}
    header = media and _inside(asked, media, b"mdhd")
    if track and not header:
        return Verdict(damage="its table of tracks is damaged")
    if not track or not {b"stts", b"stsz", b"stsc"} <= parts.keys():
        return Verdict()
    stated = asked.number(parts[b"stsz"] + 8, 4)
    timed, delta = _table(asked, parts[b"stts"], 2).astype(np.int64).T
    clock, length = _clock(asked, header[1])
    if not clock:
        return Verdict(damage="its clock has 0 ticks a second")
    placed = min(len(stream.index_entries), _in_chunks(asked, parts))
    edits = _edits(asked, movie, track)
    is_edited = len(edits) > 1 or any(seconds < 0.9 * length / clock for seconds, _ in edits)
    if placed < stated and not scan.hidden and not is_edited:
        words = f"its tables contradict one another: {stated:,} frames are listed, {placed:,} have a place"
        return Verdict(damage=words)
    if stated > 1 and any(seconds < length / clock / stated or start < -1 for seconds, start in edits):
        return Verdict(damage="its edit list shows what isn't there")
    shifted, shift = _table(asked, parts[b"ctts"], 2).T if b"ctts" in parts else (np.array([stated]), np.zeros(1))
    furthest = np.abs(shift.astype(np.int32).astype(np.int64)).max(initial=0)
    if not 0.99 * stated <= shifted.sum() <= 1.01 * stated or furthest > max(length, clock):
        return Verdict(damage="its table of times is wrong: it shifts frames from where they are decoded to nowhere")
    if wrong := _equal_times(scan.ticks):
        return Verdict(damage=wrong)
    if crowded := _crowded(scan.ticks):
        return crowded
    own = int((timed * delta).sum())
    if 0 < length < 0xFFFFFFFF and abs(own - length) > 0.05 * max(own, length) + clock:
        words = (
            f"its tables contradict one another: its frames last {own / clock:.2f} s by their own times, "
            f"{length / clock:.2f} s by the header"
        )
        is_overflow = (own - length) % (1 << 32) < clock
        is_gross = max(own, length) > 2 * min(own, length) and not is_overflow
        return Verdict(damage=words) if is_gross else Verdict(doubt=f"{words}; the times may be wrong")
    return Verdict()


def _equal_times(ticks: list[int]) -> str:
    """Say whether many frames are shown at the time of another."""
    shown, distinct = len(ticks), len(set(ticks))
    is_wrong = distinct < 0.9 * shown
    return f"its table of times is wrong: {shown:,} frames have {distinct:,} different times" if is_wrong else ""


def _crowded(ticks: list[int]) -> Verdict | None:
    """Find frames that come at once with another, where all others come evenly: each may have left its place empty."""
    shown = np.sort(ticks)
    steps = np.diff(shown)
    usual = np.median(steps) if len(steps) else 0
    near = int((steps < usual / 10).sum())
    if not near or (np.abs(steps - usual) <= usual / 10).sum() <= 0.9 * len(steps):
        return None
    wide = steps > 1.5 * usual
    empty = int((np.round(steps[wide] / usual) - 1).sum())
    holes = np.isin(ticks, shown[1:][wide]).nonzero()[0].tolist() if empty == near else ()
    words = f"{near:,} of its frames come at once with another, where all others come evenly"
    return Verdict(doubt=words, holes=tuple(holes))


def _is_track(asked: Asked, box: Box) -> bool:
    header = box[0] == b"trak" and _inside(asked, box, b"tkhd")
    return bool(header) and asked.number(header[1] + (20 if asked.number(header[1], 1) else 12), 4) == asked.stream.id


def _table(asked: Asked, start: int, columns: int) -> np.ndarray:
    """Read a table of numbers [rows, columns]: as many as it says, or has room for."""
    data = asked.at(start + 8, min(4 * columns * asked.number(start + 4, 4), asked.number(start - 8, 4)))
    return np.frombuffer(data[: len(data) // (4 * columns) * 4 * columns], ">u4").reshape(-1, columns)


def _in_chunks(asked: Asked, parts: dict[bytes, int]) -> int:
    """Count the samples that lie in the chunks of a track."""
    chunks = asked.number(parts.get(b"stco", parts.get(b"co64", 0)) + 4, 4)
    first, samples, _ = _table(asked, parts[b"stsc"], 3).astype(np.int64).T
    return int((np.diff(first, append=chunks + 1) * samples).sum())


def _edits(asked: Asked, movie: Box, track: Box) -> list[tuple[float, int]]:
    """Read how many seconds each part of an edit list shows, and from which tick on: −1 for none at all."""
    edits, header = _inside(asked, track, b"edts", b"elst"), _inside(asked, movie, b"mvhd")
    if not edits or not header:
        return []
    clock, _ = _clock(asked, header[1])
    width = 8 if asked.number(edits[1], 1) else 4
    data = asked.at(edits[1] + 8, edits[2] - edits[1] - 8)
    parts = [data[at : at + 2 * width] for at in range(0, len(data), 2 * width + 4)]
    if len(parts) != asked.number(edits[1] + 4, 4):
        return [(0.0, 0)]
    return [(int.from_bytes(part[:width]) / (clock or 1), int.from_bytes(part[width:], signed=True)) for part in parts]


def _clock(asked: Asked, header: int) -> tuple[int, int]:
    """Read ticks per second, and the length in ticks, from a media header."""
    if asked.number(header, 1):
        return asked.number(header + 20, 4), asked.number(header + 24, 8)
    return asked.number(header + 12, 4), asked.number(header + 16, 4)


# --- Matroska, WebM ----------------------------------------------------------------------------------------------

_SEGMENT, _CLUSTER, _GROUP, _TIME = 0x18538067, 0x1F43B675, 0xA0, 0xE7
_BLOCKS = {0xA3, 0xA1}
_BLOCK = 4  # bytes of a block in front of the packet: track, time, flags
_TRAILERS = {0x1C53BB6B, 0x1043A770, 0x1254C367, 0x1941A469}  # Cues, Chapters, Tags, Attachments
_LARGE = {  # those directly inside the Segment, by which a reader finds its way
    *_TRAILERS, 0x1A45DFA3, 0x114D9B74, 0x1549A966, 0x1654AE6B, 0xEC, 0xBF,
}  # fmt: skip
_SMALL = {  # and those inside a Cluster or a group of blocks
    _TIME, 0xA7, 0xAB, 0x5854, 0xAF, 0xA2, 0x75A1, 0x9B, 0xFA, 0xFB, 0xFD, 0xA4, 0x75A2, 0x8E, 0xC8,
}  # fmt: skip


def _element(asked: Asked, at: int) -> tuple[int, int, int | None]:
    """Read an element's id, where its content starts, and its length: None where the file leaves that open."""
    head = asked.at(at, 12)
    width = 9 - head[0].bit_length() if head else 9
    if width > 4 or len(head) <= width or not head[width]:
        return 0, at, 0
    length = 9 - head[width].bit_length()
    value = int.from_bytes(head[width : width + length]) & (1 << 7 * length) - 1
    return int.from_bytes(head[:width]), at + width + length, None if value == (1 << 7 * length) - 1 else value


def _elements_lead(asked: Asked, at: int, to: int) -> tuple[bool, int, int]:
    """Follow the elements from one place to another; say whether they lead there, and the last one's id and end."""
    last = end = 0
    while at < to:
        last, start, length = _element(asked, at)
        end = start if length is None or last in (_SEGMENT, _CLUSTER, _GROUP) else start + length
        if last in _BLOCKS and not 0 < asked.number(start, 1) & 0x7F <= len(asked.container.streams):
            last = 0  # a block of none of the tracks: no block
        if last in _BLOCKS:  # one that FFmpeg passed over is lost
            return start == to, last, end
        if last not in _LARGE | _SMALL | _BLOCKS | {_SEGMENT, _CLUSTER, _GROUP}:
            lost = last > 0xFFFFFF and _element(asked, start)[0] in (_TIME, 0xBF)  # a cluster under another name
            if last <= 0xFFFFFF or lost or end > to:
                return False, last, end
        at = end
    return at == to, last, end


def _matroska(asked: Asked) -> Verdict:
    """Follow the elements wherever bytes lie between two packets, and from the last packet to the end."""
    scan, at = asked.scan, 0
    name, start, length = _element(asked, at)
    while name not in (_SEGMENT, 0) and length is not None:
        at = start + length
        name, start, length = _element(asked, at)
    whole = start + length if name == _SEGMENT and length is not None else asked.size
    holes = [packets for last, next_one, packets in scan.gaps if not _leads(asked, last, next_one)[0]]
    if 0 in holes and scan.ticks and scan.ticks[0] * asked.stream.time_base > Fraction(1, 5):
        return Verdict(damage="its beginning can't be read")
    leads, name, end = _leads(asked, scan.place, min(whole, asked.size))
    are_all_clusters_here = name in _TRAILERS and end > asked.size
    if whole > asked.size and not are_all_clusters_here:
        return Verdict(asked.too_long("segment", whole))
    if name in _BLOCKS and end > asked.size:
        return Verdict(asked.too_long("last block", end))
    declared, reached = _declared_end(asked), scan.end * asked.stream.time_base
    if not leads and declared is not None and declared > reached + Fraction(1, 20):
        return Verdict(f"the pictures stop at {float(reached):.2f} s of {float(declared):.2f} s")
    if not leads and length is not None:
        holes.append(scan.packets)  # the last frames in the file need not be the last ones shown
    return Verdict(holes=tuple(holes), end=declared)


def _leads(asked: Asked, last: int, to: int) -> tuple[bool, int, int]:
    """Follow the elements behind a block, from where its packets begin; see `_elements_lead`."""
    ends = [last] if last == 0 else []
    for width in range(1, min(last, 9)):  # of the number before it that says how long the block is
        name, start, length = _element(asked, last - width - 1)
        if name in _BLOCKS and start == last and length is not None:
            ends.append(last + length)
    found = [_elements_lead(asked, end, to) for end in ends]
    return max(found, default=(False, 0, 0))


def _declared_end(asked: Asked) -> Fraction | None:
    """Return the video's end in seconds as the header has it: its own, or the file's if it is alone in there."""
    hours, *rest = asked.stream.metadata.get("DURATION", "").split(":")  # 00:01:30.500000000
    whole = None
    if asked.container.duration:
        whole = Fraction(asked.container.duration + max(asked.container.start_time or 0, 0), av.time_base)
    with suppress(ValueError):
        minutes, seconds = rest
        own = 3600 * int(hours) + 60 * int(minutes) + Fraction(seconds)
        return own if whole is None else min(own, whole)
    return whole if len(asked.container.streams) == 1 else None


# --- Others ------------------------------------------------------------------------------------------------------


_OPEN = Verdict(doubt="its header leaves open how much there is: it may be cut short; by how much, it does not say")


def _stated(count: int) -> int:
    """A count of frames as the header has it; 0 where a program that wrote to a pipe left it open."""
    return 0 if count in (1 << 30, 0xFFFFFFFF) else count


def _avi(asked: Asked) -> Verdict:
    """Compare with the index at the end, or else with the header: FFmpeg estimates a length from what is there."""
    scan, stated = asked.scan, _stated(asked.stream.frames)
    has_index = scan.listed > 1 or _has_index(asked)  # FFmpeg makes one of what is there, if the file has none
    if not (has_index or stated):
        return _OPEN
    if _is_incomplete(asked) or (not has_index and scan.end < stated):
        counted = max(stated, scan.listed)
        return Verdict(f"it holds {scan.packets:,} of the {counted:,} frames that its header counts")
    if 0 < max(stated, scan.listed if has_index else 0) < scan.packets:
        return Verdict(damage=f"it holds {scan.packets:,} frames, and its header counts {stated:,}")
    return Verdict(end=stated * asked.stream.time_base if stated == scan.listed else None)  # the last may be repeated


def _has_index(asked: Asked) -> bool:
    """Follow the chunks of an AVI to its index."""
    at = 12
    while (name := asked.at(at, 4)) in (b"LIST", b"JUNK"):
        length = asked.number(at + 4, 4, "little")
        at += 8 + length + length % 2
    return name == b"idx1"


def _flv(asked: Asked) -> Verdict:
    """Its header states a length of all streams together, which is rounded, and mostly its size."""
    head = asked.at(0, 4096)
    place = head.find(b"filesize\0") + 9
    stated = np.frombuffer(head[place : place + 8], ">f8") if place >= 9 else []
    declared = Fraction(asked.container.duration or 0, av.time_base)
    slack = Fraction(1, 20) if len(stated) and stated[0] > asked.size else Fraction(1, 2)
    if asked.scan.reached + slack < declared:
        return Verdict(f"it stops at {float(asked.scan.reached):.2f} s of {float(declared):.2f} s")
    return Verdict()


def _asf(asked: Asked) -> Verdict:
    """Find the object that holds the data, right behind the header."""
    at = asked.number(16, 8, "little")
    return Verdict(asked.too_long("part that holds the data", at + asked.number(at + 16, 8, "little")))


_GIF_CONTROL = re.compile(rb"\x00!\xf9\x04.{4}\x00[!,].{2}", re.DOTALL)  # in front of each picture, with its time
_GIF_PICTURE = re.compile(rb"\x00,(.{8})[\x00-\x07\x40-\x47\x80-\x87\xc0-\xc7][\x01-\x08]", re.DOTALL)


def _gif(asked: Asked) -> Verdict:
    """Count pictures by their headers, of two kinds, and look for the mark of the end behind the last."""
    counted, last = _gif_pictures(asked, asked.size)
    if counted > asked.scan.packets and (again := asked.at(0, asked.size).find(b"GIF8", 1)) > 0:
        counted, last = _gif_pictures(asked, again)  # another file stands behind this one
    if counted > asked.scan.packets:
        return Verdict(damage=f"{asked.scan.packets:,} of its {counted:,} frames can be read")
    ends = not counted or _gif_ends(asked.at(last, asked.size))
    return Verdict("" if ends else "the mark of its end is missing")


def _gif_pictures(asked: Asked, end: int) -> tuple[int, int]:
    """Count the pictures up to a place, and say where the last of them begins."""
    controls, places, screens = 0, [0], [bytes(8)]
    for start in range(0, end, _MUCH):
        part = asked.at(start, min(_MUCH, end - start) + 11)  # each header has 12
        controls += len(_GIF_CONTROL.findall(part))
        pictures = list(_GIF_PICTURE.finditer(part))
        places += [start + picture.start() + 1 for picture in pictures]
        screens += [picture[1] for picture in pictures]
    corners = np.frombuffer(b"".join(screens), "<u2").reshape(-1, 2, 2).sum(axis=1)
    fitting = np.flatnonzero((corners <= np.frombuffer(asked.at(6, 4), "<u2")).all(axis=1))
    return max(controls, len(fitting) - 1), places[fitting[-1]]


def _gif_ends(data: bytes) -> bool:
    """Follow the blocks from a picture to the mark of the end."""
    at = 0
    with suppress(IndexError):
        while data[at] in b"!,":
            colors = data[at + 9] if data[at] == ord(",") else 0
            at += 2 if data[at] == ord("!") else 11 + (3 * 2 ** (1 + colors % 8) if colors & 0x80 else 0)
            while data[at]:
                at += 1 + data[at]
            at += 1
        return data[at] == ord(";")
    return False


def _apng(asked: Asked) -> Verdict:
    at, stated = 8, 0
    while (name := asked.at(at + 4, 4)) not in (b"IEND", b""):
        if name == b"acTL":
            stated = _stated(asked.number(at + 8, 4))
        at += 12 + asked.number(at, 4)
    if not (name or stated):
        return Verdict("the mark of its end is missing")
    if asked.scan.packets < stated:
        return Verdict(f"it holds {asked.scan.packets:,} of the {stated:,} frames that its header counts")
    return Verdict()


def _ivf(asked: Asked) -> Verdict:
    """Its header counts frames, or ticks in files by old versions of FFmpeg."""
    stated = _stated(asked.number(24, 4, "little"))
    if asked.scan.packets < stated and asked.scan.end < stated:
        return Verdict(f"it holds {asked.scan.packets:,} of the {stated:,} frames that its header counts")
    return Verdict(holes=tuple(before for _, _, before in asked.scan.gaps), doubt="" if stated else _OPEN.doubt)


def _mxf(asked: Asked) -> Verdict:
    """The first partition says where the footer begins: after its key, its length and six fields."""
    head = asked.at(0, 64)
    if not head.startswith(b"\x06\x0e\x2b\x34"):
        return Verdict()
    width = 1 + (head[16] & 0x7F if head[16] & 0x80 else 0)
    return Verdict(asked.too_long("body", int.from_bytes(head[16 + width + 24 :][:8]) + 1))


def _ogg(asked: Asked) -> Verdict:
    """Its last page bears a mark, and says how long it is."""
    start = max(0, asked.size - (1 << 17))
    tail = asked.at(start, 1 << 17)
    place = tail.rfind(b"OggS")
    page = tail[place:]
    length = 27 + page[26] + sum(page[27 : 27 + page[26]]) if place >= 0 and len(page) > 26 else 0
    if length > len(page):
        return Verdict(asked.too_long("last page", start + place + length))
    ends = length and page[5] & 4
    return Verdict(doubt="" if ends else "the mark of its end is missing: it may be cut short")


def _mpegts(asked: Asked) -> Verdict:
    """Its length stands nowhere; but its packets have one size, each begins with the same byte, and they are counted.

    FFmpeg marks the picture where the count breaks. It goes up to 16, so one break in 16 doesn't show; a longer look
    is taken where the times leave a gap. Where recordings were joined, the count breaks as well: at a keyframe, and
    mostly at another time.
    """
    scan = asked.scan
    size, sync = (192, 4) if asked.at(196, 1) == b"G" else (188, 0)
    ticks = np.unique(np.array(scan.ticks, np.int64))
    steps = np.diff(ticks)
    wide = ticks[1:][steps > 1.5 * np.median(steps)] if len(steps) else steps
    if len(wide) and (_loses_sync(asked, size, sync) or _skips(asked, steps)):
        holes = np.isin(scan.ticks, wide).nonzero()[0].tolist()
    else:
        holes = [number for number, _ in scan.torn if _gap(asked, number) <= _JOINED]
    rest = asked.size % size
    if rest > sync and asked.at(asked.size - rest + sync, 1) == b"G":
        words = "it ends within a packet, so its end is missing; how much, it does not say"
        return Verdict(holes=(*holes, scan.packets), doubt=words)
    breaks = sum(not is_key or _gap(asked, number) > _JOINED for number, is_key in scan.torn)
    words = f"its packets do not follow one another in {breaks} places: some are missing, or recordings were joined"
    return Verdict(holes=tuple(holes), doubt=words if breaks else "")


def _skips(asked: Asked, steps: np.ndarray) -> bool:
    """Say whether frames come evenly but for a few that are missing: their packets were taken for parts of others."""
    usual = np.median(steps)
    is_even = np.abs(steps / usual - np.round(steps / usual)).max() < 0.1
    return bool(is_even and (steps > 1.5 * usual).mean() < 0.05 and steps.max() * asked.stream.time_base <= _JOINED)


def _gap(asked: Asked, packets: int) -> float:
    """Return the longest time between frames near a packet, in seconds."""
    near = np.sort(asked.scan.ticks[max(packets - 16, 0) : packets + 16])
    return float(np.diff(near).max(initial=0) * asked.stream.time_base)


def _loses_sync(asked: Asked, size: int, sync: int) -> bool:
    """Say whether a packet of a transport stream doesn't begin with the byte that all begin with."""
    much = _MUCH // size * size
    parts = (np.frombuffer(asked.at(start, much), np.uint8) for start in range(sync, asked.size - much, much))
    *_, last = range(sync, asked.size, much)
    tail = np.frombuffer(asked.at(last, much), np.uint8)
    return any((part[::size] != ord("G")).any() for part in (*parts, tail[: len(tail) // size * size]))


def _rm(asked: Asked) -> Verdict:
    """Find the chunk that holds the data, behind those of the header."""
    at = 0
    while (name := asked.at(at, 4)) in (b".RMF", b"PROP", b"MDPR", b"CONT"):
        at += max(asked.number(at + 4, 4), 8)
    end = at + asked.number(at + 4, 4) - 18  # FFmpeg counts the head twice
    return Verdict(asked.too_long("part that holds the data", end) if name == b"DATA" else "")


def _raw(asked: Asked) -> Verdict:
    """No container says when its pictures are shown."""
    return Verdict(doubt=f"it states no times; {float(asked.stream.average_rate or 25):g} frames a second are supposed")


def _y4m(asked: Asked) -> Verdict:
    return Verdict("its last frame is incomplete" if asked.at(asked.scan.claimed, 5) == b"FRAME" else "")


def _dv(asked: Asked) -> Verdict:
    return Verdict(asked.too_long("last frame", asked.scan.claimed))


def _mpeg(asked: Asked) -> Verdict:
    """Find its last packet: one of those that say how long they are."""
    start = max(asked.size - (1 << 17), 0)
    *_, last = [None, *re.finditer(rb"\x00\x00\x01[\xbb-\xef](..)", asked.at(start, 1 << 17), re.DOTALL)]
    if last is None:
        return Verdict()
    return Verdict(asked.too_long("last packet", start + last.end() + int.from_bytes(last[1])))


def _nut(asked: Asked) -> Verdict:
    """An index ends it, and says at the end how long it is."""
    length = asked.number(asked.size - 12, 8)
    if asked.at(asked.size - length, 2) == b"NX":
        return Verdict()
    return Verdict(doubt="it has no index at its end: it may be cut short; how much would be missing, it does not say")


_KEEPS_CUT = ("gif", "apng")  # a copy of the packets would be cut short as well

_CLAIMS: dict[str, Callable[[Asked], Verdict]] = {
    "apng": _apng,
    "asf": _asf,
    "avi": _avi,
    "dv": _dv,
    "flv": _flv,
    "gif": _gif,
    "ivf": _ivf,
    "h264": _raw,
    "hevc": _raw,
    "m4v": _raw,
    "matroska": _matroska,
    "mjpeg": _raw,
    "mov": _mov,
    "mpeg": _mpeg,
    "mpegts": _mpegts,
    "mpegvideo": _raw,
    "mxf": _mxf,
    "nut": _nut,
    "ogg": _ogg,
    "rm": _rm,
    "yuv4mpegpipe": _y4m,
}
