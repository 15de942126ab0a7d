"""A video file through the model's two passes, in bounded memory."""

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Protocol

import numpy as np
import torch

from vilamp_lite.common.progress import progress_bar
from vilamp_lite.configuration import ViLaMPConfig
from vilamp_lite.video.ahead import made_ahead
from vilamp_lite.video.source import FrameBatch, FrameStream


def frames_at_once(config: ViLaMPConfig) -> int:
    """Frames that go through the towers together: 8, or 32 where a frame is 16 patches or fewer, as in the miniature.

    Their activations are all that a tower holds.
    """
    return 8 if config.num_patches > 16 else 32


class FrameProcessor(Protocol):
    """What `encode_video` needs of a processor; `ViLaMPProcessor` has it."""

    def vision_pixels(self, frames: np.ndarray) -> torch.Tensor:
        """Turn uint8 [B, H, W, 3] into the vision tower's pixels [B, 3, h, w]."""
        ...

    def selector_pixels(self, frames: np.ndarray) -> torch.Tensor:
        """Turn uint8 [B, H, W, 3] into the selector's pixels [B, 3, h, w]."""
        ...

    def selector_query(self, queries: list[str]) -> dict[str, torch.Tensor]:
        """Turn queries into `query_input_ids` and, where the selector takes one, `query_attention_mask`."""
        ...


class KeptRows:
    """Rows [n, …] that come in pieces and are kept, `length` in all.

    Without gradients they go into one block from the start. Small tensors that stay, between large ones that go, keep
    an allocator from using the large ones' places again: memory then grows with the video after all.
    """

    def __init__(self, length: int) -> None:
        self._length, self._count = length, 0
        self._pieces: list[torch.Tensor] = []

    def add(self, rows: torch.Tensor) -> None:
        """Keep rows behind the others."""
        if torch.is_grad_enabled():
            self._pieces.append(rows)
            return
        if not self._pieces:
            self._pieces.append(rows.new_empty(self._length, *rows.shape[1:]))
        self._pieces[0][self._count : self._count + len(rows)] = rows
        self._count += len(rows)

    @property
    def rows(self) -> torch.Tensor:
        """All of them."""
        return torch.cat(self._pieces) if len(self._pieces) > 1 else self._pieces[0]


def prepared(
    stream: FrameStream, doing: str, prepare: Callable[[np.ndarray], torch.Tensor]
) -> Iterator[tuple[FrameBatch, torch.Tensor]]:
    """Yield a stream's batches and their pixels under a progress bar; a thread makes the next ones."""

    def made() -> Iterator[tuple[FrameBatch, torch.Tensor]]:
        with closing(stream):
            for batch in stream:
                yield batch, prepare(batch.frames)

    with progress_bar(stream.num_frames, "frames", doing) as bar:
        for batch, pixels in made_ahead(made()):
            yield batch, pixels
            bar.update(len(batch.indices))
