"""Arguments and options that several commands share."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from typer import Argument, Option


class Dtype(StrEnum):
    """Floating-point types that weights can have."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class Precision(StrEnum):
    """Mixed precision in training."""

    NO = "no"
    BF16 = "bf16"


# What is read.
Video = Annotated[Path, Argument(metavar="VIDEO", help="A video file.", show_default=False)]
Fps = Annotated[float | None, Option(help="Frames sampled per second.", show_default="the checkpoint's")]
MaxFrames = Annotated[int | None, Option(help="The most frames, spread over the video.", show_default="no limit")]

# The model.
Model = Annotated[Path | None, Option(help="A checkpoint: ours, or in the authors' format.", show_default=False)]
RandomWeights = Annotated[bool, Option("--random-weights", help="Try the way with a tiny model that knows nothing.")]
Tokenizer = Annotated[
    str | None, Option(help="For a checkpoint without one: the language model's.", show_default=False)
]
SelectorTokenizer = Annotated[str | None, Option(help="Likewise: the selector's.", show_default=False)]
Device = Annotated[str | None, Option(help="Where the model runs, such as cpu or cuda.", show_default="a GPU if any")]
WeightType = Annotated[Dtype | None, Option(help="Of the weights.", show_default="as in the checkpoint")]
Force = Annotated[bool, Option("--force", help="Let the miniature see other footage than TinyWorld.")]

# Training.
Seed = Annotated[int, Option(help="Of batches and new weights.")]
Processes = Annotated[int, Option(min=1, help="Share each batch, with one thread each.")]
MixedPrecision = Annotated[Precision, Option(help="bf16 on a GPU that has it.")]
Kept = Annotated[Path, Option(help="Holds all that is made; the same command goes on there.")]

# What is printed.
AsJson = Annotated[bool, Option("--json", help="Print one JSON object instead of a table.")]
