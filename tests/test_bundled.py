"""The bundled miniature: small, complete, and it answers."""

import numpy as np
import pytest
import torch

from figures.make_results import RECORDED
from vilamp_lite.checkpoints import load_checkpoint, load_processor
from vilamp_lite.common.fingerprints import weights_fingerprint
from vilamp_lite.evaluation.niah import grid
from vilamp_lite.evaluation.report import find
from vilamp_lite.evaluation.results import load_result
from vilamp_lite.evaluation.runs import evaluate_cells
from vilamp_lite.evaluation.scoring import wilson_interval
from vilamp_lite.evaluation.studies import ALL
from vilamp_lite.tinyworld import MINIATURE
from vilamp_lite.tinyworld.haystack import hide
from vilamp_lite.tinyworld.questions import FAMILIES, sample_questions
from vilamp_lite.tinyworld.render import render_scene


def test_it_is_small_and_complete() -> None:
    files = [path for path in MINIATURE.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 12e6
    names = {str(path.relative_to(MINIATURE)) for path in files}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert {"selector/model.safetensors", "qformer/model.safetensors"} <= names
    assert {path.suffix for path in files} <= {".json", ".md", ".safetensors"}


@pytest.mark.parametrize("name", [*RECORDED, "streaming", "streaming_100000"])
def test_what_is_recorded_is_of_these_weights(name: str) -> None:
    assert load_result(name)["stamp"]["weights"] == weights_fingerprint(MINIATURE)


def test_it_answers_as_recorded() -> None:
    """50 new questions at the length of the recorded ablation: both intervals overlap, and chance is far off."""
    recorded = find(load_result("ablation")["rows"], selector="dks", merger="dfm", family=ALL)
    cells = grid([recorded["frames"]], [0.5], list(FAMILIES), questions=10)
    results = evaluate_cells(MINIATURE, cells, seed=5, pool=200).results
    right = [prediction.correct for result in results for prediction in result.predictions]
    low, high = wilson_interval(sum(right), len(right))
    assert high >= recorded["low"]
    assert low >= 0.6


def test_the_recipe_makes_such_a_model_again() -> None:
    """Recorded: no difference is shown on 1,000 questions, and its interval has no room for one of .05."""
    row = find(load_result("retrained")["rows"], family=ALL)
    assert row["p"] >= 0.05
    assert max(abs(row["difference_low"]), abs(row["difference_high"])) <= 0.05


@torch.inference_mode()
def test_it_answers_by_the_way_users_go() -> None:
    """From pixels through the processor, not from features."""
    (question,) = sample_questions("attribute", 1, 3)
    frames = np.concatenate([render_scene(scene) for scene in hide(question, 40, 0.5, 0).scenes])
    model = load_checkpoint(MINIATURE)
    processor = load_processor(MINIATURE, model.config)
    answer = model.generate(**processor(frames, question.text), max_new_tokens=4, do_sample=False)
    assert processor.batch_decode(answer)[0] == question.answer
