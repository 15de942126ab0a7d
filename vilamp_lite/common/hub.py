"""Loading from directories in transformers' format: safetensors only, and an error that names the checkpoint."""

import json
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from vilamp_lite.common.progress import loading_quietly

if TYPE_CHECKING:
    import torch

IGNORED = -100  # transformers' label of a token that does not count


def weight_files(path: Path) -> tuple[list[Path], set[str]]:
    """A checkpoint's files of weights, which are all there, and the tensors that its index names, if it has one."""
    index = path / "model.safetensors.index.json"
    files, tensors = {"model.safetensors"}, set()
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError(f"{index} names no weights; copy or download it again")
        files, tensors = set(weight_map.values()), set(weight_map)
    if missing := sorted(name for name in files if not (path / name).is_file()):
        raise ValueError(f"{path} lacks {', '.join(missing)}; weights are read from safetensors only")
    return [path / name for name in sorted(files)], tensors


def read_safetensors(path: str | PathLike[str]) -> "dict[str, torch.Tensor]":
    """Read all weights of a directory: model.safetensors, or the shards that its index names."""
    files, named = weight_files(Path(path))
    weights: dict[str, Any] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as stored:
                weights |= {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{file} is damaged ({error}); copy or download it again") from error
    if absent := sorted(named - set(weights)):
        raise ValueError(f"{path}: the shards lack {', '.join(absent)}, which the index names")
    return weights


def loaded(any_class: Any, path: str | PathLike[str], *, remedy: str = "", **options: Any) -> Any:
    """Load something in transformers' format; whatever goes wrong, name the checkpoint.

    Args:
        any_class: a class with `from_pretrained`.
        path: a directory, or a name that the hub knows.
        remedy: what to do about an error.
        options: of `from_pretrained`.
    """
    try:
        with loading_quietly():
            return any_class.from_pretrained(path, trust_remote_code=False, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        what = f"can't load {path} as {any_class.__name__} ({error})"
        raise ValueError(f"{what}; {remedy}" if remedy else what) from error


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object of a checkpoint."""
    if not file.parent.exists():
        raise ValueError(f"{file.parent}: no such folder")
    if not file.is_file():
        raise ValueError(f"{file.parent} is not a checkpoint: there is no {file.name} in it")
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}); copy or download it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold a JSON object, got a {type(content).__name__}; copy or download it again")
    return content


def usable_device(device: "str | torch.device | None") -> "torch.device":
    """Name the device to run on: the one asked for, or else a GPU if there is one."""
    import torch

    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:  # torch has one for each kind of bad device
        raise ValueError(f"device must be one that torch can use here, got {device!r}: {error}") from error
    if found.type == "meta":
        raise ValueError("device must be one that holds numbers, got 'meta'")
    return found
