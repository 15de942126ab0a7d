"""A second look at GIF pictures: FFmpeg's decoder takes any data for one, and Pillow's counts the pixels."""

import warnings
from io import BytesIO

from PIL import Image

from vilamp_lite.video.display import MAX_PIXELS

_HEADER = b"GIF89a\x01\0\x01\0\0\0\0"  # the file's own stands in front of the first picture only


def is_whole_gif_picture(packet: bytes) -> bool:
    """Tell whether a packet's data makes as many pixels as its picture has: a changed bit mostly makes fewer or more.

    It takes nearly as long as decoding: sampling an intact GIF takes 1.7 to 1.9 times as long with it.
    """
    data = packet if packet.startswith(b"GIF8") else _HEADER + packet
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(BytesIO(data), formats=["GIF"]) as picture:
            if picture.width * picture.height <= MAX_PIXELS:  # FFmpeg refuses larger ones
                picture.load()
    except (OSError, EOFError, ValueError, Image.DecompressionBombError):
        return False
    return True
