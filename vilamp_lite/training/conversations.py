"""Conversations about videos as tokens, and the language model's loss on them: what stages 2 to 4 share."""

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from vilamp_lite.common.hub import IGNORED
from vilamp_lite.modeling import MixedPrecisionSequence, ViLaMPForConditionalGeneration
from vilamp_lite.tinyworld.miniature import miniature_processor
from vilamp_lite.tinyworld.questions import FAMILIES
from vilamp_lite.tinyworld.render import SHAPES
from vilamp_lite.training.examples import COLOR_NAMES, Examples
from vilamp_lite.training.loop import Task

_ROWS_AT_ONCE = 8  # conversations that the language model reads at a time


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
