"""`vilamp evaluate niah` and `vilamp evaluate footage`."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from vilamp_lite import evaluation
from vilamp_lite.cli.options import AsJson, Device
from vilamp_lite.cli.shown import interruptible, show, table
from vilamp_lite.common import file_sha256
from vilamp_lite.tinyworld import FAMILIES, MINIATURE

app = typer.Typer(no_args_is_help=True, help="Measure a model.")

Out = Annotated[
    Path | None,
    Option(
        help="This folder gets every prediction; the same command goes on there.",
        show_default="a folder of runs/evaluate",
    ),
]


@app.command()
def niah(
    model: Annotated[Path, Option(help="A TinyWorld model.", show_default="data/vilamp-miniature")] = MINIATURE,
    frames: Annotated[str, Option(help="Lengths of the haystacks, such as 256,2048,10000.")] = "2048",
    depths: Annotated[str, Option(help="Depths of the needle, from 0 (start) to 1 (end), such as 0,0.5,1.")] = "0.5",
    families: Annotated[str, Option(help="The families of questions.")] = ",".join(FAMILIES),
    selector: Annotated[str, Option(help="How keyframes are chosen, such as dks,uniform.")] = "dks",
    merger: Annotated[str, Option(help="How the other frames are merged, such as dfm,mean.")] = "dfm",
    questions: Annotated[int, Option(help="Ask this many questions in each cell.")] = 50,
    seed: Annotated[int, Option(help="Draw questions and haystacks from this seed.")] = 0,
    processes: Annotated[int, Option(help="Processes; each works on one cell at a time, with one thread.")] = 1,
    out: Out = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Ask about needles in TinyWorld's haystacks (the paper's Fig. 2); each combination of the lists is a cell.

    The depth is that of the first needle; a roll call's many are spread over the video, whatever the depth.
    """
    with interruptible(f"what is finished is kept in {out or evaluation.EVALUATED}"):
        cells = evaluation.grid(
            _listed("frames", frames, int),
            _listed("depths", depths, float),
            _listed("families", families),
            _listed("selector", selector),
            _listed("merger", merger),
            questions,
        )
        out = out or evaluation.own_folder(model, f"seed{seed}_questions{questions}")
        answered = evaluation.evaluate_cells(model, cells, seed=seed, processes=processes, out=out, device=device)
    result = answered.as_json()
    rows = [
        {name: cell[name] for name in ("frames", "depth", "family")}
        | {
            "variant": f"{cell['selector']} + {cell['merger']}",
            "correct": f"{cell['correct']}/{cell['questions']}",
            "accuracy (95 %)": f"{cell['accuracy']:.3f} ({cell['low']:.2f}–{cell['high']:.2f})",
        }
        for cell in result["cells"]
    ]
    title = f"VideoNIAH, {result['stamp']['model']}: mean accuracy {result['mean']:.3f}"
    show(as_json, result, table(title, rows), f"Each prediction: {out}")


@app.command()
def footage(
    cases: Annotated[
        Path,
        Argument(metavar="CASES", help="JSON: a list of {haystack, needle, depth, question, options, answer}."),
    ],
    model: Annotated[Path, Option(help="A checkpoint directory.")],
    out: Out = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Ask about needles in haystacks of your own footage."""
    with interruptible(f"what is finished is kept in {out or evaluation.EVALUATED}"):
        loaded = evaluation.load_cases(cases)
        out = out or evaluation.own_folder(model, f"cases_{file_sha256(cases)[:16]}")
        result = evaluation.evaluate_cases(model, loaded, out=out, device=device)
    columns = ("question", "answer", "prediction", "correct")
    rows = [{name: prediction[name] for name in columns} for prediction in result["predictions"]]
    right = f"{result['correct']} of {result['questions']} right (95 %: {result['low']:.2f}–{result['high']:.2f})"
    show(as_json, result, table(f"{result['stamp']['model']}: {right}", rows), f"Each prediction: {out}")


def _listed(option: str, text: str, kind: Callable[[str], Any] = str) -> list[Any]:
    """Read a list with commas."""
    try:
        return [kind(part.strip()) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"--{option} must be numbers with commas between them, got {text!r}") from error
