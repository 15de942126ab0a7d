"""The command: what it prints, and one line with exit code 2 for bad input."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from vilamp_lite.cli import app

TOUR = Path(__file__).resolve().parents[1] / "data" / "photo_tour.mp4"


def vilamp(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vilamp_lite.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_probe() -> None:
    shown = vilamp("probe", TOUR)
    assert shown.returncode == 0
    for text in ("120.00 s", "3,600 at 30.000 per second", "640 × 360 pixels", "h264"):
        assert text in shown.stdout
    facts = json.loads(vilamp("probe", TOUR, "--json").stdout)
    assert facts["num_frames"] == 3600
    assert facts["duration"] == pytest.approx(120)
    assert (facts["width"], facts["height"], facts["codec"]) == (640, 360, "h264")


def test_keyframes(tmp_path: Path) -> None:
    strip = tmp_path / "strip.png"
    arguments = ["keyframes", str(TOUR), "a cup of coffee", "--max-keyframes", "5", "--strip", str(strip), "--json"]
    run = CliRunner().invoke(app, arguments)
    assert run.exit_code == 0, run.output
    result = json.loads(run.stdout)
    assert result["encoder"] == "conse"
    assert result["frames_sampled"] == 120
    frames = result["keyframes"]
    assert [frame["rank"] for frame in frames] == [1, 2, 3, 4, 5]
    # The coffee is shown from 36.0 to 44.8 s and from 106.2 to 114.1 s.
    assert 36 <= frames[0]["seconds"] < 44.8 or 106.2 <= frames[0]["seconds"] < 114.1
    assert frames[0]["frame"] == frames[0]["sample"] * 30
    assert frames[0]["redundancy"] is None
    assert all(frame["redundancy"] <= 0.85 for frame in frames[1:])
    assert [f["relevance"] for f in frames] == sorted((f["relevance"] for f in frames), reverse=True)
    assert Image.open(strip).size[0] > 800


def test_keyframes_table_and_limits() -> None:
    run = CliRunner().invoke(app, ["keyframes", str(TOUR), "a cat", "--max-frames", "6", "--relevance-threshold", "1"])
    assert run.exit_code == 0, run.output
    assert "0 keyframes of 6 frames" in " ".join(run.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["probe", "missing.mp4"], "missing.mp4: no such file"),
        (["probe", "."], "is a directory"),
        (["keyframes", TOUR, " "], "texts"),
        (
            ["keyframes", TOUR, "a cat", "--max-keyframes", "0"],
            "max_keyframes must be an integer of at least 1, got int 0",
        ),
        (["keyframes", TOUR, "a cat", "--similarity-threshold", "2"], "similarity_threshold"),
        (["keyframes", TOUR, "a cat", "--fps", "nan"], "fps must be"),
        (["keyframes", TOUR, "a cat", "--encoder", "no/such-checkpoint"], "no/such-checkpoint"),
        (["keyframes", TOUR, "a cat", "--strip", "/no/such/folder/x.png"], "no folder /no/such/folder"),
        (["keyframes", TOUR, "a cat", "--strip", "x.txt"], "must name a .png file"),
        (["keyframes", TOUR, "a cat", "--relevance-threshold", "3"], "relevance_threshold is a cosine"),
        (["keyframes", TOUR, "a cat", "--device", "abacus"], "abacus"),
    ],
)
def test_bad_input_prints_one_line(arguments: list[str | Path], message: str) -> None:
    run = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert run.exit_code == 2
    assert run.stdout == ""
    (line,) = run.stderr.strip().splitlines()
    assert line.startswith("vilamp: ")
    assert message in line


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["probe", "missing.mp4"], "vilamp: missing.mp4: no such file; pass the path of a video file"),
        (["keyframes", "a.mp4"], "vilamp: Missing argument 'QUERY'."),
        (
            ["keyframes", "a.mp4", "a cat", "--fps", "abc"],
            "vilamp: Invalid value for '--fps': ",
        ),
        (["probe", "a.mp4", "--colour"], "vilamp: No such option: --colour"),
        (["prob", "a.mp4"], "vilamp: No such command 'prob'. Did you mean 'probe'?"),
    ],
)
def test_the_installed_command_exits_with_2(arguments: list[str], line: str) -> None:
    run = vilamp(*arguments)
    assert run.returncode == 2
    assert run.stdout == ""
    (printed,) = run.stderr.splitlines()
    # How the parser words a bad number differs between its versions.
    assert printed.startswith(line) if line.endswith(": ") else printed == line
