"""Files that appear whole or not at all."""

import multiprocessing
import os
import signal
import stat
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors.torch import save_file

from vilamp_lite.common.files import UNFINISHED, alone_in, require_new, saved_whole, unfinished, written_whole


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


def test_what_a_kill_leaves_is_cleared_by_the_next_writer_and_nothing_else(tmp_path: Path) -> None:
    strangers = {
        tmp_path / "table.1.csv": "a name that a temporary file might have",
        tmp_path / f"{UNFINISHED}notes": "a file",
        tmp_path / f"{UNFINISHED}mine" / "notes.txt": "in a folder that nothing of ours has locked",
        tmp_path / "elsewhere" / "notes.txt": "behind a link",
        tmp_path / "elsewhere" / ".lock": "",
    }
    for path, content in strangers.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    (tmp_path / f"{UNFINISHED}link").symlink_to("elsewhere")
    before = set(tmp_path.iterdir())
    for _ in range(2):
        if not (child := os.fork()):
            with written_whole(tmp_path / "table.csv") as waiting:
                waiting.write_text("ne")
                os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
        assert len(set(tmp_path.iterdir()) - before) == 1
    with unfinished(tmp_path) as alive:  # another writer, at work in the same folder
        with written_whole(tmp_path / "table.csv") as waiting:
            waiting.write_text("new")
        assert set(tmp_path.iterdir()) == before | {alive, tmp_path / "table.csv"}
    assert set(tmp_path.iterdir()) == before | {tmp_path / "table.csv"}
    assert {path: path.read_text() for path in strangers} == strangers


def test_a_writer_whose_folder_is_cleared_before_it_is_locked_gets_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acquire = FileLock.acquire

    def late(lock: FileLock, *arguments: object, **options: object) -> object:
        Path(lock.lock_file).parent.rmdir()
        monkeypatch.setattr(FileLock, "acquire", acquire)
        return lock.acquire(*arguments, **options)

    monkeypatch.setattr(FileLock, "acquire", late)
    with written_whole(tmp_path / "table.csv") as waiting:
        waiting.write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]


def write_many(folder: Path, names: str) -> None:
    """Write files one after the other, each of which begins with clearing and ends with removing a folder."""
    for name in names:
        for number in range(40):
            path = folder / f"{name}{number}"
            with written_whole(path) as waiting:
                waiting.write_text(path.name)


def test_writers_in_one_folder_leave_each_other_alone(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_many, args=(tmp_path, names)) for names in ("abc", "def", "ghi", "jkl")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 4
    with written_whole(tmp_path / "last") as waiting:
        waiting.write_text("last")
    names = {"last", *(f"{name}{number}" for name in "abcdefghijkl" for number in range(40))}
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: name for name in names}


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_files_are_for_those_whom_the_umask_lets_read(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        with written_whole(tmp_path / "state.safetensors") as waiting:
            save_file({"weight": torch.zeros(1)}, waiting)
        with saved_whole(tmp_path / "model") as waiting:
            (waiting / "selector").mkdir()
            for name in ("model.safetensors", "selector/model.safetensors"):
                save_file({"weight": torch.zeros(1)}, waiting / name)
            (waiting / "config.json").write_text("{}")
    finally:
        os.umask(before)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in written} == {mode}
    assert len(written) == 4


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    victim, link = tmp_path / "victim.csv", tmp_path / "table.csv"
    for content in ("mine", None):
        if content:
            victim.write_text(content)
        else:
            victim.unlink()
        link.unlink(missing_ok=True)
        link.symlink_to(victim)
        with pytest.raises(ValueError, match=r"table\.csv is a link"), written_whole(link) as waiting:
            waiting.write_text("new")
        assert link.readlink() == victim
        assert victim.exists() == bool(content)
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="it is not a file of its own"):
            require_new(link, overwrite=overwrite)


def test_a_full_disk_is_said_of_the_file(tmp_path: Path) -> None:
    def full() -> None:
        with written_whole(tmp_path / "table.csv"), open("/dev/full", "w") as disk:
            disk.write("x")

    with pytest.raises(OSError, match=r"No space left on device: '.*table\.csv'"):
        full()
    with pytest.raises(OSError, match=r"No such file or directory: '.*nowhere'"), written_whole(tmp_path / "nowhere/x"):
        pass


def test_a_model_is_saved_beside_the_files_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, order, replace = tmp_path / "model", [], os.replace
    folder.mkdir()
    (folder / "model-00001-of-00002.safetensors").write_text("of somebody else")
    monkeypatch.setattr(os, "replace", lambda old, new: (order.append(new.name), replace(old, new)))
    for _ in range(2):  # the same work once more makes the same files
        save_model(folder)
        assert order[-1] == "config.json"
        assert contents(folder) == {"model-00001-of-00002.safetensors": "of somebody else", **MODEL}
    assert list(tmp_path.iterdir()) == [folder]


MODEL = {"config.json": "ours", "weights": "ours", "selector/config.json": "ours"}


def save_model(folder: Path) -> None:
    with saved_whole(folder) as waiting:
        assert list(waiting.iterdir()) == []
        (waiting / "selector").mkdir()
        for name, content in MODEL.items():
            (waiting / name).write_text(content)


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("place", ["", "selector", "weights", "selector/config.json"])
@pytest.mark.parametrize("linked", [False, True])
def test_what_somebody_else_put_in_a_models_place_stays(tmp_path: Path, place: str, linked: bool) -> None:
    model, taken = tmp_path / "model", tmp_path / "model" / place
    there = tmp_path / "elsewhere" if linked else taken
    if place in MODEL:
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_text("mine")
    else:
        there.mkdir(parents=True)
        for name in ("weights", "config.json"):
            (there / name).write_text("mine")
    if linked:
        taken.parent.mkdir(parents=True, exist_ok=True)
        taken.symlink_to(there)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="is a link" if linked else "is there, and it is not what is saved here"):
        save_model(model)
    assert contents(tmp_path) == before


def test_a_file_in_a_folders_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("mine")
    for folder in (tmp_path / "runs", tmp_path / "runs" / "contrastive"):
        with pytest.raises(ValueError, match=f"{folder} can't be a folder, as a file lies"), alone_in(folder, "sweep"):
            pass


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
