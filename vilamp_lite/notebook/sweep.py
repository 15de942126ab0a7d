"""Sweeps: a notebook run for each cell of a grid of parameters, in parallel on Dask, into one table and a figure.

A sweep is a small YAML file::

    notebook: 02                     # the start of a notebook's name, or a path relative to this file
    parameters:                      # every combination is a cell of the grid
      max_keyframes: [4, 8, 16]
      similarity_threshold: [0.7, 0.85]
    fixed: {fps: 0.5}                # other parameters; may be left out
    metric: hit_at_5_dks             # what the figure shows; one that the notebook records
    figure: {x: max_keyframes, y: similarity_threshold}    # a heat map; {x: …} or {x: …, hue: …} are curves

`vilamp sweep FILE` runs it. A cell is finished when its `result.json` is there, which is written last and whole.
Nothing else says how far a sweep has come, so it goes on after any process was killed: finished cells are never run
again, the others are. A cell is known by its notebook's code and all its parameters: when one of them changes, it is
another cell. The package's code and the files that a notebook reads are not looked at; choose another folder when they
change.
"""

import asyncio
import json
import math
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from dask.distributed import Client, LocalCluster, Security, as_completed
from dask.system import CPU_COUNT
from distributed.core import rpc
from pydantic import BaseModel, Field

from vilamp_lite.common.checks import finite_number
from vilamp_lite.common.files import alone_in, written_whole
from vilamp_lite.common.fingerprints import code_checksum
from vilamp_lite.common.names import names_of_today
from vilamp_lite.common.outside import Text, checked, read_yaml
from vilamp_lite.common.progress import progress_bar
from vilamp_lite.notebook.reproduce import (
    RESULT,
    TIME_LIMIT,
    Parameter,
    find_notebook,
    known_parameters,
    parameters_of,
    run_notebook,
    written_by_run,
)

_FIELDS = "a sweep has notebook, parameters (lists of values), metric and, if you like, fixed and figure"
_FIGURES = ({"x"}, {"x", "hue"}, {"x", "y"})
_TABLE, _FIGURE = "table.csv", "figure.png"
_MOST_CELLS = 100_000
_PATIENCE = 10.0  # seconds, for a scheduler and its workers, which should be there already


@dataclass(frozen=True)
class Sweep:
    """A grid over a notebook's parameters.

    Attributes:
        notebook: the file.
        grid: each parameter's values; every combination is a cell.
        metric: what the figure shows, one of those that the notebook records.
        fixed: values of other parameters.
        figure: parameters on its axes: "x" and "y" for a heat map, "x" alone or with "hue" for curves.
    """

    notebook: Path
    grid: Mapping[str, list[object]]
    metric: str
    fixed: Mapping[str, object] = field(default_factory=dict)
    figure: Mapping[str, str] = field(default_factory=dict)

    def cells(self) -> dict[str, dict[str, object]]:
        """The grid's cells, the last parameter changing fastest: each one's name and the parameters it sets."""
        code = code_checksum(self.notebook)
        defaults = {name: about.checked_default() for name, about in parameters_of(self.notebook).items()}
        cells = {}
        for values in product(*self.grid.values()):
            own = dict(zip(self.grid, values, strict=True)) | self.fixed
            as_json = json.loads(json.dumps(defaults | own))  # a default may have numbers among its names: no order
            known_by = json.dumps([code, as_json], sort_keys=True)
            cells[sha256(known_by.encode()).hexdigest()[:16]] = own
        return cells


@dataclass(frozen=True)
class SweepResult:
    """What a sweep came to.

    Attributes:
        table: a row for each cell of the grid, in its order: the grid's parameters, the metrics (empty where the cell
            failed), and the cell's name.
        failed: the error of each cell that failed, by the cell's name.
    """

    table: pd.DataFrame
    failed: dict[str, str]

    def rows(self) -> list[dict[str, Any]]:
        """The table as JSON has it: None, not NaN, where a cell failed."""
        return self.table.astype(object).where(self.table.notna(), None).to_dict("records")


class _File(BaseModel, extra="forbid"):
    """What the YAML file holds; `Sweep` says what it means."""

    notebook: str | int
    parameters: Annotated[dict[str, Annotated[list[object], Field(min_length=1)]], Field(min_length=1)]
    metric: Text
    fixed: dict[str, object] = {}
    figure: dict[Literal["x", "y", "hue"], str] = {}


def load_sweep(file: Path) -> Sweep:
    """Read a sweep from a YAML file."""
    if not file.is_file():
        raise ValueError(f"there is no sweep {file}")
    try:
        content = names_of_today(read_yaml(file.read_text(encoding="utf-8"), str(file)))
    except (UnicodeDecodeError, RecursionError) as error:  # the latter of a list that holds itself
        raise ValueError(f"{file} is not YAML: {error}") from error
    fields = checked(_File, content, str(file), remedy=_FIELDS)
    if (cells := math.prod(map(len, fields.parameters.values()))) > _MOST_CELLS:
        raise ValueError(f"{file} has a grid of {cells:,} cells, and {_MOST_CELLS:,} are the most: name fewer values")
    name = fields.notebook
    notebook = find_notebook(f"{name:02}" if isinstance(name, int) else name, file.parent)  # YAML reads 02 as a number
    known = known_parameters(notebook, [*fields.parameters, *fields.fixed])
    grid = {name: _values(file, known[name], values) for name, values in fields.parameters.items()}
    fixed = {name: _values(file, known[name], [value])[0] for name, value in fields.fixed.items()}
    if both := fixed.keys() & grid.keys():
        raise ValueError(f"{file}: {', '.join(sorted(both))} cannot be in the grid and fixed")
    # Without a word about it: curves over the first parameter, one for each value of the second.
    figure = fields.figure or dict(zip(("x", "hue"), grid, strict=False))
    if set(figure) not in _FIGURES or not set(figure.values()) <= set(grid) or len(set(figure.values())) < len(figure):
        raise ValueError(
            f"{file}: figure must be {{x, y}}, {{x}} or {{x, hue}}, each another one of {', '.join(grid)}; got {figure}"
        )
    return Sweep(notebook, grid, fields.metric, fixed, figure)


def _values(file: Path, parameter: Parameter, values: list[object]) -> list[object]:
    """Check one parameter's values."""
    taken = [parameter.check(value, str(file)) for value in values]
    # 1 and 1.0 are one value; lists and mappings are told apart by what they are written as.
    told = {json.dumps(value, sort_keys=True) if isinstance(value, list | dict) else value for value in taken}
    if len(told) < len(taken):
        raise ValueError(f"{file}: {parameter.name} of the grid has a value twice: {values}")
    return taken


def run_sweep(
    sweep: Sweep,
    out: Path,
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    time_limit: float = TIME_LIMIT,
) -> SweepResult:
    """Run the cells that are not finished yet; write out/table.csv and out/figure.png, each cell to out/cells/CELL.

    Failed cells, too, are run again.

    Args:
        sweep: the grid.
        out: a folder; the same sweep, or a larger one over the same notebook, goes on there.
        workers: local processes, one core each; as many as there are cores when left out.
        scheduler: address of a Dask scheduler whose workers see the same files and have the same packages, instead.
        time_limit: seconds for each cell.

    Raises:
        ValueError: another process works in `out`, a table or figure there is no sweep's, a cell does not record the
            metric, the time limit is not above 0, or no scheduler with a worker answers at that address.
    """
    finite_number("the time limit", time_limit, above=0)
    if scheduler is not None and not scheduler.strip():
        raise ValueError("the scheduler's address is empty: leave it out to run on this machine")
    out, cells = out.resolve(), sweep.cells()
    _require_own(sweep, out)
    with alone_in(out, "sweep"):
        results = {cell: _finished(out / "cells" / cell) for cell in cells}
        for result in filter(None, results.values()):
            _require_metric(sweep, result)
        waiting, failed = {cell: own for cell, own in cells.items() if results[cell] is None}, {}
        with progress_bar(len(cells), "cells", out.name, initial=len(cells) - len(waiting)) as bar:
            for cell, error in _run(sweep, waiting, out, workers, scheduler, time_limit):
                results[cell] = _finished(out / "cells" / cell)
                if error:
                    failed[cell] = error
                else:
                    _require_metric(sweep, results[cell])
                bar.update()
        table = _table(sweep, cells, results)
        with written_whole(out / _TABLE) as waiting:
            table.to_csv(waiting, index=False)
        if sweep.metric in table:  # some cell has it
            with written_whole(out / _FIGURE) as waiting:
                _draw(sweep, table, waiting)
    # In the grid's order, not in that of failing.
    return SweepResult(table, {cell: failed[cell] for cell in cells if cell in failed})


def _require_own(sweep: Sweep, out: Path) -> None:
    """Refuse a folder whose table and figure no sweep wrote: one has run cells before it writes them."""
    there = [name for name in (_TABLE, _FIGURE) if os.path.lexists(out / name)]
    if there and not any(written_by_run(sweep.notebook, cell) for cell in out.glob("cells/*")):
        raise ValueError(f"{out} holds {' and '.join(there)}, which no sweep wrote: choose another folder")


def _run(
    sweep: Sweep,
    cells: Mapping[str, dict[str, object]],
    out: Path,
    workers: int | None,
    scheduler: str | None,
    time_limit: float,
) -> Iterator[tuple[str, str | None]]:
    """Run cells on Dask; each one's name and error, in the order of their ends."""
    if not cells:
        return
    with _client(min(workers or CPU_COUNT, len(cells)), scheduler) as client:
        futures = {}
        for cell, own in cells.items():
            folder = out / "cells" / cell
            # A key that names the folder: if an earlier client was killed, the scheduler may still be at work on it.
            futures[client.submit(_run_cell, sweep.notebook, folder, own, time_limit, key=str(folder))] = cell
        for future in as_completed(futures):
            failure = future.exception()
            error = future.result() if failure is None else f"{type(failure).__name__}: {failure}"
            yield futures[future], error


@contextmanager
def _client(workers: int, scheduler: str | None) -> Iterator[Client]:
    """Connect to the user's cluster, or to one of processes here that ends with this one."""
    if scheduler:
        _require_workers(scheduler)
        with Client(scheduler, timeout=_PATIENCE) as client:
            yield client
    else:
        with (
            LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None) as cluster,
            Client(cluster) as client,
        ):
            yield client


def _require_workers(scheduler: str) -> None:
    """Refuse an address at which no scheduler answers, or one without workers: a client would wait without end."""
    answered = False

    async def found() -> None:
        nonlocal answered
        security = Security().get_connection_args("client")
        async with rpc(scheduler, timeout=_PATIENCE, connection_args=security) as asked:
            while not (await asked.identity())["workers"]:
                answered = True
                await asyncio.sleep(0.2)

    try:
        with ThreadPoolExecutor(1) as thread:  # there may be a loop in this one, as in a notebook
            thread.submit(asyncio.run, asyncio.wait_for(found(), _PATIENCE)).result()
    except Exception as error:  # of any kind: something else than a scheduler may say anything
        if answered:
            raise ValueError(
                f"the scheduler at {scheduler} has no workers, after {_PATIENCE:.0f} s of waiting for workers: start "
                f"some with `dask worker {scheduler}`, then run this again"
            ) from error
        raise ValueError(
            f"no Dask scheduler answers at {scheduler} within {_PATIENCE:.0f} s"
            + (f" ({error})" if str(error) else "")
            + ": check address and port"
        ) from error


def _run_cell(notebook: Path, folder: Path, parameters: dict[str, object], time_limit: float) -> str | None:
    """Run one cell, on a worker, and return its error."""
    # Dask runs a task again when its worker died before it could report the end.
    if _finished(folder):
        return None
    return run_notebook(notebook, folder, parameters, time_limit).error


def _finished(folder: Path) -> dict[str, object] | None:
    """The result of a cell that came to its end without an error."""
    try:
        result = json.loads((folder / RESULT).read_text())
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return result if result["error"] is None else None


def _require_metric(sweep: Sweep, result: Mapping[str, object]) -> None:
    """Refuse a cell that does not record the metric, or records one that is called like another column."""
    if both := [name for name in result["metrics"] if name in (*sweep.grid, "cell")]:
        raise ValueError(f"{sweep.notebook.name} records {', '.join(both)}, which is another column of the table")
    if sweep.metric not in result["metrics"]:
        known = ", ".join(result["metrics"]) or "nothing (see vilamp_lite.notebook.record)"
        raise ValueError(f"{sweep.notebook.name} does not record the metric {sweep.metric!r}; it records {known}")


def _table(sweep: Sweep, cells: Mapping[str, dict[str, object]], results: Mapping[str, dict | None]) -> pd.DataFrame:
    """One row for each cell: its parameters, metrics and name."""
    rows = []
    for cell, own in cells.items():
        # A list in a table's cell is written as text.
        place = {
            name: json.dumps(own[name]) if isinstance(own[name], (list, dict)) else own[name] for name in sweep.grid
        }
        rows.append(place | (results[cell]["metrics"] if results[cell] else {}) | {"cell": cell})
    table = pd.DataFrame(rows)
    return table[[name for name in table.columns if name != "cell"] + ["cell"]]


def _draw(sweep: Sweep, table: pd.DataFrame, waiting: Path) -> None:
    """Draw the metric over the figure's axes."""
    # Imported here: torch takes seconds, and the workers should not wait for it.
    from vilamp_lite import plots

    plots.set_style()
    draw = plots.sweep_heat_map if "y" in sweep.figure else plots.sweep_curves
    draw(table[[*sweep.grid, sweep.metric]], sweep.metric, **sweep.figure).savefig(waiting)
