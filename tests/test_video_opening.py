"""Which files are opened, which stream of them is read, and what the others are refused with."""

import re
import shutil
import socket
import subprocess
import sys
import warnings
from fractions import Fraction
from pathlib import Path

import av
import pytest
from PIL import Image
from video_files import draw_number, read_numbers, write_video

from vilamp_lite.video.source import SampledVideo, probe, stream_frames
from vilamp_lite.video.timeline import VideoError

HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:12\n#EXTINF:12,\n{}\n"
DASH = (
    '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT6S" '
    'profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period><AdaptationSet mimeType="video/mp4">'
    '<Representation id="1" bandwidth="1"><BaseURL>{}</BaseURL></Representation></AdaptationSet></Period></MPD>'
)
SDP = "v=0\nc=IN IP4 127.0.0.1\nm=video {} RTP/AVP 96\na=rtpmap:96 H264/90000\n"
# Name, text with the place of what it leads to, and the kind that the refusal names.
PLAYLISTS = [
    ("whole.m3u8", HLS + "#EXT-X-ENDLIST\n", "HLS"),
    ("live.m3u8", HLS, "HLS"),
    ("called.mp4", HLS + "#EXT-X-ENDLIST\n", "HLS"),
    ("variant.m3u8", "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{}\n", "HLS"),
    ("itself.m3u8", "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\nitself.m3u8\n", "HLS"),
    ("list.mp4", "ffconcat version 1.0\nfile {}\n", "ffconcat"),
    ("itself.mp4", "ffconcat version 1.0\nfile itself.mp4\n", "ffconcat"),
    ("a.mpd", DASH, "DASH"),
    ("a.sdp", SDP, "SDP"),
]


@pytest.fixture(scope="module")
def decoy(tmp_path_factory) -> Path:
    """A video that playlists lead to."""
    return write_video(tmp_path_factory.mktemp("decoy") / "decoy.ts")


@pytest.fixture
def listener():
    """A server that nobody should call; it is told with what is written."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        yield server


def written_playlists(folder: Path, *targets: object) -> list[tuple[Path, str]]:
    files = []
    for number, target in enumerate(targets):
        (folder / str(number)).mkdir()
        for name, text, kind in PLAYLISTS:
            file = folder / str(number) / name
            file.write_text(text.format(target))
            files.append((file, kind))
    return files


def test_a_playlist_is_refused_by_its_kind(tmp_path, decoy, listener):
    port = listener.getsockname()[1]
    for file, kind in written_playlists(tmp_path, decoy, decoy.name, f"http://127.0.0.1:{port}/a.ts", port):
        shutil.copy(decoy, file.parent)  # for relative names
        with pytest.raises(VideoError, match=rf"is a playlist \({kind}\)"):
            probe(file)
    with pytest.raises(BlockingIOError):  # nobody has called
        listener.accept()


@pytest.mark.skipif(not shutil.which("strace"), reason="strace isn't installed")
def test_looking_at_a_playlist_opens_no_other_file_and_no_socket(tmp_path, decoy):
    files = [file for file, _ in written_playlists(tmp_path, decoy, "http://127.0.0.1:9/a.ts")]
    shutil.copy(decoy, pattern := tmp_path / "img%03d.png")
    shutil.copy(decoy, tmp_path / "img001.png")
    log = tmp_path / "log"
    code = (
        "import sys; from vilamp_lite.video.source import probe\n"
        "for path in sys.argv[1:]:\n"
        "    print('asked', flush=True)\n"
        "    try: probe(path)\n"
        "    except ValueError: pass\n"
    )
    command = ["strace", "-f", "-o", log, "-e", "trace=open,openat,socket,connect,write"]
    subprocess.run([*command, sys.executable, "-c", code, *files, pattern], check=True, capture_output=True, timeout=60)
    asked = log.read_text().split('write(1, "asked', 1)[1]
    opened = set(re.findall(r'open(?:at)?\([^"]*"([^"]*)"', asked))
    assert {str(file) for file in files} <= opened  # the log is one of this
    strangers = {name for name in opened if name.startswith(str(tmp_path.parent))} - {str(file) for file in files}
    assert strangers <= {str(pattern)}
    assert str(decoy) not in opened
    assert not re.search(r"socket\(|connect\(", asked)


@pytest.mark.parametrize("name", ["img%03d.png", "img%d.jpg", "img%02d.gif"])
def test_a_name_that_is_a_pattern_never_shows_another_file(tmp_path, name):
    """The strange name itself is read, as a file of its kind: a GIF has more pictures than one."""
    for number in range(3):
        Image.fromarray(draw_number(8 + number)).save(tmp_path / (name % number))
    Image.fromarray(draw_number(7)).save(tmp_path / name)
    assert shown_with_words(tmp_path / name) == ([7], [])


@pytest.mark.parametrize(
    "name", ["a%03d.mp4", "a%03d.gif", "100%.mp4", "a[1]*?.mp4", "file:a.mp4", "concat:a|b.mp4", "still?.png"]
)
def test_other_strange_names_are_names(tmp_path, name):
    if name.endswith("png"):
        Image.fromarray(draw_number(7)).save(tmp_path / name)
    else:
        codec = {"codec": "gif", "pix_fmt": "rgb8"} if name.endswith("gif") else {}
        write_video(tmp_path / name, count=8, **codec)
    assert probe(tmp_path / name).num_frames == (1 if name.endswith("png") else 8)


@pytest.mark.parametrize("url", ["https://example.com/a.mp4", "file:///a.mp4", "rtsp://camera/1"])
def test_a_url_is_told_from_a_missing_file(url):
    with pytest.raises(VideoError, match=f"^{url}: URLs are not read; pass the path"):
        probe(url)


@pytest.mark.parametrize(
    ("name", "is_pattern"),
    [("a%03d.png", 1), ("a%d.png", 1), ("a*.png", 1), ("a?.png", 1), ("100%.png", 0), ("a.png", 0)],
)
def test_a_pattern_of_names_is_told_from_a_missing_file(name, is_pattern, tmp_path):
    words = " (patterns of names are not read)" * is_pattern
    with pytest.raises(VideoError, match=re.escape(f"{name}: no such file{words}; pass the path")):
        probe(tmp_path / name)


# --- Streams -----------------------------------------------------------------------------------------------------

DEFAULT, NO_DEFAULT = av.stream.Disposition.default, av.stream.Disposition(0)


def write_two(path: Path, *, first: int = 60, default: int | None = 1, codecs: tuple[str, str]) -> Path:
    """Write two videos of numbers into one file: `first` small frames counted from 100, and 60 from 0."""
    with av.open(path, "w") as container:
        streams = []
        for index, (codec, size) in enumerate(zip(codecs, [(64, 96), (128, 192)], strict=True)):
            stream = container.add_stream(codec, rate=10)
            stream.height, stream.width = size
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream.disposition = DEFAULT if default is None or index == default else NO_DEFAULT
            streams.append(stream)
        for number in range(60):
            for index, stream in enumerate(streams):
                if index == 1 or number < first:
                    picture = draw_number(number + (100 if index == 0 else 0), stream.height, stream.width)
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        for stream in streams:
            container.mux(stream.encode(None))
    return path


def shown_with_words(path: Path) -> tuple[list[int], list[str]]:
    """The numbers shown at one frame per second, and what was warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        numbers = [number for batch in stream_frames(path) for number in read_numbers(batch.frames)]
    return numbers, [str(warning.message) for warning in caught]


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("second.mkv", {"default": 1, "codecs": ("libx264", "libx264")}, range(0, 60, 10)),
        ("second.mp4", {"default": 1, "codecs": ("libx264", "libx264")}, range(0, 60, 10)),
        ("first.mkv", {"default": 0, "codecs": ("libx264", "libx264")}, range(100, 160, 10)),
        ("cover.mkv", {"default": 1, "codecs": ("mjpeg", "libx264"), "first": 1}, range(0, 60, 10)),
        ("cover too.mkv", {"default": None, "codecs": ("mjpeg", "libx264"), "first": 1}, range(0, 60, 10)),
    ],
)
def test_the_stream_that_players_show_is_read_with_a_word_on_the_other(tmp_path, name, options, expected):
    numbers, words = shown_with_words(write_two(tmp_path / name, **options))
    assert numbers == list(expected)
    assert [bool(re.search(r"holds 2 video streams; stream \d is read", word)) for word in words] == [True]


def test_an_avif_sequence_is_not_its_first_picture(tmp_path):
    pictures = [Image.fromarray(draw_number(number)) for number in range(6)]
    pictures[0].save(tmp_path / "a.avif", save_all=True, append_images=pictures[1:], duration=1000)
    assert shown_with_words(tmp_path / "a.avif") == ([0, 1, 2, 3, 4, 5], [])


# --- Times -------------------------------------------------------------------------------------------------------


def test_theora_is_decoded_to_the_same_pictures_each_time():
    """Made by `ffmpeg -c:v libtheora -b:v 300k` of 30 numbered frames; with threads, one pass in three is wrong."""
    video = SampledVideo(Path(__file__).parent / "cases" / "theora.ogv", fps=25)
    for _ in range(30):
        assert [number for batch in video.batches() for number in read_numbers(batch.frames)] == list(range(30))


@pytest.mark.parametrize("offset", [95430, 95400, 95440, -20])
def test_times_below_zero(tmp_path, offset):
    """MPEG-TS counts to 95,443.7 s and starts again; FFmpeg makes times shortly before that negative."""
    path = write_video(tmp_path / "a.ts", container_options={"output_ts_offset": str(offset)})
    assert probe(path).duration == pytest.approx(6)
    assert shown_with_words(path) == (list(range(0, 60, 10)), [])


HOUR = 3600


@pytest.mark.parametrize(
    ("name", "gap"), [("a.flv", 450 * HOUR), ("a.mkv", 10**6 * HOUR), ("a.nut", 450 * HOUR), ("a.mp4", 3 * HOUR)]
)
@pytest.mark.parametrize(("since", "expected"), [(1, [0, 1, 10, 20, 30, 40, 50]), (30, [0, 10, 20, 29, 30, 40, 50])])
def test_a_clock_that_jumps_makes_no_samples(tmp_path, name, gap, since, expected):
    """As in a recording of a live stream: the first frames at 0, the others at the time of day."""
    ticks = [100 * number + (1000 * gap if number >= since else 0) for number in range(60)]
    path = write_video(tmp_path / name, ticks=ticks, time_base=Fraction(1, 1000))
    numbers, words = shown_with_words(path)
    assert numbers == expected
    assert [f"its clock jumps from {(since - 1) / 10:.2f} s to {gap + since / 10:.2f} s" in word for word in words] == [
        True
    ]
    with pytest.warns(UserWarning, match="its clock jumps"):
        dense = SampledVideo(path, fps=1000, max_frames=3)
    assert dense.info.duration == pytest.approx(gap + 6)  # what the file says
    assert dense.num_frames == 3


def test_a_jump_beside_a_lost_cluster_makes_no_lost_frames(tmp_path):
    ticks = [100 * number + (1000 * 450 * HOUR if number >= 30 else 0) for number in range(60)]
    path = write_video(
        tmp_path / "a.mkv", ticks=ticks, time_base=Fraction(1, 1000), container_options={"cluster_time_limit": "500"}
    )
    data = path.read_bytes()
    clusters = [match.start() for match in re.finditer(b"\x1f\x43\xb6\x75", data)]
    assert len(clusters) > 5
    for cluster in clusters[1:-1]:
        path.write_bytes(data[:cluster] + b"\x1e" + data[cluster + 1 :])
        with warnings.catch_warnings(action="ignore"):
            assert SampledVideo(path).num_frames <= 10


def test_a_picture_that_stands_for_an_hour_is_sampled_all_the_while(tmp_path):
    path = write_video(tmp_path / "a.mkv", count=3, ticks=[0, HOUR, HOUR + 1], time_base=Fraction(1))
    numbers, words = shown_with_words(path)
    assert numbers == [0] * (HOUR // 2 + 1) + [1] * (HOUR // 2) + [2]
    assert not words


@pytest.mark.parametrize("overlap", [0.5, 0.95])
def test_recordings_joined_with_an_overlap_are_refused_by_probe(tmp_path, overlap):
    first, second = (
        write_video(tmp_path / f"{start}.ts", bframes=2, container_options={"output_ts_offset": str(start)})
        for start in (0, 6 - overlap)
    )
    (joined := tmp_path / "joined.ts").write_bytes(first.read_bytes() + second.read_bytes())
    with pytest.raises(VideoError, match=r"timestamps run backwards, from .* \(recordings joined, or damage\)"):
        probe(joined)


@pytest.mark.parametrize(("first", "second"), [("mpeg2video", "h264"), ("h264", "mpeg2video"), ("h264", "hevc")])
def test_recordings_joined_with_another_codec_are_called_so(tmp_path, first, second):
    encoders = {"h264": "libx264", "hevc": "libx265", "mpeg2video": "mpeg2video"}
    quiet = {"x265-params": "log-level=none"}
    parts = [
        write_video(
            tmp_path / f"{start}.ts",
            rate=25,
            codec=encoders[codec],
            codec_options=quiet if codec == "hevc" else {},
            container_options={"output_ts_offset": str(start)},
        )
        for start, codec in ((0, first), (2.4, second))
    ]
    (joined := tmp_path / "joined.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    with (
        warnings.catch_warnings(action="ignore"),  # of packets that don't follow one another
        pytest.raises(VideoError, match=f"its codec changes from {first} to {second} before 4.00 s"),
    ):
        list(stream_frames(joined))


# --- Encryption --------------------------------------------------------------------------------------------------

KEY = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "0" * 31 + "1", "encryption_kid": "0" * 31 + "2"}


@pytest.mark.parametrize("codec", ["libx264", "libvpx-vp9"])
def test_an_encrypted_file_is_called_so(tmp_path, codec):
    quick = {"deadline": "realtime", "cpu-used": "8"} if codec == "libvpx-vp9" else {}
    path = write_video(tmp_path / "drm.mp4", codec=codec, codec_options=quick, container_options=KEY)
    with pytest.raises(VideoError, match="is encrypted"):
        probe(path)
