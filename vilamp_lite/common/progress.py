"""How far long work has come: one progress bar for all of it, and the names of its stages for who measures them."""

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

from tqdm.auto import tqdm

from vilamp_lite.common.text import visible

Listener = Callable[[str], AbstractContextManager[None]]
_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


def stage(name: str) -> AbstractContextManager[None]:
    """Announce what is done inside `with`, such as "selection", to whoever measures it."""
    listener = _listener.get()
    return nullcontext() if listener is None else listener(name)


@contextmanager
def announced_to(listener: Listener) -> Iterator[None]:
    """Let a listener know the stages of what is done inside `with`; it is entered at the start of each."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def is_measured() -> bool:
    """Tell whether somebody listens: then work is done in turns, so that each stage has its own time."""
    return _listener.get() is not None


def is_headless() -> bool:
    """Tell whether a program runs the notebook or the test: the environment variable VILAMP_HEADLESS is set."""
    return bool(os.environ.get("VILAMP_HEADLESS"))


def progress_bar(total: int, unit: str, description: str, initial: int = 0) -> tqdm:
    """Make a bar to be moved by `update`; shown on a terminal and in a notebook that a person runs.

    Args:
        total: how many units there are; of none there is no bar.
        unit: what is counted, in the plural.
        description: what is being done.
        initial: how many were done before, by an earlier run.
    """
    # disable=None: no bar when stderr is not a terminal.
    disable = True if is_headless() or not total else None
    shown = {"unit": f" {unit}", "desc": visible(description), "dynamic_ncols": True}
    return tqdm(total=total, initial=initial, disable=disable, **shown)


@contextmanager
def loading_quietly() -> Iterator[None]:
    """Keep transformers' reports out while it loads, and its bars where nobody watches; errors are still raised."""
    # Imported here: it takes seconds, and `vilamp --help` should not.
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
