"""Record the full runs that the notebooks show: figures/results/NAME.json."""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vilamp_lite.baselines.peers import PEERS
from vilamp_lite.checkpoints import load_config
from vilamp_lite.common.checks import choice
from vilamp_lite.common.files import write_json
from vilamp_lite.common.stamp import ROOT, make_stamp
from vilamp_lite.evaluation.attention import attention_study
from vilamp_lite.evaluation.results import RESULTS
from vilamp_lite.evaluation.studies import (
    BASELINE,
    FULL,
    Exam,
    Model,
    Study,
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


def training_study(trained: Model, seeds: Sequence[int], points: int = 50) -> Study:
    """The curves of whole trainings, as `vilamp train` left them.

    Args:
        trained: its folder.
        seeds: of trainings that are finished.
        points: means that a curve is shortened to, about so many.

    Returns:
        Rows by seed and stage: `steps`, `window`, the steps that a mean is over, and the means of `loss` and
        `accuracy`. The stamp is that of the recording.

    Raises:
        ValueError: no seeds, or a stage that did not take place there.
    """
    if not seeds:
        raise ValueError(f"there is no finished training in {trained}: `vilamp train` makes one")
    rows = []
    for seed in seeds:
        for stage, curve in curves(Path(trained), "full", seed).items():
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
        options: further arguments.
        others: folders of further trained models, under the folder of `vilamp train`.
    """

    make: Callable[..., Study]
    exam: Exam
    options: dict[str, Any] = field(default_factory=dict)
    others: tuple[str, ...] = ()


_DEPTHS = (0.1, 0.3, 0.5, 0.7, 0.9)


_AT_2048 = Exam((2048,), _DEPTHS, questions=40)  # 200 of each family


# Short haystacks from fewer scenes: otherwise encoding the pool once for each setting would cost most of the time.
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
    "attention": Recording(attention_study, Exam((256, 512), questions=40, pool=400)),
    **{name: Recording(comparison_study, _AT_2048, others=(f"{name}-seed0",)) for name in _TRAINED_OTHERWISE},
    # The bundled model beside what the same command makes here.
    "retrained": Recording(comparison_study, _AT_2048, others=("full-seed0",)),
    "peers": Recording(peers_study, _SWEEP, others=tuple(f"peer_{peer}-seed0" for peer in PEERS)),
    "seeds": Recording(seeds_study, _AT_2048, {"variants": _VARIANTS}, _SEEDS),
    "seeds_10000": Recording(seeds_study, Exam((10_000,), _DEPTHS, questions=8), others=_SEEDS),
}


def record(
    name: str,
    model: Model,
    *,
    trained: Model,
    out: Model = RESULTS,
    cells: Model | None = None,
    questions: int | None = None,
    processes: int = 1,
) -> Path:
    """Run a recorded study and write out/NAME.json.

    Args:
        name: in `RECORDED`.
        model: the bundled model's directory.
        trained: the folder of `vilamp train`, for studies that compare several models.
        out: a folder for the results.
        cells: a folder for finished cells and their predictions, from which an interrupted run goes on.
        questions: for each length, depth and family; the recording's own when left out.
        processes: as in `evaluate_cells`.

    Raises:
        ValueError: an unknown name, a model that is not there, or as the study.
    """
    recording = RECORDED[choice("name", name, tuple(RECORDED))]
    exam = recording.exam if questions is None else replace(recording.exam, questions=questions)
    others = _others(recording, trained)
    if missing := [str(other) for other in others if not other.is_dir()]:
        raise ValueError(f"{name} needs {', '.join(missing)}, which `vilamp train` makes")
    for one in (model, *others):
        load_config(one)  # refuses what is no checkpoint, before an hour is spent on another
    options = dict(recording.options)
    if recording.make is not attention_study:
        options |= {"processes": processes, "out": cells}
    models: list[Any] = [model, *others]
    if recording.make is seeds_study:
        models = [models]
    elif recording.make is peers_study:
        models = [model, dict(zip(PEERS, others, strict=True))]
    start = time.perf_counter()
    study = recording.make(*models, exam, **options)
    study["stamp"]["seconds"] = round(time.perf_counter() - start)
    return _write(study, name, out)


def _others(recording: Recording, trained: Model) -> list[Path]:
    return [Path(trained) / other / "model" for other in recording.others]


def _finished_seeds(trained: Model) -> list[int]:
    folders = Path(trained).glob("full-seed*/model")
    return sorted(int(folder.parent.name.removeprefix("full-seed")) for folder in folders)


def _possible(name: str, trained: Model) -> bool:
    if name == TRAINING:
        return bool(_finished_seeds(trained))
    return all(other.is_dir() for other in _others(RECORDED[name], trained))


def _write(study: Study, name: str, out: Model) -> Path:
    file = Path(out) / f"{name}.json"
    write_json(file, study)
    return file


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the recorded runs, and the curves of the trainings; without names, all whose models are there."""
    parser = argparse.ArgumentParser(prog="python -m figures.make_results", description=main.__doc__)
    parser.add_argument("studies", nargs="*", metavar="STUDY", help=f"training, or of {', '.join(RECORDED)}")
    parser.add_argument("--model", type=Path, default=MINIATURE, help="the bundled model")
    parser.add_argument("--trained", type=Path, default=ROOT / "runs" / "train", help="the folder of `vilamp train`")
    parser.add_argument("--out", type=Path, default=RESULTS, help="a folder for NAME.json")
    parser.add_argument("--cells", type=Path, default=ROOT / "runs" / "studies", help="finished cells, to go on from")
    parser.add_argument("--questions", type=int, help="for each length, depth and family")
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args(arguments)
    settings = {name: getattr(options, name) for name in ("trained", "out", "cells", "questions", "processes")}
    try:
        for name in options.studies or (TRAINING, *RECORDED):
            if not options.studies and not _possible(name, options.trained):
                print(f"{name}: left out, its models are not in {options.trained}")
                continue
            if name == TRAINING:
                print(_write(training_study(options.trained, _finished_seeds(options.trained)), TRAINING, options.out))
                continue
            start = time.perf_counter()
            file = record(name, options.model, **settings)
            print(f"{file}  {time.perf_counter() - start:.0f} s", flush=True)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
