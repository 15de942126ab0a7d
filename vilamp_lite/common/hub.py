"""Loading from directories in transformers' format: safetensors only, and an error that names the checkpoint."""

import json
import re
from collections.abc import Callable, Collection
from os import PathLike
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from vilamp_lite.common.progress import loading_quietly

if TYPE_CHECKING:
    import torch

IGNORED = -100  # transformers' label of a token that does not count
# Not weights: old versions of transformers stored what follows from the configuration.
BUFFERS = (".rotary_emb.inv_freq", ".position_ids")

_MOST_SAID = 400  # characters of another library's error
_MOST_NAMED = 4  # weights
_READ_TYPES = ("F64", "F32", "F16", "BF16")  # safetensors' names
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model", "spiece.model", "vocab.txt")
# What data parallelism, torch.compile, PEFT and FSDP put into the names of weights.
_WRAPPER = re.compile(
    r"(?:^|(?<=\.))(?:module|_orig_mod|base_model\.model|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)


def weight_files(path: Path) -> tuple[list[Path], set[str]]:
    """A checkpoint's files of weights, which are all there, and the tensors that its index names, if it has one."""
    index = path / "model.safetensors.index.json"
    files, tensors = {"model.safetensors"}, set()
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError(f"{index} names no weights; copy or download it again")
        if strange := [name for name, file in weight_map.items() if not isinstance(file, str)]:
            raise ValueError(f"{index} names no file for {_some(strange)}; copy or download it again")
        files, tensors = set(weight_map.values()), set(weight_map)
    if missing := sorted(name for name in files if not (path / name).is_file()):
        raise ValueError(f"{path} lacks {', '.join(missing)}; weights are read from safetensors only")
    # Transformers would read the single file, others the shards.
    if files != {"model.safetensors"} and (path / "model.safetensors").is_file():
        raise ValueError(
            f"{path} holds model.safetensors and {index.name}, two sets of weights: move one of them elsewhere"
        )
    return [path / name for name in sorted(files)], tensors


def read_safetensors(path: str | PathLike[str]) -> "dict[str, torch.Tensor]":
    """Read all weights of a directory: model.safetensors, or the shards that its index names."""
    return _of_each_weight(Path(path), lambda stored, name: stored.get_tensor(name))


def weight_shapes(path: str | PathLike[str]) -> dict[str, tuple[int, ...]]:
    """The shapes of a directory's weights; of its files only the headers are read."""
    return _of_each_weight(Path(path), lambda stored, name: tuple(stored.get_slice(name).get_shape()))


def _of_each_weight(path: Path, read: Callable[[Any, str], Any]) -> dict[str, Any]:
    """What is read of each weight of a directory, all of which are there."""
    refuse_foreign_weights(path)
    files, named = weight_files(path)
    found: dict[str, Any] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as stored:
                found |= {name: read(stored, name) for name in stored.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{file} is damaged ({error}); copy or download it again") from error
    if absent := sorted(named - set(found)):
        raise ValueError(f"{path}: the shards lack {', '.join(absent)}, which the index names")
    return found


def refuse_adapter(folder: Path) -> None:
    """Refuse a folder with a PEFT adapter: without it the model would answer as if it had never been trained."""
    # PEFT gives an adapter with a name of its own a folder inside.
    files = [file for where in ("", "*/") for file in sorted(folder.glob(f"{where}adapter_[cm]*"))]
    files = [file for file in files if file.name == "adapter_config.json" or file.stem == "adapter_model"]
    if not files:
        return
    settings = files[0].with_name("adapter_config.json")
    kind = read_json(settings).get("peft_type", "LORA") if settings.is_file() else "LORA"
    kind = "LoRA" if kind == "LORA" else kind
    if any(folder.glob("model*.safetensors")):
        what, way_out = f"holds a {kind} adapter beside its weights", ", or move it elsewhere to do without it"
    else:
        what, way_out = f"is a {kind} adapter", ""
    raise ValueError(
        f"{folder} {what} ({files[0].relative_to(folder)}), and adapters are not read here: merge it into its base "
        f"(PEFT's merge_and_unload) and save the whole model{way_out}"
    )


def refuse_foreign_weights(folder: Path) -> None:
    """Refuse weights that would load as something else: an adapter's, quantised ones, those of a wrapped model.

    Only names and types are read, and the configuration. A file that is damaged is left to whoever loads it.
    """
    refuse_adapter(folder)
    _refuse_quantised(folder)
    types = {}
    if any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")):
        for file in weight_files(folder)[0]:
            try:
                with safe_open(file, framework="pt") as stored:
                    types |= {key: stored.get_slice(key).get_dtype() for key in stored.keys()}  # noqa: SIM118
            except SafetensorError:
                return
    if wrapped := [name for name in types if _WRAPPER.search(name)]:
        raise ValueError(
            f"{folder} was saved out of a wrapper, which put {_WRAPPER.search(wrapped[0])[0]!r} into the names of "
            f"{len(wrapped)} weights ({wrapped[0]}): save the model inside the wrapper, or take this out of the names"
        )
    if other := [name for name in types if types[name] not in _READ_TYPES and not name.endswith(BUFFERS)]:
        kinds = ", ".join(sorted({_type_in_words(types[name]) for name in other}))
        raise ValueError(
            f"{folder} stores weights as {kinds} ({_some(other)}), and quantised weights are not read here: take the "
            "checkpoint in float32, bfloat16 or float16"
        )


def _refuse_quantised(folder: Path) -> None:
    """Refuse a configuration that says how its weights are quantised: transformers asks for packages to read them."""
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    for part in (config, *config.values()):  # a model of several has a configuration for each
        if isinstance(part, dict) and (how := part.get("quantization_config")):
            kind = how.get("quant_method", "an unnamed method") if isinstance(how, dict) else how
            raise ValueError(
                f"{folder} is quantised (its config.json says {kind}), and quantised weights are not read here: take "
                "the checkpoint in float32, bfloat16 or float16"
            )


def _type_in_words(name: str) -> str:
    """Safetensors' name of a type as torch writes it: F8_E4M3 is float8_e4m3."""
    letter, bits = re.fullmatch(r"([A-Z]+)(.*)", name).groups()
    return {"F": "float", "I": "int", "U": "uint", "C": "complex"}.get(letter, letter.lower()) + bits.lower()


def _some(names: Collection[str]) -> str:
    """A few of the names, and how many more there are."""
    left = len(names) - _MOST_NAMED
    return ", ".join(sorted(names)[:_MOST_NAMED]) + (f" and {left} more" if left > 0 else "")


def require_fit(
    path: str | PathLike[str], missing: Collection[str], unexpected: Collection[str], misshapen: Collection[str]
) -> None:
    """Refuse a checkpoint that lacks weights, or holds some that the model has no place for."""
    unexpected = [name for name in unexpected if not name.endswith(BUFFERS)]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    if found := [f"{kind}: {_some(names)}" for kind, names in problems.items() if names]:
        raise ValueError(f"the weights in {path} do not fit the model its configuration describes; {'; '.join(found)}")


def whole_model(
    any_class: Any,
    path: str | PathLike[str],
    *,
    dtype: "torch.dtype | None" = None,
    remedy: str = "",
    **options: Any,
) -> Any:
    """Load a model in transformers' format, all of whose weights are there and used.

    Args:
        any_class: a class with `from_pretrained`.
        path: a directory, or a name that the hub knows.
        dtype: of the parameters; as stored when left out.
        remedy: as in `loaded`.
        options: of `from_pretrained`.
    """
    from transformers.utils import cached_file

    if Path(path).is_dir():
        refuse_foreign_weights(Path(path))
    # Transformers fills what is missing or misshapen at random, and only logs it.
    options |= {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
    model, report = loaded(any_class, path, remedy=remedy, dtype=dtype or "auto", **options)
    if not Path(path).is_dir():  # a name: its files are here by now
        refuse_foreign_weights(Path(cached_file(path, "config.json")).parent)
    misshapen = [f"{name} {tuple(theirs)}, expected {tuple(ours)}" for name, theirs, ours in report["mismatched_keys"]]
    require_fit(path, report["missing_keys"], report["unexpected_keys"], misshapen)
    return model


def holds_tokenizer(folder: Path) -> bool:
    """Tell whether a folder holds the files of a Hugging Face tokenizer."""
    return any((folder / name).is_file() for name in _TOKENIZER_FILES)


def loaded_tokenizer(name_or_path: str | PathLike[str], *, remedy: str = "") -> Any:
    """Load a tokenizer that knows more than special tokens: transformers makes up one where there are no files."""
    from transformers import AutoTokenizer

    tokenizer = loaded(AutoTokenizer, name_or_path, remedy=remedy)
    if len(tokenizer.get_vocab()) <= len(tokenizer.all_special_tokens):
        raise ValueError(f"{name_or_path} holds no tokenizer, and queries can't be told apart without one; {remedy}")
    return tokenizer


def loaded(any_class: Any, path: str | PathLike[str], *, remedy: str = "", **options: Any) -> Any:
    """Load something in transformers' format; whatever is wrong with it, name the checkpoint.

    Args:
        any_class: a class with `from_pretrained`.
        path: a directory, or a name that the hub knows.
        remedy: what to do about an error.
        options: of `from_pretrained`.
    """
    what = f"can't load {path} as {any_class.__name__}"
    if Path(path).is_file():
        raise ValueError(f"{what}: it is a file; name the folder it lies in")
    try:
        with loading_quietly():
            return any_class.from_pretrained(path, trust_remote_code=False, **options)
    except (ImportError, MemoryError):  # not the checkpoint's fault
        raise
    except Exception as error:  # of any kind: the file may hold anything, and tokenizers raises Exception itself
        what += f" ({shorten(str(error) or type(error).__name__, _MOST_SAID, placeholder=' …')})"
        raise ValueError(f"{what}; {remedy}" if remedy else what) from error


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object of a checkpoint."""
    if file.parent.is_file():
        raise ValueError(f"{file.parent} is a file; name the folder it lies in")
    if not file.parent.exists():
        raise ValueError(f"{file.parent}: no such folder")
    if not file.is_file():
        raise ValueError(f"{file.parent} is not a checkpoint: there is no {file.name} in it")
    try:
        content = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:  # the latter of brackets in brackets
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
