"""Sweeps: right tables, cells that are never lost or doubled, refusals before anything runs."""

import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import nbformat
import pandas as pd
import pytest
import yaml
from conftest import Refusal
from dask.distributed import LocalCluster
from filelock import FileLock

from vilamp_lite.common.stamp import ROOT
from vilamp_lite.notebook.sweep import load_sweep, run_sweep
from vilamp_lite.plots.sweeps import sweep_curves, sweep_heat_map

PARAMETERS = """\
a: int = 1  # a factor
b: float = 0.5  # a summand
seed: int = 0  # of nothing
word: str = "x"  # a word
log: str = "log.txt"  # gets a line at the start of each run
pause: float = 0.0  # seconds of work
"""
WORK = """\
import os, time
from pathlib import Path
from vilamp_lite.notebook.metrics import record
with Path(log).open("a") as file:  # a line this short is appended whole
    file.write(f"{a} {b} {os.getppid()}\\n")
time.sleep(pause)
assert a != 13, "thirteen"
record(total=10 * a + b + 0.1 * seed, threads=int(os.environ["OMP_NUM_THREADS"]))
"""


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    cells = [nbformat.v4.new_code_cell(PARAMETERS), nbformat.v4.new_code_cell(WORK)]
    cells[0].metadata["tags"] = ["parameters"]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    path = tmp_path / "tiny.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


def write_sweep(notebook: Path, /, **fields: object) -> Path:
    file = notebook.with_name("grid.yaml")
    standard = {"notebook": notebook.name, "parameters": {"a": [1, 2]}, "metric": "total"}
    file.write_text(yaml.safe_dump(standard | fields))
    return file


def wait_until(happened: Callable[[], bool], client: subprocess.Popen) -> None:
    while not happened():
        assert client.poll() is None, "the sweep came to its end too early"
        time.sleep(0.05)


def test_nothing_is_lost_or_doubled_when_a_worker_and_the_client_are_killed(notebook: Path, tmp_path: Path) -> None:
    log, out = tmp_path / "log.txt", tmp_path / "out"
    grid = {"a": [1, 2, 3, 4, 5, 6], "b": [0.25, 0.5, 0.75, 1.0]}
    file = write_sweep(notebook, parameters=grid, fixed={"log": str(log), "pause": 0.2})
    command = [sys.executable, "-m", "vilamp_lite", "sweep", str(file), "--out", str(out), "--workers", "2"]

    def records() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in out.glob("cells/*/result.json")}

    def starts() -> list[str]:
        return log.read_text().splitlines() if log.exists() else []

    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as client:
        try:
            wait_until(lambda: len(starts()) > len(records()) >= 1, client)
            # A notebook's parent is the worker that runs it.
            os.kill(int(starts()[-1].split()[2]), signal.SIGKILL)
            before = len(records())
            wait_until(lambda: len(records()) >= before + 3, client)
        finally:
            client.kill()
    kept = records()
    assert 0 < len(kept) < 24

    finished = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    assert {path: when for path, when in records().items() if path in kept} == kept
    assert len(records()) == 24
    # One cell was lost with the worker, and with the client at most one for each worker.
    assert 24 <= len(starts()) <= 24 + 1 + 2
    table = pd.read_csv(out / "table.csv")
    assert list(table[["a", "b", "total"]].itertuples(index=False, name=None)) == [
        (a, b, 10 * a + b) for a in grid["a"] for b in grid["b"]
    ]
    assert [row["cell"] for row in json.loads(finished.stdout)["table"]] == list(table["cell"])
    assert set(table["threads"]) == {1}
    assert (out / "figure.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("name", "cells"), [("table2", 15), ("table6", 25), ("fig6", 15), ("lambda", 12)])
def test_the_papers_sweeps_are_ready_to_run(name: str, cells: int) -> None:
    sweep = load_sweep(ROOT / "notebooks" / "sweeps" / f"{name}.yaml")
    assert len(sweep.cells()) == cells
    assert sweep.metric == "accuracy"


def test_former_names_in_a_sweep(tmp_path: Path) -> None:
    file = tmp_path / "old.yaml"
    file.write_text((ROOT / "notebooks/sweeps/fig6.yaml").read_text().replace("top_k", "top_relevance"))
    assert load_sweep(file).grid["selector"] == ["dks", "uniform", "top_k"]


def test_a_grid_grows_and_its_failed_cells_are_run_again(notebook: Path, tmp_path: Path) -> None:
    out, fixed = tmp_path / "out", {"log": str(tmp_path / "log.txt")}
    with LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=None) as cluster:  # as a user's own

        def run(*values: int) -> tuple[list[float], list[str], int]:
            result = run_sweep(
                load_sweep(write_sweep(notebook, parameters={"a": list(values)}, fixed=fixed)),
                out,
                scheduler=cluster.scheduler_address,
            )
            runs = len(Path(fixed["log"]).read_text().splitlines())
            return list(result.table["total"]), list(result.failed.values()), runs

        totals, failures, runs = run(13, 2)
        assert (totals[1], runs) == (20.5, 2)
        assert pd.isna(totals[0])
        (failure,) = failures
        assert "AssertionError: thirteen" in failure
        totals, failures, runs = run(13, 2, 3)
        assert totals[1:] == [20.5, 30.5]
        assert runs == 4  # thirteen again, and three


def test_a_table_that_no_sweep_wrote_stays(notebook: Path, tmp_path: Path) -> None:
    out, fixed = tmp_path / "out", {"log": str(tmp_path / "log.txt")}
    sweep = load_sweep(write_sweep(notebook, parameters={"a": [13]}, fixed=fixed))
    (out / "cells" / "mine").mkdir(parents=True)
    for name in ("table.csv", "figure.png"):
        (out / name).write_text("mine")
        with pytest.raises(ValueError, match=f"out holds {name}, which no sweep wrote: choose another folder"):
            run_sweep(sweep, out)
        assert {path.name for path in out.iterdir()} == {name, "cells"}
        assert (out / name).read_text() == "mine"
        (out / name).unlink()
    for _ in range(2):  # its own table is written again; of failed cells alone there is no figure
        assert "thirteen" in str(run_sweep(sweep, out, workers=1).failed)
        assert {path.name for path in out.iterdir()} == {"table.csv", "cells", ".lock"}


def test_a_second_sweep_waits_outside(notebook: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with FileLock(out / ".lock"), pytest.raises(ValueError, match="another sweep is at work"):
        run_sweep(load_sweep(write_sweep(notebook)), out)


def test_cells_are_known_by_their_code_and_parameters(notebook: Path) -> None:
    def names(**fields: object) -> set[str]:
        return set(load_sweep(write_sweep(notebook, **fields)).cells())

    before = names()
    assert len(before) == 2
    assert names(parameters={"a": [2, 3]}) & before
    assert names(fixed={"b": 0.5}) == before  # its default
    assert not names(fixed={"b": 1}) & before
    notebook.write_text(notebook.read_text().replace("10 * a", "11 * a"))
    assert not names() & before


def test_numbers_with_an_exponent_are_numbers(notebook: Path) -> None:
    notebook.write_text(notebook.read_text().replace("seed: int = 0", "seed: int = 0\\nitems: list = []"))
    file = write_sweep(notebook)
    file.write_text(
        "{notebook: tiny.ipynb, metric: total, parameters: {b: [1e-3, 1E-4, 2e5], items: [[1e-3, 2], [{c: 1e3}]]}, "
        "fixed: {word: '1e-3'}}"
    )
    sweep = load_sweep(file)
    assert sweep.grid == {"b": [0.001, 0.0001, 200000.0], "items": [[0.001, 2], [{"c": 1000.0}]]}
    assert sweep.fixed == {"word": "1e-3"}
    file.write_text("{notebook: tiny.ipynb, metric: total, parameters: {b: [1e-3, 0.001]}}")
    with pytest.raises(ValueError, match="b of the grid has a value twice"):
        load_sweep(file)


def test_a_grid_of_millions_is_refused_at_once(notebook: Path) -> None:
    values = {name: list(range(100)) for name in ("a", "b", "pause", "seed")}
    with pytest.raises(ValueError, match=r"grid\.yaml has a grid of 100,000,000 cells, and 100,000 are the most"):
        load_sweep(write_sweep(notebook, parameters=values))
    assert len(load_sweep(write_sweep(notebook, parameters={"a": list(range(20_000))})).grid["a"]) == 20_000


class SilentHandler(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("kind", ["mute", "web", "closed", "no workers", "empty", "no address"])
def test_a_scheduler_that_cannot_serve_is_refused(
    kind: str, notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: Refusal
) -> None:
    monkeypatch.setattr("vilamp_lite.notebook.sweep._PATIENCE", 2.0)
    with ExitStack() as stack:
        if kind == "no workers":
            cluster = stack.enter_context(LocalCluster(n_workers=0, dashboard_address=None))
            address, message = cluster.scheduler_address, "has no workers, after 2 s of waiting for workers: start some"
        elif kind == "web":
            server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), SilentHandler))
            Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.shutdown)
            address, message = f"127.0.0.1:{server.server_port}", "no Dask scheduler answers at 127.0.0.1"
        elif kind == "empty":
            address, message = "", "the scheduler's address is empty"
        elif kind == "no address":
            address, message = "somewhere", "no Dask scheduler answers at somewhere"
        else:
            listener = stack.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            if kind == "mute":
                listener.listen()
            address, message = f"tcp://127.0.0.1:{listener.getsockname()[1]}", "no Dask scheduler answers at tcp"
        assert message in refusal("sweep", write_sweep(notebook), "--scheduler", address, "--out", tmp_path / "out")


def test_a_bad_sweep_is_refused(notebook: Path) -> None:
    notebook.write_text(notebook.read_text().replace("seed: int = 0", "seed: int = 0\\nitems = None"))
    for fields, complaint in (
        ({"parameters": {"c": [1]}}, "tiny.ipynb has no parameter c; it has a, b, seed, items, word, log, pause"),
        ({"parameters": {"a": [1, "two"]}}, "a: input should be a valid integer, got str 'two'"),
        ({"parameters": {"a": [1, True]}}, "grid.yaml: a: input should be a valid integer, got bool True"),
        ({"parameters": {"a": [1, 2, 1]}}, "a of the grid has a value twice"),
        ({"parameters": {"a": 1}}, "grid.yaml: parameters: a: input should be a valid list, got int 1"),
        ({"parameters": {"a": [1.5]}}, "a: input should be a valid integer, got float 1.5"),
        ({"parameters": {}}, "parameters: dictionary should have at least 1 item"),
        ({"parameters": [1]}, "parameters: must be a mapping of names to values, got list [1]"),
        ({"fixed": {"a": 1}}, "a cannot be in the grid and fixed"),
        ({"fixed": {"word": 3}}, "word: input should be a valid string, got int 3"),
        ({"parameters": {"b": [1, math.inf]}}, "grid.yaml: b must be finite numbers"),
        ({"fixed": {"b": math.nan}}, "grid.yaml: b must be finite numbers"),
        ({"fixed": {"word": "\ud800"}}, "grid.yaml: word must be finite numbers and words"),
        ({"parameters": {"items": [{1: "a", "b": 2}]}}, "grid.yaml: items: the names in a mapping must be words"),
        ({"figure": {"y": "a"}}, "figure must be"),
        ({"figure": {"x": "b"}}, "figure must be"),
        ({"figure": {"x": "a", "hue": "a"}}, "figure must be"),
        ({"notebook": "none.ipynb"}, "'none.ipynb' must name one notebook"),
        ({"notebook": 98}, "'98' must name one notebook"),
        ({"repeats": 3}, "grid.yaml: has no field 'repeats'; a sweep has notebook,"),
    ):
        with pytest.raises(ValueError, match=re.escape(complaint)):
            load_sweep(write_sweep(notebook, **fields))


def test_a_file_that_holds_no_sweep_is_named(tmp_path: Path) -> None:
    file = tmp_path / "grid.yaml"
    complaints = {
        b"parameters: {a: &a [*a]}": "is not YAML: .*recursion",
        b"[" * 3000: "is not YAML: .*recursion",
        b"notebook: \xff": "is not YAML: .*can't decode",
        b"parameters: {a: [1]}\nparameters: {a: [2]}": "line 2: parameters stands there twice, first in line 1$",
        b"fixed: {a: 2024-13-13}": r"is not YAML: .*month must be in 1..12",
    } | dict.fromkeys((b"", b"3", b"[1]"), "must be a mapping of names to values, got .*; a sweep has notebook")
    for content, complaint in complaints.items():
        file.write_bytes(content)
        with pytest.raises(ValueError, match=rf"grid\.yaml[:,]? {complaint}"):
            load_sweep(file)


def test_an_unknown_metric_ends_the_sweep(notebook: Path, tmp_path: Path) -> None:
    file = write_sweep(notebook, parameters={"a": [1]}, fixed={"log": str(tmp_path / "log.txt")}, metric="sum")
    for _ in range(2):  # the second time without running anything
        with pytest.raises(ValueError, match="does not record the metric 'sum'; it records total, threads"):
            run_sweep(load_sweep(file), tmp_path / "out", workers=1)
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 1


def test_figures_show_means_and_ranges() -> None:
    table = pd.DataFrame({"a": [1, 1, 2, 2], "b": [5, 5, 5, 5], "seed": [0, 1, 0, 1], "total": [1.0, 2.0, 3.0, 5.0]})
    figure = sweep_heat_map(table, "total", x="a", y="b")
    axis = figure.axes[0]
    assert axis.collections[0].get_array().ravel().tolist() == [1.5, 4.0]
    assert axis.get_title() == "total, mean over seed"
    table = pd.DataFrame({"a": [1, 2, 1, 2], "seed": [0, 0, 1, 1], "total": [1.0, 2.0, 3.0, 6.0]})
    axis = sweep_curves(table, "total", x="a").axes[0]
    assert axis.lines[0].get_ydata().tolist() == [2.0, 4.0]
    heights = axis.collections[0].get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (1.0, 6.0)
    assert axis.get_title() == "total, mean over seed, range shaded"
