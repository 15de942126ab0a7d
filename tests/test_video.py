"""What a user gets from each kind of video file: the right frames, or one clear VideoError."""

import copy
import json
import math
import os
import pickle
import re
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
import video_files
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from video_files import (
    cut_with_edit_list,
    draw_number,
    flip_bytes,
    read_numbers,
    truncate,
    write_audio,
    write_video,
)

from vilamp_lite.video.ahead import made_ahead
from vilamp_lite.video.source import FrameStream, SampledVideo, frames_at, probe, stream_frames
from vilamp_lite.video.timeline import VideoError, _nearest

try:
    import decord
except ImportError:
    decord = None

NTSC = Fraction(30000, 1001)
# Uneven, sparse (up to 2 s between frames) and starting late.
UNEVEN = np.cumsum([500, *(7 + i % 13 * 9 for i in range(40)), 1500, 2000, 40, 40]).tolist()
QUICK_VP9 = {"deadline": "realtime", "cpu-used": "8"}
HEVC = {"preset": "fast", "x265-params": "log-level=none"}  # open GOPs by default
HEVC_CLOSED = {"preset": "fast", "x265-params": "log-level=none:open-gop=0"}
OPEN_GOP = {"x264-params": "open-gop=1"}
INTRA_REFRESH = {"x264-params": "intra-refresh=1"}
AV1 = {"preset": "8", "crf": "20"}


def nearest_by_hand(times: list[float], fps: float, duration: float) -> list[int]:
    """The definition, one sample at a time: nearest frame, the earlier of two equally near."""
    return [
        min(range(len(times)), key=lambda frame: (abs(times[frame] - i / fps), frame))
        for i in range(math.ceil(duration * fps))
    ]


# --- The robustness table ----------------------------------------------------------------------------------------

Maker = Callable[[Path], Path]


@dataclass(frozen=True)
class Row:
    """One kind of file, and what sampling it at 2 fps gives.

    `expected` holds the numbers of the right frames, or what the VideoError says. `decord` says how decord is refused
    where it would get the file wrong; None: it gives the same as PyAV. `first` is the number in the first frame shown.
    `shows_in_decoding` marks damage that the headers don't show, so that `probe` succeeds. `warns` is the one warning.
    """

    name: str
    make: Maker
    expected: list[int] | str
    decord: str | None = None
    first: int = 0
    shows_in_decoding: bool = False
    warns: str | None = None


def video(name: str, **options) -> Maker:
    return lambda folder: write_video(folder / name, **options)


def changed(source: Maker, change: Callable[[Path, Path], Path]) -> Maker:
    """Make a file, then a changed copy of it."""

    def make(folder: Path) -> Path:
        original = source(folder)
        return change(original, original.with_name(f"changed_{original.name}"))

    return make


def written(name: str, content: bytes) -> Maker:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def picture(name: str) -> Maker:
    def make(folder: Path) -> Path:
        Image.fromarray(draw_number(7)).save(folder / name)
        return folder / name

    return make


def zero_middle(source: Path, path: Path) -> Path:
    data = bytearray(source.read_bytes())
    start, stop = int(0.4 * len(data)), int(0.6 * len(data))
    data[start:stop] = bytes(stop - start)
    path.write_bytes(data)
    return path


def joined(source: Path, path: Path) -> Path:
    path.write_bytes(2 * source.read_bytes())
    return path


EVERY_TENTH = list(range(0, 60, 10))
EVERY_FIFTH = list(range(0, 60, 5))
FASTSTART = {"movflags": "faststart"}
FRAGMENTED = {"movflags": "frag_keyframe+empty_moov"}
HALF = partial(truncate, share=0.55)
UNCLEAN = "keyframes that aren't clean starts"
NOT_MP4 = "only with MP4 and MOV"

TABLE = [
    Row("constant rate", video("plain.mp4"), EVERY_FIFTH),
    Row("quicktime", video("plain.mov"), EVERY_FIFTH),
    Row(
        "variable rate",
        video("uneven.mp4", count=45, ticks=UNEVEN, time_base=Fraction(1, 1000)),
        nearest_by_hand([(tick - 500) / 1000 for tick in UNEVEN], 2, (UNEVEN[-1] + 40 - 500) / 1000),
    ),
    Row("29.97 fps", video("ntsc.mp4", count=90, rate=NTSC), [0, 15, 30, 45, 60, 75, 89]),
    Row("B-frames", video("b.mp4", bframes=3), EVERY_FIFTH),
    Row("open GOP", video("open.mp4", bframes=3, codec_options=OPEN_GOP), EVERY_FIFTH, UNCLEAN),
    Row("intra refresh", video("pir.mp4", codec_options=INTRA_REFRESH), EVERY_FIFTH, UNCLEAN),
    Row("10 bit", video("ten.mp4", pix_fmt="yuv420p10le"), EVERY_FIFTH),
    Row("4:4:4", video("full.mp4", pix_fmt="yuv444p"), EVERY_FIFTH),
    Row(
        "edit list: 17 frames hidden",
        changed(video("e.mp4"), partial(cut_with_edit_list, start=1.7)),
        list(range(17, 60, 5)),
        "an edit list",
        first=17,
    ),
    Row("rotated 90", video("r90.mp4", rotation=90), EVERY_FIFTH),
    Row("rotated 180", video("r180.mp4", rotation=180), EVERY_FIFTH),
    Row("rotated 270", video("r270.mp4", rotation=-90), EVERY_FIFTH),
    Row("HEVC", video("hevc.mp4", codec="libx265", bframes=3, codec_options=HEVC), EVERY_FIFTH, UNCLEAN),
    Row("HEVC, closed GOP", video("h.mp4", codec="libx265", bframes=3, codec_options=HEVC_CLOSED), EVERY_FIFTH),
    Row("VP9 in mp4", video("vp9.mp4", codec="libvpx-vp9", codec_options=QUICK_VP9), EVERY_FIFTH),
    Row("VP9 in webm", video("vp9.webm", codec="libvpx-vp9", codec_options=QUICK_VP9), EVERY_FIFTH, NOT_MP4),
    Row("VP8", video("vp8.webm", codec="libvpx", codec_options=QUICK_VP9), EVERY_FIFTH, NOT_MP4),
    Row("AV1", video("av1.mp4", codec="libsvtav1", codec_options=AV1), EVERY_FIFTH, "the codec av1"),
    Row("MPEG-4 part 2", video("m4.mp4", codec="mpeg4", bframes=2), EVERY_FIFTH, "the codec mpeg4"),
    Row("MPEG-4 part 2 in avi", video("m4.avi", codec="mpeg4", bframes=2), EVERY_FIFTH, NOT_MP4),
    Row("MPEG-2", video("m2.mpg", codec="mpeg2video", rate=25, bframes=2), [0, 12, 25, 37, 50], NOT_MP4),
    Row(
        "B-frames avi can't time",
        video("b.avi", bframes=2),
        "timestamps are out of order",
        NOT_MP4,
        shows_in_decoding=True,
    ),
    Row("MPEG-TS, starting late", video("late.ts", bframes=2), EVERY_FIFTH, NOT_MP4),
    Row("two MPEG-TS joined", changed(video("a.ts"), joined), "timestamps run backwards"),
    Row("flash", video("a.flv", bframes=2), EVERY_FIFTH, NOT_MP4),
    Row("matroska, longer sound", video("a.mkv", audio_seconds=9), EVERY_FIFTH, NOT_MP4),
    Row("matroska, live", video("live.mkv", container_options={"live": "1"}), EVERY_FIFTH, NOT_MP4),
    Row("fragmented mp4", video("frag.mp4", container_options=FRAGMENTED), EVERY_FIFTH),
    Row("one frame", video("one.mp4", count=1), [0]),
    Row("png", picture("still.png"), [7], NOT_MP4, first=7),
    Row("jpeg", picture("still.jpg"), [7], NOT_MP4, first=7),
    Row("gif", video("a.gif", count=20, codec="gif", pix_fmt="rgb8"), [0, 5, 10, 15], NOT_MP4),
    Row("truncated mp4", changed(video("cut.mp4"), HALF), "cannot be opened as a video"),
    Row(
        "truncated mp4, faststart",
        changed(video("fast.mp4", container_options=FASTSTART, texture=True), HALF),
        "is cut short: the pictures stop at 3.* s of 6.00 s",
    ),
    Row("truncated matroska", changed(video("cut.mkv", audio_seconds=6), HALF), "is cut short"),
    Row("truncated avi", changed(video("cut.avi", codec="mpeg4"), HALF), "is cut short"),
    Row("truncated flash", changed(video("cut.flv"), HALF), "is cut short"),
    # MPEG-TS doesn't state its length: what arrived is all that is known, and that it ends within a packet.
    Row(
        "truncated MPEG-TS",
        changed(video("cut.ts", texture=True), HALF),
        [0, 5, 10, 15, 20, 25, 30],
        NOT_MP4,
        warns="its end is missing; how much, it does not say",
    ),
    Row(
        "zeros for a fifth of it",
        changed(video("hole.mp4", texture=True), zero_middle),
        "is damaged: no intact frame near 3.50 s of 6.00 s",
        "decord stopped",
        shows_in_decoding=True,
    ),
    Row("zero bytes", written("empty.mp4", b""), "is empty"),
    Row("nothing but zeros", written("zeros.mp4", bytes(5000)), "cannot be opened as a video"),
    Row("text", written("text.mp4", b"not a video\n" * 100), "cannot be opened as a video"),
    Row("text by name", written("text.txt", b"not a video\n" * 100), "is a text file"),
    Row("audio only", lambda folder: write_audio(folder / "sound.m4a"), "has no video stream"),
    Row("missing", lambda folder: folder / "missing.mp4", "no such file"),
    Row("directory", lambda folder: folder, "is a directory"),
    Row("device", lambda folder: Path("/dev/zero"), "is not a regular file"),
]


@pytest.fixture(scope="session")
def table_files(tmp_path_factory) -> dict[str, Path | str]:
    """Each row's file, or why it can't be made here."""
    folder = tmp_path_factory.mktemp("table")
    files = {}
    for row in TABLE:
        try:
            files[row.name] = row.make(folder)
        except pytest.skip.Exception as reason:
            files[row.name] = str(reason)
    return files


@pytest.fixture(scope="session")
def outcomes(table_files) -> Callable[[str], dict[str, dict]]:
    """What each file gives with a backend, found in a process of its own: a hang or a crash fails its row."""
    found: dict[str, dict[str, dict]] = {}

    def run(backend: str) -> dict[str, dict]:
        if backend not in found:
            files = {name: str(file) for name, file in table_files.items() if isinstance(file, Path)}
            command = [sys.executable, video_files.__file__, backend, *files.values()]
            try:
                lines = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
            except subprocess.TimeoutExpired as expired:
                lines = (expired.stdout or b"").decode()
            found[backend] = dict(zip(files, map(json.loads, lines.splitlines()), strict=False))
        return found[backend]

    return run


def check(row: Row, expected: list[int] | str, file: Path, outcome: dict | None) -> None:
    assert outcome is not None, f"{row.name}: hung, crashed the process, or raised something else than VideoError"
    if isinstance(expected, list):
        indices = [number - row.first for number in expected]
        assert (outcome["numbers"], outcome["indices"]) == (expected, indices), row.name
        assert len(outcome["warnings"]) == (row.warns is not None), row.name
        assert re.search(row.warns or "", "".join(outcome["warnings"])), row.name
    else:
        assert outcome["error"].startswith(f"{file}: ")
        assert re.search(expected, outcome["error"])


@pytest.mark.filterwarnings("ignore:.*its end is missing")
@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_each_kind_of_file(row, table_files, outcomes):
    path = table_files[row.name]
    if isinstance(path, str):
        pytest.skip(path)
    check(row, row.expected, path, outcomes("auto").get(row.name))
    if isinstance(row.expected, str) and not row.shows_in_decoding:
        with pytest.raises(VideoError, match=row.expected):
            probe(path)
        return
    info = probe(path)
    assert info.path == path
    assert info.fps == pytest.approx(info.num_frames / info.duration)
    if isinstance(row.expected, list):
        assert math.ceil(info.duration * 2) == len(row.expected)


@pytest.mark.skipif(decord is None, reason="decord isn't installed")
def test_decord_shows_the_same_or_is_refused(table_files, outcomes):
    for row in TABLE:
        if isinstance(path := table_files[row.name], Path):
            check(row, row.decord or row.expected, path, outcomes("decord").get(row.name))
            if row.decord:
                assert "use backend='auto' or 'pyav'" in outcomes("decord")[row.name]["error"]


# --- Sampling ----------------------------------------------------------------------------------------------------


def sample(path: Path, **options) -> tuple[list[int], np.ndarray, np.ndarray, np.ndarray]:
    """Numbers read from the pictures, then all batches joined."""
    frames, indices, timestamps = map(np.concatenate, zip(*stream_frames(path, **options), strict=True))
    return read_numbers(frames), frames, indices, timestamps


@pytest.fixture(scope="session")
def clips(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    write_video(folder / "plain.mp4", bframes=2)
    write_video(folder / "ntsc.mp4", count=90, rate=NTSC)
    write_video(folder / "uneven.mp4", count=45, ticks=UNEVEN, time_base=Fraction(1, 1000), bframes=2)
    write_video(folder / "uneven.mkv", count=45, ticks=UNEVEN, time_base=Fraction(1, 1000))
    write_video(folder / "sideways.mp4", rotation=90)
    return folder


@pytest.mark.parametrize("name", ["plain.mp4", "ntsc.mp4", "uneven.mp4", "uneven.mkv"])
def test_each_sample_is_the_nearest_frame(clips, name):
    info = probe(clips / name)
    everything = [time for batch in stream_frames(clips / name, fps=1000) for time in batch.timestamps]
    times = sorted(set(everything))
    assert len(times) == info.num_frames
    # Fractions, so that ties (20 samples of 10 frames a second) are ties.
    exact = [Fraction(time).limit_denominator(30000) for time in times]
    for fps in (0.1, 0.7, 1, 2, 2.5, 4, 20, 29.97, 40, Fraction(10, 3)):
        numbers, _, indices, timestamps = sample(clips / name, fps=fps)
        expected = nearest_by_hand(exact, Fraction(str(fps)), Fraction(info.duration).limit_denominator(30000))
        assert numbers == indices.tolist() == expected
        assert timestamps.tolist() == [times[frame] for frame in expected]


@given(st.lists(st.integers(0, 200), min_size=1, unique=True), st.lists(st.integers(-50, 450)))
def test_nearest_is_nearest(ticks, doubled_targets):
    ticks, targets = np.array(sorted(ticks)), np.array(sorted(doubled_targets)) / 2
    by_hand = [min(range(len(ticks)), key=lambda i: (abs(ticks[i] - target), i)) for target in targets]
    assert _nearest(ticks, targets).tolist() == by_hand


def test_max_frames_spreads_over_the_whole_video(clips):
    few = {1: [0], 2: [0, 50], 3: [0, 20, 50], 6: EVERY_TENTH, 7: EVERY_TENTH, 10**12: EVERY_TENTH}
    for most, expected in few.items():
        assert sample(clips / "plain.mp4", max_frames=most)[0] == expected


def test_batches_only_divide_the_result(clips):
    video = SampledVideo(clips / "plain.mp4", fps=2)
    (whole,) = video.batches(12)
    for batch_size in (1, 4, 7, 1000):
        batches = list(video.batches(batch_size))
        assert {len(batch.frames) for batch in batches[:-1]} <= {batch_size}
        assert 0 < len(batches[-1].frames) <= batch_size
        for joined_field, field in zip(map(np.concatenate, zip(*batches, strict=True)), whole, strict=True):
            np.testing.assert_array_equal(joined_field, field)
            assert joined_field.dtype == field.dtype


@pytest.mark.parametrize(
    "name", ["variable rate", "29.97 fps", "edit list: 17 frames hidden", "MPEG-TS, starting late", "one frame", "gif"]
)
def test_the_number_of_samples_is_known_before_decoding(table_files, name):
    info = probe(table_files[name])
    for fps, most in ((1, 10**6), (7.3, 10**6), (40, 10**6), (1, 4)):
        stream = stream_frames(table_files[name], fps=fps, max_frames=most)
        assert stream.info == info
        assert stream.num_frames == min(math.ceil(info.duration * fps), most)
        assert sum(len(batch.frames) for batch in stream) == stream.num_frames


def is_open(path: Path) -> bool:
    """Tell whether this process holds the file open (Linux)."""
    return any(link.is_symlink() and link.readlink() == path for link in Path("/proc/self/fd").iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_stream_closes_its_file(clips):
    path = clips / "plain.mp4"
    stream = stream_frames(path, batch_size=2)
    assert not is_open(path)
    next(stream)
    assert is_open(path)
    stream.close()
    assert not is_open(path)
    assert list(stream) == []
    stream = stream_frames(path, batch_size=6)
    next(stream)  # the last batch
    assert not is_open(path)


def test_types_and_shapes(clips):
    frames, indices, timestamps = next(stream_frames(str(clips / "sideways.mp4")))
    assert (frames.dtype, indices.dtype, timestamps.dtype) == (np.uint8, np.int64, np.float64)
    assert (frames.shape, indices.shape, timestamps.shape) == ((6, 192, 128, 3), (6,), (6,))
    info = probe(clips / "sideways.mp4")
    assert (info.height, info.width, info.codec, info.num_frames) == (192, 128, "h264", 60)
    assert (info.fps, info.duration) == (10.0, 6.0)


def test_size(clips):
    for size in ((64, 96), (300, 200), (128, 192), (17, 33)):
        numbers, frames, indices, _ = sample(clips / "plain.mp4", size=size)
        assert frames.shape == (6, *size, 3)
        assert numbers == indices.tolist() or min(size) < 20


def test_a_rate_means_its_decimals(tmp_path):
    """The float 0.1 is a little more than 1/10; ten seconds still hold one sample, and not a second at their end."""
    path = write_video(tmp_path / "ten.mp4", count=100, rate=10)
    assert stream_frames(path, fps=0.1).num_frames == 1


@pytest.mark.skipif(decord is None, reason="decord isn't installed")
def test_backends_agree_to_the_bit(table_files):
    """Wherever decord is trusted, at rates below and above the file's, as stored and resized."""
    trusted = [row.name for row in TABLE if isinstance(row.expected, list) and row.decord is None]
    for name in trusted:
        if isinstance(path := table_files[name], Path):
            for fps, size in ((0.3, None), (1, (60, 90)), (3, None), (10, (60, 90)), (30, None)):
                one, other = (sample(path, fps=fps, size=size, backend=backend) for backend in ("decord", "pyav"))
                for by_decord, by_pyav in zip(one, other, strict=True):
                    np.testing.assert_array_equal(by_decord, by_pyav)


def test_without_decord(clips, monkeypatch):
    monkeypatch.setitem(sys.modules, "decord", None)
    assert sample(clips / "plain.mp4", backend="auto")[0] == EVERY_TENTH
    with pytest.raises(VideoError, match="decord isn't installed here; use backend='auto' or 'pyav'"):
        stream_frames(clips / "plain.mp4", backend="decord")


# --- Damage ------------------------------------------------------------------------------------------------------


def damaged_copies(folder: Path, gop: int) -> list[Path]:
    """Twenty copies of one video, each with one inverted byte somewhere in the pictures."""
    source = write_video(folder / "whole.mp4", count=100, gop=gop, texture=True)
    share = np.random.default_rng(0).uniform(0.1, 0.9, 20)
    positions = (share * source.stat().st_size).astype(int)
    return [flip_bytes(source, folder / f"{i}.mp4", [position]) for i, position in enumerate(positions)]


def test_damaged_packets_are_skipped_and_counted(tmp_path):
    """Short GOPs: an intact frame is near, so the video is delivered whole, and a warning counts what was skipped."""
    misread = samples = warned = 0
    for path in damaged_copies(tmp_path, gop=10):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            numbers, _, indices, timestamps = sample(path, fps=5)
        assert len(numbers) == 50
        assert (abs(timestamps - np.arange(50) / 5) <= 1).all()
        misread += int((np.array(numbers) != indices).sum())
        samples += 50
        warned += any(re.search(r"skipped [1-9]\d* damaged packets?\b", str(item.message)) for item in caught)
    assert warned >= 15  # in a few files the byte changes a picture in a way that H.264 can't notice
    assert misread < 0.01 * samples


@pytest.mark.parametrize("batches", [8, 10])
def test_damage_is_reported_to_the_caller_who_stops(tmp_path, batches):
    path = damaged_copies(tmp_path, gop=10)[0]  # the eighth sample is lost
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        stream = stream_frames(path, batch_size=1)
        for _ in range(batches):
            next(stream)
        stream.close()
    assert len(caught) == 1
    assert "damaged packet" in str(caught[0].message)
    assert caught[0].filename == __file__


def test_damage_with_no_intact_frame_near_is_an_error(tmp_path):
    """Long GOPs: seconds of pictures depend on the spoilt one. They are refused, not passed off as right."""
    messages = []
    for path in damaged_copies(tmp_path, gop=100):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                sample(path)
            except VideoError as error:
                messages.append(str(error))
    pattern = r"is damaged: no intact frame near \d\.\d\d s of 10.00 s"
    assert all(re.search(pattern, message) for message in messages)
    assert len(messages) >= 10


@pytest.mark.skipif(decord is None, reason="decord isn't installed")
def test_why_auto_is_not_decord(tmp_path):
    """Decord delivers spoilt pictures without a word, and no header tells that a file is damaged."""
    spoilt = 0
    for path in damaged_copies(tmp_path, gop=100):
        numbers, _, indices, _ = sample(path, fps=10, backend="decord")
        spoilt += int((np.array(numbers) != indices).sum())
    assert spoilt > 50


# --- Parameters --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("fps", [0, -1, math.nan, math.inf, 1e9, "1", None, True, [1.0]]),
        ("max_frames", [0, -1, 1.5, math.nan, math.inf, "3", True]),
        ("batch_size", [0, -1, 1.5, math.nan, None, "3", True]),
        ("size", [(), (3,), (1, 2, 3), (0, 5), (5, -1), (5, math.nan), 5, "ab", (1.5, 2)]),
        ("backend", ["", "opencv", None, 3]),
        ("path", ["", None, 3, b"video.mp4", ["video.mp4"]]),
    ],
)
def test_nonsense_is_refused_by_name(clips, name, values):
    for value in values:
        arguments = {"path": clips / "plain.mp4", name: value}
        with pytest.raises(ValueError, match=rf"^{name}.* got .*") as caught:
            stream_frames(arguments.pop("path"), **arguments)  # the call itself, not the first batch
        assert not isinstance(caught.value, VideoError)
        if name == "path":
            with pytest.raises(ValueError, match=r"^path must be .* got "):
                probe(value)


def test_numpy_numbers_are_numbers(clips):
    numbers = sample(clips / "plain.mp4", fps=np.float32(1), max_frames=np.int64(3), batch_size=np.int32(2))[0]
    assert numbers == [0, 20, 50]


# --- Memory ------------------------------------------------------------------------------------------------------

MEMORY = """
import resource, sys
from vilamp_lite.video.source import stream_frames
count = sum(len(batch.frames) for batch in stream_frames(sys.argv[1], fps=float(sys.argv[2]), backend="pyav"))
print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs the resource module")
def test_memory_does_not_grow_with_the_number_of_samples(tmp_path):
    path = write_video(tmp_path / "long.mp4", count=2000, gop=250, codec_options={"preset": "ultrafast"})

    def peak(fps: float) -> tuple[int, int]:
        command = [sys.executable, "-c", MEMORY, str(path), str(fps)]
        count, megabytes = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=60
        ).stdout.split()
        return int(count), int(megabytes)

    (few, small), (many, large) = peak(1), peak(10)
    assert (few, many) == (200, 2000)
    assert large - small < 25, "MB; 1,800 more pictures are 130 MB"


def test_the_next_batch_is_decoded_meanwhile_and_no_other(clips):
    stream = stream_frames(clips / "plain.mp4", fps=2, batch_size=5)
    begun = [threading.Event() for _ in range(3)]

    def noted():
        for event in begun:
            event.set()
            yield next(stream)

    batches = made_ahead(FrameStream(noted(), stream.num_frames, stream.info))
    next(batches)
    assert begun[1].wait(timeout=60)
    assert not begun[2].is_set()
    batches.close()
    assert not begun[2].is_set()


def test_decoding_ahead_fails_where_decoding_does(table_files):
    options = {"fps": 2, "batch_size": 5}
    whole = []
    with pytest.raises(VideoError, match="is damaged"):
        whole.extend(stream_frames(table_files["zeros for a fifth of it"], **options))
    ahead = []
    with pytest.raises(VideoError, match="is damaged"):
        ahead.extend(made_ahead(stream_frames(table_files["zeros for a fifth of it"], **options)))
    assert len(ahead) == len(whole) == 1
    assert all(np.array_equal(one, other) for one, other in zip(*ahead, *whole, strict=True))


@pytest.fixture
def opened(monkeypatch) -> list[Path]:
    """The files that `av.open` opens."""
    paths, av_open = [], av.open
    monkeypatch.setattr(
        av, "open", lambda path, *args, **options: paths.append(path) or av_open(path, *args, **options)
    )
    return paths


@pytest.mark.filterwarnings("ignore:.*its end is missing")
@pytest.mark.parametrize("row", [row for row in TABLE if isinstance(row.expected, list)], ids=lambda row: row.name)
def test_every_pass_shows_the_same_to_the_bit(row, table_files, opened):
    """Two passes, some samples, and a pass that goes on with the file that those left open: one scan for all."""
    if isinstance(table_files[row.name], str):
        pytest.skip(table_files[row.name])
    video = SampledVideo(table_files[row.name], fps=2)
    first = list(video.batches(5))
    frames = np.concatenate([batch.frames for batch in first])
    last = video.num_frames - 1
    for samples in ([last], [last // 2, 0, last // 2]):
        np.testing.assert_array_equal(video.at(samples), frames[samples])
    for batches in (video.batches(5), stream_frames(table_files[row.name], fps=2, batch_size=5)):
        for batch, known in zip(batches, first, strict=True):
            for one, other in zip(batch, known, strict=True):
                np.testing.assert_array_equal(one, other)
    has_index = table_files[row.name].suffix in (".mp4", ".mov", ".mkv", ".webm")
    assert len(opened) == 2 + (3 if has_index else 5)


def test_a_video_whose_file_was_left_open_can_be_copied(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    video_files.write_video(path, 5, rate=1)
    video = SampledVideo(path)
    shown = video.at([3])
    for copied in (copy.deepcopy(video), pickle.loads(pickle.dumps(video))):
        np.testing.assert_array_equal(copied.at([3]), shown)
    np.testing.assert_array_equal(video.at([3]), shown)


def test_a_file_that_changes_is_refused(tmp_path):
    """Written to, gone, or with other frames, another rate or another length in the same size and time."""
    path = tmp_path / "video.mp4"
    original, *others = (
        write_video(tmp_path / "made.mp4", **options).read_bytes()
        for options in ({"bframes": 2}, {}, {"rate": 11, "bframes": 2}, {"count": 55, "bframes": 2})
    )
    size = max(map(len, (original, *others)))

    def replaced(content: bytes) -> None:
        """MP4 allows zeros at the end."""
        path.write_bytes(content.ljust(size, b"\0"))
        os.utime(path, (1, 1))

    for change in (
        lambda: path.write_bytes(original.ljust(size, b"\0")),
        lambda: (path.write_bytes(original), os.utime(path, (1, 1))),
        path.unlink,
        *(partial(replaced, other) for other in others),
    ):
        replaced(original)
        video = SampledVideo(path, fps=2)
        assert sum(len(batch.frames) for batch in video.batches()) == 12
        change()
        with pytest.raises(VideoError, match=r"video\.mp4: has changed since it was scanned"):
            list(video.batches())


def test_frames_at_refuses_what_are_not_samples(table_files):
    """Before anything is decoded."""
    for samples in ([], [-1], [0.5], [[1]], [[1], [1, 2]], [10_000], "0"):
        with pytest.raises(ValueError, match="samples must"):
            frames_at(table_files["zeros for a fifth of it"], samples, fps=2)
    with pytest.raises(ValueError, match=r"samples must lie in 0…11 with this sampling, got 12"):
        frames_at(table_files["zeros for a fifth of it"], [0, 12], fps=2)


def test_frames_at_stops_at_the_last_sample(table_files):
    path = table_files["zeros for a fifth of it"]
    assert read_numbers(frames_at(path, [4, 1], fps=2)) == [20, 5]
    with pytest.warns(UserWarning, match="skipped 13 damaged packets; 0 of 2 samples"):
        assert read_numbers(frames_at(path, [4, 11], fps=2)) == [20, 55]
    with pytest.raises(VideoError, match="is damaged"):
        frames_at(path, [7, 4], fps=2)
