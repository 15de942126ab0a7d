"""The paper's studies on TinyWorld's miniature, each one function call: Fig. 2, Tables 2 and 6, Fig. 6 and more.

Every study returns a dictionary for JSON: `study`, `parameters`, `rows` (one for each number of a table or figure) and
`stamp`. Shares come with Wilson's 95 % interval (`low`, `high`). Where variants answer the same questions, a row also
has the paired `difference` to the study's reference with its interval and the p of the exact sign test.
"""

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from safetensors.torch import load_file, save_file

from vilamp_lite.baselines.mergers import MERGERS
from vilamp_lite.checkpoints import load_checkpoint, load_config
from vilamp_lite.common.fingerprints import code_fingerprint, weights_fingerprint
from vilamp_lite.common.progress import progress_bar
from vilamp_lite.common.stamp import ROOT, make_stamp
from vilamp_lite.evaluation.niah import POOL, Cell, CellResult, grid
from vilamp_lite.evaluation.results import Model, Prediction, Study
from vilamp_lite.evaluation.runs import evaluate_cells
from vilamp_lite.evaluation.scoring import paired_difference_interval, paired_sign_test, score
from vilamp_lite.tinyworld.questions import FAMILIES

ALL = "all"  # the family of rows that pool every family


FULL = ("dks", "dfm")


BASELINE = ("uniform", "mean")


Row = dict[str, Any]


@dataclass(frozen=True)
class Exam:
    """Which questions a study puts; the same to every variant.

    Attributes:
        frames: lengths N of the haystacks; rows of different lengths are never pooled.
        depths: of the needles; pooled, but for `niah_study`.
        families: names in `FAMILIES`.
        questions: for each length, depth and family.
        seed: of questions and haystacks.
        pool: how many scenes haystacks are made of; encoding them costs most of a short study.
        budget: visual tokens at most, as in `Cell`.
    """

    frames: tuple[int, ...] = (1024,)
    depths: tuple[float, ...] = (0.5,)
    families: tuple[str, ...] = tuple(FAMILIES)
    questions: int = 20
    seed: int = 0
    pool: int = POOL
    budget: int | None = None

    def cells(self, selectors: Sequence[str] = ("dks",), mergers: Sequence[str] = ("dfm",)) -> list[Cell]:
        """Every cell of the exam, as `grid`."""
        return grid(self.frames, self.depths, self.families, selectors, mergers, self.questions, self.budget)

    def variant(self, selector: str, merger: str) -> list[Cell]:
        """The cells of one variant, in the order of every other's."""
        return self.cells([selector], [merger])


def niah_study(
    model: Model,
    exam: Exam,
    *,
    variants: Sequence[tuple[str, str]] = (FULL, BASELINE),
    processes: int = 1,
    out: Model | None = None,
) -> Study:
    """Fig. 2, needles in haystacks: accuracy by length and depth, for the full method and for uniform + mean.

    Args:
        model: a TinyWorld model's directory.
        exam: its lengths and depths are the figure's axes.
        variants: pairs of selector and merger; the first is what the others are compared with.
        processes: as in `evaluate_cells`, like `out`, which makes the study resumable.
        out: a folder for finished cells and their predictions; studies may share it.

    Returns:
        Rows by variant, length, depth and family; depth "all" and family "all" pool them.

    Raises:
        ValueError: as `evaluate_cells`.
    """
    results = _variants(model, exam, variants, processes, out)
    rows = []
    for variant, own in results.items():
        for depth in (*exam.depths, ALL):
            some, reference = (
                [result for result in which if depth in (result.cell.depth, ALL)]
                for which in (own, results[tuple(variants[0])])
            )
            rows += _rows(some, reference, **_names(variant), depth=depth)
    return make_study("niah", model, exam, rows, variants=variants)


def ablation_study(
    model: Model,
    exam: Exam,
    *,
    selectors: Sequence[str] = ("dks", "uniform", "top_k"),
    mergers: Sequence[str] = tuple(MERGERS),
    processes: int = 1,
    out: Model | None = None,
) -> Study:
    """Table 2: every selector with every merger, on the same questions.

    Args:
        model: a TinyWorld model's directory.
        exam: what is asked.
        selectors: names in `SELECTORS`; "dks" is added if missing, since dks + dfm is the reference.
        mergers: names in `MERGERS`; "dfm" is added if missing.
        processes: as in `evaluate_cells`, like `out`.
        out: a folder for finished cells and their predictions.

    Returns:
        Rows by variant, length and family, with the paired difference: dks + dfm minus the row's variant.

    Raises:
        ValueError: as `evaluate_cells`.
    """
    selectors, mergers = (
        tuple(dict.fromkeys([own, *names])) for own, names in zip(FULL, (selectors, mergers), strict=True)
    )
    variants = [(selector, merger) for selector in selectors for merger in mergers]
    results = _variants(model, exam, variants, processes, out)
    rows = [row for variant, own in results.items() for row in _rows(own, results[FULL], **_names(variant))]
    return make_study("ablation", model, exam, rows, selectors=selectors, mergers=mergers)


def sensitivity_study(
    model: Model,
    exam: Exam,
    *,
    thresholds: Sequence[float] = (0.5, 0.7, 0.85, 0.95, 1.0),
    temperature_factors: Sequence[float] = (0.1, 0.3, 1, 3, 10),
    processes: int = 1,
    out: Model | None = None,
) -> Study:
    """Table 6: accuracy over τ and α, without training again.

    α is a learned parameter of the merge, so it is multiplied: a copy of the checkpoint is made for each factor.

    Args:
        model: a TinyWorld model's directory.
        exam: what is asked.
        thresholds: values of τ; the model's own is the reference if it is one of them.
        temperature_factors: of the learned α; 1 is the reference.
        processes: as in `evaluate_cells`, like `out`.
        out: a folder for finished cells and their predictions.

    Returns:
        Rows by similarity_threshold, temperature_factor, length and family; `temperature` is α itself.

    Raises:
        ValueError: as `evaluate_cells`, or a factor that is not above 0.
    """
    learned = load_checkpoint(model).merger.temperature.item()
    own = {"similarity_threshold": load_config(model).similarity_threshold, "temperature_factor": 1.0}
    with tempfile.TemporaryDirectory() as folder:
        settings = []
        for factor in temperature_factors:
            scaled = scaled_temperature(model, factor, Path(folder) / f"{factor:g}")
            for threshold in thresholds:
                about = {"similarity_threshold": float(threshold), "temperature_factor": float(factor)}
                settings.append((about, scaled, {"similarity_threshold": threshold}))
        rows = _sweep(exam, settings, own, processes, out)
    for row in rows:
        row["temperature"] = learned * row["temperature_factor"]
    axes = {"thresholds": thresholds, "temperature_factors": temperature_factors}
    return make_study("sensitivity", model, exam, rows, reference=own, temperature=learned, **axes)


def keyframes_study(
    model: Model,
    exam: Exam,
    *,
    keyframes: Sequence[int] = (1, 2, 3, 4, 6, 8, 12, 16),
    processes: int = 1,
    out: Model | None = None,
) -> Study:
    """Fig. 6: accuracy by the number of keyframes K, without training again.

    Args:
        model: a TinyWorld model's directory.
        exam: what is asked.
        keyframes: values of K; the model's own is the reference if it is one of them.
        processes: as in `evaluate_cells`, like `out`.
        out: a folder for finished cells and their predictions.

    Returns:
        Rows by max_keyframes, length and family.

    Raises:
        ValueError: as `evaluate_cells`.
    """
    return _field_study("keyframes", model, exam, "max_keyframes", keyframes, processes, out)


def redundancy_study(
    model: Model,
    exam: Exam,
    *,
    weights: Sequence[float] = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0),
    processes: int = 1,
    out: Model | None = None,
) -> Study:
    """Accuracy by λ, the weight of redundancy in the merge, without training again.

    Args:
        model: a TinyWorld model's directory.
        exam: what is asked.
        weights: values of λ; the model's own is the reference if it is one of them.
        processes: as in `evaluate_cells`, like `out`.
        out: a folder for finished cells and their predictions.

    Returns:
        Rows by redundancy_weight, length and family.

    Raises:
        ValueError: as `evaluate_cells`.
    """
    return _field_study("redundancy", model, exam, "redundancy_weight", weights, processes, out)


def comparison_study(
    first: Model,
    second: Model,
    exam: Exam,
    *,
    first_changes: Mapping[str, Any] | None = None,
    second_changes: Mapping[str, Any] | None = None,
    processes: int = 1,
    out: Model | None = None,
) -> Study:
    """Compare two trained models, or one model with two configurations, on the same questions.

    Args:
        first: a TinyWorld model's directory.
        second: another, or the same.
        exam: what is asked.
        first_changes: fields of the first configuration to set otherwise.
        second_changes: of the second.
        processes: as in `evaluate_cells`, like `out`.
        out: a folder for finished cells and their predictions.

    Returns:
        Rows by length and family: the first's scores as first_correct, first_accuracy, first_low, first_high, the
        second's likewise, and the paired difference, first minus second.

    Raises:
        ValueError: as `evaluate_cells`.
    """
    runs = {"first": (first, dict(first_changes or {})), "second": (second, dict(second_changes or {}))}
    results = {
        name: _evaluate(model, exam, exam.cells(), processes, out, changes) for name, (model, changes) in runs.items()
    }
    rows = []
    for row, other in zip(_rows(results["second"], results["first"]), _rows(results["first"]), strict=True):
        scores = {f"first_{name}": other[name] for name in _SCORES}
        scores |= {f"second_{name}": row.pop(name) for name in _SCORES}
        rows.append({name: row[name] for name in ("frames", "family", "questions")} | scores | _only_paired(row))
    about = {f"{name}_changes": changes for name, (_, changes) in runs.items()}
    return make_study("comparison", first, exam, rows, second=_shown(second), **about)


def seeds_study(
    models: Sequence[Model],
    exam: Exam,
    *,
    variants: Sequence[tuple[str, str]] = (FULL, BASELINE),
    processes: int = 1,
    out: Model | None = None,
) -> Study:
    """Mean and spread over models that were trained alike with different seeds.

    Args:
        models: directories, at least two; all get the same questions.
        exam: what is asked.
        variants: pairs of selector and merger; the first is what the others are compared with.
        processes: as in `evaluate_cells`, like `out`.
        out: a folder for finished cells and their predictions.

    Returns:
        Rows by variant, length and family: `accuracies`, one for each model in order, their `mean`, `spread` (standard
        deviation), `lowest` and `highest`, and `questions`, of each model. `paired` holds each model's paired
        difference, the first variant minus the row's, and `difference` is their mean.

    Raises:
        ValueError: fewer than two models, or as `evaluate_cells`.
    """
    if len(models) < 2:
        raise ValueError(f"models must be at least two, got {len(models)}")
    runs = [_variants(model, exam, variants, processes, out) for model in models]
    reference = tuple(variants[0])
    rows = []
    for variant in variants:
        for same in zip(*(_rows(run[tuple(variant)], run[reference]) for run in runs), strict=True):
            accuracies = [row["accuracy"] for row in same]
            spread = {"mean": fmean(accuracies), "spread": stdev(accuracies)}
            spread |= {"lowest": min(accuracies), "highest": max(accuracies)}
            about = {name: same[0][name] for name in ("frames", "family", "questions")}
            paired = [_only_paired(row) for row in same]
            differences = {"paired": paired, "difference": fmean(row["difference"] for row in paired)}
            rows.append(_names(variant) | about | {"accuracies": accuracies} | spread | differences)
    return make_study("seeds", models[0], exam, rows, models=[_shown(model) for model in models], variants=variants)


def peers_study(
    model: Model,
    peers: Mapping[str, Model],
    exam: Exam,
    *,
    budgets: Sequence[int] = (128, 256, 512, 1024, 2048),
    processes: int = 1,
    out: Model | None = None,
) -> Study:
    """Accuracy by visual tokens, against other ways to show a long video: the paper's claim of efficiency.

    Args:
        model: a TinyWorld model's directory.
        peers: for names in `PEERS` the directories of the models that were trained so.
        exam: what is asked; the same of every method with every budget.
        budgets: visual tokens at most. Whatever does not fit is sampled uniformly, by the full method too.
        processes: as in `evaluate_cells`, like `out`.
        out: a folder for finished cells and their predictions.

    Returns:
        Rows by method ("full" or a peer), budget, length and family, with the paired difference: full minus the row's
        method. `needle_recall` is the share of needles that have a keyframe, with a peer a frame that is seen.

    Raises:
        ValueError: as `evaluate_cells`.
    """
    methods = {"full": (model, FULL)} | {peer: (trained, ("uniform", peer)) for peer, trained in peers.items()}
    rows = []
    for budget in budgets:
        reference = None
        for method, (trained, variant) in methods.items():
            cells = replace(exam, budget=budget).variant(*variant)
            results = _evaluate(trained, exam, cells, processes, out)
            reference = reference or results
            rows += _rows(results, reference, method=method, budget=budget)
    shown = {peer: _shown(trained) for peer, trained in peers.items()}
    return make_study("peers", model, exam, rows, peers=shown, budgets=budgets)


_SCORES = ("correct", "accuracy", "low", "high")


_PAIRED = ("difference", "difference_low", "difference_high", "p")


def scaled_temperature(model: Model, factor: float, folder: Path) -> Path:
    """Copy a checkpoint with its merge's learned temperature multiplied; files that stay the same are links.

    Args:
        model: its directory; returned as it is for a factor of 1.
        factor: above 0.
        folder: of the copy, new.

    Raises:
        ValueError: a factor that is not above 0.
    """
    if not factor > 0 or not math.isfinite(factor):
        raise ValueError(f"factor must be above 0, got {factor}")
    if factor == 1:
        return Path(model)
    folder.mkdir(parents=True)
    for file in Path(model).resolve().iterdir():
        if file.name != "model.safetensors":
            (folder / file.name).symlink_to(file)
    weights = load_file(Path(model) / "model.safetensors")
    weights["merger.temperature"] = weights["merger.temperature"] * factor
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def _names(variant: tuple[str, str]) -> Row:
    return {"selector": variant[0], "merger": variant[1]}


def _rows(results: Sequence[CellResult], reference: Sequence[CellResult] | None = None, **about: Any) -> list[Row]:
    """A row for each length and family, and one for all families; with a reference the paired difference to it."""
    frames = dict.fromkeys(result.cell.frames for result in results)
    families = dict.fromkeys(result.cell.family for result in results)
    rows = []
    for length in frames:
        for family in (*families, ALL):
            own = _predictions(results, length, family)
            row = about | {"frames": length, "family": family} | score(sum(p.correct for p in own), len(own))
            row["tokens"] = fmean(p.tokens for p in own)
            row["keyframes"] = fmean(len(p.keyframes) for p in own)
            row["needle_recall"] = fmean(p.needle_recall for p in own)
            if reference is not None:
                row |= _paired(_predictions(reference, length, family), own)
            rows.append(row)
    return rows


def _predictions(results: Sequence[CellResult], frames: int, family: str) -> list[Prediction]:
    return [
        prediction
        for result in results
        if result.cell.frames == frames and family in (result.cell.family, ALL)
        for prediction in result.predictions
    ]


def _paired(first: Sequence[Prediction], second: Sequence[Prediction]) -> Row:
    """The accuracy of `first` minus that of `second`, with its interval and p."""
    if [(p.question, p.answer) for p in first] != [(p.question, p.answer) for p in second]:
        raise ValueError("two variants must have answered the same questions")
    one, other = [p.correct for p in first], [p.correct for p in second]
    low, high = paired_difference_interval(one, other)
    difference = (sum(one) - sum(other)) / len(one)
    return dict(zip(_PAIRED, (difference, low, high, paired_sign_test(one, other)), strict=True))


def _only_paired(row: Row) -> Row:
    return {name: row[name] for name in _PAIRED}


def _evaluate(
    model: Model,
    exam: Exam,
    cells: Sequence[Cell],
    processes: int,
    out: Model | None,
    changes: Mapping[str, Any] | None = None,
) -> list[CellResult]:
    folder = None if out is None else Path(out) / _setting(Path(model), exam, changes or {})
    about = {"seed": exam.seed, "pool": exam.pool, "changes": changes, "out": folder, "processes": processes}
    return evaluate_cells(model, cells, **about).results


def _setting(model: Path, exam: Exam, changes: Mapping[str, Any]) -> str:
    """A folder's name for all cells that can't be told apart by their own: studies share what they have in common."""
    parts = [
        weights_fingerprint(model),
        code_fingerprint(),
        f"seed{exam.seed}",
        f"pool{exam.pool}",
        f"questions{exam.questions}",
    ]
    return "_".join([*parts, *(f"{name}={changes[name]}" for name in sorted(changes))])


def _variants(
    model: Model, exam: Exam, variants: Sequence[tuple[str, str]], processes: int, out: Model | None
) -> dict[tuple[str, str], list[CellResult]]:
    """Every variant's results, their cells in the same order."""
    cells = {tuple(variant): exam.variant(*variant) for variant in variants}
    every = [cell for own in cells.values() for cell in own]
    results = {result.cell: result for result in _evaluate(model, exam, every, processes, out)}
    return {variant: [results[cell] for cell in own] for variant, own in cells.items()}


def _sweep(
    exam: Exam,
    settings: Sequence[tuple[Row, Model, Mapping[str, Any]]],
    reference: Row,
    processes: int,
    out: Model | None,
) -> list[Row]:
    """Rows for each setting (what it is called, model, changes), compared with the reference if it is one of them."""
    results = []
    with progress_bar(len(settings), "settings", "sweep") as bar:
        for about, model, changes in settings:
            results.append((about, _evaluate(model, exam, exam.cells(), processes, out, changes)))
            bar.update(1)
    own = next((found for about, found in results if about == reference), None)
    return [row for about, found in results for row in _rows(found, own, **about)]


def _field_study(
    name: str, model: Model, exam: Exam, setting: str, values: Sequence[float], processes: int, out: Model | None
) -> Study:
    """A study that sets one field of the configuration."""
    reference = {setting: getattr(load_config(model), setting)}
    settings = [({setting: value}, model, {setting: value}) for value in values]
    rows = _sweep(exam, settings, reference, processes, out)
    return make_study(name, model, exam, rows, reference=reference, **{setting: values})


def _shown(model: Model) -> str:
    """A path as a reader elsewhere can use it: from the repository's root, if it lies there."""
    path = Path(model).absolute()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(model)


def make_study(name: str, model: Model, exam: Exam, rows: list[Row], **parameters: Any) -> Study:
    """Put a study's rows, parameters and stamp together, as JSON has them."""
    stamp = make_stamp(model=_shown(model), weights=weights_fingerprint(Path(model)), seed=exam.seed)
    # Through JSON, so that a fresh study and one that was read are alike.
    return json.loads(
        json.dumps({"study": name, "parameters": asdict(exam) | parameters, "rows": rows, "stamp": stamp})
    )
