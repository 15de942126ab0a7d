"""Files that appear whole or not at all, and folders in which one process works at a time."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

LOCK = ".lock"


@contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a path to write to; what is there at the end takes the place of `path`, and after an error nothing does."""
    path = Path(path)
    # A name of this process alone, so that two that write the same file do not mix; FFmpeg goes by the last ending.
    waiting = path.with_name(f"{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield waiting
        os.replace(waiting, path)
    finally:
        waiting.unlink(missing_ok=True)


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


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Write a result as JSON, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(file) as waiting:
        waiting.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
