"""Prepare Google Colab for a notebook, whose first cell runs this there.

It stands outside the package because it installs the package.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from IPython import get_ipython

ROOT = Path(__file__).resolve().parents[1]

os.chdir(ROOT / "notebooks")  # the notebooks name their files from here
if find_spec("vilamp_lite") is None:
    # Editable: what the package bundles lies in the repository.
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--editable", f"{ROOT}[offline]"], check=True)
    # The kernel imported other versions of some packages when it started.
    print("Installed. The kernel restarts; then choose Runtime → Run all once more.", flush=True)
    get_ipython().kernel.do_shutdown(restart=True)
