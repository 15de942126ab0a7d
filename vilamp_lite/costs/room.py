"""What a long run needs, looked at before it starts: checkpoint, tokenizers, device, memory, disk."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from vilamp_lite.common.hub import usable_device, weight_files
from vilamp_lite.costs.shapes import BYTES, Workload
from vilamp_lite.costs.vilamp import vilamp_costs

if TYPE_CHECKING:
    from vilamp_lite.configuration import ViLaMPConfig

VIDEO_BYTES = 10_000  # of a TinyWorld frame on disk: 4.4 kB, twice while its parts are joined
_MARGIN = 1.1  # of memory: an allocator's reserve, a kernel's workspace
_CPU_RUNTIME = 1_000_000_000  # bytes of libraries and of a batch


def preflight(
    model: Path,
    num_frames: int,
    *,
    device: str,
    dtype: str,
    folder: Path,
    store: bool = False,
    tokenizer: str | None = None,
    selector_tokenizer: str | None = None,
) -> list[tuple[str, str]]:
    """Check that a run can begin, and say what it needs and what there is.

    Args:
        model: a checkpoint directory, ours or in the authors' format.
        num_frames: N.
        device: where it shall run, such as "cpu" or "cuda".
        dtype: of the weights: "bfloat16", "float16" or "float32".
        folder: where the video is made, and the features' store.
        store: whether features are stored.
        tokenizer: as in `load_processor`, like `selector_tokenizer`.
        selector_tokenizer: for a checkpoint that holds none.

    Returns:
        (what, finding) for the model, its context, its tokenizers, the device, memory and disk.

    Raises:
        ValueError: one of them won't do; the message says how much is lacking, and what to change.
    """
    import torch

    from vilamp_lite.checkpoints import load_config, load_processor

    config = load_config(model)
    size = sum(file.stat().st_size for file in weight_files(model)[0])
    workload = Workload(num_frames, dtype=dtype)
    config.require_room(num_frames, workload.prompt_tokens, workload.answer_tokens)
    tokens = config.visual_tokens(num_frames)
    place = usable_device(device)

    needed = _memory_needed(config, workload, size)
    if place.type == "cuda":
        free, name = torch.cuda.mem_get_info(place)[0], torch.cuda.get_device_name(place)
    else:
        free, name = psutil.virtual_memory().available, f"{psutil.cpu_count()} CPU cores"
    if needed > free:
        raise ValueError(
            f"{name} has {free / 1e9:.1f} GB free and {num_frames:,} frames in {dtype} need {needed / 1e9:.1f} GB: "
            "stop what else runs there, sample fewer frames, or take a larger device"
        )
    wanted = num_frames * VIDEO_BYTES
    if store:
        wanted += num_frames * config.num_patches * config.vision_config.hidden_size * BYTES["float16"]
    there = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    left = shutil.disk_usage(there).free
    if wanted > left:
        raise ValueError(
            f"{there} has {left / 1e9:.1f} GB free and {wanted / 1e9:.1f} GB are needed: make room, or name a folder "
            "elsewhere"
        )
    words = load_processor(model, config, tokenizer=tokenizer, selector_tokenizer=selector_tokenizer)
    return [
        ("checkpoint", f"{config.model_type} in {model}, {size / 1e9:.3g} GB"),
        ("context", f"{tokens:,} visual tokens of {config.text_config.max_position_embeddings:,} positions"),
        ("tokenizers", f"{len(words.tokenizer):,} words, the selector's {len(words.selector_tokenizer):,}"),
        ("device", f"{place}, {name}"),
        ("memory", f"{needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free"),
        ("disk", f"{wanted / 1e9:.2g} GB needed, {left / 1e9:.1f} GB free"),
    ]


def _memory_needed(config: "ViLaMPConfig", workload: Workload, size: int) -> float:
    """Bytes: by `costs` for the published shapes; the miniature's are few beside the libraries' own."""
    if config.selector_config.model_type == "tinyworld":
        return 2 * size + _CPU_RUNTIME
    return _MARGIN * vilamp_costs(config, workload).peak_memory
