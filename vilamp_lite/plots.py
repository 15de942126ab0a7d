"""Every figure of the notebooks and the README, one function each.

Colours are colour-blind safe: seaborn's "colorblind" palette for categories, "cividis" and "vlag" for values. Every
function returns a matplotlib figure and leaves showing or saving it to the caller.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from vilamp_lite.evaluation.scenes import Scene
from vilamp_lite.keyframes import KeyframeSelection

if TYPE_CHECKING:
    from vilamp_lite.configuration import ViLaMPConfig

_PALETTE = sns.color_palette("colorblind")
_BLUE, _ORANGE, _GREEN, _GREY = _PALETTE[0], _PALETTE[1], _PALETTE[2], _PALETTE[7]
_PURPLE = _PALETTE[4]


def set_style() -> None:
    """Set fonts, grid and resolution for all figures that follow."""
    sns.set_theme(style="whitegrid", palette="colorblind", context="notebook")
    plt.rcParams.update(
        {"figure.dpi": 80, "savefig.dpi": 120, "savefig.bbox": "tight", "axes.titlesize": 11, "axes.labelsize": 10}
    )


def contact_sheet(frames: np.ndarray, labels: Sequence[str], columns: int = 6) -> Figure:
    """Show frames in reading order, each with a label above it.

    Args:
        frames: uint8 [n, H, W, 3].
        labels: n of them.
        columns: pictures in a row.
    """
    rows = math.ceil(len(frames) / columns)
    height = 11 / columns * frames.shape[1] / frames.shape[2] + 0.3
    figure, axes = plt.subplots(rows, columns, figsize=(11, rows * height), squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for axis, frame, label in zip(axes.flat, frames, labels, strict=False):
        axis.imshow(frame)
        axis.set_title(label, fontsize=8)
    return figure


def frame_similarity(similarity: np.ndarray, timestamps: np.ndarray, scenes: Sequence[Scene]) -> Figure:
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
    axis.set_yticks([(scene.start + scene.end) / 2 for scene in scenes], [scene.title for scene in scenes], fontsize=9)
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
    answers: Sequence[Scene] = (),
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
        axis.axvspan(scene.start, scene.end, color=_GREEN, alpha=0.2, label=None if number else "answers the query")
    axis.plot(timestamps, relevance, color=_BLUE, linewidth=1.5)
    keyframes = np.asarray(keyframes, dtype=int)
    if len(keyframes):
        axis.plot(timestamps[keyframes], relevance[keyframes], "o", color=_ORANGE, label="keyframe")
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
    axis.set(xlabel="time (s)", ylabel="relevance (cosine)", title=f"“{query}”")
    if len(keyframes) or len(answers):
        axis.legend(loc="best", fontsize=9)
    return axis.figure


def film_strip(
    frames: np.ndarray,
    timestamps: np.ndarray,
    selection: KeyframeSelection,
    query: str,
    *,
    answers: Sequence[Scene] = (),
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
    for number, (axis, frame, picture) in enumerate(zip(axes, indices, frames, strict=False), start=1):
        axis.imshow(picture)
        axis.set_title(f"{number}: {timestamps[frame]:.0f} s, chosen {_ordinal(rank_of[frame])}", fontsize=8)
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
        axis.add_patch(plt.matplotlib.patches.Wedge((0, 0), 1, angle - reach, angle + reach, color=_ORANGE, alpha=0.15))
        label = f"chosen {_ordinal(rank)}"
        background = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
        axis.annotate(label, embeds[frame] * 0.7, ha="center", va="center", fontsize=9, bbox=background, zorder=4)
    chosen = np.isin(np.arange(len(embeds)), selection.indices)
    refused = selection.refused_by.numpy() >= 0
    for mask, colour, name in (
        (chosen, _ORANGE, "keyframe"),
        (refused, _GREY, "refused"),
        (~chosen & ~refused, _BLUE, "not visited"),
    ):
        axis.scatter(*embeds[mask].T, color=colour, s=60, label=name, zorder=3)
    for frame, point in enumerate(embeds):
        axis.annotate(str(frame), point * 1.1, ha="center", va="center", fontsize=10)
    axis.annotate("", query * 0.95, (0, 0), arrowprops={"color": _GREEN, "width": 2, "headwidth": 9})
    axis.annotate("query", query * 1.22, color=_GREEN, ha="center", va="center")
    axis.set(xlim=(-1.25, 1.25), ylim=(-1.25, 1.3), aspect="equal")
    axis.axis("off")
    axis.legend(loc="lower left", fontsize=9)
    return figure


def score_bars(scores: Mapping[str, Mapping[str, float]]) -> Figure:
    """Compare methods on several scores between 0 and 1, one panel for each score.

    Args:
        scores: for each method, its scores by name.
    """
    names = list(next(iter(scores.values())))
    figure, axes = plt.subplots(1, len(names), figsize=(12, 0.4 * len(scores) + 1.2), sharey=True, layout="constrained")
    for axis, name in zip(np.atleast_1d(axes), names, strict=True):
        values = [row[name] for row in scores.values()]
        bars = axis.barh(list(scores), values, color=[_ORANGE if n == "dks" else _BLUE for n in scores])
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
    figure, axis = plt.subplots(figsize=(8, 3.5), layout="constrained")
    for (limit, chosen), marker in zip(counts.items(), "osD^v", strict=False):
        axis.plot(thresholds, chosen, marker=marker, markersize=4, label=f"K = {limit}")
    axis.axhline(num_scenes, color="black", linestyle="--", linewidth=1, label="scenes in the video")
    axis.set(xlabel="τ, the largest cosine two keyframes may have", ylabel="keyframes chosen")
    axis.legend(fontsize=9)
    return figure


def patch_maps(frame: np.ndarray, reference: np.ndarray, maps: Mapping[str, np.ndarray]) -> Figure:
    """Lay maps of patch scores over a frame, beside its keyframe; each map has its own colour range.

    Args:
        frame: uint8 [H, W, 3].
        reference: uint8 [H, W, 3], its keyframe.
        maps: [h, w] values by title.
    """
    panels = 2 + len(maps)
    figure, axes = plt.subplots(1, panels, figsize=(2.5 * panels, 2.1), layout="constrained")
    for axis, picture, title in zip(axes, (reference, frame), ("keyframe", "this frame"), strict=False):
        axis.imshow(picture)
        axis.set_title(title, fontsize=10)
    for axis, (title, values) in zip(axes[2:], maps.items(), strict=True):
        axis.imshow(frame.mean(axis=2), cmap="gray", alpha=0.9)
        image = axis.imshow(
            values,
            cmap="cividis",
            norm=Normalize(values.min(), values.max()),
            alpha=0.65,
            extent=(0, frame.shape[1], frame.shape[0], 0),
            interpolation="nearest",
        )
        axis.set_title(title, fontsize=10)
        figure.colorbar(image, ax=axis, shrink=0.7, format="%.2f")
    for axis in axes:
        axis.axis("off")
    return figure


def sharpness(temperatures: Sequence[float], effective: Mapping[str, Sequence[float]], num_patches: int) -> Figure:
    """Show over how many patches a merged token is spread as α grows.

    Args:
        temperatures: values of α.
        effective: for each curve, exp(entropy of the weights) at each α, by name.
        num_patches: M, the most it can be.
    """
    figure, axis = plt.subplots(figsize=(8, 3.5), layout="constrained")
    for (name, values), marker in zip(effective.items(), "osD^", strict=False):
        axis.plot(temperatures, values, marker=marker, markersize=4, label=name)
    axis.axhline(num_patches, color="black", linestyle="--", linewidth=1, label=f"mean pooling: all {num_patches}")
    axis.set(xscale="log", xlabel="α, the temperature of the merge", ylabel="patches that count (exp. entropy)")
    axis.set_ylim(0, num_patches * 1.1)
    axis.legend(fontsize=9)
    return figure


def token_budget(num_frames: Sequence[int], budgets: Mapping[str, Sequence[int]], context: int) -> Figure:
    """Show how many visual tokens a video costs, by its number of frames.

    Args:
        num_frames: values of N.
        budgets: for each way of counting, the tokens at each N.
        context: the language model's longest sequence, drawn as a line.
    """
    figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
    for (name, tokens), marker in zip(budgets.items(), "osD^", strict=False):
        axis.plot(num_frames, tokens, marker=marker, markersize=4, label=name)
    axis.axhline(context, color="black", linestyle="--", linewidth=1, label=f"context of Qwen2-7B: {context:,}")
    axis.set(xscale="log", yscale="log", xlabel="frames in the video, N", ylabel="visual tokens")
    axis.legend(fontsize=9)
    return figure


def _ordinal(number: int) -> str:
    suffix = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"


def architecture(config: "ViLaMPConfig") -> Figure:
    """Draw the assembled model as boxes and arrows, with its sizes in the boxes and shapes on the arrows.

    Letters: N frames, K keyframes, T tokens, as in the paper. The reference of a merge is drawn as the paper has it.

    Args:
        config: whose sizes, order of merging and projection, pooling and newline are drawn.
    """
    vision, text, selector = config.vision_config, config.text_config, config.selector_config
    patches, kept, width = config.num_patches, config.tokens_per_keyframe, text.hidden_size
    side, size = math.isqrt(patches), config.merge_size
    figure, axis = plt.subplots(figsize=(14, 6.4), layout="constrained")
    axis.set(xlim=(0, 19.3), ylim=(0.7, 9))
    axis.axis("off")

    axis.add_patch(plt.Rectangle((3.1, 4.75), 2.8, 3.5, facecolor="0.95", edgecolor="0.6", linestyle="--"))
    axis.text(4.5, 7.98, f"Selector: {_name(selector)}", ha="center", va="center", fontsize=10, fontweight="bold")
    _box(axis, (1.0, 7.15), (1.7, 0.9), "Question", _GREEN)
    _box(axis, (1.0, 3.9), (1.7, 1.2), "Video\nN frames", _GREY)
    _box(axis, (4.5, 7.15), (2.4, 0.9), f"text tower\n{selector.text_config.num_hidden_layers} layers", _GREEN)
    _box(axis, (4.5, 5.5), (2.4, 1.1), f"image tower\n{selector.vision_config.num_hidden_layers} layers", _GREY)
    tower = f"Vision tower: {_name(vision)}\n{vision.num_hidden_layers} layers × {vision.hidden_size}\n"
    _box(axis, (4.5, 2.45), (2.8, 1.4), f"{tower}{side}×{side} = {patches} patches", _GREY)
    limits = f"K ≤ {config.max_keyframes}, τ = {config.similarity_threshold:g}"
    _box(axis, (8.0, 5.5), (2.0, 1.1), f"Level 1: DKS\n{limits}", _ORANGE)
    _box(axis, (8.0, 2.45), (1.3, 3.2), "keyframe?", _ORANGE)
    newline = "\n+ newline" * config.video_newline
    _box(axis, (18.3, 2.45), (1.7, 3.2), f"interleave in\ntemporal order{newline}", _PURPLE)
    context = f"{text.num_hidden_layers} layers × {width}\n{text.max_position_embeddings:,} positions"
    _box(axis, (17.8, 6.3), (2.7, 1.5), f"Language model: {_name(text)}\n{context}", _PURPLE)
    _box(axis, (18.3, 8.4), (1.4, 0.6), "Answer", _PURPLE)

    shared = config.connectors == "shared"
    mlp_n = (f"MLP{' (the same)' if shared else '_n'}\n{vision.hidden_size} → {width}", _BLUE)
    merge = (f"Level 2: DFM\n{patches} patches → 1", _BLUE)
    order = [(merge, f"[N−K, {size}]"), (mlp_n, f"[N−K, {width}]")]
    if not config.merge_before_projection:
        order = [(mlp_n, f"[N−K, {patches}, {width}]"), (merge, f"[N−K, {width}]")]
    for x, ((label, colour), shape), reach in zip((11.5, 15.1), order, (14.2, 17.45), strict=True):
        _box(axis, (x, 3.55), (1.8, 0.95), label, colour)
        _arrow(axis, [(x + 0.9, 3.55), (reach, 3.55)], shape)
    _box(axis, (11.5, 1.35), (1.8, 0.95), f"MLP{'' if shared else '_k'}\n{vision.hidden_size} → {width}", _ORANGE)
    pooled = config.keyframe_pooling != "none"
    if pooled:
        half = math.isqrt(kept)
        _box(axis, (15.1, 1.35), (1.8, 0.95), f"pool\n{side}×{side} → {half}×{half}", _ORANGE)
        _arrow(axis, [(12.4, 1.35), (14.2, 1.35)], "", f"[K, {patches}, {width}]", (13.3, 1.13))
    _arrow(axis, [(16.0 if pooled else 12.4, 1.35), (17.45, 1.35)], "", f"[{kept}·K, {width}]", (16.7, 1.13))

    merge_x = 11.5 if config.merge_before_projection else 15.1
    _arrow(axis, [(1.85, 7.15), (3.3, 7.15)], "tokens")
    _arrow(axis, [(1.85, 4.2), (2.5, 4.2), (2.5, 5.5), (3.3, 5.5)], "", "[N, 3, H, W]", (1.8, 5.0))
    _arrow(axis, [(1.85, 3.6), (2.5, 3.6), (2.5, 2.45), (3.1, 2.45)])
    _arrow(axis, [(5.7, 7.15), (8.0, 7.15), (8.0, 6.05)], "", f"q  [{config.query_size}]", (6.8, 7.35))
    _arrow(axis, [(8.0, 7.15), (merge_x, 7.15), (merge_x, 4.02)], "", "q", (merge_x + 0.2, 5.5))
    _arrow(axis, [(5.7, 5.5), (7.0, 5.5)], f"[N, {config.query_size}]")
    _arrow(axis, [(8.0, 4.95), (8.0, 4.05)], "", "keyframe\nnumbers [K]", (8.85, 4.5))
    _arrow(axis, [(5.9, 2.45), (7.35, 2.45)], f"[N, {patches},\n{vision.hidden_size}]")
    _arrow(axis, [(8.65, 3.55), (10.6, 3.55)], f"no: [N−K, {patches}, {vision.hidden_size}]")
    _arrow(axis, [(8.65, 1.35), (10.6, 1.35)], "", f"yes: [K, {patches}, {vision.hidden_size}]", (9.6, 1.13))
    start = merge_x - 1.4
    reference = f"reference keyframe\n[{patches}, {size}]"
    path = [(start, 1.35), (start, 2.45), (merge_x, 2.45), (merge_x, 3.07)]
    _arrow(axis, path, "", reference, (merge_x + 1.0, 2.55), dashed=True)
    total = f"[T, {width}]\nT = {kept}·K + (N−K)" + " + 1" * config.video_newline
    _arrow(axis, [(18.3, 4.05), (18.3, 5.55)], "", total, (16.9, 4.8))
    _arrow(axis, [(1.0, 7.6), (1.0, 8.6), (15.8, 8.6), (15.8, 6.3), (16.45, 6.3)], "", "question's tokens", (8.0, 8.75))
    _arrow(axis, [(18.3, 7.05), (18.3, 8.1)])
    axis.plot(8.0, 7.15, "o", color="0.25", markersize=5)
    return figure


def mixed_precision(
    frame_of_token: np.ndarray, keyframes: np.ndarray, pictures: np.ndarray, timestamps: np.ndarray
) -> Figure:
    """Show which tokens a video's frames become: time below, the language model's sequence above, keyframes on top.

    Args:
        frame_of_token: int [T], the frame of each token; −1 for the newline.
        keyframes: int [K], in temporal order.
        pictures: uint8 [K, H, W, 3], the keyframes.
        timestamps: [N] seconds of all frames.
    """
    frames, tokens = len(timestamps), len(frame_of_token)
    figure, axis = plt.subplots(figsize=(12, 3.8), layout="constrained")
    axis.set(xlim=(0, 1), ylim=(0, 2.15))
    for frame in range(frames):
        own = np.flatnonzero(frame_of_token == frame)
        colour = _ORANGE if len(own) > 1 or frame in keyframes else _BLUE
        below, above = (frame / frames, (frame + 1) / frames), (own[0] / tokens, (own[-1] + 1) / tokens)
        corners = [(below[0], 0.2), (below[1], 0.2), (above[1], 1), (above[0], 1)]
        axis.add_patch(plt.Polygon(corners, facecolor=colour, alpha=0.3, edgecolor="white", linewidth=0.6))
        axis.add_patch(plt.Rectangle((below[0], 0), 1 / frames, 0.2, facecolor=colour, edgecolor="white"))
        for token in own:
            axis.add_patch(plt.Rectangle((token / tokens, 1), 1 / tokens, 0.25, facecolor=colour, edgecolor="white"))
    for token in np.flatnonzero(frame_of_token < 0):
        axis.add_patch(plt.Rectangle((token / tokens, 1), 1 / tokens, 0.25, facecolor="black", edgecolor="white"))
    for frame, picture in zip(keyframes, pictures, strict=True):
        own = np.flatnonzero(frame_of_token == frame)
        bounds = (own[0] / tokens, 1.3, len(own) / tokens, 0.8)
        inset = axis.inset_axes(bounds, transform=axis.transData, anchor="S")
        inset.imshow(picture)
        inset.axis("off")
        inset.set_title(f"frame {frame}, {timestamps[frame]:.0f} s", fontsize=9)
    ticks = np.arange(0, frames, 5)
    axis.set_xticks((ticks + 0.5) / frames, [str(tick) for tick in ticks])
    axis.set_yticks([0.1, 1.125], [f"{frames} frames", f"{tokens} tokens"])
    axis.set_xlabel("frame number")
    axis.grid(False)
    axis.spines[:].set_visible(False)
    widest = max(np.count_nonzero(frame_of_token == frame) for frame in keyframes)
    names = {f"keyframe: {widest} tokens each": _ORANGE, "other frame: one token each": _BLUE, "newline": "black"}
    handles = [plt.Rectangle((0, 0), 1, 1, facecolor=colour) for colour in names.values()]
    figure.legend(handles, names, loc="outside upper center", ncols=3, fontsize=9)
    return figure


def context_use(budgets: Mapping[str, tuple[int, int]], context: int) -> Figure:
    """Show how much of the language model's context a video takes, by ways of counting its tokens.

    Bars longer than the figure are cut; their numbers are written in full.

    Args:
        budgets: for each way of counting, the tokens of keyframes and all other tokens.
        context: the language model's positions, drawn as a line.
    """
    figure, axis = plt.subplots(figsize=(10, 0.6 * len(budgets) + 1.2), layout="constrained")
    names, parts = list(budgets), np.array(list(budgets.values()))
    axis.barh(names, parts[:, 0], color=_ORANGE, label="keyframes' tokens")
    axis.barh(names, parts[:, 1], left=parts[:, 0], color=_BLUE, label="all other tokens")
    axis.axvline(context, color="black", linestyle="--", linewidth=1, label=f"context: {context:,}")
    axis.set(xlim=(0, 1.6 * context), xlabel="tokens")
    for row, total in enumerate(parts.sum(axis=1)):
        label = f"{total:,} ({100 * total / context:.0f} %)" + (" →" if total > 1.6 * context else "")
        background = {"facecolor": "white", "edgecolor": "none", "alpha": 0.9, "pad": 2}
        at = min(total, 1.25 * context) + 0.01 * context
        axis.text(at, row, label, va="center", fontsize=9, bbox=background)
    axis.grid(axis="y", visible=False)
    axis.invert_yaxis()
    figure.legend(loc="outside upper center", ncols=3, fontsize=9)
    return figure


def reference_timeline(keyframes: Sequence[int], references: Mapping[str, Sequence[int]]) -> Figure:
    """Show which frame each stretch of frames between keyframes is compared with, one row for each rule.

    Args:
        keyframes: K frame numbers.
        references: for each rule, by name, the frame that each of the N frames is compared with.
    """
    figure, axes = plt.subplots(len(references), 1, figsize=(11, 2.2 * len(references)), layout="constrained")
    for axis, (name, reference_of) in zip(np.atleast_1d(axes), references.items(), strict=True):
        for frame in range(len(reference_of)):
            colour = _ORANGE if frame in keyframes else _BLUE
            axis.add_patch(plt.Rectangle((frame + 0.04, 0), 0.92, 0.6, facecolor=colour, alpha=0.9))
            axis.text(frame + 0.5, 0.3, str(frame), ha="center", va="center", color="white", fontweight="bold")
        run = []
        for frame, reference in enumerate(reference_of):
            run = [] if frame in keyframes else [*run, frame]
            last = frame + 1 == len(reference_of) or frame + 1 in keyframes or reference_of[frame + 1] != reference
            if run and last:
                _compared(axis, run[0], run[-1], reference)
                run = []
        axis.set(xlim=(-0.1, len(reference_of) + 0.1), ylim=(-0.4, 2.1))
        axis.set_title(name, loc="left")
        axis.axis("off")
    names = {"keyframe": _ORANGE, "other frame": _BLUE}
    handles = [plt.Rectangle((0, 0), 1, 1, facecolor=colour) for colour in names.values()]
    figure.legend(handles, names, loc="outside upper right", ncols=2, fontsize=9)
    return figure


def _compared(axis: Axes, first: int, last: int, reference: int) -> None:
    """Bracket frames `first` to `last` and draw an arrow to the frame they are compared with."""
    middle = (first + last + 1) / 2
    if first == last == reference:
        axis.text(middle, -0.08, "itself", ha="center", va="top", fontsize=9)
        return
    axis.plot([first + 0.1, first + 0.1, last + 0.9, last + 0.9], [0.68, 0.78, 0.78, 0.68], color="black", linewidth=1)
    arc = {
        "arrowstyle": "-|>",
        "color": "black",
        "connectionstyle": f"arc3,rad={0.3 if reference < middle else -0.3}",
    }
    axis.annotate("", (reference + 0.5, 0.62), (middle, 0.8), arrowprops=arc)


def _name(config: object) -> str:
    """Call a sub-configuration by the name of its family."""
    return {"clip": "CLIP", "siglip_vision_model": "SigLIP", "qwen2": "Qwen2"}.get(config.model_type, config.model_type)


def _box(axis: Axes, centre: tuple[float, float], size: tuple[float, float], label: str, colour: object) -> None:
    """Draw a labelled box; the colour is its edge and a tint of its face."""
    corner = (centre[0] - size[0] / 2, centre[1] - size[1] / 2)
    axis.add_patch(plt.Rectangle(corner, *size, facecolor="white", edgecolor="none", zorder=2))
    axis.add_patch(plt.Rectangle(corner, *size, facecolor=(*colour, 0.18), edgecolor=colour, linewidth=1.8, zorder=2))
    axis.text(*centre, label, ha="center", va="center", fontsize=10, zorder=3)


def _arrow(
    axis: Axes,
    points: Sequence[tuple[float, float]],
    shape: str = "",
    note: str = "",
    at: tuple[float, float] = (0, 0),
    *,
    dashed: bool = False,
) -> None:
    """Draw an arrow through points, with a shape above its first stretch or a note anywhere."""
    style = "--" if dashed else "-"
    xs, ys = zip(*points[:-1], strict=True)
    axis.plot(xs, ys, color="0.25", linewidth=1.3, linestyle=style, zorder=1)
    arrow = {"arrowstyle": "-|>", "color": "0.25", "linewidth": 1.3, "linestyle": style, "shrinkA": 0, "shrinkB": 0}
    axis.annotate("", points[-1], points[-2], arrowprops=arrow, zorder=1)
    if shape:
        middle = ((points[0][0] + points[1][0]) / 2, points[0][1] + 0.1)
        axis.text(*middle, shape, ha="center", va="bottom", fontsize=9)
    if note:
        axis.text(*at, note, ha="center", va="center", fontsize=9)


Interval = tuple[float, float, float]  # a share, and the low and high end of its interval


def training_curves(curves: Mapping[str, np.ndarray]) -> Figure:
    """Show how each stage of a training went: loss above, accuracy below.

    Args:
        curves: for each stage, in order, [steps, 2]: loss and accuracy of every step; drawn as means over 2 % of them.
    """
    from vilamp_lite.training import smoothed  # here, since it loads accelerate and transformers: seconds

    size = (1 + 2.4 * len(curves), 3.8)
    figure, axes = plt.subplots(2, len(curves), figsize=size, sharex="col", squeeze=False, layout="constrained")
    for (upper, lower), (stage, curve) in zip(axes.T, curves.items(), strict=True):
        steps, means = zip(*smoothed(curve, max(len(curve) // 50, 1)), strict=True)
        loss, accuracy = np.array(means).T
        upper.plot(steps, loss, color=_BLUE)
        upper.set(title=stage, ylim=(0, None))
        lower.plot(steps, accuracy, color=_ORANGE)
        lower.set(xlabel="step", ylim=(-0.03, 1.03))
    axes[0, 0].set_ylabel("loss")
    axes[1, 0].set_ylabel("accuracy in training")
    return figure


def needle_heat_maps(
    accuracy: Mapping[str, np.ndarray], frames: Sequence[int], depths: Sequence[float], chance: float
) -> Figure:
    """Show how often needles are found by length of the haystack and depth in it (Fig. 2), a map for each variant.

    Args:
        accuracy: [depths, frames] from 0 to 1, by variant.
        frames: lengths N.
        depths: from 0 to 1, shown in percent.
        chance: accuracy of guessing, marked beside the colours.
    """
    size = (1.6 + len(accuracy) * (1.2 + 0.75 * len(frames)), 1.4 + 0.5 * len(depths))
    figure, axes = plt.subplots(1, len(accuracy), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axis, (name, values) in zip(axes.flat, accuracy.items(), strict=True):
        image = _heat_map(axis, values, [f"{n:,}" for n in frames], [f"{100 * depth:g}" for depth in depths])
        axis.set(title=name, xlabel="frames in the haystack")
    axes[0, 0].set_ylabel("depth of the needle (%)")
    bar = figure.colorbar(image, ax=axes, label="accuracy", shrink=0.9, pad=0.02)
    bar.ax.axhline(chance, color=_ORANGE, linewidth=2)
    bar.ax.annotate("chance", (1, chance), (6, 0), textcoords="offset points", color=_ORANGE, fontsize=9, va="center")
    return figure


def threshold_heat_map(
    accuracy: np.ndarray, thresholds: Sequence[float], temperatures: Sequence[float], own: tuple[float, float]
) -> Figure:
    """Show accuracy over τ and α (Table 6).

    Args:
        accuracy: [thresholds, temperatures] from 0 to 1.
        thresholds: values of τ.
        temperatures: values of α.
        own: the model's own τ and α, framed if they are among the values.
    """
    size = (2.8 + 0.85 * len(temperatures), 1.3 + 0.5 * len(thresholds))
    figure, axis = plt.subplots(figsize=size, layout="constrained")
    image = _heat_map(axis, accuracy, [f"{alpha:.2g}" for alpha in temperatures], [f"{tau:g}" for tau in thresholds])
    axis.set(xlabel="α, temperature of the merge", ylabel="τ, largest cosine")
    if own[0] in thresholds and own[1] in temperatures:
        corner = temperatures.index(own[1]) - 0.5, thresholds.index(own[0]) - 0.5
        axis.add_patch(plt.Rectangle(corner, 1, 1, fill=False, edgecolor=_ORANGE, linewidth=3, label="as trained"))
        figure.legend(loc="outside upper right", fontsize=9)
    figure.colorbar(image, ax=axis, label="accuracy")
    return figure


def _heat_map(axis: Axes, values: np.ndarray, columns: Sequence[str], rows: Sequence[str]) -> plt.cm.ScalarMappable:
    """Shares from 0 to 1 as colours, each with its number."""
    image = axis.imshow(values, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    axis.set_xticks(range(len(columns)), columns)
    axis.set_yticks(range(len(rows)), rows)
    axis.grid(False)
    for (row, column), value in np.ndenumerate(values):
        colour = "black" if value > 0.55 else "white"
        axis.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=9)
    return image


def variant_dots(
    accuracy: Mapping[str, Mapping[str, Interval]], chance: Mapping[str, float], highlight: str | None = None
) -> Figure:
    """Compare variants with their intervals, one panel for each family of questions (Table 2).

    Args:
        accuracy: for each family, by variant: accuracy, low and high end of its interval.
        chance: accuracy of guessing, by family, drawn as a line; families may be missing.
        highlight: the variant to set off by colour.
    """
    variants = list(next(iter(accuracy.values())))
    size = (3.2 + 1.9 * len(accuracy), 1.3 + 0.27 * len(variants))
    figure, axes = plt.subplots(1, len(accuracy), figsize=size, sharey=True, squeeze=False, layout="constrained")
    places = np.arange(len(variants))
    for axis, (family, intervals) in zip(axes.flat, accuracy.items(), strict=True):
        shares, low, high = np.array([intervals[name] for name in variants]).T
        for mask, colour in ((places >= 0, _BLUE), (np.array(variants) == highlight, _ORANGE)):
            axis.hlines(places[mask], low[mask], high[mask], color=colour, linewidth=2)
            axis.plot(shares[mask], places[mask], "o", color=colour, markersize=5)
        if family in chance:
            axis.axvline(chance[family], color="black", linestyle="--", linewidth=1)
        axis.set(title=family, xlim=(-0.03, 1.03), xlabel="accuracy")
        axis.set_xticks([0, 0.5, 1])
    axes[0, 0].set_yticks(places, variants)
    axes[0, 0].invert_yaxis()
    names = {"95 % interval": {"color": _BLUE, "marker": "o"}, "chance": {"color": "black", "linestyle": "--"}}
    if highlight in variants:
        names = {highlight: {"color": _ORANGE, "marker": "o"}} | names
    _legend(figure, names)
    return figure


def setting_curves(
    values: Sequence[float], accuracy: Mapping[str, Sequence[Interval]], label: str, own: float, log: bool = False
) -> Figure:
    """Show how accuracy changes with one setting, such as K (Fig. 6) or λ: a panel for each family of questions.

    Args:
        values: of the setting.
        accuracy: for each family, at each value: accuracy, low and high end of its interval.
        label: the setting's name, with its unit.
        own: the value that the model was trained with, drawn as a line.
        log: whether the setting's axis doubles from tick to tick.
    """
    size = (1 + 2.1 * len(accuracy), 2.9)
    figure, axes = plt.subplots(1, len(accuracy), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axis, (family, intervals) in zip(axes.flat, accuracy.items(), strict=True):
        shares, low, high = np.array(intervals).T
        axis.fill_between(values, low, high, color=_BLUE, alpha=0.25, linewidth=0)
        axis.plot(values, shares, "o-", color=_BLUE, markersize=4)
        axis.axvline(own, color=_ORANGE, linewidth=1.5, linestyle="--")
        axis.set(title=family, ylim=(-0.03, 1.03))
        if log:
            axis.set_xscale("log", base=2)
            axis.set_xticks([value for value in values if math.log2(value).is_integer()])
            axis.xaxis.set_major_formatter("{x:g}")
    figure.supxlabel(label, fontsize=10)
    axes[0, 0].set_ylabel("accuracy")
    names = {
        "accuracy, 95 % interval": {"color": _BLUE, "marker": "o"},
        "as trained": {"color": _ORANGE, "linestyle": "--"},
    }
    _legend(figure, names)
    return figure


def paired_differences(differences: Mapping[str, Mapping[str, Interval]], label: str) -> Figure:
    """Show differences between two models on the same questions, one panel for each comparison.

    Args:
        differences: for each comparison, by family: difference, low and high end of its interval.
        label: what was subtracted from what.
    """
    families = list(next(iter(differences.values())))
    size = (1.6 + 2.9 * len(differences), 1.3 + 0.32 * len(families))
    figure, axes = plt.subplots(1, len(differences), figsize=size, sharey=True, squeeze=False, layout="constrained")
    reach = max(abs(end) for rows in differences.values() for row in rows.values() for end in row) * 1.08
    for axis, (name, rows) in zip(axes.flat, differences.items(), strict=True):
        places = np.arange(len(families))
        middle, low, high = np.array([rows[family] for family in families]).T
        axis.axvline(0, color="black", linewidth=1)
        axis.hlines(places, low, high, color=_BLUE, linewidth=2)
        axis.plot(middle, places, "o", color=_BLUE, markersize=6)
        axis.set(title=name, xlim=(-reach, reach), ylim=(len(families) - 0.5, -0.5))
        axis.xaxis.set_major_locator(plt.MaxNLocator(4))
    axes[0, 0].set_yticks(range(len(families)), families)
    figure.supxlabel(label, fontsize=10)
    return figure


def accuracy_by_tokens(curves: Mapping[str, Mapping[float, Interval]], chance: float) -> Figure:
    """Show what accuracy each method reaches with how many visual tokens.

    Args:
        curves: for each method, in order, visual tokens and accuracy with its interval there.
        chance: what guessing reaches, a dashed line.
    """
    figure, axis = plt.subplots(figsize=(6.6, 3.8), layout="constrained")
    for (name, points), colour, marker in zip(curves.items(), _PALETTE, "osD^vP", strict=False):
        tokens = sorted(points)
        shares, lows, highs = np.array([points[count] for count in tokens]).T
        bars = [shares - lows, highs - shares]
        axis.errorbar(tokens, shares, bars, color=colour, marker=marker, markersize=5, capsize=2, label=name)
    axis.axhline(chance, color="black", linestyle="--", linewidth=1, label="chance")
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.set(xlabel="visual tokens", ylabel="accuracy, 95 % interval", ylim=(-0.03, 1.03))
    figure.legend(loc="outside upper center", ncols=min(len(curves) + 1, 5), frameon=False, fontsize=9)
    return figure


def attention_concentration(curves: Mapping[str, Sequence[float]], share: float) -> Figure:
    """Show what part of the attention falls on what part of the frames, the most attended first (§3).

    Args:
        curves: for each name, the attention on the most attended 0 to 100 % of the frames, at equal steps.
        share: of the attention, drawn as a line.
    """
    figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
    for (name, reached), style, colour in zip(curves.items(), ("-", "--", "-.", ":"), _PALETTE, strict=False):
        percent = np.linspace(0, 100, len(reached))
        axis.plot(percent[1:], 100 * np.array(reached)[1:], linestyle=style, color=colour, linewidth=2, label=name)
    even = np.linspace(1, 100, 100)
    axis.plot(even, even, color=_GREY, linewidth=1.5, label="even attention")
    axis.axhline(100 * share, color="black", linestyle="--", linewidth=1, label=f"{100 * share:g} % of the attention")
    ticks = [1, 2, 5, 10, 20, 50, 100]
    axis.set(xscale="log", xlim=(1, 100), ylim=(0, 103))
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.set(xlabel="frames, the most attended first (%)", ylabel="attention on frames (%)")
    axis.legend(fontsize=9, loc="lower right")
    return figure


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
    axis.plot(trace[:, 0], (trace[:, 1] - before) / scale, color=_BLUE, linewidth=1.5, label="streaming, measured")
    axis.plot(trace[:, 0], np.asarray(held) / scale, color=_ORANGE, linestyle="--", label="all at once, by arithmetic")
    if limit is not None:
        axis.axhline((limit - before) / scale, color="black", linestyle=":", label="all that the device has left")
    axis.set(xlabel="time (s)", ylabel=f"memory above the model's ({unit})", xlim=(0, None))
    axis.legend(loc="upper left", fontsize=9)
    return figure


def stage_budget(stages: Sequence[Mapping[str, Any]]) -> Figure:
    """Show how long each stage of one run took.

    Args:
        stages: rows with stage, seconds and share, in order.
    """
    figure, axis = plt.subplots(figsize=(9, 0.6 + 0.38 * len(stages)), layout="constrained")
    seconds = [row["seconds"] for row in stages]
    bars = axis.barh([row["stage"] for row in stages], seconds, color=_BLUE)
    axis.bar_label(bars, [f"{100 * row['share']:.1f} %" for row in stages], padding=4, fontsize=9)
    axis.set(xlabel="time (s)", xlim=(0, 1.12 * max(seconds)))
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    return figure


def stage_memory(schedule: Sequence[Mapping[str, Any]], gpu: str, capacity: float) -> Figure:
    """Show which stages of a run fit a GPU's memory.

    Args:
        schedule: of `costs.Costs.schedule`: stage, memory in bytes and fits, in order.
        gpu: its name.
        capacity: its memory in bytes.
    """
    figure, axis = plt.subplots(figsize=(9, 0.8 + 0.38 * len(schedule)), layout="constrained")
    memory = [row["memory"] / 1e9 for row in schedule]
    colours = [_BLUE if row["fits"] else _ORANGE for row in schedule]
    bars = axis.barh([row["stage"] for row in schedule], memory, color=colours)
    words = [f"{gb:.3g} GB{'' if row['fits'] else ', does not fit'}" for gb, row in zip(memory, schedule, strict=True)]
    axis.bar_label(bars, words, padding=4, fontsize=9)
    axis.axvline(capacity / 1e9, color=_GREY, linestyle="--", label=gpu)
    axis.set(xlabel="memory at the stage's peak (GB)", xlim=(0, 1.3 * max(*memory, capacity / 1e9)))
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.legend(loc="lower right", fontsize=9)
    return figure


def growth_by_frames(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Show how each stage's CPU time and the peak memory grow with the video (Table 5, measured).

    Args:
        rows: of the streaming study: frames, stages, memory_before and peak_memory.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained", width_ratios=(3, 2))
    frames = [row["frames"] for row in rows]
    for place, (stage, marker) in enumerate(zip(rows[0]["stages"], itertools.cycle("osD^vP*"), strict=False)):
        seconds = [row["stages"][place]["cpu_seconds"] for row in rows]
        left.plot(frames, seconds, marker=marker, color=_PALETTE[place % len(_PALETTE)], label=stage["stage"])
    left.set(xscale="log", yscale="log", xlabel="frames in the video, N", ylabel="CPU time (s)")
    left.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    above = [(row["peak_memory"] - row["memory_before"]) / 1e6 for row in rows]
    right.plot(frames, above, "o-", color=_BLUE)
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
    for model, colour, marker in zip(models, itertools.cycle(_PALETTE), itertools.cycle("osD^vP*X<>"), strict=False):
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
    dotted = plt.Line2D([], [], color=_GREY, linestyle=":")
    return [*handles, dotted], [*names, "beyond its own files"]


def sweep_heat_map(table: pd.DataFrame, metric: str, x: str, y: str) -> Figure:
    """Show a metric over two parameters of a sweep, its mean over all others.

    Args:
        table: a row for each cell, with a column for the metric and one for each parameter that was varied.
        metric: a column.
        x: the column across.
        y: the column down.
    """
    means = table.pivot_table(index=y, columns=x, values=metric, aggfunc="mean")
    figure, axis = plt.subplots(figsize=(2.5 + 0.8 * means.shape[1], 1.5 + 0.5 * means.shape[0]), layout="constrained")
    sns.heatmap(means, annot=True, fmt=".3g", cmap="cividis", cbar_kws={"label": metric}, ax=axis)
    axis.set_title(_averaged(table, metric, x, y))
    return figure


def sweep_curves(table: pd.DataFrame, metric: str, x: str, hue: str | None = None) -> Figure:
    """Show a metric over one parameter of a sweep: its mean over all others, with the range between them.

    Args:
        table: as for `sweep_heat_map`.
        metric: a column.
        x: the column across.
        hue: the column whose every value has its own curve.
    """
    figure, axis = plt.subplots(figsize=(6.6, 3.8), layout="constrained")
    colours = None if hue is None else sns.color_palette("colorblind", table[hue].nunique())
    # All of the values lie between the 0th and the 100th percentile.
    sns.lineplot(table, x=x, y=metric, hue=hue, style=hue, palette=colours, markers=True, errorbar=("pi", 100), ax=axis)
    title = _averaged(table, metric, x, hue)
    axis.set_title(title if title == metric else f"{title}, range shaded")
    return figure


def _averaged(table: pd.DataFrame, metric: str, *shown: str | None) -> str:
    """Say what a sweep's figure does not show."""
    others = [name for name in table.columns if name not in (metric, *shown) and table[name].nunique() > 1]
    return f"{metric}, mean over {', '.join(others)}" if others else metric


def _legend(figure: Figure, names: Mapping[str, Mapping[str, object]]) -> None:
    handles = [plt.Line2D([], [], **style) for style in names.values()]
    figure.legend(handles, names, loc="outside upper right", ncols=len(names), fontsize=9)
