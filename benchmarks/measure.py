"""Time and memory of one piece of work, each in a process of its own.

A benchmark's case is a function that builds its inputs and returns the work to measure: a function of no arguments.
"""

import ctypes
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from vilamp_lite.common.stamp import processor_name

RESULTS = Path(__file__).parent / "results"
# For NumPy's products too, in the processes that are measured.
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"


@dataclass(frozen=True)
class Measurement:
    """Median time in seconds over the repeats, and peak memory beyond the inputs in bytes."""

    seconds: float
    extra_memory: int


def compare(
    methods: Mapping[str, Callable[..., Callable[[], object]]],
    *,
    repeats: int = 5,
    clock: Callable[[], float] = time.perf_counter,
    **inputs: object,
) -> dict[str, Measurement]:
    """Measure several methods on the same inputs, each in a fresh process with one torch thread.

    The methods take turns, so that a machine that slows down meanwhile slows all of them. Each one's first run counts
    for nothing: neither time nor memory includes libraries loaded on the way.

    Args:
        methods: a case for each method's name; importable, since other processes run it.
        repeats: timed runs of each method.
        clock: seconds of wall time, or `time.process_time` for those that the processor worked: other programs on the
            machine then change less.
        inputs: keyword arguments of every case.
    """
    # "spawn": a forked child would inherit this process's memory and threads.
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        pools = {name: stack.enter_context(ProcessPoolExecutor(1, mp_context=context)) for name in methods}
        memory = {name: pools[name].submit(_prepare, methods[name], inputs).result() for name in methods}
        rounds = [{name: pools[name].submit(_time, clock).result() for name in methods} for _ in range(repeats)]
    return {name: Measurement(statistics.median(times[name] for times in rounds), memory[name]) for name in methods}


def measure_once(
    methods: Mapping[str, Callable[..., Callable[[], object]]], first: Mapping[str, object], **inputs: object
) -> dict[str, Measurement]:
    """Measure work that takes minutes: each method in a fresh process with one torch thread, all in one run.

    Args:
        methods: as in `compare`.
        first: inputs of a short run before it, which counts for nothing; the others are the same.
        inputs: keyword arguments of every case.
    """
    context = multiprocessing.get_context("spawn")
    measured = {}
    for name, case in methods.items():
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            measured[name] = pool.submit(_run_once, case, {**inputs, **first}, inputs).result()
    return measured


def _run_once(
    case: Callable[..., Callable[[], object]], first: dict[str, object], inputs: dict[str, object]
) -> Measurement:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    case(**first)()
    work = case(**inputs)
    start = time.perf_counter()
    peak = peak_memory_of(work)
    return Measurement(time.perf_counter() - start, peak)


# The work of a measuring process; every such process has its own.
_work: Callable[[], object]


def _prepare(case: Callable[..., Callable[[], object]], inputs: dict[str, object]) -> int:
    """Build the inputs, run the work once, and again for its peak memory in bytes."""
    global _work
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    _work = case(**inputs)
    _work()
    return peak_memory_of(_work)


def _time(clock: Callable[[], float]) -> float:
    """Mean seconds of one run; work of milliseconds is run for a tenth of a second, as timeit does."""
    runs, start = 0, clock()
    while runs == 0 or clock() - start < 0.1:
        _work()
        runs += 1
    return (clock() - start) / runs


def peak_memory_of(work: Callable[[], object]) -> int:
    """Bytes by which resident memory rises above its level before the work, at the highest (Linux)."""
    # Freed memory that the allocator holds on to would hide what the work needs.
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def machine() -> str:
    """Name the processor, its cores, and the versions that matter."""
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{processor_name()}, {os.cpu_count()} cores; {versions}, 1 thread"


def report(name: str, title: str, baseline: str, rows: list[dict[str, object]]) -> None:
    """Print a benchmark's table and write it to results/NAME.json.

    Args:
        name: of the result file.
        title: what was measured, with sizes and units.
        baseline: the method the ratios refer to.
        rows: one for each case and method: `case`, `method`, and `measurement`, or None where it was not run.
    """
    baselines = {row["case"]: row["measurement"] for row in rows if row["method"] == baseline}
    records = []
    for row in rows:
        measured, base = row["measurement"], baselines.get(row["case"])
        record = {"case": row["case"], "method": row["method"]}
        if measured is not None:
            record |= asdict(measured)
        if measured is not None and base is not None:
            record["speed_ratio"] = base.seconds / measured.seconds
            record["memory_ratio"] = base.extra_memory / max(measured.extra_memory, 4096)
        records.append(record)
    RESULTS.mkdir(exist_ok=True)
    result = {"title": title, "baseline": baseline, "machine": machine(), "rows": records}
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    Console().print(_rich_table(result))


def columns(result: dict[str, object]) -> list[list[str]]:
    """The table's rows as text, its head first."""
    if "table" in result:
        return result["table"]
    head = ["case", "method", "time", "extra memory", f"times faster than {result['baseline']}", "times less memory"]
    return [head, *([_text(row, column) for column in range(6)] for row in result["rows"])]


def _text(row: dict[str, object], column: int) -> str:
    if column < 2:
        return str(row[("case", "method")[column]])
    if "seconds" not in row:
        return "not run"
    if column == 2:
        return f"{row['seconds'] * 1000:,.1f} ms"
    if column == 3:
        return f"{row['extra_memory'] / 2**20:,.2f} MiB"
    ratio = row.get(("speed_ratio", "memory_ratio")[column - 4])
    return "–" if ratio is None else f"{ratio:,.2f}"


def _rich_table(result: dict[str, object]) -> Table:
    head, *body = columns(result)
    table = Table(title=f"{result['title']}\n{result['machine']}")
    for column, name in enumerate(head):
        table.add_column(name, justify="left" if column < 2 else "right")
    for row in body:
        table.add_row(*row)
    return table
