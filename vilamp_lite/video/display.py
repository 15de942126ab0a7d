"""How players show a stored picture: turned or mirrored as its header says, and with square pixels."""

import struct
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple, TypeAlias

import av
import numpy as np
from av.sidedata.sidedata import Type
from PIL import ExifTags, Image

Matrix: TypeAlias = tuple[int, int, int, int]  # (a, b, c, d): the pixel at (x, y) is shown at (ax + cy, bx + dy)
Size: TypeAlias = tuple[int, int]  # height and width

# A batch of pictures [B, H, W, 3] fills no more, and one picture alone no more either.
BATCH_BYTES = 256_000_000
MAX_PIXELS = BATCH_BYTES // 3

# Encoders that round a width to an even one tell the rest as an aspect, such as 640:639; players' pixels show no such
# difference, and to resample for it would only blur.
_LEAST_STRETCH = Fraction(1, 100)
_TURNED: list[Matrix] = [(1, 0, 0, 1), (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0)]  # by 90° anticlockwise each
_BY_ORIENTATION: dict[int, Matrix] = {
    1: (1, 0, 0, 1),
    2: (-1, 0, 0, 1),
    3: (-1, 0, 0, -1),
    4: (1, 0, 0, -1),
    5: (0, 1, 1, 0),
    6: (0, 1, -1, 0),
    7: (0, -1, -1, 0),
    8: (0, -1, 1, 0),
}


class Stored(NamedTuple):
    """What a file's first picture is like.

    Attributes:
        size: As stored, but upright.
        matrix: The `display_matrix`.
        pixel_aspect: Width of a pixel by its height as the codec has it, or None; the container may overrule it.
    """

    size: Size
    matrix: Matrix | None
    pixel_aspect: Fraction | None


def display_matrix(path: Path, frame: av.VideoFrame) -> Matrix | None:
    """What the header says about turning and mirroring, if anything."""
    try:
        stated = frame.side_data.get(Type.DISPLAYMATRIX)
    except ValueError:  # PyAV hands out nothing where a photograph's EXIF data is with it
        return _photograph_matrix(path) or _TURNED[round(frame.rotation / 90) % 4]
    if stated is None:
        return None
    a, b, _, c, d, *_ = struct.unpack("=9i", memoryview(stated))
    return a, b, c, d


def _photograph_matrix(path: Path) -> Matrix | None:
    """The same of a still picture, read by Pillow."""
    with suppress(OSError), Image.open(path) as photograph:
        return _BY_ORIENTATION.get(photograph.getexif().get(ExifTags.Base.Orientation))
    return None


def upright(picture: np.ndarray, matrix: Matrix | None) -> np.ndarray:
    """Turn and mirror a picture [H, W, ...] into the nearest of the eight positions; not if no point keeps apart."""
    a, b, c, d = matrix or (1, 0, 0, 1)
    if a * d == b * c:
        return picture
    if abs(a) + abs(d) < abs(b) + abs(c):
        picture, a, d = picture.swapaxes(0, 1), c, b
    return picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def slants(matrix: Matrix | None) -> bool:
    """Tell a matrix that turns by no quarter turn, slants, or makes next to nothing of one side."""
    a, b, c, d = map(abs, matrix or (1, 0, 0, 1))
    less, more = sorted(((a, d), (b, c)), key=sum)
    return max(less) > min(more) / 100 or max(more) / 100 > min(more) > 0


def is_quarter_turn(matrix: Matrix | None) -> bool:
    """Tell a matrix that turns, or does nothing, from one that mirrors, slants or makes all points one."""
    a, b, c, d = matrix or (1, 0, 0, 1)
    return a * d != b * c and (a, b) == (d, -c) and 0 in (a, b)


def displayed_size(stored: Size, pixel_aspect: Fraction | None, matrix: Matrix | None) -> Size:
    """Height and width with square pixels: one side grows, none shrinks, as in browsers; then turned.

    Args:
        stored: Height and width of the picture in the file.
        pixel_aspect: Width of a pixel by its height; None or 0 where it isn't known.
        matrix: The `display_matrix`.
    """
    height, width = stored
    if pixel_aspect and abs(pixel_aspect - 1) >= _LEAST_STRETCH:
        if pixel_aspect > 1:
            width = round(width * pixel_aspect)
        else:
            height = round(height / pixel_aspect)
    height, width = upright(np.empty((height, width, 0)), matrix).shape[:2]
    return height, width


def resized(picture: np.ndarray, size: Size) -> np.ndarray:
    """Resample a picture [H, W, 3] to another height and width (bicubic), the same way for every decoder."""
    if picture.shape[:2] == size:
        return picture
    return np.asarray(Image.fromarray(picture).resize(size[::-1], Image.Resampling.BICUBIC))


def between_bars(picture: np.ndarray, shown: Size, size: Size) -> np.ndarray:
    """Fit a picture [H, W, 3] into another height and width, with black beside it where its shape is another.

    Args:
        picture: As stored, turned.
        shown: Its height and width as displayed.
        size: Height and width of the result.
    """
    scale = min(size[0] / shown[0], size[1] / shown[1])
    height, width = (max(1, round(side * scale)) for side in shown)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    canvas = np.zeros((*size, 3), np.uint8)
    canvas[top : top + height, left : left + width] = resized(picture, (height, width))
    return canvas
