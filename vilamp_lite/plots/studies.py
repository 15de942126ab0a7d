"""Figures of trainings, studies and sweeps (notebooks 06 to 08)."""

import math
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vilamp_lite.plots.style import BLUE, GREY, ORANGE, PALETTE, legend

Interval = tuple[float, float, float]  # a share, and the low and high end of its interval


def training_curves(curves: Mapping[str, np.ndarray]) -> Figure:
    """Show how each stage of a training went: loss above, accuracy below.

    Args:
        curves: for each stage, in order, [steps, 2]: loss and accuracy of every step; drawn as means over 2 % of them.
    """
    from vilamp_lite.training.loop import smoothed  # here, since it loads accelerate and transformers: seconds

    size = (1 + 2.4 * len(curves), 3.8)
    figure, axes = plt.subplots(2, len(curves), figsize=size, sharex="col", squeeze=False, layout="constrained")
    for (upper, lower), (stage, curve) in zip(axes.T, curves.items(), strict=True):
        steps, means = zip(*smoothed(curve, max(len(curve) // 50, 1)), strict=True)
        loss, accuracy = np.array(means).T
        upper.plot(steps, loss, color=BLUE)
        upper.set(title=stage, ylim=(0, None))
        lower.plot(steps, accuracy, color=ORANGE)
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
    bar.ax.axhline(chance, color=ORANGE, linewidth=2)
    bar.ax.annotate("chance", (1, chance), (6, 0), textcoords="offset points", color=ORANGE, fontsize=9, va="center")
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
        axis.add_patch(plt.Rectangle(corner, 1, 1, fill=False, edgecolor=ORANGE, linewidth=3, label="as trained"))
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
        for mask, colour in ((places >= 0, BLUE), (np.array(variants) == highlight, ORANGE)):
            axis.hlines(places[mask], low[mask], high[mask], color=colour, linewidth=2)
            axis.plot(shares[mask], places[mask], "o", color=colour, markersize=5)
        if family in chance:
            axis.axvline(chance[family], color="black", linestyle="--", linewidth=1)
        axis.set(title=family, xlim=(-0.03, 1.03), xlabel="accuracy")
        axis.set_xticks([0, 0.5, 1])
    axes[0, 0].set_yticks(places, variants)
    axes[0, 0].invert_yaxis()
    names = {"95 % interval": {"color": BLUE, "marker": "o"}, "chance": {"color": "black", "linestyle": "--"}}
    if highlight in variants:
        names = {highlight: {"color": ORANGE, "marker": "o"}} | names
    legend(figure, names)
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
        axis.fill_between(values, low, high, color=BLUE, alpha=0.25, linewidth=0)
        axis.plot(values, shares, "o-", color=BLUE, markersize=4)
        axis.axvline(own, color=ORANGE, linewidth=1.5, linestyle="--")
        axis.set(title=family, ylim=(-0.03, 1.03))
        if log:
            axis.set_xscale("log", base=2)
            axis.set_xticks([value for value in values if math.log2(value).is_integer()])
            axis.xaxis.set_major_formatter("{x:g}")
    figure.supxlabel(label, fontsize=10)
    axes[0, 0].set_ylabel("accuracy")
    names = {
        "accuracy, 95 % interval": {"color": BLUE, "marker": "o"},
        "as trained": {"color": ORANGE, "linestyle": "--"},
    }
    legend(figure, names)
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
        axis.hlines(places, low, high, color=BLUE, linewidth=2)
        axis.plot(middle, places, "o", color=BLUE, markersize=6)
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
    for (name, points), colour, marker in zip(curves.items(), PALETTE, "osD^vP", strict=False):
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
    for (name, reached), style, colour in zip(curves.items(), ("-", "--", "-.", ":"), PALETTE, strict=False):
        percent = np.linspace(0, 100, len(reached))
        axis.plot(percent[1:], 100 * np.array(reached)[1:], linestyle=style, color=colour, linewidth=2, label=name)
    even = np.linspace(1, 100, 100)
    axis.plot(even, even, color=GREY, linewidth=1.5, label="even attention")
    axis.axhline(100 * share, color="black", linestyle="--", linewidth=1, label=f"{100 * share:g} % of the attention")
    ticks = [1, 2, 5, 10, 20, 50, 100]
    axis.set(xscale="log", xlim=(1, 100), ylim=(0, 103))
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.set(xlabel="frames, the most attended first (%)", ylabel="attention on frames (%)")
    axis.legend(fontsize=9, loc="lower right")
    return figure


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
