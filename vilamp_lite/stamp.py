"""What every stored result says about how it came about, and storing it."""

import json
import os
import platform
import shutil
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
        "gpus": _gpus(),
    }


def _gpus() -> list[str]:
    """Name the machine's NVIDIA GPUs; asked of the driver, for torch takes seconds to load."""
    if not shutil.which("nvidia-smi"):
        return []
    listed = subprocess.run(
        ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, check=False
    )
    return listed.stdout.splitlines()


def keep_result(file: Path, content: dict[str, Any]) -> None:
    """Write a result as JSON, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    waiting = file.with_suffix(f".{os.getpid()}")
    waiting.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    os.replace(waiting, file)
