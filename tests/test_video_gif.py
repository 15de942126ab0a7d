"""GIF's decoder passes any data as a picture, so another looks at it first."""

import warnings
from pathlib import Path

import pytest
from PIL import Image
from video_files import draw_number, report, write_video

from vilamp_lite.video import VideoError, stream_frames

COUNT = 30


@pytest.fixture
def numbered(tmp_path: Path) -> Path:
    return write_video(tmp_path / "numbered.gif", COUNT, codec="gif", pix_fmt="gray")


def test_a_changed_bit_is_noticed(numbered: Path, tmp_path: Path) -> None:
    whole, path = numbered.read_bytes(), tmp_path / "damaged.gif"
    picture = whole.index(b",", whole.index(b"!\xf9\x04", len(whole) // 2)) + 12  # its data, behind its header
    told = 0
    for byte in range(40):
        data = bytearray(whole)
        data[picture + byte] ^= 1 << byte % 8
        path.write_bytes(data)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                list(stream_frames(path, fps=10))
                told += bool(caught)
            except VideoError:
                told += 1
    assert told >= 30, told  # of 40; the others give as many pixels, in another shade


@pytest.mark.parametrize("choices", [{}, {"interlace": True}, {"optimize": True}, {"disposal": 2}])
def test_intact_ones_of_other_writers_are_fine(tmp_path: Path, choices: dict) -> None:
    path = tmp_path / "pillow.gif"
    first, *others = (Image.fromarray(draw_number(number)).convert("P", colors=8 + number) for number in range(COUNT))
    first.save(path, save_all=True, append_images=others, duration=500, **choices)
    assert report("pyav", str(path)) == {"numbers": [*range(COUNT)], "indices": [*range(COUNT)], "warnings": []}
