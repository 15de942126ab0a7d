"""Stage 2 of the miniature: patches into the language model's space."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from vilamp_lite.modeling import MixedPrecisionSequence, ViLaMPForConditionalGeneration
from vilamp_lite.tinyworld.questions import FAMILIES
from vilamp_lite.tinyworld.render import SHAPES
from vilamp_lite.training.conversations import MiniatureTask
from vilamp_lite.training.examples import COLOR_NAMES, Examples, questions_about

FEW, MANY = 12, 150  # at most so many single patches beside those that are asked for
MOST_AROUND = 8  # merged frames of a keyframe's scene


@dataclass(frozen=True)
class Lesson:
    """What alignment's videos hold at some point of the stage, and what is asked about them.

    Attributes:
        most_keyframes: a batch's videos have up to so many.
        keyframes_only: the share of videos without single patches.
        others: the most single patches of things that no question needs.
        roll_calls: whether there are any, in videos of single patches alone.
        late: whether the hard questions prevail, and frames around the keyframes are shown too.
    """

    most_keyframes: int
    keyframes_only: float = 0.45
    others: int = MANY
    roll_calls: bool = True
    late: bool = True

    @classmethod
    def at(cls, progress: float, max_keyframes: int) -> "Lesson":
        """What is taught when a share `progress` of the stage is done, to a model of K = `max_keyframes`."""
        late = progress >= 0.4
        return cls(
            most_keyframes=1 + round((max_keyframes - 1) * min(max((progress - 0.15) / 0.2, 0), 1)),
            # Looking a thing up is learned suddenly, and soonest among single patches.
            keyframes_only=0.0 if progress < 0.1 else 0.45,
            others=MANY if late else FEW,
            # Roll calls from the start would hide from the model that a question names a thing to look up.
            roll_calls=progress > 0.15,
            late=late,
        )

    @property
    def with_keyframes(self) -> float:
        """The share of videos that have keyframes, by themselves or with single patches."""
        return self.keyframes_only + (1 - self.keyframes_only) / (2 if self.late else 4)


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
        lesson = Lesson.at(progress, self.model.config.max_keyframes)
        conversations, videos, naming = self.draw(random, batch_size, lesson)
        loss, accuracy = self.answer_loss(conversations, videos, np.ones(len(videos)))
        return loss + self.naming_weight * naming, accuracy

    def draw(
        self, random: np.random.Generator, count: int, lesson: Lesson
    ) -> tuple[list[tuple[list[int], list[int]]], list[MixedPrecisionSequence], torch.Tensor]:
        """Make `count` videos of keyframes, of single patches, or of both, and questions about them.

        Returns:
            Conversations, videos, and how badly their tokens name their things, the mean over the videos.
        """
        keyframes = int(random.integers(1, lesson.most_keyframes + 1))
        conversations, videos, naming = [], [], []
        while len(videos) < count:
            kind, called = random.random(), False
            if kind < lesson.keyframes_only:
                scenes, single = self._scenes(random, keyframes), np.zeros((0, 2), int)
            elif kind < lesson.with_keyframes:
                scenes = self._scenes(random, keyframes)
                single = self._single_patches(random, False, lesson)
            else:
                scenes, called = np.array([], int), lesson.roll_calls
                single = self._single_patches(random, called, lesson)
            shown = np.concatenate([self.examples.shown[scenes], self._shown_alone(single)])
            turns = questions_about(shown, random, 8, 1 if lesson.late else None)
            if called and not lesson.late:  # they are learned only if they are asked often, and by themselves
                turns = [turn for turn in turns if turn[0] in self.roll_calls]
            if not turns:
                continue
            if lesson.late and len(single):
                single = np.concatenate([single, self._around(random, scenes)])
            video, own_naming = self._video(random, scenes, single)
            videos.append(video)
            naming.append(own_naming)
            conversations.append(self.conversation(turns))
        return conversations, videos, torch.stack(naming).mean()

    def _single_patches(self, random: np.random.Generator, roll_calls: bool, lesson: Lesson) -> np.ndarray:
        """Scenes and cells [n, 2] of things, a patch each.

        With roll calls, of one to three shapes seven colors, each two or three times; late, of one to three more a
        color or two; and up to `lesson.others` things of the shapes that are left.
        """
        examples, shapes = self.examples, random.permutation(len(SHAPES))
        called = shapes[: random.integers(1, 4) if roll_calls else 0]
        few = shapes[len(called) :][: random.integers(1, 4) if lesson.late else 0]
        wanted = [(shape, color) for shape in few for color in random.permutation(8)[: random.integers(1, 3)]]
        for shape in called:
            wanted += [(shape, color) for color in random.permutation(8)[1:] for _ in range(random.integers(2, 4))]
        scenes = np.array([random.choice(examples.single[shape][color]) for shape, color in wanted], int)
        cells = (examples.cells[scenes, :, 0] == np.array(wanted, int).reshape(-1, 2)[:, :1]).argmax(axis=1)
        free = ~np.isin(examples.cells[*self.things.T, 0], [*called, *few])
        left = random.choice(self.things[free], random.integers(1, lesson.others + 1))
        return np.concatenate([np.stack([scenes, cells], axis=1), left])

    def _around(self, random: np.random.Generator, scenes: np.ndarray) -> np.ndarray:
        """Scenes and cells [n, 2] of single patches that keyframes' own scenes give; they tell nothing new."""
        cells = [random.choice(np.flatnonzero(self.examples.cells[scene, :, 0] >= 0)) for scene in scenes]
        pairs = np.stack([scenes, np.array(cells, int)], axis=1)
        return np.repeat(pairs, random.integers(0, MOST_AROUND + 1, len(scenes)), axis=0)

    def _shown_alone(self, single: np.ndarray) -> np.ndarray:
        """What single patches [n, 2] show, as frames of one thing each: [n, 10, 8]."""
        shown = np.zeros((len(single), len(SHAPES), len(COLOR_NAMES)), np.int8)
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
                colors = random.permutation(len(COLOR_NAMES))[:2]
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
