"""Figures of frames and their selection (notebooks 01 and 02)."""

import math
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vilamp_lite.common import in_seconds
from vilamp_lite.evaluation.scenes import PhotoScene
from vilamp_lite.keyframes import KeyframeSelection
from vilamp_lite.plots.sequences import ordinal
from vilamp_lite.plots.style import BLUE, GREEN, GREY, ORANGE, curves_and_line, plain, quoted


def contact_sheet(frames: np.ndarray, labels: Sequence[str], columns: int = 6) -> Figure:
    """Show frames, uint8 [n, H, W, 3], in reading order, each with its label above it."""
    rows = math.ceil(len(frames) / columns)
    height = 11 / columns * frames.shape[1] / frames.shape[2] + 0.3
    figure, axes = plt.subplots(rows, columns, figsize=(11, rows * height), squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for axis, frame, label in zip(axes.flat, frames, labels, strict=False):
        axis.imshow(frame)
        axis.set_title(plain(label), fontsize=8)
    return figure


def frame_similarity(similarity: np.ndarray, timestamps: np.ndarray, scenes: Sequence[PhotoScene]) -> Figure:
    """Show the cosines between all frames of a short video, with its scenes named along the side.

    Args:
        similarity: [N, N] cosines.
        timestamps: [N] seconds.
        scenes: in temporal order.
    """
    figure, axis = plt.subplots(figsize=(10, 7.2), layout="constrained")
    end = scenes[-1].end
    image = axis.imshow(similarity, cmap="cividis", vmin=-0.5, vmax=1, extent=(0, end, end, 0), interpolation="nearest")
    for scene in scenes[1:]:
        axis.axhline(scene.start, color="white", linewidth=0.5)
        axis.axvline(scene.start, color="white", linewidth=0.5)
    axis.set_yticks(
        [(scene.start + scene.end) / 2 for scene in scenes], [plain(scene.title) for scene in scenes], fontsize=9
    )
    axis.set(xlabel="time (s)", title=f"Cosine similarity between the {len(timestamps)} sampled frames")
    axis.grid(False)
    figure.colorbar(image, label="cosine", shrink=0.7, pad=0.02)
    return figure


def similarity_histogram(groups: Mapping[str, np.ndarray], threshold: float) -> Figure:
    """Compare how alike the frames of several kinds of pairs are.

    Args:
        groups: cosines of each kind of pair, by name.
        threshold: τ, drawn as a line.
    """
    figure, axis = plt.subplots(figsize=(8, 3.5), layout="constrained")
    bins = np.linspace(-1, 1, 41)
    for (name, values), style in zip(groups.items(), ("-", "--", ":"), strict=False):
        share = 100 * np.histogram(values, bins)[0] / len(values)
        axis.stairs(share, bins, linewidth=2, linestyle=style, label=f"{name}: mean {values.mean():.2f}")
    axis.axvline(threshold, color="black", linewidth=1, label=f"τ = {threshold:g}")
    # Neighbours crowd into one bar; a logarithmic axis leaves the others visible.
    axis.set(xlabel="cosine between two frames", ylabel="pairs (%)", xlim=(-1, 1), yscale="log")
    axis.legend(loc="upper left", fontsize=9)
    return figure


def relevance_curve(
    relevance: np.ndarray,
    timestamps: np.ndarray,
    query: str,
    *,
    keyframes: Sequence[int] = (),
    answers: Sequence[PhotoScene] = (),
    axis: Axes | None = None,
) -> Figure:
    """Show how relevant each frame is to a query over time.

    Args:
        relevance: [N] R_f.
        timestamps: [N] seconds.
        query: its text.
        keyframes: frames to mark with their number in temporal order.
        answers: scenes to shade, such as those that answer the query.
        axis: where to draw; a new figure when left out.
    """
    if axis is None:
        _, axis = plt.subplots(figsize=(11, 3), layout="constrained")
    for number, scene in enumerate(answers):
        axis.axvspan(scene.start, scene.end, color=GREEN, alpha=0.2, label=None if number else "answers the query")
    axis.plot(timestamps, relevance, color=BLUE, linewidth=1.5)
    keyframes = np.asarray(keyframes, dtype=int)
    if len(keyframes):
        axis.plot(timestamps[keyframes], relevance[keyframes], "o", color=ORANGE, label="keyframe")
        for number, frame in enumerate(keyframes, start=1):
            axis.annotate(
                str(number),
                (timestamps[frame], relevance[frame]),
                xytext=(0, 6),
                textcoords="offset points",
                ha="center",
                fontsize=9,
            )
    axis.margins(x=0.01, y=0.15)
    axis.set(xlabel="time (s)", ylabel="relevance (cosine)", title=quoted(query))
    if len(keyframes) or len(answers):
        axis.legend(loc="best", fontsize=9)
    return axis.figure


def film_strip(
    frames: np.ndarray,
    timestamps: np.ndarray,
    selection: KeyframeSelection,
    query: str,
    *,
    answers: Sequence[PhotoScene] = (),
    columns: int = 8,
) -> Figure:
    """Show a video's keyframes for a query as a film strip, with the relevance curve under it.

    Args:
        frames: uint8 [K', H, W, 3], the keyframes in temporal order.
        timestamps: [N] seconds of all sampled frames.
        selection: what was chosen.
        query: its text.
        answers: scenes to shade, such as those that answer the query.
        columns: pictures in a row.
    """
    rows = math.ceil(len(frames) / columns)
    row_height = 12 / columns * frames.shape[1] / frames.shape[2] + 0.35
    figure = plt.figure(figsize=(12, rows * row_height + 2.6), layout="constrained")
    strip, curve = figure.subfigures(2, 1, height_ratios=[rows * row_height, 2.6])
    axes = list(strip.subplots(rows, columns, squeeze=False).flat)
    rank_of = {frame: rank for rank, frame in enumerate(selection.order.tolist(), start=1)}
    for axis in axes:
        axis.axis("off")
    indices = selection.indices.tolist()
    times = in_seconds(timestamps, indices)
    for number, (axis, frame, time, picture) in enumerate(zip(axes, indices, times, frames, strict=False), start=1):
        axis.imshow(picture)
        axis.set_title(f"{number}: {time} s, chosen {ordinal(rank_of[frame])}", fontsize=8)
    relevance_curve(
        selection.relevance.numpy(), timestamps, query, keyframes=indices, answers=answers, axis=curve.subplots()
    )
    return figure


def refused_twins(
    frames: np.ndarray, twins: np.ndarray, times: Sequence[tuple[float, float]], cosines: Sequence[float]
) -> Figure:
    """Show refused frames over the keyframes that refused them.

    Args:
        frames: uint8 [n, H, W, 3], refused.
        twins: uint8 [n, H, W, 3], the keyframe that each resembles.
        times: n pairs of seconds: of the frame and of its keyframe.
        cosines: n similarities.
    """
    figure, axes = plt.subplots(2, len(frames), figsize=(12, 24 / len(frames) * 0.75), squeeze=False)
    for column, (frame, twin, (time, twin_time), cosine) in enumerate(zip(frames, twins, times, cosines, strict=True)):
        axes[0, column].imshow(frame)
        axes[0, column].set_title(f"refused, {time:.0f} s", fontsize=9)
        axes[1, column].imshow(twin)
        axes[1, column].set_title(f"keyframe, {twin_time:.0f} s\ncosine {cosine:.2f}", fontsize=9)
    for axis in axes.flat:
        axis.axis("off")
    figure.tight_layout()
    return figure


def walk_on_circle(embeds: np.ndarray, query: np.ndarray, selection: KeyframeSelection, threshold: float) -> Figure:
    """Draw Algorithm 1 for embeddings in the plane: keyframes, what they refuse, and the query.

    Args:
        embeds: [N, 2] unit vectors.
        query: [2].
        selection: made from them.
        threshold: τ; frames within arccos τ of a keyframe are refused.
    """
    figure, axis = plt.subplots(figsize=(5.5, 5.5), layout="constrained")
    axis.add_patch(plt.Circle((0, 0), 1, fill=False, color="0.7"))
    reach = math.degrees(math.acos(threshold))
    for rank, frame in enumerate(selection.order.tolist(), start=1):
        angle = math.degrees(math.atan2(embeds[frame, 1], embeds[frame, 0]))
        axis.add_patch(plt.matplotlib.patches.Wedge((0, 0), 1, angle - reach, angle + reach, color=ORANGE, alpha=0.15))
        label = f"chosen {ordinal(rank)}"
        background = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
        axis.annotate(label, embeds[frame] * 0.7, ha="center", va="center", fontsize=9, bbox=background, zorder=4)
    chosen = np.isin(np.arange(len(embeds)), selection.indices)
    refused = selection.refused_by.numpy() >= 0
    for mask, colour, name in (
        (chosen, ORANGE, "keyframe"),
        (refused, GREY, "refused"),
        (~chosen & ~refused, BLUE, "not visited"),
    ):
        axis.scatter(*embeds[mask].T, color=colour, s=60, label=name, zorder=3)
    for frame, point in enumerate(embeds):
        axis.annotate(str(frame), point * 1.1, ha="center", va="center", fontsize=10)
    axis.annotate("", query * 0.95, (0, 0), arrowprops={"color": GREEN, "width": 2, "headwidth": 9})
    axis.annotate("query", query * 1.22, color=GREEN, ha="center", va="center")
    axis.set(xlim=(-1.25, 1.25), ylim=(-1.25, 1.3), aspect="equal")
    axis.axis("off")
    axis.legend(loc="lower left", fontsize=9)
    return figure


def score_bars(scores: Mapping[str, Mapping[str, float]]) -> Figure:
    """Compare methods on several scores between 0 and 1, one panel for each score; `scores` are by method and name."""
    names = list(next(iter(scores.values())))
    figure, axes = plt.subplots(1, len(names), figsize=(12, 0.4 * len(scores) + 1.2), sharey=True, layout="constrained")
    for axis, name in zip(np.atleast_1d(axes), names, strict=True):
        values = [row[name] for row in scores.values()]
        bars = axis.barh(list(scores), values, color=[ORANGE if n == "dks" else BLUE for n in scores])
        axis.bar_label(bars, fmt="%.2f", padding=3, fontsize=9)
        axis.set(xlim=(0, 1.18), title=name)
        axis.grid(axis="y", visible=False)
    np.atleast_1d(axes)[0].invert_yaxis()
    return figure


def keyframe_sweep(thresholds: Sequence[float], counts: Mapping[int, Sequence[int]], num_scenes: int) -> Figure:
    """Show how many keyframes are chosen as τ and K change.

    Args:
        thresholds: values of τ.
        counts: for each K, the number chosen at each τ.
        num_scenes: drawn as a line.
    """
    named = {f"K = {limit}": chosen for limit, chosen in counts.items()}
    figure, axis = curves_and_line(thresholds, named, num_scenes, "scenes in the video")
    axis.set(xlabel="τ, the largest cosine two keyframes may have", ylabel="keyframes chosen")
    return figure
