"""VideoNIAH: honest haystacks from a pool, the model's own path to an answer, cells that survive a kill."""

import json
import shutil
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, fields, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from conftest import Refusal, Vilamp
from safetensors.torch import load_file, save_file

from vilamp_lite.baselines.mergers import QFormerMerger, mixed_tokens
from vilamp_lite.baselines.peers import sampled_frames
from vilamp_lite.common.fingerprints import PACKAGE, code_fingerprint
from vilamp_lite.configuration import ViLaMPConfig
from vilamp_lite.evaluation import niah
from vilamp_lite.evaluation.niah import Cell, Evaluation, Examiner, cell_haystacks, grid
from vilamp_lite.evaluation.results import Prediction
from vilamp_lite.evaluation.runs import evaluate_cells
from vilamp_lite.evaluation.scoring import wilson_interval
from vilamp_lite.generation import Answer
from vilamp_lite.modeling import MixedPrecisionSequence, ViLaMPForConditionalGeneration
from vilamp_lite.tinyworld.haystack import hide, pool_scenes
from vilamp_lite.tinyworld.miniature import miniature_config
from vilamp_lite.tinyworld.questions import FAMILIES, sample_questions
from vilamp_lite.tinyworld.render import SHAPES, Scene, render_scene

POOL = 60


@pytest.fixture(scope="module")
def examiner(miniature: Path) -> Examiner:
    return Examiner(miniature, seed=3, pool=POOL)


# --- Haystacks from a pool -------------------------------------------------------------------------------------------


def test_without_a_pool_haystacks_are_what_they_were() -> None:
    """Seeds written down before there were pools."""
    haystack = hide(sample_questions("attribute", 1, 0)[0], 64, 0.5, 0)
    assert [scene.seed for scene in haystack.scenes[:3]] == [1322248947829, 319078791625, 253588511967]
    assert haystack.needle_frames == ((30, 36),)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pool_keeps_splits_apart_and_the_shape_out(family: str) -> None:
    pools = {split: set(pool_scenes(POOL, split)) for split in ("train", "test")}
    assert not {scene.seed for scene in pools["train"]} & {scene.seed for scene in pools["test"]}
    for split, parity in (("train", 0), ("test", 1)):
        (question,) = sample_questions(family, 1, 5, split)
        haystack = hide(question, 900, 0.4, 1, split, POOL)
        assert sum(scene.num_frames for scene in haystack.scenes) == 900
        assert {scene.seed % 2 for scene in haystack.scenes} == {parity}
        hay = [scene for scene in haystack.scenes if scene not in question.needles]
        assert all(scene in pools[split] for scene in hay[:-1])
        assert replace(hay[-1], num_frames=0) in {replace(scene, num_frames=0) for scene in pools[split]}
        assert not any(thing.shape == question.shape for scene in hay for thing in scene.things)
        assert haystack == hide(question, 900, 0.4, 1, split, POOL)
        assert haystack != hide(question, 900, 0.4, 2, split, POOL)


def test_a_pool_is_used_up_before_a_scene_returns() -> None:
    (question,) = sample_questions("attribute", 1, 0)
    fitting = [s for s in pool_scenes(POOL) if all(thing.shape != question.shape for thing in s.things)]
    hay = [s for s in hide(question, 2000, 0.5, 0, pool=POOL).scenes if s not in question.needles]
    assert len(hay) > 2 * len(fitting)
    for start in (0, len(fitting)):
        assert set(hay[start : start + len(fitting)]) == set(fitting)


def test_impossible_pools() -> None:
    shape = pool_scenes(1)[0].things[0].shape
    question = next(q for q in sample_questions("attribute", 10, 0) if q.shape == shape)
    with pytest.raises(ValueError, match=f"pool must hold a scene without a {shape}: 1 are too few"):
        hide(question, 64, 0.5, 0, pool=1)
    with pytest.raises(ValueError, match="pool must be an integer of at least 1"):
        hide(question, 64, 0.5, 0, pool=0)


def test_variants_share_their_questions_and_cells_do_not() -> None:
    cell = Cell(200, 0.5, "two needles", questions=3)
    haystacks = cell_haystacks(cell, 0, POOL)
    assert haystacks == cell_haystacks(replace(cell, selector="uniform", merger="drop"), 0, POOL)
    seen = {needle.seed for haystack in haystacks for needle in haystack.question.needles}
    for change, seed in (({"frames": 201}, 0), ({"depth": 0.6}, 0), ({"family": "attribute"}, 0), ({}, 1)):
        other = cell_haystacks(replace(cell, **change), seed, POOL)
        assert not seen & {needle.seed for haystack in other for needle in haystack.question.needles}


def test_a_grid_is_every_combination() -> None:
    cells = grid([64, 128], [0, 1], ["companion"], ["dks", "uniform"], ["dfm"], 7)
    assert len(set(cells)) == len(cells) == 8
    assert cells[0] == Cell(64, 0, "companion", "dks", "dfm", 7)
    with pytest.raises(ValueError, match="depths must be different values, at least one, got"):
        grid([64], [0.5, 0.5], ["companion"])
    with pytest.raises(ValueError, match="frames must be different values"):
        grid([], [0.5], ["companion"])


# --- One question ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["companion", "roll call"])
def test_an_answer_is_the_models_own(
    family: str, examiner: Examiner, miniature: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Put together of kept features, a video is to the model what its frames are."""
    read: list[MixedPrecisionSequence] = []
    generate = niah.answer

    def watched(model, processor, prompt, sequence, **options) -> Answer:
        read.append(sequence)
        return generate(model, processor, prompt, sequence, **options)

    monkeypatch.setattr(niah, "answer", watched)
    cell = Cell(150, 0.3, family, questions=2)
    predictions = list(examiner.predictions(cell))
    model, processor = examiner.model, examiner.processor
    for haystack, prediction, sequence in zip(cell_haystacks(cell, 3, POOL), predictions, read, strict=True):
        frames = np.concatenate([render_scene(scene) for scene in haystack.scenes])
        query = model.embed_query(**processor.selector_query([haystack.question.text]))[0]
        with torch.no_grad():
            expected = model.encode_frames(processor.vision_pixels(frames), processor.selector_pixels(frames), query)
        assert prediction.keyframes == expected.keyframes.tolist() == sequence.keyframes.tolist()
        assert prediction.tokens == len(expected.embeds) == model.config.visual_tokens(150, 4)
        torch.testing.assert_close(sequence.embeds, expected.embeds, rtol=0, atol=2e-3)  # patches are kept as float16
        tokens = model.generate(**processor(frames, haystack.question.text), max_new_tokens=6, do_sample=False)
        assert prediction.prediction == processor.batch_decode(tokens)[0]


class Seeing:
    """Features as a perfect selector has them: what shapes a frame shows, and which scene it is."""

    def __init__(self, examiner: Examiner) -> None:
        self.width = examiner.model.config.query_size

    def encode(self, scenes: Iterable[Scene]) -> None:
        pass

    def of(self, scenes: Iterable[Scene]) -> tuple[torch.Tensor, torch.Tensor]:
        rows = []
        for scene in scenes:
            row = torch.zeros(self.width)
            row[[SHAPES.index(thing.shape) for thing in scene.things]] = 1
            own = torch.randn(self.width - len(SHAPES), generator=torch.Generator().manual_seed(scene.seed))
            row[len(SHAPES) :] = own * row.norm() / own.norm()
            rows += [row] * scene.num_frames
        return torch.stack(rows), torch.zeros(len(rows), 16, 96, dtype=torch.float16)

    def query(self, question: str) -> torch.Tensor:
        return torch.eye(self.width)[[SHAPES.index(shape) for shape in SHAPES if shape in question.split("?")[0]]]


@pytest.fixture
def seeing(examiner: Examiner, monkeypatch: pytest.MonkeyPatch) -> Examiner:
    """An examiner whose selector sees, and whose language model always says red."""
    eyes = Seeing(examiner)
    monkeypatch.setattr(examiner, "features", eyes)
    monkeypatch.setattr(examiner.processor, "selector_query", lambda questions: {"question": questions[0]})
    monkeypatch.setattr(examiner.model, "embed_query", eyes.query)
    monkeypatch.setattr(examiner.model.config, "fill", "none")
    monkeypatch.setattr(niah, "answer", lambda *_, **__: Answer(" Red\n", torch.tensor([0])))
    return examiner


@pytest.mark.parametrize(
    ("family", "selector", "recall"),
    [
        ("attribute", "dks", 1),
        ("companion", "top_k", 1),
        ("two needles", "dks", 1),
        ("two needles", "top_k", 0.5),  # all four keyframes in one scene
        ("two companions", "dks", 1),
        ("two companions", "uniform", 0),
        ("roll call", "dks", 4 / 17),  # four keyframes for 14 to 21 scenes
    ],
)
def test_needles_are_found_where_they_are(family: str, selector: str, recall: float, seeing: Examiner) -> None:
    cell = Cell(1000, 0.7, family, selector, "drop", 6)
    predictions = list(seeing.predictions(cell))
    for prediction, haystack in zip(predictions, cell_haystacks(cell, 3, POOL), strict=True):
        shown = [scene for scene in haystack.scenes for _ in range(scene.num_frames)]
        needles = {shown[frame].seed for frame in prediction.keyframes} & {n.seed for n in haystack.question.needles}
        assert prediction.needle_recall == len(needles) / len(haystack.question.needles)
        assert prediction.tokens == 16 * len(prediction.keyframes) + 1
        assert (prediction.question, prediction.answer) == (haystack.question.text, haystack.question.answer)
    assert np.mean([p.needle_recall for p in predictions]) == pytest.approx(recall, abs=0.06)


def test_answers_are_scored(seeing: Examiner) -> None:
    predictions = list(seeing.predictions(Cell(100, 0, "attribute", questions=16)))
    assert [p.correct for p in predictions] == [p.answer == "red" for p in predictions]
    assert sum(p.correct for p in predictions) == 2  # answers are balanced, and there are eight colors
    assert {p.prediction for p in predictions} == {" Red\n"}


def test_features_are_made_once_and_needles_forgotten(examiner: Examiner, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[Scene] = []
    encode = niah.encode_scenes

    def watched(encoder, scenes):
        encoded.extend(scenes)
        return encode(encoder, scenes)

    monkeypatch.setattr(niah, "encode_scenes", watched)
    features = niah.SceneFeatures(examiner.model.selector, pool_scenes(POOL), remembered=0)
    needles = sample_questions("two needles", 1, 0)[0].needles
    hay = pool_scenes(POOL)[:3]
    features.encode([*hay, *needles, *hay])
    features.encode(hay)
    features.encode([hay[0], needles[0]])
    assert encoded == [*hay, *needles, needles[0]]
    embeds, patches = features.of([needles[0], hay[0], needles[0]])
    expected = encode(examiner.model.selector, [needles[0], hay[0], needles[0]])
    torch.testing.assert_close(embeds, expected[0])
    assert patches.dtype == torch.float16
    torch.testing.assert_close(patches, expected[1].half(), rtol=0, atol=1e-2)
    with pytest.raises(KeyError):
        features.of([needles[1]])


def test_a_budget_is_kept_by_sampling_uniformly(examiner: Examiner) -> None:
    """Frame numbers are the video's, and what is seen is what the model makes of the sampled frames alone."""
    (haystack,) = cell_haystacks(Cell(80, 0.5, "attribute", questions=1), 3, POOL)
    examiner.features.encode(haystack.scenes)
    whole = examiner.sequence(haystack, "dks", "dfm")
    unlimited = examiner.sequence(haystack, "dks", "dfm", budget=1000)
    assert torch.equal(whole.embeds, unlimited.embeds)
    limited = examiner.sequence(haystack, "dks", "dfm", budget=101)
    seen = sampled_frames(80, 40)  # 101 − 4 · 15 − 1
    assert len(limited.embeds) == 101
    assert limited.frame_of_token.unique().tolist() == [-1, *seen.tolist()]
    assert set(limited.keyframes.tolist()) <= set(seen.tolist())
    for frame in seen.tolist():
        tokens = int((limited.frame_of_token == frame).sum())
        assert tokens == (16 if frame in limited.keyframes else 1)
    embeds, patches = examiner.features.of(haystack.scenes)
    query = examiner.model.embed_query(**examiner.processor.selector_query([haystack.question.text]))[0]
    keyframes = examiner.model.select(embeds[seen], query).indices
    assert torch.equal(limited.keyframes, seen[keyframes])
    with torch.inference_mode():
        expected = mixed_tokens(examiner.model, patches[seen].float(), keyframes, query)
    torch.testing.assert_close(limited.embeds, expected.embeds, rtol=0, atol=1e-5)  # rounding of float32
    dense = examiner.sequence(haystack, "uniform", "dense", budget=101)
    assert torch.equal(dense.keyframes, sampled_frames(80, 6))
    with pytest.raises(ValueError, match="budget must be at least 65 for 4 keyframes, got 64"):
        examiner.sequence(haystack, "dks", "dfm", budget=64)


def test_another_models_encoder_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    for config, message in (
        (ViLaMPConfig.tiny(), "needs TinyWorld's encoder, the model has a clip; try cases"),
        (miniature_config(), r"vision_tower and selector\.vision must be the same"),
    ):
        ViLaMPForConditionalGeneration(config).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=message):
            Examiner(tmp_path, pool=POOL)


def test_a_setting_is_a_changed_checkpoint(miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scenes are encoded once for all settings, and nothing else is shared."""
    cell = Cell(64, 0.5, "two needles", questions=3)
    examiner = Examiner(miniature, seed=3, pool=POOL)
    before = list(examiner.predictions(cell))
    monkeypatch.setattr(niah, "encode_scenes", None)
    changed = examiner.with_changes(max_keyframes=2, reference="released", temperature_factor=100)
    answers = list(changed.predictions(cell))
    assert list(examiner.predictions(cell)) == before  # the first examiner's model is its own
    monkeypatch.undo()
    other = copied_model(miniature, tmp_path / "other", max_keyframes=2, reference="released")
    weights = load_file(other / "model.safetensors")
    (other / "model.safetensors").unlink()
    weights["merger.temperature"] *= 100
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    alone = Examiner(other, seed=3, pool=POOL)
    assert list(alone.predictions(cell)) == answers != before
    haystack = cell_haystacks(cell, 3, POOL)[0]
    sequences = [one.sequence(haystack, "dks", "dfm").embeds for one in (examiner, changed, alone)]
    assert torch.equal(sequences[1], sequences[2])
    torch.testing.assert_close(changed.model.merger.temperature.data, 100 * examiner.model.merger.temperature.data)
    for factor in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="temperature_factor must be a finite number above 0"):
            examiner.with_changes(temperature_factor=factor)


# --- Many cells ------------------------------------------------------------------------------------------------------

CELLS = grid([100], [0, 1], ["attribute", "roll call"], questions=3)


@pytest.fixture(scope="module")
def finished(miniature: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Evaluation, Path]:
    """An uninterrupted run in one process."""
    folder = tmp_path_factory.mktemp("results") / "cells"
    return evaluate_cells(miniature, CELLS, seed=3, pool=POOL, out=folder), folder


def predictions_of(evaluation: Evaluation) -> list:
    return [result.predictions for result in evaluation.results]


def test_the_json_form(finished: tuple[Evaluation, Path], miniature: Path) -> None:
    evaluation, folder = finished
    about = json.loads(json.dumps(evaluation.as_json()))
    assert set(about) == {"cells", "mean", "stamp"}
    assert about["mean"] == np.mean([cell["accuracy"] for cell in about["cells"]])
    for cell, result, asked in zip(about["cells"], evaluation.results, CELLS, strict=True):
        correct = sum(prediction.correct for prediction in result.predictions)
        low, high = wilson_interval(correct, 3)
        scores = {"correct": correct, "accuracy": correct / 3, "low": low, "high": high}
        assert cell == {name: value for name, value in asdict(asked).items() if name != "budget"} | scores
        assert list(cell)[:6] == ["frames", "depth", "family", "selector", "merger", "questions"]
        kept = json.loads((folder / asked.file_name).read_text())
        assert set(kept) == {"cell", "settings", "predictions", "stamp"}
        assert kept["cell"] == cell
        assert kept["predictions"] == [asdict(prediction) for prediction in result.predictions]
        assert kept["stamp"] == about["stamp"]
    assert about["stamp"]["model"] == str(miniature)
    assert (about["stamp"]["seed"], about["stamp"]["pool"]) == (3, POOL)
    assert about["stamp"]["versions"]["torch"] == version("torch")  # torch.__version__ may name its build as well
    names = {f"100_{depth}_{family}_dks_dfm.json" for depth in (0, 1) for family in ("attribute", "roll-call")}
    assert {file.name for file in folder.iterdir()} == names


def test_two_processes_give_the_same(finished: tuple[Evaluation, Path], miniature: Path, tmp_path: Path) -> None:
    evaluation, folder = finished
    again = evaluate_cells(miniature, CELLS, seed=3, pool=POOL, processes=2, out=tmp_path)
    assert again.as_json() == evaluation.as_json()
    assert predictions_of(again) == predictions_of(evaluation)
    for file in folder.iterdir():
        assert (tmp_path / file.name).read_text() == file.read_text()


def test_no_worker_outlives_a_killed_parent(miniature: Path, tmp_path: Path) -> None:
    """And what was finished is there."""
    code = (
        "from vilamp_lite.evaluation import evaluate_cells, grid\n"
        "cells = grid([100], [0.02 * n for n in range(50)], ['roll call'], questions=10)\n"
        f"evaluate_cells({str(miniature)!r}, cells, pool={POOL}, processes=2, out={str(tmp_path)!r})\n"
    )
    parent = psutil.Popen([sys.executable, "-c", code])
    try:
        while not list(tmp_path.glob("*_dks_dfm.json")):
            assert parent.poll() is None
            time.sleep(0.2)
        children = parent.children(recursive=True)
        assert len(children) >= 2
    finally:
        parent.kill()
        parent.wait()
    assert not psutil.wait_procs(children, timeout=20)[1]
    finished = list(tmp_path.glob("*_dks_dfm.json"))
    assert finished
    for file in finished:
        assert json.loads(file.read_text())["predictions"]


def test_only_what_answers_follow_from_makes_kept_ones_strangers(tmp_path: Path) -> None:
    package = tmp_path / "vilamp_lite"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    code_fingerprint.cache_clear()
    # Written down once, and the same in Python 3.11, 3.12 and 3.13.
    (tmp_path / "code.py").write_text(
        'def f(x: int = 0, *y) -> str:\n    return f"{x!r:>9} a" "b"\nclass A: z = None\n'
    )
    assert code_fingerprint(tmp_path) == "8af3894a1af108ec"
    own = code_fingerprint(package)
    assert own == code_fingerprint()
    rooms = ("plots/style.py", "costs/shapes.py", "training/loop.py", "notebook/sweep.py", "cli/__init__.py")
    for name in (*rooms, "evaluation/studies.py", "evaluation/report.py", "common/progress.py"):
        (package / name).write_text((package / name).read_text() + "\nCHANGED = 1\n")
    (package / "plots" / "new.py").write_text("CHANGED = 1\n")
    text = (package / "keyframes.py").read_text()
    (package / "keyframes.py").write_text(text.replace('"""', '"""In other words. ', 1) + "\n# a comment\n")
    code_fingerprint.cache_clear()
    assert code_fingerprint(package) == own
    rooms = ("baselines/peers.py", "video/source.py", "streaming/encode.py", "tinyworld/render.py")
    common = ("common/checks.py", "common/hub.py", "common/precision.py")
    evaluation = ("evaluation/niah.py", "evaluation/footage.py", "evaluation/results.py", "evaluation/scoring.py")
    for name in ("keyframes.py", "new.py", *rooms, *common, *evaluation):  # one for each pattern
        file = package / name
        before = file.read_text() if file.exists() else ""
        file.write_text(before + "\nCHANGED = 1\n")
        code_fingerprint.cache_clear()
        assert code_fingerprint(package) != own, name
        file.write_text(before) if before else file.unlink()


def test_an_interrupted_run_goes_on(
    finished: tuple[Evaluation, Path], miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate, calls = niah.answer, []

    def interrupted(*arguments, **options) -> Answer:
        calls.append(arguments)
        if len(calls) == 5:  # in the middle of the second cell
            raise KeyboardInterrupt
        return generate(*arguments, **options)

    monkeypatch.setattr(niah, "answer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate_cells(miniature, CELLS, seed=3, pool=POOL, out=tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [CELLS[0].file_name]
    (tmp_path / CELLS[2].file_name).with_suffix(".123").write_text('{"cell": {')  # what a kill while writing leaves
    again = evaluate_cells(miniature, CELLS, seed=3, pool=POOL, out=tmp_path)
    assert len(calls) == 5 + 9
    assert predictions_of(again) == predictions_of(finished[0])
    # With nothing to do not even the model is loaded.
    monkeypatch.setattr("vilamp_lite.evaluation.runs.Examiner", None)
    assert evaluate_cells(miniature, CELLS[::-1], seed=3, pool=POOL, out=tmp_path).results == again.results[::-1]


def test_results_of_another_evaluation_and_damaged_ones_are_refused(
    finished: tuple[Evaluation, Path], miniature: Path, tmp_path: Path
) -> None:
    folder, file = finished[1], CELLS[0].file_name
    older, damaged = (Path(shutil.copytree(folder, tmp_path / name)) for name in ("older", "damaged"))
    (older / file).write_text((older / file).read_text().replace(code_fingerprint(), "0123456789abcdef"))
    (damaged / file).write_text("{")
    other = copied_model(miniature, tmp_path / "other", similarity_threshold=0.8)
    for change, message in (
        ({"seed": 4}, "is of another evaluation (seed 3, not 4); delete it, or choose another folder"),
        ({"pool": 61}, "(pool 60, not 61)"),
        ({"changes": {"max_keyframes": 2}}, "(changes {}, not {'max_keyframes': 2})"),
        ({"cells": grid([100], [0], ["attribute"], questions=2)}, "(questions 3, not 2)"),
        ({"model": other}, "of another evaluation (weights "),
        ({"out": older}, "of another evaluation (code 0123456789abcdef, not "),
        ({"out": damaged}, "is not a result ("),
    ):
        settings = {"model": miniature, "cells": CELLS, "seed": 3, "pool": POOL, "out": folder} | change
        with pytest.raises(ValueError, match="100_0_attribute_dks_dfm") as refused:
            evaluate_cells(**settings)
        assert message in str(refused.value)
    whole = json.loads((folder / file).read_text())
    kept = whole["predictions"]
    for predictions in (None, "none", {}, [], kept[:-1], [*kept, kept[0]], [{"question": "?"}] * len(kept), [3]):
        (damaged / file).write_text(json.dumps(whole | {"predictions": predictions}))
        with pytest.raises(ValueError, match=f"{file}: predictions.*; delete it, or choose another folder"):
            evaluate_cells(miniature, CELLS, seed=3, pool=POOL, out=damaged)


def copied_model(source: Path, target: Path, **changes: object) -> Path:
    """The same model with its configuration changed."""
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).symlink_to(file)
    (target / "config.json").unlink()
    config = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | changes))
    return target


def test_changes_mergers_and_budgets_reach_the_model(miniature: Path, tmp_path: Path) -> None:
    cells = grid([100], [0.5], ["attribute"], ["uniform"], ["dfm", "drop", "qformer"], questions=1)
    results = evaluate_cells(miniature, cells, pool=POOL, changes={"max_keyframes": 2}).results
    assert [result.predictions[0].tokens for result in results] == [2 * 16 + 98 + 1, 2 * 16 + 1, 2 * 16 + 98 + 1]
    assert all(len(result.predictions[0].keyframes) == 2 for result in results)
    cell = Cell(64, 0.5, "attribute", "uniform", "two_tokens", questions=1, budget=65)
    (limited,) = evaluate_cells(miniature, [cell], pool=POOL, out=tmp_path).results
    assert (limited.predictions[0].tokens, len(limited.predictions[0].keyframes)) == (65, 32)
    (file,) = tmp_path.iterdir()
    assert file.name == "64_0.5_attribute_uniform_two_tokens_65.json"
    assert json.loads(file.read_text())["cell"]["budget"] == 65


def test_a_qformer_is_needed(miniature: Path, tmp_path: Path) -> None:
    other = copied_model(miniature, tmp_path / "other")
    (other / "qformer").unlink()
    cells = [Cell(100, 0.5, "attribute", merger="qformer", questions=1)]
    with pytest.raises(ValueError, match=r"the merger 'qformer' needs .*/qformer/model.safetensors"):
        evaluate_cells(other, cells, pool=POOL)
    (other / "qformer").mkdir()
    save_file(QFormerMerger(64, 96).state_dict(), other / "qformer" / "model.safetensors")
    with pytest.raises(ValueError, match="does not fit the model"):
        evaluate_cells(other, cells, pool=POOL)


def test_bad_settings(miniature: Path) -> None:
    for arguments, message in (
        (
            {"cells": [Cell(20, 0.5, "roll call")]},
            r"frames must be at least \d+ to hold the needles of a roll call, got 20",
        ),
        ({"cells": []}, "cells must be different ones, at least one, got 0"),
        ({"cells": CELLS[:1] * 2}, "cells must be different ones"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got int -1"),
        ({"processes": 0}, "processes must be an integer of at least 1"),
        ({"changes": {"max_keyframe": 2}}, "has no field max_keyframe"),
        ({"model": "nowhere"}, "nowhere: no such folder"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate_cells(**{"model": miniature, "cells": CELLS, "pool": POOL} | arguments)


def test_bad_cells() -> None:
    for change, message in (
        ({"frames": 0}, "frames must be an integer of at least 1"),
        ({"depth": 1.5}, "depth must lie from 0 to 1, got 1.5"),
        ({"family": "riddle"}, "family must be one of 'attribute'"),
        ({"selector": "luck"}, "selector must be one of 'dks'"),
        ({"merger": "glue"}, "merger must be one of 'dfm'"),
        ({"questions": 0}, "questions must be an integer of at least 1"),
        ({"budget": 0}, "budget must be an integer of at least 1"),
        ({"merger": "dense", "selector": "uniform"}, "dense needs a budget and the selector 'uniform'"),
        ({"merger": "dense", "budget": 100, "selector": "dks"}, "dense needs a budget and the selector 'uniform'"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(CELLS[0], **change)


# --- The command -----------------------------------------------------------------------------------------------------

NIAH = ("evaluate", "niah")


def test_the_command(finished: tuple[Evaluation, Path], miniature: Path, vilamp: Vilamp, tmp_path: Path) -> None:
    options = ("--model", miniature, "--frames", "100,120", "--depths", "0.5", "--questions", 1, "--out", tmp_path)
    code, out, err = vilamp(*NIAH, *options, "--families", "attribute, roll call", "--seed", 3, "--json")
    assert code == 0, err
    result = json.loads(out)
    cells = grid([100, 120], [0.5], ["attribute", "roll call"], questions=1)
    assert result == evaluate_cells(miniature, cells, seed=3, out=tmp_path).as_json()
    code, out, err = vilamp(*NIAH, *options, "--families", "attribute, roll call", "--seed", 3)
    assert code == 0, err
    for text in ("mean accuracy 0.000", "roll call", "dks + dfm", "0/1", "0.000 (0.00–0.79)"):
        assert text in " ".join(out.split())


def test_predictions_are_kept_where_nothing_is_said(
    miniature: Path, vilamp: Vilamp, refusal: Refusal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "--frames must be numbers with commas between them, got 'many'" in refusal(*NIAH, "--frames", "many")
    assert "nowhere: no such folder" in refusal(*NIAH, "--model", "nowhere")
    options = ("--model", miniature, "--frames", 64, "--families", "attribute", "--questions", 2)
    code, out, err = vilamp(*NIAH, *options)
    assert code == 0, err
    (file,) = tmp_path.rglob("*.json")
    assert str(file.parent.relative_to(tmp_path)) in out
    kept = json.loads(file.read_text())["predictions"]
    assert [list(one) for one in kept] == [[field.name for field in fields(Prediction)]] * 2
    made = file.stat().st_mtime_ns
    assert vilamp(*NIAH, *options)[0] == vilamp(*NIAH, *options, "--seed", 1)[0] == 0
    assert file.stat().st_mtime_ns == made
    assert len(list(tmp_path.rglob("*.json"))) == 2
