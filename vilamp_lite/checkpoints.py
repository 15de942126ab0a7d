"""Checkpoints into this model: its own, the authors' format, and any LLaVA-OneVision.

Weights are read from safetensors only, and no code from a checkpoint is run.
"""

from collections.abc import Collection, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    GenerationConfig,
    LlavaOnevisionForConditionalGeneration,
)

import vilamp_lite.tinyworld.encoder  # noqa: F401  its kind of model, for transformers
from vilamp_lite.common.hub import (
    BUFFERS,
    holds_tokenizer,
    loaded,
    read_json,
    read_safetensors,
    refuse_adapter,
    require_fit,
    usable_device,
    weight_shapes,
    whole_model,
)
from vilamp_lite.common.progress import loading_quietly
from vilamp_lite.configuration import ViLaMPConfig, refuse_temperature
from vilamp_lite.modeling import ViLaMPForConditionalGeneration, differential_merger
from vilamp_lite.processing import SELECTOR_FOLDER, ViLaMPProcessor
from vilamp_lite.released import RELEASED_NAMES, refuse_plain_onevision, released_config, selector_folders

_ONEVISION_NAMES = {
    "model.vision_tower.vision_model.": "vision_tower.",
    "model.vision_tower.": "vision_tower.",
    "model.multi_modal_projector.linear_1.": "keyframe_connector.0.",
    "model.multi_modal_projector.linear_2.": "keyframe_connector.2.",
    "model.image_newline": "video_newline",
    "model.language_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
}


def load_checkpoint(
    path: str | PathLike[str], *, dtype: torch.dtype | None = None, config: ViLaMPConfig | None = None, **changes: Any
) -> ViLaMPForConditionalGeneration:
    """Load a checkpoint directory, whether `save_pretrained` or the authors' code wrote it; for evaluation, on the CPU.

    Args:
        path: the directory.
        dtype: of the parameters; as stored when left out.
        config: what `load_config` read of it, to spare reading it again; without changes then.
        changes: fields of the configuration to set otherwise.
    """
    if _kind(path) == "llava_qwen":
        return load_released_checkpoint(path, dtype=dtype, config=config, **changes)
    config = config or load_config(path, **changes)
    return whole_model(ViLaMPForConditionalGeneration, path, dtype=dtype, config=config).eval()


def load_config(path: str | PathLike[str], **changes: Any) -> ViLaMPConfig:
    """Read the configuration of a checkpoint directory of either kind, with some fields set otherwise."""
    if _kind(path) == "llava_qwen":
        return released_config(path, **changes)
    if _kind(path) != "vilamp":
        raise ValueError(
            f"{path} holds a {_kind(path)}; read here are 'vilamp' and the authors' 'llava_qwen' "
            "(from_llava_onevision turns a LLaVA-OneVision into a ViLaMP)"
        )
    refuse_temperature(changes)
    return ViLaMPConfig.from_dict(loaded(ViLaMPConfig, path).to_dict() | changes)


def load_processor(
    path: str | PathLike[str],
    config: ViLaMPConfig,
    *,
    tokenizer: str | PathLike[str] | None = None,
    selector_tokenizer: str | PathLike[str] | None = None,
) -> ViLaMPProcessor:
    """Load the processor of a checkpoint directory of either kind; it shares the model's configuration.

    A checkpoint that holds no tokenizers takes them by directory or name, the selector's from a CLIP ViT-B/32, say.
    """
    path = Path(path)
    if selector_tokenizer is None and not (path / SELECTOR_FOLDER).is_dir():
        folders = selector_folders(path, read_json(path / "config.json"))
        selector_tokenizer = next((folder for folder in folders if holds_tokenizer(folder)), None)
    return ViLaMPProcessor.from_pretrained(path, config, tokenizer=tokenizer, selector_tokenizer=selector_tokenizer)


class Checkpoint:
    """A checkpoint in two steps: configuration and processor at once; the weights, which may take minutes, by `load`.

    Attributes:
        path: the directory; None for a tiny model with random weights, whose tokens are bytes, to try the way.
        processor: shares its configuration with the model.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        tokenizer: str | PathLike[str] | None = None,
        selector_tokenizer: str | PathLike[str] | None = None,
        **changes: Any,
    ) -> None:
        """Read all but the weights; the arguments are those of `load_config` and `load_processor`."""
        self.path = path
        if path is not None:
            names = {"tokenizer": tokenizer, "selector_tokenizer": selector_tokenizer}
            self.processor = load_processor(path, load_config(path, **changes), **names)
        elif tokenizer or selector_tokenizer:
            raise ValueError("random weights have their own tokenizers, of bytes: leave out yours")
        else:
            self.processor = ViLaMPProcessor.byte_level(ViLaMPConfig.tiny(**changes))

    @property
    def config(self) -> ViLaMPConfig:
        """The one configuration of processor and model."""
        return self.processor.config

    def load(
        self, device: str | torch.device | None = None, dtype: torch.dtype | None = None
    ) -> ViLaMPForConditionalGeneration:
        """Load the weights, in their own type or another, to where they shall run: a GPU if there is any."""
        place = usable_device(device)
        if self.path is not None:
            model = load_checkpoint(self.path, dtype=dtype, config=self.config)
        else:
            torch.manual_seed(0)
            model = ViLaMPForConditionalGeneration(self.config).eval().to(dtype)
            model.selector.float()  # as a loaded one is
        self.processor.config = model.config  # transformers loads with a copy
        return model.to(place)


def load_released_checkpoint(
    path: str | PathLike[str], *, dtype: torch.dtype | None = None, config: ViLaMPConfig | None = None, **changes: Any
) -> ViLaMPForConditionalGeneration:
    """Load a checkpoint in the authors' format: their config.json, parameter names and (sharded) safetensors.

    CLIP's configuration is sought where config.json says, inside the checkpoint or on this machine, and is ViT-B/32
    otherwise; the vision tower's is siglip-config.json, or SigLIP-so400m/14-384. Neither's own weights are needed:
    they are in the checkpoint.

    Args:
        path: the directory.
        dtype: of the parameters; as stored when left out.
        config: as in `load_checkpoint`.
        changes: fields of `ViLaMPConfig.released()` to set otherwise, such as `reference="preceding"`.

    Returns:
        The model, in evaluation mode, on the CPU.

    Raises:
        ValueError: not such a directory, a setting of the released code that is not reproduced here, or weights that
            are missing, left over, or of the wrong shape.
    """
    path = Path(path)
    config = config or released_config(path, **changes)
    weights = _with_our_names(read_safetensors(path))
    model = _assembled(config, weights, path, dtype)
    if (path / "generation_config.json").is_file():
        model.generation_config = loaded(GenerationConfig, path)
    return model


def from_llava_onevision(
    path: str | PathLike[str],
    *,
    selector: str | PathLike[str],
    dtype: torch.dtype | None = None,
    seed: int = 0,
    **changes: Any,
) -> ViLaMPForConditionalGeneration:
    """Turn a LLaVA-OneVision checkpoint into a ViLaMP, ready to be trained.

    Vision tower, projector, language model and newline are taken over. The new parts start neutral: MLP_n is a copy of
    MLP_k, and the merge a plain mean of the patches (`DifferentialMerger.start_neutral`; this takes learned maps for
    redundancy too, where `ViLaMPConfig.paper()` compares raw patches).

    Args:
        path: a LLaVA-OneVision checkpoint in transformers' format, a directory or a name.
        selector: a CLIP-like checkpoint that embeds frames and queries, a directory or a name.
        dtype: of the parameters but the selector's, which stay float32; as stored when left out.
        seed: of the new maps' random weights.
        changes: fields of `ViLaMPConfig` to set otherwise.

    Returns:
        The model, in evaluation mode, on the CPU.

    Raises:
        ValueError: a checkpoint that can't be loaded or has another layout, or a change that can't start neutral.
    """
    kind = _kind(path) if Path(path).is_dir() else loaded(AutoConfig, path).model_type
    if kind == "llava_qwen":
        refuse_plain_onevision(Path(path))
    if kind != "llava_onevision":
        raise ValueError(f"{path} must hold a LLaVA-OneVision, got a {kind}")
    theirs = whole_model(LlavaOnevisionForConditionalGeneration, path, dtype=dtype)
    chooser = whole_model(
        AutoModel, selector, dtype=torch.float32
    )  # the model keeps its selector so, whatever its own type
    settings = theirs.config
    if not isinstance(settings.vision_feature_layer, int):
        raise ValueError(f"{path}: several vision feature layers ({settings.vision_feature_layer}) are not supported")
    config = ViLaMPConfig.paper(
        **{
            "vision_config": settings.vision_config.to_dict(),
            "text_config": settings.text_config.to_dict(),
            "selector_config": chooser.config.to_dict(),
            "vision_feature_layer": settings.vision_feature_layer,
            "projector_hidden_act": settings.projector_hidden_act,
            "video_token_id": settings.video_token_id,
            "merge_redundancy": "mapped",
        }
        | changes
    )
    merger = differential_merger(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        merger.start_neutral()
    weights = {_renamed(name, _ONEVISION_NAMES): tensor for name, tensor in theirs.state_dict().items()}
    weights |= {f"selector.{name}": tensor for name, tensor in chooser.state_dict().items()}
    weights |= {f"merger.{name}": tensor for name, tensor in merger.state_dict().items()}
    if config.connectors == "dual":
        weights |= {
            name.replace("keyframe_connector", "own_merged_connector"): tensor.clone()
            for name, tensor in weights.items()
            if name.startswith("keyframe_connector")
        }
    model = _assembled(config, weights, path, dtype)
    model.generation_config = theirs.generation_config
    return model


def require_weights(path: str | PathLike[str], config: ViLaMPConfig) -> None:
    """Refuse a checkpoint directory of either kind without the model's weights; only headers of its files are read.

    Args:
        path: the directory.
        config: what `load_config` read of it.

    Raises:
        ValueError: weights that are missing, left over, or of the wrong shape.
    """
    shapes = weight_shapes(path)
    _require_weights(config, _with_our_names(shapes) if _kind(path) == "llava_qwen" else shapes, path)


def _require_weights(
    config: ViLaMPConfig, shapes: Mapping[str, tuple[int, ...]], path: str | PathLike[str]
) -> Collection[str]:
    """Hold weights against the model that a configuration describes; return the names that need none: tied ones."""
    with torch.device("meta"):
        skeleton = ViLaMPForConditionalGeneration(config)
    tied = skeleton.all_tied_weights_keys
    expected = {name: tuple(tensor.shape) for name, tensor in skeleton.state_dict().items() if name not in tied}
    misshapen = [
        f"{name} {shapes[name]}, expected {shape}"
        for name, shape in expected.items()
        if name in shapes and shapes[name] != shape
    ]
    require_fit(path, set(expected) - set(shapes), set(shapes) - set(expected) - set(tied), misshapen)
    return tied


def _with_our_names(released: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint of the authors holds, by this model's names; not the buffers among it."""
    return {_renamed(name, RELEASED_NAMES): held for name, held in released.items() if not name.endswith(BUFFERS)}


def _renamed(name: str, names: Mapping[str, str]) -> str:
    """Replace the first beginning that fits."""
    for theirs, ours in names.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def _assembled(
    config: ViLaMPConfig, weights: dict[str, torch.Tensor], path: str | PathLike[str], dtype: torch.dtype | None
) -> ViLaMPForConditionalGeneration:
    """Build the model from its weights, or say everything that doesn't fit."""
    tied = _require_weights(config, {name: tuple(tensor.shape) for name, tensor in weights.items()}, path)
    weights = {name: tensor for name, tensor in weights.items() if name not in tied}
    dtype = dtype or weights["keyframe_connector.0.weight"].dtype
    with loading_quietly():
        model = ViLaMPForConditionalGeneration.from_pretrained(None, config=config, state_dict=weights, dtype=dtype)
    return model.eval()


def _kind(path: str | PathLike[str]) -> str | None:
    refuse_adapter(Path(path))
    return read_json(Path(path) / "config.json").get("model_type")
