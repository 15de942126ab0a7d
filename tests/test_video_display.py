"""Pictures are shown as players show them: turned, mirrored, with square pixels, and never squeezed."""

import struct
import subprocess
import sys
import warnings
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageOps
from video_files import draw_number, read_number, read_numbers, write_video

from vilamp_lite.video.source import frames_at, probe, stream_frames
from vilamp_lite.video.timeline import VideoError

ONE = 1 << 16
TURNS = [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)]  # (a, b, c, d)
MIRRORED = [(-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 0), (0, -1, -1, 0)]
UNUSABLE = [(0, 0, 0, 0), (1, 0, 0, 0), (1, 1, 1, 1)]  # all points, or all of a line, fall together


def with_matrix(source: Path, path: Path, matrix: tuple[float, ...]) -> Path:
    """Write another display matrix into an MP4 file's track header."""
    data = bytearray(source.read_bytes())
    start = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (round(ONE * number) for number in matrix)
    data[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def moved(picture: np.ndarray, matrix: tuple[int, ...]) -> np.ndarray:
    """The definition: the pixel at (x, y) is shown at (ax + cy, bx + dy), moved into view."""
    a, b, c, d = matrix
    y, x = np.indices(picture.shape[:2])
    across, down = a * x + c * y, b * x + d * y
    across, down = across - across.min(), down - down.min()
    shown = np.empty((down.max() + 1, across.max() + 1, 3), np.uint8)
    shown[down, across] = picture
    return shown


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    return write_video(tmp_path_factory.mktemp("plain") / "plain.mp4", count=20)


@pytest.mark.parametrize("matrix", TURNS + MIRRORED)
def test_each_of_the_eight_positions(tmp_path, plain, matrix):
    path = with_matrix(plain, tmp_path / "a.mp4", matrix)
    expected = moved(frames_at(plain, [1])[0], matrix)
    np.testing.assert_array_equal(frames_at(path, [1])[0], expected)
    assert (probe(path).height, probe(path).width) == expected.shape[:2]


@pytest.mark.parametrize("matrix", UNUSABLE)
def test_a_matrix_that_maps_nothing_leaves_the_picture_as_stored(tmp_path, plain, matrix):
    path = with_matrix(plain, tmp_path / "a.mp4", matrix)
    np.testing.assert_array_equal(frames_at(path, [1]), frames_at(plain, [1]))
    assert (probe(path).height, probe(path).width) == (128, 192)


@pytest.mark.parametrize("matrix", [(1, 255, 0, 1), (0.7, 0.7, -0.7, 0.7), (1, 0, 0, -1 / ONE), (0, 200, 1, 0)])
def test_a_slanting_matrix_is_warned_of(tmp_path, plain, matrix):
    with pytest.warns(UserWarning, match="its header slants the pictures"):
        probe(with_matrix(plain, tmp_path / "a.mp4", matrix))


@pytest.mark.parametrize("matrix", TURNS + MIRRORED + UNUSABLE)
def test_decord_shows_the_same_position_or_is_refused(tmp_path, plain, matrix):
    pytest.importorskip("decord")
    path = with_matrix(plain, tmp_path / "a.mp4", matrix)
    if matrix in TURNS:
        np.testing.assert_array_equal(frames_at(path, [1], backend="decord"), frames_at(path, [1]))
    else:
        with pytest.raises(VideoError, match="mirrors the pictures"):
            frames_at(path, [1], backend="decord")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
def test_a_photograph_is_turned_as_pillow_turns_it(tmp_path, ending, orientation):
    photograph = Image.fromarray(draw_number(7))
    photograph.getexif()[0x0112] = orientation
    photograph.save(path := tmp_path / f"a.{ending}", exif=photograph.getexif())
    upright = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    shown = frames_at(path, [0])[0]
    assert shown.shape == upright.shape
    assert np.abs(shown.astype(int) - upright).mean() < 5  # two decoders of JPEG


# --- Pixels that aren't square -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("aspect", "options", "size"),
    [
        ("2/1", {}, (128, 384)),
        ("1/2", {}, (256, 192)),
        ("64/45", {"size": (144, 180)}, (144, 256)),  # PAL, 16:9
        ("8/9", {"size": (120, 180)}, (135, 180)),  # NTSC, 4:3
        ("2/1", {"rotation": 90}, (384, 128)),
        ("640/639", {"size": (240, 426)}, (240, 426)),  # a width that an encoder rounded
        ("1/1", {}, (128, 192)),
    ],
)
def test_pixels_become_square(tmp_path, aspect, options, size):
    path = write_video(tmp_path / "a.mp4", count=20, codec_options={"aspect": aspect}, **options)
    assert (probe(path).height, probe(path).width) == size
    frames = next(stream_frames(path)).frames
    assert frames.shape == (2, *size, 3)
    assert read_numbers(frames) == [0, 10]
    assert frames_at(path, [1], size=(64, 96)).shape == (1, 64, 96, 3)


def test_both_backends_make_pixels_square(tmp_path):
    pytest.importorskip("decord")
    path = write_video(tmp_path / "a.mp4", count=20, codec_options={"aspect": "3/2"})
    np.testing.assert_array_equal(frames_at(path, [0, 1], backend="decord"), frames_at(path, [0, 1]))


# --- Pictures that change within a file --------------------------------------------------------------------------


def shown_with_words(path: Path, **options) -> tuple[np.ndarray, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        frames = np.concatenate([batch.frames for batch in stream_frames(path, **options)])
    return frames, [str(warning.message) for warning in caught]


def joined(folder: Path, first: dict, second: dict) -> Path:
    """Two recordings of 2 s in one MPEG-TS file, the second from 2 s on."""
    parts = [
        write_video(folder / f"{start}.ts", count=20, container_options={"output_ts_offset": str(start)}, **options)
        for start, options in ((0, first), (2, second))
    ]
    (path := folder / "joined.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


@pytest.mark.parametrize(
    ("first", "second", "box", "other"),
    [
        ({}, {"size": (256, 384)}, (slice(None), slice(None)), "384 × 256"),
        ({}, {"size": (384, 256)}, (slice(None), slice(53, 138)), "256 × 384"),  # turned upright: bars beside it
        ({}, {"codec_options": {"aspect": "2/1"}}, (slice(32, 96), slice(None)), "384 × 128"),  # from 4:3 to 16:9, say
    ],
)
def test_pictures_that_change_size_are_fitted_in_with_a_word(tmp_path, first, second, box, other):
    path = joined(tmp_path, first, second)
    frames, words = shown_with_words(path)
    assert read_numbers(frames[:2]) == [0, 10]
    assert read_numbers(frame[box] for frame in frames[2:]) == [0, 10]
    outside = np.ones(frames.shape[1:3], bool)
    outside[box] = False
    assert not frames[2:, outside].any()
    assert len(words) == 1
    assert f"its pictures change at 2.00 s from 192 × 128 to {other}" in words[0]


def test_a_tall_picture_is_squeezed_by_no_backend(tmp_path):
    pytest.importorskip("decord")
    path = tmp_path / "a.mp4"
    with av.open(joined(tmp_path, {}, {"size": (384, 256)})) as source, av.open(path, "w") as container:
        copy = container.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = copy
                container.mux(packet)
    with pytest.raises(VideoError, match="pictures that change size"):
        frames_at(path, [0], backend="decord")
    with pytest.warns(UserWarning, match="its pictures change at"):
        assert read_number(frames_at(path, [3])[0][:, 53:138]) == 10


# --- Pictures that are too large ---------------------------------------------------------------------------------


def bomb(path: Path, height: int, width: int) -> Path:
    """A GIF of 6 frames of one pixel each, on a screen of any size, in under a kilobyte."""
    screen = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)
    delay = b"\x21\xf9\x04\x04\x64\x00\x00\x00"
    pixel = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    path.write_bytes(screen + 6 * (delay + pixel) + b"\x3b")
    return path


MEASURED = """
import sys
from vilamp_lite.video.source import stream_frames
try:
    for batch in stream_frames(sys.argv[1], batch_size=64):
        print(len(batch.frames), batch.frames.nbytes)
except ValueError as error:
    print(error)
print(int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) // 1000)
"""


def measured(path: Path) -> tuple[list[str], int]:
    """What a process of its own prints that reads a whole file, and its memory in MB."""
    command = [sys.executable, "-c", MEASURED, path]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert not done.stderr
    *lines, memory = done.stdout.splitlines()
    return lines, int(memory)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("size", [(10_000, 10_000), (2_000, 65_535), (65_535, 65_535)])
def test_a_bomb_is_refused_before_its_pictures_are_allocated(tmp_path, size):
    path = bomb(tmp_path / "a.gif", *size)
    lines, memory = measured(path)
    assert lines == [f"{path}: its pictures hold more than 85 million pixels each; scale them down with ffmpeg"]
    assert memory < 200


def test_an_aspect_may_not_make_a_bomb(tmp_path):
    path = write_video(tmp_path / "a.mp4", count=1, size=(2100, 4096), codec_options={"aspect": "10/1"})
    with pytest.raises(VideoError, match="more than 85 million pixels"):
        probe(path)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_batches_are_sized_by_their_bytes(tmp_path):
    lines, _ = measured(bomb(tmp_path / "a.gif", 4000, 5000))
    rows, sizes = zip(*(map(int, line.split()) for line in lines), strict=True)
    assert rows == (4, 2)
    assert max(sizes) <= 256_000_000


def test_a_size_that_is_asked_for_has_the_same_limit(plain):
    with pytest.raises(ValueError, match=r"size must be of at most 85,333,333 pixels, got \(10000, 10000\)"):
        frames_at(plain, [0], size=(10_000, 10_000))


def test_an_animated_webp_is_no_damaged_file(tmp_path, monkeypatch):
    pictures = [Image.fromarray(draw_number(number)) for number in range(3)]
    pictures[0].save(tmp_path / "a.webp", save_all=True, append_images=pictures[1:])
    with pytest.raises(VideoError, match="is an animated WebP, which this build of PyAV can't decode") as caught:
        probe(tmp_path / "a.webp")
    monkeypatch.chdir(tmp_path)
    exec(str(caught.value).partition("Pillow: ")[2])
    assert read_numbers(frames_at("a.gif", [0, 1, 2], fps=probe("a.gif").fps)) == [0, 1, 2]
