"""One progress bar for all long work: rate and remaining time, and silence where nobody watches."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm


def is_headless() -> bool:
    """Tell whether a program runs the notebook or the test: the environment variable VILAMP_HEADLESS is set."""
    return bool(os.environ.get("VILAMP_HEADLESS"))


def progress_bar(total: int, unit: str, description: str) -> tqdm:
    """Make a bar to be moved by `update`; shown on a terminal and in a notebook that a person runs.

    Args:
        total: how many units there are.
        unit: what is counted, in the plural.
        description: what is being done.
    """
    # disable=None: no bar when stderr is not a terminal.
    disable = True if is_headless() else None
    return tqdm(total=total, unit=f" {unit}", desc=description, disable=disable, dynamic_ncols=True)


@contextmanager
def loading_bars() -> Iterator[None]:
    """Keep the bars that transformers shows while it loads and saves out of logs and stored notebooks."""
    # Imported here: it takes seconds, and `vilamp --help` should not.
    from transformers.utils import logging

    hide = logging.is_progress_bar_enabled() and not sys.stderr.isatty()
    if hide:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if hide:
            logging.enable_progress_bar()
