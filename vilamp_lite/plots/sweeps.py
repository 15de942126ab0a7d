"""Figures of sweeps (notebooks with many parameters)."""

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from vilamp_lite.plots.style import plain


def sweep_heat_map(table: pd.DataFrame, metric: str, x: str, y: str) -> Figure:
    """Show a metric over two parameters of a sweep, its mean over all others.

    Args:
        table: a row for each cell, with a column for the metric and one for each parameter that was varied.
        metric: a column.
        x: the column across.
        y: the column down.
    """
    table, metric = _as_drawn(table), plain(metric)
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
    table, metric = _as_drawn(table), plain(metric)
    figure, axis = plt.subplots(figsize=(6.6, 3.8), layout="constrained")
    colours = None if hue is None else sns.color_palette("colorblind", table[hue].nunique())
    # All of the values lie between the 0th and the 100th percentile.
    sns.lineplot(table, x=x, y=metric, hue=hue, style=hue, palette=colours, markers=True, errorbar=("pi", 100), ax=axis)
    title = _averaged(table, metric, x, hue)
    axis.set_title(title if title == metric else f"{title}, range shaded")
    return figure


def _as_drawn(table: pd.DataFrame) -> pd.DataFrame:
    """The table with names and words as they are to be drawn."""
    return table.rename(columns=plain).map(lambda value: plain(value) if isinstance(value, str) else value)


def _averaged(table: pd.DataFrame, metric: str, *shown: str | None) -> str:
    """Say what a sweep's figure does not show."""
    others = [name for name in table.columns if name not in (metric, *shown) and table[name].nunique() > 1]
    return f"{metric}, mean over {', '.join(others)}" if others else metric
