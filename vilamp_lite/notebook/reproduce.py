"""Run the notebooks with papermill: executed copies, web pages, figures and a stamped result in one folder.

`vilamp reproduce` runs them from the command line; `make run` runs them all.
"""

import ast
import base64
import io
import itertools
import json
import logging
import math
import os
import re
import sys
import time
import tokenize
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import shorten
from types import NoneType, UnionType
from typing import get_args

import nbformat
import papermill
from jupyter_client.kernelspec import NATIVE_KERNEL_NAME, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import CellTimeoutError
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError

from vilamp_lite.common.checks import finite_number
from vilamp_lite.common.files import write_json, written_whole
from vilamp_lite.common.fingerprints import code_checksum
from vilamp_lite.common.outside import checked, read_yaml
from vilamp_lite.common.stamp import ROOT, make_stamp
from vilamp_lite.common.text import require_text, visible
from vilamp_lite.notebook.metrics import recorded

NOTEBOOKS = ROOT / "notebooks"
TIME_LIMIT = 1800.0  # seconds of one notebook; a stuck cell would otherwise wait for ever
RESULT = "result.json"
_MANIFEST = ".run.json"  # the notebook and its figures: which files of a folder are a run's, even if it was killed
_MOST_SHOWN = 100  # characters of a value that is refused
_KERNEL_START = 300  # seconds; papermill's 60 are too few on a busy machine
_TYPES = {kind.__name__: kind for kind in (bool, int, float, str, list, dict)} | {"None": NoneType}
# What may stand in the comment behind a parameter, for a number or each number in a list or mapping.
_LEAST = re.compile(r"≥ (-?\d[\d_]*(?:\.\d+)?)")
_ABOVE = re.compile(r"> (-?\d[\d_]*(?:\.\d+)?)")
_BETWEEN = re.compile(r"in \[(-?\d+(?:\.\d+)?), (-?\d+(?:\.\d+)?)\]")


@dataclass(frozen=True)
class Parameter:
    """A line of a notebook's `parameters` cell.

    Attributes:
        name: of the variable.
        type: as annotated there, or else its default's; any, `object`, where the default is None.
        default: the value in the notebook.
        help: the comment behind it; "≥ 84", "> 0" and "in [0, 1]" there are bounds.
    """

    name: str
    type: type | UnionType
    default: object
    help: str

    def check(self, value: object, where: str = "") -> object:
        """Take a value, found in a file `where`, of the parameter's type, or an integer where it is a float.

        Numbers are finite, in lists and mappings too: results hold the parameters as JSON, and cells are known by it.
        """
        place = f"{where}: {self.name}" if where else self.name
        taken = checked(self.type, value, place)
        self._require_bounds(place, taken)
        if json.loads(_as_json(place, taken)) != taken:
            raise ValueError(f"{place}: the names in a mapping must be words, in quotes if they are numbers")
        return taken

    def checked_default(self) -> object:
        """Take the notebook's own value, which results hold as well."""
        _as_json(f"the default of {self.name}", self.default)
        return self.default

    def parse(self, text: str) -> object:
        """Read a value from the command line: words and numbers as in Python, anything else as in YAML."""
        kinds = get_args(self.type) or (self.type,)
        if text == "None" and (NoneType in kinds or object in kinds):
            return None
        if str in kinds:
            return self.check(text)
        # Of a number, Python's way to write it: YAML reads 010 as 8 and 1:30 as 90.
        number = next((kind for kind in (int, float) if kind in kinds), None)
        try:
            value = number(text) if number else read_yaml(text, self.name)
            checked(self.type, value, self.name)
            json.dumps(value, allow_nan=False)
        except (ValueError, TypeError, RecursionError) as error:
            kind = "a finite number" if self.type is float else self.type_name
            raise ValueError(f"{self.name} must be {kind}, got {shorten(text, _MOST_SHOWN)!r}") from error
        return self.check(value)

    @property
    def type_name(self) -> str:
        """The type as it is written: "int", "str | None", or "any"."""
        if self.type is object:
            return "any"
        return self.type.__name__ if isinstance(self.type, type) else str(self.type)

    def _require_bounds(self, place: str, value: object) -> None:
        """Refuse numbers outside what the comment says: the notebook would fail on them, perhaps after minutes."""
        bounds = [(f"≥ {least}", float(least), math.inf) for least in _LEAST.findall(self.help)]
        bounds += [(f"> {low}", math.nextafter(float(low), math.inf), math.inf) for low in _ABOVE.findall(self.help)]
        bounds += [(f"in [{low}, {high}]", float(low), float(high)) for low, high in _BETWEEN.findall(self.help)]
        for number in _numbers(value):
            for said, low, high in bounds:
                if not low <= number <= high:
                    raise ValueError(f"{place} must be {said}, got {number}; its comment says: {self.help}")


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
        cells = nbformat.read(notebook, as_version=4).cells
        source = next((cell.source for cell in cells if "parameters" in cell.metadata.get("tags", [])), "")
    # Any JSON passes for a notebook there, until something is not found in it.
    except (nbformat.ValidationError, ValueError, AttributeError, TypeError, LookupError, RecursionError) as error:
        raise ValueError(f"{notebook} is not a notebook") from error
    source = re.sub(r"(?m)^[%!].*$", "", source)  # IPython's own lines
    try:
        statements = ast.parse(source).body
    except SyntaxError as error:
        raise ValueError(f"the parameters of {notebook.name} are not plain Python: {error}") from error
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    parameters = {}
    for statement in statements:
        match statement:
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value, annotation=annotation):
                kind = _kind(annotation)
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                kind = None
            case _:
                continue
        try:
            default = ast.literal_eval(value)
        except ValueError as error:
            raise ValueError(
                f"{name} of {notebook.name} must have a plain literal as its default, got {ast.unparse(value)}"
            ) from error
        if default is None:
            kind = kind | None if kind else object
        parameters[name] = Parameter(name, kind or type(default), default, comments.get(statement.end_lineno, ""))
    return parameters


def _kind(annotation: ast.expr) -> type | UnionType | None:
    """The type that an annotation names; None if it is not among those that are known."""
    match annotation:
        case ast.Name(id=name) | ast.Constant(value=str(name)):
            return _TYPES.get(name)
        case ast.Constant(value=None):
            return NoneType
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            kinds = _kind(left), _kind(right)
            return kinds[0] | kinds[1] if all(kinds) else None
        case ast.Subscript(value=ast.Name(id="Optional"), slice=inner):
            return kind | None if (kind := _kind(inner)) else None
        case ast.Subscript(value=outer):  # list[float]
            return _kind(outer)
    return None


def _as_json(place: str, value: object) -> str:
    """Write a parameter's value as results hold it."""
    try:
        written = json.dumps(value, allow_nan=False, ensure_ascii=False)
        require_text(written)
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{place} must be finite numbers and words, or lists or mappings of them: {error}") from error
    return written


def _numbers(value: object) -> Iterator[float]:
    """A number, or all those in a list or mapping."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _numbers(part)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


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
    return {
        name: about.check(values[name]) if name in values else about.checked_default() for name, about in known.items()
    }


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


class _OwnPython(AsyncKernelManager):
    """Starts the Python that runs here: `python3` may be another one's name in JUPYTER_PATH or the user's folder."""

    def _kernel_spec_manager_default(self) -> KernelSpecManager:
        return KernelSpecManager(kernel_dirs=[])


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
    logging.getLogger("papermill").setLevel(logging.ERROR)  # it takes `x: str | None` for no parameter, and warns
    start, metrics, failure = time.monotonic(), {}, None
    try:
        finished = papermill.execute_notebook(
            *(str(path).replace("{", "{{").replace("}", "}}") for path in (notebook.resolve(), executed)),  # no fields
            parameters={name: values[name] for name in given},
            # Whatever the notebook names, or if it names none.
            kernel_name=NATIVE_KERNEL_NAME,
            language="python",
            kernel_manager_class=_OwnPython,
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
    there = {path.name: path.is_symlink() for path in folder.iterdir()} if folder.is_dir() else {}
    own = written_by_run(notebook, folder)
    if foreign := sorted(
        name
        for name, is_link in there.items()
        if (is_link if name in own else name in others or figure.fullmatch(name))  # no run makes links
    ):
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
        print(f"{visible(notebook.stem)} … ", end="", file=sys.stderr, flush=True)
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
    pictures, cells = {}, {cell.id for cell in content.cells}
    for cell in content.cells:
        later = (name for number in itertools.count(2) if (name := f"{cell.id}_{number}") not in cells)
        names = itertools.chain([cell.id], later)
        for data in (output.get("data", {}) for output in cell.get("outputs", [])):
            if "image/png" in data:
                pictures[f"{next(names)}.png"] = base64.b64decode(data["image/png"])
    return pictures
