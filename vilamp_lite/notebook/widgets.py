"""What every notebook starts with, and widgets that also work where nobody can move them."""

from collections.abc import Callable

import ipywidgets
import torch

from vilamp_lite.common.progress import is_headless
from vilamp_lite.plots.style import set_style


def setup(seed: int) -> None:
    """Set the figure style, torch's seed and one torch thread, so that a notebook gives the same numbers anywhere.

    Args:
        seed: of torch's generator.
    """
    set_style()
    torch.manual_seed(seed)
    # Two threads on two busy cores can be ten times slower than one.
    torch.set_num_threads(1)


def show_widget(function: Callable[..., object], **controls: ipywidgets.Widget) -> None:
    """Call `function` with each control's value, and again whenever one is moved.

    Headless, it is called once with the controls' first values: `ipywidgets.interact` can hang there.

    Args:
        function: draws something from keyword arguments.
        controls: one ipywidgets control for each argument.
    """
    if is_headless():
        function(**{name: control.value for name, control in controls.items()})
    else:
        ipywidgets.interact(function, **controls)
