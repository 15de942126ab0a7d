"""The paper's studies on TinyWorld's miniature, each one function call: Fig. 2, Tables 2 and 6, Fig. 6, §3 and more.

Every study returns a dictionary for JSON: `study`, `parameters`, `rows` (one for each number of a table or figure) and
`stamp`. Shares come with Wilson's 95 % interval (`low`, `high`). Where variants answer the same questions, a row also
has the paired `difference` to the study's reference with its interval and the p of the exact sign test.

`python -m vilamp_lite.evaluation.studies` makes the recorded runs that the notebooks show.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from os import PathLike
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from vilamp_lite.ablation import MERGER_NAMES
from vilamp_lite.checkpoints import load_checkpoint, load_config, load_processor
from vilamp_lite.checks import choice
from vilamp_lite.evaluation.niah import (
    POOL,
    Cell,
    CellResult,
    Examiner,
    cell_haystacks,
    evaluate_cells,
    grid,
)
from vilamp_lite.evaluation.results import Prediction, weights_fingerprint
from vilamp_lite.evaluation.scoring import paired_difference_interval, paired_sign_test, wilson_interval
from vilamp_lite.modeling import MixedPrecisionSequence, TokenKind, ViLaMPForConditionalGeneration
from vilamp_lite.processing import ViLaMPProcessor
from vilamp_lite.progress import progress_bar
from vilamp_lite.stamp import ROOT, make_stamp
from vilamp_lite.tinyworld import MINIATURE
from vilamp_lite.tinyworld.questions import FAMILIES

ALL = "all"  # the family of rows that pool every family
FULL = ("dks", "dfm")
BASELINE = ("uniform", "mean")
RESULTS = ROOT / "figures" / "results"
CURVE = np.linspace(0, 1, 101)  # shares of the frames at which attention is added up

Row = dict[str, Any]
Study = dict[str, Any]
Model = str | PathLike[str]


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
    """

    frames: tuple[int, ...] = (1024,)
    depths: tuple[float, ...] = (0.5,)
    families: tuple[str, ...] = tuple(FAMILIES)
    questions: int = 20
    seed: int = 0
    pool: int = POOL

    def cells(self, selectors: Sequence[str] = ("dks",), mergers: Sequence[str] = ("dfm",)) -> list[Cell]:
        """Every cell of the exam, as `grid`."""
        return grid(self.frames, self.depths, self.families, selectors, mergers, self.questions)

    def variant(self, selector: str, merger: str) -> list[Cell]:
        """The cells of one variant, in the order of every other's."""
        return self.cells([selector], [merger])


# --- The studies -----------------------------------------------------------------------------------------------------


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
    return _study("niah", model, exam, rows, variants=variants)


def ablation_study(
    model: Model,
    exam: Exam,
    *,
    selectors: Sequence[str] = ("dks", "uniform", "top_relevance"),
    mergers: Sequence[str] = MERGER_NAMES,
    processes: int = 1,
    out: Model | None = None,
) -> Study:
    """Table 2: every selector with every merger, on the same questions.

    Args:
        model: a TinyWorld model's directory.
        exam: what is asked.
        selectors: names in `SELECTORS`; "dks" is added if missing, since dks + dfm is the reference.
        mergers: names in `MERGER_NAMES`; "dfm" is added if missing.
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
    return _study("ablation", model, exam, rows, selectors=selectors, mergers=mergers)


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
    return _study("sensitivity", model, exam, rows, reference=own, temperature=learned, **axes)


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
    return _study("comparison", first, exam, rows, second=_shown(second), **about)


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
        variants: pairs of selector and merger.
        processes: as in `evaluate_cells`, like `out`.
        out: a folder for finished cells and their predictions.

    Returns:
        Rows by variant, length and family: `accuracies`, one for each model in order, their `mean`, `spread` (standard
        deviation), `lowest` and `highest`, and `questions`, of each model.

    Raises:
        ValueError: fewer than two models, or as `evaluate_cells`.
    """
    if len(models) < 2:
        raise ValueError(f"models must be at least two, got {len(models)}")
    runs = [_variants(model, exam, variants, processes, out) for model in models]
    rows = []
    for variant in variants:
        for same in zip(*(_rows(run[tuple(variant)]) for run in runs), strict=True):
            accuracies = [row["accuracy"] for row in same]
            spread = {"mean": fmean(accuracies), "spread": stdev(accuracies)}
            spread |= {"lowest": min(accuracies), "highest": max(accuracies)}
            about = {name: same[0][name] for name in ("frames", "family", "questions")}
            rows.append(_names(variant) | about | {"accuracies": accuracies} | spread)
    return _study("seeds", models[0], exam, rows, models=[_shown(model) for model in models], variants=variants)


# --- §3: where the answer's attention falls --------------------------------------------------------------------------


def attention_study(
    model: Model,
    exam: Exam,
    *,
    variants: Sequence[tuple[str, str]] = (FULL, ("uniform", "dfm")),
    attention_share: float = 0.9,
    frame_share: float = 0.05,
    patch_share: float = 0.8,
) -> Study:
    """§3: what share of the answer's attention falls on what share of the frames and patches, and how alike those are.

    The attention is that of the position which says the answer's first word, averaged over layers and heads, to the
    visual tokens. A keyframe's is the sum over its patches. A uniform selector's keyframes are chosen without the
    question, so that the concentration found with it is the language model's own.

    Args:
        model: a TinyWorld model's directory.
        exam: lengths of a few hundred frames; attention takes memory with the square.
        variants: pairs of selector and merger.
        attention_share: of the attention on frames, for `frames_needed`.
        frame_share: of the frames that are attended most, for `most_attended`, `cosine_attended` and `cosine_random`.
        patch_share: of the attention on keyframes' patches, for `patches_needed`.

    Returns:
        Rows by variant, length and family, each a mean over questions:
        frames_needed and patches_needed, the smallest shares of frames and of keyframe patches that hold those shares
        of attention; most_attended, the attention on the most attended frames; on_keyframes and on_needles, the
        attention on these; on_video, the visual tokens' part of all attention; cosine_attended and cosine_random, the
        mean cosine between two of the most attended frames, and between two of as many random ones; `curve`, the
        attention on the most attended 0, 1, …, 100 % of the frames. `low` and `high` hold 95 % intervals of the means.

    Raises:
        ValueError: as `Examiner`.
    """
    loaded = load_checkpoint(model)
    # Other implementations never hold the weights of attention.
    loaded.language_model.set_attn_implementation("eager")
    examiner = Examiner(loaded, load_processor(model, loaded.config), exam.seed, exam.pool)
    cells = [cell for variant in variants for cell in exam.variant(*variant)]
    measured: dict[tuple[str, str, int, str], list[dict[str, float]]] = {}
    curves: dict[tuple[str, str, int, str], list[np.ndarray]] = {}
    with progress_bar(sum(cell.questions for cell in cells), "questions", "attention") as bar:
        for cell in cells:
            haystacks = cell_haystacks(cell, exam.seed, exam.pool)
            examiner.features.encode(scene for haystack in haystacks for scene in haystack.scenes)
            for number, haystack in enumerate(haystacks):
                sequence = examiner.sequence(haystack, cell.selector, cell.merger)
                embeds, _ = examiner.features.of(haystack.scenes)
                attention = answer_attention(loaded, examiner.processor, haystack.question.text, sequence)
                random = np.random.default_rng((exam.seed, number))
                values, curve = _measure(
                    attention.mean(dim=(0, 1)).double().numpy(),
                    sequence,
                    embeds,
                    haystack.needle_frames,
                    (attention_share, frame_share, patch_share),
                    random,
                )
                for family in (cell.family, ALL):
                    key = cell.selector, cell.merger, cell.frames, family
                    measured.setdefault(key, []).append(values)
                    curves.setdefault(key, []).append(curve)
                bar.update(1)
    rows = []
    for selector, merger in variants:
        for frames in exam.frames:
            for family in (*exam.families, ALL):
                key = selector, merger, frames, family
                about = {"selector": selector, "merger": merger, "frames": frames, "family": family}
                rows.append(about | _means(measured[key]) | {"curve": np.mean(curves[key], axis=0).tolist()})
    shares = {"attention_share": attention_share, "frame_share": frame_share, "patch_share": patch_share}
    return _study("attention", model, exam, rows, variants=variants, **shares)


@torch.inference_mode()
def answer_attention(
    model: ViLaMPForConditionalGeneration, processor: ViLaMPProcessor, question: str, sequence: MixedPrecisionSequence
) -> torch.Tensor:
    """The attention of the position that says the answer's first word to each visual token.

    Args:
        model: its language model's attention must be "eager".
        processor: its own.
        question: what is asked.
        sequence: the video, T tokens.

    Returns:
        [layers, heads, T]; less than 1 together for each head, since the prompt's words are attended, too.
    """
    prompt = processor.prompts([question])
    output = model(**prompt, video_embeds=[sequence.embeds], output_attentions=True, use_cache=False)
    start = int((prompt["input_ids"][0] == model.config.video_token_id).nonzero()[0, 0])
    last = torch.stack([layer[0, :, -1] for layer in output.attentions])
    return last[..., start : start + len(sequence.embeds)].cpu()


def share_needed(attention: np.ndarray, share: float) -> float:
    """The smallest share of items that hold a share of the attention together.

    Args:
        attention: [n] of each item, at least 0.
        share: from 0 to 1.
    """
    most = np.cumsum(np.sort(attention)[::-1]) / attention.sum()
    return float((np.searchsorted(most, share - 1e-9) + 1) / len(attention))


def _measure(
    attention: np.ndarray,
    sequence: MixedPrecisionSequence,
    embeds: torch.Tensor,
    needle_frames: Sequence[tuple[int, int]],
    shares: tuple[float, float, float],
    random: np.random.Generator,
) -> tuple[dict[str, float], np.ndarray]:
    """Everything `attention_study` says about one question; attention is [T]."""
    attention_share, frame_share, patch_share = shares
    frame_of_token, kinds = sequence.frame_of_token.numpy(), sequence.kind_of_token.numpy()
    in_frame = frame_of_token >= 0
    of_frame = np.bincount(frame_of_token[in_frame], attention[in_frame], len(embeds))
    of_frame /= of_frame.sum()
    order = np.argsort(-of_frame, kind="stable")
    count = max(2, math.ceil(frame_share * len(of_frame)))
    needles = np.concatenate([np.arange(start, stop) for start, stop in needle_frames])
    values = {
        "frames_needed": share_needed(of_frame, attention_share),
        "patches_needed": share_needed(attention[kinds == TokenKind.PATCH], patch_share),
        "most_attended": float(of_frame[order[:count]].sum()),
        "on_keyframes": float(of_frame[sequence.keyframes.numpy()].sum()),
        "on_needles": float(of_frame[needles].sum()),
        "on_video": float(attention.sum()),
        "cosine_attended": _mean_cosine(embeds[order[:count]]),
        "cosine_random": _mean_cosine(embeds[random.choice(len(embeds), count, replace=False)]),
    }
    reached = np.concatenate([[0], np.cumsum(of_frame[order])])
    return values, np.interp(CURVE, np.linspace(0, 1, len(reached)), reached)


def _mean_cosine(embeds: torch.Tensor) -> float:
    """Between two different ones of the unit vectors [n, D]."""
    count = len(embeds)
    return float((embeds.double().sum(dim=0).square().sum() - count) / (count * (count - 1)))


def _means(measured: Sequence[Mapping[str, float]]) -> Row:
    values = {name: np.array([one[name] for one in measured]) for name in measured[0]}
    mean = {name: float(column.mean()) for name, column in values.items()}
    error = {name: 1.96 * _standard_error(column) for name, column in values.items()}
    bounds = {
        "low": {name: mean[name] - error[name] for name in mean},
        "high": {name: mean[name] + error[name] for name in mean},
    }
    return {"questions": len(measured)} | mean | bounds


def _standard_error(column: np.ndarray) -> float:
    return float(column.std(ddof=1)) / math.sqrt(len(column)) if len(column) > 1 else 0.0


# --- What they share -------------------------------------------------------------------------------------------------

_SCORES = ("correct", "accuracy", "low", "high")
_PAIRED = ("difference", "difference_low", "difference_high", "p")


def pooled(rows: Sequence[Row], *names: str) -> list[Row]:
    """Add rows up that agree in some fields: correct and questions are summed, and the interval made anew.

    Args:
        rows: of a study; leave out those of the family "all" where families are pooled.
        names: the fields that must agree; the others are dropped.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return [
        dict(zip(names, key, strict=True)) | _score(sum(r["correct"] for r in same), sum(r["questions"] for r in same))
        for key, same in groups.items()
    ]


def find(rows: Sequence[Row], **fields: Any) -> Row:
    """The one row that has these fields.

    Raises:
        ValueError: there is none, or there are several.
    """
    found = [row for row in rows if all(row[name] == value for name, value in fields.items())]
    if len(found) != 1:
        raise ValueError(f"{fields} must be one row, got {len(found)}")
    return found[0]


def share_text(row: Row) -> str:
    """An accuracy with its interval: "0.95 (0.91–0.97)"."""
    return f"{row['accuracy']:.2f} ({row['low']:.2f}–{row['high']:.2f})"


def difference_text(row: Row) -> str:
    """A paired difference with its interval and p: "+0.52 (+0.44 to +0.59, p = 2e-19)"."""
    # Adding 0 makes -0.00 a +0.00.
    difference, low, high = (round(row[name], 2) + 0.0 for name in _PAIRED[:3])
    return f"{difference:+.2f} ({low:+.2f} to {high:+.2f}, p = {row['p']:.1g})"


def verdict(row: Row, first: str, second: str) -> str:
    """Say in words what a paired difference, first minus second, shows at the 5 % level."""
    if row["p"] >= 0.05:
        return f"no difference between {first} and {second} is shown"
    return f"{first} is {'better' if row['difference'] > 0 else 'worse'} than {second}"


def not_best(rows: Sequence[Row]) -> list[str]:
    """Say for every length and family where the first row's variant is not the best, and what is.

    Args:
        rows: of `ablation_study` or `niah_study`, the reference's first; all are compared with it in pairs.
    """
    full = (rows[0]["selector"], rows[0]["merger"])
    found = []
    for own in (row for row in rows if (row["selector"], row["merger"]) == full):
        place = {name: own[name] for name in ("depth", "frames", "family") if name in own}
        same = [row for row in rows if all(row[name] == value for name, value in place.items())]
        best = max(same, key=lambda row: row["accuracy"])
        if best["accuracy"] > own["accuracy"]:
            found.append(
                f"{' + '.join(full)} is not best on {own['family']} at {own['frames']:,} frames: {best['selector']} + "
                f"{best['merger']} {share_text(best)} against {share_text(own)}, difference {difference_text(best)}"
            )
    return found


def load_result(name: str, folder: Model = RESULTS) -> Study:
    """Read a recorded study.

    Args:
        name: a name in `RECORDED`.
        folder: where the studies were written.

    Raises:
        ValueError: there is no such file, or it is not a study.
    """
    file = Path(folder) / f"{name}.json"
    if not file.is_file():
        raise ValueError(f"there is no recorded study {file}: `make studies` makes it, from trained models")
    try:
        study = json.loads(file.read_text())
        return {key: study[key] for key in ("study", "parameters", "rows", "stamp")}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is not a study ({type(error).__name__}: {error})") from error


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


def _score(correct: int, questions: int) -> Row:
    low, high = wilson_interval(correct, questions)
    return {"questions": questions, "correct": correct, "accuracy": correct / questions, "low": low, "high": high}


def _rows(results: Sequence[CellResult], reference: Sequence[CellResult] | None = None, **about: Any) -> list[Row]:
    """A row for each length and family, and one for all families; with a reference the paired difference to it."""
    frames = dict.fromkeys(result.cell.frames for result in results)
    families = dict.fromkeys(result.cell.family for result in results)
    rows = []
    for length in frames:
        for family in (*families, ALL):
            own = _predictions(results, length, family)
            row = about | {"frames": length, "family": family} | _score(sum(p.correct for p in own), len(own))
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
    parts = [weights_fingerprint(model), f"seed{exam.seed}", f"pool{exam.pool}", f"questions{exam.questions}"]
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
    return _study(name, model, exam, rows, reference=reference, **{setting: values})


def _shown(model: Model) -> str:
    """A path as a reader elsewhere can use it: from the repository's root, if it lies there."""
    path = Path(model).absolute()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(model)


def _study(name: str, model: Model, exam: Exam, rows: list[Row], **parameters: Any) -> Study:
    stamp = make_stamp(model=_shown(model), weights=weights_fingerprint(Path(model)), seed=exam.seed)
    # Through JSON, so that a fresh study and one that was read are alike.
    return json.loads(
        json.dumps({"study": name, "parameters": asdict(exam) | parameters, "rows": rows, "stamp": stamp})
    )


# --- The recorded runs -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recording:
    """A full run whose result is committed.

    Attributes:
        make: the study.
        exam: what is asked.
        options: further arguments.
        others: folders of further trained models, under the folder of `vilamp train`.
    """

    make: Callable[..., Study]
    exam: Exam
    options: dict[str, Any] = field(default_factory=dict)
    others: tuple[str, ...] = ()


_DEPTHS = (0.1, 0.3, 0.5, 0.7, 0.9)
_AT_2048 = Exam((2048,), _DEPTHS, questions=40)  # 200 of each family
# Short haystacks from fewer scenes: otherwise encoding the pool once for each setting would cost most of the time.
_SWEEP = Exam((1024,), _DEPTHS, questions=20, pool=400)
_TRAINED_OTHERWISE = ("released_reference", "no_keyframe_block", "no_attention_scaling", "no_grounding")
_SEEDS = ("full-seed1", "full-seed2")
_VARIANTS = (
    *(FULL, ("uniform", "dfm"), ("top_relevance", "dfm"), ("dks", "mean"), ("dks", "drop")),
    *(("top_relevance", "mean"), BASELINE),
)

RECORDED: dict[str, Recording] = {
    "niah": Recording(
        niah_study, Exam((256, 512, 1024, 2048, 4096, 10_000), (0.0, 0.25, 0.5, 0.75, 1.0), questions=10)
    ),
    "ablation": Recording(ablation_study, _AT_2048),
    "sensitivity": Recording(sensitivity_study, replace(_SWEEP, questions=8)),
    "keyframes": Recording(keyframes_study, _SWEEP),
    "redundancy": Recording(redundancy_study, _SWEEP),
    "attention": Recording(attention_study, Exam((256, 512), questions=40, pool=400)),
    **{name: Recording(comparison_study, _AT_2048, others=(f"{name}-seed0",)) for name in _TRAINED_OTHERWISE},
    "seeds": Recording(seeds_study, _AT_2048, {"variants": _VARIANTS}, _SEEDS),
    "seeds_10000": Recording(seeds_study, Exam((10_000,), _DEPTHS, questions=8), others=_SEEDS),
}


def record(
    name: str,
    model: Model,
    *,
    trained: Model,
    out: Model = RESULTS,
    cells: Model | None = None,
    questions: int | None = None,
    processes: int = 1,
) -> Path:
    """Run a recorded study and write out/NAME.json.

    Args:
        name: in `RECORDED`.
        model: the bundled model's directory.
        trained: the folder of `vilamp train`, for studies that compare several models.
        out: a folder for the results.
        cells: a folder for finished cells and their predictions, from which an interrupted run goes on.
        questions: for each length, depth and family; the recording's own when left out.
        processes: as in `evaluate_cells`.

    Raises:
        ValueError: an unknown name, a model that is not there, or as the study.
    """
    recording = RECORDED[choice("name", name, tuple(RECORDED))]
    exam = recording.exam if questions is None else replace(recording.exam, questions=questions)
    others = _others(recording, trained)
    if missing := [str(other) for other in others if not other.is_dir()]:
        raise ValueError(f"{name} needs {', '.join(missing)}, which `vilamp train` makes")
    options = dict(recording.options)
    if recording.make is not attention_study:
        options |= {"processes": processes, "out": cells}
    models = [[model, *others]] if recording.make is seeds_study else [model, *others]
    start = time.perf_counter()
    study = recording.make(*models, exam, **options)
    study["stamp"]["seconds"] = round(time.perf_counter() - start)
    file = Path(out) / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(study, indent=1, ensure_ascii=False) + "\n")
    return file


def _others(recording: Recording, trained: Model) -> list[Path]:
    return [Path(trained) / other / "model" for other in recording.others]


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the recorded runs; without names, all whose models are there."""
    parser = argparse.ArgumentParser(prog="python -m vilamp_lite.evaluation.studies", description=main.__doc__)
    parser.add_argument("studies", nargs="*", metavar="STUDY", help=f"of {', '.join(RECORDED)}")
    parser.add_argument("--model", type=Path, default=MINIATURE, help="the bundled model")
    parser.add_argument("--trained", type=Path, default=ROOT / "runs" / "train", help="the folder of `vilamp train`")
    parser.add_argument("--out", type=Path, default=RESULTS, help="a folder for NAME.json")
    parser.add_argument("--cells", type=Path, default=ROOT / "runs" / "studies", help="finished cells, to go on from")
    parser.add_argument("--questions", type=int, help="for each length, depth and family")
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args(arguments)
    settings = {name: getattr(options, name) for name in ("trained", "out", "cells", "questions", "processes")}
    try:
        for name in options.studies or RECORDED:
            if not options.studies and not all(other.is_dir() for other in _others(RECORDED[name], options.trained)):
                print(f"{name}: left out, its models are not in {options.trained}")
                continue
            start = time.perf_counter()
            file = record(name, options.model, **settings)
            print(f"{file}  {time.perf_counter() - start:.0f} s", flush=True)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
