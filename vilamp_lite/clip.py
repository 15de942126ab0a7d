"""CLIP and SigLIP checkpoints as encoders, and what every encoder does to its frames, texts and vectors."""

import os
import warnings
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedConfig
from transformers.image_utils import PILImageResampling

import vilamp_lite.tinyworld.encoder  # noqa: F401  its kind of model, for transformers
from vilamp_lite.common.checks import ArrayLike, describe
from vilamp_lite.common.hub import loaded, loaded_tokenizer, usable_device, whole_model
from vilamp_lite.common.precision import full_precision
from vilamp_lite.video.ahead import mapped_ahead

_REMEDY = (
    "pass a local directory that holds a CLIP or SigLIP checkpoint with safetensors weights, or 'conse', the encoder "
    "that needs no download"
)

_PIXELS_OF_A_THREAD = 100_000  # fewer are made sooner than a thread is


class CLIPEncoder:
    """Any CLIP or SigLIP checkpoint in the Hugging Face layout; the paper uses CLIP ViT-B/32 (Level 1, DKS).

    Weights come from safetensors only, and no code from a checkpoint is run. Frames go through the checkpoint's own
    image processor.

    Attributes:
        name: Name of the checkpoint, or of its directory.
        device: Where the model runs.
    """

    def __init__(self, name_or_path: str | Path, device: str | torch.device | None = None):
        from transformers import AutoImageProcessor, AutoModel

        self.device = usable_device(device)
        self.name = Path(name_or_path).resolve().name if Path(name_or_path).is_dir() else str(name_or_path)
        # float32 whatever the file holds: similarities near the threshold shouldn't depend on how it was saved.
        model = whole_model(AutoModel, name_or_path, dtype=torch.float32, remedy=_REMEDY)
        if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
            raise ValueError(
                f"name_or_path must be a CLIP or SigLIP checkpoint, got a {model.config.model_type} in {name_or_path}"
            )
        self._model = model.to(self.device).eval().requires_grad_(False)
        self._tokenizer = loaded_tokenizer(name_or_path, remedy=_REMEDY)
        # The same pixels on every machine: without torchvision only the PIL backend exists, with it another is default.
        self._image_processor = loaded(AutoImageProcessor, name_or_path, remedy=_REMEDY, backend="pil")

    @torch.no_grad()
    def encode_frames(self, frames: ArrayLike) -> torch.Tensor:
        """Embed RGB frames, uint8 [B, H, W, 3], as unit vectors, float32 [B, D], on the CPU."""
        side = self._model.config.vision_config.image_size
        pixels = pixels_of(frames, self._image_processor, side, self.device)
        with full_precision(self.device):
            return unit_vectors(self._model.get_image_features(pixels.to(self.device)))

    @torch.no_grad()
    def encode_text(self, texts: list[str]) -> torch.Tensor:
        """Embed Q texts as unit vectors, float32 [Q, D], on the CPU.

        A text longer than the text tower (77 tokens for CLIP, 64 for SigLIP) is cut with a warning.
        """
        inputs = text_inputs(texts, self._tokenizer, self._model.config, f"the tokenizer of {self.name}")
        with full_precision(self.device):
            inputs = {name: tensor.to(self.device) for name, tensor in inputs.items()}
            return unit_vectors(self._model.get_text_features(**inputs))


def pixels_of(frames: ArrayLike, image_processor: Any, side: int, device: torch.device | None = None) -> torch.Tensor:
    """Turn frames, uint8 [B, H, W, 3], into what an image processor makes of them, [B, 3, side, side].

    For a GPU they are made there (`resized_there`), and otherwise on the CPU by the image processor itself. A frame of
    a full-size model takes it milliseconds, mostly outside Python's lock; in one thread a model would wait.
    """
    if device is not None and device.type == "cuda" and _squares_and_scales(image_processor):
        return resized_there(frames, image_processor, device)
    frames = checked_frames(frames).cpu().numpy()

    def pixels(part: np.ndarray) -> torch.Tensor:
        return image_processor(list(part), input_data_format="channels_last", return_tensors="pt")["pixel_values"]

    threads = min(os.cpu_count() or 1, len(frames), len(frames) * side**2 // _PIXELS_OF_A_THREAD)
    if threads < 2:
        return pixels(frames)
    return torch.cat(list(mapped_ahead(pixels, np.array_split(frames, threads), threads)))


def resized_there(frames: ArrayLike, image_processor: Any, device: torch.device) -> torch.Tensor:
    """Make an image processor's pixels on the device: the frames travel as bytes, a quarter of what floats take.

    They differ from Pillow's by one grey level of 255, since its coefficients are whole numbers; for a frame somewhat
    taller than wide, such as 3:4, by a few, where Pillow resizes the other axis first.
    """
    frames = checked_frames(frames)
    if device.type == "cuda":
        frames = frames.pin_memory()  # or the copy would wait for what the device is doing
    frames = frames.to(device, non_blocking=True).movedim(-1, 1)
    size, (height, width) = image_processor.size, frames.shape[2:]
    if size.shortest_edge:
        short = min(height, width)
        height, width = (int(size.shortest_edge * edge / short) for edge in (height, width))
    else:
        height, width = size.height, size.width
    # Pillow's two passes each end in bytes. It takes the rows of a tall frame first; from where on, as found by trying.
    rows_first = height < frames.shape[2] and 1.4 * height * frames.shape[3] < frames.shape[2] * width
    pixels = frames.float()
    for shape in ((height, frames.shape[3]) if rows_first else (frames.shape[2], width), (height, width)):
        pixels = F.interpolate(pixels, shape, mode="bicubic", antialias=True).round_().clamp_(0, 255)
    if image_processor.do_center_crop:
        crop = image_processor.crop_size
        top, left = (height - crop.height) // 2, (width - crop.width) // 2
        pixels = pixels[..., top : top + crop.height, left : left + crop.width]
    mean, deviation = (
        torch.tensor(values, device=device)[:, None, None]
        for values in (image_processor.image_mean, image_processor.image_std)
    )
    return (pixels * image_processor.rescale_factor - mean) / deviation


def _squares_and_scales(image_processor: Any) -> bool:
    """Tell whether an image processor does what `resized_there` does, as CLIP's and SigLIP's own do."""
    steps = (image_processor.do_resize, image_processor.do_rescale, image_processor.do_normalize)
    return all(steps) and not image_processor.do_pad and image_processor.resample == PILImageResampling.BICUBIC


def text_inputs(texts: list[str], tokenizer: Any, config: PreTrainedConfig, whose: str) -> dict[str, torch.Tensor]:
    """Turn Q texts into what the text tower of a CLIP or SigLIP with this configuration reads, int64 [Q, L] each.

    `whose` names the tokenizer in an error.
    """
    # SigLIP was trained on texts padded to full length, whose padding it attends to: it gets no mask.
    is_siglip = config.model_type.startswith("siglip")
    text = config.text_config
    tokens = tokenize(tokenizer, texts, text.max_position_embeddings, "max_length" if is_siglip else True)
    require_vocabulary(whose, tokens["input_ids"], text.vocab_size)
    # CLIP takes the features of the end token; of texts without it, those of their first token, which is always the
    # same. Configurations of old name 2 in its place, and CLIP then takes the largest token.
    ends = (
        config.model_type != "clip" or text.eos_token_id == 2 or (tokens["input_ids"] == text.eos_token_id).any(1).all()
    )
    if not ends:
        raise ValueError(f"{whose} is not this model's: it does not end a text with token {text.eos_token_id}")
    return {name: tokens[name] for name in ("input_ids", "attention_mask")[: 1 if is_siglip else 2]}


def require_vocabulary(whose: str, ids: torch.Tensor, size: int) -> None:
    """Refuse another model's tokenizer before it leads to a number outside the table of embeddings."""
    if ids.max() >= size:
        raise ValueError(f"{whose} is not this model's: it makes token {int(ids.max())}, the vocabulary has {size}")


def checked_frames(frames: ArrayLike) -> torch.Tensor:
    """Frames as a uint8 tensor [B, H, W, 3]."""
    if isinstance(frames, np.ndarray) and frames.dtype == np.uint8:
        frames = torch.from_numpy(np.require(frames, requirements="CW"))  # torch warns about read-only arrays
    if not isinstance(frames, torch.Tensor) or frames.dtype != torch.uint8:
        raise ValueError(f"frames must be a uint8 array or tensor [B, H, W, 3], got {describe(frames)}")
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.numel() == 0:
        raise ValueError(f"frames must be non-empty and of shape [B, H, W, 3], got {describe(frames)}")
    return frames


def tokenize(tokenizer: Any, texts: list[str], max_tokens: int, padding: bool | str) -> Any:
    """Tokenise texts for a text tower of `max_tokens`, int64 [Q, L], and warn where one has to be cut."""
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) and t.strip() for t in texts):
        raise ValueError(f"texts must be a non-empty list of non-empty strings, got {describe(texts)}")
    for text, ids in zip(texts, tokenizer(texts, truncation=False, verbose=False)["input_ids"], strict=True):
        if len(ids) > max_tokens:
            warnings.warn(
                f"the text tower reads {max_tokens} tokens: the last {len(ids) - max_tokens} were dropped from "
                f"{shorten(text, 60)!r}",
                stacklevel=5,  # the caller of encode_text, past torch.no_grad's wrapper
            )
    return tokenizer(texts, truncation=True, max_length=max_tokens, padding=padding, return_tensors="pt")


def unit_vectors(features: Any) -> torch.Tensor:
    """Normalise, on the CPU; transformers' models wrap what their `get_*_features` return, TinyWorld's does not."""
    features = features if torch.is_tensor(features) else features.pooler_output
    return F.normalize(features.float(), dim=-1).cpu()
