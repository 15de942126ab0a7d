"""The training loop: one stage at a time, counted in steps, resumable at any moment.

A stage is a configuration (`Stage`) and a task, a module whose call with a step's number makes that step's batch and
returns its loss and accuracy. As all that is random follows from seed and step alone, a run that was killed and resumed
equals one that was not. Processes and mixed precision are accelerate's, learning rates transformers': `accelerate
launch` works.
"""

import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import get_cosine_schedule_with_warmup

from vilamp_lite.common.checks import choice, finite_number, positive_int
from vilamp_lite.common.files import alone_in, written_whole
from vilamp_lite.common.fingerprints import tensors_fingerprint
from vilamp_lite.common.progress import progress_bar
from vilamp_lite.generation import without_cudnn_attention

_STATE = "state.safetensors"
_SHOWN = 50  # steps over which the bar averages


@dataclass(frozen=True)
class Stage:
    """How long and how fast a stage trains.

    Attributes:
        name: of the stage.
        steps: of the optimizer.
        batch_size: examples per step, over all processes together.
        learning_rate: the peak of a cosine with linear warm-up.
        warmup: share of the steps before the peak.
        weight_decay: AdamW's.
        save_every: steps between saved states; a kill loses at most that many.
    """

    name: str
    steps: int
    batch_size: int
    learning_rate: float
    warmup: float = 0.03
    weight_decay: float = 0.01
    save_every: int = 100

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("steps", "batch_size", "save_every"):
            positive_int(name, getattr(self, name))
        finite_number("learning_rate", self.learning_rate, above=0)
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"warmup is a share of the steps, from 0 to 1, got {self.warmup}")


class Task(nn.Module, ABC):
    """What a stage trains: trainable parameters, and how a step's loss comes about."""

    @property
    def about(self) -> dict[str, Any]:
        """What else its batches follow from, such as the data; a saved state of other values is refused."""
        return {}

    @abstractmethod
    def forward(self, random: np.random.Generator, batch_size: int, progress: float) -> tuple[torch.Tensor, float]:
        """Make a batch and return its loss and its accuracy.

        Args:
            random: everything random in the batch comes from it.
            batch_size: examples of this process.
            progress: how much of the stage is done, from 0 to 1.
        """


def make_accelerator(mixed_precision: str = "no") -> Accelerator:
    """Make accelerate's view of the processes and devices there are.

    Args:
        mixed_precision: "no" or "bf16"; "fp16" would need its loss scale saved too.
    """
    choice("mixed_precision", mixed_precision, ("no", "bf16"))
    # Some steps leave a module out, such as a connector when no frame is merged.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    return Accelerator(mixed_precision=mixed_precision, kwargs_handlers=[unused])


def run_stage(stage: Stage, task: Task, folder: Path, seed: int, accelerator: Accelerator) -> np.ndarray:
    """Train the task's trainable parameters, from where the folder's saved state stands to the last step.

    Args:
        stage: how long and how fast.
        task: what is trained; it has the trained parameters afterwards.
        folder: holds the state: parameters, optimizer, curve, step.
        seed: of the batches, and of torch's generator, which dropout draws from.
        accelerator: from `make_accelerator`.

    Returns:
        float32 [steps, 2]: loss and accuracy of every step.

    Raises:
        ValueError: the folder holds the state of another stage, seed, task, precision, number of processes or set of
            parameters, or a file that is no state; another process trains there; a negative seed; a batch that the
            processes can't share; or a loss that is not finite.
    """
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")
    workers = accelerator.num_processes
    if stage.batch_size % workers:
        raise ValueError(f"batch_size {stage.batch_size} must be a multiple of the {workers} processes")
    parameters = {name: value for name, value in task.named_parameters() if value.requires_grad}
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=stage.learning_rate, weight_decay=stage.weight_decay, betas=(0.9, 0.98)
    )
    about = {"stage": asdict(stage), "seed": seed, "task": task.about}
    about |= {"precision": accelerator.mixed_precision, "processes": workers}
    file = folder / _STATE
    with alone_in(folder, "training") if accelerator.is_main_process else nullcontext():
        there = os.path.lexists(file)
        done, curve = _restore(file, about, parameters, optimizer) if there else (0, np.zeros((0, 2)))
        curve = np.concatenate([curve, np.zeros((stage.steps - len(curve), 2))]).astype(np.float32)
        for group in optimizer.param_groups:
            group["initial_lr"] = stage.learning_rate
        warmup = round(stage.warmup * stage.steps)
        schedule = get_cosine_schedule_with_warmup(optimizer, warmup, stage.steps, last_epoch=done - 1)
        task.train()
        wrapped, prepared = accelerator.prepare(task, optimizer)
        with without_cudnn_attention(), progress_bar(stage.steps, "steps", stage.name, initial=done) as bar:
            for step in range(done, stage.steps):
                random = np.random.default_rng((seed, _number(stage.name), step, accelerator.process_index))
                torch.manual_seed(int(random.spawn(1)[0].integers(2**63)))
                loss, accuracy = wrapped(random, stage.batch_size // workers, step / stage.steps)
                if not math.isfinite(loss.item()):
                    raise ValueError(f"{stage.name}: the loss is {loss.item()} at step {step}; lower the learning rate")
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(parameters.values(), 1.0)
                prepared.step()
                schedule.step()
                prepared.zero_grad()
                both = torch.tensor([loss.item(), accuracy], device=accelerator.device)
                curve[step] = accelerator.reduce(both, "mean").cpu()
                if accelerator.is_main_process and ((step + 1) % stage.save_every == 0 or step + 1 == stage.steps):
                    _save(file, about, step + 1, parameters, optimizer, curve)
                recent = curve[max(step + 1 - _SHOWN, 0) : step + 1].mean(axis=0)
                bar.set_postfix(loss=f"{recent[0]:.3f}", accuracy=f"{recent[1]:.2f}", refresh=False)
                bar.update(1)
        accelerator.wait_for_everyone()
    accelerator.free_memory()
    task.eval()
    return curve


def _number(name: str) -> int:
    """A number for a stage's name, so that stages with the same seed draw different batches."""
    return int.from_bytes(name.encode(), "big")


def _save(
    file: Path,
    about: dict[str, Any],
    step: int,
    parameters: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    curve: np.ndarray,
) -> None:
    """Write the state beside the old one, then put it in its place: there is a whole one at any moment."""
    tensors = {"curve": torch.from_numpy(curve[:step].copy())}
    for name, parameter in parameters.items():
        tensors[f"parameter {name}"] = parameter.detach()
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{key} {name}"] = value
    tensors = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
    with written_whole(file, durable=True) as waiting:
        # One entry: safetensors writes several in any order, and equal states should be equal files.
        about = about | {"step": step}
        about["checksum"] = _checksum(about, tensors)
        save_file(tensors, waiting, metadata={"about": json.dumps(about)})


def _checksum(about: dict[str, Any], tensors: dict[str, torch.Tensor]) -> str:
    """A text that changes when any bit of a state does."""
    names = sorted(tensors)
    whole = json.dumps([about, names, tensors_fingerprint([tensors[name] for name in names])], sort_keys=True)
    return sha256(whole.encode()).hexdigest()[:16]


def _restore(
    file: Path, about: dict[str, Any], parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> tuple[int, np.ndarray]:
    """Put a saved state into parameters and optimizer; return its step and curve."""
    try:
        with safe_open(file, "pt") as state:
            found = json.loads(state.metadata()["about"])
            tensors = {name: state.get_tensor(name) for name in state.keys()}  # noqa: SIM118 (not a mapping)
        # States of former versions have none.
        if "checksum" in found and found.pop("checksum") != _checksum(found, tensors):
            raise ValueError("it is damaged: its checksum is another")
        step, curve = int(found.pop("step")), tensors.pop("curve").numpy()
    except (SafetensorError, AttributeError, KeyError, TypeError, ValueError, OSError, RecursionError) as error:
        raise ValueError(f"{file} is not a saved state ({error}); delete it to start this stage again") from error
    if step == about["stage"]["steps"]:
        found["processes"] = about["processes"]  # how a finished stage came about no longer matters
    if found != about:
        raise ValueError(f"{file} is of another training ({found}); choose another folder, or delete it to start again")
    shapes = {name: tensor.shape for name, tensor in tensors.items() if name.startswith("parameter ")}
    if shapes != {f"parameter {name}": value.shape for name, value in parameters.items()}:
        raise ValueError(f"{file} holds other parameters than this stage trains; delete it to start this stage again")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"parameter {name}"])
            moments = ("step", "exp_avg", "exp_avg_sq")
            kept = {key: tensors[f"{key} {name}"] for key in moments if f"{key} {name}" in tensors}
            if kept:  # a parameter that no batch has used has none
                optimizer.state[parameter] = {
                    key: value if key == "step" else value.to(parameter.device) for key, value in kept.items()
                }
    return step, curve


def require_own(file: Path, folder: Path) -> None:
    """Refuse to train if something else is where the result shall be.

    Args:
        file: what is written at the end; it may be there, and be no link, if the last stage has been at work.
        folder: of the last stage.
    """
    if file.is_symlink() or (file.exists() and not (folder / _STATE).is_file()):
        raise ValueError(f"{file} is there, and no training in {folder} wrote it: choose another folder")


def read_curve(folder: Path) -> np.ndarray:
    """Read a stage's curve from its folder: float32 [steps, 2], loss and accuracy of every step so far."""
    try:
        with safe_open(folder / _STATE, "pt") as state:
            return state.get_tensor("curve").numpy()
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{folder} holds no saved state ({error})") from error


def smoothed(curve: np.ndarray, window: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield a curve's means over windows of steps: the last step of each window, and the means.

    Args:
        curve: [steps, values].
        window: in steps.
    """
    for start in range(0, len(curve), window):
        part = curve[start : start + window]
        yield start + len(part), part.mean(axis=0)
