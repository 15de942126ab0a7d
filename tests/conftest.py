"""Settings for every test."""

import os
from pathlib import Path

import pytest
import torch
from tiny_models import save_random_miniature

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here may need a network
os.environ["VILAMP_HEADLESS"] = "1"


@pytest.fixture(autouse=True, scope="session")
def _one_torch_thread() -> None:
    # Two threads on two busy cores can be ten times slower than one.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random miniature with its Q-Former, as `vilamp train` lays them out; nobody writes into it."""
    folder = tmp_path_factory.mktemp("models") / "miniature"
    save_random_miniature(folder)
    return folder
