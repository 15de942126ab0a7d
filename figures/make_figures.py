"""Draw the committed figures: the model, and the recorded runs."""

import sys
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from figures.make_results import TRAINING
from vilamp_lite import ViLaMPConfig, plots
from vilamp_lite.common import written_whole
from vilamp_lite.evaluation.results import RESULTS, Study, load_result

# The committed figures of one recorded study each.
DRAWN: dict[str, Callable[[Study], Figure]] = {
    TRAINING: lambda study: plots.training_figure(study, study["parameters"]["seeds"][0]),
    "niah": plots.niah_figure,
    "ablation": plots.ablation_figure,
    "sensitivity": plots.sensitivity_figure,
    "keyframes": plots.setting_figure,
    "redundancy": plots.setting_figure,
    "peers": plots.peers_figure,
    "streaming_h100": plots.full_size_memory_figure,
    "attention": lambda study: plots.attention_figure(study, study["parameters"]["frames"][-1]),
}

# Two trainings each, by the panel's title; together they are "trainings.png".
TRAININGS = {
    "reference frame": "released_reference",
    "keyframe block": "no_keyframe_block",
    "grounding": "no_grounding",
    "logit scaling": "no_attention_scaling",
    "interpolated positions": "no_position_interpolation",
}


def main(folder: Path = RESULTS.parent) -> int:
    """Draw the committed figures."""
    plots.set_style()
    try:
        drawn = {name: draw(load_result(name)) for name, draw in DRAWN.items()}
        compared = {title: load_result(name) for title, name in TRAININGS.items()}
        drawn["trainings"] = plots.differences_figure(
            compared, "accuracy: the right reference minus the slip; with minus without"
        )
        drawn["gpu"] = plots.measured_on_gpu(*(load_result(f"gpu/{part}") for part in ("peer", "1000", "10000")))
        drawn["architecture"] = plots.architecture(ViLaMPConfig.paper())
        for name, figure in drawn.items():
            with written_whole(folder / f"{name}.png") as waiting:
                figure.savefig(waiting, dpi=150)
            print(folder / f"{name}.png")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
