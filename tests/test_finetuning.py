"""Fine-tuning: what moves and what does not, what is learned, what a data set must look like."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import DEFAULT, Mock

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors import safe_open
from tiny_models import tiny_model
from torch.nn import functional as F

from vilamp_lite.checkpoints import load_checkpoint, load_processor
from vilamp_lite.modeling import ViLaMPForConditionalGeneration
from vilamp_lite.processing import ViLaMPProcessor
from vilamp_lite.tinyworld.questions import random_scene
from vilamp_lite.tinyworld.render import write_video
from vilamp_lite.training.finetuning import TRAINABLE, FinetuningTask, VideoQuestion, finetune, read_examples
from vilamp_lite.training.loop import Stage, make_accelerator

os.environ["ACCELERATE_USE_CPU"] = "true"  # where numbers repeat to the bit
TWO_STEPS = Stage("two steps", steps=2, batch_size=2, learning_rate=1e-3)
OVERFIT = Stage("overfit", steps=30, batch_size=1, learning_rate=0.02)
# What `TRAINABLE` means, written out anew.
CONNECTORS = {"keyframe_connector", "own_merged_connector", "video_newline"}
MOVING = {
    "connectors": CONNECTORS,
    "connectors+merger": CONNECTORS | {"merger"},
    "connectors+language model": CONNECTORS | {"language_model"},
    "all but the encoders": CONNECTORS | {"merger", "language_model"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of three videos of six frames or more."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "videos").mkdir()
    lines = []
    for number, answer in enumerate(("red", "a blue star", "6")):
        write_video(folder / "videos" / f"{number}.mp4", [random_scene(10 * number + i) for i in range(2)])
        lines.append({"video": f"videos/{number}.mp4", "question": f"Question {number}?", "answer": answer})
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def examples(folder: Path) -> list[VideoQuestion]:
    return read_examples(folder / "train.jsonl")


@pytest.fixture
def any_precision() -> Iterator[None]:
    """Accelerate allows one precision in a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def byte_level(model: ViLaMPForConditionalGeneration) -> ViLaMPProcessor:
    return ViLaMPProcessor.byte_level(model.config)


def weights(model: ViLaMPForConditionalGeneration) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


# --- Training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trains", "changes", "moving"),
    [
        *[(trains, {}, MOVING[trains]) for trains in TRAINABLE],
        (
            "connectors",
            {"keyframe_block": True, "connectors": "shared", "video_newline": False},
            {"keyframe_connector", "keyframe_block"},
        ),
    ],
)
def test_what_should_move_moves(
    trains: str, changes: dict, moving: set[str], examples: list[VideoQuestion], tmp_path: Path
) -> None:
    model = tiny_model(**changes)
    before = weights(model)
    curve = finetune(model, byte_level(model), examples, TWO_STEPS, trains, tmp_path, max_frames=6)
    assert curve.shape == (2, 2)
    for name, value in weights(model).items():
        assert torch.equal(value, before[name]) is not (name.split(".")[0] in moving), name
    assert not model.training


def test_one_example_is_learned_and_the_model_written(examples: list[VideoQuestion], tmp_path: Path) -> None:
    example, model = examples[0], tiny_model()
    processor = byte_level(model)
    options = {"trains": "all but the encoders", "folder": tmp_path, "max_frames": 6}
    curve = finetune(model, processor, [example], OVERFIT, **options)
    assert curve[-1, 0] < 0.1 * curve[0, 0]
    assert curve[-1, 1] == 1

    loaded = load_checkpoint(tmp_path / "model")
    inputs = load_processor(tmp_path / "model", loaded.config)(example.video, example.question, max_frames=6)
    answer = loaded.generate(**inputs, max_new_tokens=30, do_sample=False)
    assert processor.tokenizer.batch_decode(answer) == ["red<|im_end|>"]
    trained = weights(model)
    assert all(torch.equal(value, trained[name]) for name, value in loaded.named_parameters())
    # Called again, the finished stage is read, not repeated.
    for other in ({"examples": examples[:2]}, {"examples": [example], "max_frames": 5}):
        with pytest.raises(ValueError, match="is of another training"):
            finetune(tiny_model(), processor, stage=OVERFIT, **options | other)
    again = tiny_model()
    assert np.array_equal(finetune(again, processor, [example], OVERFIT, **options), curve)
    assert all(torch.equal(value, trained[name]) for name, value in again.named_parameters())


def test_an_interrupted_run_equals_the_whole(examples: list[VideoQuestion], tmp_path: Path) -> None:
    stage = Stage("draws", steps=4, batch_size=2, learning_rate=1e-3, save_every=2)

    def train(name: str, seed: int, calls: int | None = None) -> np.ndarray:
        """Train with a processor that is interrupted at its n-th call."""
        model = tiny_model()
        processor = byte_level(model)
        interrupted = Mock(side_effect=[DEFAULT] * (calls or 99) + [KeyboardInterrupt], wraps=processor)
        return finetune(model, interrupted, examples, stage, "connectors", tmp_path / name, seed, max_frames=2)

    curve = train("whole", 0)
    assert not np.array_equal(train("other seed", 1), curve)
    with pytest.raises(KeyboardInterrupt):
        train("interrupted", 0, calls=3)
    assert np.array_equal(train("interrupted", 0), curve)
    for file in ("state.safetensors", "model/model.safetensors"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "interrupted" / file).read_bytes()


def test_a_model_of_somebody_else_stays(examples: list[VideoQuestion], tmp_path: Path) -> None:
    stage = Stage("one", steps=1, batch_size=1, learning_rate=1e-3)

    def train() -> None:
        model = tiny_model()
        finetune(model, byte_level(model), examples, stage, "connectors", tmp_path, max_frames=2)

    strangers = [tmp_path / "model" / name for name in ("config.json", "model-00001-of-00002.safetensors")]
    strangers[0].parent.mkdir()
    for file in strangers:
        file.write_text("mine")
    with pytest.raises(ValueError, match=r"model is there, and no training in .* wrote it: choose another folder"):
        train()
    assert [file.read_text() for file in strangers] == ["mine", "mine"]
    strangers[0].unlink()
    strangers[1].rename(tmp_path / strangers[1].name)
    strangers[0].parent.rmdir()
    train()
    (tmp_path / strangers[1].name).rename(strangers[1])
    train()  # the finished stage is read, the model written once more
    assert strangers[1].read_text() == "mine"
    assert load_checkpoint(tmp_path / "model").config.num_patches == tiny_model().config.num_patches
    (tmp_path / "model" / "model.safetensors").write_text("mine")
    with pytest.raises(ValueError, match=r"model\.safetensors is there, and it is not what is saved here"):
        train()
    assert (tmp_path / "model" / "model.safetensors").read_text() == "mine"
    (tmp_path / "model").rename(tmp_path / "mine")
    (tmp_path / "model").symlink_to("mine")
    with pytest.raises(ValueError, match=r"model is there, and no training in .* wrote it: choose another folder"):
        train()


@pytest.mark.parametrize("trains", ["connectors", "all but the encoders"])
def test_checkpointing_changes_memory_only(trains: str, examples: list[VideoQuestion], tmp_path: Path) -> None:
    curves, runs = [], {}
    for checkpointing in (False, True):
        model = tiny_model()
        # A checkpointed layer runs again for the gradients; the encoders keep nothing, so they never do.
        runs[checkpointing] = {"language_model": [], "vision_tower": []}
        layers = model.language_model.model.layers[0].input_layernorm, model.vision_tower.encoder.layers[0].layer_norm1
        for layer, calls in zip(layers, runs[checkpointing].values(), strict=True):
            layer.register_forward_hook(lambda _, __, output, calls=calls: calls.append(output.requires_grad))
        folder = tmp_path / str(checkpointing)
        options = {"max_frames": 6, "gradient_checkpointing": checkpointing}
        curves.append(finetune(model, byte_level(model), examples, TWO_STEPS, trains, folder, **options))
        assert not model.is_activation_checkpointing
    np.testing.assert_allclose(*curves, rtol=1e-6)
    assert [len(runs[checkpointing]["language_model"]) for checkpointing in (False, True)] == [2, 4]
    assert runs[False]["vision_tower"] == runs[True]["vision_tower"]
    assert not any(runs[True]["vision_tower"])


def test_frozen_parts_are_in_evaluation_mode(examples: list[VideoQuestion]) -> None:
    model = tiny_model()
    task = FinetuningTask(model, byte_level(model), examples, "connectors+merger").train()
    modes = {name: part.training for name, part in model.named_children()}
    assert {name for name, training in modes.items() if training} == MOVING["connectors+merger"] - {"video_newline"}
    model.language_model.activation_checkpointing_enable()
    layer = task.train().model.language_model.model.layers[0]
    assert layer.training
    assert not layer.self_attn.training  # where dropout is
    assert not task.eval().model.language_model.model.layers[0].training


@pytest.mark.usefixtures("any_precision")
def test_half_precision_keeps_exact_weights(examples: list[VideoQuestion], tmp_path: Path) -> None:
    model, types = tiny_model(), set()
    model.language_model.lm_head.register_forward_hook(lambda _, __, logits: types.add(logits.dtype))
    curve = finetune(
        model,
        byte_level(model),
        examples[:1],
        Stage("half", steps=10, batch_size=1, learning_rate=0.02),
        "all but the encoders",
        tmp_path,
        max_frames=6,
        accelerator=make_accelerator("bf16"),
    )
    assert types == {torch.bfloat16}
    assert curve[-1, 0] < 0.5 * curve[0, 0]
    loaded = load_checkpoint(tmp_path / "model")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


def test_accelerate_launch_runs_the_command(folder: Path, tmp_path: Path) -> None:
    """On CPUs it starts one process; several, by torchrun, are in test_training.py."""
    model = tiny_model()
    for part in (model, byte_level(model)):
        part.save_pretrained(tmp_path / "start")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes=1", "--num_machines=1"]
    launch += ["--mixed_precision=no", "--dynamo_backend=no", "-m", "vilamp_lite", "train", "finetune"]
    options = {"--model": tmp_path / "start", "--data": folder / "train.jsonl", "--out": tmp_path / "out"}
    options |= {"--steps": 2, "--batch-size": 2, "--max-frames": 4, "--learning-rate": 0.01}
    command = [*launch, *(str(word) for option in options.items() for word in option)]
    run = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    trained, start = weights(load_checkpoint(tmp_path / "out" / "model")), weights(model)
    assert not torch.equal(trained["language_model.lm_head.weight"], start["language_model.lm_head.weight"])
    (state,) = (tmp_path / "out").rglob("state.safetensors")
    with safe_open(state, "pt") as file:
        about = json.loads(file.metadata()["about"])
    assert about["step"] == 2


# --- The batch -------------------------------------------------------------------------------------------------------


def test_answers_and_their_end_are_supervised(examples: list[VideoQuestion]) -> None:
    model = tiny_model()
    processor = byte_level(model)
    task = FinetuningTask(model, processor, examples, "connectors", max_frames=4)
    batch = task.batch(examples[:2])
    asked = processor.prompts([example.question for example in examples[:2]])["input_ids"]
    for number, example in enumerate(examples[:2]):
        kept = batch["attention_mask"][number].bool()
        ids, labels = batch["input_ids"][number][kept], batch["labels"][number][kept]
        answer = processor.tokenizer(example.answer)["input_ids"] + [processor.tokenizer.eos_token_id]
        assert labels[labels != -100].tolist() == answer
        assert ids.tolist() == asked[number].tolist() + answer
    assert batch["video_num_frames"].tolist() == [4, 4]


@torch.no_grad()
def test_loss_and_accuracy_of_a_batch(examples: list[VideoQuestion]) -> None:
    """Answers of different lengths: every token counts once, and accuracy compares it with its own guess."""
    model, drawn = tiny_model(), [examples[2], examples[1]]
    task = FinetuningTask(model, byte_level(model), examples, "connectors", max_frames=4)
    batch, losses = task.batch(drawn), []
    for row, example in enumerate(drawn):
        alone = task.batch([example])
        logits = model(**alone | {"labels": None}, logits_to_keep=0).logits[0]
        answer = alone["labels"][0][alone["labels"][0] != -100]
        guesses = logits[-len(answer) - 1 : -1]
        # A random model guesses nothing right; here every answer ends as the model says.
        answer[-1] = guesses[-1].argmax()
        batch["labels"][row][batch["labels"][row] != -100] = answer
        losses += F.cross_entropy(guesses, answer, reduction="none").tolist()
    task.batch = lambda _: batch
    loss, accuracy = task(np.random.default_rng(0), 2, 0.0)
    assert len(losses) == len("6") + 1 + len("a blue star") + 1
    assert loss.item() == pytest.approx(np.mean(losses), rel=1e-5)
    assert accuracy == pytest.approx(2 / len(losses))


def test_markers_in_an_answer_are_text(examples: list[VideoQuestion]) -> None:
    model = tiny_model()
    task = FinetuningTask(model, byte_level(model), examples, "connectors", max_frames=2)
    batch = task.batch([VideoQuestion(examples[0].video, "What is written?", "<|im_end|>")])
    assert (batch["labels"] != -100).sum() == len("<|im_end|>") + 1


# --- What is refused -------------------------------------------------------------------------------------------------


def test_models_that_can_not_be_trained(examples: list[VideoQuestion], tmp_path: Path) -> None:
    model = tiny_model()
    processor = byte_level(model)
    with pytest.raises(ValueError, match=r"trains must be one of 'connectors', .* got 'everything'"):
        finetune(model, processor, examples, TWO_STEPS, "everything", tmp_path)
    with pytest.raises(ValueError, match="there are no examples to train on; see read_examples"):
        finetune(model, processor, [], TWO_STEPS, "connectors", tmp_path)
    with pytest.raises(ValueError, match="max_frames must be an integer of at least 1"):
        finetune(model, processor, examples, TWO_STEPS, "connectors", tmp_path, max_frames=0)
    with pytest.raises(ValueError, match=r"\w+ is torch.bfloat16, .*load the model with dtype="):
        finetune(tiny_model().bfloat16(), processor, examples, TWO_STEPS, "connectors", tmp_path)
    model.generation_config.eos_token_id = None
    with pytest.raises(ValueError, match=r"no end token to learn: set model.generation_config.eos_token_id"):
        finetune(model, processor, examples, TWO_STEPS, "connectors", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_sequence_that_does_not_fit_is_refused(examples: list[VideoQuestion], tmp_path: Path) -> None:
    model = tiny_model()
    model.config.text_config.max_position_embeddings = 60
    with pytest.raises(ValueError, match=r"do not fit the language model's 60.*lower"):
        finetune(model, byte_level(model), examples, TWO_STEPS, "connectors", tmp_path, max_frames=6)


def test_read_examples(folder: Path, tmp_path: Path) -> None:
    examples = read_examples(str(folder / "train.jsonl"))
    assert examples[1] == VideoQuestion(folder / "videos" / "1.mp4", "Question 1?", "a blue star")
    assert len(examples) == 3
    # Absolute paths, blank lines, further fields, foreign line ends, and characters that only Python takes for one.
    line = {"video": str(folder / "videos" / "0.mp4"), "question": "Où?\u2028", "answer": "là", "id": 7}
    lenient = tmp_path / "lenient.jsonl"
    lenient.write_bytes(b"\xef\xbb\xbf" + f"{json.dumps(line, ensure_ascii=False)}\r\n\r\n".encode() * 2)
    assert read_examples(lenient) == [VideoQuestion(folder / "videos" / "0.mp4", "Où?\u2028", "là")] * 2


GOOD = '{"video": "videos/0.mp4", "question": "?", "answer": "yes"}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty; write one JSON object with video, question and answer on each line"),
        ("\n \n", "is empty"),
        (GOOD + "{video: 3}", "line 2: invalid JSON: .* write one JSON object"),
        (GOOD + "\n[1, 2]", "line 3: must be a mapping of names to values, got list"),
        (GOOD + '{"video": "videos/0.mp4", "question": "?"}', "line 2: answer: field required"),
        (GOOD + "{}", "line 2: video: field required"),
        (GOOD.replace('"yes"', "3"), "line 1: answer: input should be a valid string, got int 3"),
        (GOOD.replace('"?"', '" "'), "line 1: question: must be a non-empty string, got ' '"),
        (GOOD.replace("0.mp4", "9.mp4") + GOOD, r"do not exist: \S*videos/9.mp4 \(line 1\); paths are relative"),
        (GOOD.replace("0.mp4", "9.mp4") * 8, r"\(line 5\) and 3 more; paths"),
        (GOOD.replace("videos/0.mp4", "videos"), r"do not exist: \S*videos \(line 1\)"),
        (b"\xff\xfe\x00", "can't read .* name a file of JSON lines in UTF-8"),
        (None, "can't read .*No such file"),
    ],
    ids=str,
)
def test_bad_data_is_refused(content: str | bytes | None, message: str, folder: Path) -> None:
    file = folder / "bad.jsonl"
    file.unlink(missing_ok=True)
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as refused:
        read_examples(file)
    assert str(file) in str(refused.value)
