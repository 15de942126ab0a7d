"""From the rows of a recorded study to its figure."""

from collections.abc import Iterable, Mapping

import numpy as np
from matplotlib.figure import Figure

from vilamp_lite.configuration import ViLaMPConfig
from vilamp_lite.costs.shapes import GPUS
from vilamp_lite.costs.vilamp import all_at_once_memory
from vilamp_lite.evaluation.report import Row, find, variant_name
from vilamp_lite.evaluation.studies import ALL, Study
from vilamp_lite.plots.costs import memory_trace
from vilamp_lite.plots.studies import (
    Interval,
    accuracy_by_tokens,
    attention_concentration,
    needle_heat_maps,
    paired_differences,
    setting_curves,
    threshold_heat_map,
    training_curves,
    variant_dots,
)
from vilamp_lite.tinyworld.questions import FAMILIES

# Of an answer drawn at random, by family; every shape has as many.
CHANCE = {name: 1 / len(family.options("star")) for name, family in FAMILIES.items()}


# What figures call selectors, mergers and peers; others by their own names.
_SHOWN = {"dks": "DKS", "top_k": "top-K", "dfm": "DFM", "qformer": "Q-Former", "full": "ViLaMP (full)"}


def shown_name(name: str) -> str:
    """What figures call a method or variant: "top_k + dfm" is "top-K + DFM"."""
    return " + ".join(_SHOWN.get(part, part.replace("_", " ")) for part in name.split(" + "))


def chance_of(family: str, families: Iterable[str]) -> float:
    """The accuracy of answers drawn at random, for a family of questions, or for `ALL` of those given."""
    return CHANCE[family] if family != ALL else float(np.mean([CHANCE[name] for name in families]))


def interval(row: Row) -> Interval:
    """An accuracy with both ends of its interval."""
    return row["accuracy"], row["low"], row["high"]


def training_figure(study: Study, seed: int) -> Figure:
    """The curves of one training, from `training_study`."""
    rows = [row for row in study["rows"] if row["seed"] == seed]
    return training_curves(
        {row["stage"]: np.array([row["loss"], row["accuracy"]]).T.repeat(row["window"], axis=0) for row in rows}
    )


def niah_figure(study: Study, family: str = ALL) -> Figure:
    """Fig. 2: accuracy by length and depth, a map for each variant, from `niah_study`."""
    about = study["parameters"]
    maps = {}
    for selector, merger in about["variants"]:
        place = {"selector": selector, "merger": merger, "family": family}
        maps[shown_name(f"{selector} + {merger}")] = np.array(
            [
                [find(study["rows"], **place, depth=depth, frames=frames)["accuracy"] for frames in about["frames"]]
                for depth in about["depths"]
            ]
        )
    return needle_heat_maps(maps, about["frames"], about["depths"], chance_of(family, about["families"]))


def ablation_figure(study: Study, marked: str = "dks + dfm") -> Figure:
    """Table 2: every variant's accuracy by family, one of them set off, from `ablation_study` at one length."""
    names = list(dict.fromkeys((row["selector"], row["merger"]) for row in study["rows"]))
    dots = {
        family: {
            shown_name(f"{s} + {m}"): interval(find(study["rows"], selector=s, merger=m, family=family))
            for s, m in names
        }
        for family in study["parameters"]["families"]
    }
    return variant_dots(dots, {family: CHANCE[family] for family in dots}, shown_name(marked))


def peers_figure(study: Study, family: str = ALL) -> Figure:
    """Accuracy by visual tokens, a curve for each method, from `peers_study` at one length."""
    rows = [row for row in study["rows"] if row["family"] == family]
    methods = dict.fromkeys(row["method"] for row in rows)
    curves = {
        shown_name(name): {row["tokens"]: interval(row) for row in rows if row["method"] == name} for name in methods
    }
    return accuracy_by_tokens(curves, chance_of(family, study["parameters"]["families"]))


def sensitivity_figure(study: Study, family: str = ALL) -> Figure:
    """Table 6: accuracy over τ and α, from `sensitivity_study` at one length."""
    about = study["parameters"]
    thresholds, factors = about["thresholds"], about["temperature_factors"]
    accuracy = [
        [
            find(study["rows"], family=family, similarity_threshold=tau, temperature_factor=factor)["accuracy"]
            for factor in factors
        ]
        for tau in thresholds
    ]
    own = about["reference"]["similarity_threshold"], about["temperature"]
    return threshold_heat_map(
        np.array(accuracy), thresholds, [about["temperature"] * factor for factor in factors], own
    )


_SETTINGS = {"max_keyframes": "K, keyframes at most", "redundancy_weight": "λ, weight of redundancy in the merge"}


def setting_figure(study: Study) -> Figure:
    """Fig. 6, or λ: accuracy by one setting and family, from `keyframes_study` or `redundancy_study` at one length."""
    about = study["parameters"]
    ((setting, own),) = about["reference"].items()
    accuracy = {
        family: [interval(find(study["rows"], family=family, **{setting: value})) for value in about[setting]]
        for family in (*about["families"], ALL)
    }
    return setting_curves(about[setting], accuracy, _SETTINGS[setting], own, log=setting == "max_keyframes")


def differences_figure(studies: Mapping[str, Study], label: str) -> Figure:
    """Two models or settings on the same questions, by family: a panel for each `comparison_study` at one length.

    Args:
        studies: by the panel's title.
        label: what was subtracted from what.
    """
    paired = ("difference", "difference_low", "difference_high")
    differences = {
        name: {row["family"]: tuple(row[end] for end in paired) for row in study["rows"]}
        for name, study in studies.items()
    }
    return paired_differences(differences, label)


def attention_figure(study: Study, frames: int, family: str = ALL) -> Figure:
    """§3: the attention on the most attended frames, a curve for each variant, from `attention_study` at one length."""
    rows = [row for row in study["rows"] if (row["frames"], row["family"]) == (frames, family)]
    curves = {shown_name(variant_name(row)): row["curve"] for row in rows}
    return attention_concentration(curves, study["parameters"]["attention_share"])


def full_size_memory_figure(study: Study) -> Figure:
    """Fig. 1 over time: the full-size model on an H100, from a run of notebook 05, against all frames at once."""
    (row,) = study["rows"]
    trace = np.array(row["trace"])
    held = all_at_once_memory(ViLaMPConfig.released(), row["frames"], trace[:, 2], bytes_per_number=2)
    return memory_trace(trace, row["memory_before"], held, GPUS["h100-80gb"].memory)
