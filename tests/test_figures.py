"""Figures of studies: what is drawn is what the rows say."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from figures import make_figures as figures
from figures.make_results import RECORDED, TRAINING
from vilamp_lite.evaluation.results import RESULTS, load_result
from vilamp_lite.evaluation.studies import ALL
from vilamp_lite.plots.costs import full_size_memory_figure
from vilamp_lite.plots.studies import (
    ablation_figure,
    attention_figure,
    differences_figure,
    niah_figure,
    peers_figure,
    sensitivity_figure,
    setting_figure,
    training_figure,
)

FAMILIES = ["attribute", "companion"]


def row(accuracy: float, **about: object) -> dict:
    return about | {"accuracy": accuracy, "low": accuracy - 0.05, "high": accuracy + 0.05}


@pytest.fixture
def studies() -> dict[str, dict]:
    rng = np.random.default_rng(0)
    niah = [
        row(float(rng.random()), selector=s, merger=m, depth=depth, frames=frames, family=family)
        for s, m in (("dks", "dfm"), ("uniform", "mean"))
        for depth in (0.0, 1.0, ALL)
        for frames in (64, 128, 256)
        for family in (*FAMILIES, ALL)
    ]
    ablation = [
        row(0.3 + 0.1 * number, selector=s, merger="dfm", family=family)
        for number, s in enumerate(("dks", "uniform"))
        for family in (*FAMILIES, ALL)
    ]
    peers = [
        row(0.2 + 0.1 * number, method=method, budget=budget, tokens=budget - 3, family=family)
        for number, method in enumerate(("full", "dense"))
        for budget in (128, 256)
        for family in (*FAMILIES, ALL)
    ]
    about = {"variants": [["dks", "dfm"], ["uniform", "mean"]], "frames": [64, 128, 256], "depths": [0.0, 1.0]}
    about["families"] = FAMILIES
    training = [
        {"seed": seed, "stage": stage, "steps": 6, "window": 2, "loss": [3 + seed, 2, 1], "accuracy": [0, 0.5, 1]}
        for seed in (0, 1)
        for stage in ("alignment", "mixed")
    ]
    return {
        "niah": {"parameters": about, "rows": niah},
        "ablation": {"parameters": {"families": FAMILIES}, "rows": ablation},
        "peers": {"parameters": {"families": FAMILIES}, "rows": peers},
        TRAINING: {"parameters": {"seeds": [0, 1]}, "rows": training},
    }


def test_a_map_holds_its_own_cells(studies: dict[str, dict]) -> None:
    figure = niah_figure(studies["niah"], "companion")
    maps = [axis.images[0].get_array() for axis in figure.axes if axis.images]
    assert [axis.get_title() for axis in figure.axes[:2]] == ["DKS + DFM", "uniform + mean"]
    for shown, selector in zip(maps, ("dks", "uniform"), strict=True):
        for line, depth in zip(shown, (0.0, 1.0), strict=True):
            own = [r for r in studies["niah"]["rows"] if (r["selector"], r["depth"]) == (selector, depth)]
            wanted = [r["accuracy"] for r in own if r["family"] == "companion"]
            assert line.tolist() == pytest.approx(wanted)
    (chance,) = figure.axes[-1].lines[-1:]
    assert chance.get_ydata() == pytest.approx([1 / 9] * 2)  # one of the other nine shapes
    plt.close(figure)


def test_training_curves_are_of_their_seed(studies: dict[str, dict]) -> None:
    figure = training_figure(studies[TRAINING], 1)
    upper, _, lower, _ = figure.axes
    assert upper.get_title() == "alignment"
    assert upper.lines[0].get_ydata().tolist() == [4, 4, 2, 2, 1, 1]
    assert lower.lines[0].get_ydata().tolist() == [0, 0, 0.5, 0.5, 1, 1]
    plt.close(figure)


def test_peers_stand_at_their_tokens(studies: dict[str, dict]) -> None:
    figure = peers_figure(studies["peers"])
    (axis,) = figure.axes
    lines = [line for line in axis.lines if line.get_marker() in "os"]
    for number, line in enumerate(lines[:2]):
        assert line.get_xdata().tolist() == [125, 253]
        assert line.get_ydata().tolist() == pytest.approx([0.2 + 0.1 * number] * 2)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["chance", "ViLaMP (full)", "dense"]
    plt.close(figure)


def test_a_variant_can_be_set_off(studies: dict[str, dict]) -> None:
    one, other = (ablation_figure(studies["ablation"], marked) for marked in ("dks + dfm", "uniform + dfm"))
    for figure, share in ((one, 0.3), (other, 0.4)):
        assert [axis.get_title() for axis in figure.axes][:2] == FAMILIES
        every, marked, _ = figure.axes[0].lines
        assert every.get_xdata().tolist() == pytest.approx([0.3, 0.4])
        assert marked.get_xdata().tolist() == pytest.approx([share])
        assert marked.get_color() != every.get_color()
        (legend,) = figure.legends
        assert legend.get_texts()[0].get_text() == {0.3: "DKS + DFM", 0.4: "uniform + DFM"}[share]
        plt.close(figure)


def test_thresholds_run_down_and_temperatures_across() -> None:
    about = {"thresholds": [0.5, 0.85], "temperature_factors": [0.1, 1, 10], "temperature": 0.07}
    about["reference"] = {"similarity_threshold": 0.85, "temperature_factor": 1.0}
    rows = [
        row(tau + 0.01 * factor, similarity_threshold=tau, temperature_factor=float(factor), family=family)
        for tau in about["thresholds"]
        for factor in about["temperature_factors"]
        for family in ("companion", ALL)
    ]
    figure = sensitivity_figure({"parameters": about, "rows": rows}, "companion")
    axis = figure.axes[0]
    assert np.array(axis.images[0].get_array()) == pytest.approx(np.array([[0.501, 0.51, 0.6], [0.851, 0.86, 0.95]]))
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["0.007", "0.07", "0.7"]
    (frame,) = axis.patches
    assert frame.get_xy() == (0.5, 0.5)  # the middle column, the lower row
    plt.close(figure)


@pytest.mark.parametrize(("setting", "values"), [("max_keyframes", [1, 2, 4]), ("redundancy_weight", [0.0, 0.5, 1.0])])
def test_a_setting_has_a_panel_for_each_family_and_all(setting: str, values: list[float]) -> None:
    about = {"families": FAMILIES, "reference": {setting: values[-1]}, setting: values}
    rows = [
        row(0.1 * (number + place), family=family, **{setting: value})
        for number, value in enumerate(values)
        for place, family in enumerate((*FAMILIES, ALL), start=1)
    ]
    figure = setting_figure({"parameters": about, "rows": rows})
    assert [axis.get_title() for axis in figure.axes] == [*FAMILIES, ALL]
    for place, axis in enumerate(figure.axes, start=1):
        curve, own = axis.lines
        assert curve.get_xdata().tolist() == values
        assert curve.get_ydata().tolist() == pytest.approx([0.1 * (number + place) for number in range(3)])
        assert set(own.get_xdata()) == {values[-1]}
    plt.close(figure)


def test_differences_have_a_panel_for_each_study() -> None:
    studies = {
        name: {
            "rows": [
                {
                    "family": family,
                    "difference": middle,
                    "difference_low": middle - 0.1,
                    "difference_high": middle + 0.2,
                }
                for family, middle in zip((*FAMILIES, ALL), (0.1, 0.2, 0.3), strict=True)
            ]
        }
        for name in ("keyframe block", "grounding")
    }
    figure = differences_figure(studies, "with minus without")
    assert [axis.get_title() for axis in figure.axes] == list(studies)
    points = figure.axes[1].lines[-1]
    assert points.get_xdata().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == [*FAMILIES, ALL]
    plt.close(figure)


def test_attention_is_of_one_length_and_family() -> None:
    rows = [
        {"selector": s, "merger": "dfm", "frames": frames, "family": family, "curve": [0, level, 1]}
        for s, base in (("dks", 0.5), ("uniform", 0.6))
        for frames, more in ((256, 0.0), (512, 0.2))
        for family, level in (("companion", base + more), (ALL, base + more + 0.1))
    ]
    figure = attention_figure({"parameters": {"attention_share": 0.9}, "rows": rows}, 512, "companion")
    lines = figure.axes[0].lines
    assert [line.get_label() for line in lines[:2]] == ["DKS + DFM", "uniform + DFM"]
    assert [line.get_ydata()[0] for line in lines[:2]] == pytest.approx([70, 80])
    plt.close(figure)


def test_the_streamed_run_fits_the_gpu_and_all_frames_at_once_do_not() -> None:
    figure = full_size_memory_figure(load_result("streaming_h100"))
    (axis,) = figure.axes
    measured, held, left = (np.asarray(line.get_ydata(), float) for line in axis.get_lines())
    assert axis.get_ylabel().endswith("(GB)")
    assert left[0] == pytest.approx(80 - 16.8, abs=0.1)
    assert measured.max() < 2 < left[0] < held.max()
    plt.close(figure)


def test_every_recorded_study_has_a_committed_figure(tmp_path: Path) -> None:
    assert figures.main(tmp_path) == 0
    drawn = {path.name for path in tmp_path.glob("*.png")}
    assert drawn == {f"{name}.png" for name in (*figures.DRAWN, "trainings", "architecture")}
    assert drawn <= {path.name for path in RESULTS.parent.glob("*.png")}
    studies = {*figures.DRAWN, *figures.TRAININGS.values(), "seeds", "seeds_10000", "retrained"}
    assert studies == {TRAINING, "streaming_h100", *RECORDED}
    plt.close("all")


def test_missing_results_are_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def missing(name: str) -> dict:
        raise ValueError(f"there is no recorded study {name}")

    monkeypatch.setattr(figures, "load_result", missing)
    assert figures.main(tmp_path) == 2
    assert capsys.readouterr().err == f"error: there is no recorded study {TRAINING}\n"
