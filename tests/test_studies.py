"""Studies: the rows' form, pairs as counted by hand, settings that reach the model, attention by brute force."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.stats import binom

from figures.make_results import RECORDED, main, make_result, training_study
from vilamp_lite.baselines.peers import PEERS
from vilamp_lite.evaluation import studies
from vilamp_lite.evaluation.attention import answer_attention, attention_study, share_needed
from vilamp_lite.evaluation.niah import Cell, CellResult, Examiner, cell_haystacks
from vilamp_lite.evaluation.report import find, matching, pooled
from vilamp_lite.evaluation.results import Prediction, load_result
from vilamp_lite.evaluation.scoring import paired_difference_interval, wilson_interval
from vilamp_lite.evaluation.studies import (
    ALL,
    Exam,
    ablation_study,
    comparison_study,
    keyframes_study,
    niah_study,
    peers_study,
    redundancy_study,
    seeds_study,
    sensitivity_study,
)
from vilamp_lite.modeling import TokenKind

EXAM = Exam((64, 80), (0.0, 1.0), ("attribute", "two needles"), questions=3, seed=3, pool=30)


class Scripted:
    """In the place of `evaluate_cells`: right or wrong by a rule that is known, and a list of what was asked for."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(self, model, cells: Sequence[Cell], *, seed, pool, changes, out, processes) -> SimpleNamespace:
        about = {"model": str(model), "changes": dict(changes), "out": out}
        self.calls.append(about | {"seed": seed, "pool": pool, "processes": processes})
        return SimpleNamespace(results=[CellResult(cell, self.predictions(cell, about)) for cell in cells])

    @staticmethod
    def right(cell: Cell, about: dict[str, Any], number: int) -> bool:
        # The same for the same setting, and about two thirds right.
        parts = (cell.frames, cell.depth, cell.family, cell.selector, cell.merger, about["changes"], number)
        text = json.dumps([*parts, Path(about["model"]).name], sort_keys=True)
        return sum(map(ord, text)) * 2654435761 % 97 < 65

    def predictions(self, cell: Cell, about: dict[str, Any]) -> list[Prediction]:
        return [
            Prediction(f"{cell.family} {number}?", "red", "red", self.right(cell, about, number), [1, 5], 100, 0.5)
            for number in range(cell.questions)
        ]


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    stand_in = Scripted()
    monkeypatch.setattr(studies, "evaluate_cells", stand_in)
    return stand_in


def rights(exam: Exam, row: dict, model: Path, changes: dict | None = None, **variant: Any) -> list[bool]:
    """What the stand-in says to the questions of a row."""
    about = {"model": str(model), "changes": changes or {}}
    return [
        Scripted.right(Cell(row["frames"], depth, family, **variant, questions=exam.questions), about, number)
        for depth in exam.depths
        for family in (exam.families if row["family"] == ALL else [row["family"]])
        for number in range(exam.questions)
    ]


def require_pair(row: dict, first: list[bool], second: list[bool]) -> None:
    """Difference, interval and p as counted by hand."""
    wins = sum(a and not b for a, b in zip(first, second, strict=True))
    losses = sum(b and not a for a, b in zip(first, second, strict=True))
    p = min(1.0, 2 * binom.cdf(min(wins, losses), wins + losses, 0.5)) if wins + losses else 1.0
    low, high = paired_difference_interval(first, second)
    expected = ((wins - losses) / len(first), low, high, p)
    assert tuple(row[name] for name in ("difference", "difference_low", "difference_high", "p")) == pytest.approx(
        expected
    )


def test_a_study_has_its_parameters_and_pairs_as_counted_by_hand(scripted: Scripted, miniature: Path) -> None:
    exam = replace(EXAM, questions=15)
    study = ablation_study([miniature], exam, selectors=["uniform"], mergers=["drop"], processes=2, out="somewhere")
    assert json.loads(json.dumps(study)) == study
    assert list(study) == ["study", "parameters", "rows", "stamp"]
    variants = {"selectors": ["dks", "uniform"], "mergers": ["dfm", "drop"]}
    assert study["parameters"] == json.loads(json.dumps(asdict(exam))) | variants
    assert study["stamp"]["model"] == str(miniature)
    (call,) = scripted.calls
    assert (call["seed"], call["pool"], call["processes"], call["out"].parent) == (3, 30, 2, Path("somewhere"))
    rows = study["rows"]
    assert len(rows) == 4 * 2 * 3  # variants, lengths, two families and all
    for row in rows:
        own = rights(exam, row, miniature, selector=row["selector"], merger=row["merger"])
        low, high = wilson_interval(sum(own), len(own))
        assert (row["questions"], row["correct"]) == (len(own), sum(own))
        assert (row["accuracy"], row["low"], row["high"]) == (sum(own) / len(own), low, high)
        require_pair(row, rights(exam, row, miniature), own)
        assert (row["tokens"], row["keyframes"], row["needle_recall"]) == (100, 2, 0.5)
    assert len({row["difference"] for row in rows}) > 3


def test_needles_by_depth(scripted: Scripted, miniature: Path) -> None:
    rows = niah_study([miniature], EXAM)["rows"]
    assert len(rows) == 2 * 3 * 2 * 3  # variants, two depths and all, lengths, two families and all
    for selector in ("dks", "uniform"):
        own = matching(rows, selector=selector, frames=80)
        parts = [row for row in own if ALL not in (row["depth"], row["family"])]
        assert [part["questions"] for part in parts] == [3] * 4
        whole = find(own, depth=ALL, family=ALL)
        assert whole["questions"] == 12
        scores = ("questions", "correct", "accuracy", "low", "high")
        assert pooled(parts, "frames") == [{"frames": 80} | {name: whole[name] for name in scores}]


def test_thresholds_and_temperatures(scripted: Scripted, miniature: Path, tmp_path: Path) -> None:
    axes = {"thresholds": (0.5, 0.85), "temperature_factors": (0.5, 1)}
    study = sensitivity_study([miniature], EXAM, **axes, out=tmp_path / "cells")
    assert [call["changes"] for call in scripted.calls] == [
        {"similarity_threshold": tau, "temperature_factor": factor} for factor in (0.5, 1) for tau in (0.5, 0.85)
    ]
    assert len({call["out"] for call in scripted.calls}) == 4
    assert study["parameters"]["reference"] == {"similarity_threshold": 0.85, "temperature_factor": 1}
    own = find(study["rows"], similarity_threshold=0.85, temperature_factor=1, frames=64, family=ALL)
    assert (own["difference"], own["p"]) == (0, 1)
    assert own["temperature"] == pytest.approx(0.07)
    other = find(study["rows"], similarity_threshold=0.5, temperature_factor=0.5, frames=64, family=ALL)
    assert other["difference"] == pytest.approx(own["accuracy"] - other["accuracy"])


def test_fields_of_the_configuration(scripted: Scripted, miniature: Path) -> None:
    study = keyframes_study([miniature], EXAM, keyframes=(2, 4))
    assert [call["changes"] for call in scripted.calls] == [{"max_keyframes": 2}, {"max_keyframes": 4}]
    assert find(study["rows"], max_keyframes=4, frames=80, family="attribute")["difference"] == 0
    # Without the model's own value among them there is nothing to compare with.
    study = redundancy_study([miniature], EXAM, weights=(0, 2.0))
    assert [call["changes"] for call in scripted.calls[2:]] == [{"redundancy_weight": 0}, {"redundancy_weight": 2.0}]
    assert study["parameters"]["reference"] == {"redundancy_weight": 1.0}
    assert all("difference" not in row for row in study["rows"])


def test_two_models(scripted: Scripted, miniature: Path) -> None:
    exam, changes = replace(EXAM, questions=15), {"reference": "released"}
    study = comparison_study([miniature] * 2, exam, second_changes=changes, out="cells")
    assert [call["changes"] for call in scripted.calls] == [{}, changes]
    first, second = (call["out"] for call in scripted.calls)
    assert second.name == f"{first.name}_reference=released"
    ablation_study([miniature], exam, out="cells")
    assert scripted.calls[2]["out"] == first  # what studies have in common is run once
    for row in study["rows"]:
        first, second = rights(exam, row, miniature), rights(exam, row, miniature, changes)
        assert (row["first_correct"], row["second_correct"]) == (sum(first), sum(second))
        assert row["first_accuracy"] == sum(first) / row["questions"]
        require_pair(row, first, second)


def test_different_questions_are_never_compared(miniature: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Forgetful(Scripted):
        def predictions(self, cell: Cell, about: dict[str, Any]) -> list[Prediction]:
            return [replace(p, answer=str(len(self.calls))) for p in super().predictions(cell, about)]

    monkeypatch.setattr(studies, "evaluate_cells", Forgetful())
    with pytest.raises(ValueError, match="must have answered the same questions"):
        comparison_study([miniature] * 2, EXAM)


def linked(miniature: Path, folder: Path, *names: str) -> list[Path]:
    """The same model under other names, which the stand-in takes for others."""
    for name in names:
        (folder / name).symlink_to(miniature)
    return [miniature, *(folder / name for name in names)]


def test_seeds(scripted: Scripted, miniature: Path, tmp_path: Path) -> None:
    models = linked(miniature, tmp_path, "one", "two")
    rows = seeds_study(models, EXAM, variants=[("dks", "dfm"), ("uniform", "mean")])["rows"]
    assert len(rows) == 2 * 2 * 3
    for row in rows:
        variant = {name: row[name] for name in ("selector", "merger")}
        every = [(rights(EXAM, row, model), rights(EXAM, row, model, **variant)) for model in models]
        accuracies = [sum(own) / len(own) for _, own in every]
        assert row["accuracies"] == accuracies
        assert (row["mean"], row["spread"]) == pytest.approx((np.mean(accuracies), np.std(accuracies, ddof=1)))
        assert (row["lowest"], row["highest"]) == (min(accuracies), max(accuracies))
        for pair, (first, own) in zip(row["paired"], every, strict=True):
            require_pair(pair, first, own)
        assert row["difference"] == pytest.approx(np.mean([pair["difference"] for pair in row["paired"]]))


def test_peers_get_the_same_questions_and_budgets(scripted: Scripted, miniature: Path, tmp_path: Path) -> None:
    models = linked(miniature, tmp_path, "other")
    study = peers_study(models, EXAM, peers=["dense"], budgets=(100, 200), out="cells")
    assert [Path(call["model"]).name for call in scripted.calls] == ["miniature"] * 2 + ["other"] * 2
    assert study["parameters"]["budgets"] == [100, 200]
    assert [row["budget"] for row in study["rows"]] == [100] * 12 + [200] * 12
    for row in study["rows"]:
        first = rights(EXAM, row, miniature)
        variant = {"selector": "uniform", "merger": "dense", "budget": row["budget"]}
        own = first if row["method"] == "full" else rights(EXAM, row, models[1], **variant)
        assert row["correct"] == sum(own)
        require_pair(row, first, own)


def test_a_study_says_how_many_models_it_takes(miniature: Path) -> None:
    for study, models, message in (
        (niah_study, str(miniature), "models must be a list of 1, got '"),
        (comparison_study, [miniature], "models must be a list of 2"),
        (peers_study, [miniature], "models must be a list of 4"),
        (seeds_study, [miniature], "models must be at least two, got 1"),
    ):
        with pytest.raises(ValueError, match=message):
            study(models, EXAM)


SHORT = Exam((64,), (0.5,), ("attribute",), questions=2, seed=3, pool=30)


def test_recorded_runs(
    miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(RECORDED, "niah", replace(RECORDED["niah"], exam=SHORT))
    folders = ["--out", str(tmp_path / "results"), "--cells", str(tmp_path / "cells"), "--trained", str(tmp_path)]
    assert main(["niah", "--model", str(miniature), "--questions", "1", *folders]) == 0
    study = load_result("niah", tmp_path / "results")
    assert study["parameters"]["questions"] == 1
    assert study["stamp"]["seconds"] >= 0
    assert len(list((tmp_path / "cells").rglob("*.json"))) == 2
    assert main(["no_grounding", "--model", str(miniature), *folders]) == 2
    assert "no_grounding needs" in capsys.readouterr().err
    with pytest.raises(ValueError, match="name must be one of 'training', 'niah'"):
        make_result("nothing", miniature, trained=tmp_path)


def test_every_peer_is_recorded_with_its_model(
    scripted: Scripted, miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for peer in PEERS:
        (tmp_path / f"peer_{peer}-seed0").mkdir()
        (tmp_path / f"peer_{peer}-seed0" / "model").symlink_to(miniature)
    file = make_result("peers", miniature, trained=tmp_path, out=tmp_path, questions=1)
    methods = json.loads(file.read_text())["parameters"]["peers"]
    assert {name: Path(folder).parent.name for name, folder in methods.items()} == {
        peer: f"peer_{peer}-seed0" for peer in PEERS
    }


def test_curves_are_recorded(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Means over windows of the steps, of every finished training there."""
    expected = {}
    for seed in (0, 2):
        for stage, steps in {"alignment": 103, "grounding": 7, "mixed": 50}.items():
            curve = torch.rand(steps, 2, generator=torch.Generator().manual_seed(seed))
            folder = tmp_path / f"full-seed{seed}"
            (folder / stage).mkdir(parents=True)
            save_file({"curve": curve}, folder / stage / "state.safetensors", {"about": json.dumps({"step": steps})})
            (folder / "model").mkdir(exist_ok=True)
            expected[seed, stage] = curve
    assert main(["training", "--trained", str(tmp_path), "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "training.json")
    study = load_result("training", tmp_path)
    assert study["parameters"]["seeds"] == [0, 2]
    assert study["parameters"]["recipe"]["alignment"]["name"] == "alignment"
    assert [(row["seed"], row["stage"]) for row in study["rows"]] == list(expected)
    for row, curve in zip(study["rows"], expected.values(), strict=True):
        assert row["steps"] == len(curve)
        means = torch.stack([part.mean(dim=0) for part in curve.split(row["window"])])
        assert pytest.approx(means.numpy(), abs=1e-4) == np.array([row["loss"], row["accuracy"]]).T
    (tmp_path / "full-seed2" / "alignment" / "state.safetensors").unlink()
    with pytest.raises(ValueError, match="alignment holds no saved state"):
        training_study(tmp_path, [0, 2])


def test_without_trainings_nothing_is_recorded(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["--trained", str(tmp_path), "--out", str(tmp_path / "results"), "--model", str(tmp_path)]
    assert main(["training", *arguments]) == 2
    assert f"there is no finished training in {tmp_path}: `vilamp train miniature` makes one" in capsys.readouterr().err
    assert main(arguments) == 2  # neither is there a bundled model
    out, err = capsys.readouterr()
    assert out.startswith("training: left out")
    assert "is not a checkpoint" in err
    assert not (tmp_path / "results").exists()


def test_former_names_in_recorded_studies(tmp_path: Path) -> None:
    pairs = [("top_relevance", "max_relevance"), ("adaptive", "differential")]
    rows = [{"selector": selector, "merger": merger} for selector, merger in pairs]
    rows.append({"answer": "adaptive"})
    study = {"study": "niah", "parameters": {"variants": [["top_relevance", "mean"]]}, "rows": rows, "stamp": {}}
    (tmp_path / "niah.json").write_text(json.dumps(study))
    read = load_result("niah", tmp_path)
    assert read["parameters"]["variants"] == [["top_k", "mean"]]
    assert read["rows"][:2] == [{"selector": "top_k", "merger": "max"}, {"selector": "aks", "merger": "dfm"}]
    assert read["rows"][2] == {"answer": "adaptive"}


def test_results_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no recorded study .*niah.json: `make studies` makes it"):
        load_result("niah", tmp_path)
    (tmp_path / "niah.json").write_text("{}")
    with pytest.raises(ValueError, match=r"niah.json is not a study \(KeyError: 'study'\)"):
        load_result("niah", tmp_path)


@pytest.mark.parametrize(
    ("attention", "share", "needed"),
    [([1, 1, 1, 1], 0.5, 0.5), ([0, 8, 1, 1], 0.8, 0.25), ([0, 8, 1, 1], 0.81, 0.5), ([3, 3, 3, 1], 1, 1)],
)
def test_the_share_of_items_that_is_needed(attention: list[float], share: float, needed: float) -> None:
    assert share_needed(np.array(attention, float), share) == needed


def brute_merged_patches(model, sequence, patches: torch.Tensor, query: torch.Tensor, of_token: list[float]) -> dict:
    """How the frames that are no keyframes are merged, frame by frame, each by the attention on its token."""
    keyframes, sums, total = sequence.keyframes.tolist(), np.zeros(3), 0.0
    for frame in set(range(len(patches))) - set(keyframes):
        (place,) = (sequence.frame_of_token == frame).nonzero()[:, 0].tolist()
        before = [k for k in keyframes if k < frame] or keyframes[:1]
        weights = model.merger(patches[[frame]], patches[before[-1]], query)[1][0].tolist()
        pairs = zip(patches[frame], patches[before[-1]], strict=True)
        cosines = [float(torch.cosine_similarity(a, b, dim=0)) for a, b in pairs]
        needed = next(n for n in range(17) if sum(sorted(weights, reverse=True)[:n]) >= 0.8 - 1e-6) / 16
        values = needed, sum(w * c for w, c in zip(weights, cosines, strict=True)), sum(cosines) / 16
        total += of_token[place]
        sums += of_token[place] * np.array(values)
    names = ("merged_patches_needed", "cosine_merged_patches", "cosine_all_patches")
    return dict(zip(names, sums / total, strict=True))


def test_attention_by_brute_force(miniature: Path) -> None:
    exam = replace(SHORT, families=("two needles",), questions=2)
    row, whole, mean, _ = attention_study([miniature], exam, variants=[("dks", "dfm"), ("uniform", "mean")])["rows"]
    assert row | {"family": ALL} == whole
    assert "merged_patches_needed" not in mean
    examiner = Examiner(miniature, exam.seed, exam.pool)
    model, processor = examiner.model, examiner.processor
    cell = exam.cells()[0]
    haystacks = cell_haystacks(cell, exam.seed, exam.pool)
    examiner.features.encode(scene for haystack in haystacks for scene in haystack.scenes)
    found: dict[str, list[float]] = {}
    for haystack in haystacks:
        sequence = examiner.sequence(haystack, "dks", "dfm")
        embeds, features = examiner.features.of(haystack.scenes)
        query = model.embed_query(**processor.selector_query([haystack.question.text]))[0].detach()
        prompt = processor.prompts([haystack.question.text])
        embeddings, mask, positions, _ = model.place_videos(prompt["input_ids"], [sequence.embeds])
        expected = model(**prompt, video_embeds=[sequence.embeds]).logits
        model.language_model.set_attn_implementation("eager")
        output = model(inputs_embeds=embeddings, attention_mask=mask, position_ids=positions, output_attentions=True)
        torch.testing.assert_close(output.logits, expected, rtol=1e-4, atol=1e-4)  # the same model, another kernel
        start = prompt["input_ids"][0].tolist().index(model.config.video_token_id)

        every = [float(sum(layer[0, h, -1, t].detach() for layer in output.attentions for h in range(4)) / 12)
                 for t in range(embeddings.shape[1])]  # fmt: skip
        assert sum(every) == pytest.approx(1, abs=1e-4)
        of_token = every[start : start + len(sequence.embeds)]
        torch.testing.assert_close(
            answer_attention(model, processor, haystack.question.text, sequence).mean(dim=(0, 1)),
            torch.tensor(of_token),
            rtol=1e-4,
            atol=1e-6,
        )
        of_frame = [0.0] * 64
        for value, frame in zip(of_token, sequence.frame_of_token.tolist(), strict=True):
            if frame >= 0:
                of_frame[frame] += value
        total = sum(of_frame)
        ranked = sorted(range(64), key=lambda n: -of_frame[n])
        patches = sorted(
            (v for v, k in zip(of_token, sequence.kind_of_token, strict=True) if k == TokenKind.PATCH), reverse=True
        )
        top = ranked[:4]  # ⌈0.05 · 64⌉
        cosines = [float(embeds[a] @ embeds[b]) for a in top for b in top if a != b]
        needles = [frame for span in haystack.needle_frames for frame in range(*span)]
        values = {
            "frames_needed": next(n for n in range(65) if sum(of_frame[f] for f in ranked[:n]) >= 0.9 * total) / 64,
            "patches_needed": next(n for n in range(99) if sum(patches[:n]) >= 0.8 * sum(patches)) / len(patches),
            "most_attended": sum(of_frame[frame] for frame in top) / total,
            "on_keyframes": sum(of_frame[frame] for frame in sequence.keyframes.tolist()) / total,
            "on_needles": sum(of_frame[frame] for frame in needles) / total,
            "on_video": sum(of_token),
            "cosine_attended": sum(cosines) / len(cosines),
            "half": sum(of_frame[frame] for frame in ranked[:32]) / total,
        } | brute_merged_patches(model, sequence, features.float(), query, of_token)
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    assert row["curve"][50] == pytest.approx(np.mean(found.pop("half")), abs=1e-4)
    assert row["curve"][::100] == pytest.approx([0, 1])
    for name, values in found.items():
        assert row[name] == pytest.approx(np.mean(values), abs=1e-4), name
        half = 1.96 * np.std(values, ddof=1) / 2**0.5
        assert row["high"][name] - row["low"][name] == pytest.approx(2 * half, abs=1e-4)
    assert row["cosine_merged_patches"] != pytest.approx(row["cosine_all_patches"], abs=1e-3)
    assert -1 <= row["cosine_random"] <= 1
