"""The paper's studies on TinyWorld's miniature, each one function call: Fig. 2, Tables 2 and 6, Fig. 6 and more.

Every study takes `models`, directories of TinyWorld models (one, where its text names no other number), and `exam`,
what they are asked. Two more options are those of `evaluate_cells`: `processes`, and `out`, a folder for finished cells
and their predictions, from which a study goes on; studies may share it.

Every study returns a dictionary for JSON: `study`, `parameters`, `rows` (one for each number of a table or figure) and
`stamp`. Shares come with Wilson's 95 % interval (`low`, `high`). Where variants answer the same questions, a row also
has the paired `difference` to the study's reference with its interval and the p of the exact sign test.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from vilamp_lite.baselines.mergers import MERGERS
from vilamp_lite.baselines.peers import PEERS
from vilamp_lite.checkpoints import load_checkpoint, load_config
from vilamp_lite.common.fingerprints import code_fingerprint, weights_fingerprint
from vilamp_lite.common.progress import progress_bar
from vilamp_lite.common.stamp import ROOT, make_stamp
from vilamp_lite.evaluation.niah import POOL, Cell, CellResult, grid
from vilamp_lite.evaluation.results import ALL, Prediction, Row, Study
from vilamp_lite.evaluation.runs import evaluate_cells
from vilamp_lite.evaluation.scoring import paired_difference_interval, paired_sign_test, score
from vilamp_lite.tinyworld.questions import FAMILIES

FULL = ("dks", "dfm")
BASELINE = ("uniform", "mean")
Model = str | os.PathLike[str]


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

    def cells(self, selector: str = "dks", merger: str = "dfm") -> list[Cell]:
        """The cells of one variant, in the order of every other's."""
        return grid(self.frames, self.depths, self.families, [selector], [merger], self.questions, self.budget)


def niah_study(
    models: Sequence[Model], exam: Exam, *, variants: Sequence[tuple[str, str]] = (FULL, BASELINE), **run: Any
) -> Study:
    """Fig. 2, needles in haystacks: accuracy by length and depth, for the full method and for uniform + mean.

    Every one of `variants`, pairs of selector and merger, is compared with the first. Rows by variant, length, depth
    and family; depth "all" and family "all" pool them.
    """
    model = single(models)
    results = _variants(model, exam, variants, **run)
    reference = results[tuple(variants[0])]
    rows = []
    for variant, own in results.items():
        for depth in (*exam.depths, ALL):
            some, first = ([one for one in all_ if depth in (one.cell.depth, ALL)] for all_ in (own, reference))
            rows += _rows(some, first, **_names(variant), depth=depth)
    return make_study("niah", model, exam, rows, variants=variants)


def ablation_study(
    models: Sequence[Model],
    exam: Exam,
    *,
    selectors: Sequence[str] = ("dks", "uniform", "top_k"),
    mergers: Sequence[str] = tuple(MERGERS),
    **run: Any,
) -> Study:
    """Table 2: every one of `selectors` with every one of `mergers`, on the same questions.

    Rows by variant, length and family, with the paired difference: dks + dfm minus the row's variant. These two are
    added where they are missing.
    """
    model = single(models)
    selectors, mergers = (
        tuple(dict.fromkeys([own, *names])) for own, names in zip(FULL, (selectors, mergers), strict=True)
    )
    variants = [(selector, merger) for selector in selectors for merger in mergers]
    results = _variants(model, exam, variants, **run)
    rows = [row for variant, own in results.items() for row in _rows(own, results[FULL], **_names(variant))]
    return make_study("ablation", model, exam, rows, selectors=selectors, mergers=mergers)


def sensitivity_study(
    models: Sequence[Model],
    exam: Exam,
    *,
    thresholds: Sequence[float] = (0.5, 0.7, 0.85, 0.95, 1.0),
    temperature_factors: Sequence[float] = (0.1, 0.3, 1, 3, 10),
    **run: Any,
) -> Study:
    """Table 6: accuracy over τ (`thresholds`) and α (factors of the learned one), without training again.

    Rows by similarity_threshold, temperature_factor, length and family; `temperature` is α itself. The reference is the
    model's own τ with the factor 1, if they are among the values.
    """
    model = single(models)
    learned = load_checkpoint(model).merger.temperature.item()
    own = {"similarity_threshold": load_config(model).similarity_threshold, "temperature_factor": 1.0}
    settings = [
        {"similarity_threshold": float(threshold), "temperature_factor": float(factor)}
        for factor in temperature_factors
        for threshold in thresholds
    ]
    rows = _sweep(model, exam, settings, own, **run)
    for row in rows:
        row["temperature"] = learned * row["temperature_factor"]
    axes = {"thresholds": thresholds, "temperature_factors": temperature_factors}
    return make_study("sensitivity", model, exam, rows, reference=own, temperature=learned, **axes)


def keyframes_study(
    models: Sequence[Model], exam: Exam, *, keyframes: Sequence[int] = (1, 2, 3, 4, 6, 8, 12, 16), **run: Any
) -> Study:
    """Fig. 6: accuracy by the number of keyframes K, without training again.

    Rows by max_keyframes, length and family. The reference is the model's own K, if it is among the values.
    """
    return _field_study("keyframes", models, exam, "max_keyframes", keyframes, **run)


def redundancy_study(
    models: Sequence[Model], exam: Exam, *, weights: Sequence[float] = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0), **run: Any
) -> Study:
    """Accuracy by λ, the weight of redundancy in the merge, without training again.

    Rows by redundancy_weight, length and family. The reference is the model's own λ, if it is among the values.
    """
    return _field_study("redundancy", models, exam, "redundancy_weight", weights, **run)


def comparison_study(
    models: Sequence[Model],
    exam: Exam,
    *,
    first_changes: Mapping[str, Any] | None = None,
    second_changes: Mapping[str, Any] | None = None,
    **run: Any,
) -> Study:
    """Compare two trained models, or one model (twice in `models`) with two configurations, on the same questions.

    The changes are those of `Examiner.with_changes`. Rows by length and family: the first's scores as first_correct,
    first_accuracy, first_low, first_high, the second's likewise, and the paired difference, first minus second.
    """
    first, second = _counted(models, 2)
    about = {"first_changes": dict(first_changes or {}), "second_changes": dict(second_changes or {})}
    one, other = (
        _evaluate(model, exam, exam.cells(), changes, **run)
        for model, changes in zip(models, about.values(), strict=True)
    )
    rows = []
    for row, best in zip(_rows(other, one), _rows(one), strict=True):
        scores = {f"first_{name}": best[name] for name in _SCORES}
        scores |= {f"second_{name}": row[name] for name in _SCORES}
        rows.append({name: row[name] for name in ("frames", "family", "questions")} | scores | _only_paired(row))
    return make_study("comparison", first, exam, rows, second=_shown(second), **about)


def seeds_study(
    models: Sequence[Model], exam: Exam, *, variants: Sequence[tuple[str, str]] = (FULL, BASELINE), **run: Any
) -> Study:
    """Mean and spread over two or more models that were trained alike with different seeds.

    Every one of `variants`, pairs of selector and merger, is compared with the first. Rows by variant, length and
    family: `accuracies`, one for each model in order, their `mean`, `spread` (standard deviation), `lowest` and
    `highest`, and `questions`, of each model. `paired` holds each model's paired difference, the first variant minus
    the row's, and `difference` is their mean.
    """
    if len(models) < 2:
        raise ValueError(f"models must be at least two, got {len(models)}")
    results = [_variants(model, exam, variants, **run) for model in models]
    reference = tuple(variants[0])
    rows = []
    for variant in variants:
        for same in zip(*(_rows(own[tuple(variant)], own[reference]) for own in results), strict=True):
            accuracies = [row["accuracy"] for row in same]
            spread = {"mean": fmean(accuracies), "spread": stdev(accuracies)}
            spread |= {"lowest": min(accuracies), "highest": max(accuracies)}
            about = {name: same[0][name] for name in ("frames", "family", "questions")}
            paired = [_only_paired(row) for row in same]
            differences = {"paired": paired, "difference": fmean(row["difference"] for row in paired)}
            rows.append(_names(variant) | about | {"accuracies": accuracies} | spread | differences)
    return make_study("seeds", models[0], exam, rows, models=[_shown(model) for model in models], variants=variants)


def peers_study(
    models: Sequence[Model],
    exam: Exam,
    *,
    peers: Sequence[str] = tuple(PEERS),
    budgets: Sequence[int] = (128, 256, 512, 1024, 2048),
    **run: Any,
) -> Study:
    """Accuracy by visual tokens, against other ways to show a long video: the paper's claim of efficiency.

    `models` are the full method's, then one for each of `peers` that was trained so. Whatever does not fit a budget, in
    visual tokens, is sampled uniformly, by the full method too. Rows by method ("full" or a peer), budget, length and
    family, with the paired difference: full minus the row's method. `needle_recall` is the share of needles that have a
    keyframe, with a peer a frame that is seen.
    """
    model, *trained = _counted(models, 1 + len(peers))
    methods = {"full": (model, FULL)}
    methods |= {peer: (own, ("uniform", peer)) for peer, own in zip(peers, trained, strict=True)}
    results = {
        (budget, method): _evaluate(own, exam, replace(exam, budget=budget).cells(*variant), **run)
        for method, (own, variant) in methods.items()
        for budget in budgets
    }
    rows = [
        row
        for budget in budgets
        for method in methods
        for row in _rows(results[budget, method], results[budget, "full"], method=method, budget=budget)
    ]
    shown = {peer: _shown(own) for peer, own in zip(peers, trained, strict=True)}
    return make_study("peers", model, exam, rows, peers=shown, budgets=budgets)


def make_study(name: str, model: Model, exam: Exam, rows: list[Row], **parameters: Any) -> Study:
    """Put a study's rows, parameters and stamp together, as JSON has them."""
    stamp = make_stamp(model=_shown(model), weights=weights_fingerprint(model), seed=exam.seed)
    # Through JSON, so that a fresh study and one that was read are alike.
    return json.loads(
        json.dumps({"study": name, "parameters": asdict(exam) | parameters, "rows": rows, "stamp": stamp})
    )


_SCORES = ("correct", "accuracy", "low", "high")
_PAIRED = ("difference", "difference_low", "difference_high", "p")


def single(models: Sequence[Model]) -> Model:
    """The model of a study that takes one."""
    (model,) = _counted(models, 1)
    return model


def _counted(models: Sequence[Model], count: int) -> Sequence[Model]:
    if isinstance(models, str | os.PathLike) or len(models) != count:
        raise ValueError(f"models must be a list of {count}, got {models!r}")
    return models


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
    changes: Mapping[str, Any] | None = None,
    *,
    processes: int = 1,
    out: Model | None = None,
) -> list[CellResult]:
    """A model's answers; its own folder in `out` holds all cells that can't be told apart by their names."""
    changes = changes or {}
    if out is not None:
        parts = [weights_fingerprint(model), code_fingerprint()]
        parts += [f"seed{exam.seed}", f"pool{exam.pool}", f"questions{exam.questions}"]
        out = Path(out) / "_".join([*parts, *(f"{name}={changes[name]}" for name in sorted(changes))])
    about = {"seed": exam.seed, "pool": exam.pool, "changes": changes, "out": out, "processes": processes}
    return evaluate_cells(model, cells, **about).results


def _variants(
    model: Model, exam: Exam, variants: Sequence[tuple[str, str]], **run: Any
) -> dict[tuple[str, str], list[CellResult]]:
    """Every variant's results, their cells in the same order."""
    cells = {tuple(variant): exam.cells(*variant) for variant in variants}
    results = iter(_evaluate(model, exam, [cell for own in cells.values() for cell in own], **run))
    return {variant: [next(results) for _ in own] for variant, own in cells.items()}


def _sweep(model: Model, exam: Exam, settings: Sequence[Row], reference: Row, **run: Any) -> list[Row]:
    """Rows for each setting of the model, compared with the reference if it is one of them."""
    results = []
    with progress_bar(len(settings), "settings", "sweep") as bar:
        for changes in settings:
            results.append(_evaluate(model, exam, exam.cells(), changes, **run))
            bar.update(1)
    own = results[settings.index(reference)] if reference in settings else None
    return [row for changes, found in zip(settings, results, strict=True) for row in _rows(found, own, **changes)]


def _field_study(
    name: str, models: Sequence[Model], exam: Exam, setting: str, values: Sequence[float], **run: Any
) -> Study:
    """A study that sets one field of the configuration."""
    model = single(models)
    reference = {setting: getattr(load_config(model), setting)}
    rows = _sweep(model, exam, [{setting: value} for value in values], reference, **run)
    return make_study(name, model, exam, rows, reference=reference, **{setting: values})


def _shown(model: Model) -> str:
    """A path as a reader elsewhere can use it: from the repository's root, if it lies there."""
    path = Path(model).absolute()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(model)
