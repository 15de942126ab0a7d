"""What tells one file, checkpoint, notebook or version of the code from another."""

import json
import os
from functools import cache
from hashlib import file_digest, sha256
from pathlib import Path

import nbformat


def file_sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's content, in hexadecimal; a piece at a time."""
    with Path(path).open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


PACKAGE = Path(__file__).parents[1]


def weights_fingerprint(model: str | os.PathLike[str]) -> str:
    """A text that changes when a checkpoint's configuration or any of its weights do."""
    digests = map(file_sha256, [Path(model) / "config.json", *sorted(Path(model).rglob("*.safetensors"))])
    return sha256(" ".join(digests).encode()).hexdigest()[:16]


@cache
def code_fingerprint() -> str:
    """A text that changes when the package's code does: finished work is not mixed with that of another version."""
    digest = sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(f"{path.relative_to(PACKAGE)} {path.stat().st_size} ".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


# The id of a notebook's cell that installs the package on Colab: it names an address, and no result follows from it.
LAUNCH_CELL = "colab"


def code_checksum(notebook: Path) -> str:
    """Tell a notebook's code from another's, whatever its texts and outputs."""
    cells = nbformat.read(notebook, 4).cells
    code = [cell.source for cell in cells if cell.cell_type == "code" and cell.get("id") != LAUNCH_CELL]
    return sha256(json.dumps(code).encode()).hexdigest()[:16]
