"""The commands around the miniature: what it is asked, and what `vilamp train` is given."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner
from video_files import write_video as write_numbers

from vilamp_lite import cli
from vilamp_lite.baselines.mergers import QFormerMerger
from vilamp_lite.tinyworld.encoder import TinyWorldConfig, TinyWorldModel, vocabulary
from vilamp_lite.tinyworld.questions import FAMILIES, random_scene
from vilamp_lite.tinyworld.render import write_video
from vilamp_lite.training import miniature
from vilamp_lite.training.miniature import assemble, save_miniature

QUESTION = "what color is the star?"


def refusal(*arguments: str | Path) -> str:
    """What the command says when it exits with 2: nothing but one line on stderr."""
    run = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert run.exit_code == 2, run.output
    assert run.stdout == ""
    (line,) = run.stderr.strip().splitlines()
    assert line.startswith("vilamp: ")
    return line


# --- vilamp ask ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "miniature"
    torch.manual_seed(0)
    encoder = TinyWorldModel(TinyWorldConfig(text_config={"vocab_size": len(vocabulary())}))
    save_miniature(assemble(encoder, 0), QFormerMerger(96, 96), folder)
    return folder


@pytest.fixture(autouse=True)
def _bundled(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "MINIATURE", saved)


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


def ask(video: Path, *options: str, question: str = QUESTION) -> dict:
    arguments = ["ask", str(video), question, "--max-new-tokens", "2", "--json", *options]
    run = CliRunner().invoke(cli.app, arguments)
    assert run.exit_code == 0, run.output
    return json.loads(run.stdout)


def test_the_miniature_answers_about_tinyworld(videos: dict[str, Path], saved: Path) -> None:
    result = ask(videos["world"])
    assert (result["model"], result["weights"]) == (str(saved), "checkpoint")
    assert result["frames_sampled"] == random_scene(1).num_frames + random_scene(2).num_frames
    assert result["tokens"]["keyframes"] == 16 * len(result["keyframes"])
    assert result["encoder"].startswith("tinyworld, 64 px")
    assert set(result["answer"].split()) <= set(vocabulary())
    assert ask(videos["world"], question=f"  {QUESTION.upper()} ")["answer"] == result["answer"]


def test_other_footage_is_refused_unless_forced(videos: dict[str, Path], saved: Path) -> None:
    for options in ([], ["--model", str(saved)]):
        line = refusal("ask", videos["other"], QUESTION, *options)
        assert "other.mp4 does not show TinyWorld" in line
        assert line.endswith(
            "make such a video with `vilamp tinyworld`, name another model with --model DIR, or --force"
        )
        assert ask(videos["other"], "--force", *options)["model"] == str(saved)


def test_unknown_words_are_refused(videos: dict[str, Path], saved: Path) -> None:
    for options in ([], ["--force"], ["--model", str(saved)]):
        line = refusal("ask", videos["world"], "what color is the dog?", *options)
        assert "the miniature does not know 'dog'; it was trained on such questions as: what color is the star?" in line


@pytest.mark.parametrize(
    ("video", "message"), [("text", "text.mp4"), ("missing", "missing.mp4: no such file; pass the path of a video")]
)
@pytest.mark.parametrize("options", [[], ["--force"]], ids=str)
def test_files_that_are_no_video(video: str, message: str, options: list[str], videos: dict[str, Path]) -> None:
    assert message in refusal("ask", videos[video], QUESTION, *options)


def test_without_the_bundled_model(videos: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "MINIATURE", tmp_path / "vilamp-miniature")
    assert "vilamp-miniature" in refusal("ask", videos["world"], QUESTION)


# --- vilamp train ----------------------------------------------------------------------------------------------------


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

    monkeypatch.setattr(miniature, "train_miniature", train_miniature)
    monkeypatch.setattr(miniature, "curves", curves)
    return calls


@pytest.mark.parametrize(
    ("arguments", "foreign"),
    [
        (["--preset", "miniature", "--data", "x.jsonl"], "--data"),
        (["--steps", "5"], "--steps"),
        (["--steps", "1000"], "--steps"),  # given, though it is the default
        (["--gradient-checkpointing"], "--gradient-checkpointing"),
        (["--learning-rate", "1e-3", "--model", "x", "--batch-size", "2"], "--batch-size, --learning-rate, --model"),
    ],
    ids=str,
)
def test_options_of_the_other_preset_are_refused(arguments: list[str], foreign: str, trainings: list) -> None:
    assert refusal("train", *arguments) == f"vilamp: --preset miniature has no {foreign}"
    assert trainings == []


def test_what_the_paper_preset_needs(trainings: list, tmp_path: Path) -> None:
    for given in ([], ["--model", tmp_path], ["--data", tmp_path / "x.jsonl"]):
        line = refusal("train", "--preset", "paper", *given)
        assert line == "vilamp: --preset paper needs --model DIR and --data FILE"
    line = refusal("train", "--preset", "paper", "--study", "full", "--model", tmp_path, "--data", "x.jsonl")
    assert line == "vilamp: --preset paper has no --study"
    # Before anything is loaded: there is no model in the folder either.
    for options, message in ((["--trains", "all of it"], "trains must be one of"), (["--steps", "0"], "steps must be")):
        line = refusal("train", "--preset", "paper", "--model", tmp_path, "--data", "missing.jsonl", *options)
        assert message in line
    missing = refusal("train", "--preset", "paper", "--model", tmp_path, "--data", tmp_path / "missing.jsonl")
    assert "missing.jsonl" in missing
    assert trainings == []


def test_a_training_gets_its_options(trainings: list, tmp_path: Path) -> None:
    arguments = ["--out", str(tmp_path), "--seed", "3", "--study", "no_grounding", "--mixed-precision", "bf16"]
    run = CliRunner().invoke(cli.app, ["train", *arguments])
    assert run.exit_code == 0, run.output
    assert Path(run.stdout.strip()) == tmp_path / "model"
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    ((places, options),) = trainings
    assert places == (tmp_path, 3, "no_grounding")
    assert options["mixed_precision"] == "bf16"


@pytest.mark.parametrize(("command", "names"), [("train", miniature.STUDIES), ("tinyworld", FAMILIES)])
def test_help_lists_every_name(command: str, names: dict) -> None:
    shown = CliRunner().invoke(cli.app, [command, "--help"], env={"COLUMNS": "400"}).stdout
    assert f"{', '.join(names)}." in shown


def test_an_unknown_study(tmp_path: Path) -> None:
    assert "study must be one of 'full', " in refusal("train", "--study", "half", "--out", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_options_the_miniature_is_trained(trainings: list) -> None:
    assert CliRunner().invoke(cli.app, ["train"]).exit_code == 0
    assert trainings[0][0] == (Path("runs/train"), 0, "full")
