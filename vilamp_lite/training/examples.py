"""Scenes, questions and conversations that the miniature's stages train on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from vilamp_lite.common.hub import IGNORED
from vilamp_lite.modeling import MixedPrecisionSequence, ViLaMPForConditionalGeneration
from vilamp_lite.tinyworld.bank import SceneBank
from vilamp_lite.tinyworld.miniature import miniature_processor
from vilamp_lite.tinyworld.questions import FAMILIES, SCENE_FRAMES
from vilamp_lite.tinyworld.render import COLORS, SHAPES, Scene
from vilamp_lite.training.loop import Task

COLOR_NAMES = tuple(COLORS)
_ROWS_AT_ONCE = 8  # conversations that the language model reads at a time


def describe_scenes(scenes: Sequence[Scene]) -> tuple[np.ndarray, np.ndarray]:
    """Say what scenes show, and where.

    Returns:
        int8 [S, 10, 8], how many things of each shape and color; int8 [S, 16, 2], numbers of shape and color in each
        cell, −1 for nothing.
    """
    shown = np.zeros((len(scenes), len(SHAPES), len(COLOR_NAMES)), np.int8)
    cells = np.full((len(scenes), 16, 2), -1, np.int8)
    for number, scene in enumerate(scenes):
        for thing in scene.things:
            shape, color = SHAPES.index(thing.shape), COLOR_NAMES.index(thing.color)
            shown[number, shape, color] += 1
            cells[number, thing.cell] = shape, color
    return shown, cells


@dataclass(frozen=True)
class Example:
    """A question and a video in a bank's frames.

    Attributes:
        question: what is asked.
        answer: what is right.
        frames: int64 [N], numbers of frames in the bank.
        needle: bool [N], which of them belong to needles.
        scene: int64 [N], which of the video's scenes each belongs to.
    """

    question: str
    answer: str
    frames: np.ndarray
    needle: np.ndarray
    scene: np.ndarray


class Examples:
    """Draws questions whose needles and haystacks are scenes of a bank, as `tinyworld.haystack` does with new ones."""

    def __init__(self, bank: SceneBank) -> None:
        """Find out which scenes can serve as what."""
        self.bank = bank
        shown, cells = describe_scenes(bank.scenes)
        self.shown, self.cells = shown, cells
        by_shape = shown.sum(axis=2)
        random, pair = np.arange(len(shown)) < bank.num_random, np.arange(len(shown)) >= bank.num_random
        self.without = [np.flatnonzero(random & (by_shape[:, shape] == 0)) for shape in range(len(SHAPES))]
        self.single = [
            [np.flatnonzero(random & (by_shape[:, shape] == 1) & (shown[:, shape, color] == 1)) for color in range(8)]
            for shape in range(len(SHAPES))
        ]
        self.pairs = [
            [np.flatnonzero(pair & (by_shape[:, one] == 1) & (by_shape[:, other] == 1)) for other in range(len(SHAPES))]
            for one in range(len(SHAPES))
        ]
        shapes = range(len(SHAPES))
        singles = [pool for pools in self.single for pool in pools]
        pairs = [self.pairs[one][other] for one in shapes for other in shapes if one != other]
        for pool in (*self.without, *singles, *pairs):
            if bank.lengths[pool].max(initial=0) < 2 * SCENE_FRAMES[0]:
                raise ValueError(
                    f"{bank.num_random} random scenes and {len(bank.scenes) - bank.num_random} pairs can't serve every "
                    "question: take a larger bank"
                )

    def draw(self, random: np.random.Generator, family: str, num_frames: int) -> Example:
        """Draw a question of a family, and a video of `num_frames` frames in which its needles are hidden."""
        shape = int(random.integers(len(SHAPES)))
        options = FAMILIES[family].options(SHAPES[shape])
        answer = options[random.integers(len(options))]
        needles = self._needles(random, family, shape, answer)
        scenes, lengths = (np.array(column) for column in zip(*needles, strict=True))
        left = num_frames - int(lengths.sum())
        if left < 0:
            raise ValueError(f"{num_frames} frames can't hold the needles of {num_frames - left}")
        hay = random.choice(self.without[shape], left // SCENE_FRAMES[0] + 1)
        hay_lengths = np.diff(np.minimum(np.cumsum(self.bank.lengths[hay]), left), prepend=0)
        hay, hay_lengths = hay[hay_lengths > 0], hay_lengths[hay_lengths > 0]
        place = np.sort(random.integers(0, len(hay) + 1, len(scenes)))
        is_needle = np.insert(np.zeros(len(hay), bool), place, True)
        lengths = np.insert(hay_lengths, place, lengths)
        first = self.bank.first_frame[np.insert(hay, place, scenes)]
        start = np.cumsum(lengths) - lengths
        frames = np.repeat(first - start, lengths) + np.arange(num_frames)
        number = np.repeat(np.arange(len(lengths)), lengths)
        text = FAMILIES[family].text.format(shape=SHAPES[shape])
        return Example(text, answer, frames, is_needle[number], number)

    def _needles(self, random: np.random.Generator, family: str, shape: int, answer: str) -> list[tuple[int, int]]:
        """Scenes that give the answer, and how many of their frames are shown, in random order."""
        if family in ("companion", "two companions"):
            wanted = [SHAPES.index(word) for word in answer.split(" and ")]
            pools = [self.pairs[shape][other] for other in wanted]
        elif family == "roll call":
            shown = [
                color for color in range(8) if color != COLOR_NAMES.index(answer) for _ in range(random.integers(2, 4))
            ]
            pools = [self.single[shape][color] for color in shown]
        else:
            pools = [self.single[shape][COLOR_NAMES.index(word)] for word in answer.split(" and ")]
        least = 2 * SCENE_FRAMES[0] if family.startswith("two") else SCENE_FRAMES[0]
        scenes = []
        for pool in pools:
            long_enough = pool[self.bank.lengths[pool] >= least]
            scenes.append(int(random.choice(long_enough)))
        random.shuffle(scenes)
        return [(scene, least if family == "roll call" else int(self.bank.lengths[scene])) for scene in scenes]


def questions_about(
    shown: np.ndarray, random: np.random.Generator, count: int, most_easy: int | None = None
) -> list[tuple[str, str]]:
    """Draw questions that a few frames of different scenes answer, with their answers.

    Args:
        shown: [F, 10, 8], how many things of each shape and color each frame shows.
        random: draws among all the questions there are.
        count: at most so many.
        most_easy: at most so many of them that one thing or one frame answers (attribute, companion); any number when
            left out.
    """
    found = []
    by_shape = shown.sum(axis=2)
    size = by_shape.sum(axis=1)
    for shape, name in enumerate(SHAPES):
        frames = np.flatnonzero(by_shape[:, shape])
        if not len(frames) or by_shape[frames, shape].max() > 1:
            continue
        has = shown[:, shape].any(axis=0)
        seen = [color for color, there in zip(COLOR_NAMES, has, strict=True) if there]
        if len(seen) == 1:
            found.append(("attribute", name, seen[0]))
        elif len(seen) == 2:
            found.append(("two needles", name, " and ".join(seen)))
        elif len(seen) == len(COLOR_NAMES) - 1:
            found.append(("roll call", name, COLOR_NAMES[int(has.argmin())]))
        if (size[frames] == 2).all():
            others = sorted(
                int(other) for frame in frames for other in np.flatnonzero(by_shape[frame]) if other != shape
            )
            if len(others) == 1:
                found.append(("companion", name, SHAPES[others[0]]))
            elif len(others) == 2 and others[0] != others[1]:
                found.append(("two companions", name, f"{SHAPES[others[0]]} and {SHAPES[others[1]]}"))
    # There are many more of the easy questions, and most of them about one color: these come last.
    order = random.permutation(len(found))
    easy = [number for number in order if found[number][0] in ("attribute", "companion")][:most_easy]
    easy.sort(key=lambda number: found[number][0] == "attribute")
    chosen = ([number for number in order if found[number][0] not in ("attribute", "companion")] + easy)[:count]
    random.shuffle(chosen)
    return [(FAMILIES[found[i][0]].text.format(shape=found[i][1]), found[i][2]) for i in chosen]


class MiniatureTask(Task):
    """What the three stages after the dual encoder share: the model, its bank, and questions as tokens."""

    def __init__(self, model: ViLaMPForConditionalGeneration, examples: Examples) -> None:
        """Encode every question once; nothing of the model is trainable yet."""
        super().__init__()
        self.model = model.requires_grad_(False)
        self.examples = examples
        self.processor = miniature_processor(model)
        texts = [family.text.format(shape=shape) for family in FAMILIES.values() for shape in SHAPES]
        with torch.no_grad():
            embeds = model.embed_query(**self.processor.selector_query(texts))
        self.query_embeds = dict(zip(texts, embeds, strict=True))
        words = self.processor.tokenizer.convert_tokens_to_ids
        self.shape_words, self.color_words = words(list(SHAPES)), words(list(COLOR_NAMES))

    def patches(self, frames: np.ndarray) -> torch.Tensor:
        """The bank's patches of some frames, [B, 16, D_v]."""
        return self.examples.bank.patches[torch.from_numpy(frames)].to(self.model.device, torch.float32)

    def conversation(self, turns: Sequence[tuple[str, str]]) -> tuple[list[int], list[int]]:
        """Questions and answers in the chat format as tokens, and labels that supervise answers and early answers.

        An early answer is given at the question's end: the shape in it should say the first word already, and the
        question mark the second of two. So looking up is learned apart from speaking, and both at once.
        """
        ids, labels = [], []
        for number, (question, answer) in enumerate(turns):
            prompt = self._prompt(question)
            # Later turns have neither system prompt nor video.
            asked = prompt if number == 0 else prompt[prompt.index(self.model.config.video_token_id) + 1 :]
            reply = self._words(answer)
            ids += asked + reply
            labels += [IGNORED] * len(asked) + reply
            shape = next(place for place, word in enumerate(asked) if word in self.shape_words)
            after = shape + 1 - len(asked) - len(reply)
            words = reply[:-1:2]  # "red", or "red and blue", then the end
            labels[after : after + len(words)] = words
        return ids, labels

    @cache  # noqa: B019 (lives as long as the stage)
    def _prompt(self, question: str) -> list[int]:
        return self.processor.prompts([question])["input_ids"][0].tolist()

    @cache  # noqa: B019
    def _words(self, answer: str) -> list[int]:
        return self.processor.tokenizer(answer, add_special_tokens=False)["input_ids"] + [
            self.processor.tokenizer.eos_token_id
        ]

    def answer_loss(
        self,
        conversations: Sequence[tuple[list[int], list[int]]],
        videos: Sequence[MixedPrecisionSequence],
        steps: np.ndarray | None = None,
    ) -> tuple[torch.Tensor, float]:
        """The language model's loss on the answers, and the share of supervised tokens that it gets right.

        Args:
            conversations: B, as `conversation` makes them.
            videos: B.
            steps: [B], how far each token of a video moves the position; as configured when left out.
        """
        tokens = [len(ids) + len(video.embeds) for (ids, _), video in zip(conversations, videos, strict=True)]
        order = np.argsort(tokens, kind="stable")
        losses, hits = [], []
        # Rows of like length are read together: padding costs as much time as tokens.
        for rows in np.array_split(order, math.ceil(len(order) / _ROWS_AT_ONCE)):
            own_steps = None if steps is None else steps[rows]
            loss, right = self._read([conversations[row] for row in rows], [videos[row] for row in rows], own_steps)
            losses.append(loss)
            hits.append(right)
        return torch.cat(losses).mean(), float(torch.cat(hits).float().mean())

    def _read(
        self,
        conversations: Sequence[tuple[list[int], list[int]]],
        videos: Sequence[MixedPrecisionSequence],
        steps: np.ndarray | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of each conversation [B], however long it is, and which supervised tokens are right [S]."""
        pad = nn.utils.rnn.pad_sequence
        ids = pad([torch.tensor(ids) for ids, _ in conversations], batch_first=True)
        mask = pad([torch.ones(len(ids), dtype=torch.long) for ids, _ in conversations], batch_first=True)
        labels = pad([torch.tensor(labels) for _, labels in conversations], batch_first=True, padding_value=IGNORED)
        placed = self.model.place_videos(ids, [video.embeds for video in videos], mask, labels, steps)
        # With its padding moved to the right a row never sees it: causal attention then needs no mask, and is faster.
        padding = (placed.attention_mask == 0).sum(dim=1).tolist()
        embeds, positions, labels = (
            torch.stack([row.roll(-width, 0) for row, width in zip(values, padding, strict=True)])
            for values in (placed.inputs_embeds, placed.position_ids, placed.labels)
        )
        output = self.model(
            inputs_embeds=embeds,
            attention_mask=torch.ones_like(placed.attention_mask),
            position_ids=positions,
            logits_to_keep=0,
            use_cache=False,
        )
        logits, targets = output.logits[:, :-1], labels[:, 1:]
        losses = F.cross_entropy(logits.transpose(1, 2).float(), targets, ignore_index=IGNORED, reduction="none")
        supervised = targets != IGNORED
        return losses.sum(dim=1) / supervised.sum(dim=1), (logits.argmax(-1) == targets)[supervised]
