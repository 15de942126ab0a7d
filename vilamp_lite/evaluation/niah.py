"""VideoNIAH, needles in haystacks (the paper's Fig. 2): in TinyWorld, and on a user's own footage.

A cell is a number of questions of one family, in haystacks of one length and at one depth, answered by one variant of
the model. Every variant gets the same questions in the same haystacks, so that variants can be compared in pairs; other
lengths, depths and families get others, so that cells can be pooled.
"""

import itertools
import json
import multiprocessing
import os
import platform
import string
import subprocess
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import lru_cache
from hashlib import file_digest
from importlib.metadata import version
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from vilamp_lite.ablation import MERGER_NAMES, choose_keyframes, mixed_tokens
from vilamp_lite.checkpoints import load_checkpoint, load_config, load_processor, read_safetensors
from vilamp_lite.checks import choice, describe, finite_number, positive_int
from vilamp_lite.encoders import usable_device
from vilamp_lite.evaluation.scoring import answers_match, option_matches, wilson_interval
from vilamp_lite.keyframes import SELECTORS
from vilamp_lite.merging import QFormerMerger
from vilamp_lite.modeling import FrameProcessor, MixedPrecisionSequence, ViLaMPForConditionalGeneration
from vilamp_lite.processing import ViLaMPProcessor
from vilamp_lite.progress import progress_bar
from vilamp_lite.tinyworld.bank import encode_scenes
from vilamp_lite.tinyworld.encoder import TinyWorldModel
from vilamp_lite.tinyworld.haystack import Haystack, hide, pool_scenes
from vilamp_lite.tinyworld.questions import FAMILIES, Question, sample_questions
from vilamp_lite.tinyworld.render import Scene
from vilamp_lite.video import frames_at, stream_frames

POOL = 3000  # scenes that all haystacks are made of: 24,000 frames, encoded once
_ANSWER_TOKENS = 6  # TinyWorld's longest answer has three words
_CASE_TOKENS = 32
_FRAMES_AT_ONCE = 8  # of real footage, as in `encode_video`
_ROOT = Path(__file__).parents[2]


# --- Cells -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """One number of the figure.

    Attributes:
        frames: N, of every haystack.
        depth: of the first needle, from 0 to 1. A second one stands anywhere; more of them, a roll call's, are spread
            over the whole video, so that their depth is only a name.
        family: of the questions, a name in `FAMILIES`.
        selector: a name in `SELECTORS`.
        merger: a name in `MERGER_NAMES`.
        questions: how many.

    Raises:
        ValueError: a value out of range, or an unknown name.
    """

    frames: int
    depth: float
    family: str
    selector: str = "dks"
    merger: str = "dfm"
    questions: int = 50

    def __post_init__(self) -> None:
        """Check every field."""
        positive_int("frames", self.frames)
        positive_int("questions", self.questions)
        if not 0 <= finite_number("depth", self.depth) <= 1:
            raise ValueError(f"depth must lie from 0 to 1, got {self.depth}")
        choice("family", self.family, tuple(FAMILIES))
        choice("selector", self.selector, tuple(SELECTORS))
        choice("merger", self.merger, MERGER_NAMES)

    @property
    def file_name(self) -> str:
        """Where a folder of results keeps it."""
        name = f"{self.frames}_{self.depth:g}_{self.family}_{self.selector}_{self.merger}"
        return f"{name.replace(' ', '-')}.json"


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


@dataclass(frozen=True)
class CellResult:
    """A cell and its predictions."""

    cell: Cell
    predictions: list[Prediction]

    @property
    def correct(self) -> list[bool]:
        """Right or wrong, a question each: what `paired_sign_test` compares."""
        return [prediction.correct for prediction in self.predictions]

    def as_json(self) -> dict[str, Any]:
        """The cell with its accuracy and Wilson's 95 % interval: frames, depth, …, correct, accuracy, low, high."""
        return asdict(self.cell) | _accuracy(self.correct)


@dataclass(frozen=True)
class Evaluation:
    """The cells of one run, in the order asked for.

    Attributes:
        results: at least one.
        stamp: what a reader needs to run it again, see `make_stamp`.
    """

    results: list[CellResult]
    stamp: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """The cells, the mean of their accuracies, and the stamp."""
        cells = [result.as_json() for result in self.results]
        return {"cells": cells, "mean": sum(cell["accuracy"] for cell in cells) / len(cells), "stamp": self.stamp}


def grid(
    frames: Sequence[int],
    depths: Sequence[float],
    families: Sequence[str],
    selectors: Sequence[str] = ("dks",),
    mergers: Sequence[str] = ("dfm",),
    questions: int = 50,
) -> list[Cell]:
    """Every combination as a cell.

    Raises:
        ValueError: as `Cell`, or one of the lists is empty or names a value twice.
    """
    axes = {"frames": frames, "depths": depths, "families": families, "selectors": selectors, "mergers": mergers}
    for name, values in axes.items():
        if not values or len(set(values)) != len(values):
            raise ValueError(f"{name} must be different values, at least one, got {list(values)}")
    return [Cell(*values, questions=questions) for values in itertools.product(*axes.values())]


def cell_haystacks(cell: Cell, seed: int, pool: int = POOL) -> list[Haystack]:
    """The questions of a cell in their haystacks; selector and merger make no difference.

    Args:
        cell: which.
        seed: of the whole evaluation.
        pool: how many scenes haystacks are made of.

    Raises:
        ValueError: the frames can't hold the needles, or as `hide`.
    """
    start = _cell_seed(cell, seed)
    return [
        hide(question, cell.frames, cell.depth, start + number, "test", pool)
        for number, question in enumerate(_cell_questions(cell, seed))
    ]


def _cell_seed(cell: Cell, seed: int) -> int:
    """A number for everything about a cell that its questions depend on."""
    parts = (seed, cell.frames, round(cell.depth * 1e6), list(FAMILIES).index(cell.family))
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])


def _cell_questions(cell: Cell, seed: int) -> list[Question]:
    questions = sample_questions(cell.family, cell.questions, _cell_seed(cell, seed), "test")
    longest = max(sum(needle.num_frames for needle in question.needles) for question in questions)
    if longest > cell.frames:
        raise ValueError(f"frames must be at least {longest} to hold the needles of a {cell.family}, got {cell.frames}")
    return questions


def _accuracy(correct: Sequence[bool]) -> dict[str, Any]:
    low, high = wilson_interval(sum(correct), len(correct))
    return {"correct": sum(correct), "accuracy": sum(correct) / len(correct), "low": low, "high": high}


# --- Answering a cell ------------------------------------------------------------------------------------------------


class SceneFeatures:
    """Features of TinyWorld scenes, made once: what long videos are put together of."""

    def __init__(self, encoder: TinyWorldModel, kept: Iterable[Scene]) -> None:
        """Start empty.

        Args:
            encoder: TinyWorld's.
            kept: scenes that are worth keeping; all others are forgotten by the next `encode`.
        """
        self._encoder = encoder
        self._kept = frozenset(kept)
        self._known: dict[Scene, tuple[torch.Tensor, torch.Tensor]] = {}

    def encode(self, scenes: Iterable[Scene]) -> None:
        """Make sure that these scenes are known."""
        self._known = {scene: features for scene, features in self._known.items() if scene in self._kept}
        new = [scene for scene in dict.fromkeys(scenes) if scene not in self._known]
        if not new:
            return
        embeds, patches = encode_scenes(self._encoder, new)
        lengths = [scene.num_frames for scene in new]
        for scene, *features in zip(new, embeds.split(lengths), patches.half().split(lengths), strict=True):
            # Copies, or a scene that is kept would keep all that were encoded with it.
            self._known[scene] = features[0].clone(), features[1].clone()

    def of(self, scenes: Iterable[Scene]) -> tuple[torch.Tensor, torch.Tensor]:
        """The features of a video made of encoded scenes: unit vectors [N, D], and patches float16 [N, 16, D_v]."""
        embeds, patches = zip(*(self._known[scene] for scene in scenes), strict=True)
        return torch.cat(embeds), torch.cat(patches)


class Examiner:
    """Puts cells' questions to one TinyWorld model.

    Attributes:
        model: in evaluation mode.
        processor: its processor.
        seed: of the whole evaluation.
        pool: how many scenes haystacks are made of.
        qformer: for the merger of this name.
        features: of the scenes, made by the model's own encoder.
    """

    def __init__(
        self,
        model: ViLaMPForConditionalGeneration,
        processor: ViLaMPProcessor,
        seed: int = 0,
        pool: int = POOL,
        qformer: QFormerMerger | None = None,
    ) -> None:
        """Check that the model is one of TinyWorld's.

        Raises:
            ValueError: it has another encoder, or two different ones.
        """
        if not isinstance(model.selector, TinyWorldModel):
            kind = model.config.selector_config.model_type
            raise ValueError(f"VideoNIAH in TinyWorld needs TinyWorld's encoder, the model has a {kind}; try cases")
        theirs, ours = model.selector.vision.state_dict(), model.vision_tower.state_dict()
        if theirs.keys() != ours.keys() or not all(torch.equal(theirs[name], ours[name]) for name in ours):
            raise ValueError("the model's vision_tower and selector.vision must be the same: frames are encoded once")
        self.model, self.processor, self.seed, self.pool, self.qformer = model, processor, seed, pool, qformer
        self.features = SceneFeatures(model.selector, pool_scenes(pool, "test"))

    @torch.inference_mode()
    def predictions(self, cell: Cell) -> Iterator[Prediction]:
        """Answer a cell's questions, one after another.

        Raises:
            ValueError: as `cell_haystacks` and `mixed_tokens`.
        """
        haystacks = cell_haystacks(cell, self.seed, self.pool)
        self.features.encode(scene for haystack in haystacks for scene in haystack.scenes)
        for haystack in haystacks:
            yield self._answer(haystack, cell.selector, cell.merger)

    def _answer(self, haystack: Haystack, selector: str, merger: str) -> Prediction:
        model, question = self.model, haystack.question
        embeds, patches = self.features.of(haystack.scenes)
        query = model.embed_query(**self.processor.selector_query([question.text]))[0]
        keyframes = choose_keyframes(model, embeds, query.cpu(), selector)
        patches = patches.to(model.device).to(query.dtype)
        sequence = mixed_tokens(model, patches, keyframes, query, merger, self.qformer)
        said = _generate(model, self.processor, question.text, sequence, _ANSWER_TOKENS)
        right = answers_match(said, question.answer)
        return _prediction(question.text, question.answer, said, right, sequence, haystack.needle_frames)


def load_qformer(directory: Path, model: ViLaMPForConditionalGeneration) -> QFormerMerger:
    """Load the Q-Former that was trained beside a model, DIRECTORY/qformer/model.safetensors.

    Raises:
        ValueError: there is none, or it is another model's.
    """
    qformer = QFormerMerger(model.config.merge_size, model.config.query_size)
    try:
        qformer.load_state_dict(read_safetensors(_qformer_file(directory).parent))
    except RuntimeError as error:
        raise ValueError(f"{_qformer_file(directory)} does not fit the model ({error})") from error
    return qformer.to(model.device).eval()


def _qformer_file(directory: Path) -> Path:
    file = directory / "qformer" / "model.safetensors"
    if not file.is_file():
        raise ValueError(f"the merger 'qformer' needs {file}, which `vilamp train` writes; leave it out, or train one")
    return file


def _generate(
    model: ViLaMPForConditionalGeneration,
    processor: ViLaMPProcessor,
    prompt: str,
    sequence: MixedPrecisionSequence,
    max_new_tokens: int,
) -> str:
    tokens = model.generate(
        **processor.prompts([prompt]), video_embeds=[sequence.embeds], max_new_tokens=max_new_tokens, do_sample=False
    )
    return processor.batch_decode(tokens)[0].strip()


def _prediction(
    question: str,
    answer: str,
    said: str,
    correct: bool,
    sequence: MixedPrecisionSequence,
    needle_frames: Sequence[tuple[int, int]],
) -> Prediction:
    keyframes = sequence.keyframes.tolist()
    found = [any(start <= frame < stop for frame in keyframes) for start, stop in needle_frames]
    recall = sum(found) / len(found)
    return Prediction(question, answer, said, correct, keyframes, len(sequence.embeds), recall)


# --- Many cells: kept on disk, spread over processes -----------------------------------------------------------------


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
            `out` that is of another model or other settings.
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
    stamp = make_stamp(run.model, seed, pool=pool, changes=dict(run.changes), device=run.device)
    files = {cell: Path(out) / cell.file_name for cell in cells} if out is not None else {}
    weights = {merger: _fingerprint(run.model, merger) for merger in {cell.merger for cell in files}}
    common = {"seed": seed, "pool": pool, "changes": dict(run.changes)}
    settings = {cell: asdict(cell) | common | {"weights": weights[cell.merger]} for cell in files}
    results = {}
    for cell, file in files.items():
        if (kept := _kept(file, settings[cell])) is not None:
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
                _keep(files[cell], content)
    return Evaluation([CellResult(cell, results[cell]) for cell in cells], stamp)


def make_stamp(model: Path, seed: int | None = None, **settings: Any) -> dict[str, Any]:
    """What a reader needs to run it again: model, seed, settings, commit, versions and hardware."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=_ROOT, capture_output=True, text=True, check=False)
    return {
        "model": str(model),
        "seed": seed,
        **settings,
        "commit": commit.stdout.strip() or None,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("vilamp-lite", "torch", "transformers", "av", "numpy")},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def _check(run: _Run, cells: Sequence[Cell], processes: int) -> None:
    """Refuse what can be refused before a model is loaded."""
    positive_int("processes", processes)
    if not isinstance(run.seed, int) or run.seed < 0:
        raise ValueError(f"seed must be a whole number of at least 0, got {describe(run.seed)}")
    if not cells or len(set(cells)) != len(cells):
        raise ValueError(f"cells must be different ones, at least one, got {len(cells)}")
    load_config(run.model, **dict(run.changes))
    if run.needs_qformer:
        _qformer_file(run.model)
    for cell in cells:
        _cell_questions(cell, run.seed)


def _fingerprint(model: Path, merger: str = "dfm") -> str:
    """A number that changes when a checkpoint's configuration or weights do."""
    files = [model / "config.json", *sorted(model.glob("*.safetensors"))]
    digests = []
    for path in [*files, _qformer_file(model)] if merger == "qformer" else files:
        with path.open("rb") as file:
            digests.append(file_digest(file, "sha256").hexdigest()[:16])
    return " ".join(digests)


def _kept(file: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
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


def _keep(file: Path, content: dict[str, Any]) -> None:
    """Write a file whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    waiting = file.with_suffix(f".{os.getpid()}")
    waiting.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    os.replace(waiting, file)


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


# --- A user's own footage --------------------------------------------------------------------------------------------


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

    haystack: Path
    needle: Path
    depth: float
    question: str
    options: tuple[str, ...]
    answer: str

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            ValueError: a value of another kind or out of range, a file that is not there, or an answer that is not
                among the options.
        """
        for name in ("haystack", "needle"):
            if not getattr(self, name).is_file():
                raise ValueError(f"{name}: there is no file {getattr(self, name)}")
        if not 0 <= finite_number("depth", self.depth) <= 1:
            raise ValueError(f"depth must lie from 0 to 1, got {self.depth}")
        for name in ("question", "answer"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"{name} must be a non-empty string, got {describe(value)}")
        if len(set(self.options)) != len(self.options) or len(self.options) > len(string.ascii_uppercase):
            raise ValueError(f"options must be at most {len(string.ascii_uppercase)} different ones")
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
        ValueError: no such file, not such a list, or as `Case`; the message says which case.
    """
    try:
        records = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"can't read {path} as a list of cases: {error}") from error
    if not isinstance(records, list) or not records:
        raise ValueError(f"{path} must hold a list of cases, got {type(records).__name__}")
    names = set(Case.__dataclass_fields__)
    cases = []
    for number, record in enumerate(records):
        if not isinstance(record, dict) or set(record) != names:
            raise ValueError(f"{path}, case {number}: must have exactly the fields {', '.join(sorted(names))}")
        options = record["options"]
        if not isinstance(options, list) or not all(isinstance(option, str) and option.strip() for option in options):
            raise ValueError(f"{path}, case {number}: options must be a list of strings")
        try:
            videos = {name: Path(path).parent / record[name] for name in ("haystack", "needle")}
            cases.append(Case(**record | videos | {"options": tuple(options)}))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}, case {number}: {error}") from error
    return cases


@dataclass(frozen=True)
class Splice:
    """A needle inside a haystack, frame by frame; nothing is written or held but a batch.

    Attributes:
        haystack: a video file.
        needle: a video file.
        fps: frames sampled per second of both.
        place: the needle's first frame in the whole.
        needle_frames: how many it has.
        num_frames: N, of the whole.
    """

    haystack: Path
    needle: Path
    fps: float
    place: int
    needle_frames: int
    num_frames: int

    @classmethod
    def of(cls, case: Case, fps: float) -> "Splice":
        """Plan the splice of a case.

        Raises:
            VideoError: a file can't be read.
        """
        hay, needle = (stream_frames(path, fps=fps).num_frames for path in (case.haystack, case.needle))
        return cls(case.haystack, case.needle, fps, round(case.depth * hay), needle, hay + needle)

    def batches(self, batch_size: int = _FRAMES_AT_ONCE) -> Iterator[np.ndarray]:
        """Yield the frames in order, uint8 [B, H, W, 3]; haystack and needle never share a batch.

        Raises:
            VideoError: a file can't be read, or not to its end.
        """
        left = self.place  # haystack frames before the needle
        for frames, _, _ in stream_frames(self.haystack, fps=self.fps, batch_size=batch_size):
            if 0 <= left < len(frames):
                yield from (part for part in (frames[:left],) if len(part))
                yield from self._needle_batches(batch_size)
                yield frames[left:]
            else:
                yield frames
            left -= len(frames)
        if left == 0:
            yield from self._needle_batches(batch_size)

    def frame(self, number: int) -> np.ndarray:
        """One frame, uint8 [1, H, W, 3]."""
        in_needle = number - self.place
        if 0 <= in_needle < self.needle_frames:
            return frames_at(self.needle, [in_needle], fps=self.fps)
        return frames_at(self.haystack, [number if in_needle < 0 else number - self.needle_frames], fps=self.fps)

    def _needle_batches(self, batch_size: int) -> Iterator[np.ndarray]:
        return (batch.frames for batch in stream_frames(self.needle, fps=self.fps, batch_size=batch_size))


@torch.inference_mode()
def encode_splice(
    model: ViLaMPForConditionalGeneration, splice: Splice, query: str, processor: FrameProcessor
) -> MixedPrecisionSequence:
    """Stream a splice into its mixed-precision sequence, in two passes, as `encode_video` does with a file.

    Memory: one batch of frames, one selector embedding per frame, the patches of reference frames, and the tokens.

    Args:
        model: any.
        splice: needle and haystack.
        query: what the keyframes should be relevant to; the bare question.
        processor: makes pixels and query tokens.

    Raises:
        ValueError: no frame is a keyframe.
        VideoError: a file can't be read, or not to its end.
    """
    query_embed = model.embed_query(**processor.selector_query([query]))[0]
    embeds = []
    with progress_bar(2 * splice.num_frames, "frames", "decode, encode") as bar:

        def watched() -> Iterator[np.ndarray]:
            for frames in splice.batches():
                yield frames
                bar.update(len(frames))

        for frames in watched():
            embeds.append(model.embed_frames(processor.selector_pixels(frames)).cpu())
        keyframes = model.select(torch.cat(embeds), query_embed.cpu()).indices
        read_ahead = {
            frame: model.patch_features(processor.vision_pixels(splice.frame(frame)))[0]
            for frame in model.early_references(splice.num_frames, keyframes)
        }
        patches = (model.patch_features(processor.vision_pixels(frames)) for frames in watched())
        return model.mix_tokens(patches, splice.num_frames, keyframes, query_embed, read_ahead)


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
            model or case.
        VideoError: a video can't be read.
    """
    if not cases:
        raise ValueError("cases must be at least one")
    directory, place = Path(model), str(usable_device(device))
    config = load_config(directory)
    processor = load_processor(directory, config)
    splices = [Splice.of(case, config.fps) for case in cases]
    for case, splice in zip(cases, splices, strict=True):
        prompt_tokens = processor.prompts([case.prompt])["input_ids"].shape[1] - 1
        config.require_room(splice.num_frames, prompt_tokens, _CASE_TOKENS)
    stamp = make_stamp(directory, device=place)
    weights = None if out is None else _fingerprint(directory)
    loaded = None
    predictions = []
    with progress_bar(len(cases), "cases", "niah") as bar:
        for number, (case, splice) in enumerate(zip(cases, splices, strict=True)):
            settings = {name: str(value) for name, value in asdict(case).items()} | {"weights": weights}
            file = None if out is None else Path(out) / f"case_{number}.json"
            kept = None if file is None else _kept(file, settings)
            if kept is None:
                loaded = loaded or load_checkpoint(directory).to(place)
                prediction = asdict(_answer_case(loaded, processor, case, splice))
                kept = {"settings": settings, "prediction": prediction, "stamp": stamp}
                if file is not None:
                    _keep(file, kept)
            predictions.append(kept["prediction"])
            bar.update(1)
    correct = [prediction["correct"] for prediction in predictions]
    return {"questions": len(cases), **_accuracy(correct), "predictions": predictions, "stamp": stamp}


@torch.inference_mode()
def _answer_case(
    model: ViLaMPForConditionalGeneration, processor: ViLaMPProcessor, case: Case, splice: Splice
) -> Prediction:
    sequence = encode_splice(model, splice, case.question, processor)
    said = _generate(model, processor, case.prompt, sequence, _CASE_TOKENS)
    needle = (splice.place, splice.place + splice.needle_frames)
    return _prediction(case.question, case.answer, said, case.is_correct(said), sequence, [needle])
