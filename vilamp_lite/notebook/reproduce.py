"""Run the notebooks with papermill: executed copies, web pages, figures and a stamped result in one folder.

`vilamp reproduce` runs them from the command line; `make run` runs them all.
"""

import ast
import base64
import json
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import shorten

import nbformat
import papermill
import yaml
from nbclient.exceptions import CellTimeoutError
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError

from vilamp_lite.common.checks import finite_number
from vilamp_lite.common.files import write_json, written_whole
from vilamp_lite.common.fingerprints import code_checksum
from vilamp_lite.common.outside import checked
from vilamp_lite.common.stamp import ROOT, make_stamp
from vilamp_lite.notebook.metrics import recorded

NOTEBOOKS = ROOT / "notebooks"
TIME_LIMIT = 1800.0  # seconds of one notebook; a stuck cell would otherwise wait for ever
RESULT = "result.json"
_MANIFEST = ".run.json"  # the notebook and its figures: which files of a folder are a run's, even if it was killed
_MOST_SHOWN = 100  # characters of a value that is refused
_KERNEL_START = 300  # seconds; papermill's 60 are too few on a busy machine
_TYPES = {kind.__name__: kind for kind in (bool, int, float, str, list, dict)}


@dataclass(frozen=True)
class Parameter:
    """A line of a notebook's `parameters` cell.

    Attributes:
        name: of the variable.
        type: as annotated there, or else its default's.
        default: the value in the notebook.
        help: the comment behind it.
    """

    name: str
    type: type
    default: object
    help: str

    def check(self, value: object, where: str = "") -> object:
        """Take a value, found in a file `where`, of the parameter's type, or an integer where it is a float.

        Numbers are finite, in lists and mappings too: results hold the parameters as JSON, and cells are known by it.
        """
        place = f"{where}: {self.name}" if where else self.name
        taken = checked(self.type, value, place)
        try:
            json.dumps(taken, allow_nan=False)
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(
                f"{place} must be finite numbers and words, or lists or mappings of them: {error}"
            ) from error
        return taken

    def parse(self, text: str) -> object:
        """Read a value from the command line: words and numbers as in Python, anything else as in YAML."""
        if self.type is str:
            return text
        try:
            # YAML would take 1e-3 for a word.
            return self.check(self.type(text) if self.type in (int, float) else yaml.safe_load(text))
        except (ValueError, yaml.YAMLError, RecursionError) as error:
            kind = "a finite number" if self.type is float else self.type.__name__
            raise ValueError(f"{self.name} must be {kind}, got {shorten(text, _MOST_SHOWN)!r}") from error


@dataclass(frozen=True)
class Run:
    """What became of one notebook.

    Attributes:
        notebook: its name without the ending.
        seconds: wall time.
        figures: files of the pictures it drew.
        metrics: what it recorded.
        error: the failing cell and its error in one line, or None.
    """

    notebook: str
    seconds: float
    figures: list[str]
    metrics: dict[str, float]
    error: str | None


def find_notebook(name: str, folder: Path | None = None) -> Path:
    """Find a notebook by the start of its name, such as "02", or by its path.

    Args:
        name: of the notebook.
        folder: what a path is relative to; the current one when left out.
    """
    if name.endswith(".ipynb"):
        found = [path for path in [(folder or Path()) / name] if path.is_file()]
    else:
        found = [path for path in all_notebooks() if path.stem.startswith(name)]
    if len(found) != 1:
        known = ", ".join(path.stem for path in found or all_notebooks())
        raise ValueError(f"{name!r} must name one notebook, by a path to it or as the start of one of: {known}")
    return found[0].resolve()


def all_notebooks() -> list[Path]:
    """The project's notebooks, in reading order."""
    if found := sorted(NOTEBOOKS.glob("[0-9]*.ipynb")):
        return found
    raise ValueError(f"there are no notebooks in {NOTEBOOKS}: run this in a copy of the repository")


def parameters_of(notebook: Path) -> dict[str, Parameter]:
    """List the parameters of a notebook, as papermill finds them."""
    if not notebook.is_file():
        raise ValueError(f"there is no notebook {notebook}")
    try:
        inspected = papermill.inspect_notebook(notebook)
    # Any JSON passes for a notebook there, until something is not found in it.
    except (nbformat.ValidationError, ValueError, AttributeError, TypeError, LookupError, RecursionError) as error:
        raise ValueError(f"{notebook} is not a notebook") from error
    parameters = {}
    for name, about in inspected.items():
        try:
            default = ast.literal_eval(about["default"])
        except (ValueError, SyntaxError) as error:
            raise ValueError(
                f"{name} of {notebook.name} must have a plain literal as its default, got {about['default']}"
            ) from error
        kind = _TYPES.get(about["inferred_type_name"], type(default))
        parameters[name] = Parameter(name, kind, default, about["help"])
    return parameters


def known_parameters(notebook: Path, names: Iterable[str]) -> dict[str, Parameter]:
    """List the parameters of a notebook that is to have some names among them."""
    known = parameters_of(notebook)
    if unknown := [name for name in names if name not in known]:
        has = f"it has {', '.join(known)}" if known else "it has none"
        raise ValueError(f"{notebook.name} has no parameter {', '.join(unknown)}; {has}")
    return known


def check_parameters(notebook: Path, values: Mapping[str, object]) -> dict[str, object]:
    """Complete and check what a notebook is to run with.

    Args:
        notebook: the file.
        values: of some of its parameters.

    Returns:
        All its parameters, in the notebook's order.
    """
    known = known_parameters(notebook, values)
    return {name: about.check(values[name]) if name in values else about.default for name, about in known.items()}


def parse_parameters(notebook: Path, given: Sequence[tuple[str, str]]) -> dict[str, object]:
    """Read some of a notebook's parameters from the command line.

    Args:
        notebook: the file.
        given: names and values.
    """
    texts = dict(given)
    if len(texts) < len(given):
        raise ValueError(f"a parameter is given twice: {', '.join(f'{name} {text}' for name, text in given)}")
    known = known_parameters(notebook, texts)
    return {name: known[name].parse(text) for name, text in texts.items()}


def run_notebook(
    notebook: Path, folder: Path, parameters: Mapping[str, object] | None = None, time_limit: float = TIME_LIMIT
) -> Run:
    """Run one notebook; write the executed copy, its HTML, its figures and, last, result.json.

    A failing notebook leaves its partial copy, with the error in it, and does not raise. Whoever finds a result.json
    finds the rest complete.

    Args:
        notebook: the file to run, in its own folder; it is not changed.
        folder: gets what is written, in place of what an earlier run of the same notebook wrote there.
        parameters: values that replace those of the notebook's `parameters` cell.
        time_limit: seconds for the whole notebook.

    Raises:
        ValueError: bad parameters, or a file that no run of this notebook wrote stands where this one would write.
    """
    finite_number("the time limit", time_limit, above=0)
    values = check_parameters(notebook, parameters or {})
    _require_own(notebook, folder)
    return _run(notebook, folder, values, parameters or {}, time_limit)


def _run(notebook: Path, folder: Path, values: Mapping[str, object], given: Iterable[str], time_limit: float) -> Run:
    """Run a notebook whose parameters are complete and checked; only those that are given replace its own."""
    seeds = {name: value for name, value in values.items() if "seed" in name}
    stamp = make_stamp(code=code_checksum(notebook), parameters=values, seeds=seeds)
    for old in (RESULT, *(written_by_run(notebook, folder) - {_MANIFEST})):
        (folder / old).unlink(missing_ok=True)
    write_json(folder / _MANIFEST, {"notebook": notebook.stem, "figures": []})
    executed = folder.resolve() / notebook.name
    # For the notebook's kernel, which inherits them. Two torch threads on two busy cores are slower than one.
    os.environ["VILAMP_HEADLESS"] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    start, metrics, failure = time.monotonic(), {}, None
    try:
        finished = papermill.execute_notebook(
            notebook.resolve(),
            executed,
            parameters={name: values[name] for name in given},
            kernel_name="python3",
            # papermill's own `cwd` would move the whole process, which other threads share.
            resources={"metadata": {"path": str(notebook.resolve().parent)}},
            # nbclient's limit is for each cell: it gets what is left of the notebook's.
            timeout_func=lambda _: max(start + time_limit - time.monotonic(), 0.1),
            start_timeout=_KERNEL_START,
            # The kernel's own warnings, not the notebook's: one about TCP comes with every start.
            extra_arguments=["--IPKernelApp.log_level=40"],
            progress_bar=False,
        )
        metrics = recorded(finished)
    except PapermillExecutionError as error:
        failure = f"{_cell_reached(executed)}: {error.ename}: {error.evalue}"
    except CellTimeoutError:
        failure = f"{_cell_reached(executed)}: not finished after {time_limit:g} s"
    except RuntimeError as error:  # the kernel died, or never started
        failure = f"{_cell_reached(executed)}: {error}"
    except ValueError as error:  # of `recorded`
        failure = str(error)
    seconds, failure = time.monotonic() - start, failure and " ".join(failure.split())
    content = nbformat.read(executed, as_version=4)
    pictures = _pictures(content)
    write_json(folder / _MANIFEST, {"notebook": notebook.stem, "figures": list(pictures)})
    for name, data in {executed.with_suffix(".html").name: _page(content), **pictures}.items():
        with written_whole(folder / name) as waiting:
            waiting.write_bytes(data)
    run = Run(notebook.stem, seconds, list(pictures), metrics, failure)
    write_json(folder / RESULT, asdict(run) | stamp)
    return run


def written_by_run(notebook: Path, folder: Path) -> set[str]:
    """Name the files that an earlier run of a notebook wrote into a folder: none if there was no run."""
    for manifest in (_MANIFEST, RESULT):  # runs of before 0.2 had the latter alone
        try:
            about = json.loads((folder / manifest).read_text())
            figures = {name for name in about["figures"] if re.fullmatch(r"[\w-]+\.png", name)}
            if about["notebook"] == notebook.stem:
                return _others(notebook) | figures
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            continue
    return set()


def _others(notebook: Path) -> set[str]:
    """What a run writes beside its figures."""
    return {_MANIFEST, RESULT, notebook.name, f"{notebook.stem}.html"}


def _require_own(notebook: Path, folder: Path) -> None:
    """Refuse a folder in which a run would take the place of a file that no run wrote."""
    if (folder / notebook.name).exists() and notebook.samefile(folder / notebook.name):
        raise ValueError(f"{folder} is where {notebook.name} lies, and it is not changed: choose another folder")
    cells = [cell.get("id", "x") for cell in nbformat.read(notebook, as_version=4).cells]
    if strange := [cell for cell in cells if not re.fullmatch(r"[\w-]+", cell)]:
        raise ValueError(f"{notebook.name} has a cell with the id {strange[0]!r}: an id is of letters, digits, - and _")
    figure, others = re.compile(rf"({'|'.join(cells)})(_\d+)?\.png"), _others(notebook)
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    foreign = there - written_by_run(notebook, folder)
    if foreign := sorted(name for name in foreign if name in others or figure.fullmatch(name)):
        raise ValueError(
            f"{folder} holds {', '.join(foreign)}, which no run of this notebook wrote: choose another folder"
        )


def run_notebooks(
    notebooks: Sequence[Path], out: Path, parameters: Mapping[str, object] | None = None, time_limit: float = TIME_LIMIT
) -> Iterator[Run]:
    """Run notebooks one after the other, each into out/NAME; the others still run when one fails.

    Each has a line on stderr: its name when it starts, its seconds when it ends.

    Args:
        notebooks: the files.
        out: the folder that gets a folder of each notebook's name.
        parameters: as in `run_notebook`; every notebook must have them.
        time_limit: seconds for each notebook.
    """
    finite_number("the time limit", time_limit, above=0)
    names = [notebook.stem for notebook in notebooks]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{', '.join(repeated)} would be written twice to {out}: name each notebook once")
    values = {notebook: check_parameters(notebook, parameters or {}) for notebook in notebooks}
    for notebook in notebooks:
        _require_own(notebook, out / notebook.stem)
    for notebook in notebooks:
        print(f"{notebook.stem} … ", end="", file=sys.stderr, flush=True)
        try:
            run = _run(notebook, out / notebook.stem, values[notebook], parameters or {}, time_limit)
        except BaseException:  # a full disk, or Ctrl-C: what is said of it has a line of its own
            print(file=sys.stderr)
            raise
        print(f"{'failed after ' if run.error else ''}{run.seconds:.0f} s", file=sys.stderr)
        yield run


def _cell_reached(executed: Path) -> str:
    """Name the last cell that was started, by its place in the file and its id."""
    cells = [cell for cell in nbformat.read(executed, as_version=4).cells if cell.cell_type == "code"]
    started = [n for n, cell in enumerate(cells, start=1) if cell.metadata.get("papermill", {}).get("start_time")]
    return f"code cell {started[-1]} ({cells[started[-1] - 1].id})" if started else "before the first cell"


def _page(content: NotebookNode) -> bytes:
    """An executed notebook as HTML."""
    return HTMLExporter().from_notebook_node(content)[0].encode()


def _pictures(content: NotebookNode) -> dict[str, bytes]:
    """An executed notebook's pictures, by names that come from their cells."""
    pictures = {}
    for cell in content.cells:
        shown = [output.get("data", {}) for output in cell.get("outputs", [])]
        for number, picture in enumerate((data["image/png"] for data in shown if "image/png" in data), start=1):
            pictures[f"{cell.id}.png" if number == 1 else f"{cell.id}_{number}.png"] = base64.b64decode(picture)
    return pictures
