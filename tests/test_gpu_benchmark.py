"""The GPU's benchmark runs all its parts with tiny shapes, so that it works on the day when there is a GPU."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import gpu


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, *parts: str) -> int:
    """Its command on the CPU."""
    options = ["--device", "cpu", "--tiny", "--out", str(folder / "out"), "--folder", str(folder / "work")]
    monkeypatch.setattr(sys, "argv", ["gpu", *options, *parts])
    return gpu.main()


def test_every_part_is_saved_and_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, tmp_path) == 0
    files = {file.stem: json.loads(file.read_text()) for file in (tmp_path / "out").iterdir()}
    assert files.keys() == gpu.PARTS.keys()
    assert all(part["rows"] and "error" not in part for part in files.values())
    assert {row["same_keyframes"] for row in files["equality"]["rows"]} == {True}
    assert {row["largest_difference"] for row in files["equality"]["rows"]} == {0}
    capsys.readouterr()
    assert run(monkeypatch, tmp_path) == 0
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == list(gpu.PARTS)


def test_a_part_that_fails_is_saved_as_its_error_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(bench: gpu.Bench) -> None:
        yield {"what": "a row"}
        raise ValueError("broken")

    monkeypatch.setitem(gpu.PARTS, "machine", breaks)
    assert run(monkeypatch, tmp_path, "machine", "peer") == 1
    saved = json.loads((tmp_path / "out" / "machine.json").read_text())
    assert (saved["rows"], saved["error"]) == ([{"what": "a row"}], "ValueError: broken")
    assert (tmp_path / "out" / "peer.json").is_file()
