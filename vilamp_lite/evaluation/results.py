"""Predictions and finished work, kept in files and read again."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vilamp_lite.common.fingerprints import code_fingerprint, weights_fingerprint
from vilamp_lite.common.hub import read_json
from vilamp_lite.common.names import names_of_today
from vilamp_lite.common.outside import Kind, checked_json
from vilamp_lite.common.stamp import ROOT
from vilamp_lite.evaluation.scoring import answers_match

if TYPE_CHECKING:  # a table is read without torch
    import torch

    from vilamp_lite.modeling import MixedPrecisionSequence
    from vilamp_lite.streaming.measured import MeasuredAnswer
    from vilamp_lite.tinyworld.long_videos import LongVideo

Row = dict[str, Any]  # of a study: JSON's types
Study = dict[str, Any]  # study, parameters, rows, stamp
ALL = "all"  # the family of rows that pool every family
RESULTS = ROOT / "figures" / "results"
EVALUATED = Path("runs") / "evaluate"


@dataclass(frozen=True)
class Prediction:
    """What the model made of one question.

    Attributes:
        question: what was asked.
        answer: what is right.
        prediction: what the model said.
        correct: whether that is the same.
        keyframes: frame numbers, in temporal order.
        tokens: visual tokens.
        needle_recall: share of the needles that have a keyframe.
    """

    question: str
    answer: str
    prediction: str
    correct: bool
    keyframes: list[int]
    tokens: int
    needle_recall: float


def make_prediction(
    question: str,
    answer: str,
    said: str,
    correct: bool,
    sequence: "MixedPrecisionSequence",
    needle_frames: Sequence[tuple[int, int]],
) -> Prediction:
    """Record what a model said about a sequence whose needles are at `needle_frames`: (first, behind the last) each."""
    keyframes = sequence.keyframes.tolist()
    found = [any(start <= frame < stop for frame in keyframes) for start, stop in needle_frames]
    recall = sum(found) / len(found)
    return Prediction(question, answer, said, correct, keyframes, len(sequence.embeds), recall)


def own_folder(model: str | os.PathLike[str], questions: str) -> Path:
    """Where the predictions of a model and a version of the code go, if nobody says; for each sort of questions one."""
    read_json(Path(model) / "config.json")  # refuses what is no checkpoint
    return EVALUATED / f"{weights_fingerprint(model)}_{code_fingerprint()}_{questions}"


def kept_result(file: Path, settings: dict[str, Any], name: str, kind: type[Kind]) -> Kind | None:
    """What a file holds, or None if there is none.

    Args:
        file: a finished piece of an evaluation.
        settings: it is to be of.
        name: what to take from it.
        kind: of that, as in `checked_json`.

    Raises:
        ValueError: it is of other settings, or damaged.
    """
    if not os.path.lexists(file):
        return None
    try:
        content = json.loads(file.read_text())
        found = dict(content["settings"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{file} is not a result ({error}); delete it, or choose another folder") from error
    wanted = json.loads(json.dumps(settings))
    other = [f"{name} {found.get(name)}, not {value}" for name, value in wanted.items() if found.get(name) != value]
    if other:
        raise ValueError(f"{file} is of another evaluation ({'; '.join(other)}); delete it, or choose another folder")
    remedy = "delete it, or choose another folder"
    return checked_json(kind, json.dumps(content.get(name)), f"{file}: {name}", remedy=remedy)


def load_result(name: str, folder: str | os.PathLike[str] = RESULTS) -> Study:
    """Read a recorded study, made by `make studies`."""
    file = Path(folder) / f"{name}.json"
    if not file.is_file():
        raise ValueError(f"there is no recorded study {file}: `make studies` makes it, from trained models")
    try:
        study = names_of_today(json.loads(file.read_text()))
        return {key: study[key] for key in ("study", "parameters", "rows", "stamp")}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{file} is not a study ({type(error).__name__}: {error})") from error


def needle_keyframes(video: "LongVideo", keyframes: "torch.Tensor") -> list[int]:
    """Name the keyframes that show a needle."""
    spans = video.haystack.needle_frames
    return [frame for frame in keyframes.tolist() if any(start <= frame < stop for start, stop in spans)]


def shortened(trace: np.ndarray, points: int = 200) -> list[list[float]]:
    """Thin a trace for a file: the highest look out of each of about so many stretches of time."""
    parts = np.array_split(trace, min(points, len(trace)))
    return [part[part[:, 1].argmax()].round(3).tolist() for part in parts]


def result_of(measured: "MeasuredAnswer", video: "LongVideo") -> Row:
    """Put a run into plain numbers, as JSON has them."""
    question = video.haystack.question
    return {
        "frames": len(measured.sequence.timestamps),
        "question": question.text,
        "expected": question.answer,
        "answer": measured.answer,
        "correct": answers_match(measured.answer, question.answer),
        "needle_frames": [list(span) for span in video.haystack.needle_frames],
        "keyframes": measured.sequence.keyframes.tolist(),
        "needle_keyframes": needle_keyframes(video, measured.sequence.keyframes),
        "visual_tokens": len(measured.sequence.embeds),
        "seconds": measured.seconds,
        "memory_before": measured.before,
        "peak_memory": measured.peak_memory,
        "stages": measured.stages,
        "trace": shortened(measured.trace),
    }
