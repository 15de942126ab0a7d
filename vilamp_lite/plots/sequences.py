"""Figures of merging and of the mixed-precision sequence (notebooks 03 and 04)."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from vilamp_lite.plots.style import BLUE, GREEN, GREY, ORANGE, PURPLE, curves_and_line, plain

if TYPE_CHECKING:
    from vilamp_lite.configuration import ViLaMPConfig


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
        axis.set_title(plain(title), fontsize=10)
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
    figure, axis = curves_and_line(temperatures, effective, num_patches, f"mean pooling: all {num_patches}")
    axis.set(xscale="log", xlabel="α, the temperature of the merge", ylabel="patches that count (exp. entropy)")
    axis.set_ylim(0, num_patches * 1.1)
    return figure


def token_budget(num_frames: Sequence[int], budgets: Mapping[str, Sequence[int]], context: int) -> Figure:
    """Show how many visual tokens a video costs, by its number of frames.

    Args:
        num_frames: values of N.
        budgets: for each way of counting, the tokens at each N.
        context: the language model's longest sequence, drawn as a line.
    """
    figure, axis = curves_and_line(num_frames, budgets, context, f"context of Qwen2-7B: {context:,}", height=4)
    axis.set(xscale="log", yscale="log", xlabel="frames in the video, N", ylabel="visual tokens")
    return figure


def ordinal(number: int) -> str:
    """A number as 1st, 2nd, 3rd, 4th."""
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
    _box(axis, (1.0, 7.15), (1.7, 0.9), "Question", GREEN)
    _box(axis, (1.0, 3.9), (1.7, 1.2), "Video\nN frames", GREY)
    _box(axis, (4.5, 7.15), (2.4, 0.9), f"text tower\n{selector.text_config.num_hidden_layers} layers", GREEN)
    _box(axis, (4.5, 5.5), (2.4, 1.1), f"image tower\n{selector.vision_config.num_hidden_layers} layers", GREY)
    tower = f"Vision tower: {_name(vision)}\n{vision.num_hidden_layers} layers × {vision.hidden_size}\n"
    _box(axis, (4.5, 2.45), (2.8, 1.4), f"{tower}{side}×{side} = {patches} patches", GREY)
    limits = f"K ≤ {config.max_keyframes}, τ = {config.similarity_threshold:g}"
    _box(axis, (8.0, 5.5), (2.0, 1.1), f"Level 1: DKS\n{limits}", ORANGE)
    _box(axis, (8.0, 2.45), (1.3, 3.2), "keyframe?", ORANGE)
    newline = "\n+ newline" * config.video_newline
    _box(axis, (18.3, 2.45), (1.7, 3.2), f"interleave in\ntemporal order{newline}", PURPLE)
    context = f"{text.num_hidden_layers} layers × {width}\n{text.max_position_embeddings:,} positions"
    _box(axis, (17.8, 6.3), (2.7, 1.5), f"Language model: {_name(text)}\n{context}", PURPLE)
    _box(axis, (18.3, 8.4), (1.4, 0.6), "Answer", PURPLE)

    shared = config.connectors == "shared"
    mlp_n = (f"MLP{' (the same)' if shared else '_n'}\n{vision.hidden_size} → {width}", BLUE)
    merge = (f"Level 2: DFM\n{patches} patches → 1", BLUE)
    order = [(merge, f"[N−K, {size}]"), (mlp_n, f"[N−K, {width}]")]
    if not config.merge_before_projection:
        order = [(mlp_n, f"[N−K, {patches}, {width}]"), (merge, f"[N−K, {width}]")]
    for x, ((label, colour), shape), reach in zip((11.5, 15.1), order, (14.2, 17.45), strict=True):
        _box(axis, (x, 3.55), (1.8, 0.95), label, colour)
        _arrow(axis, [(x + 0.9, 3.55), (reach, 3.55)], shape)
    _box(axis, (11.5, 1.35), (1.8, 0.95), f"MLP{'' if shared else '_k'}\n{vision.hidden_size} → {width}", ORANGE)
    pooled = config.keyframe_pooling != "none"
    if pooled:
        half = math.isqrt(kept)
        _box(axis, (15.1, 1.35), (1.8, 0.95), f"pool\n{side}×{side} → {half}×{half}", ORANGE)
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
        colour = ORANGE if len(own) > 1 or frame in keyframes else BLUE
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
    names = {f"keyframe: {widest} tokens each": ORANGE, "other frame: one token each": BLUE, "newline": "black"}
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
    axis.barh(names, parts[:, 0], color=ORANGE, label="keyframes' tokens")
    axis.barh(names, parts[:, 1], left=parts[:, 0], color=BLUE, label="all other tokens")
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
            colour = ORANGE if frame in keyframes else BLUE
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
    names = {"keyframe": ORANGE, "other frame": BLUE}
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
