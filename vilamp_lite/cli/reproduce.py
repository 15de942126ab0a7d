"""`vilamp reproduce` and `vilamp sweep`: notebooks, run with other parameters."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option
from typer.core import TyperCommand

from vilamp_lite import notebook
from vilamp_lite.cli.options import AsJson
from vilamp_lite.cli.shown import interruptible, show, table, tell


class PairsCommand(TyperCommand):
    """Takes `-p NAME VALUE`, as papermill does: typer has no list of pairs."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        for option in self.params:
            if option.name == "parameter":
                option.nargs = 2


def reproduce(
    notebooks: Annotated[
        list[str] | None, Argument(metavar="[NOTEBOOK]...", help="Such as 02, or a path; all when left out.")
    ] = None,
    parameter: Annotated[
        list[Any] | None, Option("--parameter", "-p", metavar="NAME VALUE", help="Set a parameter; may be repeated.")
    ] = None,
    out: Annotated[Path, Option(help="This folder gets one for each notebook.")] = Path("runs"),
    time_limit: Annotated[float, Option(help="Seconds for each notebook.")] = 1800,
    list_parameters: Annotated[bool, Option("--list", help="Only list the notebooks' parameters.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run notebooks: executed copies, HTML, figures and a stamped result.json. Exit code 1 if one fails."""
    with interruptible(f"finished notebooks are in {out}"):
        chosen = [notebook.find_notebook(name) for name in notebooks] if notebooks else notebook.all_notebooks()
        if list_parameters:
            if parameter:
                raise ValueError("--list runs nothing: leave out -p")
            _show_parameters(chosen, as_json)
            return
        start = time.monotonic()
        values = notebook.parse_parameters(chosen[0], parameter or [])
        runs = list(notebook.run_notebooks(chosen, out, values, time_limit))
    failed = [run for run in runs if run.error]
    show(
        as_json,
        [asdict(run) | {"folder": str(out / run.notebook)} for run in runs],
        f"{len(runs) - len(failed)} of {len(runs)} notebooks ran, in {time.monotonic() - start:.0f} s",
        f"Read {out}/NAME/NAME.html; the figures (PNG) and result.json lie beside it.",
    )
    _end({f"{run.notebook}/{run.notebook}.ipynb": run.error for run in failed}, out)


def _show_parameters(notebooks: list[Path], as_json: bool) -> None:
    rows = {
        path.stem: [
            {"name": about.name, "type": about.type_name, "default": about.default, "help": about.help}
            for about in notebook.parameters_of(path).values()
        ]
        for path in notebooks
    }
    show(as_json, rows, *(table(name, parameters) for name, parameters in rows.items()))


def sweep(
    file: Annotated[Path, Argument(metavar="FILE", help="YAML: notebook, parameters, metric, …")],
    out: Annotated[
        Path | None, Option(help="A folder; the same command goes on there.", show_default="runs/sweeps/NAME")
    ] = None,
    workers: Annotated[
        int | None, Option(min=1, help="Processes, with one thread each.", show_default="one per core")
    ] = None,
    scheduler: Annotated[str | None, Option(help="Address of a Dask scheduler, instead of local processes.")] = None,
    time_limit: Annotated[float, Option(help="Seconds for each cell of the grid.")] = 1800,
    as_json: AsJson = False,
) -> None:
    """Run a notebook for each cell of a grid, in parallel; a table and a figure of it. Exit code 1 if a cell fails."""
    out = out or Path("runs") / "sweeps" / file.stem
    with interruptible(f"finished cells are kept in {out}"):
        if scheduler and workers:
            raise ValueError("--workers are local processes: leave them out with --scheduler")
        grid = notebook.load_sweep(file)
        result = notebook.run_sweep(grid, out, workers=workers, scheduler=scheduler, time_limit=time_limit)
    cells = len(result.table)
    show(
        as_json,
        {"out": str(out), "table": result.rows(), "failed": result.failed},
        f"{cells - len(result.failed)} of {cells} cells finished",
        f"{out}/table.csv and figure.png; each cell lies in cells/CELL",
    )
    _end({f"cells/{cell}": error for cell, error in result.failed.items()}, out)


def _end(errors: dict[str, str], out: Path) -> None:
    """Say of each error in `out` where it lies; exit code 1 if there is any."""
    for place, error in errors.items():
        tell(f"{Path(place).stem}: {error}; as far as it came: {out / place}")
    if errors:
        raise typer.Exit(1)
