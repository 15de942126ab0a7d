"""Record answers about long videos: seconds and memory by length, each run in a process of its own."""

import argparse
import json
import multiprocessing
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

from vilamp_lite.checkpoints import load_checkpoint, load_config, load_processor
from vilamp_lite.common.files import write_json
from vilamp_lite.common.fingerprints import code_fingerprint, weights_fingerprint
from vilamp_lite.common.stamp import ROOT, make_stamp
from vilamp_lite.evaluation.results import RESULTS, Row, Study, kept_result, result_of
from vilamp_lite.streaming.measured import measured_answer
from vilamp_lite.tinyworld import MINIATURE
from vilamp_lite.tinyworld.long_videos import long_video


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
) -> Study:
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
            row = kept_result(file, settings, "row", Row)
            if row is None:
                long_video(folder / "videos", number, depth, seed=seed)
                with ProcessPoolExecutor(1, mp_context=context) as pool:
                    row = pool.submit(run_length, model, folder / "videos", number, depth, seed).result()
                write_json(file, {"settings": settings, "row": row, "stamp": make_stamp()})
            runs[number].append(row)
            print(f"N = {number:,}, run {repeat + 1}: {row['seconds']:.1f} s", flush=True)
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Record the streaming study: figures/results/NAME.json."""
    parser = argparse.ArgumentParser(prog="python -m figures.make_streaming", description=main.__doc__)
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
    write_json(options.out / f"{options.name}.json", study)
    print(options.out / f"{options.name}.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
