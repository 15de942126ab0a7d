"""The command: what it prints, and one line with exit code 2 for bad input."""

import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from conftest import Refusal, Vilamp
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_models import OFFICIAL

from vilamp_lite.checkpoints import load_checkpoint, load_processor
from vilamp_lite.configuration import ViLaMPConfig
from vilamp_lite.processing import ViLaMPProcessor
from vilamp_lite.tinyworld.questions import random_scene
from vilamp_lite.tinyworld.render import write_video
from vilamp_lite.video.source import probe as probe_file

CLIP_TEXT = "model.frame_selector.model.text_model.embeddings"
TOUR = Path(__file__).resolve().parents[1] / "data" / "photo_tour.mp4"


def test_probe(vilamp: Vilamp) -> None:
    code, out, _ = vilamp("probe", TOUR)
    assert code == 0
    for text in (str(TOUR), "120.00 s", "3,600 at 30.000 per second", "640 × 360 pixels", "h264"):
        assert text in out
    facts = json.loads(vilamp("probe", TOUR, "--json")[1])
    assert facts["num_frames"] == 3600
    assert facts["duration"] == pytest.approx(120)
    assert (facts["width"], facts["height"], facts["codec"]) == (640, 360, "h264")


def test_keyframes(vilamp: Vilamp, tmp_path: Path) -> None:
    strip = tmp_path / "strip.png"
    options = ("--max-keyframes", 5, "--strip", strip, "--json")
    code, out, err = vilamp("keyframes", TOUR, "a cup of coffee", *options)
    assert code == 0, err
    result = json.loads(out)
    assert result["encoder"] == "conse"
    assert result["frames_sampled"] == 120
    frames = result["keyframes"]
    assert [frame["rank"] for frame in frames] == [1, 2, 3, 4, 5]
    # The coffee is shown from 36.0 to 44.8 s and from 106.2 to 114.1 s.
    assert 36 <= frames[0]["seconds"] < 44.8 or 106.2 <= frames[0]["seconds"] < 114.1
    assert frames[0]["frame"] == frames[0]["sample"] * 30
    assert frames[0]["redundancy"] is None
    assert all(frame["redundancy"] <= 0.85 for frame in frames[1:])
    assert [f["relevance"] for f in frames] == sorted((f["relevance"] for f in frames), reverse=True)
    assert Image.open(strip).size[0] > 800


def test_keyframes_for_people(vilamp: Vilamp, tmp_path: Path) -> None:
    """A query is text, whatever brackets it holds; the first keyframe has nothing to repeat."""
    arguments, strip = ("keyframes", TOUR, "a [red] cat", "--max-frames", 6), tmp_path / "strip.png"
    code, out, err = vilamp(*arguments, "--max-keyframes", 2, "--strip", strip)
    assert code == 0, err
    assert out.endswith(f"\n{strip}: 2 keyframes\n")
    assert "2 keyframes of 6 frames for “a [red] cat” (conse)" in out
    first, second = (line for line in out.splitlines() if line.startswith("│"))
    assert "–" in first
    assert "–" not in second
    code, out, err = vilamp(*arguments, "--relevance-threshold", 1)
    assert code == 0, err
    assert out == "0 keyframes of 6 frames for “a [red] cat” (conse)\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["probe", "missing.mp4"], "missing.mp4: no such file; pass the path of a video file"),
        (["probe", "."], "is a directory"),
        (["probe", "a.mp4", "--colour"], "No such option: --colour"),
        (["prob", "a.mp4"], "No such command 'prob'. Did you mean 'probe'?"),
        (["keyframes", "a.mp4"], "Missing argument 'QUERY'."),
        (["keyframes", TOUR, " "], "texts"),
        (
            ["keyframes", TOUR, "a cat", "--max-keyframes", "0"],
            "max_keyframes must be an integer of at least 1, got int 0",
        ),
        (["keyframes", TOUR, "a cat", "--similarity-threshold", "2"], "similarity_threshold"),
        (["keyframes", TOUR, "a cat", "--fps", "nan"], "fps must be"),
        (["keyframes", TOUR, "a cat", "--fps", "abc"], "Invalid value for '--fps': "),
        (["keyframes", TOUR, "a cat", "--encoder", "no/such-checkpoint"], "no/such-checkpoint"),
        (
            ["keyframes", TOUR, "a cat", "--strip", "/no/such/folder/x.png"],
            "must name a .png file in an existing folder",
        ),
        (["keyframes", TOUR, "a cat", "--strip", "x.txt"], "must name a .png file"),
        (["keyframes", TOUR, "a cat", "--relevance-threshold", "3"], "relevance_threshold is a cosine"),
        (
            ["keyframes", TOUR, "a cat", "--max-frames", "3", "--relevance-threshold", "1", "--strip", "x.png"],
            "--strip: no",
        ),
        (["keyframes", TOUR, "a cat", "--device", "abacus"], "abacus"),
        (["tinyworld", "--out", "nowhere/x.mp4"], "--out must name a .mp4 file in an existing folder"),
        (["tinyworld", "--out", "x.avi"], "--out must name a .mp4 file"),
        (["tinyworld", "--out", "x.mp4", "--family", "riddle"], "family must be one of 'attribute'"),
        (["tinyworld", "--out", "x.mp4", "--depth", "2"], "depth must lie from 0 to 1"),
        (["tinyworld", "--out", "x.mp4", "--family", "roll call", "--frames", "9"], "9 frames can't hold"),
        (["tinyworld"], "Missing option '--out'"),
    ],
    ids=str,
)
def test_bad_input_prints_one_line(arguments: list[str | Path], message: str, refusal: Refusal) -> None:
    assert message in refusal(*arguments)


def test_the_installed_command_exits_with_2() -> None:
    command = [sys.executable, "-m", "vilamp_lite", "probe", "missing[0].mp4"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    line = "vilamp: missing[0].mp4: no such file; pass the path of a video file\n"
    assert (run.returncode, run.stdout, run.stderr) == (2, "", line)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint in the authors' format, with tokenizers: the tiny one with room for bytes."""
    folder = tmp_path_factory.mktemp("released") / "checkpoint"
    shutil.copytree(OFFICIAL / "checkpoint", folder)
    weights = load_file(folder / "model.safetensors")
    for name in ("lm_head.weight", "model.embed_tokens.weight", f"{CLIP_TEXT}.token_embedding.weight"):
        rows = weights[name]
        weights[name] = torch.randn(260, rows.shape[1], generator=torch.Generator().manual_seed(0)) * rows.std()
    weights[f"{CLIP_TEXT}.position_embedding.weight"] = torch.zeros(77, 16)
    save_file(weights, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 260, "eos_token_id": 257}))
    clip = json.loads((folder / "clip-tiny" / "config.json").read_text())
    clip["text_config"] |= {"vocab_size": 260, "max_position_embeddings": 77, "eos_token_id": 257}
    (folder / "clip-tiny" / "config.json").write_text(json.dumps(clip))
    processor = ViLaMPProcessor.byte_level(ViLaMPConfig.tiny())
    processor.tokenizer.save_pretrained(folder)
    processor.selector_tokenizer.save_pretrained(folder / "clip-tiny")
    return folder


def test_ask_a_checkpoint_in_the_authors_format(released: Path, vilamp: Vilamp) -> None:
    options = ("--max-frames", 6, "--max-new-tokens", 5, "--max-keyframes", 2)
    code, out, err = vilamp("ask", TOUR, "Where is the cat?", "--model", released, "--json", *options)
    assert code == 0, err
    result = json.loads(out)
    assert (result["weights"], result["frames_sampled"]) == ("checkpoint", 6)
    assert result["encoder"] == "clip, 32 px, 10 dimensions"
    assert len(result["keyframes"]) == result["max_keyframes"] == 2
    assert {frame["seconds"] for frame in result["keyframes"]} <= {0, 24, 48, 71, 95, 119}
    assert result["tokens"]["keyframes"] == 2 * 196
    assert result["tokens"]["merged"] == 4
    parts = [result["tokens"][name] for name in ("keyframes", "merged", "newline", "prompt")]
    assert sum(parts) == result["tokens"]["prefill"]
    assert 1 <= result["tokens"]["answer"] <= 5
    assert (result["device"], result["dtype"]) == ("cpu", "float32")
    # The same in Python gives the same answer.
    model = load_checkpoint(released, max_keyframes=2)
    processor = load_processor(released, model.config)
    inputs = processor(TOUR, "Where is the cat?", max_frames=6)
    answer = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    assert processor.batch_decode(answer) == [result["answer"]]


def test_ask_streams_the_answer_and_says_when_weights_are_random(released: Path, vilamp: Vilamp) -> None:
    options = ["--max-new-tokens", 4, "--max-frames"]
    code, out, err = vilamp("ask", TOUR, "?", "--random-weights", "--dtype", "bfloat16", *options, 5)
    assert code == 0, err
    assert err.startswith("random weights: the answer means nothing")
    assert "5 frames" in err
    assert "it/s" not in err  # no bars where nobody watches
    assert out.strip()
    code, out, err = vilamp("ask", TOUR, "?", "--model", released, *options, 3)
    assert code == 0, err
    (line,) = err.strip().splitlines()  # no reports or warnings of the libraries
    assert "3 frames" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["?", "--model", "somewhere", "--random-weights"], "give either --model DIR or --random-weights"),
        (["?", "--model", "nowhere"], "nowhere: no such folder"),
        (["?", "--model", str(OFFICIAL / "checkpoint")], "holds no tokenizer for the language model; name one with"),
        ([" ", "--random-weights"], "a question must be a non-empty string"),
        (["?", "--random-weights", "--max-keyframes", "0"], "max_keyframes must be an integer of at least 1"),
        (["?", "--random-weights", "--fps", "600"], "tokens do not fit the language model's 32,768"),
        (["?", "--random-weights", "--dtype", "int8"], "'int8' is not one of"),
        (["?", "--random-weights", "--device", "warp"], "device must be one that torch can use here"),
        (["?", "--random-weights", "--device", "meta"], "device must be one that holds numbers"),
        (["?", "--random-weights", "--tokenizer", "x"], "have their own tokenizers"),
        (["?", "--random-weights", "--max-new-tokens", "40000"], "lower max_new_tokens"),
    ],
)
def test_ask_refuses(arguments: list[str], message: str, refusal: Refusal) -> None:
    assert message in refusal("ask", TOUR, *arguments)


def test_tinyworld(vilamp: Vilamp, tmp_path: Path) -> None:
    arguments = ["tinyworld", "--frames", 64, "--family", "companion", "--seed", 3, "--out"]
    code, out, err = vilamp(*arguments, tmp_path / "x.mp4", "--json")
    assert code == 0, err
    about = json.loads(out)
    assert about == json.loads((tmp_path / "x.json").read_text())
    assert about["family"] == "companion"
    assert about["question"].startswith("what is with the ")
    assert probe_file(tmp_path / "x.mp4").num_frames == 64
    assert about["answer"] in vilamp(*arguments, tmp_path / "y.mp4")[1]
    assert json.loads((tmp_path / "y.json").read_text()) == about | {"video": "y.mp4"}


def test_a_file_is_scanned_once(
    vilamp: Vilamp, refusal: Refusal, miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it is read, and whatever looks for TinyWorld's tag."""
    world, opened, av_open = tmp_path / "world.mp4", [], av.open
    write_video(world, [random_scene(1), random_scene(2)])
    monkeypatch.setattr(av, "open", lambda *args, **options: opened.append(args) or av_open(*args, **options))
    question = "what color is the star?"
    for command in (
        ("ask", world, question, "--model", miniature, "--max-new-tokens", 1),
        ("encode", world, "--model", miniature),
        ("keyframes", world, question, "--encoder", miniature / "selector", "--strip", tmp_path / "strip.png"),
    ):
        opened.clear()
        code, _, err = vilamp(*command)
        assert code == 0, err
        assert 1 <= len(opened) <= 3, command
    monkeypatch.setattr("vilamp_lite.cli.ask.MINIATURE", miniature)
    opened.clear()
    assert "does not show TinyWorld" in refusal("ask", TOUR, question)
    assert len(opened) == 1


# --- All commands ----------------------------------------------------------------------------------------------------


def test_the_version(vilamp: Vilamp) -> None:
    assert vilamp("--version")[:2] == (0, f"vilamp-lite {version('vilamp-lite')}\n")


@pytest.mark.parametrize("command", ["", "train", "evaluate"])
def test_without_a_command_there_is_help(command: str, vilamp: Vilamp) -> None:
    code, out, err = vilamp(*command.split())
    assert (code, err) == (2, "")
    assert "Usage: " in out


@pytest.mark.parametrize(
    ("work", "command", "kept"),
    [
        ("training.train_miniature", "train miniature --out there", "what is finished is kept in there"),
        ("notebook.run_notebooks", "reproduce 02 --out there", "finished notebooks are in there"),
        ("notebook.load_sweep", "sweep grid.yaml", "finished cells are kept in runs/sweeps/grid"),
        ("evaluation.evaluate_cells", "evaluate niah --out there", "what is finished is kept in there"),
    ],
)
def test_ctrl_c_says_what_is_kept_and_how_to_go_on(
    work: str, command: str, kept: str, vilamp: Vilamp, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"vilamp_lite.{work}", stop)
    code, out, err = vilamp(*command.split())
    assert (code, out) == (130, "")
    assert err == f"vilamp: stopped; {kept}; to go on: vilamp {command}\n"


def test_too_little_memory_is_one_line(vilamp: Vilamp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vilamp_lite.cli.files.SampledVideo", lambda *_: np.empty(1 << 60, np.uint8))
    code, out, err = vilamp("probe", TOUR)
    assert (code, out) == (2, "")
    assert re.fullmatch(r"vilamp: out of memory; .* \(Unable to allocate .*\)\n", err)


def test_memory_that_python_itself_lacks_is_said_in_words(refusal: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("vilamp_lite.cli.files.SampledVideo", lacking)
    assert refusal("probe", TOUR).endswith("free some memory (no more is known)")


def test_a_folder_is_no_video_to_encode(refusal: Refusal) -> None:
    for folder in (".", "..", "/"):
        assert refusal("encode", folder, "--random-weights") == f"vilamp: {folder}: is a directory; pass a video file"


def test_files_that_are_there_are_refused_unless_overwritten(tmp_path: Path, vilamp: Vilamp, refusal: Refusal) -> None:
    """The command's own earlier output too; a link never, nor the file behind it."""
    world, description, strip = (tmp_path / name for name in ("x.mp4", "x.json", "x.png"))
    make = ("tinyworld", "--frames", 16, "--out", world)
    draw = ("keyframes", TOUR, "a cat", "--max-frames", 3, "--strip", strip)
    for arguments, file in ((make, world), (make, description), (draw, strip)):
        file.write_text("mine")
        assert f"{file} is there already: name another file, or replace it with --overwrite" in refusal(*arguments)
        file.unlink()
        (tmp_path / "victim").write_text("mine")
        file.symlink_to(tmp_path / "victim")
        assert f"{file} is there, and it is not a file of its own" in refusal(*arguments, "--overwrite")
        file.unlink()
        assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]
    for arguments, file in ((make, world), (draw, strip)):
        assert vilamp(*arguments)[0] == 0
        assert "is there already" in refusal(*arguments)
        made = file.stat().st_ino
        assert vilamp(*arguments, "--overwrite")[0] == 0
        assert file.stat().st_ino != made
