"""Files that appear whole or not at all, and folders in which one process works at a time."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

LOCK = ".lock"


@contextmanager
def written_whole(
    path: str | os.PathLike[str], *, durable: bool = False, waiting: Path | None = None
) -> Iterator[Path]:
    """Give a path to write to; what is there at the end takes the place of `path`, and after an error nothing does.

    Args:
        path: the file; its folder is there.
        durable: wait until the system has the file and its name on the disk, for what took hours to make.
        waiting: its path until then, for who writes alone there: what a kill leaves is written over the next time.
    """
    path = Path(path)
    # A name of this process alone, so that two that write the same file do not mix; FFmpeg goes by the last ending.
    waiting = waiting or path.with_name(f"{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield waiting
        if durable:
            _onto_the_disk(waiting)
        os.replace(waiting, path)
        if durable:
            _onto_the_disk(path.parent)
    finally:
        waiting.unlink(missing_ok=True)


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
        ValueError: another process is at work there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(folder / LOCK).acquire(timeout=0)
    except Timeout:
        raise ValueError(f"another {work} is at work in {folder}: wait for its end, or choose another folder") from None
    with lock:
        yield


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write a result as JSON, whole or not at all; its folder is made if it is not there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(file) as waiting:
        waiting.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
