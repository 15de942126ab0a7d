"""Predictions, and finished work kept in files, for every evaluation."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from vilamp_lite.evaluation.scoring import wilson_interval
from vilamp_lite.files import file_sha256
from vilamp_lite.modeling import MixedPrecisionSequence, ViLaMPForConditionalGeneration
from vilamp_lite.processing import ViLaMPProcessor

PACKAGE = Path(__file__).parents[1]


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


def generate_answer(
    model: ViLaMPForConditionalGeneration,
    processor: ViLaMPProcessor,
    prompt: str,
    sequence: MixedPrecisionSequence,
    max_new_tokens: int,
    prefill_chunk_size: int | None = None,
) -> str:
    """Let a model answer a question about a video that is already a sequence.

    Args:
        model: in evaluation mode.
        processor: its processor.
        prompt: with one video.
        sequence: the video.
        max_new_tokens: of the answer.
        prefill_chunk_size: as in `model.generate`.
    """
    tokens = model.generate(
        **processor.prompts([prompt]),
        video_embeds=[sequence.embeds],
        max_new_tokens=max_new_tokens,
        do_sample=False,
        prefill_chunk_size=prefill_chunk_size,
    )
    return processor.batch_decode(tokens)[0].strip()


def make_prediction(
    question: str,
    answer: str,
    said: str,
    correct: bool,
    sequence: MixedPrecisionSequence,
    needle_frames: Sequence[tuple[int, int]],
) -> Prediction:
    """Record an answer.

    Args:
        question: what was asked.
        answer: what is right.
        said: what the model answered.
        correct: whether that is right.
        sequence: the video as the model saw it.
        needle_frames: (first, behind the last) of each needle.
    """
    keyframes = sequence.keyframes.tolist()
    found = [any(start <= frame < stop for frame in keyframes) for start, stop in needle_frames]
    recall = sum(found) / len(found)
    return Prediction(question, answer, said, correct, keyframes, len(sequence.embeds), recall)


def score(correct: int, questions: int) -> dict[str, Any]:
    """Right answers as a share of the questions: questions, correct, accuracy, and Wilson's 95 % interval low, high."""
    low, high = wilson_interval(correct, questions)
    return {"questions": questions, "correct": correct, "accuracy": correct / questions, "low": low, "high": high}


def weights_fingerprint(model: str | os.PathLike[str]) -> str:
    """A text that changes when a checkpoint's configuration or any of its weights do."""
    digests = map(file_sha256, [Path(model) / "config.json", *sorted(Path(model).rglob("*.safetensors"))])
    return sha256(" ".join(digests).encode()).hexdigest()[:16]


@cache
def code_fingerprint() -> str:
    """A text that changes when the package's code does: finished work is not mixed with that of another version."""
    digest = sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(f"{path.relative_to(PACKAGE)} {path.stat().st_size} ".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def kept_result(file: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """What a file holds, or None if there is none.

    Raises:
        ValueError: it is of other settings, or damaged.
    """
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text())
        found = content["settings"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is not a result ({error}); delete it, or choose another folder") from error
    wanted = json.loads(json.dumps(settings))
    other = [f"{name} {found.get(name)}, not {value}" for name, value in wanted.items() if found.get(name) != value]
    if other:
        raise ValueError(f"{file} is of another evaluation ({'; '.join(other)}); delete it, or choose another folder")
    return content
