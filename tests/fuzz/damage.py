"""Damage as discs, cables and interrupted copies do it; the same seed does the same to the same bytes."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import av


def flip(data: bytearray, random: Random) -> bytes:
    """A few bits turn."""
    for _ in range(random.choice((1, 1, 3, 10, 30))):
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return data


def header(data: bytearray, random: Random, tables: Sequence[int]) -> bytes:
    """A field of one, two or four bytes changes, outside the packets."""
    size = random.choice((1, 2, 4))
    first = random.randrange(len(tables) - size)
    value = random.choice((bytes(size), b"\xff" * size, random.randbytes(size)))
    for position, byte in zip(tables[first : first + size], value, strict=True):
        data[position] = byte
    return data


def zero(data: bytearray, random: Random) -> bytes:
    """A block is lost."""
    return _zeroed(data, _block(data, random, 16, 512))


def zero_much(data: bytearray, random: Random) -> bytes:
    """A large block is lost."""
    return _zeroed(data, _block(data, random, len(data) // 20, len(data) // 4))


def cut_short(data: bytearray, random: Random) -> bytes:
    """The copy stopped on the way."""
    return data[: random.randint(len(data) // 20, 19 * len(data) // 20)]


def cut_end(data: bytearray, random: Random) -> bytes:
    """The copy stopped shortly before its end."""
    return data[: -random.randint(1, len(data) // 20)]


def cut_out(data: bytearray, random: Random) -> bytes:
    """A block is gone, and what follows moves up."""
    block = _block(data, random, 64, len(data) // 10)
    return data[: block.start] + data[block.stop :]


def swap(data: bytearray, random: Random) -> bytes:
    """Two blocks change places."""
    size = random.randint(64, len(data) // 10)
    first = random.randrange(len(data) - 2 * size)
    second = random.randrange(first + size, len(data) - size)
    one, other = slice(first, first + size), slice(second, second + size)
    data[one], data[other] = data[other], data[one]
    return data


def duplicate(data: bytearray, random: Random) -> bytes:
    """A block is there twice."""
    block = _block(data, random, 64, len(data) // 10)
    return data[: block.stop] + data[block.start :]


def garbage(data: bytearray, random: Random) -> bytes:
    """Something else follows."""
    return data + random.randbytes(random.randint(1, 4096))


def itself(data: bytearray, random: Random) -> bytes:
    """The file follows itself."""
    return data + data


# Some come more often: there are more places that they can hit. With 19, each meets every one of the 12 files.
_ONCE = [zero, zero_much, cut_end, cut_out, swap, duplicate, garbage, itself]
DAMAGES: list[Callable[..., bytes]] = [*[flip, header] * 4, flip, *[cut_short] * 2, *_ONCE]


def damaged(path: Path, seed: int) -> tuple[str, bytes]:
    """What was done to a file, and what is left of it."""
    damage, data, random = DAMAGES[seed % len(DAMAGES)], bytearray(path.read_bytes()), Random(seed)
    return damage.__name__, bytes(damage(data, random, *[tables(path)] * (damage is header)))


def tables(path: Path) -> list[int]:
    """Positions of the bytes around the pictures."""
    data, at, inside = path.read_bytes(), 0, set()
    if path.suffix == ".ts":  # pictures come in slices of 188 bytes, each with a header of its own
        return [position for position in range(len(data)) if position % 188 < 12]
    if path.suffix == ".gif":  # FFmpeg counts a picture's own header, and that of the file, to the packet
        starts = [0, *(match.start() for match in re.finditer(b"\x21\xf9\x04", data))]
        return [position for start in starts for position in range(start, start + 19)]
    with av.open(path) as container:
        for packet in container.demux(video=0):
            if packet.size:
                at = data.index(bytes(packet), at) + packet.size
                inside.update(range(at - packet.size, at))
    return sorted(set(range(len(data))) - inside)


def spoilt_frames(path: Path, data: bytes) -> set[int]:
    """Frames whose bytes, or those of frames that they build upon, have changed; none where bytes have moved."""
    whole = path.read_bytes()
    if len(data) != len(whole):
        return set()
    with av.open(path) as container:
        packets = [(packet.pos, packet.is_keyframe) for packet in container.demux(video=0) if packet.size]
    first = [number for number, (_, is_key) in enumerate(packets) if is_key]
    groups = zip(first, [*first[1:], len(packets)], strict=True)
    starts = [*(packets[number][0] for number in first), len(data)]
    return {
        number
        for (one, other), start, end in zip(groups, starts, starts[1:], strict=False)
        if data[start:end] != whole[start:end]
        for number in range(one, other)
    }


def _block(data: bytearray, random: Random, least: int, most: int) -> slice:
    size = random.randint(least, most)
    start = random.randrange(len(data) - size)
    return slice(start, start + size)


def _zeroed(data: bytearray, block: slice) -> bytes:
    data[block] = bytes(block.stop - block.start)
    return data
