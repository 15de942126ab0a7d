"""Figures of costs, memory and time (notebook 05)."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vilamp_lite.configuration import ViLaMPConfig
from vilamp_lite.costs.shapes import GPUS
from vilamp_lite.costs.vilamp import all_at_once_memory
from vilamp_lite.evaluation.results import Study
from vilamp_lite.plots.style import BLUE, GREY, ORANGE, PALETTE


def memory_by_frames(rows: Sequence[Mapping[str, Any]], lines: Mapping[str, float]) -> Figure:
    """Show how much GPU memory models need for a video, by its number of frames (Fig. 1).

    A line is dotted beyond the frames that a model's own files speak of.

    Args:
        rows: of `costs.costs_by_frames`: model, frames, memory in bytes, documented.
        lines: bytes to draw as lines, by name, such as a GPU's memory.
    """
    figure, axis = plt.subplots(figsize=(9, 5), layout="constrained")
    _by_frames(axis, rows, "memory", 1e9)
    low, high = axis.get_ylim()
    axis.set(xlabel="frames in the video, N", ylabel="peak memory (GB = 10⁹ bytes)", ylim=(low, high))
    for name, memory in lines.items():
        axis.axhline(memory / 1e9, color="black", linestyle="--", linewidth=1)
        axis.annotate(
            name, (0.005, memory / 1e9), xycoords=("axes fraction", "data"), va="bottom", fontsize=9, color="black"
        )
    ticks = [tick for tick in (10, 20, 40, 80, 160, 320, 640, 1280) if low <= tick <= high]
    axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    figure.legend(*_with_dotted(axis), loc="outside right center", fontsize=9, frameon=False)
    return figure


def flops_by_frames(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Show FLOPs to the first token by frames: of the language model alone, and of all stages (Table 5).

    Args:
        rows: of `costs.costs_by_frames`: model, frames, prefill_causal, flops_causal, documented.
    """
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.4), sharey=True, layout="constrained")
    panels = {"prefill_causal": "language model's prefill alone", "flops_causal": "all stages to the first token"}
    for axis, (column, title) in zip(axes, panels.items(), strict=True):
        _by_frames(axis, rows, column, 1e12)
        axis.set(xlabel="frames in the video, N", title=title)
    axes[0].set_ylabel("TFLOP, attention counted causally")
    figure.legend(*_with_dotted(axes[0]), loc="outside right center", fontsize=9, frameon=False)
    return figure


def memory_trace(trace: np.ndarray, before: int, held: Sequence[float], limit: float | None = None) -> Figure:
    """Show memory over the time of one run, against what holding everything would take at the same moments.

    Args:
        trace: [looks, 3] of `MeasuredAnswer`: seconds, bytes in use, frames done.
        before: bytes in use at the start.
        held: [looks] bytes that the way that holds all frames' features would have added, by arithmetic.
        limit: bytes that the device has in all, for a line.
    """
    figure, axis = plt.subplots(figsize=(10, 3.8), layout="constrained")
    scale, unit = (1e9, "GB") if max(held) > 1e10 else (1e6, "MB")
    axis.plot(trace[:, 0], (trace[:, 1] - before) / scale, color=BLUE, linewidth=1.5, label="streaming, measured")
    axis.plot(trace[:, 0], np.asarray(held) / scale, color=ORANGE, linestyle="--", label="all at once, by arithmetic")
    if limit is not None:
        axis.axhline((limit - before) / scale, color="black", linestyle=":", label="all that the device has left")
    axis.set(xlabel="time (s)", ylabel=f"memory above the model's ({unit})", xlim=(0, None))
    axis.legend(loc="upper left", fontsize=9)
    return figure


def full_size_memory_figure(study: Study) -> Figure:
    """Fig. 1 over time: the full-size model on an H100, from a run of notebook 05, against all frames at once."""
    (row,) = study["rows"]
    trace = np.array(row["trace"])
    held = all_at_once_memory(ViLaMPConfig.released(), row["frames"], trace[:, 2], bytes_per_number=2)
    return memory_trace(trace, row["memory_before"], held, GPUS["h100-80gb"].memory)


def measured_on_gpu(peer: Study, *own: Study) -> Figure:
    """Fig. 1 measured: peak memory and time to the first token by frames, of full-size models with random weights.

    Args:
        peer: of `benchmarks.gpu`: the same language model with 169 tokens for every frame.
        own: parts of it that answer about files of some lengths.
    """
    medians = [next(row for row in study["rows"] if "median" in row["what"]) for study in own]
    ours = [row | {"seconds": row["encoding_seconds"] + row["prefill_seconds"]} for row in medians]
    theirs = [row for row in peer["rows"] if "seconds" in row]
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for axis, (column, unit, label) in zip(
        axes, (("peak_memory", 1e9, "peak memory (GB)"), ("seconds", 1, "time to the first token (s)")), strict=True
    ):
        for rows, name, colour in ((theirs, "169 tokens a frame", ORANGE), (ours, "ViLaMP", BLUE)):
            values = [row[column] / unit for row in rows]
            axis.plot([row["frames"] for row in rows], values, "o-", color=colour, label=name)
        axis.set(xscale="log", yscale="log", xlabel="frames in the video, N", ylabel=label)
    axes[0].axhline(GPUS["h100-80gb"].memory / 1e9, color="black", linestyle=":", label="all that an H100 has")
    for axis, ticks in zip(axes, ((20, 40, 80), (0.5, 1, 2, 5, 10, 20)), strict=True):
        axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.set_xticks([100, 1_000, 10_000], ["100", "1,000", "10,000"])
        axis.minorticks_off()
    axes[0].legend(fontsize=9)
    return figure


def stage_budget(stages: Sequence[Mapping[str, Any]]) -> Figure:
    """Show how long each stage of one run took; rows with stage, seconds and share, in order."""
    figure, axis = plt.subplots(figsize=(9, 0.6 + 0.38 * len(stages)), layout="constrained")
    seconds = [row["seconds"] for row in stages]
    bars = axis.barh([row["stage"] for row in stages], seconds, color=BLUE)
    axis.bar_label(bars, [f"{100 * row['share']:.1f} %" for row in stages], padding=4, fontsize=9)
    axis.set(xlabel="time (s)", xlim=(0, 1.12 * max(seconds)))
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    return figure


def stage_memory(schedule: Sequence[Mapping[str, Any]], gpu: str, capacity: float) -> Figure:
    """Show which stages of a run, from `Costs.schedule`, fit the memory of a GPU, `capacity` bytes."""
    figure, axis = plt.subplots(figsize=(9, 0.8 + 0.38 * len(schedule)), layout="constrained")
    memory = [row["memory"] / 1e9 for row in schedule]
    colours = [BLUE if row["fits"] else ORANGE for row in schedule]
    bars = axis.barh([row["stage"] for row in schedule], memory, color=colours)
    words = [f"{gb:.3g} GB{'' if row['fits'] else ', does not fit'}" for gb, row in zip(memory, schedule, strict=True)]
    axis.bar_label(bars, words, padding=4, fontsize=9)
    axis.axvline(capacity / 1e9, color=GREY, linestyle="--", label=gpu)
    axis.set(xlabel="memory at the stage's peak (GB)", xlim=(0, 1.3 * max(*memory, capacity / 1e9)))
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.legend(loc="lower right", fontsize=9)
    return figure


def growth_by_frames(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Show how each stage's CPU time and the peak memory grow with the video (Table 5), from the streaming study."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained", width_ratios=(3, 2))
    frames = [row["frames"] for row in rows]
    for place, (stage, marker) in enumerate(zip(rows[0]["stages"], itertools.cycle("osD^vP*"), strict=False)):
        seconds = [row["stages"][place]["cpu_seconds"] for row in rows]
        left.plot(frames, seconds, marker=marker, color=PALETTE[place % len(PALETTE)], label=stage["stage"])
    left.set(xscale="log", yscale="log", xlabel="frames in the video, N", ylabel="CPU time (s)")
    left.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    above = [(row["peak_memory"] - row["memory_before"]) / 1e6 for row in rows]
    right.plot(frames, above, "o-", color=BLUE)
    right.set(xscale="log", xlabel="frames in the video, N", ylabel="peak above the model's (MB)")
    right.set_ylim(0, 1.2 * max(above))
    for axis in (left, right):
        axis.set_xticks(frames, [f"{number:,}" for number in frames], fontsize=8)
        axis.minorticks_off()
    return figure


def _by_frames(axis: Axes, rows: Sequence[Mapping[str, Any]], column: str, unit: float) -> None:
    """Draw a line for each model over logarithmic axes, dotted beyond the frames that its files speak of."""
    axis.set(xscale="log", yscale="log")
    models = list(dict.fromkeys(row["model"] for row in rows))
    for model, colour, marker in zip(models, itertools.cycle(PALETTE), itertools.cycle("osD^vP*X<>"), strict=False):
        own = [row for row in rows if row["model"] == model]
        frames, values = np.array([(row["frames"], row[column] / unit) for row in own]).T
        spoken = np.array([row["documented"] is not False for row in own])
        axis.plot(frames, values, color=colour, linewidth=1.5, linestyle=":")
        style = {"linewidth": 2, "marker": marker, "markersize": 5}
        axis.plot(frames[spoken], values[spoken], color=colour, label=model, **style)
    axis.xaxis.set_major_formatter("{x:,.0f}")


def _with_dotted(axis: Axes) -> tuple[list[Any], list[str]]:
    """An axis's legend, and what dots mean."""
    handles, names = axis.get_legend_handles_labels()
    dotted = plt.Line2D([], [], color=GREY, linestyle=":")
    return [*handles, dotted], [*names, "beyond its own files"]
