"""What tells one file, checkpoint, notebook or version of the code from another."""

import ast
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from hashlib import blake2b, file_digest, sha256
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def file_sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's content, in hexadecimal; a piece at a time."""
    with Path(path).open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


PACKAGE = Path(__file__).parents[1]


def weights_fingerprint(model: str | os.PathLike[str]) -> str:
    """A text that changes when a checkpoint's configuration or any of its weights do."""
    digests = map(file_sha256, [Path(model) / "config.json", *sorted(Path(model).rglob("*.safetensors"))])
    return sha256(" ".join(digests).encode()).hexdigest()[:16]


def tensors_fingerprint(tensors: "Sequence[torch.Tensor]") -> str:
    """A text that changes when the values, types or shapes of tensors do; feature stores keep it.

    A full-size model's take seconds in one thread, hence more of them.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return blake2b(b"".join(pool.map(_digest, tensors)), digest_size=8).hexdigest()


def _digest(tensor: "torch.Tensor") -> bytes:
    import torch

    digest = blake2b(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.digest()


def parameters_sum(model: "torch.nn.Module") -> float:
    """A number that changes when a model's weights do; banks of scenes keep it."""
    return float(sum(value.double().abs().sum() for value in model.state_dict().values()))


# The modules that an answer follows from; what trains, costs, draws, scores a study or talks to a user is none of them.
_ANSWERS = (
    *("*.py", "baselines/*.py", "video/*.py", "streaming/*.py", "tinyworld/*.py"),
    *("common/checks.py", "common/hub.py", "common/precision.py"),
    *("evaluation/niah.py", "evaluation/footage.py", "evaluation/results.py", "evaluation/scoring.py"),
)


@cache
def code_fingerprint(package: Path = PACKAGE) -> str:
    """A text that changes when the code does that answers follow from: kept ones are not mixed with another version's.

    Comments and docstrings don't count.
    """
    digest = sha256()
    for file in sorted(file for pattern in _ANSWERS for file in package.glob(pattern)):
        digest.update(f"{file.relative_to(package)} {_code(file)} ".encode())
    return digest.hexdigest()[:16]


def _code(file: Path) -> str:
    """What Python makes of a file, without its docstrings, and the same text by every version of Python."""
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body.pop(0)
    return _written(tree)


def _written(part: object) -> str:
    """A syntax tree as text.

    Neither `ast.dump` nor tokens are the same everywhere: Python 3.12 gives functions a field more and splits f-strings
    into tokens, 3.13 leaves out empty fields. Here every empty field is left out.
    """
    if isinstance(part, list):
        return f"[{' '.join(map(_written, part))}]"
    if not isinstance(part, ast.AST):
        return repr(part)
    fields = (f"{name}={_written(value)}" for name, value in ast.iter_fields(part) if value is not None and value != [])
    return f"{type(part).__name__}({' '.join(fields)})"


# The id of a notebook's cell that installs the package on Colab: it names an address, and no result follows from it.
LAUNCH_CELL = "colab"


def code_checksum(notebook: Path) -> str:
    """Tell a notebook's code from another's, whatever its texts and outputs."""
    import nbformat  # here: it takes half a second

    cells = nbformat.read(notebook, 4).cells
    code = [cell.source for cell in cells if cell.cell_type == "code" and cell.get("id") != LAUNCH_CELL]
    return sha256(json.dumps(code).encode()).hexdigest()[:16]
