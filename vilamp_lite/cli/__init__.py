"""The `vilamp` command: bad input prints one line and exits 2; `--json` prints one object.

Each file has the commands of one kind. What takes seconds to load is imported inside them: `--help` should be quick.
"""

import sys
import warnings
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.exceptions import Abort, TyperException

from vilamp_lite.cli import ask, costs, evaluate, files, reproduce, train
from vilamp_lite.cli.shown import ready_streams, tell
from vilamp_lite.common import one_line

_HINT = "; before a name or a text that begins with a dash, put --"


class _OneLineErrors(TyperGroup):
    """Turns what a user can mend into one line on stderr and exit code 2, and warnings into one line each."""

    def invoke(self, context: Any) -> Any:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: tell(f"warning: {message}")
            try:
                return super().invoke(context)
            except (ValueError, ImportError, OSError, RecursionError) as error:
                tell(f"vilamp: {one_line(str(error))}")
                raise typer.Exit(2) from error
            except MemoryError as error:
                known = str(error) or "no more is known"
                tell(f"vilamp: out of memory; sample fewer frames, or free some memory ({known})")
                raise typer.Exit(2) from error


app = typer.Typer(cls=_OneLineErrors, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

for command in (files.probe, files.keyframes, ask.encode, ask.ask, costs.costs, files.tinyworld):
    app.command()(command)
app.add_typer(train.app, name="train")
app.add_typer(evaluate.app, name="evaluate")
app.command(cls=reproduce.PairsCommand)(reproduce.reproduce)
app.command()(reproduce.sweep)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"vilamp-lite {version('vilamp-lite')}")
        raise typer.Exit


@app.callback()
def _main(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """ViLaMP: keyframes and merged tokens for long videos."""


def main() -> None:
    """Run the command; misuse, too, is one line on stderr and exit code 2."""
    ready_streams()
    try:
        # Without standalone mode typer hands errors of usage back instead of drawing a box around them.
        code = app(standalone_mode=False)
    except TyperException as error:
        # Without arguments the help has been printed, and there is nothing to add.
        if message := one_line(error.format_message()):
            tell(f"vilamp: {message}{_HINT if message.startswith('No such option') else ''}")
        code = 2
    except Abort:
        code = 130
    sys.exit(code)
