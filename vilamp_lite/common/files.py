"""Files that appear whole or not at all, in places that were free or our own; folders in which one process works."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from filecmp import cmp
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from filelock import AcquireReturnProxy, FileLock, Timeout

LOCK = ".lock"
UNFINISHED = ".vilamp-unfinished-"  # begins the name of a folder that holds what is being written beside it


@contextmanager
def written_whole(path: str | os.PathLike[str], *, durable: bool = False) -> Iterator[Path]:
    """Give a path to write to; what is there at the end takes the place of `path`, and after an error nothing does.

    Args:
        path: the file; its folder is there.
        durable: wait until the system has the file and its name on the disk, for what took hours to make.

    Raises:
        ValueError: the file is a link, which leads to a file of somebody else.
    """
    path = Path(path)
    _require_no_link(path)
    try:
        with unfinished(path.parent) as folder:
            waiting = folder / path.name
            yield waiting
            _put(waiting, path, durable)
    except OSError as error:
        error.filename = error.filename or str(path)  # of a full disk it says nothing
        raise


@contextmanager
def saved_whole(folder: Path) -> Iterator[Path]:
    """Give an empty folder to save a model to; its files then take their places in `folder`, each of them whole.

    Whatever else lies in `folder` stays there, and so does a file that is not what would take its place: the same work
    makes the same files. Its config.json comes last: who finds it finds the rest.

    Raises:
        ValueError: a place is taken by another file, or is or lies behind a link, which leads to what is somebody
            else's; then no file takes its place.
    """
    _require_no_link(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with unfinished(folder) as place:  # there, because a folder may be a disk of its own
        waiting = place / folder.absolute().name
        waiting.mkdir()
        yield waiting
        files = [file.relative_to(waiting) for file in waiting.rglob("*") if file.is_file()]
        for file in files:
            for part in (file, *file.parents):
                _require_no_link(folder / part)
            if (folder / file).exists() and not cmp(waiting / file, folder / file, shallow=False):
                raise ValueError(f"{folder / file} is there, and it is not what is saved here: move it elsewhere first")
        for file in sorted(files, key=lambda file: (file == Path("config.json"), file)):
            (folder / file).parent.mkdir(exist_ok=True)
            _put(waiting / file, folder / file, durable=True)


@contextmanager
def unfinished(beside: Path) -> Iterator[Path]:
    """Give a new folder in the folder `beside`, for what is not finished; it is gone at the end.

    A kill leaves it there without a holder, and the next call in the same place clears it away.
    """
    clear_unfinished(beside)
    try:
        folder = Path(mkdtemp(prefix=UNFINISHED, dir=beside))
    except OSError as error:
        error.filename = str(beside)  # not a name that nobody gave
        raise
    with _held(folder):
        try:
            yield folder
        finally:  # before the lock is free, or another process could clear the folder away meanwhile
            shutil.rmtree(folder, ignore_errors=True)


def _held(folder: Path) -> AcquireReturnProxy:
    """Lock a new folder; as long as nobody holds it, another process may clear it away, and then it is made again."""
    while True:
        with suppress(FileNotFoundError, FileExistsError):
            return FileLock(folder / LOCK).acquire()


def clear_unfinished(folder: Path) -> None:
    """Delete what killed writers have left in a folder, if the disk allows it."""
    for left in folder.glob(f"{UNFINISHED}*"):
        with suppress(OSError, Timeout):  # Timeout: its writer is alive
            left.rmdir()  # killed before it held anything
        if left.is_symlink() or not (left / LOCK).is_file():
            continue
        with suppress(OSError, Timeout), FileLock(left / LOCK, timeout=0):
            shutil.rmtree(left, ignore_errors=True)


def _require_no_link(path: Path) -> None:
    if path.is_symlink():
        raise ValueError(f"{path} is a link, which is not written through: name the file that it leads to")


def _put(waiting: Path, path: Path, durable: bool) -> None:
    """Let a finished file take its place, readable for those who may read any new file of this user."""
    usual = waiting.with_name(f"{UNFINISHED}mode")
    usual.touch()
    if waiting.stat().st_mode != usual.stat().st_mode:  # safetensors makes its files for their owner alone
        waiting.chmod(usual.stat().st_mode)
    if durable:
        _onto_the_disk(waiting)
    os.replace(waiting, path)
    if durable:
        _onto_the_disk(path.parent)


def require_new(path: Path, *, overwrite: bool = False) -> None:
    """Refuse to write where there is something, before hours of work; a link leads to a file of somebody else.

    Raises:
        ValueError: there is something, and it shall not be overwritten, or is no file.
    """
    if not os.path.lexists(path):
        return
    if path.is_symlink() or not path.is_file():
        raise ValueError(f"{path} is there, and it is not a file of its own: name another one")
    if not overwrite:
        raise ValueError(f"{path} is there already: name another file, or replace it with --overwrite")


def _onto_the_disk(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def alone_in(folder: Path, work: str) -> Iterator[None]:
    """Keep a second process out of a folder; the system frees the lock when its holder ends, however it ends.

    Args:
        folder: made if it is not there.
        work: what is done in it, for the error: "sweep".

    Raises:
        ValueError: another process is at work there, or a file is.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK).acquire(timeout=0)
    except Timeout:
        raise ValueError(f"another {work} is at work in {folder}: wait for its end, or choose another folder") from None
    except (FileExistsError, NotADirectoryError):
        raise ValueError(f"{folder} can't be a folder, as a file lies in its way: choose another one") from None
    with lock:
        yield


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write a result as JSON, whole or not at all; its folder is made if it is not there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(file) as waiting:
        waiting.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
