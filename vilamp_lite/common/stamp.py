"""What every stored result says about how it came about, and storing it."""

import os
import platform
import re
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_DECIDES = ("vilamp_lite", "data")  # what a result follows from
_PACKAGES = ("vilamp-lite", "torch", "transformers", "av", "numpy", "papermill")


def make_stamp(**settings: Any) -> dict[str, Any]:
    """Name the commit, the versions and the hardware, which a reader needs to get a result again.

    The commit ends with "-dirty" where package or bundled data differ from it. It is None where the package does not
    lie in its repository.

    Args:
        settings: what else the result depends on, such as model and seed; they come first.
    """
    return {
        **settings,
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "machine": f"{processor_name()}, {os.cpu_count()} cores, {_memory() / 2**30:.0f} GiB",
        "gpus": _gpus(),
    }


def _version(name: str) -> str | None:
    """A package's version; None where it is not installed, as on a machine that only calculates."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def processor_name() -> str:
    """The processor's model, as Linux has it, or what Python knows of it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def short_commit(stamp: dict[str, Any]) -> str:
    """A stamp's commit for a reader: ten digits of it and "-dirty", or "unknown"."""
    return re.sub(r"^([0-9a-f]{10})[0-9a-f]*", r"\1", stamp["commit"] or "unknown")


def _commit() -> str | None:
    if not shutil.which("git") or _git("rev-parse", "--show-toplevel") != str(ROOT.resolve()):
        return None
    return _git("rev-parse", "HEAD") + ("-dirty" if _git("status", "--porcelain", "--", *_DECIDES) else "")


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def _gpus() -> list[str]:
    """Name the machine's NVIDIA GPUs; asked of the driver, for torch takes seconds to load."""
    if not shutil.which("nvidia-smi"):
        return []
    listed = subprocess.run(
        ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, check=False
    )
    return listed.stdout.splitlines()
