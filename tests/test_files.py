"""Files that appear whole or not at all."""

import os
from pathlib import Path

import pytest

from vilamp_lite.common.files import alone_in, written_whole


def test_a_file_appears_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "table.v2.csv"
    path.write_text("old")
    with written_whole(path) as waiting:
        waiting.write_text("new")
        assert waiting.suffix == ".csv"
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_what_took_hours_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[object] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (happened.append(os.fstat(handle).st_ino), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda *paths: (happened.append("named"), replace(*paths)))
    path = tmp_path / "weights.bin"
    with written_whole(path, durable=True) as waiting:
        waiting.write_text("hours of work")
    assert happened == [path.stat().st_ino, "named", tmp_path.stat().st_ino]


def test_after_an_error_the_old_file_is_there(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("old")

    def stopped_halfway() -> None:
        with written_whole(path) as waiting:
            waiting.write_text("ne")
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        stopped_halfway()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_one_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    with (
        alone_in(folder, "sweep"),
        pytest.raises(ValueError, match=f"another sweep is at work in {folder}: wait for its end, or choose another"),
        alone_in(folder, "sweep"),
    ):
        pass
    with alone_in(folder, "sweep"):
        pass
    with pytest.raises(RuntimeError, match="inside"), alone_in(folder, "sweep"):
        raise RuntimeError("inside")
    with alone_in(folder, "sweep"):
        pass
