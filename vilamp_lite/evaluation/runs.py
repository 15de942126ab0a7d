"""Many cells of an examination: kept on disk, and spread over processes."""

import multiprocessing
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import lru_cache
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from vilamp_lite.checkpoints import load_checkpoint, load_config, load_processor
from vilamp_lite.common.checks import describe, positive_int
from vilamp_lite.common.files import write_json
from vilamp_lite.common.fingerprints import code_fingerprint, weights_fingerprint
from vilamp_lite.common.hub import usable_device
from vilamp_lite.common.progress import progress_bar
from vilamp_lite.common.stamp import make_stamp
from vilamp_lite.evaluation.niah import (
    POOL,
    Cell,
    CellResult,
    Evaluation,
    Examiner,
    cell_questions,
    load_qformer,
    qformer_file,
)
from vilamp_lite.evaluation.results import Prediction, kept_result


@dataclass(frozen=True)
class _Run:
    """What the cells of one evaluation have in common; it travels to the worker processes."""

    model: Path
    seed: int
    pool: int
    changes: tuple[tuple[str, Any], ...]
    device: str
    needs_qformer: bool

    def examiner(self) -> Examiner:
        """Load the model."""
        model = load_checkpoint(self.model, **dict(self.changes)).to(self.device)
        processor = load_processor(self.model, model.config)
        qformer = load_qformer(self.model, model) if self.needs_qformer else None
        return Examiner(model, processor, self.seed, self.pool, qformer)


def evaluate_cells(
    model: str | os.PathLike[str],
    cells: Sequence[Cell],
    *,
    seed: int = 0,
    pool: int = POOL,
    changes: Mapping[str, Any] | None = None,
    out: str | os.PathLike[str] | None = None,
    processes: int = 1,
    device: str | None = None,
) -> Evaluation:
    """Answer the questions of many cells.

    Args:
        model: a TinyWorld model's directory, such as data/vilamp-miniature.
        cells: what to evaluate, see `grid`.
        seed: of questions and haystacks; training never meets their scenes.
        pool: how many scenes haystacks are made of.
        changes: fields of the model's configuration to set otherwise, such as `max_keyframes`.
        out: a folder that keeps each finished cell with its predictions in a file; those in it are not run again.
        processes: more than one work on a cell each, with one thread; one uses torch's threads.
        device: where the model runs; a GPU if there is any when left out.

    Raises:
        ValueError: bad settings; a model that is not TinyWorld's or lacks a Q-Former that is asked for; or a file in
            `out` that is of another model, other settings or another version of this package.
    """
    run = _Run(
        Path(model),
        seed,
        positive_int("pool", pool),
        tuple(sorted((changes or {}).items())),
        str(usable_device(device)),
        any(cell.merger == "qformer" for cell in cells),
    )
    _check(run, cells, processes)
    about = {"seed": seed, "pool": pool, "changes": dict(run.changes), "device": run.device}
    stamp = make_stamp(model=str(run.model), **about)
    files = {cell: Path(out) / cell.file_name for cell in cells} if out is not None else {}
    common = {"seed": seed, "pool": pool, "changes": dict(run.changes)}
    if files:
        common |= {"weights": weights_fingerprint(run.model), "code": code_fingerprint()}
    settings = {cell: asdict(cell) | common for cell in files}
    results = {}
    for cell, file in files.items():
        if (kept := kept_result(file, settings[cell])) is not None:
            results[cell] = [Prediction(**prediction) for prediction in kept["predictions"]]
    todo = [cell for cell in cells if cell not in results]
    count = sum(cell.questions for cell in cells)
    with (
        progress_bar(count, "questions", "niah", count - sum(cell.questions for cell in todo)) as bar,
        closing(_answered(run, todo, processes, bar)) as answered,
    ):
        for cell, predictions in answered:
            results[cell] = predictions
            if cell in files:
                about = {"cell": CellResult(cell, predictions).as_json(), "settings": settings[cell]}
                content = about | {"predictions": [asdict(prediction) for prediction in predictions], "stamp": stamp}
                write_json(files[cell], content)
    return Evaluation([CellResult(cell, results[cell]) for cell in cells], stamp)


def _check(run: _Run, cells: Sequence[Cell], processes: int) -> None:
    """Refuse what can be refused before a model is loaded."""
    positive_int("processes", processes)
    if not isinstance(run.seed, int) or run.seed < 0:
        raise ValueError(f"seed must be a whole number of at least 0, got {describe(run.seed)}")
    if not cells or len(set(cells)) != len(cells):
        raise ValueError(f"cells must be different ones, at least one, got {len(cells)}")
    load_config(run.model, **dict(run.changes))
    if run.needs_qformer:
        qformer_file(run.model)
    for cell in cells:
        cell_questions(cell, run.seed)


def _answered(run: _Run, cells: Sequence[Cell], processes: int, bar: tqdm) -> Iterator[tuple[Cell, list[Prediction]]]:
    """Yield cells as they are finished."""
    if not cells:
        return
    if min(processes, len(cells)) == 1:
        examiner = run.examiner()
        for cell in cells:
            predictions = []
            for prediction in examiner.predictions(cell):
                predictions.append(prediction)
                bar.update(1)
            yield cell, predictions
        return
    # Fresh processes: a fork would share the threads that torch has started.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(processes, len(cells)), context, initializer=_start_worker)
    try:
        # The longest first, so that the processes finish together.
        waiting = {pool.submit(_examine, run, cell): cell for cell in sorted(cells, key=lambda cell: -cell.frames)}
        for future in as_completed(waiting):
            bar.update(waiting[future].questions)
            yield waiting[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """One thread, no bars, and no life after the parent's."""
    torch.set_num_threads(1)
    os.environ["VILAMP_HEADLESS"] = "1"
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _examine(run: _Run, cell: Cell) -> list[Prediction]:
    return list(_worker_examiner(run).predictions(cell))


@lru_cache(maxsize=1)
def _worker_examiner(run: _Run) -> Examiner:
    """The model, loaded once in each process."""
    return run.examiner()
