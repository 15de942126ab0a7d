"""What each stage of the miniature's training trains, and on what: see `miniature` for the whole."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import SiglipImageProcessorPil

from vilamp_lite.ablation import choose_keyframes, mixed_tokens
from vilamp_lite.keyframes import uniform_keyframes
from vilamp_lite.merging import QFormerMerger
from vilamp_lite.modeling import MixedPrecisionSequence, ViLaMPForConditionalGeneration
from vilamp_lite.peers import PEERS, peer_tokens, sampled_frames
from vilamp_lite.processing import ViLaMPProcessor
from vilamp_lite.tinyworld.bank import SceneBank, tinyworld_pixels
from vilamp_lite.tinyworld.encoder import TinyWorldModel, tinyworld_tokenizer
from vilamp_lite.tinyworld.questions import FAMILIES, SCENE_FRAMES, random_scene, scene_seed
from vilamp_lite.tinyworld.render import COLORS, SHAPES, SIDE, Scene, render_scene
from vilamp_lite.training import Task

_COLORS = tuple(COLORS)
_IGNORED = -100
_ROWS_AT_ONCE = 8  # conversations that the language model reads at a time


# --- Stage 1: contrastive --------------------------------------------------------------------------------------------


@cache
def caption_texts() -> tuple[str, ...]:
    """The texts that frames are matched with: every question, every thing, every shape, every color."""
    questions = [family.text.format(shape=shape) for family in FAMILIES.values() for shape in SHAPES]
    things = [f"a {color} {shape}" for shape in SHAPES for color in _COLORS]
    return (*questions, *things, *(f"a {shape}" for shape in SHAPES), *(f"something {color}" for color in _COLORS))


def caption_matches(shown: np.ndarray) -> np.ndarray:
    """Which frames each of `caption_texts` fits.

    Args:
        shown: [B, 10, 8], how many things of each shape and color each frame shows.

    Returns:
        bool [B, texts].
    """
    things, shapes = shown > 0, shown.any(axis=2)
    return np.concatenate(
        [*[shapes] * len(FAMILIES), things.reshape(len(shown), -1), shapes, shown.any(axis=1)], axis=1
    )


class ContrastiveTask(Task):
    """Train the dual encoder: SigLIP's sigmoid loss against the exact matches, and a label for each patch."""

    def __init__(self, encoder: TinyWorldModel) -> None:
        """Add the two classifiers of patches, which are thrown away afterwards."""
        super().__init__()
        self.encoder = encoder
        width = encoder.config.vision_config.hidden_size
        self.shape_head = nn.Linear(width, len(SHAPES) + 1)
        self.color_head = nn.Linear(width, len(COLORS) + 1)
        self.tokens = tinyworld_tokenizer(ends=True)(list(caption_texts()), padding=True, return_tensors="pt")

    def forward(self, random: np.random.Generator, batch_size: int, progress: float) -> tuple[torch.Tensor, float]:
        """Draw one frame of each of `batch_size` new scenes; accuracy is the share of things whose patch is right."""
        scenes = [random_scene(scene_seed(random, "train")) for _ in range(batch_size)]
        shown, cells = describe_scenes(scenes)
        frames = np.concatenate([render_scene(Scene(scene.seed, scene.things, 1)) for scene in scenes])
        device = self.encoder.device
        states = self.encoder.vision(tinyworld_pixels(frames).to(device))
        images = F.normalize(self.encoder.pool(states.last_hidden_state), dim=-1)
        tokens = self.tokens.to(device)
        texts = F.normalize(self.encoder.get_text_features(tokens["input_ids"], tokens["attention_mask"]), dim=-1)
        logits = images @ texts.T * self.encoder.scale.exp() + self.encoder.bias
        matches = torch.from_numpy(caption_matches(shown)).to(logits)
        matching = F.binary_cross_entropy_with_logits(logits, matches)

        labels = torch.from_numpy(cells).long().to(device) + 1  # 0 for an empty cell
        patches = states.hidden_states[0]
        shape_logits, color_logits = self.shape_head(patches), self.color_head(patches)
        naming = F.cross_entropy(shape_logits.flatten(0, 1), labels[..., 0].flatten())
        naming = naming + F.cross_entropy(color_logits.flatten(0, 1), labels[..., 1].flatten())
        right = (shape_logits.argmax(-1) == labels[..., 0]) & (color_logits.argmax(-1) == labels[..., 1])
        return 10 * matching + naming, float(right[labels[..., 0] > 0].float().mean())


def describe_scenes(scenes: Sequence[Scene]) -> tuple[np.ndarray, np.ndarray]:
    """Say what scenes show, and where.

    Returns:
        int8 [S, 10, 8], how many things of each shape and color; int8 [S, 16, 2], numbers of shape and color in each
        cell, −1 for nothing.
    """
    shown = np.zeros((len(scenes), len(SHAPES), len(_COLORS)), np.int8)
    cells = np.full((len(scenes), 16, 2), -1, np.int8)
    for number, scene in enumerate(scenes):
        for thing in scene.things:
            shape, color = SHAPES.index(thing.shape), _COLORS.index(thing.color)
            shown[number, shape, color] += 1
            cells[number, thing.cell] = shape, color
    return shown, cells


# --- Questions from a bank -------------------------------------------------------------------------------------------


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
                color for color in range(8) if color != _COLORS.index(answer) for _ in range(random.integers(2, 4))
            ]
            pools = [self.single[shape][color] for color in shown]
        else:
            pools = [self.single[shape][_COLORS.index(word)] for word in answer.split(" and ")]
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
        seen = [color for color, there in zip(_COLORS, has, strict=True) if there]
        if len(seen) == 1:
            found.append(("attribute", name, seen[0]))
        elif len(seen) == 2:
            found.append(("two needles", name, " and ".join(seen)))
        elif len(seen) == len(_COLORS) - 1:
            found.append(("roll call", name, _COLORS[int(has.argmin())]))
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


# --- Stages 2 to 4 ---------------------------------------------------------------------------------------------------


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
        self.shape_words, self.color_words = words(list(SHAPES)), words(list(_COLORS))

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
            labels += [_IGNORED] * len(asked) + reply
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
        labels = pad([torch.tensor(labels) for _, labels in conversations], batch_first=True, padding_value=_IGNORED)
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
        losses = F.cross_entropy(logits.transpose(1, 2).float(), targets, ignore_index=_IGNORED, reduction="none")
        supervised = targets != _IGNORED
        return losses.sum(dim=1) / supervised.sum(dim=1), (logits.argmax(-1) == targets)[supervised]


LATE = 0.4  # the share of alignment's steps after which the hard questions prevail
KEYFRAMES_ONLY = 0.45  # the share of alignment's videos without single patches
FEW, MANY = 12, 150  # at most so many single patches beside those that are asked for
MOST_AROUND = 8  # merged frames of a keyframe's scene


class AlignmentTask(MiniatureTask):
    """Stage 2: connectors and language model learn to read keyframes, and single patches as a perfect merge gives them.

    Beside the answers labels are learned: a projected patch names its thing's shape and color, and a token of a frame
    of two things what the other is.
    """

    naming_weight = 1.5  # patches that name their things like words do are looked up several times sooner

    def __init__(self, model: ViLaMPForConditionalGeneration, examples: Examples) -> None:
        """Make connectors, keyframe block and language model trainable."""
        super().__init__(model, examples)
        for part in (model.keyframe_connector, model.merged_connector, model.keyframe_block, model.language_model):
            if part is not None:
                part.requires_grad_(True)
        if model.video_newline is not None:
            model.video_newline.requires_grad_(True)
        self.roll_calls = {FAMILIES["roll call"].text.format(shape=shape) for shape in SHAPES}
        self.things = np.argwhere(examples.cells[..., 0] >= 0)  # scene and cell of each

    def forward(self, random: np.random.Generator, batch_size: int, progress: float) -> tuple[torch.Tensor, float]:
        """Ask up to eight questions about each of `batch_size` short videos."""
        # Looking a thing up is learned suddenly, and soonest among single patches.
        keyframes_only = 0.0 if progress < 0.1 else KEYFRAMES_ONLY
        others = FEW if progress < LATE else MANY
        conversations, videos, naming = self.draw(
            random, batch_size, progress, others=others, keyframes_only=keyframes_only
        )
        loss, accuracy = self.answer_loss(conversations, videos, np.ones(len(videos)))
        return loss + self.naming_weight * naming, accuracy

    def draw(
        self, random: np.random.Generator, count: int, progress: float, *, others: int, keyframes_only: float
    ) -> tuple[list[tuple[list[int], list[int]]], list[MixedPrecisionSequence], torch.Tensor]:
        """Make videos of one keyframe or more, of single patches, or of both, and questions about them.

        Args:
            random: draws everything.
            count: of videos.
            progress: the further, the more keyframes and the harder questions.
            others: the most single patches of any other things.
            keyframes_only: the share of videos without single patches.

        Returns:
            Conversations, videos, and how badly their tokens name their things, the mean over the videos.
        """
        late = progress >= LATE
        most = 1 + round((self.model.config.max_keyframes - 1) * min(max((progress - 0.15) / 0.2, 0), 1))
        keyframes = int(random.integers(1, most + 1))
        both = keyframes_only + (1 - keyframes_only) / (2 if late else 4)
        conversations, videos, naming = [], [], []
        while len(videos) < count:
            kind = random.random()
            scenes = self._scenes(random, keyframes if kind < both else 0)
            # Roll calls from the start would hide from the model that a question names a thing to look up.
            roll_calls = progress > 0.15 and kind > both
            single = np.zeros((0, 2), int)
            if kind > keyframes_only:
                single = self._single_patches(random, roll_calls, late, others)
            shown = np.concatenate([self.examples.shown[scenes], self._shown_alone(single)])
            turns = questions_about(shown, random, 8, 1 if late else None)
            if roll_calls and not late:  # they are learned only if they are asked often, and by themselves
                turns = [turn for turn in turns if turn[0] in self.roll_calls]
            if not turns:
                continue
            if late and len(single):
                single = np.concatenate([single, self._around(random, scenes)])
            video, own_naming = self._video(random, scenes, single)
            videos.append(video)
            naming.append(own_naming)
            conversations.append(self.conversation(turns))
        return conversations, videos, torch.stack(naming).mean()

    def _single_patches(
        self, random: np.random.Generator, roll_calls: bool, one_or_two: bool, others: int
    ) -> np.ndarray:
        """Scenes and cells [n, 2] of things, a patch each.

        With roll calls, of one to three shapes seven colors, each two or three times; with `one_or_two`, of one to
        three more a color or two; and up to `others` things of the shapes that are left.
        """
        examples, shapes = self.examples, random.permutation(len(SHAPES))
        called = shapes[: random.integers(1, 4) if roll_calls else 0]
        few = shapes[len(called) :][: random.integers(1, 4) if one_or_two else 0]
        wanted = [(shape, color) for shape in few for color in random.permutation(8)[: random.integers(1, 3)]]
        for shape in called:
            wanted += [(shape, color) for color in random.permutation(8)[1:] for _ in range(random.integers(2, 4))]
        scenes = np.array([random.choice(examples.single[shape][color]) for shape, color in wanted], int)
        cells = (examples.cells[scenes, :, 0] == np.array(wanted, int).reshape(-1, 2)[:, :1]).argmax(axis=1)
        free = ~np.isin(examples.cells[*self.things.T, 0], [*called, *few])
        left = random.choice(self.things[free], random.integers(1, others + 1))
        return np.concatenate([np.stack([scenes, cells], axis=1), left])

    def _around(self, random: np.random.Generator, scenes: np.ndarray) -> np.ndarray:
        """Scenes and cells [n, 2] of single patches that keyframes' own scenes give; they tell nothing new."""
        cells = [random.choice(np.flatnonzero(self.examples.cells[scene, :, 0] >= 0)) for scene in scenes]
        pairs = np.stack([scenes, np.array(cells, int)], axis=1)
        return np.repeat(pairs, random.integers(0, MOST_AROUND + 1, len(scenes)), axis=0)

    def _shown_alone(self, single: np.ndarray) -> np.ndarray:
        """What single patches [n, 2] show, as frames of one thing each: [n, 10, 8]."""
        shown = np.zeros((len(single), len(SHAPES), len(_COLORS)), np.int8)
        shape, color = self.examples.cells[single[:, 0], single[:, 1]].T
        shown[np.arange(len(single)), shape, color] = 1
        return shown

    def _video(
        self, random: np.random.Generator, scenes: np.ndarray, single: np.ndarray
    ) -> tuple[MixedPrecisionSequence, torch.Tensor]:
        """A video of keyframes and single patches, and how badly its tokens name their things and what is with them.

        Scenes are in random order, and the frames of one lie together.
        """
        model, bank, cells = self.model, self.examples.bank, self.examples.cells
        every = np.concatenate([scenes, single[:, 0]])
        frames = bank.first_frame[every] + random.integers(0, bank.lengths[every])
        keyframes = self.patches(frames[: len(scenes)])
        alone = bank.patches[torch.from_numpy(frames[len(scenes) :]), torch.from_numpy(single[:, 1])]
        alone = alone.to(model.device, torch.float32)
        projected, merged = model.keyframe_connector(keyframes), model.merged_connector(alone)
        naming = self._naming_loss(
            torch.cat([projected.flatten(0, 1), merged]),
            np.concatenate([cells[scenes].reshape(-1, 2), cells[single[:, 0], single[:, 1]]]),
        )
        rank = random.permutation(len(bank.scenes))[every] + random.random(len(every))
        place = torch.from_numpy(rank.argsort().argsort())
        frame_of_token = torch.cat([place[: len(scenes)].repeat_interleave(keyframes.shape[1]), place[len(scenes) :]])
        order = frame_of_token.argsort(stable=True)
        is_keyframe = torch.zeros(len(every), dtype=torch.bool).index_fill_(0, place[: len(scenes)], True)
        if not len(scenes):
            return model.sequence(merged[order], is_keyframe, frame_of_token[order]), naming
        kept = model.keyframe_tokens(keyframes)
        naming = naming + self._companion_loss(kept.unflatten(0, (len(scenes), -1)), cells[scenes, :, 0])
        return model.sequence(torch.cat([kept, merged])[order], is_keyframe, frame_of_token[order]), naming

    def _scenes(self, random: np.random.Generator, count: int) -> np.ndarray:
        """Scenes for `count` keyframes, of both kinds."""
        bank = self.examples.bank
        scenes = np.where(
            random.random(count) < 0.5,
            random.integers(0, bank.num_random, count),
            random.integers(bank.num_random, len(bank.scenes), count),
        )
        # What two frames answer together is rare among scenes drawn at random.
        for first in range(0, count - 1, 2):
            kind = random.random()
            shape, one, other = random.permutation(len(SHAPES))[:3]
            if kind < 0.6:
                scenes[first : first + 2] = [random.choice(self.examples.pairs[shape][o]) for o in (one, other)]
            elif kind < 0.75:
                colors = random.permutation(len(_COLORS))[:2]
                scenes[first : first + 2] = [random.choice(self.examples.single[shape][color]) for color in colors]
        return scenes

    def _naming_loss(self, tokens: torch.Tensor, cells: np.ndarray) -> torch.Tensor:
        """How badly projected patches [P, D] name what their cells [P, 2] hold through the word embeddings."""
        labels = torch.from_numpy(cells).long().to(tokens.device)
        things = labels[..., 0] >= 0
        words = self.model.get_input_embeddings().weight
        shapes = naming_loss(tokens[things], words[self.shape_words], labels[things][:, 0])
        return shapes + naming_loss(tokens[things], words[self.color_words], labels[things][:, 1])

    def _companion_loss(self, tokens: torch.Tensor, shapes: np.ndarray) -> torch.Tensor:
        """How badly the tokens [K, M, D] of keyframes of two things name the other thing's shape; [K, M] are shapes.

        Without the keyframe block no token can know. The other's name is its word embedding rolled by half, to tell it
        from the thing's own.
        """
        pairs = (shapes >= 0).sum(axis=1) == 2
        if self.model.keyframe_block is None or not pairs.any():
            return tokens.new_zeros(())
        things = np.flatnonzero(shapes[pairs].flatten() >= 0)
        others = shapes[pairs].flatten()[things].reshape(-1, 2)[:, ::-1].flatten()
        names = self.model.get_input_embeddings().weight[self.shape_words].roll(tokens.shape[-1] // 2, dims=-1)
        of_pairs = tokens[torch.from_numpy(pairs)].flatten(0, 1)[torch.from_numpy(things)]
        return naming_loss(of_pairs, names, torch.from_numpy(others).long().to(tokens.device))


def naming_loss(tokens: torch.Tensor, names: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """How badly tokens name what they show, each by itself and the mean of each two neighbors both (mixup).

    What attention reads from two tokens is a mean of them. Names that span few dimensions serve for single tokens, but
    then other two may have the same mean.

    Args:
        tokens: [T, D].
        names: [C, D].
        labels: int64 [T], which name is right.

    Returns:
        Cross-entropy, of single tokens and of means together.
    """
    logits, right = tokens @ names.T, F.one_hot(labels, len(names)).to(tokens.dtype)
    both = (logits + logits.roll(1, 0)) / 2, (right + right.roll(1, 0)) / 2
    return F.cross_entropy(logits, right) + F.cross_entropy(*both)


class GroundingTask(MiniatureTask):
    """Stage 3: the merge's maps and temperature learn to put the weight on the patch of the thing asked for."""

    def __init__(self, model: ViLaMPForConditionalGeneration, examples: Examples) -> None:
        """Make the merger trainable."""
        super().__init__(model, examples)
        model.merger.requires_grad_(True)

    def forward(self, random: np.random.Generator, batch_size: int, progress: float) -> tuple[torch.Tensor, float]:
        """Merge frames that show a shape, each against a frame of another scene or of its own; accuracy is top-1."""
        bank, examples = self.examples.bank, self.examples
        family, shape = random.choice(list(FAMILIES)), int(random.integers(len(SHAPES)))
        query = self.query_embeds[FAMILIES[family].text.format(shape=SHAPES[shape])]
        holding = np.flatnonzero(examples.shown[:, shape].sum(axis=1) == 1)
        scenes = random.choice(holding, batch_size)
        others = np.where(random.random(batch_size) < 0.2, scenes, random.integers(0, len(bank.scenes), batch_size))
        frames, references = (bank.first_frame[s] + random.integers(0, bank.lengths[s]) for s in (scenes, others))
        merger = self.model.merger
        _, weights = merger.merge(
            self.patches(frames), merger.map_reference(self.patches(references)), merger.map_query(query)
        )
        asked = torch.from_numpy((examples.cells[scenes][..., 0] == shape).argmax(axis=1)).to(weights.device)
        loss = F.nll_loss(weights.clamp_min(1e-8).log(), asked)
        return loss, float((weights.argmax(dim=1) == asked).float().mean())


# In the mixed stage a video is seen with its keyframes chosen and its other frames merged in one of these ways, so that
# every row of Table 2 is in the distribution that the one model was trained on. The last number is its share.
VARIANTS = (
    ("dks", "dfm", 0.46),
    ("uniform", "dfm", 0.08),
    ("top_relevance", "dfm", 0.10),
    ("dks", "mean", 0.08),
    ("dks", "max", 0.05),
    ("dks", "qformer", 0.12),
    ("top_relevance", "mean", 0.06),
    ("uniform", "mean", 0.05),
)
# The harder a family is to learn, the more often it is asked.
FAMILY_SHARES = {"attribute": 0.1, "companion": 0.15, "roll call": 0.25, "two needles": 0.2, "two companions": 0.3}
# What keyframes alone can answer, likewise; a roll call is none of it.
KEYFRAME_FAMILY_SHARES = {"attribute": 0.1, "companion": 0.2, "two needles": 0.2, "two companions": 0.5}
FEWEST_POSITIONS = 16  # of a video; that many tokens or fewer have one each
# From which share of the steps on sequences have how many tokens; a step has about the same number of tokens all along,
# so short ones ask more questions: what is learned from them holds at length.
LENGTHS = ((0.0, 256), (0.35, 512), (0.6, 1024), (0.8, 2048))


class MixedTask(MiniatureTask):
    """Stage 4: both connectors and the language model read whole sequences; the merge stays as it is grounded."""

    alignment_share = 0.3  # of the steps: many questions about one video teach more than one question can
    drop_share = 0.1  # of the steps: keyframes alone, many short videos at once
    drop_videos = 3  # times as many as in a step of the shortest sequences, for about as many tokens

    def __init__(
        self,
        model: ViLaMPForConditionalGeneration,
        examples: Examples,
        qformer: QFormerMerger | None = None,
        train_merger: bool = False,
    ) -> None:
        """Make everything that reads trainable, and the Q-Former that Table 2 compares with."""
        super().__init__(model, examples)
        self.alignment = AlignmentTask(model, examples)  # makes its own part trainable
        model.merger.requires_grad_(train_merger)
        self.qformer = qformer

    def forward(self, random: np.random.Generator, batch_size: int, progress: float) -> tuple[torch.Tensor, float]:
        """Ask one question about each of as many videos as give about 256 · `batch_size` tokens; in some steps more."""
        kind = random.random()
        length = max(tokens for start, tokens in LENGTHS if progress >= start)
        fitting = max(batch_size * 256 // length, 1)
        if kind < self.alignment_share / 2:
            conversations, videos, naming = self.alignment.draw(
                random, batch_size, 1.0, others=FEW, keyframes_only=KEYFRAMES_ONLY
            )
        elif kind < self.alignment_share:
            conversations, videos, naming = self.alignment.draw(random, fitting, 1.0, others=length, keyframes_only=0.0)
        else:
            drop = kind < self.alignment_share + self.drop_share
            count = self.drop_videos * batch_size if drop else fitting
            conversations, videos, naming = *self._draw(random, count, length, drop), 0.0
        loss, accuracy = self.answer_loss(conversations, videos, self._steps(random, videos))
        return loss + self.alignment.naming_weight * naming, accuracy

    def _steps(self, random: np.random.Generator, videos: Sequence[MixedPrecisionSequence]) -> np.ndarray:
        """How far each video's tokens move the position: between few positions for the whole video and one for each."""
        if self.model.config.video_positions is None:
            return np.ones(len(videos))
        tokens = np.array([len(video.embeds) for video in videos])
        return np.exp(random.uniform(np.log(np.minimum(FEWEST_POSITIONS / tokens, 1)), 0))

    def _draw(
        self, random: np.random.Generator, count: int, length: int, drop: bool
    ) -> tuple[list[tuple[list[int], list[int]]], list[MixedPrecisionSequence]]:
        """Questions about videos of `length` tokens, one each; with `drop` these have keyframes only."""
        conversations, videos = [], []
        shares = KEYFRAME_FAMILY_SHARES if drop else FAMILY_SHARES
        for _ in range(count):
            family = str(random.choice(list(shares), p=list(shares.values())))
            selector, merger = ("dks", "drop") if drop else self._variant(random)
            video, conversation = self._video(random, family, length, selector, merger)
            videos.append(video)
            conversations.append(conversation)
        return conversations, videos

    def _variant(self, random: np.random.Generator) -> tuple[str, str]:
        shares = np.array([share for *_, share in VARIANTS])
        selector, merger, _ = VARIANTS[random.choice(len(VARIANTS), p=shares / shares.sum())]
        return selector, merger

    def _video(
        self, random: np.random.Generator, family: str, length: int, selector: str, merger: str
    ) -> tuple[MixedPrecisionSequence, tuple[list[int], list[int]]]:
        """A video that fills `length` tokens together with its question and answer.

        Its keyframes are chosen among up to 10,000 frames, of which only as many as fit are kept: so the language model
        meets the look-alikes that the keyframes of long videos are.
        """
        config, bank = self.model.config, self.examples.bank
        pool = int(np.exp(random.uniform(np.log(length), np.log(10_000))))
        example = self.examples.draw(random, family, pool)
        query = self.query_embeds[example.question]
        conversation = self.conversation([(example.question, example.answer)])
        room = length - len(conversation[0]) + 1 - config.visual_tokens(config.max_keyframes, config.max_keyframes)
        wanted = room + config.max_keyframes  # frames
        if selector == "uniform":
            kept = self._kept(random, example, np.array([], int), wanted)
            keyframes = uniform_keyframes(
                bank.embeds[example.frames[kept]], query, max_keyframes=config.max_keyframes
            ).indices
        else:
            chosen = choose_keyframes(self.model, bank.embeds[example.frames], query, selector).numpy()
            kept = self._kept(random, example, chosen, wanted)
            keyframes = torch.from_numpy(np.searchsorted(kept, chosen))
        patches = self.patches(example.frames[kept])
        return mixed_tokens(self.model, patches, keyframes, query, merger, self.qformer), conversation

    def _kept(self, random: np.random.Generator, example: Example, keyframes: np.ndarray, wanted: int) -> np.ndarray:
        """Numbers of `wanted` frames: the needles', the keyframes', and whole scenes as they come."""
        scenes = int(example.scene[-1]) + 1
        rank = random.permutation(scenes)
        must = np.zeros(scenes, bool)
        must[example.scene[keyframes]] = True
        must[example.scene[example.needle]] = True
        rank[must] -= scenes
        priority = rank[example.scene].astype(float)
        priority[keyframes] = -np.inf
        return np.sort(np.argsort(priority, kind="stable")[:wanted])


class PeerTask(MixedTask):
    """Stage 4 for a peer: the same questions in videos of up to four times the frames that fit."""

    drop_share = 0.0  # a peer has no keyframes

    def __init__(self, model: ViLaMPForConditionalGeneration, examples: Examples, peer: str) -> None:
        """Name the peer, of `PEERS`; the rest as `MixedTask`."""
        super().__init__(model, examples)
        self.peer = peer

    def _video(
        self, random: np.random.Generator, family: str, length: int, selector: str, merger: str
    ) -> tuple[MixedPrecisionSequence, tuple[list[int], list[int]]]:
        """A video that fills `length` tokens together with its question and answer."""
        _, per_frame = PEERS[self.peer]
        frames = max(int(length / per_frame * np.exp(random.uniform(0, np.log(4)))), 100)
        example = self.examples.draw(random, family, frames)
        conversation = self.conversation([(example.question, example.answer)])
        query = self.query_embeds[example.question]
        room = length - len(conversation[0]) + 1
        # Only sampled frames are looked up: the others are never seen.
        seen = sampled_frames(frames, (room - 1) // per_frame).numpy()
        patches = self.patches(example.frames[seen])
        return peer_tokens(self.model, self.peer, patches, query, room), conversation


def miniature_processor(model: ViLaMPForConditionalGeneration) -> ViLaMPProcessor:
    """The processor of a TinyWorld model: words as tokens, pixels from −1 to 1."""

    def pixels() -> SiglipImageProcessorPil:
        return SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE})

    return ViLaMPProcessor(
        model.config, tinyworld_tokenizer(ends=False), tinyworld_tokenizer(ends=True), pixels(), pixels()
    )
