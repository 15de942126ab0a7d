"""From a file to an answer, stage by stage: seconds, memory and tokens of each (the paper's Fig. 1 and Table 5)."""

import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from transformers.generation import BaseStreamer

from vilamp_lite.common.progress import announced_to
from vilamp_lite.generation import answer
from vilamp_lite.modeling import MixedPrecisionSequence, ViLaMPForConditionalGeneration
from vilamp_lite.processing import ViLaMPProcessor
from vilamp_lite.streaming.feature_store import FeatureStore
from vilamp_lite.video.source import FrameBatch, SampledVideo

# Before the language model, in order; then "prefill" and "decoding".
VIDEO_STAGES = ("probe", "decode", "resizing", "selector embedding", "selection", "patches and merging")
STORE_STAGES = ("encode into the store", "selection and merging")
ANSWER_STAGES = ("prefill", "decoding")
_SAMPLED_EVERY = 0.02  # seconds between two looks at the memory
Row = dict[str, Any]


def used_memory(device: torch.device) -> int:
    """Bytes in use now: of tensors on a GPU, or else what the process holds in RAM."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss


class Stopwatch:
    """Charges time and memory to named stages; a stage inside another one interrupts it.

    Memory is looked at every 20 ms by a thread, so that a shorter peak can be missed; on a GPU, torch counts its peaks.

    Attributes:
        device: whose memory is looked at.
        before: bytes in use when it started.
        stages: by name, wall and CPU seconds (of all threads of the process) and peak bytes.
        trace: every look: seconds since the start, bytes in use, frames done.
        frames: that are done, to be set by whoever does them.
    """

    def __init__(self, device: torch.device) -> None:
        """Set it to nothing; it runs inside `with`."""
        self.device = device
        self.before = used_memory(device)
        self.stages: dict[str, Row] = {}
        self.trace: list[tuple[float, int, int]] = []
        self.frames = 0
        self._stage: str | None = None
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Stopwatch":
        self._start = self._wall = time.perf_counter()
        self._cpu = time.process_time()
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.switch(None)
        self._ended.set()
        self._watcher.join()

    def switch(self, stage: str | None) -> None:
        """End the stage that runs, and begin another one."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # or a stage would pay for the one before
        wall, cpu = time.perf_counter(), time.process_time()
        if self._stage is not None:
            about = self._about(self._stage)
            about["seconds"] += wall - self._wall
            about["cpu_seconds"] += cpu - self._cpu
            self._look()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self._stage, self._wall, self._cpu = stage, wall, cpu

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Charge what is done inside `with` to a stage."""
        outer = self._stage
        self.switch(name)
        try:
            yield
        finally:
            self.switch(outer)

    def _about(self, stage: str) -> Row:
        return self.stages.setdefault(stage, {"seconds": 0.0, "cpu_seconds": 0.0, "peak_memory": 0})

    def _look(self) -> None:
        used, stage = used_memory(self.device), self._stage
        self.trace.append((time.perf_counter() - self._start, used, self.frames))
        if stage is not None:
            peak = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else used
            about = self._about(stage)
            about["peak_memory"] = max(about["peak_memory"], peak)

    def _watch(self) -> None:
        while not self._ended.wait(_SAMPLED_EVERY):
            self._look()


@dataclass(frozen=True, eq=False)
class MeasuredAnswer:
    """An answer and what it took.

    Attributes:
        answer: the text.
        tokens: its token ids, [n].
        sequence: the video as the language model read it.
        stages: a row each, in order: stage, `seconds`, `cpu_seconds`, `share` of the seconds, `peak_memory` in bytes,
            `frames` that passed, `tokens` that were made or read.
        before: bytes in use at the start, the model among them.
        trace: [looks, 3]: seconds, bytes in use, frames done.
    """

    answer: str
    tokens: torch.Tensor
    sequence: MixedPrecisionSequence
    stages: list[Row]
    before: int
    trace: np.ndarray

    @property
    def peak_memory(self) -> int:
        """Bytes in use at the highest."""
        return max(row["peak_memory"] for row in self.stages)

    @property
    def seconds(self) -> float:
        """From the file to the answer."""
        return sum(row["seconds"] for row in self.stages)


class FirstToken(BaseStreamer):
    """Ends the prefill when the first token is there."""

    def __init__(self, clock: Stopwatch) -> None:
        self.clock, self.calls = clock, 0

    def put(self, value: torch.Tensor) -> None:
        """Take what transformers gives: the prompt first, then each token."""
        self.calls += 1
        if self.calls == 2:
            self.clock.switch("decoding")

    def end(self) -> None:
        """Do nothing more."""


class _Counted(SampledVideo):
    """Tells a clock how many frames it has shown."""

    clock: Stopwatch

    def batches(self, batch_size: int = 32) -> Iterator[FrameBatch]:
        """All frames in order."""
        with closing(super().batches(batch_size)) as batches:
            for batch in batches:
                self.clock.frames += len(batch.frames)
                yield batch


@torch.no_grad()
def measured_answer(
    model: ViLaMPForConditionalGeneration,
    processor: ViLaMPProcessor,
    video: Path,
    question: str,
    *,
    max_new_tokens: int = 16,
    store: FeatureStore | None = None,
) -> MeasuredAnswer:
    """Answer a question about a video file greedily, and say what each stage took.

    Args:
        model: on the device where it shall run.
        processor: the model's.
        video: the file.
        question: asked, and what the keyframes should be relevant to.
        max_new_tokens: the longest answer.
        store: encode the video into it first, as far as it isn't there, and answer from it.

    Raises:
        ValueError: as `encode_video`, `FeatureStore.encode` and `generate`; or logits that are not finite, which half
            precision can bring about.
        VideoError: the file can't be read, or not to its end.
    """
    with Stopwatch(model.device) as clock:
        if store is None:
            with clock.stage("probe"):
                source = _Counted(video, fps=model.config.fps)
                source.clock = clock
            with announced_to(clock.stage):
                sequence = model.encode_video(source, question, processor)
        else:
            with clock.stage(STORE_STAGES[0]):
                store.encode(video, model, processor)
            with clock.stage(STORE_STAGES[1]):
                sequence = store.sequence(model, question, processor)
        with clock.stage("prefill"):
            said = answer(
                model, processor, question, sequence, max_new_tokens=max_new_tokens, streamer=FirstToken(clock)
            )
    num_frames, visual = len(sequence.timestamps), len(sequence.embeds)
    frames = dict.fromkeys(("selector embedding", "selection", "patches and merging", *STORE_STAGES), num_frames)
    frames |= dict.fromkeys(("decode", "resizing"), 2 * num_frames)  # two passes over the file
    counted = {
        "patches and merging": visual,
        "selection and merging": visual,
        "prefill": visual + processor.prompts([question])["input_ids"].shape[1] - 1,
        "decoding": len(said.tokens),
    }
    total = sum(about["seconds"] for about in clock.stages.values())
    known = (*VIDEO_STAGES, *STORE_STAGES, *ANSWER_STAGES)
    rows = [
        {"stage": stage, **about, "share": about["seconds"] / total}
        | {"frames": frames.get(stage), "tokens": counted.get(stage)}
        for stage, about in sorted(clock.stages.items(), key=lambda item: known.index(item[0]))
    ]
    return MeasuredAnswer(said.text, said.tokens, sequence, rows, clock.before, np.array(clock.trace))
