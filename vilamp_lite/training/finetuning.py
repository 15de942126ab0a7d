"""Training at any size: a data set of videos, questions and answers, and which parts of a model learn from it.

The data set is a file of JSON lines, one {"video": path, "question": text, "answer": text} each. The model may be the
paper's at full size, the authors' checkpoint, or a tiny one; its language model learns to give the answer and to end.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from vilamp_lite.checkpoints import from_llava_onevision, load_checkpoint, load_processor
from vilamp_lite.common.checks import choice, positive_int
from vilamp_lite.common.files import saved_whole
from vilamp_lite.common.hub import IGNORED
from vilamp_lite.common.outside import Text, checked_json
from vilamp_lite.modeling import ViLaMPForConditionalGeneration
from vilamp_lite.processing import ViLaMPProcessor
from vilamp_lite.training.loop import Stage, Task, make_accelerator, require_own, run_stage

_MOST_NAMED = 5  # missing videos in an error
_CONNECTORS = ("keyframe_connector", "own_merged_connector", "keyframe_block", "video_newline")

# What a stage can train, as parts of the model. Of the paper it is known that it trains in three stages, not what each
# trains; of the released script, that it trains connector and language model, with merge and encoders frozen. The other
# three are this project's choice, as is that newline and keyframe block go with the connectors.
TRAINABLE = {
    "connectors": _CONNECTORS,
    "connectors+merger": (*_CONNECTORS, "merger"),
    "connectors+language model": (*_CONNECTORS, "language_model"),
    "all but the encoders": (*_CONNECTORS, "merger", "language_model"),
}


@dataclass(frozen=True)
class VideoQuestion:
    """One example.

    Attributes:
        video: a file.
        question: what is asked about it.
        answer: what is right.
    """

    video: Path
    question: Text
    answer: Text


def read_examples(path: str | PathLike[str]) -> list[VideoQuestion]:
    """Read a data set of JSON lines, and check all of it; blank lines and further fields are passed over.

    Args:
        path: the file; its videos' paths are relative to it.

    Raises:
        ValueError: a file that can't be read or is empty; a line that is no JSON object with the three fields, with its
            number; or videos that do not exist.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"can't read {path} ({error}); name a file of JSON lines in UTF-8") from error
    remedy = "write one JSON object with video, question and answer on each line"
    examples = {}
    # Not splitlines: it would also split at characters that a JSON text may hold.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            example = checked_json(VideoQuestion, line, f"{path}, line {number}", remedy=remedy)
            examples[number] = replace(example, video=path.parent / example.video)
    if not examples:
        raise ValueError(f"{path} is empty; {remedy}")
    missing = [f"{one.video} (line {number})" for number, one in examples.items() if not one.video.is_file()]
    if missing:
        more = f" and {len(missing) - _MOST_NAMED} more" if len(missing) > _MOST_NAMED else ""
        raise ValueError(
            f"{path} names videos that do not exist: {', '.join(missing[:_MOST_NAMED])}{more}; paths are relative to "
            "the data set's folder"
        )
    return list(examples.values())


class FinetuningTask(Task):
    """Answer questions about videos; the loss is the usual next-token loss on the answer and its end."""

    def __init__(
        self,
        model: ViLaMPForConditionalGeneration,
        processor: ViLaMPProcessor,
        examples: Sequence[VideoQuestion],
        trains: str,
        max_frames: int = 600,
    ) -> None:
        """Freeze what is not trained.

        Args:
            model: its parameters' `requires_grad` are set.
            processor: the model's.
            examples: to draw from.
            trains: a name in `TRAINABLE`.
            max_frames: the most frames of a video (paper: 600, at 1 per second).
        """
        super().__init__()
        if not examples:
            raise ValueError("there are no examples to train on; see read_examples")
        parts = TRAINABLE[choice("trains", trains, tuple(TRAINABLE))]
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.split(".")[0] in parts)
            if parameter.requires_grad and parameter.dtype != torch.float32:
                raise ValueError(
                    f"{name} is {parameter.dtype}, in which small steps are lost: load the model with "
                    "dtype=torch.float32, and leave half precision to make_accelerator('bf16')"
                )
        self.model, self.processor, self.examples = model, processor, examples
        self.max_frames = positive_int("max_frames", max_frames)
        ends = model.generation_config.eos_token_id
        if ends is None:
            raise ValueError("the model has no end token to learn: set model.generation_config.eos_token_id")
        self.end = ends[0] if isinstance(ends, list) else ends

    @property
    def about(self) -> dict[str, Any]:
        """The examples, wherever their videos lie now, and how much is seen of each."""
        examples = json.dumps([(one.video.name, one.question, one.answer) for one in self.examples])
        return {"examples": sha256(examples.encode()).hexdigest()[:16], "max_frames": self.max_frames}

    def train(self, mode: bool = True) -> "FinetuningTask":
        """Set the mode of what is trained; the rest is in evaluation mode always."""
        super().train(mode)
        for part in self.model.children():
            part.train(mode and any(parameter.requires_grad for parameter in part.parameters()))
        language_model = self.model.language_model
        if language_model.is_activation_checkpointing:
            # A layer asks its own mode whether to checkpoint, also in a frozen model; its dropout asks its own.
            for layer in language_model.modules():
                if isinstance(layer, GradientCheckpointingLayer):
                    layer.training = mode
        return self

    def forward(self, random: np.random.Generator, batch_size: int, progress: float) -> tuple[torch.Tensor, float]:
        """Draw examples, each as likely as any other at each step; accuracy is the share of right answer tokens."""
        drawn = [self.examples[number] for number in random.integers(len(self.examples), size=batch_size)]
        inputs = self.batch(drawn)
        answers = [row[row != IGNORED] for row in inputs["labels"]]
        targets = nn.utils.rnn.pad_sequence(answers, batch_first=True, padding_value=IGNORED, padding_side="left").to(
            self.model.device
        )
        # Answers stand at the end; the token before predicts the first.
        output = self.model(**inputs, logits_to_keep=targets.shape[1] + 1, use_cache=False)
        right = output.logits[:, :-1].argmax(dim=-1) == targets
        return output.loss, float(right[targets != IGNORED].float().mean())

    def batch(self, examples: Sequence[VideoQuestion]) -> dict[str, torch.Tensor]:
        """Make the inputs of the model's `forward`, with labels that supervise answers and their end alone."""
        inputs = self.processor(
            [example.video for example in examples],
            [example.question for example in examples],
            max_frames=self.max_frames,
        )
        replies = [torch.tensor(self._reply(example.answer)) for example in examples]
        labels = nn.utils.rnn.pad_sequence(replies, batch_first=True, padding_value=IGNORED)
        asked = inputs["input_ids"]
        return {
            **inputs,
            "input_ids": torch.cat([asked, labels.clamp(min=0)], dim=1),
            "attention_mask": torch.cat([inputs["attention_mask"], (labels != IGNORED).long()], dim=1),
            "labels": torch.cat([torch.full_like(asked, IGNORED), labels], dim=1),
        }

    def _reply(self, answer: str) -> list[int]:
        """The answer's tokens, and the one at which generation ends."""
        # The answer is text: whatever it says, it is no marker of the chat.
        ids = self.processor.tokenizer(answer, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return [*ids, self.end]


def finetune(
    model: ViLaMPForConditionalGeneration,
    processor: ViLaMPProcessor,
    examples: Sequence[VideoQuestion],
    stage: Stage,
    trains: str,
    folder: str | PathLike[str],
    seed: int = 0,
    *,
    accelerator: Accelerator | None = None,
    max_frames: int = 600,
    gradient_checkpointing: bool = False,
) -> np.ndarray:
    """Train a model for one stage, from where the folder's state stands, and write it to `folder`/model.

    Several stages are several calls, each with a folder of its own. Each process holds the whole model, 4 bytes per
    parameter and 12 more per trained one: 122 GB to train Qwen2-7B, far less for the connectors.

    Args:
        model: trained in place; float32.
        processor: the model's.
        examples: as `read_examples` makes them.
        stage: how long and how fast; the released script's rate is 1e-5, with a warm-up of 0.03 and no weight decay.
        trains: a name in `TRAINABLE`.
        folder: for the state and the trained model; to resume, pass the same examples and untrained model again.
        seed: of the examples drawn.
        accelerator: from `make_accelerator`, such as with "bf16"; one in full precision when left out.
        max_frames: the most frames of a video (paper: 600, at 1 per second).
        gradient_checkpointing: compute the language model's activations a second time in place of keeping them.

    Returns:
        float32 [steps, 2]: loss and share of right answer tokens at every step.
    """
    folder, accelerator = Path(folder), accelerator or make_accelerator()
    task = FinetuningTask(model, processor, examples, trains, max_frames)
    if gradient_checkpointing:
        # Not of the whole model: transformers would then keep what the frozen encoders compute, for gradients.
        model.language_model.activation_checkpointing_enable()
    require_own(folder / "model", folder)
    curve = run_stage(stage, task, folder, seed, accelerator)
    model.language_model.activation_checkpointing_disable()
    if accelerator.is_main_process:
        with saved_whole(folder / "model") as waiting:
            model.save_pretrained(waiting)
            processor.save_pretrained(waiting)
    accelerator.wait_for_everyone()
    return curve


def finetune_checkpoint(
    model: str | PathLike[str],
    data: str | PathLike[str],
    folder: str | PathLike[str],
    *,
    selector: str | PathLike[str] | None = None,
    trains: str = "all but the encoders",
    steps: int = 1000,
    batch_size: int = 8,
    learning_rate: float = 1e-5,
    seed: int = 0,
    mixed_precision: str = "no",
    **options: Any,
) -> Path:
    """Load a checkpoint and a data set, and `finetune`; what can be refused is refused before weights are loaded.

    Args:
        model: a ViLaMP, or with a selector a LLaVA-OneVision.
        data: see `read_examples`.
        folder: for the state and the trained model.
        selector: a CLIP that a LLaVA-OneVision becomes a ViLaMP with.
        trains: a name in `TRAINABLE`.
        steps: of the optimizer.
        batch_size: examples per step, over all processes together.
        learning_rate: its peak.
        seed: of the examples drawn, and of new weights.
        mixed_precision: "no" or "bf16".
        options: of `finetune`: `max_frames`, `gradient_checkpointing`.

    Returns:
        The trained model's folder.
    """
    stage = Stage(choice("trains", trains, tuple(TRAINABLE)), steps, batch_size, learning_rate, weight_decay=0.0)
    examples, accelerator = read_examples(data), make_accelerator(mixed_precision)
    if selector is None:
        vilamp = load_checkpoint(model, dtype=torch.float32)
    else:
        vilamp = from_llava_onevision(model, selector=selector, dtype=torch.float32, seed=seed)
    processor = load_processor(model, vilamp.config, selector_tokenizer=selector)
    finetune(vilamp, processor, examples, stage, trains, folder, seed, accelerator=accelerator, **options)
    return Path(folder) / "model"
