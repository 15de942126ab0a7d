"""`vilamp train miniature` and `vilamp train finetune`."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from vilamp_lite import plots, training
from vilamp_lite.cli import options
from vilamp_lite.cli.shown import interruptible, show
from vilamp_lite.common import saved_whole

app = typer.Typer(no_args_is_help=True, help="Train a model; a killed run goes on where it stopped.")


@app.command()
def miniature(
    out: options.Kept = Path("runs/train"),
    seed: options.Seed = 0,
    study: Annotated[str, Option(help=f"What is trained, of {', '.join(training.STUDIES)}.")] = "full",
    encoder: Annotated[Path | None, Option(help="Take this encoder and skip its stage.")] = None,
    processes: options.Processes = 1,
    mixed_precision: options.MixedPrecision = "no",
) -> None:
    """Train a model for TinyWorld from nothing."""
    with interruptible(f"what is finished is kept in {out}"):
        _start(processes)
        saved = training.train_miniature(out, seed, study, encoder=encoder, mixed_precision=mixed_precision)
        if _is_first():
            curves = training.curves(out, study, seed)
            with saved_whole(saved.parent.resolve()) as waiting:
                plots.training_curves(curves).savefig(waiting / "curves.png")
            show(False, None, str(saved))


@app.command()
def finetune(
    model: Annotated[Path, Option(help="A ViLaMP or LLaVA-OneVision checkpoint.")],
    data: Annotated[Path, Option(help='JSON lines, {"video", "question", "answer"} each.')],
    out: options.Kept = Path("runs/finetune"),
    selector: Annotated[Path | None, Option(help="A CLIP, for a LLaVA-OneVision.")] = None,
    trains: Annotated[
        str,
        Option(
            help="The parts that learn: connectors, connectors+merger, connectors+language model, all but the encoders."
        ),
    ] = "all but the encoders",
    steps: Annotated[int, Option(help="Take this many steps of the optimizer.")] = 1000,
    batch_size: Annotated[int, Option(help="Examples per step, of all processes.")] = 8,
    learning_rate: Annotated[float, Option(help="The learning rate rises to this peak, then falls.")] = 1e-5,
    max_frames: Annotated[int, Option(help="The most frames of a video.")] = 600,
    gradient_checkpointing: Annotated[
        bool, Option("--gradient-checkpointing", help="Save memory: compute activations again instead of keeping them.")
    ] = False,
    seed: options.Seed = 0,
    processes: options.Processes = 1,
    mixed_precision: options.MixedPrecision = "no",
) -> None:
    """Train a full-size model on your own videos, questions and answers."""
    with interruptible(f"what is finished is kept in {out}"):
        _start(processes)
        saved = training.finetune_checkpoint(
            model,
            data,
            out,
            selector=selector,
            trains=trains,
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            max_frames=max_frames,
            gradient_checkpointing=gradient_checkpointing,
            seed=seed,
            mixed_precision=mixed_precision,
        )
        if _is_first():
            show(False, None, str(saved))


def _is_first() -> bool:
    """Tell whether this is the only process, or the one of several that speaks."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _start(processes: int) -> None:
    """Let torchrun take this process's place, which starts the same command in several; they come by here too."""
    if processes == 1 or "LOCAL_RANK" in os.environ:
        return
    import torch

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if not torch.cuda.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    os.execv(sys.executable, [sys.executable, *launch, "-m", "vilamp_lite", *sys.argv[1:]])
