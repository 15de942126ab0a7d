"""Record the full runs that the notebooks show: figures/results/NAME.json."""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from vilamp_lite.baselines.peers import PEERS
from vilamp_lite.checkpoints import load_config
from vilamp_lite.common.checks import choice
from vilamp_lite.common.files import write_json
from vilamp_lite.common.stamp import ROOT, make_stamp
from vilamp_lite.evaluation.attention import attention_study
from vilamp_lite.evaluation.results import RESULTS, Study
from vilamp_lite.evaluation.studies import (
    BASELINE,
    FULL,
    Exam,
    ablation_study,
    comparison_study,
    keyframes_study,
    niah_study,
    peers_study,
    redundancy_study,
    seeds_study,
    sensitivity_study,
)
from vilamp_lite.tinyworld import MINIATURE
from vilamp_lite.training.loop import smoothed
from vilamp_lite.training.miniature import Recipe, curves

TRAINING = "training"  # the name of the recorded curves


def training_study(trained: Path, seeds: Sequence[int], points: int = 50) -> Study:
    """The curves of whole trainings, as `vilamp train miniature` left them.

    Args:
        trained: its folder.
        seeds: of trainings that are finished.
        points: means that a curve is shortened to, about so many.

    Returns:
        Rows by seed and stage: `steps`, `window`, the steps that a mean is over, and the means of `loss` and
        `accuracy`. The stamp is that of the recording.
    """
    if not seeds:
        raise ValueError(f"there is no finished training in {trained}: `vilamp train miniature` makes one")
    rows = []
    for seed in seeds:
        for stage, curve in curves(trained, "full", seed).items():
            window = max(len(curve) // points, 1)
            means = np.array([mean for _, mean in smoothed(curve, window)]).round(4)
            about = {"seed": seed, "stage": stage, "steps": len(curve), "window": window}
            rows.append(about | {"loss": means[:, 0].tolist(), "accuracy": means[:, 1].tolist()})
    study = {"study": TRAINING, "parameters": {"seeds": list(seeds), "recipe": asdict(Recipe())}, "rows": rows}
    return study | {"stamp": make_stamp()}


@dataclass(frozen=True)
class Recording:
    """A full run whose result is committed.

    Attributes:
        make: the study.
        exam: what is asked.
        others: folders of further trained models, under the folder of `vilamp train miniature`.
    """

    make: Callable[..., Study]
    exam: Exam
    others: tuple[str, ...] = ()

    def missing(self, trained: Path) -> list[str]:
        """The further models that are not there."""
        return [str(model) for model in self.further(trained) if not model.is_dir()]

    def further(self, trained: Path) -> list[Path]:
        """The further models."""
        return [trained / other / "model" for other in self.others]


_DEPTHS = (0.1, 0.3, 0.5, 0.7, 0.9)
_AT_2048 = Exam((2048,), _DEPTHS, questions=40)  # 200 of each family
# Short haystacks from fewer scenes: otherwise encoding them would cost most of the time.
_SWEEP = Exam((1024,), _DEPTHS, questions=20, pool=400)

_TRAINED_OTHERWISE = (
    *("released_reference", "no_keyframe_block", "no_attention_scaling"),
    *("no_position_interpolation", "no_grounding"),
)

_SEEDS = ("full-seed1", "full-seed2")

_VARIANTS = (
    *(FULL, ("uniform", "dfm"), ("top_k", "dfm"), ("dks", "mean"), ("dks", "drop")),
    *(("top_k", "mean"), BASELINE),
)

RECORDED: dict[str, Recording] = {
    "niah": Recording(
        niah_study, Exam((256, 512, 1024, 2048, 4096, 10_000), (0.0, 0.25, 0.5, 0.75, 1.0), questions=10)
    ),
    "ablation": Recording(ablation_study, _AT_2048),
    "sensitivity": Recording(sensitivity_study, replace(_SWEEP, questions=8)),
    "keyframes": Recording(keyframes_study, _SWEEP),
    "redundancy": Recording(redundancy_study, _SWEEP),
    # One process, and nothing kept: it takes minutes.
    "attention": Recording(
        lambda models, exam, **_: attention_study(models, exam), Exam((256, 512), questions=40, pool=400)
    ),
    **{name: Recording(comparison_study, _AT_2048, (f"{name}-seed0",)) for name in _TRAINED_OTHERWISE},
    # The bundled model beside what the same command makes here.
    "retrained": Recording(comparison_study, _AT_2048, ("full-seed0",)),
    "peers": Recording(peers_study, _SWEEP, tuple(f"peer_{peer}-seed0" for peer in PEERS)),
    "seeds": Recording(partial(seeds_study, variants=_VARIANTS), _AT_2048, _SEEDS),
    "seeds_10000": Recording(seeds_study, Exam((10_000,), _DEPTHS, questions=8), _SEEDS),
}


def make_result(
    name: str,
    model: Path,
    *,
    trained: Path,
    out: Path = RESULTS,
    cells: Path | None = None,
    questions: int | None = None,
    processes: int = 1,
) -> Path:
    """Run a study and write out/NAME.json.

    Args:
        name: `TRAINING`, or in `RECORDED`.
        model: the bundled model's directory.
        trained: the folder of `vilamp train miniature`, for studies that compare several models.
        out: a folder for the results.
        cells: a folder for finished cells and their predictions, from which an interrupted run goes on.
        questions: for each length, depth and family; the recording's own when left out.
        processes: as in `evaluate_cells`.
    """
    start = time.perf_counter()
    if choice("name", name, (TRAINING, *RECORDED)) == TRAINING:
        study = training_study(trained, finished_seeds(trained))
    else:
        recording = RECORDED[name]
        exam = recording.exam if questions is None else replace(recording.exam, questions=questions)
        models = [model, *recording.further(trained)]
        if missing := recording.missing(trained):
            raise ValueError(f"{name} needs {', '.join(missing)}, which `vilamp train miniature` makes")
        for one in models:
            load_config(one)  # refuses what is no checkpoint, before an hour is spent on another
        study = recording.make(models, exam, processes=processes, out=cells)
        study["stamp"]["seconds"] = round(time.perf_counter() - start)
    file = out / f"{name}.json"
    write_json(file, study)
    return file


def finished_seeds(trained: Path) -> list[int]:
    """The seeds of whole trainings in the folder of `vilamp train miniature`."""
    return sorted(int(path.parent.name.removeprefix("full-seed")) for path in trained.glob("full-seed*/model"))


def is_possible(name: str, trained: Path) -> bool:
    """Tell whether the models that a study needs, beside the bundled one, are there."""
    return bool(finished_seeds(trained)) if name == TRAINING else not RECORDED[name].missing(trained)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the recorded runs, and the curves of the trainings; without names, all whose models are there."""
    parser = argparse.ArgumentParser(prog="python -m figures.make_results", description=main.__doc__)
    parser.add_argument("studies", nargs="*", metavar="STUDY", help=f"training, or of {', '.join(RECORDED)}")
    parser.add_argument("--model", type=Path, default=MINIATURE, help="the bundled model")
    parser.add_argument(
        "--trained", type=Path, default=ROOT / "runs" / "train", help="the folder of `vilamp train miniature`"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="a folder for NAME.json")
    parser.add_argument("--cells", type=Path, default=ROOT / "runs" / "studies", help="finished cells, to go on from")
    parser.add_argument("--questions", type=int, help="for each length, depth and family")
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args(arguments)
    settings = {name: getattr(options, name) for name in ("trained", "out", "cells", "questions", "processes")}
    try:
        for name in options.studies or (TRAINING, *RECORDED):
            if options.studies or is_possible(name, options.trained):
                print(make_result(name, options.model, **settings), flush=True)
            else:
                print(f"{name}: left out, its models are not in {options.trained}")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
