"""Colours and settings that all figures share."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.figure import Figure

PALETTE = sns.color_palette("colorblind")


BLUE, ORANGE, GREEN, GREY = PALETTE[0], PALETTE[1], PALETTE[2], PALETTE[7]


PURPLE = PALETTE[4]


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
