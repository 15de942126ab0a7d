"""A video file through the model's two passes, in bounded memory."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from vilamp_lite.common.progress import progress_bar
from vilamp_lite.configuration import ViLaMPConfig
from vilamp_lite.video.ahead import made_ahead
from vilamp_lite.video.source import FrameBatch, FrameStream, frames_at, stream_frames

if TYPE_CHECKING:
    from vilamp_lite.modeling import MixedPrecisionSequence


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
        return torch.cat(self._pieces) if torch.is_grad_enabled() else self._pieces[0][: self._count]


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


class VideoEncoding:
    """The part of the model that turns a video file into its mixed-precision sequence."""

    def distill(
        self,
        frame_embeds: torch.Tensor,
        patch_batches: Iterable[torch.Tensor],
        patches_at: Callable[[int], torch.Tensor],
        query_embed: torch.Tensor,
    ) -> "MixedPrecisionSequence":
        """Take both levels on one video: choose the keyframes, then merge the other frames a batch at a time.

        Args:
            frame_embeds: [N, query_size] of the selector.
            patch_batches: the N frames' patches in order, [B, M, D_v] each.
            patches_at: gives one frame's patches [M, D_v], for a frame that earlier ones refer to.
            query_embed: [query_size].

        Raises:
            ValueError: no frame is a keyframe, or as `mix_tokens`.
        """
        keyframes = self.select(frame_embeds, query_embed.to(frame_embeds.device)).indices
        read_ahead = {frame: patches_at(frame) for frame in self.early_references(len(frame_embeds), keyframes)}
        return self.mix_tokens(patch_batches, len(frame_embeds), keyframes, query_embed, read_ahead)

    @torch.no_grad()
    def encode_video(
        self,
        source: str | PathLike[str],
        query: str,
        processor: FrameProcessor,
        *,
        fps: float | None = None,
        max_frames: int | None = None,
        batch_size: int | None = None,
    ) -> "MixedPrecisionSequence":
        """Stream a video file into its mixed-precision sequence, in two passes: the selector's, then the patches'.

        A first keyframe that is not the first frame is read ahead, which decodes the file up to it once more. Memory:
        two batches of frames, one selector embedding per frame, the patches of reference frames (see `mix_tokens`), and
        the tokens.

        Args:
            source: the video file.
            query: what the keyframes should be relevant to; the bare question.
            processor: makes pixels and query tokens, such as `ViLaMPProcessor`.
            fps: frames sampled per second; the configuration's when left out.
            max_frames: the most frames to sample, spread over the video.
            batch_size: frames decoded and encoded at a time, `frames_at_once` when left out; it changes the result only
                by rounding.

        Raises:
            ValueError: bad sampling options, more tokens than the language model's context holds (before anything is
                decoded), or no frame is a keyframe.
            VideoError: the file can't be read, or not to its end.
        """
        sampling = {
            "fps": self.config.fps if fps is None else fps,
            "max_frames": max_frames,
            "batch_size": frames_at_once(self.config) if batch_size is None else batch_size,
        }
        stream = stream_frames(source, **sampling)
        self.config.require_room(stream.num_frames)
        query_embed = self.embed_query(**processor.selector_query([query]))[0]

        frame_embeds, timestamps = KeptRows(stream.num_frames), KeptRows(stream.num_frames)
        for batch, pixels in prepared(stream, "decode, select", processor.selector_pixels):
            frame_embeds.add(self.embed_frames(pixels).cpu())
            timestamps.add(torch.from_numpy(batch.timestamps))
        second_pass = prepared(stream_frames(source, **sampling), "decode, encode", processor.vision_pixels)
        batches = (self.patch_features(pixels) for _, pixels in second_pass)
        sequence = self.distill(
            frame_embeds.rows,
            batches,
            lambda frame: self.patch_features(processor.vision_pixels(frames_at(source, [frame], **sampling)))[0],
            query_embed,
        )
        return replace(sequence, timestamps=timestamps.rows.numpy())
