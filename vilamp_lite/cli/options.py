"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Argument, Option

Dtype = Literal["float32", "bfloat16", "float16"]
# What is read.
Video = Annotated[Path, Argument(metavar="VIDEO", help="A video file.")]
Fps = Annotated[float | None, Option(help="Frames sampled per second.", show_default="the checkpoint's")]
MaxFrames = Annotated[int | None, Option(help="The most frames, spread over the video.", show_default="no limit")]
# The model.
Model = Annotated[Path | None, Option(help="A checkpoint: ours, or in the authors' format.")]
RandomWeights = Annotated[bool, Option("--random-weights", help="Try the command with a tiny model of random weights.")]
Tokenizer = Annotated[str | None, Option(help="The language model's tokenizer, for a checkpoint without one.")]
SelectorTokenizer = Annotated[str | None, Option(help="The selector's tokenizer, for a checkpoint without one.")]
Device = Annotated[str | None, Option(help="Where the model runs, such as cpu or cuda.", show_default="a GPU if any")]
WeightType = Annotated[Dtype | None, Option(help="The type of the weights.", show_default="as in the checkpoint")]
Force = Annotated[bool, Option("--force", help="Let the miniature see other footage than TinyWorld.")]
# Training.
Seed = Annotated[int, Option(help="Draw batches and new weights from this seed.")]
Processes = Annotated[int, Option(min=1, help="Share each batch among so many processes of one thread.")]
MixedPrecision = Annotated[Literal["no", "bf16"], Option(help="bf16 on a GPU that has it.")]
Kept = Annotated[Path, Option(help="This folder holds all that is made; the same command goes on there.")]
# What is written and printed.
Overwrite = Annotated[bool, Option("--overwrite", help="Replace a file that is there.")]
AsJson = Annotated[bool, Option("--json", help="Print one JSON object instead of a table.")]


def torch_type(name: str | None) -> Any:
    """PyTorch's type of a `Dtype`."""
    import torch

    return None if name is None else getattr(torch, name)
