"""What the command prints. User text is never markup."""

import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

_errors = Console(stderr=True, highlight=False, soft_wrap=True)


def tell(line: str) -> None:
    """Print a line to stderr."""
    _errors.print(line, markup=False)


def show(as_json: bool, result: Any, *parts: Table | str) -> None:
    """Print a result as one JSON object, or for people as tables and lines of text."""
    if as_json:
        typer.echo(json.dumps(result))
        return
    for part in parts:
        Console(highlight=False).print(part, markup=False, soft_wrap=isinstance(part, str))


def table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table | str:
    """Lay out rows under their names, words to the left and numbers to the right; without rows there is the title."""
    if not rows:
        return title
    made = Table(title=Text(title))
    for name, value in rows[0].items():
        made.add_column(name, justify="left" if isinstance(value, str) else "right", overflow="fold")
    for row in rows:
        made.add_row(*(Text(_in_words(value)) for value in row.values()))
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
