"""Settings for every test."""

import os

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here may need a network
os.environ["VILAMP_HEADLESS"] = "1"


@pytest.fixture(autouse=True, scope="session")
def _one_torch_thread() -> None:
    # Two threads on two busy cores can be ten times slower than one.
    torch.set_num_threads(1)
