"""What the command prints. User text is never markup, and any stream can take it."""

import io
import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vilamp_lite.common import visible

_errors = Console(stderr=True, highlight=False, soft_wrap=True)


def ready_streams() -> None:
    """Let stdout and stderr take any text, in whatever encoding, and be there even if the caller has closed them."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:  # or the next file that is opened would get what is printed
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def tell(line: str) -> None:
    """Print a line to stderr."""
    _errors.print(Text(visible(line)))


def show(as_json: bool, result: Any, *parts: Table | str) -> None:
    """Print a result as one JSON object, or for people as tables and lines of text."""
    with written():
        if as_json:
            print(json.dumps(result).replace("\x7f", "\\u007f"))  # the one control character that JSON leaves
            return
        for part in parts:
            whole, console = isinstance(part, str), Console(highlight=False)
            if not whole:
                console.width = max(console.width, 1 + 4 * len(part.columns))  # room for a letter in each column
            console.print(Text(visible(part)) if whole else part, soft_wrap=whole)


@contextmanager
def written() -> Iterator[None]:
    """Print to stdout inside `with`: a reader that is gone ends the command quietly, a full disk with one line."""
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python tries once more when it ends
        if isinstance(error, BrokenPipeError):
            raise typer.Exit(1) from error
        raise OSError(f"can't print the result: {error.strerror}") from error


def table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table | str:
    """Lay out rows under their names, words to the left and numbers to the right; without rows there is the title."""
    if not rows:
        return title
    made = Table(title=Text(visible(title)))
    for name, value in rows[0].items():
        made.add_column(Text(name), justify="left" if isinstance(value, str) else "right", overflow="fold", min_width=1)
    for row in rows:
        made.add_row(*(Text(visible(_in_words(value))) for value in row.values()))
    return made


def _in_words(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 100 else f"{value:,.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


@contextmanager
def interruptible(state: str) -> Iterator[None]:
    """Turn Ctrl-C into one line that says what is kept and how to go on, and exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        tell(f"vilamp: stopped; {state}; to go on: {shlex.join(['vilamp', *sys.argv[1:]])}")
        raise typer.Exit(130) from None
