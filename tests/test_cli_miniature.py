"""The commands around the miniature: what it is asked, and what `vilamp train` is given."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Refusal, Vilamp
from video_files import write_video as write_numbers

from vilamp_lite.costs import GPUS, PEER_MODELS
from vilamp_lite.tinyworld.encoder import vocabulary
from vilamp_lite.tinyworld.questions import FAMILIES, random_scene
from vilamp_lite.tinyworld.render import write_video
from vilamp_lite.training import STUDIES, TRAINABLE

QUESTION = "what color is the star?"


@pytest.fixture(autouse=True)
def _bundled(miniature: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vilamp_lite.cli.ask.MINIATURE", miniature)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "world.mp4", [random_scene(1), random_scene(2)])
    (folder / "text.mp4").write_text("no video")
    return {
        "world": folder / "world.mp4",
        "other": write_numbers(folder / "other.mp4", 30),
        "text": folder / "text.mp4",
        "missing": folder / "missing.mp4",
    }


@pytest.fixture
def ask(vilamp: Vilamp) -> Callable[..., dict]:
    def asked(video: Path, *options: object, question: str = QUESTION) -> dict:
        code, out, err = vilamp("ask", video, question, "--max-new-tokens", 2, "--json", *options)
        assert code == 0, err
        return json.loads(out)

    return asked


def test_the_miniature_answers_about_tinyworld(
    videos: dict[str, Path], miniature: Path, ask: Callable[..., dict]
) -> None:
    result = ask(videos["world"])
    assert (result["model"], result["weights"]) == (str(miniature), "checkpoint")
    assert result["frames_sampled"] == random_scene(1).num_frames + random_scene(2).num_frames
    assert result["tokens"]["keyframes"] == 16 * len(result["keyframes"])
    assert result["encoder"].startswith("tinyworld, 64 px")
    assert set(result["answer"].split()) <= set(vocabulary())
    assert ask(videos["world"], question=f"  {QUESTION.upper()} ")["answer"] == result["answer"]


def test_other_footage_is_refused_unless_forced(
    videos: dict[str, Path], miniature: Path, ask: Callable[..., dict], refusal: Refusal
) -> None:
    for options in ([], ["--model", str(miniature)]):
        line = refusal("ask", videos["other"], QUESTION, *options)
        assert "other.mp4 does not show TinyWorld" in line
        assert line.endswith(
            "make such a video with `vilamp tinyworld`, name another model with --model DIR, or --force"
        )
        assert ask(videos["other"], "--force", *options)["model"] == str(miniature)


def test_unknown_words_are_refused(videos: dict[str, Path], miniature: Path, refusal: Refusal) -> None:
    for options in ([], ["--force"], ["--model", str(miniature)]):
        line = refusal("ask", videos["world"], "what color is the dog?", *options)
        assert "the miniature does not know 'dog'; it was trained on such questions as: what color is the star?" in line


def test_without_a_video_or_the_bundled_model(
    videos: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: Refusal
) -> None:
    for options in ([], ["--force"]):
        assert "text.mp4" in refusal("ask", videos["text"], QUESTION, *options)
        line = refusal("ask", videos["missing"], QUESTION, *options)
        assert "missing.mp4: no such file; pass the path of a video" in line
    monkeypatch.setattr("vilamp_lite.cli.ask.MINIATURE", tmp_path / "vilamp-miniature")
    assert "vilamp-miniature" in refusal("ask", videos["world"], QUESTION)


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list:
    """Writes down what would be trained, and leaves curves as a training does."""
    calls = []

    def train_miniature(*arguments: object, **options: object) -> Path:
        calls.append((arguments, options))
        return tmp_path / "model"

    def curves(folder: Path, study: str, seed: int) -> dict[str, np.ndarray]:
        assert (folder, seed, study) == calls[-1][0]
        return {"alignment": np.linspace(0, 1, 20).reshape(10, 2), "mixed": np.ones((3, 2))}

    monkeypatch.setattr("vilamp_lite.training.train_miniature", train_miniature)
    monkeypatch.setattr("vilamp_lite.training.curves", curves)
    return calls


def test_bad_options_are_refused_before_anything_is_loaded(tmp_path: Path, refusal: Refusal) -> None:
    """There is no model in the folder either."""
    needed = ["--model", tmp_path, "--data", tmp_path / "missing.jsonl"]
    for arguments, message in (
        ([], "Missing option"),
        (needed[:2], "Missing option '--data'"),
        (needed, "missing.jsonl"),
        ([*needed, "--trains", "all of it"], "trains must be one of"),
        ([*needed, "--steps", "0"], "steps must be"),
        ([*needed, "--study", "full"], "No such option: --study"),
    ):
        assert message in refusal("train", "finetune", *arguments)
    assert "study must be one of 'full', " in refusal("train", "miniature", "--study", "half", "--out", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_training_gets_its_options(trainings: list, tmp_path: Path, vilamp: Vilamp) -> None:
    options = ("--out", tmp_path, "--seed", 3, "--study", "no_grounding", "--mixed-precision", "bf16")
    assert vilamp("train", "miniature", *options) == (0, f"{tmp_path / 'model'}\n", "")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "curves.png").write_text("mine")
    assert "curves.png is there, and it is not what is saved here" in vilamp("train", "miniature", *options)[2]
    assert (tmp_path / "curves.png").read_text() == "mine"
    (tmp_path / "curves.png").unlink()
    assert vilamp("train", "miniature")[0] == 0
    (places, options), *_, (without, _) = trainings
    assert places == (tmp_path, 3, "no_grounding")
    assert options["mixed_precision"] == "bf16"
    assert without == (Path("runs/train"), 0, "full")


def test_help_lists_every_name(vilamp: Vilamp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    for command, names in (
        ("train miniature", STUDIES),
        ("train finetune", TRAINABLE),
        ("tinyworld", FAMILIES),
        ("costs", GPUS),
        ("costs", PEER_MODELS),
    ):
        assert f"{', '.join(names)}." in vilamp(*command.split(), "--help")[1], command


def test_several_processes_run_the_same_command(
    monkeypatch: pytest.MonkeyPatch, trainings: list, vilamp: Vilamp
) -> None:
    launched = []

    def replace_this_process(_: str, command: list[str]) -> None:
        launched.append(command)
        raise SystemExit

    monkeypatch.setattr(os, "execv", replace_this_process)
    for name in ("OMP_NUM_THREADS", "ACCELERATE_USE_CPU"):
        monkeypatch.setenv(name, "1")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    words = ["train", "miniature", "--processes", "2"]
    vilamp(*words)
    assert launched[0][-7:] == ["--nproc_per_node=2", "-m", "vilamp_lite", *words]
    assert trainings == []
    monkeypatch.setenv("LOCAL_RANK", "1")  # one of the two: it works, and leaves speaking to the first
    assert vilamp(*words)[:2] == (0, "")
    assert (len(launched), len(trainings)) == (1, 1)
