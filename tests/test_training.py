"""The training loop: a killed run resumed equals one that was not, and what it refuses."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file
from torch import nn
from transformers import get_cosine_schedule_with_warmup

from vilamp_lite.common import files
from vilamp_lite.common.files import alone_in
from vilamp_lite.training import loop as training
from vilamp_lite.training.loop import Stage, Task, make_accelerator, run_stage, smoothed

os.environ["ACCELERATE_USE_CPU"] = "true"  # where numbers repeat to the bit
STAGE = Stage("line", steps=12, batch_size=8, learning_rate=0.05, warmup=0.25, save_every=4)
TARGET = torch.tensor([1.0, -2.0, 0.5, 3.0])
STATE = "state.safetensors"


class Line(Task):
    """Fits a line; numpy draws the points, torch what is dropped."""

    def __init__(self, *, stop_before: int | None = None, kill: bool = False, width: int = 4) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.linear = nn.Linear(width, 1)
            self.skipped = nn.Linear(2, 2)  # never used
            self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.dropout = nn.Dropout(0.1)
        self.stop_before, self.kill = stop_before, kill
        self.drawn: list[np.ndarray] = []

    def forward(self, random: np.random.Generator, batch_size: int, progress: float) -> tuple[torch.Tensor, float]:
        if round(progress * STAGE.steps) == self.stop_before:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyboardInterrupt
        self.drawn.append(random.normal(size=(batch_size, 4)).astype(np.float32))
        points = torch.from_numpy(self.drawn[-1])
        error = self.linear(self.dropout(points))[:, 0] - points @ TARGET
        return error.square().mean(), float((error.detach().abs() < 1).float().mean())


def train(folder: Path, task: Line | None = None, seed: int = 0, stage: Stage = STAGE) -> tuple[Line, np.ndarray]:
    task = task or Line()
    return task, run_stage(stage, task, folder, seed, make_accelerator())


def saved_step(folder: Path) -> int:
    if not (folder / STATE).exists():
        return 0
    with safe_open(folder / STATE, "pt") as state:
        return json.loads(state.metadata()["about"])["step"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Line, np.ndarray]:
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, *train(folder)


def assert_equal_runs(folder: Path, task: Line, curve: np.ndarray, whole: tuple[Path, Line, np.ndarray]) -> None:
    assert (folder / STATE).read_bytes() == (whole[0] / STATE).read_bytes()
    assert np.array_equal(curve, whole[2])
    for name, value in whole[1].state_dict().items():
        assert torch.equal(task.state_dict()[name], value), name


def test_it_learns_what_is_trainable_and_is_then_only_read(
    whole: tuple[Path, Line, np.ndarray], tmp_path: Path
) -> None:
    _, task, curve = whole
    assert curve.shape == (12, 2)
    assert curve.dtype == np.float32
    assert curve[-3:, 0].mean() < 0.9 * curve[:3, 0].mean()
    start = Line().state_dict()
    moved = {name for name, value in task.state_dict().items() if not torch.equal(value, start[name])}
    assert moved == {"linear.weight", "linear.bias"}
    assert not task.training
    assert unfinished(whole[0]) == []
    assert_equal_runs(tmp_path, *train(tmp_path), whole)
    again, curve = train(tmp_path)
    assert again.drawn == []
    assert not again.training
    assert_equal_runs(tmp_path, again, curve, whole)


def test_batches_follow_from_seed_and_stage(whole: tuple[Path, Line, np.ndarray], tmp_path: Path) -> None:
    drawn = whole[1].drawn
    assert len({batch.tobytes() for batch in drawn}) == 12
    for name, (seed, stage) in {"seed": (1, STAGE), "stage": (0, Stage("other", 12, 8, 0.05))}.items():
        task, _ = train(tmp_path / name, seed=seed, stage=stage)
        assert not {batch.tobytes() for batch in task.drawn} & {batch.tobytes() for batch in drawn}


def test_learning_rates_are_transformers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A linear rise over a quarter of the steps, then a cosine to zero, with a break in the middle or without."""
    optimizers, rates = [], []

    def make_schedule(optimizer: torch.optim.Optimizer, *numbers: int, **options: int) -> object:
        optimizers.append(optimizer)
        return get_cosine_schedule_with_warmup(optimizer, *numbers, **options)

    class Watched(Line):
        def forward(self, *inputs: object) -> tuple[torch.Tensor, float]:
            result = super().forward(*inputs)
            rates.append(optimizers[-1].param_groups[0]["lr"])
            return result

    monkeypatch.setattr(training, "get_cosine_schedule_with_warmup", make_schedule)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, Watched(stop_before=8))
    train(tmp_path, Watched())

    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=0.05)
    schedule = get_cosine_schedule_with_warmup(optimizer, 3, 12)
    expected = []
    for _ in range(12):
        expected.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates == expected
    assert expected[0] == 0
    assert expected[3] == max(expected) == 0.05


def test_smoothed() -> None:
    curve = np.arange(10.0).reshape(5, 2)
    assert [(step, means.tolist()) for step, means in smoothed(curve, 2)] == [(2, [1, 2]), (4, [5, 6]), (5, [8, 9])]


@pytest.mark.parametrize("stops", [(0,), (3,), (4,), (11,), (5, 6, 9)])
def test_a_run_after_exceptions_equals_the_whole(
    stops: tuple[int, ...], whole: tuple[Path, Line, np.ndarray], tmp_path: Path
) -> None:
    for stop_before in stops:
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, Line(stop_before=stop_before))
        assert saved_step(tmp_path) == stop_before // 4 * 4
    task, curve = train(tmp_path)
    assert len(task.drawn) == 12 - stop_before // 4 * 4
    assert_equal_runs(tmp_path, task, curve, whole)


def unfinished(folder: Path) -> list[Path]:
    return list(folder.glob(f"{files.UNFINISHED}*"))


def train_until_killed(folder: Path, moment: int | str) -> None:
    """Train in another process and end it with kill -9: before a step, or while the second state is being saved."""
    torch.set_num_threads(1)
    saves = []

    def save_half(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        save_file(tensors, path, metadata)
        saves.append(path)
        if len(saves) == 2:
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    def replace_never(*paths: Path) -> None:
        saves.append(paths)
        if len(saves) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        os.rename(*paths)

    if moment == "half written":
        training.save_file = save_half
    elif moment == "written, not in place":
        files.os.replace = replace_never
    train(folder, Line(stop_before=moment, kill=True))


@pytest.mark.parametrize(("moment", "step"), [(11, 8), ("half written", 4), ("written, not in place", 4)])
def test_a_run_after_kill_9_equals_the_whole(
    moment: int | str, step: int, whole: tuple[Path, Line, np.ndarray], tmp_path: Path
) -> None:
    # Its processes come from a fresh one that has imported already: quick, and free of this one's threads.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vilamp_lite.training.loop", "torch._dynamo"])
    process = context.Process(target=train_until_killed, args=(tmp_path, moment))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(unfinished(tmp_path)) == isinstance(moment, str)
    assert saved_step(tmp_path) == step
    assert_equal_runs(tmp_path, *train(tmp_path), whole)
    assert unfinished(tmp_path) == []


TWO_PROCESSES = """
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from safetensors.torch import save_file
from test_training import STAGE, Line, make_accelerator, run_stage

folder, accelerator = Path(sys.argv[1]), make_accelerator()
task = Line()
curve = run_stage(STAGE, task, folder / "whole", 0, accelerator)
for name in ("started", "resumed"):
    try:
        run_stage(STAGE, Line(stop_before=6), folder / name, 0, accelerator)
    except KeyboardInterrupt:
        accelerator.wait_for_everyone()
run_stage(STAGE, Line(), folder / "resumed", 0, accelerator)
rank = accelerator.process_index
save_file(task.state_dict(), folder / f"{rank}.safetensors")
np.savez(folder / f"{rank}.npz", curve=curve, drawn=np.stack(task.drawn))
accelerator.end_training()
"""


def test_two_processes_train_one_model(whole: tuple[Path, Line, np.ndarray], tmp_path: Path) -> None:
    script = tmp_path / "two_processes.py"
    script.write_text(TWO_PROCESSES)
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    run = subprocess.run([*launch, script, tmp_path], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    parameters = [load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1)]
    for name, value in parameters[0].items():
        assert torch.equal(value, parameters[1][name]), name
    curve, drawn = ([np.load(tmp_path / f"{rank}.npz")[name] for rank in (0, 1)] for name in ("curve", "drawn"))
    assert np.array_equal(*curve)
    assert curve[0][-3:, 0].mean() < 0.9 * curve[0][:3, 0].mean()
    assert drawn[0].shape == (12, 4, 4)  # half of the batch each
    assert not np.array_equal(*drawn)
    resumed, uninterrupted = (tmp_path / name / STATE for name in ("resumed", "whole"))
    assert resumed.read_bytes() == uninterrupted.read_bytes()
    # One process would draw other batches; what is finished it may take.
    with pytest.raises(ValueError, match=r"another training .*'processes': 2"):
        train(tmp_path / "started")
    taken, _ = train(tmp_path / "whole")
    for name, value in parameters[0].items():
        assert torch.equal(taken.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "is of another training .*'seed': 0.* choose another folder, or delete it"),
        ({"stage": Stage("line", 12, 8, 0.06, 0.25, save_every=4)}, "is of another training .*'learning_rate': 0.05"),
        ({"stage": Stage("line", 13, 8, 0.05, 0.25, save_every=4)}, "is of another training .*'steps': 12"),
        ({"task": Line(width=3)}, "holds other parameters than this stage trains; delete it"),
        ({"task": Line().requires_grad_(True)}, "holds other parameters than this stage trains"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
    ],
    ids=str,
)
def test_another_training_is_refused(changes: dict, message: str, whole: tuple[Path, Line, np.ndarray]) -> None:
    before = (whole[0] / STATE).read_bytes()
    with pytest.raises(ValueError, match=message):
        train(whole[0], **changes)
    assert (whole[0] / STATE).read_bytes() == before


def test_other_data_and_precision_are_refused(
    whole: tuple[Path, Line, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Line, "about", {"examples": "of another file"})
    with pytest.raises(ValueError, match=r"is of another training .*'task': \{\}"):
        train(whole[0])
    monkeypatch.undo()
    half = make_accelerator()
    monkeypatch.setattr(type(half), "mixed_precision", "bf16")
    with pytest.raises(ValueError, match=r"is of another training .*'precision': 'no'"):
        train(whole[0])


def test_one_training_at_a_time(tmp_path: Path) -> None:
    with alone_in(tmp_path, "training"):
        with pytest.raises(ValueError, match=f"another training is at work in {tmp_path}: wait for its end"):
            train(tmp_path)
        assert not (tmp_path / STATE).exists()
    train(tmp_path)


def test_files_that_are_no_state_are_refused(whole: tuple[Path, Line, np.ndarray], tmp_path: Path) -> None:
    weight = {"weight": torch.ones(2)}
    truncated = (whole[0] / STATE).read_bytes()[:-20]
    foreign = [save(weight, about) for about in (None, {"about": "[1]"}, {"about": '{"step": 3}'})]
    for content in (b"a text that someone put here", truncated, *foreign):
        (tmp_path / STATE).write_bytes(content)
        with pytest.raises(ValueError, match=r"state.safetensors is not a saved state .* delete it to start"):
            train(tmp_path)
        assert (tmp_path / STATE).read_bytes() == content


def test_a_state_with_a_flipped_bit_is_refused(whole: tuple[Path, Line, np.ndarray], tmp_path: Path) -> None:
    content = (whole[0] / STATE).read_bytes()
    for place in np.random.default_rng(0).integers(8, len(content), 60):  # the first 8 are the header's length
        damaged = bytearray(content)
        damaged[place] ^= 1
        (tmp_path / STATE).write_bytes(damaged)
        with pytest.raises(ValueError, match=r"state\.safetensors"):
            train(tmp_path)


def test_a_state_of_a_former_version_has_no_checksum(whole: tuple[Path, Line, np.ndarray], tmp_path: Path) -> None:
    with safe_open(whole[0] / STATE, "pt") as state:
        about = json.loads(state.metadata()["about"])
        tensors = {name: state.get_tensor(name) for name in state.keys()}  # noqa: SIM118 (not a mapping)
    assert about.pop("checksum")
    save_file(tensors, tmp_path / STATE, {"about": json.dumps(about)})
    task, curve = train(tmp_path)
    assert task.drawn == []
    assert np.array_equal(curve, whole[2])


def test_files_of_others_stay_beside_a_state(tmp_path: Path) -> None:
    strangers = {
        tmp_path / name: name for name in ("state.old.safetensors", "state.1.safetensors", "model.safetensors")
    }
    for path, content in strangers.items():
        path.write_text(content)
    train(tmp_path)
    assert {path: path.read_text() for path in strangers} == strangers
    (tmp_path / STATE).unlink()
    (tmp_path / STATE).symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"state.safetensors is not a saved state"):
        train(tmp_path)
    assert (tmp_path / STATE).is_symlink()


def test_a_loss_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    class Exploding(Line):
        def forward(self, *inputs: object) -> tuple[torch.Tensor, float]:
            right, accuracy = super().forward(*inputs)
            return right * torch.inf if len(self.drawn) == 6 else right, accuracy

    with pytest.raises(ValueError, match="line: the loss is inf at step 5; lower the learning rate"):
        train(tmp_path, Exploding())
    assert saved_step(tmp_path) == 4


def test_what_makes_no_sense(tmp_path: Path) -> None:
    for changes, message in (
        ({"steps": 0}, "steps must be an integer of at least 1, got int 0"),
        ({"batch_size": 2.0}, "batch_size must be an integer"),
        ({"save_every": 0}, "save_every must be an integer"),
        ({"learning_rate": float("nan")}, "learning_rate must be a finite number above 0"),
        ({"warmup": 1.5}, "warmup is a share of the steps, from 0 to 1, got 1.5"),
    ):
        with pytest.raises(ValueError, match=message):
            Stage(**{"name": "line", "steps": 4, "batch_size": 2, "learning_rate": 0.1} | changes)
    with pytest.raises(ValueError, match="batch_size 8 must be a multiple of the 3 processes"):
        run_stage(STAGE, Line(), tmp_path, 0, SimpleNamespace(num_processes=3))
    with pytest.raises(ValueError, match="mixed_precision must be one of 'no', 'bf16', got 'fp16'"):
        make_accelerator("fp16")
