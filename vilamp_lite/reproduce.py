"""Run the notebooks with papermill: executed copies, web pages, figures and a stamped result in one folder.

`python -m vilamp_lite.reproduce` runs them all; it is what `make run` calls.
"""

import base64
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import nbformat
import papermill
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbconvert import HTMLExporter
from papermill.exceptions import PapermillExecutionError
from rich.console import Console
from rich.table import Table

from vilamp_lite.progress import progress_bar
from vilamp_lite.stamp import ROOT, make_stamp

CELL_TIMEOUT = 600  # seconds; a stuck cell would otherwise wait for ever


@dataclass(frozen=True)
class Run:
    """What became of one notebook.

    Attributes:
        notebook: its name without the ending.
        seconds: wall time.
        figures: files of the pictures it drew.
        error: the failing cell's error in one line, or None.
        folder: where everything was written.
    """

    notebook: str
    seconds: float
    figures: list[str]
    error: str | None
    folder: str


def run_notebook(notebook: Path, out: Path, parameters: dict[str, object] | None = None) -> Run:
    """Run one notebook; write the executed copy, its HTML, its figures and result.json to out/NAME.

    A failing notebook leaves its partial copy, with the error in it, and does not raise.

    Args:
        notebook: the file to run; it is not changed.
        out: the folder that gets a folder of the notebook's name.
        parameters: values that replace those of the notebook's `parameters` cell.

    Raises:
        ValueError: there is no such notebook.
    """
    if not notebook.is_file():
        raise ValueError(f"there is no notebook {notebook}")
    folder = out / notebook.stem
    folder.mkdir(parents=True, exist_ok=True)
    executed = folder / notebook.name
    start, error = time.perf_counter(), None
    os.environ["VILAMP_HEADLESS"] = "1"  # for the notebook's kernel, which inherits it
    try:
        papermill.execute_notebook(
            notebook,
            executed,
            parameters=parameters or {},
            kernel_name="python3",
            cwd=notebook.parent,
            execution_timeout=CELL_TIMEOUT,
            progress_bar=False,
        )
    except PapermillExecutionError as failure:
        error = f"cell {failure.exec_count}: {failure.ename}: {failure.evalue}"
    except (CellTimeoutError, DeadKernelError) as failure:
        error = f"{type(failure).__name__}: {' '.join(str(failure).split())[:200]}"
    run = Run(notebook.stem, time.perf_counter() - start, _export(executed, folder), error, str(folder))
    result = asdict(run) | make_stamp(parameters=_parameters(notebook, parameters or {}))
    (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    return run


def _export(executed: Path, folder: Path) -> list[str]:
    """Write the executed notebook as HTML, and its pictures as files named after their cells."""
    content = nbformat.read(executed, as_version=4)
    page, _ = HTMLExporter().from_notebook_node(content)
    executed.with_suffix(".html").write_text(page)
    names = []
    for cell in content.cells:
        pictures = [
            output.data["image/png"] for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
        ]
        for number, picture in enumerate(pictures, start=1):
            names.append(f"{cell.id}.png" if number == 1 else f"{cell.id}_{number}.png")
            (folder / names[-1]).write_bytes(base64.b64decode(picture))
    return names


def _parameters(notebook: Path, given: dict[str, object]) -> dict[str, object]:
    """Every parameter of a run: the notebook's own values, and those given."""
    return {name: about["default"] for name, about in papermill.inspect_notebook(notebook).items()} | given


def main() -> int:
    """Run every notebook into runs/ and print a summary; 1 if one failed."""
    out = ROOT / "runs"
    notebooks = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
    start = time.perf_counter()
    runs = []
    with progress_bar(len(notebooks), "notebooks", "make run") as bar:
        for path in notebooks:
            bar.set_postfix_str(path.stem)
            runs.append(run_notebook(path, out))
            bar.update()
    table = Table(title=f"{len(runs)} notebooks in {time.perf_counter() - start:.0f} s")
    for column in ("notebook", "seconds", "figures", "result"):
        table.add_column(column, justify="right" if column in ("seconds", "figures") else "left")
    for run in runs:
        table.add_row(run.notebook, f"{run.seconds:.0f}", str(len(run.figures)), run.error or "ok")
    console = Console()
    console.print(table)
    console.print(f"Read {out}/NAME/NAME.html; the figures (PNG) and result.json lie beside it.", soft_wrap=True)
    return int(any(run.error for run in runs))


if __name__ == "__main__":
    sys.exit(main())
