"""Colours and settings that all figures share."""

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vilamp_lite.common import visible

PALETTE = sns.color_palette("colorblind")
BLUE, ORANGE, GREEN, GREY = PALETTE[0], PALETTE[1], PALETTE[2], PALETTE[7]
PURPLE = PALETTE[4]


_LINE, _LINES = 110, 3  # of a title, in characters and lines


def plain(text: str) -> str:
    """Text of a user as it is to be drawn: no formula, whatever it says, and nothing that is obeyed."""
    return visible(text).replace("$", r"\$")


def quoted(text: str) -> str:
    """A question of a user as a title: in quotes, plain, in a few lines; a longer one ends with an ellipsis."""
    lines = textwrap.wrap(visible(text), _LINE, max_lines=_LINES, placeholder=" …", drop_whitespace=False)
    whole = "\n".join(map(plain, lines))
    return f"“{whole}”"


def set_style() -> None:
    """Set fonts, grid and resolution for all figures that follow."""
    sns.set_theme(style="whitegrid", palette="colorblind", context="notebook")
    plt.rcParams.update(
        {"figure.dpi": 80, "savefig.dpi": 120, "savefig.bbox": "tight", "axes.titlesize": 11, "axes.labelsize": 10}
    )


def legend(figure: Figure, names: Mapping[str, Mapping[str, object]]) -> None:
    """Name line styles once for a whole figure."""
    handles = [plt.Line2D([], [], **style) for style in names.values()]
    figure.legend(handles, names, loc="outside upper right", ncols=len(names), fontsize=9)


def curves_and_line(
    xs: Sequence[float], curves: Mapping[str, Sequence[float]], line: float, line_name: str, height: float = 3.5
) -> tuple[Figure, Axes]:
    """Draw named curves over the same values, and a dashed line across."""
    figure, axis = plt.subplots(figsize=(8, height), layout="constrained")
    for (name, values), marker in zip(curves.items(), "osD^v", strict=False):
        axis.plot(xs, values, marker=marker, markersize=4, label=name)
    axis.axhline(line, color="black", linestyle="--", linewidth=1, label=line_name)
    axis.legend(fontsize=9)
    return figure, axis
