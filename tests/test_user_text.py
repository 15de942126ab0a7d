"""Text of a user is shown as it is: never markup, never obeyed by a terminal, on any stream."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Refusal, Vilamp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from vilamp_lite import plots
from vilamp_lite.cli.shown import show, table
from vilamp_lite.common import visible
from vilamp_lite.keyframes import select_keyframes
from vilamp_lite.tinyworld.questions import random_scene
from vilamp_lite.tinyworld.render import write_video

NASTY = [
    "Talk [dQw4w9WgXcQ]",
    "x[[/b]",
    "press [/] to search",
    "[bold red]loud[/bold red] [u]under[/u]",
    ":cat: :warning:",
    "$5 to $10 \\frac{$",
    "a\x1b[31mred\x07\x9b2J",
    "two\nlines\rand\ttabs",
    "turned \u202eback\u2066",
    "no text \udcff\udc80",
    "hi\u200bdd\ufeffen\xad \u200eleft\u200f \u061c\u2060\U000e0041",
    "  two  spaces ",
    "видео 笔记 😀",
    "{name} %s %03d \\x1b",
]
OBEYED = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\xad\u061c\u200b\u200e\u200f\u2060\ufeff\U000e0041]"
)


def assert_shown(text: str, printed: str) -> None:
    """As it is, or as Python writes it between quotes; a table may fold it."""
    folded = re.sub(r"[│\s]+", "", printed)
    expected = [re.sub(r"\s+", "", shown) for shown in (visible(text), visible(repr(text)[1:-1]))]
    assert any(shown in folded for shown in expected), printed


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("world") / "world.mp4"
    write_video(path, [random_scene(1), random_scene(2)])
    return path


# Every command with a name or a text in each place that takes one.
REFUSED: dict[str, Callable[[str], list[str]]] = {
    "no command": lambda text: [text],
    "no option": lambda text: [f"--{text}"],
    "probe": lambda text: ["probe", text],
    "probe, no option": lambda text: ["probe", f"--{text}"],
    "probe, two": lambda text: ["probe", "a", text],
    "keyframes": lambda text: ["keyframes", text, "a cat"],
    "keyframes, encoder": lambda text: ["keyframes", "WORLD", "a cat", "--encoder", text],
    "keyframes, device": lambda text: ["keyframes", "WORLD", "a cat", "--encoder", "tinyworld", "--device", text],
    "keyframes, number": lambda text: ["keyframes", "WORLD", "a cat", "--fps", text],
    "keyframes, strip": lambda text: ["keyframes", "WORLD", "a cat", "--strip", text],
    "encode": lambda text: ["encode", text, "--random-weights"],
    "encode, model": lambda text: ["encode", "WORLD", "--model", text],
    "ask": lambda text: ["ask", text, "what?", "--random-weights"],
    "ask, model": lambda text: ["ask", "WORLD", "what?", "--model", text],
    "costs": lambda text: ["costs", "--gpu", text],
    "costs, model": lambda text: ["costs", "--model", text],
    "tinyworld": lambda text: ["tinyworld", "--out", text],
    "tinyworld, family": lambda text: ["tinyworld", "--out", "x.mp4", "--family", text],
    "train miniature": lambda text: ["train", "miniature", "--out", "out", "--study", text],
    "train miniature, encoder": lambda text: ["train", "miniature", "--out", "out", "--encoder", text],
    "train finetune": lambda text: ["train", "finetune", "--model", "none", "--out", "out", "--data", text],
    "train finetune, part": lambda text: ["train", "finetune", "--model", "x", "--data", "x", "--trains", text],
    "evaluate niah": lambda text: ["evaluate", "niah", "--model", text],
    "evaluate niah, list": lambda text: ["evaluate", "niah", "--frames", text],
    "evaluate niah, families": lambda text: ["evaluate", "niah", "--families", text],
    "evaluate footage": lambda text: ["evaluate", "footage", text, "--model", "x"],
    "reproduce": lambda text: ["reproduce", text],
    "reproduce, parameter": lambda text: ["reproduce", "02", "-p", text, "1"],
    "reproduce, value": lambda text: ["reproduce", "02", "-p", "max_keyframes", text],
    "sweep": lambda text: ["sweep", text],
}


@pytest.mark.parametrize("place", REFUSED)
def test_what_is_refused_is_shown_as_it_is(
    place: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vilamp: Vilamp
) -> None:
    monkeypatch.chdir(tmp_path)
    for text in NASTY:
        arguments = [str(world) if argument == "WORLD" else argument for argument in REFUSED[place](text)]
        code, out, err = vilamp(*arguments)
        assert (code, out) == (2, ""), (text, err)
        assert len(err.splitlines()) == 1, err
        assert not OBEYED.search(err), err
        if "number" not in place and "\n" not in text:  # typer says where, not what; a message is one line
            assert_shown(text, err)


@pytest.mark.parametrize("text", NASTY, ids=ascii)
def test_what_is_printed_is_shown_as_it_is(text: str, world: Path, tmp_path: Path, vilamp: Vilamp) -> None:
    """And drawn: a file's name and a query, in every command that works with them."""
    known = text.replace("\udcff\udc80", "x")  # by models and in stores UTF-8 alone
    video, new = tmp_path / f"{text}.mp4", tmp_path / f"new {known}.mp4"
    for file in (video, new):
        file.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(world, video)
    sampling = ("--max-frames", 6)
    for shown, *arguments in [
        (video.name, "probe", video),
        (
            text.replace("\udcff\udc80", "x"),
            "keyframes",
            video,
            text.replace("\udcff\udc80", "x"),
            *sampling,
            "--strip",
            tmp_path / "strip.png",
        ),
        (known, "encode", video, "--random-weights", *sampling, "--out", tmp_path / f"{known}.features"),
        (known, "tinyworld", "--frames", 16, "--out", new),
    ]:
        code, out, err = vilamp(*arguments)
        assert code == 0, err
        assert not OBEYED.search(out + err)
        assert_shown(shown, out)
    code, out, err = vilamp("probe", video, "--json")
    assert json.loads(out)["path"] == str(video)
    assert not OBEYED.search(out)


def test_a_notebook_s_name_is_shown_as_it_is(tmp_path: Path, vilamp: Vilamp) -> None:
    name = "draw [b] \x1b[31m:cat: $x$ $"
    cells = [nbformat.v4.new_code_cell(f"size: int = 1  # {name!r}", metadata={"tags": ["parameters"]})]
    cells.append(nbformat.v4.new_code_cell(f"raise ValueError({name!r})"))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    path = tmp_path / f"{name}.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    for code, arguments in ((0, ["--list"]), (1, ["--out", tmp_path / "out"])):
        found, out, err = vilamp("reproduce", path, *arguments)
        assert found == code, err
        assert not OBEYED.search(out + err)
        assert_shown(name, out + err)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(min_size=1).filter(lambda text: "\0" not in text and text.strip()))
def test_any_name_is_shown(text: str, vilamp: Vilamp) -> None:
    name = os.fsdecode(text.encode("utf-8", "replace"))
    code, out, err = vilamp("probe", "--", f"nowhere/{name}")
    assert (code, out) == (2, "")
    assert not OBEYED.search(err)
    assert len(err.split("\n")) == 2
    assert "Traceback" not in err


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8"])
def test_a_stream_of_any_encoding_takes_any_text(encoding: str, world: Path, tmp_path: Path) -> None:
    video = tmp_path / "видео × “x” 😀.mp4"
    shutil.copy(world, video)
    for arguments in (["probe", video], ["probe", video, "--json"], ["costs"], ["--help"], ["probe", "нет.mp4"]):
        run = command(*arguments, env={"PYTHONIOENCODING": encoding})
        assert run.returncode == (2 if "нет.mp4" in arguments else 0), run.stderr
        assert b"Traceback" not in run.stderr
    said = command("probe", video, env={"PYTHONIOENCODING": encoding}).stdout.decode(encoding)
    for character in video.name:
        written = character.encode(encoding, "backslashreplace").decode(encoding)
        assert written in said


@pytest.mark.parametrize("arguments", [["probe"], ["probe", "--json"]], ids=str)
def test_streams_that_nobody_reads(arguments: list[str], world: Path, tmp_path: Path) -> None:
    line = " ".join(["exec", sys.executable, "-m", "vilamp_lite", arguments[0], str(world), *arguments[1:]])
    for ending, code, message in [
        (">&-", 0, ""),
        (">/dev/full", 2, "vilamp: can't print the result: No space left on device\n"),
        ("2>&- >&- <&-", 0, ""),
    ]:
        run = subprocess.run(["sh", "-c", f"{line} {ending}"], capture_output=True, text=True, timeout=120)
        assert (run.returncode, run.stderr) == (code, message), ending
    reader, writer = os.pipe()
    os.close(reader)
    words = line.split()[1:]
    run = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    os.close(writer)
    assert (run.returncode, run.stderr) == (1, "")


def command(*arguments: object, env: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
    words = [sys.executable, "-m", "vilamp_lite", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, env=os.environ | env, timeout=120, check=False)


def test_a_leading_dash_gets_a_hint(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vilamp: Vilamp
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(world, "-dash.mp4")
    code, _, err = vilamp("probe", "-dash.mp4")
    assert code == 2
    assert err.endswith("No such option: -d; before a name or a text that begins with a dash, put --\n")
    assert vilamp("probe", "--", "-dash.mp4")[0] == 0


def strip(query: str, times: np.ndarray) -> Figure:
    embeds = torch.eye(len(times))
    selection = select_keyframes(embeds, embeds.sum(dim=0), max_keyframes=2)
    return plots.film_strip(np.zeros((2, 8, 8, 3), np.uint8), times, selection, query)


def titles(figure: Figure) -> list[str]:
    """What is drawn, not what matplotlib was given."""
    figure.canvas.draw()
    axes = [axis for part in (figure, *figure.subfigs) for axis in part.axes]
    drawn = []
    for title in (axis.title for axis in axes):
        text, is_formula = title._preprocess_math(title.get_text())
        assert not is_formula
        drawn.append(text)
    return drawn


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize(
    "text", [*NASTY, "x" * 5000, "word " * 1000, "$" * 7, "\\$x$", "_hidden"], ids=lambda text: ascii(text[:20])
)
def test_a_query_is_drawn_as_it_is(text: str, tmp_path: Path) -> None:
    figure = strip(text, np.arange(4.0))
    figure.savefig(tmp_path / "strip.png")
    drawn = titles(figure)[-1]
    if len(text) < 100:
        assert drawn == f"“{visible(text)}”"
    else:
        assert drawn.endswith("…”")
        assert len(drawn) < 400
    table = pd.DataFrame({"a": [1, 2, 1, 2], "word": [text, text, "b", "b"], text: [0.1, 0.2, 0.3, 0.4]})
    for drawing in (plots.sweep_curves(table, text, "a", "word"), plots.sweep_heat_map(table, text, "a", "word")):
        assert titles(drawing)[0] == visible(text)


def test_a_text_that_is_no_utf_8_is_refused(world: Path, refusal: Refusal) -> None:
    for command in (
        ["keyframes", world],
        ["ask", world, "--random-weights"],
        ["encode", world, "--random-weights", "--out"],
    ):
        assert "'caf\\udce9' is not text: write it in UTF-8" in refusal(*command, "caf\udce9")


def test_captions_tell_samples_apart() -> None:
    for step, expected in [
        (1, "1 s"),
        (1001 / 1000, "1 s"),
        (0.5, "0.5 s"),
        (0.1, "0.1 s"),
        (0.04, "0.04 s"),
        (60, "60 s"),
    ]:
        assert titles(strip("a cat", step * np.arange(4)))[1].startswith(f"2: {expected}, ")


def test_no_letter_of_a_table_is_lost_on_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"abc": "one", "def": 234, "ghi": "five", "jkl": 6.789, "mno": "eight", "pqr": "nine"}
    for width in (1, 10, 20, 24, 30, 40, 80):
        monkeypatch.setenv("COLUMNS", str(width))
        show(False, None, table("title", [row]))
        out = capsys.readouterr().out
        letters = re.sub(r"\W", "", out.replace("_", ""))
        wanted = "title" + "".join([*row, *map(str, row.values())]).replace(".", "")
        assert sorted(letters) == sorted(wanted), (width, out)
