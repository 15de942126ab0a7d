"""Files that lost something, told by what they say of themselves; and intact ones that only look like it."""

import re
import shlex
import struct
import tracemalloc
import warnings
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import pytest
from video_files import read_numbers, truncate, write_video

from vilamp_lite.video.source import SampledVideo, probe
from vilamp_lite.video.timeline import VideoError

QUICK = {"deadline": "realtime", "cpu-used": "8"}
FRAGMENTED = {"movflags": "frag_keyframe+empty_moov"}
DASH = {"movflags": "dash+frag_keyframe+global_sidx"}
LIVE = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
CMAF = {"movflags": "cmaf+frag_keyframe"}
CONTAINERS = {  # six seconds or so in each
    "mpeg4.avi": {"codec": "mpeg4"},
    "mjpeg.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "a.wmv": {"codec": "wmv2", "texture": True},
    "plain.mp4": {"bframes": 2},
    "fast.mp4": {"container_options": {"movflags": "faststart"}, "texture": True},
    "frag.mp4": {"container_options": FRAGMENTED, "bframes": 2, "texture": True},
    "dash.mp4": {"container_options": DASH, "texture": True},
    "cmaf.mp4": {"container_options": CMAF, "texture": True},
    "a.mkv": {"bframes": 2, "texture": True, "audio_seconds": 6},
    "live.mkv": {"container_options": {"live": "1"}, "texture": True},
    "a.webm": {"codec": "libvpx-vp9", "codec_options": QUICK},
    "a.flv": {"texture": True},
    "a.ivf": {"codec": "libvpx", "codec_options": QUICK},
    "a.y4m": {"codec": "rawvideo", "count": 20},
    "a.gif": {"codec": "gif", "pix_fmt": "rgb8"},
    "a.apng": {"codec": "apng", "pix_fmt": "rgb24", "count": 20},
    "a.ogv": {"codec": "libvpx", "codec_options": QUICK},
    "a.dv": {"codec": "dvvideo", "rate": 25, "count": 20, "size": (576, 720), "audio_seconds": 0.8},
    "a.mxf": {"codec": "mpeg2video", "rate": 25, "count": 100},
    "a.mpg": {"codec": "mpeg2video", "rate": 25, "count": 100, "texture": True},
    "a.nut": {"codec": "mpeg4"},
    "a.ts": {"bframes": 2, "texture": True},
    "a.m2ts": {"bframes": 2, "texture": True},
}


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> Callable[[str], Path]:
    """An intact file in one of the containers."""
    folder = tmp_path_factory.mktemp("whole")
    return lambda name: folder / name if (folder / name).exists() else write_video(folder / name, **CONTAINERS[name])


def shown(path: Path, fps: float = 10) -> tuple[list[int], list[int], str]:
    """The number in each picture, its position, and what was said."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        batches = list(SampledVideo(path, fps=fps).batches())
    numbers = [number for batch in batches for number in read_numbers(batch.frames)]
    positions = [int(position) for batch in batches for position in batch.indices]
    return numbers, positions, "\n".join(str(item.message) for item in caught)


def told(path: Path) -> str:
    """What is said of a file, one way or the other."""
    try:
        return shown(path)[2]
    except VideoError as error:
        return str(error)


def copied(source: Path) -> Path:
    """As `ffmpeg -i source -c copy` does it."""
    path = source.with_stem(f"copy_{source.stem}")
    with av.open(source) as reader, av.open(path, "w") as writer:
        streams = {s.index: writer.add_stream_from_template(s) for s in reader.streams}
        for packet in reader.demux():
            if packet.size:
                packet.stream = streams[packet.stream_index]
                writer.mux(packet)
    return path


def encoded_again(source: Path) -> Path:
    """As `ffmpeg -i source` does it."""
    path = source.with_stem(f"again_{source.stem}")
    with av.open(source) as reader, av.open(path, "w") as writer:
        read = reader.streams.video[0]
        written = writer.add_stream(read.codec.canonical_name, rate=10)
        written.width, written.height = read.width, read.height
        written.pix_fmt = "rgb8" if path.suffix == ".gif" else "rgb24"
        frames = []
        with suppress(av.error.FFmpegError):
            frames.extend(reader.decode(video=0))
        for number, frame in enumerate(frames):
            frame.pts, frame.time_base = number, Fraction(1, 10)
            writer.mux(written.encode(frame.reformat(format=written.pix_fmt)))
        writer.mux(written.encode(None))
    return path


def patched(source: Path, path: Path, *changes: tuple[bytes, int, bytes]) -> Path:
    """Write bytes over others, each so many bytes behind the first place where its name stands."""
    data = bytearray(source.read_bytes())
    for name, offset, new in changes:
        at = data.index(name) + offset
        data[at : at + len(new)] = new
    path.write_bytes(data)
    return path


# --- Cut files ---------------------------------------------------------------------------------------------------

SAYS_NO_LENGTH = ("a.nut", "a.ts", "a.m2ts", "a.ogv")


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_cut_file_is_refused_and_what_is_left_can_be_kept(name, whole, tmp_path):
    """In containers that state nothing of their end, at least a warning tells."""
    for share in (0.27, 0.38, 0.57, 0.83):
        path = truncate(whole(name), tmp_path / f"{share}_{name}", share)
        said = told(path)
        if name in SAYS_NO_LENGTH:
            assert re.search("is cut short: |its end is missing|may be cut short", said), (share, said)
        elif name == "plain.mp4" or share < 0.5:  # some can't be opened without their end, or what all begins with
            assert said.startswith(f"{path}: "), (share, said)
        else:
            assert "is cut short: " in said, (share, said)
        if share > 0.5 and (advice := re.search(r"keep what there is with `ffmpeg -i \S+ (-c copy )?whole", said)):
            left = probe(copied(path) if advice[1] else encoded_again(path))
            assert 0 < left.num_frames <= probe(whole(name)).num_frames


def test_the_remedy_for_a_cut_file_is_a_command_as_it_stands(whole, tmp_path):
    """Whatever the file's folder and name."""
    for name, options in {"a.mkv": ["-c", "copy"], "a.gif": []}.items():
        path = tmp_path / "my files" / f"it's $HOME {name}"
        path.parent.mkdir(exist_ok=True)
        said = told(truncate(whole(name), path, 0.6))
        command = ["ffmpeg", "-i", str(path), *options, f"whole{path.suffix}"]
        assert shlex.split(re.search("`(.*)`", said)[1]) == command
    assert re.search(
        r"its segment should end [\d,]+ bytes past the end of the file", told(truncate(whole("a.mkv"), path, 0.6))
    )


def test_counts_have_commas(tmp_path):
    source = write_video(tmp_path / "long.mp4", 1200)
    path = patched(source, tmp_path / "a.mp4", (b"stsc", 16, bytes([0, 0, 0, 1])))
    assert "1,200 frames are listed, " in told(path)


@pytest.mark.parametrize("name", CONTAINERS)
def test_what_follows_a_whole_file_is_no_damage(name, whole, tmp_path):
    """Nor is the whole file, nor a copy of its packets."""
    path = tmp_path / name
    numbers = list(range(CONTAINERS[name].get("count", 60)))
    rate = CONTAINERS[name].get("rate", 10)
    for rest in (b"", bytes(1000), np.random.default_rng(0).bytes(3000)):
        if rest and name in ("a.dv", "a.ivf", "a.nut"):
            continue  # the demuxer takes it for a packet
        path.write_bytes(whole(name).read_bytes() + rest)
        seen, _, said = shown(path, fps=rate)
        assert (sorted(set(seen)), said) == (numbers, ""), len(rest)
    seen, _, said = shown(copied(whole(name)), fps=rate)
    assert (sorted(set(seen)), said) == (numbers, "")


def test_a_file_that_lacks_only_its_index_is_whole(whole, tmp_path):
    for name in ("mpeg4.avi", "a.mkv", "a.webm", "frag.mp4", "a.wmv", "a.mxf"):
        path = tmp_path / name
        path.write_bytes(whole(name).read_bytes()[:-20])
        assert shown(path, fps=CONTAINERS[name].get("rate", 10))[0] == list(range(CONTAINERS[name].get("count", 60)))


# --- Holes -------------------------------------------------------------------------------------------------------


def without_a_cluster(source: Path, path: Path, number: int) -> Path:
    """Turn one bit of a cluster's id."""
    data = bytearray(source.read_bytes())
    starts = [match.start() for match in re.finditer(b"\x1f\x43\xb6\x75", data)]
    data[starts[number]] ^= 1
    path.write_bytes(data)
    return path


def without_a_fragment(source: Path, path: Path, number: int) -> Path:
    """Turn one bit of a fragment's name."""
    data = bytearray(source.read_bytes())
    starts = [match.start() for match in re.finditer(b"moof", data)]
    data[starts[number] + 1] ^= 1
    path.write_bytes(data)
    return path


def without_packets(source: Path, path: Path, number: int) -> Path:
    """Leave out packets of a transport stream: sixteen, so that their count, which has four bits, shows nothing."""
    data = bytearray(source.read_bytes())
    start = len(data) // 188 // 2 * 188
    data[start : start + number * 188] = bytes(number * 188)
    path.write_bytes(data)
    return path


HOLES = {
    "mkv": ({"gop": 6}, ".mkv", partial(without_a_cluster, number=7)),
    "webm": ({"gop": 6, "codec": "libvpx-vp9", "codec_options": QUICK}, ".webm", partial(without_a_cluster, number=7)),
    "fragments": ({"gop": 6, "container_options": FRAGMENTED}, ".mp4", partial(without_a_fragment, number=7)),
    "transport stream": ({"gop": 6}, ".ts", partial(without_packets, number=10)),
    "transport stream, sixteen": ({"gop": 6}, ".ts", partial(without_packets, number=16)),
}


@pytest.mark.parametrize("kind", HOLES)
def test_lost_frames_are_counted(kind, tmp_path):
    """Each later frame keeps its time and its number, and the count is that of the samples with another's picture."""
    options, suffix, lose = HOLES[kind]
    if suffix in (".mkv", ".webm"):
        options = options | {"container_options": {"cluster_time_limit": "500"}}
    source = write_video(tmp_path / f"whole{suffix}", 100, texture=True, **options)
    path = lose(source, tmp_path / f"hole{suffix}")
    numbers, positions, said = shown(path)
    assert numbers == positions
    stand_ins = sum(number != own for own, number in enumerate(numbers))
    assert len(numbers) == 100
    assert 3 <= stand_ins <= 20
    assert f" {stand_ins} of 100 samples show the nearest intact frame" in said
    assert re.search(r"\d+ of 100 frames are missing, the first at \d\.\d\d s", said)
    with pytest.warns(UserWarning, match="frames are missing"):
        assert probe(path).num_frames == 100


def test_a_fragment_lost_between_the_only_two_is_counted(tmp_path):
    data = write_video(tmp_path / "live.mp4", container_options=LIVE).read_bytes()
    head, *fragments = re.split(b"(?=....moof|....mfra)", data, flags=re.DOTALL)
    for kept, is_lost in (([1, 3], True), ([1, 2], False)):
        (tmp_path / "a.mp4").write_bytes(head + b"".join(fragments[number] for number in kept))
        numbers, positions, said = shown(tmp_path / "a.mp4")
        assert numbers == [numbers[0] + position for position in positions]
        assert positions[-1] == len(positions) - 1
        missing = len(positions) - len(set(positions))
        assert (f"{missing} of {len(positions)} frames are missing" in said) if is_lost else (said == "")


@pytest.mark.parametrize("codec", ["libx264", "libsvtav1"])
def test_a_block_that_is_passed_over_is_counted(codec, tmp_path):
    """FFmpeg reads its flags as those of several packets, finds none, and goes on at the next cluster."""
    options = {"container_options": {"cluster_time_limit": "500"}, "gop": 6, "codec": codec}
    data = bytearray(write_video(tmp_path / "whole.mkv", 100, **options).read_bytes())
    block = re.compile(b"\xa3(?:[\x81-\xff]|[\x40-\x7f].)\x81..\x00", re.DOTALL)
    data[block.search(data, len(data) // 2).end() - 1] = 0xFF
    (tmp_path / "hole.mkv").write_bytes(data)
    numbers, _, said = shown(tmp_path / "hole.mkv")
    assert len(numbers) == 100
    wrong = sum(number != own for own, number in enumerate(numbers))
    assert wrong
    assert f" {wrong} of 100 samples show the nearest intact frame" in said


def test_a_frame_that_was_taken_for_a_part_of_another_is_counted(tmp_path):
    """A packet of a transport stream says that all of it is padding."""
    data = bytearray(write_video(tmp_path / "whole.ts", 100, texture=True).read_bytes())
    starts = [at for at in range(0, len(data), 188) if data[at + 1] == 0x41 and data[at + 3] & 0x20]
    data[starts[len(starts) // 2] + 4] = 0xFF
    (tmp_path / "a.ts").write_bytes(data)
    numbers, _, said = shown(tmp_path / "a.ts")
    assert len(numbers) == 100
    assert "a.ts: is damaged: 1 of 100 frames is missing, the first at " in said


def test_a_hole_wider_than_the_reach_is_refused(tmp_path):
    options = {"texture": True, "gop": 60, "container_options": {"cluster_time_limit": "5000"}}
    source = write_video(tmp_path / "whole.mkv", 200, **options)
    path = without_a_cluster(source, tmp_path / "hole.mkv", 1)
    assert "is damaged: no intact frame near" in told(path)
    with pytest.warns(UserWarning, match="frames are missing"):
        assert SampledVideo(path).at([0, 19]).shape[0] == 2  # what lies before and behind can be had


def test_a_lost_beginning_is_refused(whole, tmp_path):
    """Else all times would be early."""
    for name, lose in {"a.mkv": without_a_cluster, "frag.mp4": without_a_fragment}.items():
        with pytest.raises(VideoError, match=r"is damaged: its .* can't be read; copy or download it again"):
            probe(lose(whole(name), tmp_path / name, number=0))


# --- Contradictions ----------------------------------------------------------------------------------------------

ONE, NOTHING = (1).to_bytes(4), bytes(4)
CONTRADICTIONS = {
    "no time between frames": [(b"stts", 16, NOTHING)],
    "one tick between frames": [(b"stts", 16, ONE)],
    "frames a hundred times as long": [(b"stts", 16, (102400).to_bytes(4))],
    "one chunk, one frame in it": [(b"stsc", 16, ONE), (b"stco", 8, ONE)],
    "a clock that stands": [(b"mdhd", 16, NOTHING)],
    "no header of the clock": [(b"mdhd", 0, NOTHING)],
    "a clock of the edit list that races": [(b"mvhd", 16, (1 << 17).to_bytes(4))],
    "no part of the edit list": [(b"elst", 8, NOTHING)],
    "an edit list from before the beginning": [(b"elst", 16, (2**32 - 20480).to_bytes(4))],
    "more frames than bytes": [(b"stsz", 12, (1 << 29).to_bytes(4))],
}


@pytest.mark.parametrize("kind", CONTRADICTIONS)
def test_tables_that_contradict_one_another_are_refused(kind, whole, tmp_path):
    for name in ("plain.mp4", "fast.mp4"):
        with pytest.raises(VideoError, match=r"is damaged: its .* copy or download it again|, or damage\)"):
            probe(patched(whole(name), tmp_path / name, *CONTRADICTIONS[kind]))


def test_no_room_is_made_for_what_the_file_has_not(whole, tmp_path):
    path = patched(whole("plain.mp4"), tmp_path / "a.mp4", (b"elst", -4, b"\xff" * 4))
    tracemalloc.start()
    with pytest.raises(VideoError, match="is damaged: its edit list shows what isn't there"):
        probe(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


def test_times_that_the_header_doubts_are_warned_of(whole, tmp_path):
    slower = patched(whole("fast.mp4"), tmp_path / "slow.mp4", (b"stts", 16, (1536).to_bytes(4)))
    with pytest.warns(UserWarning, match=r"its frames last 9\.00 s by their own times, 6\.00 s by the header"):
        probe(slower)


@pytest.mark.parametrize(("entry", "field", "value"), [(5, 0, 200), (20, 0, 200), (5, 4, 0xFF000000), (20, 4, 1 << 31)])
def test_shifts_to_nowhere_are_refused(entry, field, value, whole, tmp_path):
    """A table says for how many frames, and by how much, they are shown later than they are decoded."""
    change = (b"ctts", 12 + 8 * entry + field, value.to_bytes(4))
    with pytest.raises(VideoError, match=r"is damaged: its table of times is wrong"):
        probe(patched(whole("plain.mp4"), tmp_path / "a.mp4", change))


def test_a_frame_beside_another_among_even_ones_is_warned_of(whole, tmp_path):
    for shift in (1, 0):
        changed = patched(whole("plain.mp4"), tmp_path / "a.mp4", (b"ctts", 12 + 8 * 4 + 4, shift.to_bytes(4)))
        numbers, _, said = shown(changed)
        assert "1 of its frames come at once with another" in said
        wrong = sum(number != own for own, number in enumerate(numbers))
        assert wrong
        assert f" {wrong} of 60 samples show the nearest intact frame" in said


def test_frames_at_the_time_of_another_are_counted(tmp_path):
    """FFmpeg mistakes the times of a few frames of some program streams."""
    path = write_video(tmp_path / "a.mpg", 200, codec="mpeg2video", rate=25, texture=True)
    numbers, _, said = shown(path, fps=25)
    missing = len({*range(200)} - {*numbers})
    assert missing
    assert f"{missing} of its frames are not shown: each has the time of another" in said


def test_a_segment_that_the_index_lists_is_missed(whole, tmp_path):
    data = whole("dash.mp4").read_bytes()
    assert b"sidx" in data
    (tmp_path / "a.mp4").write_bytes(data[: data.rindex(b"moof") - 4])
    with pytest.raises(VideoError, match="is cut short: its index of segments should end"):
        probe(tmp_path / "a.mp4")


def test_a_fragment_that_is_not_there_is_told_by_the_numbers(tmp_path):
    source = write_video(tmp_path / "whole.mp4", gop=6, texture=True, container_options=LIVE)
    data = source.read_bytes()
    starts = [match.start() - 4 for match in re.finditer(b"moof", data)]
    (tmp_path / "a.mp4").write_bytes(data[: starts[4]] + data[starts[5] :])
    numbers, _, said = shown(tmp_path / "a.mp4")
    wrong = sum(number != own for own, number in enumerate(numbers))
    assert wrong >= 6
    assert f" {wrong} of 60 samples show the nearest intact frame" in said


def test_a_fragment_that_cannot_be_read_on_is_refused(whole, tmp_path):
    """A frame's size is absurd."""
    data = bytearray(whole("frag.mp4").read_bytes())
    table = [match.start() for match in re.finditer(b"trun", data)][2]
    data[table + 20 : table + 24] = b"\x7f\xff\x02\x00"
    (tmp_path / "a.mp4").write_bytes(data)
    assert "is damaged: it can't be read beyond" in told(tmp_path / "a.mp4")


FRAGMENTS = {
    "none is counted": (b"mfhd", -4, NOTHING),
    "data to the end": (b"mdat", -4, NOTHING),
    "a header longer than its fragment": (b"tfdt", -4, b"\xff"),
    "more frames than bytes": (b"trun", 8, (1 << 29).to_bytes(4)),
}


@pytest.mark.parametrize("kind", FRAGMENTS)
def test_a_damaged_fragment_is_noticed(kind, whole, tmp_path):
    name, offset, new = FRAGMENTS[kind]
    data = bytearray(whole("frag.mp4").read_bytes())
    at = [match.start() for match in re.finditer(name, data)][2] + offset
    data[at : at + len(new)] = new
    (tmp_path / "a.mp4").write_bytes(data)
    assert re.search(r"is damaged: |run backwards, .* damage\)", told(tmp_path / "a.mp4"))


def test_a_count_that_does_not_fit_is_refused(whole, tmp_path):
    """A block of the file stands there twice, or a picture's header is gone, and later times would be wrong."""
    data = whole("mpeg4.avi").read_bytes()
    (tmp_path / "twice.avi").write_bytes(data[:20000] + data[10000:])
    gif = bytearray(whole("a.gif").read_bytes())
    third = [match.start() for match in re.finditer(b"\x00!\xf9\x04", gif)][3]
    gif[third + 1] ^= 1
    (tmp_path / "merged.gif").write_bytes(gif)
    for name, words in {"twice.avi": r"\d+ frames, .* counts 60", "merged.gif": "3 of its 60 frames"}.items():
        with pytest.raises(VideoError, match=f"is damaged: .*{words}"):
            probe(tmp_path / name)


# --- Intact files that look cut ----------------------------------------------------------------------------------


def with_edits(source: Path, path: Path, *edits: tuple[int, int]) -> Path:
    """Let an MP4 show these parts: milliseconds, from a place in ticks of the video."""
    data = bytearray(source.read_bytes())
    at = data.index(b"elst") + 8
    data[at : at + 16] = len(edits).to_bytes(4) + b"".join(struct.pack(">IiI", *edit, 1 << 16) for edit in edits)
    for name in (b"elst", b"edts", b"trak", b"moov"):
        size = data.index(name) - 4
        data[size : size + 4] = (int.from_bytes(data[size : size + 4]) + 12 * (len(edits) - 1)).to_bytes(4)
    path.write_bytes(data)
    return path


def with_still_end(source: Path, path: Path, seconds: float) -> Path:
    """Let a WebM last longer than its frames, as recorders of screens that stand still do."""
    data = source.read_bytes().replace(b"DURATION", b"XURATION")
    at = data.index(b"\x44\x89\x88") + 3
    path.write_bytes(data[:at] + struct.pack(">d", 1000 * seconds) + data[at + 8 :])
    return path


def with_laces(source: Path, path: Path) -> Path:
    """Pack the sound of a Matroska file as mkvmerge does: several packets to a block, in clusters of open length."""
    data = source.read_bytes()
    first, *clusters = re.split(b"(?=\x1f\x43\xb6\x75)", data[: data.rindex(b"\x1c\x53\xbb\x6b")])
    segment = first.index(b"\x18\x53\x80\x67") + 4
    written = first[:segment] + b"\x01" + b"\xff" * 7 + first[segment + 8 :]
    for cluster in clusters:
        at = 4 + 9 - cluster[4].bit_length()
        written += cluster[:4] + b"\x01" + b"\xff" * 7
        waiting: list[bytes] = []
        while at < len(cluster):
            name, width = cluster[at], 9 - cluster[at + 1].bit_length()
            start = at + 1 + width
            end = start + (int.from_bytes(cluster[at + 1 : start]) & (1 << 7 * width) - 1)
            if name == 0xA3 and cluster[start] == 0x82:
                waiting.append(cluster[start:end])
                written += laced(waiting) if len(waiting) == 4 else b""
            else:
                written += (laced(waiting) if waiting else b"") + cluster[at:end]
                waiting = waiting if len(waiting) == 4 else []
            waiting = [] if len(waiting) == 4 or name != 0xA3 or cluster[start] != 0x82 else waiting
            at = end
        written += laced(waiting) if waiting else b""
    path.write_bytes(written)
    return path


def laced(blocks: list[bytes]) -> bytes:
    """One block of several, with the sizes of all but the last in front."""
    sizes = b"".join(b"\xff" * (len(block[4:]) // 255) + bytes([len(block[4:]) % 255]) for block in blocks[:-1])
    content = blocks[0][:3] + b"\x82" + bytes([len(blocks) - 1]) + sizes + b"".join(block[4:] for block in blocks)
    return b"\xa3" + (len(content) | 1 << 28).to_bytes(4) + content


def test_intact_files_are_shown_without_a_word(tmp_path):
    plain = write_video(tmp_path / "plain.mp4", bframes=2)  # 1,024 ticks to a frame, the first at 2,048
    sixty = list(range(60))
    late = [50 + number for number in sixty]
    still = write_video(tmp_path / "moves.webm", 30, codec="libvpx", codec_options=QUICK)
    live = write_video(tmp_path / "live.mp4", container_options=LIVE).read_bytes()
    head, *segments = re.split(b"(?=....moof|....mfra)", live, flags=re.DOTALL)
    (tmp_path / "joined_late.mp4").write_bytes(head + b"".join(segments[2:-1]))
    cases = {
        write_video(tmp_path / "sound.wmv", codec="wmv2", audio_seconds=9): sixty,
        write_video(tmp_path / "sound.flv", audio_seconds=9): sixty,
        write_video(tmp_path / "late.mkv", ticks=late, audio_seconds=13): sixty,
        write_video(tmp_path / "late.webm", ticks=late, codec="libvpx", codec_options=QUICK): sixty,
        write_video(tmp_path / "one.mkv", 1, audio_seconds=20): [0],
        write_video(tmp_path / "one.ts", 1): [0],
        write_video(tmp_path / "one.m2ts", 1, codec="mpeg2video", rate=25, audio_seconds=1): [0],
        write_video(tmp_path / "one.avi", 1, codec="mpeg4", audio_seconds=0.5): [0],  # listed twice, there once
        with_still_end(still, tmp_path / "still.webm", 8): [*range(30), *[29] * 50],
        with_edits(plain, tmp_path / "part.mp4", (2000, 2048 + 20 * 1024)): list(range(20, 40)),
        with_laces(write_video(tmp_path / "a.mkv", texture=True, audio_seconds=6), tmp_path / "laced.mkv"): sixty,
        tmp_path / "joined_late.mp4": list(range(24, 60)),
    }
    for path, expected in cases.items():
        numbers, _, said = shown(path)
        assert said == "", path.name
        assert numbers == expected, path.name


class Pipe(NamedTuple):
    """What can be written to, but not gone back in."""

    name: str
    write: Callable[[bytes], int]


@pytest.mark.parametrize("name", ["mpeg4.avi", "a.ivf", "a.apng"])
def test_a_count_that_was_left_open_is_no_count(name, tmp_path):
    """Who writes to a pipe can't fill it in at the end; but the end itself may tell."""
    choices = CONTAINERS[name]
    with (tmp_path / name).open("wb") as file:
        write_video(Pipe(name, file.write), **choices)
    numbers, _, said = shown(tmp_path / name)
    assert numbers == list(range(choices.get("count", 60)))
    assert ("its header leaves open how much there is: it may be cut short" in said) == (name != "a.apng")
    assert re.search("is cut short: |may be cut short", told(truncate(tmp_path / name, tmp_path / f"cut_{name}", 0.7)))


def test_edit_lists_show_what_ffmpeg_shows(tmp_path):
    plain = write_video(tmp_path / "plain.mp4", bframes=2)
    start, later = (1000, 2048), (1000, 2048 + 40 * 1024)
    for edits in ((start, later), (later, start), (start, start)):
        path = with_edits(plain, tmp_path / "edited.mp4", *edits)
        with av.open(path) as container:
            frames = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
        by_ffmpeg = read_numbers(picture for _, picture in frames)
        numbers, positions, said = shown(path, fps=100)
        assert said == ""
        assert [numbers[positions.index(number)] for number in range(len(by_ffmpeg))] == by_ffmpeg
        assert len(set(positions)) == len(by_ffmpeg)
