"""Damaged videos are read right, refused, or warned of: a small campaign, and the judge of all campaigns."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import pytest
from fuzz import campaign
from fuzz.campaign import FINE, FRAMES, OWN, UNREADABLE, judged, sampled, watched
from fuzz.damage import spoilt_frames
from video_files import write_video

ROOT = Path(__file__).parents[1]


def test_sixty_damaged_files(tmp_path: Path) -> None:
    """`make fuzz` runs as many as one likes."""
    # A process of its own: this one holds more memory than a case may use.
    run = subprocess.run(
        [sys.executable, "-m", "fuzz", "60", "--folder", str(tmp_path), "--json"],
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        check=True,
    )
    cases = json.loads(run.stdout)["cases"]
    assert len(cases) == 60
    assert len({case["base"] for case in cases}) == 12
    assert len({case["damage"] for case in cases}) == 11
    assert not [case for case in cases if case["verdict"] not in (*FINE, "allowed")]


def shown(numbers: list[int], positions: list[int] | None = None, *words: str) -> dict:
    """What is reported of a file whose header is intact."""
    positions = OWN[: len(numbers)] if positions is None else positions
    return {
        "numbers": numbers,
        "positions": positions,
        "frames": len(set(positions)),
        "seconds": len(numbers) / 10,
        "warnings": list(words),
    }


HOLE = [number if number < 50 else max(number, 60) for number in OWN]
TOLD = "x.mp4: {} of 120 samples show the nearest intact frame instead of their own"


OTHER = "x.mp4: holds 2 video streams"


def whole(numbers: list[int]) -> dict:
    """What is reported of a file whose frames are all there, at other times."""
    return shown(numbers) | {"frames": FRAMES}


@pytest.mark.parametrize(
    ("report", "damage", "base", "verdict"),
    [
        (shown(OWN), "flip", "h264.mp4", "right"),
        ({"error": "x.mp4: is cut short"}, "cut_short", "h264.mp4", "refused"),
        ({"worst": "hang", "how": "60 s"}, "flip", "h264.mp4", "hang"),
        (shown(HOLE, HOLE, TOLD.format(10)), "zero", "h264.mp4", "warned"),
        (shown(HOLE, HOLE, TOLD.format(9)), "zero", "h264.mp4", "too few"),
        (shown(HOLE, HOLE, TOLD.format(11)), "zero", "h264.mp4", "too many"),
        (shown(HOLE, HOLE, OTHER), "zero", "h264.mp4", "missing"),
        (shown(OWN[:1], None, OTHER), "zero", "h264.ts", "short"),
        (shown(OWN[:100], None, TOLD.format(3)), "cut_end", "mjpeg.avi", "too few"),
        (shown(OWN[:100], None, TOLD.format(3)), "cut_end", "h264.ts", "warned"),
        (shown(HOLE, HOLE), "zero", "h264.ts", "missing"),
        (shown(OWN[:100]), "cut_end", "h264.ts", "allowed"),
        (shown(OWN[:100]), "zero", "h264.ts", "short"),
        (shown(OWN[:100]), "cut_end", "h264_frag.mp4", "short"),
        (shown(OWN[24:]), "flip", "h264.mkv", "late"),
        (shown(OWN + OWN, OWN + OWN), "itself", "anim.gif", "allowed"),
        (shown(OWN + OWN, OWN + OWN), "duplicate", "anim.gif", "late"),
        (shown([*OWN, UNREADABLE], [*OWN, 119]), "itself", "anim.gif", "late"),
        (shown([UNREADABLE, 2160, *OWN[2:]], OWN), "flip", "vp9.webm", "allowed"),
        (shown(OWN[::-1], OWN), "swap", "h264.mp4", "late"),
        (shown([0] * FRAMES, OWN), "cut_out", "mjpeg.avi", "missing"),
        (shown([UNREADABLE, *OWN[1:]], OWN), "header", "vp9.webm", "pixels"),
        (shown([number // 2 for number in range(240)]), "header", "mpeg4.avi", "allowed"),
        (whole([min(number * 2, 119) for number in OWN]), "header", "vp9.webm", "allowed"),
        (whole([min(number * 2, 99) for number in OWN]), "header", "vp9.webm", "missing"),
        (whole([0, 119]), "flip", "h264.mp4", "missing"),
        (whole([*OWN[1:], 119]), "header", "h264.mkv", "late"),
        (whole([*OWN[:50], *OWN[49:]]), "header", "h264.mkv", "late"),
        (shown([min(number * 2, 119) for number in OWN], OWN[::2]), "header", "vp9.webm", "missing"),
        (whole([*OWN[:60], *[60] * 9, *OWN[60:]]), "flip", "anim.gif", "allowed"),
        (whole([*OWN[:60], *[59] * 9, *OWN[61:]]), "flip", "anim.gif", "late"),
        (shown([0] * FRAMES, OWN), "header", "anim.gif", "missing"),
        (shown([number // 2 for number in range(240)]), "duplicate", "mpeg4.avi", "late"),
        (shown([*OWN[:60], *[number // 2 for number in range(120, 240)]]), "header", "mpeg4.avi", "late"),
    ],
)
def test_the_judge(report: dict, damage: str, base: str, verdict: str) -> None:
    assert judged(report, damage, base)[0] == verdict


def test_another_number_is_spoilt_only_where_bytes_changed() -> None:
    """A decoder can turn 36 into 4; but no frame of another group of pictures."""
    report = shown([*OWN[:36], 4, *OWN[37:]], OWN)
    assert judged(report, "flip", "hevc.mp4", range(24, 48))[0] == "allowed"
    assert judged(report, "flip", "hevc.mp4", range(48, 72))[0] == "missing"


def test_which_frames_a_damage_can_spoil(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", 60, gop=12, texture=True)
    with av.open(path) as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    data[places[30] + 99] ^= 1
    assert spoilt_frames(path, data) == set(range(24, 36))
    assert not spoilt_frames(path, path.read_bytes())
    assert not spoilt_frames(path, data[:-1])


def test_the_judge_sees_what_a_file_shows(tmp_path: Path) -> None:
    """Intact files stand for damaged ones that say nothing: all frames, fewer, other ones."""
    whole = write_video(tmp_path / "whole.mp4", FRAMES)
    short = write_video(tmp_path / "short.mp4", FRAMES - 20)
    holes = write_video(tmp_path / "holes.mp4", FRAMES - 20, ticks=[n + 20 * (n >= 60) for n in range(FRAMES - 20)])
    for path, verdict in ((whole, "right"), (short, "short"), (holes, "missing")):
        assert judged(watched(path), "zero", "h264.mp4")[0] == verdict


def test_whatever_ends_a_case_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crashes(path: Path) -> dict:
        os.kill(os.getpid(), signal.SIGKILL)
        return {}

    def hangs(path: Path) -> dict:
        time.sleep(30)
        return {}

    def grows(path: Path) -> dict:
        return {"numbers": len(b"x" * (3 << 29))}

    for act, verdict in ((crashes, "crash"), (grows, "over 1 GB"), (hangs, "hang")):
        monkeypatch.setattr(campaign, "sampled", act)
        monkeypatch.setattr(campaign, "SECONDS", 1 if act is hangs else 60)
        assert watched(tmp_path)["worst"] == verdict


def test_an_error_that_is_no_video_error_is_a_crash() -> None:
    assert sampled(3)["worst"] == "crash"
