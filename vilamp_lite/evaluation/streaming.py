"""From a file to an answer, stage by stage: seconds, memory and tokens of each (the paper's Fig. 1 and Table 5).

`measured_answer` makes the calls of `encode_video` and `generate` with a stopwatch between them.
`python -m vilamp_lite.evaluation.streaming` records the study of several lengths, each run in a process of its own.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from transformers.generation import BaseStreamer

from vilamp_lite.checkpoints import load_checkpoint, load_config, load_processor
from vilamp_lite.configuration import ViLaMPConfig
from vilamp_lite.evaluation.recorded import RESULTS, load_result
from vilamp_lite.evaluation.results import code_fingerprint, kept_result, weights_fingerprint
from vilamp_lite.evaluation.scoring import answers_match
from vilamp_lite.feature_store import FeatureStore
from vilamp_lite.modeling import (
    FrameProcessor,
    KeptRows,
    MixedPrecisionSequence,
    ViLaMPForConditionalGeneration,
    frames_at_once,
)
from vilamp_lite.processing import ViLaMPProcessor
from vilamp_lite.progress import progress_bar
from vilamp_lite.stamp import ROOT, keep_result, make_stamp, short_commit
from vilamp_lite.tinyworld import MINIATURE
from vilamp_lite.tinyworld.long_video import LongVideo, long_video
from vilamp_lite.video import FrameBatch, FrameStream, frames_at, stream_frames

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


def all_at_once_memory(
    config: ViLaMPConfig, num_frames: int, done: np.ndarray, bytes_per_number: int = 4
) -> np.ndarray:
    """What the released code's way would hold beside the model, by arithmetic.

    While it reads, pixels of both towers; then each frame's patches, its reference, the repeated query, and a copy for
    every learned map.

    Args:
        config: the model's.
        num_frames: N.
        done: [looks] frames that have passed, from 0 to 2 N for the two passes.
        bytes_per_number: 4 in float32, 2 in half precision.

    Returns:
        [looks] bytes.
    """
    sides = config.vision_config.image_size, config.selector_config.vision_config.image_size
    pixels = 3 * sum(side**2 for side in sides)
    maps = 2 * (config.merge_relevance == "mapped") + 2 * (config.merge_redundancy == "mapped")
    tensors = 1 + maps + (not config.merge_before_projection)  # reference, maps, projected
    features = config.num_patches * (config.vision_config.hidden_size + tensors * config.merge_size + config.query_size)
    read, merged = np.minimum(done, num_frames), np.maximum(done - num_frames, 0)
    return bytes_per_number * (pixels * read + features * merged)


def needle_keyframes(video: LongVideo, keyframes: torch.Tensor) -> list[int]:
    """Name the keyframes that show a needle."""
    spans = video.haystack.needle_frames
    return [frame for frame in keyframes.tolist() if any(start <= frame < stop for start, stop in spans)]


def shortened(trace: np.ndarray, points: int = 200) -> list[list[float]]:
    """Thin a trace for a file: the highest look out of each of about so many stretches of time."""
    parts = np.array_split(trace, min(points, len(trace)))
    return [part[part[:, 1].argmax()].round(3).tolist() for part in parts]


def result_of(measured: MeasuredAnswer, video: LongVideo) -> Row:
    """Put a run into plain numbers, as JSON has them."""
    question = video.haystack.question
    return {
        "frames": len(measured.sequence.timestamps),
        "question": question.text,
        "expected": question.answer,
        "answer": measured.answer,
        "correct": answers_match(measured.answer, question.answer),
        "needle_frames": [list(span) for span in video.haystack.needle_frames],
        "keyframes": measured.sequence.keyframes.tolist(),
        "needle_keyframes": needle_keyframes(video, measured.sequence.keyframes),
        "visual_tokens": len(measured.sequence.embeds),
        "seconds": measured.seconds,
        "memory_before": measured.before,
        "peak_memory": measured.peak_memory,
        "stages": measured.stages,
        "trace": shortened(measured.trace),
    }


# --- The study of several lengths ------------------------------------------------------------------------------------


def run_length(model: Path, cache: Path, num_frames: int, depth: float, seed: int) -> Row:
    """Measure one answer about a long video in this process, after a short one that loads what is loaded late."""
    torch.set_num_threads(1)
    vilamp = load_checkpoint(model)
    processor = load_processor(model, vilamp.config)
    for frames in (64, num_frames):
        video = long_video(cache, frames, depth, seed=seed)
        measured = measured_answer(vilamp, processor, video.path, video.haystack.question.text)
    return result_of(measured, video)


def streaming_study(
    model: Path, frames: Sequence[int], *, repeats: int, folder: Path, depth: float = 0.5, seed: int = 0
) -> Row:
    """Measure answers about videos of several lengths, each several times, each in a fresh process with one thread.

    Args:
        model: a miniature's directory.
        frames: values of N.
        repeats: runs of each; the lengths take turns, so that a machine that slows down meanwhile slows all of them.
        folder: for the videos and for finished runs, from which an interrupted study goes on.
        depth: of the needle.
        seed: of question and haystack.

    Returns:
        A study: a row for each N, with the median over the runs of seconds and memory and the last run's answer, and in
        `parameters` the exponents of CPU time over N, by stage, where there are two lengths or more.

    Raises:
        ValueError: no such model, or runs kept of another model or version of this package.
    """
    load_config(model)  # refuses what is no checkpoint, before videos are made
    about = {"weights": weights_fingerprint(model), "code": code_fingerprint(), "depth": depth, "seed": seed}
    runs: dict[int, list[Row]] = {number: [] for number in frames}
    # "spawn": a forked child would inherit this process's memory.
    context = multiprocessing.get_context("spawn")
    for repeat in range(repeats):
        for number in frames:
            settings = about | {"frames": number, "repeat": repeat}
            file = folder / f"run-{number}-{repeat}.json"
            kept = kept_result(file, settings)
            if kept is None:
                long_video(folder / "videos", number, depth, seed=seed)
                with ProcessPoolExecutor(1, mp_context=context) as pool:
                    row = pool.submit(run_length, model, folder / "videos", number, depth, seed).result()
                kept = {"settings": settings, "row": row, "stamp": make_stamp()}
                keep_result(file, kept)
            runs[number].append(kept["row"])
            print(f"N = {number:,}, run {repeat + 1}: {kept['row']['seconds']:.1f} s", flush=True)
    rows = [_median_row(own) for own in runs.values()]
    stamp = make_stamp(weights=about["weights"], seed=seed)
    parameters = {"frames": list(frames), "repeats": repeats, "depth": depth, "exponents": time_exponents(rows)}
    return json.loads(json.dumps({"study": "streaming", "parameters": parameters, "rows": rows, "stamp": stamp}))


def _median_row(runs: Sequence[Row]) -> Row:
    """The last run, with medians for its measured numbers."""
    row = dict(runs[-1])
    for name in ("seconds", "memory_before", "peak_memory"):
        row[name] = statistics.median(run[name] for run in runs)
    row["stages"] = [
        stage
        | {
            name: statistics.median(run["stages"][place][name] for run in runs)
            for name in ("seconds", "cpu_seconds", "share", "peak_memory")
        }
        for place, stage in enumerate(row["stages"])
    ]
    return row


def time_exponents(rows: Sequence[Row]) -> dict[str, float]:
    """Fit CPU seconds = c · N^e for each stage, over the rows' lengths; e is 1 where time grows as the video does."""
    if len({row["frames"] for row in rows}) < 2:
        return {}
    frames = np.log([row["frames"] for row in rows])
    exponents = {}
    for place, stage in enumerate(rows[0]["stages"]):
        seconds = [max(row["stages"][place]["cpu_seconds"], 1e-6) for row in rows]
        exponents[stage["stage"]] = float(np.polyfit(frames, np.log(seconds), 1)[0])
    return exponents


@dataclass(frozen=True)
class RecordedRun:
    """A line of the README's table.

    Attributes:
        name: of the result.
        frames: N.
        about: model and machine.
        trained: whether the weights are; an answer of random ones means nothing.
    """

    name: str
    frames: int
    about: str
    trained: bool = True


RECORDED_RUNS = (
    *(RecordedRun("streaming", frames, "miniature, CPU, 1 thread") for frames in (1_000, 2_000, 5_000, 10_000)),
    RecordedRun("streaming_100000", 100_000, "miniature, CPU, 1 thread"),
    RecordedRun("streaming_h100", 10_000, "full size with random weights, H100", trained=False),
    RecordedRun("streaming_a100", 10_000, "authors' checkpoint, A100"),
)


def results_table(folder: Path = RESULTS) -> list[list[str]]:
    """The README's table of runs, its head first; what nobody has run says so."""
    table = [["frames", "model and machine", "time to the answer", "peak above the model's", "needle", "commit"]]
    for run in RECORDED_RUNS:
        study = load_result(run.name, folder) if (folder / f"{run.name}.json").is_file() else {"rows": []}
        found = [row for row in study["rows"] if row["frames"] == run.frames]
        measured = ["not run", "", "", ""]
        if found:
            (row,) = found
            above = (row["peak_memory"] - row["memory_before"]) / 1e6
            needle = f"{'found' if row['needle_keyframes'] else 'missed'}, {row['answer']!r}"
            measured = [
                f"{row['seconds']:.0f} s",
                f"{above:,.0f} MB",
                needle if run.trained else "no meaning",
                short_commit(study["stamp"]),
            ]
        table.append([f"{run.frames:,}", run.about, *measured])
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Record the streaming study: figures/results/NAME.json."""
    parser = argparse.ArgumentParser(prog="python -m vilamp_lite.evaluation.streaming", description=main.__doc__)
    parser.add_argument("--name", default="streaming", help="of the result")
    parser.add_argument("--model", type=Path, default=MINIATURE)
    parser.add_argument("--frames", type=int, nargs="+", default=[1000, 2000, 5000, 10_000])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "streaming", help="videos and finished runs")
    options = parser.parse_args(arguments)
    try:
        study = streaming_study(options.model, options.frames, repeats=options.repeats, folder=options.folder)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"stopped; finished runs are kept in {options.folder}: the same command goes on", file=sys.stderr)
        return 130
    keep_result(options.out / f"{options.name}.json", study)
    print(options.out / f"{options.name}.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
