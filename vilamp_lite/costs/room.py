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
_RUNTIME = 1_000_000_000  # bytes of libraries, of two batches' pictures (256 MB each at most) and of their pixels


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
        (what, finding) for the model, its context, its tokenizers, the device, memory, a GPU's host's, and disk.

    Raises:
        ValueError: one of them won't do; the message says how much is lacking, and what to change.
    """
    import torch

    from vilamp_lite.checkpoints import load_config, load_processor, require_weights

    config = load_config(model)
    size = sum(file.stat().st_size for file in weight_files(model)[0])
    workload = Workload(num_frames, dtype=dtype)
    config.require_room(num_frames, workload.prompt_tokens, workload.answer_tokens)
    tokens = config.visual_tokens(num_frames)
    place = usable_device(device)

    running, loading = _memory_needed(config, workload, size)
    host, name = psutil.virtual_memory().available, f"{psutil.cpu_count()} CPU cores"
    memory = [("memory", name, max(running, loading), host)]
    if place.type == "cuda":
        name = torch.cuda.get_device_name(place)
        memory = [("memory", name, running, torch.cuda.mem_get_info(place)[0])]
        memory.append(("host memory", "this machine, beside the GPU,", loading, host))
    for _, whose, needed, free in memory:
        if needed > free:
            raise ValueError(
                f"{whose} has {free / 1e9:.1f} GB free and {num_frames:,} frames in {dtype} need "
                f"{needed / 1e9:.1f} GB: stop what else runs there, sample fewer frames, or take a larger device"
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
    require_weights(model, config)
    words = load_processor(model, config, tokenizer=tokenizer, selector_tokenizer=selector_tokenizer)
    return [
        ("checkpoint", f"{config.model_type} in {model}, {size / 1e9:.3g} GB"),
        ("context", f"{tokens:,} visual tokens of {config.text_config.max_position_embeddings:,} positions"),
        ("tokenizers", f"{len(words.tokenizer):,} words, the selector's {len(words.selector_tokenizer):,}"),
        ("device", f"{place}, {name}"),
        *((what, f"{needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free") for what, _, needed, free in memory),
        ("disk", f"{wanted / 1e9:.2g} GB needed, {left / 1e9:.1f} GB free"),
    ]


def _memory_needed(config: "ViLaMPConfig", workload: Workload, size: int) -> tuple[float, float]:
    """Bytes where the model runs; and on this machine, to load its weights, `size` bytes on disk, and to make pixels.

    By `costs` for the published shapes; the miniature's are few beside the libraries' own.
    """
    if config.selector_config.model_type == "tinyworld":
        return 2 * size + _RUNTIME, 2 * size + _RUNTIME
    costs = vilamp_costs(config, workload)
    # The whole model is here in its own type before it goes to a GPU; the files are mapped, not copied.
    return _MARGIN * costs.peak_memory, costs.weights + _RUNTIME
