"""Figures of trainings and of the paper's studies, drawn from a study's rows (notebooks 06 to 08)."""

import math
from collections.abc import Iterable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vilamp_lite.evaluation.report import grid_of, matching, variant_name
from vilamp_lite.evaluation.results import ALL, Study
from vilamp_lite.plots.style import BLUE, GREY, ORANGE, PALETTE, legend
from vilamp_lite.tinyworld.questions import FAMILIES

# Of an answer drawn at random, by family; every shape has as many.
CHANCE = {name: 1 / len(family.options("star")) for name, family in FAMILIES.items()}
# What figures call selectors, mergers and peers; others by their own names.
_SHOWN = {"dks": "DKS", "top_k": "top-K", "dfm": "DFM", "qformer": "Q-Former", "full": "ViLaMP (full)"}
_INTERVAL = ["accuracy", "low", "high"]


def shown_name(name: str) -> str:
    """What figures call a method or variant: "top_k + dfm" is "top-K + DFM"."""
    return " + ".join(_SHOWN.get(part, part.replace("_", " ")) for part in name.split(" + "))


def chance_of(family: str, families: Iterable[str]) -> float:
    """The accuracy of answers drawn at random, for a family of questions, or for `ALL` of those given."""
    return CHANCE[family] if family != ALL else float(np.mean([CHANCE[name] for name in families]))


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


def training_figure(study: Study, seed: int) -> Figure:
    """The curves of one training, from `training_study`."""
    rows = matching(study["rows"], seed=seed)
    return training_curves(
        {row["stage"]: np.array([row["loss"], row["accuracy"]]).T.repeat(row["window"], axis=0) for row in rows}
    )


def niah_figure(study: Study, family: str = ALL) -> Figure:
    """Fig. 2: accuracy by length of the haystack and depth in it, a map for each variant, from `niah_study`."""
    about = study["parameters"]
    frames, depths = about["frames"], about["depths"]
    rows = [row for row in matching(study["rows"], family=family) if row["depth"] != ALL]
    names = [" + ".join(variant) for variant in about["variants"]]
    size = (1.6 + len(names) * (1.2 + 0.75 * len(frames)), 1.4 + 0.5 * len(depths))
    figure, axes = _panels(len(names), size)
    for axis, name in zip(axes, names, strict=True):
        own = [row for row in rows if variant_name(row) == name]
        values = grid_of(own, "depth", "frames", "accuracy").to_numpy()
        image = _heat_map(axis, values, [f"{n:,}" for n in frames], [f"{100 * depth:g}" for depth in depths])
        axis.set(title=shown_name(name), xlabel="frames in the haystack")
    axes[0].set_ylabel("depth of the needle (%)")
    bar = figure.colorbar(image, ax=axes, label="accuracy", shrink=0.9, pad=0.02)
    chance = chance_of(family, about["families"])
    bar.ax.axhline(chance, color=ORANGE, linewidth=2)
    bar.ax.annotate("chance", (1, chance), (6, 0), textcoords="offset points", color=ORANGE, fontsize=9, va="center")
    return figure


def sensitivity_figure(study: Study, family: str = ALL) -> Figure:
    """Table 6: accuracy over τ and α, the model's own framed, from `sensitivity_study` at one length."""
    about = study["parameters"]
    thresholds, factors = about["thresholds"], about["temperature_factors"]
    rows = matching(study["rows"], family=family)
    values = grid_of(rows, "similarity_threshold", "temperature_factor", "accuracy").loc[thresholds, factors].to_numpy()
    figure, axis = plt.subplots(figsize=(2.8 + 0.85 * len(factors), 1.3 + 0.5 * len(thresholds)), layout="constrained")
    alphas = [f"{about['temperature'] * factor:.2g}" for factor in factors]
    image = _heat_map(axis, values, alphas, [f"{threshold:g}" for threshold in thresholds])
    axis.set(xlabel="α, temperature of the merge", ylabel="τ, largest cosine")
    own = about["reference"]
    if own["similarity_threshold"] in thresholds and own["temperature_factor"] in factors:
        corner = factors.index(own["temperature_factor"]) - 0.5, thresholds.index(own["similarity_threshold"]) - 0.5
        axis.add_patch(plt.Rectangle(corner, 1, 1, fill=False, edgecolor=ORANGE, linewidth=3, label="as trained"))
        figure.legend(loc="outside upper right", fontsize=9)
    figure.colorbar(image, ax=axis, label="accuracy")
    return figure


def ablation_figure(study: Study, marked: str = "dks + dfm") -> Figure:
    """Table 2: every variant's accuracy by family, one of them set off, from `ablation_study` at one length."""
    families = study["parameters"]["families"]
    rows = pd.DataFrame(study["rows"])
    variants = list(dict.fromkeys(map(variant_name, study["rows"])))
    figure, axes = _panels(len(families), (3.2 + 1.9 * len(families), 1.3 + 0.27 * len(variants)))
    places = np.arange(len(variants))
    for axis, family in zip(axes, families, strict=True):
        shares, low, high = rows.loc[rows["family"] == family, _INTERVAL].to_numpy().T
        for mask, colour in ((places >= 0, BLUE), (np.array(variants) == marked, ORANGE)):
            axis.hlines(places[mask], low[mask], high[mask], color=colour, linewidth=2)
            axis.plot(shares[mask], places[mask], "o", color=colour, markersize=5)
        axis.axvline(CHANCE[family], color="black", linestyle="--", linewidth=1)
        axis.set(title=family, xlim=(-0.03, 1.03), xlabel="accuracy")
        axis.set_xticks([0, 0.5, 1])
    axes[0].set_yticks(places, [shown_name(name) for name in variants])
    axes[0].invert_yaxis()
    names = {"95 % interval": {"color": BLUE, "marker": "o"}, "chance": {"color": "black", "linestyle": "--"}}
    if marked in variants:
        names = {shown_name(marked): {"color": ORANGE, "marker": "o"}} | names
    legend(figure, names)
    return figure


_SETTINGS = {"max_keyframes": "K, keyframes at most", "redundancy_weight": "λ, weight of redundancy in the merge"}


def setting_figure(study: Study) -> Figure:
    """Fig. 6, or λ: accuracy by one setting and family, from `keyframes_study` or `redundancy_study` at one length."""
    about = study["parameters"]
    ((setting, own),) = about["reference"].items()
    values, families = about[setting], (*about["families"], ALL)
    figure, axes = _panels(len(families), (1 + 2.1 * len(families), 2.9))
    for axis, family in zip(axes, families, strict=True):
        shares, low, high = pd.DataFrame(matching(study["rows"], family=family))[_INTERVAL].to_numpy().T
        axis.fill_between(values, low, high, color=BLUE, alpha=0.25, linewidth=0)
        axis.plot(values, shares, "o-", color=BLUE, markersize=4)
        axis.axvline(own, color=ORANGE, linewidth=1.5, linestyle="--")
        axis.set(title=family, ylim=(-0.03, 1.03))
        if setting == "max_keyframes":
            axis.set_xscale("log", base=2)
            axis.set_xticks([value for value in values if math.log2(value).is_integer()])
            axis.xaxis.set_major_formatter("{x:g}")
    figure.supxlabel(_SETTINGS[setting], fontsize=10)
    axes[0].set_ylabel("accuracy")
    names = {"accuracy, 95 % interval": {"color": BLUE, "marker": "o"}}
    legend(figure, names | {"as trained": {"color": ORANGE, "linestyle": "--"}})
    return figure


def differences_figure(studies: Mapping[str, Study], label: str) -> Figure:
    """Two models or settings on the same questions, by family: a panel for each `comparison_study` at one length.

    Args:
        studies: by the panel's title.
        label: what was subtracted from what.
    """
    tables = [pd.DataFrame(study["rows"]).set_index("family") for study in studies.values()]
    tables = [table[["difference", "difference_low", "difference_high"]] for table in tables]
    families = list(tables[0].index)
    figure, axes = _panels(len(studies), (1.6 + 2.9 * len(studies), 1.3 + 0.32 * len(families)))
    reach = max(table.abs().to_numpy().max() for table in tables) * 1.08
    places = np.arange(len(families))
    for axis, name, table in zip(axes, studies, tables, strict=True):
        middle, low, high = table.to_numpy().T
        axis.axvline(0, color="black", linewidth=1)
        axis.hlines(places, low, high, color=BLUE, linewidth=2)
        axis.plot(middle, places, "o", color=BLUE, markersize=6)
        axis.set(title=name, xlim=(-reach, reach), ylim=(len(families) - 0.5, -0.5))
        axis.xaxis.set_major_locator(plt.MaxNLocator(4))
    axes[0].set_yticks(places, families)
    figure.supxlabel(label, fontsize=10)
    return figure


def peers_figure(study: Study, family: str = ALL) -> Figure:
    """Accuracy by visual tokens, a curve for each method, from `peers_study` at one length."""
    rows = pd.DataFrame(matching(study["rows"], family=family))
    figure, axis = plt.subplots(figsize=(6.6, 3.8), layout="constrained")
    for (name, own), colour, marker in zip(rows.groupby("method", sort=False), PALETTE, "osD^vP", strict=False):
        tokens, shares, low, high = own.sort_values("tokens")[["tokens", *_INTERVAL]].to_numpy().T
        style = {"color": colour, "marker": marker, "markersize": 5, "capsize": 2}
        axis.errorbar(tokens, shares, [shares - low, high - shares], label=shown_name(name), **style)
    chance = chance_of(family, study["parameters"]["families"])
    axis.axhline(chance, color="black", linestyle="--", linewidth=1, label="chance")
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.set(xlabel="visual tokens", ylabel="accuracy, 95 % interval", ylim=(-0.03, 1.03))
    figure.legend(loc="outside upper center", ncols=min(rows["method"].nunique() + 1, 5), frameon=False, fontsize=9)
    return figure


def attention_figure(study: Study, frames: int, family: str = ALL) -> Figure:
    """§3: the attention on the most attended frames, a curve for each variant, from `attention_study` at one length."""
    figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
    rows = matching(study["rows"], frames=frames, family=family)
    for row, style, colour in zip(rows, ("-", "--", "-.", ":"), PALETTE, strict=False):
        percent, name = np.linspace(0, 100, len(row["curve"])), shown_name(variant_name(row))
        reached = 100 * np.array(row["curve"])
        axis.plot(percent[1:], reached[1:], linestyle=style, color=colour, linewidth=2, label=name)
    even, share = np.linspace(1, 100, 100), 100 * study["parameters"]["attention_share"]
    axis.plot(even, even, color=GREY, linewidth=1.5, label="even attention")
    axis.axhline(share, color="black", linestyle="--", linewidth=1, label=f"{share:g} % of the attention")
    ticks = [1, 2, 5, 10, 20, 50, 100]
    axis.set(xscale="log", xlim=(1, 100), ylim=(0, 103))
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.set(xlabel="frames, the most attended first (%)", ylabel="attention on frames (%)")
    axis.legend(fontsize=9, loc="lower right")
    return figure


def _panels(count: int, size: tuple[float, float]) -> tuple[Figure, Sequence[Axes]]:
    figure, axes = plt.subplots(1, count, figsize=size, sharey=True, squeeze=False, layout="constrained")
    return figure, axes[0]


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
