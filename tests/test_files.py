"""Files that appear whole or not at all."""

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
