"""VideoNIAH on a user's own footage: a needle video hidden in a haystack video, answered by any checkpoint."""

import os
import string
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import ConfigDict, Field

from vilamp_lite.checkpoints import Checkpoint
from vilamp_lite.common.files import write_json
from vilamp_lite.common.fingerprints import code_fingerprint, file_sha256, weights_fingerprint
from vilamp_lite.common.hub import usable_device
from vilamp_lite.common.outside import File, Text, checked_json
from vilamp_lite.common.progress import progress_bar
from vilamp_lite.common.stamp import make_stamp
from vilamp_lite.evaluation.results import Prediction, kept_result, make_prediction
from vilamp_lite.evaluation.scoring import answers_match, option_matches, require_distinct, score
from vilamp_lite.generation import answer
from vilamp_lite.modeling import ViLaMPForConditionalGeneration
from vilamp_lite.processing import ViLaMPProcessor
from vilamp_lite.video.ahead import ClosableIterator
from vilamp_lite.video.source import FrameBatch, SampledVideo

_LONGEST_ANSWER = 32  # tokens
_CASES = "a case has haystack, needle, depth, question, options (a list, empty for an open question) and answer"


@dataclass(frozen=True)
class Case:
    """A needle in a haystack of real footage.

    Attributes:
        haystack: a video file.
        needle: a video file, shown whole inside the haystack.
        depth: where, from 0, before it, to 1, after it.
        question: what is asked.
        options: lettered choices; empty for an open question.
        answer: one of them.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    haystack: File
    needle: File
    depth: Annotated[float, Field(ge=0, le=1)]
    question: Text
    options: Annotated[tuple[Text, ...], Field(max_length=len(string.ascii_uppercase))]
    answer: Text

    def __post_init__(self) -> None:
        """Refuse options that can't be told apart, and an answer that is not among them."""
        require_distinct(self.options)
        if self.options and self.answer not in self.options:
            raise ValueError(f"answer must be one of the options {', '.join(self.options)}, got {self.answer!r}")

    @property
    def prompt(self) -> str:
        """The question with its lettered options, as multiple-choice benchmarks put it."""
        if not self.options:
            return self.question
        lines = [f"{letter}. {option}" for letter, option in zip(string.ascii_uppercase, self.options, strict=False)]
        return "\n".join([self.question, *lines, "Answer with the option's letter from the given choices directly."])

    def is_correct(self, prediction: str) -> bool:
        """Tell whether a prediction names the right option, or gives the answer where there are no options."""
        if self.options:
            return option_matches(prediction, self.options, self.answer)
        return answers_match(prediction, self.answer)


def load_cases(path: str | os.PathLike[str]) -> list[Case]:
    """Read a user's own needles and haystacks.

    Args:
        path: JSON, a list of {haystack, needle, depth, question, options, answer}; paths of videos are relative to it.

    Raises:
        ValueError: no such file, or not such a list; the message names the case, counted from 0, and the field.
    """
    path = Path(path)
    try:
        text = path.read_text("utf-8-sig")  # editors on Windows begin a file with a mark of its encoding
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"can't read {path} as a list of cases: {error}") from error
    cases = Annotated[list[Case], Field(min_length=1)]
    return checked_json(cases, text, f"{path}, case", remedy=_CASES, folder=path.parent)


@dataclass(frozen=True)
class Splice:
    """A needle inside a haystack, a source of frames like either of them; nothing is written, or held but a batch.

    Attributes:
        haystack: the long video.
        needle: the video that is shown whole inside it.
        place: the needle's first frame in the whole.
        fps: frames sampled per second of both.
    """

    haystack: SampledVideo
    needle: SampledVideo
    place: int
    fps: float

    @classmethod
    def of(cls, case: Case, fps: float) -> "Splice":
        """Plan the splice of a case.

        Raises:
            VideoError: a file can't be read.
        """
        haystack, needle = (SampledVideo(path, fps=fps) for path in (case.haystack, case.needle))
        return cls(haystack, needle, round(case.depth * haystack.num_frames), fps)

    @property
    def num_frames(self) -> int:
        """N, of the whole."""
        return self.haystack.num_frames + self.needle.num_frames

    def batches(self, batch_size: int) -> ClosableIterator[FrameBatch]:
        """All frames in order; haystack and needle, whose sizes may differ, never share a batch."""
        start = 0
        for frames in self._parts(batch_size):
            numbers = np.arange(start, start := start + len(frames))
            yield FrameBatch(frames, numbers, numbers / self.fps)

    def at(self, samples: Sequence[int]) -> np.ndarray:
        """A few frames of one size, uint8 [len(samples), H, W, 3]."""
        return np.concatenate([self._frame(number) for number in samples])

    def _parts(self, batch_size: int) -> Iterator[np.ndarray]:
        start = 0
        for frames, _, _ in self.haystack.batches(batch_size):
            stop = start + len(frames)
            if start <= self.place < stop:
                before, frames = np.split(frames, [self.place - start])
                if len(before):
                    yield before
                yield from (batch.frames for batch in self.needle.batches(batch_size))
            yield frames
            start = stop
        if start == self.place:
            yield from (batch.frames for batch in self.needle.batches(batch_size))

    def _frame(self, number: int) -> np.ndarray:
        in_needle = number - self.place
        if 0 <= in_needle < self.needle.num_frames:
            return self.needle.at([in_needle])
        return self.haystack.at([number if in_needle < 0 else number - self.needle.num_frames])


def evaluate_cases(
    model: str | os.PathLike[str],
    cases: Sequence[Case],
    *,
    out: str | os.PathLike[str] | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """Answer a user's own cases with any checkpoint, as it is configured.

    Args:
        model: a checkpoint directory, ours or in the authors' format.
        cases: from `load_cases`.
        out: a folder that keeps each finished case in a file; those in it are not run again.
        device: where the model runs; a GPU if there is any when left out.

    Returns:
        questions, correct, accuracy, low, high, predictions (a `Prediction`'s fields each) and stamp.

    Raises:
        ValueError: no cases, bad settings, a video that does not fit the context, or a file in `out` that is of another
            model, case, video or version of this package.
        VideoError: a video can't be read.
    """
    if not cases:
        raise ValueError("cases must be at least one")
    directory, place = Path(model), str(usable_device(device))
    checkpoint = Checkpoint(directory)
    config, processor = checkpoint.config, checkpoint.processor
    splices = [Splice.of(case, config.fps) for case in cases]
    for case, splice in zip(cases, splices, strict=True):
        prompt_tokens = processor.prompts([case.prompt])["input_ids"].shape[1] - 1
        config.require_room(splice.num_frames, prompt_tokens, _LONGEST_ANSWER)
    stamp = make_stamp(model=str(directory), device=place)
    same = {} if out is None else {"weights": weights_fingerprint(directory), "code": code_fingerprint()}
    digest = cache(file_sha256)  # many cases may share a haystack
    loaded = None
    predictions = []
    with progress_bar(len(cases), "cases", "niah") as bar:
        for number, (case, splice) in enumerate(zip(cases, splices, strict=True)):
            file = None if out is None else Path(out) / f"case_{number}.json"
            settings = {name: str(value) for name, value in asdict(case).items()} | same
            if file is not None:
                settings |= {"haystack_sha256": digest(case.haystack), "needle_sha256": digest(case.needle)}
            kept = None if file is None else kept_result(file, settings, "prediction", Prediction)
            if kept is None:
                loaded = loaded or checkpoint.load(place)
                kept = _answer_case(loaded, processor, case, splice)
                if file is not None:
                    write_json(file, {"settings": settings, "prediction": asdict(kept), "stamp": stamp})
            predictions.append(asdict(kept))
            bar.update(1)
    correct = sum(prediction["correct"] for prediction in predictions)
    return {**score(correct, len(cases)), "predictions": predictions, "stamp": stamp}


@torch.inference_mode()
def _answer_case(
    model: ViLaMPForConditionalGeneration, processor: ViLaMPProcessor, case: Case, splice: Splice
) -> Prediction:
    sequence = model.encode_video(splice, case.question, processor)
    said = answer(model, processor, case.prompt, sequence, max_new_tokens=_LONGEST_ANSWER).text
    needle = (splice.place, splice.place + splice.needle.num_frames)
    return make_prediction(case.question, case.answer, said, case.is_correct(said), sequence, [needle])
