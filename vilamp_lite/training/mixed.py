"""Stage 4 of the miniature: mixed-precision sequences and questions."""

from collections.abc import Sequence

import numpy as np
import torch

from vilamp_lite.baselines.mergers import QFormerMerger, mixed_tokens
from vilamp_lite.baselines.peers import PEERS, peer_tokens, sampled_frames
from vilamp_lite.baselines.selectors import choose_keyframes, uniform_keyframes
from vilamp_lite.modeling import MixedPrecisionSequence, ViLaMPForConditionalGeneration
from vilamp_lite.training.alignment import FEW, AlignmentTask, Lesson
from vilamp_lite.training.conversations import MiniatureTask
from vilamp_lite.training.examples import Example, Examples

# In the mixed stage a video is seen with its keyframes chosen and its other frames merged in one of these ways, so that
# every row of Table 2 is in the distribution that the one model was trained on. The last number is its share.
VIEWS = (
    ("dks", "dfm", 0.46),
    ("uniform", "dfm", 0.08),
    ("top_k", "dfm", 0.10),
    ("dks", "mean", 0.08),
    ("dks", "max", 0.05),
    ("dks", "qformer", 0.12),
    ("top_k", "mean", 0.06),
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
            lesson = Lesson(self.model.config.max_keyframes, others=FEW)
            conversations, videos, naming = self.alignment.draw(random, batch_size, lesson)
        elif kind < self.alignment_share:
            lesson = Lesson(self.model.config.max_keyframes, keyframes_only=0.0, others=length)
            conversations, videos, naming = self.alignment.draw(random, fitting, lesson)
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
            selector, merger = ("dks", "drop") if drop else self._view(random)
            video, conversation = self._video(random, family, length, selector, merger)
            videos.append(video)
            conversations.append(conversation)
        return conversations, videos

    def _view(self, random: np.random.Generator) -> tuple[str, str]:
        shares = np.array([share for *_, share in VIEWS])
        selector, merger, _ = VIEWS[random.choice(len(VIEWS), p=shares / shares.sum())]
        return selector, merger

    def _video(
        self, random: np.random.Generator, family: str, length: int, selector: str, merger: str
    ) -> tuple[MixedPrecisionSequence, tuple[list[int], list[int]]]:
        """A video that fills `length` tokens together with its question and answer.

        Its keyframes are chosen among up to 10,000 frames, and only as many frames as fit are kept: so the language
        model meets the look-alikes that the keyframes of long videos are.
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
