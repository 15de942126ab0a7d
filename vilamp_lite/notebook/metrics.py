"""Metrics that a notebook records: shown with three digits, kept in full beside what is shown.

They lie in the metadata of the cell's output: in the notebook's file, but not among what its test compares, for the
last digits may differ between machines.
"""

import math
from numbers import Integral, Real

from IPython.display import display
from nbformat import NotebookNode

_KEY = "vilamp_metrics"


def record(**metrics: float) -> None:
    """Record figures of a notebook, each under a name of its own; `recorded` and `result.json` have them.

    Args:
        metrics: finite numbers; names as in Python, such as `hit_at_5`.
    """
    for name, value in metrics.items():
        if not isinstance(value, Real) or not math.isfinite(value):
            raise ValueError(f"metric {name} must be a finite number, got {type(value).__name__} {value!r}")
    # NumPy's numbers are no JSON.
    exact = {name: int(value) if isinstance(value, Integral) else float(value) for name, value in metrics.items()}
    line = ", ".join(
        f"{name} = {value:,}" if isinstance(value, int) else f"{name} = {value:.3g}" for name, value in exact.items()
    )
    display({"text/plain": line}, raw=True, metadata={_KEY: exact})


def recorded(notebook: NotebookNode) -> dict[str, float]:
    """Read the metrics of an executed notebook, in the order in which they were recorded."""
    metrics: dict[str, float] = {}
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            for name, value in output.get("metadata", {}).get(_KEY, {}).items():
                if name in metrics:
                    raise ValueError(f"cell {cell.id} records the metric {name} once more: give it a name of its own")
                metrics[name] = value
    return metrics
