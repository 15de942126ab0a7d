"""What every stored result says about how it came about."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_PACKAGES = ("vilamp-lite", "torch", "transformers", "av", "numpy", "papermill")


def make_stamp(**settings: Any) -> dict[str, Any]:
    """Name the commit, the versions and the hardware, which a reader needs to get a result again.

    Args:
        settings: what else the result depends on, such as model and seed; they come first.
    """
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        **settings,
        "commit": commit.stdout.strip() or None,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in _PACKAGES},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
