"""Many cells of an examination: kept on disk, and spread over processes."""

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import psutil
import torch
from joblib import Parallel, delayed
from pydantic import Field

from vilamp_lite.checkpoints import load_config
from vilamp_lite.common.checks import describe, positive_int
from vilamp_lite.common.files import write_json
from vilamp_lite.common.fingerprints import code_fingerprint, weights_fingerprint
from vilamp_lite.common.hub import usable_device
from vilamp_lite.common.progress import progress_bar
from vilamp_lite.common.stamp import make_stamp
from vilamp_lite.evaluation.niah import POOL, Cell, CellResult, Evaluation, Examiner, cell_questions, qformer_file
from vilamp_lite.evaluation.results import Prediction, kept_result


@dataclass(frozen=True)
class _Run:
    """What the cells of one evaluation have in common; it travels to the worker processes."""

    model: Path
    weights: str
    seed: int
    pool: int
    device: str
    changes: tuple[tuple[str, Any], ...]


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

    Model and features of the scenes stay in memory for the next call, which may come with other changes.

    Args:
        model: a TinyWorld model's directory, such as data/vilamp-miniature.
        cells: what to evaluate, see `grid`.
        seed: of questions and haystacks; training never meets their scenes.
        pool: how many scenes haystacks are made of.
        changes: of the model, as in `Examiner.with_changes`.
        out: a folder that keeps each finished cell with its predictions in a file; those in it are not run again.
        processes: more than one work on a cell each, with one thread; one uses torch's threads.
        device: where the model runs; a GPU if there is any when left out.

    Raises:
        ValueError: bad settings; a model that is not TinyWorld's or lacks a Q-Former that is asked for; or a file in
            `out` that is of another model, other settings or another version of this package.
    """
    changes = dict(sorted((changes or {}).items()))
    _check(Path(model), cells, seed, pool, changes, processes)
    place, weights = str(usable_device(device)), weights_fingerprint(model)
    run = _Run(Path(model), weights, seed, pool, place, tuple(changes.items()))
    about = {"seed": seed, "pool": pool, "changes": changes}
    stamp = make_stamp(model=str(model), **about, device=place)
    if out is not None:
        about |= {"weights": weights, "code": code_fingerprint()}
    files = {cell: Path(out) / cell.file_name for cell in cells} if out is not None else {}
    results = {}
    for cell, file in files.items():
        kind = Annotated[list[Prediction], Field(min_length=cell.questions, max_length=cell.questions)]
        if (kept := kept_result(file, asdict(cell) | about, "predictions", kind)) is not None:
            results[cell] = kept
    todo = [cell for cell in cells if cell not in results]
    with (
        progress_bar(len(cells), "cells", "niah", len(cells) - len(todo)) as bar,
        closing(_answered(run, todo, processes)) as answered,
    ):
        for cell, predictions in answered:
            results[cell] = predictions
            if cell in files:
                shown = {"cell": CellResult(cell, predictions).as_json(), "settings": asdict(cell) | about}
                write_json(files[cell], shown | {"predictions": [asdict(p) for p in predictions], "stamp": stamp})
            bar.update(1)
    return Evaluation([CellResult(cell, results[cell]) for cell in cells], stamp)


def _check(
    model: Path, cells: Sequence[Cell], seed: int, pool: int, changes: Mapping[str, Any], processes: int
) -> None:
    """Refuse what can be refused before a model is loaded."""
    positive_int("pool", pool)
    positive_int("processes", processes)
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be a whole number of at least 0, got {describe(seed)}")
    if not cells or len(set(cells)) != len(cells):
        raise ValueError(f"cells must be different ones, at least one, got {len(cells)}")
    load_config(model, **{name: value for name, value in changes.items() if name != "temperature_factor"})
    if any(cell.merger == "qformer" for cell in cells):
        qformer_file(model)
    for cell in cells:
        cell_questions(cell, seed)


def _answered(run: _Run, cells: Sequence[Cell], processes: int) -> Iterator[tuple[Cell, list[Prediction]]]:
    """Yield cells as they are finished."""
    # The longest first, so that processes finish together; what shares its haystacks in a row, so that they are known.
    cells = sorted(cells, key=lambda cell: (-cell.frames, cell.depth, cell.family))
    processes = min(processes, max(len(cells), 1))
    pool = Parallel(processes, return_as="generator_unordered", batch_size=1, initializer=_start_worker)
    return pool(delayed(_examine)(run, cell) for cell in cells)


def _start_worker() -> None:
    """One thread, no bars, and no life after the parent's."""
    torch.set_num_threads(1)
    os.environ["VILAMP_HEADLESS"] = "1"
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    psutil.Process(os.getppid()).wait()
    os._exit(1)


def _examine(run: _Run, cell: Cell) -> tuple[Cell, list[Prediction]]:
    return cell, list(_examiner(run).predictions(cell))


@lru_cache(maxsize=1)
def _examiner(run: _Run) -> Examiner:
    shared = _shared_examiner(run.model, run.weights, run.seed, run.pool, run.device)
    return shared.with_changes(**dict(run.changes)) if run.changes else shared


@lru_cache(maxsize=1)
def _shared_examiner(model: Path, weights: str, seed: int, pool: int, device: str) -> Examiner:
    """One in each process; its scenes' features serve every setting of the model with these weights."""
    return Examiner(model, seed, pool, device)
