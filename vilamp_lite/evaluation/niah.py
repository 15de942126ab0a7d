"""VideoNIAH, needles in haystacks (the paper's Fig. 2), in TinyWorld.

A cell is a number of questions of one family, in haystacks of one length and at one depth, answered by one variant of
the model. Every variant gets the same questions in the same haystacks, so that variants can be compared in pairs; other
lengths, depths and families get others, so that cells can be pooled.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vilamp_lite.baselines.mergers import MERGERS, QFormerMerger, mixed_tokens
from vilamp_lite.baselines.peers import PEERS, peer_tokens, sampled_frames
from vilamp_lite.baselines.selectors import SELECTORS, choose_keyframes
from vilamp_lite.checkpoints import load_checkpoint, load_processor
from vilamp_lite.common.checks import choice, finite_number, positive_int
from vilamp_lite.common.hub import read_safetensors
from vilamp_lite.evaluation.results import Prediction, Row, make_prediction
from vilamp_lite.evaluation.scoring import answers_match, score
from vilamp_lite.generation import answer
from vilamp_lite.modeling import MixedPrecisionSequence, ViLaMPForConditionalGeneration
from vilamp_lite.tinyworld.bank import encode_scenes
from vilamp_lite.tinyworld.encoder import TinyWorldModel
from vilamp_lite.tinyworld.haystack import Haystack, hide, pool_scenes
from vilamp_lite.tinyworld.questions import FAMILIES, Question, sample_questions
from vilamp_lite.tinyworld.render import Scene

POOL = 3000  # scenes that all haystacks are made of: 24,000 frames, encoded once
_LONGEST_ANSWER = 6  # tokens; TinyWorld's longest answer has three words
# TinyWorld's models are so small that a prompt is read at once, which takes two thirds of the time of chunks.
_WHOLE = 1 << 20
_REMEMBERED = 16_384  # frames of needles, 60 MB


@dataclass(frozen=True)
class Cell:
    """One number of the figure.

    Attributes:
        frames: N, of every haystack.
        depth: of the first needle, from 0 to 1. A second one stands anywhere; more of them, a roll call's, are spread
            over the whole video, so that their depth is only a name.
        family: of the questions, a name in `FAMILIES`.
        selector: a name in `SELECTORS`.
        merger: a name in `MERGERS`; or in `PEERS`, whose models sample frames uniformly.
        questions: how many.
        budget: visual tokens at most: the video is sampled uniformly until it fits. None: every frame is seen.
    """

    frames: int
    depth: float
    family: str
    selector: str = "dks"
    merger: str = "dfm"
    questions: int = 50
    budget: int | None = None

    def __post_init__(self) -> None:
        """Check every field."""
        positive_int("frames", self.frames)
        positive_int("questions", self.questions)
        if not 0 <= finite_number("depth", self.depth) <= 1:
            raise ValueError(f"depth must lie from 0 to 1, got {self.depth}")
        choice("family", self.family, tuple(FAMILIES))
        choice("selector", self.selector, tuple(SELECTORS))
        choice("merger", self.merger, (*MERGERS, *PEERS))
        if self.budget is not None:
            positive_int("budget", self.budget)
        if self.merger in PEERS and (self.budget is None or self.selector != "uniform"):
            raise ValueError(f"{self.merger} needs a budget and the selector 'uniform'")

    @property
    def file_name(self) -> str:
        """Where a folder of results keeps it."""
        name = f"{self.frames}_{self.depth:g}_{self.family}_{self.selector}_{self.merger}"
        budget = "" if self.budget is None else f"_{self.budget}"
        return f"{name.replace(' ', '-')}{budget}.json"


@dataclass(frozen=True)
class CellResult:
    """A cell and its predictions."""

    cell: Cell
    predictions: list[Prediction]

    def as_json(self) -> Row:
        """The cell with its accuracy and Wilson's 95 % interval; a budget is named only where there is one."""
        about = {name: value for name, value in asdict(self.cell).items() if (name, value) != ("budget", None)}
        return about | score(sum(one.correct for one in self.predictions), len(self.predictions))


@dataclass(frozen=True)
class Evaluation:
    """The cells of one run, in the order asked for, and its stamp, see `make_stamp`."""

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
    budget: int | None = None,
) -> list[Cell]:
    """Every combination as a cell; questions and budget are the same in all."""
    axes = {"frames": frames, "depths": depths, "families": families, "selectors": selectors, "mergers": mergers}
    for name, values in axes.items():
        if not values or len(set(values)) != len(values):
            raise ValueError(f"{name} must be different values, at least one, got {list(values)}")
    return [Cell(*values, questions, budget) for values in itertools.product(*axes.values())]


def cell_haystacks(cell: Cell, seed: int, pool: int = POOL) -> list[Haystack]:
    """The questions of a cell in their haystacks, made of `pool` scenes; selector and merger make no difference."""
    start = _cell_seed(cell, seed)
    return [
        hide(question, cell.frames, cell.depth, start + number, "test", pool)
        for number, question in enumerate(cell_questions(cell, seed))
    ]


def _cell_seed(cell: Cell, seed: int) -> int:
    """A number for everything about a cell that its questions depend on."""
    parts = (seed, cell.frames, round(cell.depth * 1e6), list(FAMILIES).index(cell.family))
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])


def cell_questions(cell: Cell, seed: int) -> tuple[Question, ...]:
    """The questions of a cell, which must fit its length."""
    questions = _questions(cell.family, cell.questions, _cell_seed(cell, seed))
    longest = max(sum(needle.num_frames for needle in question.needles) for question in questions)
    if longest > cell.frames:
        raise ValueError(f"frames must be at least {longest} to hold the needles of a {cell.family}, got {cell.frames}")
    return questions


@lru_cache(maxsize=1024)
def _questions(family: str, count: int, seed: int) -> tuple[Question, ...]:
    return tuple(sample_questions(family, count, seed, "test"))


class SceneFeatures:
    """Features of TinyWorld scenes, made once: what long videos are put together of."""

    def __init__(self, encoder: TinyWorldModel, kept: Iterable[Scene], remembered: int = _REMEMBERED) -> None:
        """Start empty. Scenes in `kept` are never forgotten, others where they have more than `remembered` frames."""
        self._encoder, self._kept, self._remembered = encoder, frozenset(kept), remembered
        self._known: dict[Scene, tuple[torch.Tensor, torch.Tensor]] = {}

    def encode(self, scenes: Iterable[Scene]) -> None:
        """Make sure that these scenes are known."""
        others = [scene for scene in self._known if scene not in self._kept]
        if sum(scene.num_frames for scene in others) > self._remembered:
            for scene in others:
                del self._known[scene]
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
        directory: of the model.
        model: in evaluation mode.
        processor: its processor.
        seed: of the whole evaluation.
        pool: how many scenes haystacks are made of.
        features: of the scenes, made by the model's own encoder.
    """

    def __init__(
        self, directory: str | PathLike[str], seed: int = 0, pool: int = POOL, device: str | torch.device = "cpu"
    ) -> None:
        """Load the model, which must be one of TinyWorld's, with a single encoder."""
        self.directory, self.seed, self.pool = Path(directory), seed, pool
        self.model = load_checkpoint(directory).to(device)
        _require_one_encoder(self.model)
        self.processor = load_processor(directory, self.model.config)
        self.features = SceneFeatures(self.model.selector, pool_scenes(pool, "test"))

    def with_changes(self, *, temperature_factor: float = 1.0, **changes: Any) -> "Examiner":
        """An examiner of the same model with another configuration: no setting changes the scenes' features.

        Args:
            temperature_factor: of the learned α, which is no field of the configuration.
            changes: fields of the configuration, such as `max_keyframes`.
        """
        other = copy(self)
        other.__dict__.pop("qformer", None)
        other.model = load_checkpoint(self.directory, **changes).to(self.model.device)
        other.processor = load_processor(self.directory, other.model.config)
        other.model.merger.temperature.data *= finite_number("temperature_factor", temperature_factor, above=0)
        return other

    @cached_property
    def qformer(self) -> QFormerMerger:
        """The Q-Former that was trained beside the model."""
        return load_qformer(self.directory, self.model)

    @torch.inference_mode()
    def predictions(self, cell: Cell) -> Iterator[Prediction]:
        """Answer a cell's questions, one after another."""
        haystacks = cell_haystacks(cell, self.seed, self.pool)
        self.features.encode(scene for haystack in haystacks for scene in haystack.scenes)
        for haystack in haystacks:
            yield self._answer(haystack, cell)

    def _answer(self, haystack: Haystack, cell: Cell) -> Prediction:
        question, sequence = haystack.question, self.sequence(haystack, cell.selector, cell.merger, cell.budget)
        options = {"max_new_tokens": _LONGEST_ANSWER, "prefill_chunk_size": _WHOLE}
        said = answer(self.model, self.processor, question.text, sequence, **options).text
        right = answers_match(said, question.answer)
        return make_prediction(question.text, question.answer, said, right, sequence, haystack.needle_frames)

    @torch.inference_mode()
    def sequence(
        self, haystack: Haystack, selector: str, merger: str, budget: int | None = None
    ) -> MixedPrecisionSequence:
        """A haystack as the model reads it, by a cell's choices; its scenes must be known to `features`."""
        embeds, patches = self.features.of(haystack.scenes)
        query = self.model.embed_query(**self.processor.selector_query([haystack.question.text]))[0]
        patches = patches.to(self.model.device).to(query.dtype)
        if merger in PEERS:
            return peer_tokens(self.model, merger, patches, query, budget)
        seen = self._seen(len(embeds), budget)
        keyframes = choose_keyframes(self.model, embeds[seen], query.cpu(), selector)
        qformer = self.qformer if merger == "qformer" else None
        sequence = mixed_tokens(self.model, patches[seen], keyframes, query, merger, qformer)
        frame_of_token = torch.where(sequence.frame_of_token < 0, -1, seen[sequence.frame_of_token])
        return replace(sequence, keyframes=seen[sequence.keyframes], frame_of_token=frame_of_token)

    def _seen(self, num_frames: int, budget: int | None) -> torch.Tensor:
        """Numbers of the frames whose tokens fit the budget, all of them without one."""
        if budget is None:
            return torch.arange(num_frames)
        config = self.model.config
        spent = config.visual_tokens(config.max_keyframes, config.max_keyframes) - config.max_keyframes
        if budget - spent < config.max_keyframes:
            raise ValueError(
                f"budget must be at least {spent + config.max_keyframes} for {config.max_keyframes} keyframes, "
                f"got {budget}"
            )
        return sampled_frames(num_frames, budget - spent)


def _require_one_encoder(model: ViLaMPForConditionalGeneration) -> None:
    if not isinstance(model.selector, TinyWorldModel):
        kind = model.config.selector_config.model_type
        raise ValueError(f"VideoNIAH in TinyWorld needs TinyWorld's encoder, the model has a {kind}; try cases")
    theirs, ours = model.selector.vision.state_dict(), model.vision_tower.state_dict()
    if theirs.keys() != ours.keys() or not all(torch.equal(theirs[name], ours[name]) for name in ours):
        raise ValueError("the model's vision_tower and selector.vision must be the same: frames are encoded once")


def load_qformer(directory: Path, model: ViLaMPForConditionalGeneration) -> QFormerMerger:
    """Load the Q-Former that was trained beside a model, DIRECTORY/qformer/model.safetensors."""
    qformer = QFormerMerger(model.config.merge_size, model.config.query_size)
    try:
        qformer.load_state_dict(read_safetensors(qformer_file(directory).parent))
    except RuntimeError as error:
        raise ValueError(f"{qformer_file(directory)} does not fit the model ({error})") from error
    return qformer.to(model.device).eval()


def qformer_file(directory: Path) -> Path:
    """Where a checkpoint keeps its Q-Former."""
    file = directory / "qformer" / "model.safetensors"
    if not file.is_file():
        raise ValueError(
            f"the merger 'qformer' needs {file}, which `vilamp train miniature` writes; leave it out, or train one"
        )
    return file
