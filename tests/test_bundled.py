"""The bundled miniature: small, complete, and it answers."""

import numpy as np
import torch

from vilamp_lite.checkpoints import load_checkpoint, load_processor
from vilamp_lite.evaluation.niah import evaluate_cells, grid
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


def test_it_answers() -> None:
    """Chance is 1/8 and less; 20 questions of five families can't be right by chance so often (p < 1e-6)."""
    cells = grid([128], [0.5], list(FAMILIES), questions=4)
    results = evaluate_cells(MINIATURE, cells, seed=5, pool=60).results
    assert np.mean([right for result in results for right in result.correct]) >= 0.6


@torch.inference_mode()
def test_it_answers_by_the_way_users_go() -> None:
    """From pixels through the processor, not from features."""
    (question,) = sample_questions("attribute", 1, 3)
    frames = np.concatenate([render_scene(scene) for scene in hide(question, 40, 0.5, 0).scenes])
    model = load_checkpoint(MINIATURE)
    processor = load_processor(MINIATURE, model.config)
    answer = model.generate(**processor(frames, question.text), max_new_tokens=4, do_sample=False)
    assert processor.batch_decode(answer)[0] == question.answer
