"""Bundling a trained miniature: whole, small, with a card whose numbers are the recorded ones."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from vilamp_lite.checkpoints import load_checkpoint
from vilamp_lite.evaluation.studies import ALL
from vilamp_lite.tinyworld.questions import FAMILIES


@pytest.fixture(scope="module")
def make_miniature() -> ModuleType:
    path = Path(__file__).resolve().parents[1] / "data" / "make_miniature.py"
    spec = importlib.util.spec_from_file_location("make_miniature", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_model_takes_the_place_of_another(make_miniature: ModuleType, miniature: Path, tmp_path: Path) -> None:
    target = tmp_path / "bundled"
    (target / "selector").mkdir(parents=True)
    (target / "README.md").write_text("a card")
    (target / "old.safetensors").write_text("of another model")
    size = make_miniature.bundle(miniature, target)
    files = {str(path.relative_to(miniature)): path for path in miniature.rglob("*") if path.is_file()}
    assert size == sum(path.stat().st_size for path in files.values())
    assert (target / "README.md").read_text() == "a card"
    assert {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()} == {*files, "README.md"}
    load_checkpoint(target)


def test_what_can_not_be_bundled_is_refused(
    make_miniature: ModuleType, miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kept").write_text("")
    with pytest.raises(ValueError, match=r"there is no model in .*: `vilamp train miniature` makes it"):
        make_miniature.bundle(tmp_path / "none", tmp_path)
    monkeypatch.setattr(make_miniature, "LIMIT", 1e6)
    with pytest.raises(ValueError, match="MB, more than 1"):
        make_miniature.bundle(miniature, tmp_path)
    assert (tmp_path / "kept").exists()


def test_the_cards_numbers_are_the_recorded_ones(make_miniature: ModuleType, tmp_path: Path) -> None:
    families = (*FAMILIES, ALL)
    parameters = {"frames": [2048], "models": ["a", "b", "c"], "variants": [["dks", "dfm"], ["uniform", "mean"]]}
    about = {"study": "", "stamp": {"commit": "0123456789abcdef"}}
    seeds = [
        {"selector": s, "merger": m, "family": family, "questions": 200, "mean": 0.9 - n / 100, "spread": 0.02}
        for s, m in parameters["variants"]
        for n, family in enumerate(families)
    ]
    scores = {"accuracy": 0.77, "low": 0.71, "high": 0.82}
    own = [{"selector": "dks", "merger": "dfm", "family": family} | scores for family in families]
    again = {"family": ALL, "questions": 1000, "first_accuracy": 0.871, "second_accuracy": 0.869, "p": 0.6}
    again |= {"difference": 0.002, "difference_low": -0.011, "difference_high": 0.015}
    (tmp_path / "retrained.json").write_text(json.dumps(about | {"parameters": {}, "rows": [again]}))
    for name, rows in {"seeds": seeds, "seeds_10000": seeds[:6], "ablation": own}.items():
        given = parameters | ({"variants": parameters["variants"][:1]} if name == "seeds_10000" else {})
        (tmp_path / f"{name}.json").write_text(json.dumps(about | {"parameters": given, "rows": rows}))
    card = make_miniature.card(tmp_path)
    assert "| uniform + mean | 0.90 ± 0.02 | 0.89 ± 0.02 |" in card
    assert card.count("| DKS + DFM | 0.90 ± 0.02 |") == 2
    assert "0.77 (0.71–0.82)" in card
    again = "answers 0.871 of them, the other 0.869; bundled minus other is +0.00 (-0.01 to +0.01, p = 0.6)\n(commit"
    assert again in card
    for text in (
        "200 questions of each family",
        "It is best on all.",
        "At 2,048 frames, 3 seeds",
        "(commit 0123456789)",
        "| attribute | what color is the star? | 1/8 |",
    ):
        assert text in card
    assert "{" not in card
    (tmp_path / "ablation.json").unlink()
    with pytest.raises(ValueError, match="there is no recorded study"):
        make_miniature.card(tmp_path)
