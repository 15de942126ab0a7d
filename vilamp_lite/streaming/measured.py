"""From a file to an answer, stage by stage: seconds, memory and tokens of each (the paper's Fig. 1 and Table 5)."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from transformers.generation import BaseStreamer

from vilamp_lite.common.progress import progress_bar
from vilamp_lite.modeling import MixedPrecisionSequence, ViLaMPForConditionalGeneration
from vilamp_lite.processing import ViLaMPProcessor
from vilamp_lite.streaming.encode import FrameProcessor, KeptRows, frames_at_once
from vilamp_lite.streaming.feature_store import FeatureStore
from vilamp_lite.video.source import FrameBatch, FrameStream, frames_at, stream_frames

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


class _FirstToken(BaseStreamer):
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
    prompt = processor.prompts([question])
    with Stopwatch(model.device) as clock:
        if store is None:
            sequence = _streamed(model, processor, video, question, clock)
        else:
            with clock.stage(STORE_STAGES[0]):
                store.encode(video, model, processor)
            with clock.stage(STORE_STAGES[1]):
                sequence = store.sequence(model, question, processor)
        with clock.stage("prefill"):
            output = model.generate(
                **prompt,
                video_embeds=[sequence.embeds],
                max_new_tokens=max_new_tokens,
                do_sample=False,
                streamer=_FirstToken(clock),
                output_logits=True,
                return_dict_in_generate=True,
            )
    if not all(bool(logits.isfinite().all()) for logits in output.logits):
        raise ValueError(f"logits are not finite in {model.language_model.dtype}: use bfloat16 or float32")
    tokens = output.sequences[0]
    num_frames, visual = len(sequence.timestamps), len(sequence.embeds)
    frames = dict.fromkeys(("selector embedding", "selection", "patches and merging", *STORE_STAGES), num_frames)
    frames |= dict.fromkeys(("decode", "resizing"), 2 * num_frames)  # two passes over the file
    counted = {
        "patches and merging": visual,
        "selection and merging": visual,
        "prefill": visual + prompt["input_ids"].shape[1] - 1,
        "decoding": len(tokens),
    }
    total = sum(about["seconds"] for about in clock.stages.values())
    known = (*VIDEO_STAGES, *STORE_STAGES, *ANSWER_STAGES)
    rows = [
        {"stage": stage, **about, "share": about["seconds"] / total}
        | {"frames": frames.get(stage), "tokens": counted.get(stage)}
        for stage, about in sorted(clock.stages.items(), key=lambda item: known.index(item[0]))
    ]
    return MeasuredAnswer(
        processor.batch_decode(output.sequences)[0].strip(), tokens, sequence, rows, clock.before, np.array(clock.trace)
    )


def _streamed(
    model: ViLaMPForConditionalGeneration, processor: FrameProcessor, video: Path, query: str, clock: Stopwatch
) -> MixedPrecisionSequence:
    """Do what `encode_video` does, but decode and resize in turns with the rest, so that each stage has its own time.

    A test holds the two together.
    """
    sampling = {"fps": model.config.fps, "batch_size": frames_at_once(model.config)}
    with clock.stage("probe"):
        stream = stream_frames(video, **sampling)
        model.config.require_room(stream.num_frames)
    with clock.stage("selector embedding"):
        query_embed = model.embed_query(**processor.selector_query([query]))[0]
        frame_embeds, timestamps = KeptRows(stream.num_frames), KeptRows(stream.num_frames)
        for batch, pixels in _prepared(stream, clock, "select", processor.selector_pixels):
            frame_embeds.add(model.embed_frames(pixels).cpu())
            timestamps.add(torch.from_numpy(batch.timestamps))
    with clock.stage("selection"):
        embeds = frame_embeds.rows
        keyframes = model.select(embeds, query_embed.to(embeds.device)).indices
    with clock.stage("patches and merging"):
        read_ahead = {}
        for frame in model.early_references(len(embeds), keyframes):
            with clock.stage("decode"):
                picture = frames_at(video, [frame], **sampling)
            with clock.stage("resizing"):
                pixels = processor.vision_pixels(picture)
            read_ahead[frame] = model.patch_features(pixels)[0]
        with clock.stage("probe"):
            stream = stream_frames(video, **sampling)
        second_pass = _prepared(stream, clock, "merge", processor.vision_pixels)
        patches = (model.patch_features(pixels) for _, pixels in second_pass)
        sequence = model.mix_tokens(patches, len(embeds), keyframes, query_embed, read_ahead)
    return replace(sequence, timestamps=timestamps.rows.numpy())


def _prepared(
    stream: FrameStream, clock: Stopwatch, doing: str, prepare: Callable[[np.ndarray], torch.Tensor]
) -> Iterator[tuple[FrameBatch, torch.Tensor]]:
    """Yield a stream's batches and their pixels; the clock's frames count both passes."""
    with progress_bar(stream.num_frames, "frames", doing) as bar:
        while True:
            with clock.stage("decode"):
                batch = next(stream, None)
            if batch is None:
                return
            with clock.stage("resizing"):
                pixels = prepare(batch.frames)
            clock.frames += len(batch.frames)
            yield batch, pixels
            bar.update(len(batch.frames))
