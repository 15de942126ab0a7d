"""Settings for every test."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from tiny_models import save_random_miniature

from vilamp_lite.cli import main

# Nothing here may need a network, and the variable alone comes too late: this file's imports have read it.
os.environ["HF_HUB_OFFLINE"] = "1"
huggingface_hub.constants.HF_HUB_OFFLINE = True
os.environ["VILAMP_HEADLESS"] = "1"
Vilamp = Callable[..., tuple[int, str, str]]
Refusal = Callable[..., str]


@pytest.fixture(autouse=True, scope="session")
def _one_torch_thread() -> None:
    # Two threads on two busy cores can be ten times slower than one.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random miniature with its Q-Former, as `vilamp train miniature` lays them out; nobody writes into it."""
    folder = tmp_path_factory.mktemp("models") / "miniature"
    save_random_miniature(folder)
    return folder


@pytest.fixture
def vilamp(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Vilamp:
    """Runs the command in this process, which spares imports: exit code, and all that reaches stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vilamp", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        printed = capfd.readouterr()
        return stopped.value.code or 0, printed.out, printed.err

    return run


@pytest.fixture
def refusal(vilamp: Vilamp) -> Refusal:
    """What the command says when it exits with 2: nothing but one line on stderr."""

    def run(*arguments: object) -> str:
        code, out, err = vilamp(*arguments)
        assert (code, out) == (2, ""), err
        (line,) = err.strip().splitlines()
        assert line.startswith("vilamp: ")
        return line

    return run
