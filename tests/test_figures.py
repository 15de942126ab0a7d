"""Figures of studies: what is drawn is what the recorded rows say."""

from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from figures import make_figures as figures
from figures.make_results import RECORDED, TRAINING
from vilamp_lite import plots
from vilamp_lite.evaluation.report import find, matching, variant_name
from vilamp_lite.evaluation.results import ALL, RESULTS, load_result


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    plt.close("all")


def accuracies(rows: list[dict]) -> list:
    return pytest.approx([row["accuracy"] for row in rows])


def test_a_map_holds_its_own_cells() -> None:
    study = load_result("niah")
    figure = plots.niah_figure(study, "companion")
    maps = [axis.images[0].get_array() for axis in figure.axes if axis.images]
    assert [axis.get_title() for axis in figure.axes[:2]] == ["DKS + DFM", "uniform + mean"]
    for shown, selector in zip(maps, ("dks", "uniform"), strict=True):
        for line, depth in zip(shown, study["parameters"]["depths"], strict=True):
            assert line.tolist() == accuracies(
                matching(study["rows"], selector=selector, depth=depth, family="companion")
            )
    (chance,) = figure.axes[-1].lines[-1:]
    assert chance.get_ydata() == pytest.approx([1 / 9] * 2)  # one of the other nine shapes


def test_training_curves_are_of_their_seed() -> None:
    study = load_result(TRAINING)
    row = study["rows"][0]
    figure = plots.training_figure({"rows": [row | {"window": 1, "seed": 1}, row | {"loss": [], "seed": 0}]}, 1)
    upper, lower = figure.axes
    assert upper.get_title() == row["stage"]
    assert upper.lines[0].get_ydata() == pytest.approx(row["loss"])
    assert lower.lines[0].get_ydata() == pytest.approx(row["accuracy"])


def test_peers_stand_at_their_tokens() -> None:
    study = load_result("peers")
    figure = plots.peers_figure(study)
    methods = ["full", *study["parameters"]["peers"]]
    for line, method in zip(
        [line for line in figure.axes[0].lines if line.get_marker() in "osD^"], methods, strict=True
    ):
        rows = sorted(matching(study["rows"], family=ALL, method=method), key=lambda row: row["tokens"])
        assert line.get_xdata().tolist() == [row["tokens"] for row in rows]
        assert line.get_ydata().tolist() == accuracies(rows)
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert words == ["chance", "ViLaMP (full)", *(plots.shown_name(name) for name in methods[1:])]


def test_a_variant_can_be_set_off() -> None:
    study = load_result("ablation")
    for marked, shown in (("dks + dfm", "DKS + DFM"), ("top_k + qformer", "top-K + Q-Former")):
        figure = plots.ablation_figure(study, marked)
        assert [axis.get_title() for axis in figure.axes] == study["parameters"]["families"]
        rows = matching(study["rows"], family="roll call")
        every, one, _ = figure.axes[2].lines
        assert every.get_xdata().tolist() == accuracies(rows)
        assert one.get_xdata().tolist() == accuracies([row for row in rows if variant_name(row) == marked])
        assert one.get_color() != every.get_color()
        assert figure.legends[0].get_texts()[0].get_text() == shown


def test_thresholds_run_down_and_temperatures_across() -> None:
    study = load_result("sensitivity")
    about = study["parameters"]
    axis = plots.sensitivity_figure(study, "companion").axes[0]
    for line, threshold in zip(axis.images[0].get_array(), about["thresholds"], strict=True):
        for value, factor in zip(line, about["temperature_factors"], strict=True):
            place = {"similarity_threshold": threshold, "temperature_factor": factor, "family": "companion"}
            assert value == find(study["rows"], **place)["accuracy"]
    alphas = [f"{about['temperature'] * factor:.2g}" for factor in about["temperature_factors"]]
    assert [tick.get_text() for tick in axis.get_xticklabels()] == alphas
    (frame,) = axis.patches
    assert frame.get_xy() == (about["temperature_factors"].index(1) - 0.5, about["thresholds"].index(0.85) - 0.5)


@pytest.mark.parametrize(("name", "setting"), [("keyframes", "max_keyframes"), ("redundancy", "redundancy_weight")])
def test_a_setting_has_a_panel_for_each_family_and_all(name: str, setting: str) -> None:
    study = load_result(name)
    figure = plots.setting_figure(study)
    assert [axis.get_title() for axis in figure.axes] == [*study["parameters"]["families"], ALL]
    for axis in figure.axes:
        curve, own = axis.lines
        assert curve.get_xdata().tolist() == study["parameters"][setting]
        assert curve.get_ydata().tolist() == accuracies(matching(study["rows"], family=axis.get_title()))
        assert set(own.get_xdata()) == {study["parameters"]["reference"][setting]}


def test_differences_have_a_panel_for_each_study() -> None:
    studies = {title: load_result(name) for title, name in figures.TRAININGS.items()}
    figure = plots.differences_figure(studies, "with minus without")
    for axis, (title, study) in zip(figure.axes, studies.items(), strict=True):
        assert axis.get_title() == title
        assert axis.lines[-1].get_xdata() == pytest.approx([row["difference"] for row in study["rows"]])
    families = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert families == [row["family"] for row in studies["grounding"]["rows"]]


def test_attention_is_of_one_length_and_family() -> None:
    study = load_result("attention")
    lines = plots.attention_figure(study, 512, "companion").axes[0].lines
    for line, row in zip(lines, matching(study["rows"], frames=512, family="companion"), strict=False):
        assert line.get_label() == plots.shown_name(variant_name(row))
        assert line.get_ydata() == pytest.approx(100 * np.array(row["curve"][1:]))


def test_the_streamed_run_fits_the_gpu_and_all_frames_at_once_do_not() -> None:
    (axis,) = plots.full_size_memory_figure(load_result("streaming_h100")).axes
    measured, held, left = (np.asarray(line.get_ydata(), float) for line in axis.get_lines())
    assert axis.get_ylabel().endswith("(GB)")
    assert left[0] == pytest.approx(80 - 16.8, abs=0.1)
    assert measured.max() < 2 < left[0] < held.max()


def test_every_recorded_study_has_a_committed_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert figures.main(tmp_path) == 0
    drawn = {path.name for path in tmp_path.glob("*.png")}
    assert drawn == {f"{name}.png" for name in (*figures.DRAWN, "trainings", "architecture", "gpu")}
    assert drawn <= {path.name for path in RESULTS.parent.glob("*.png")}
    studies = {*figures.DRAWN, *figures.TRAININGS.values(), "seeds", "seeds_10000", "retrained"}
    assert studies == {TRAINING, "streaming_h100", *RECORDED}
    monkeypatch.setattr(figures, "load_result", lambda name: load_result(name, tmp_path))
    assert figures.main(tmp_path) == 2
    assert f"error: there is no recorded study {tmp_path / TRAINING}.json" in capsys.readouterr().err
