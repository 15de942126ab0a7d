"""A video through the model's two passes, in bounded memory."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, nullcontext
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
import torch

from vilamp_lite.common.progress import progress_bar, stage
from vilamp_lite.configuration import ViLaMPConfig
from vilamp_lite.video.ahead import ClosableIterator, made_ahead
from vilamp_lite.video.source import FrameBatch, FrameSource, sampled

if TYPE_CHECKING:
    from vilamp_lite.modeling import MixedPrecisionSequence

Prepared = TypeVar("Prepared")


def frames_at_once(config: ViLaMPConfig, device: torch.device | None = None) -> int:
    """Frames that go through the vision tower together: 8, or 32 on a GPU and where a frame is 16 patches or fewer.

    Their activations are all that a tower holds.
    """
    on_gpu = device is not None and device.type == "cuda"
    return 32 if on_gpu or config.num_patches <= 16 else 8


class FrameProcessor(Protocol):
    """What `encode_video` needs of a processor; `ViLaMPProcessor` has it."""

    def vision_pixels(self, frames: np.ndarray, device: torch.device | None = None) -> torch.Tensor:
        """Turn uint8 [B, H, W, 3] into the vision tower's pixels [B, 3, h, w], for a model on this device."""
        ...

    def selector_pixels(self, frames: np.ndarray, device: torch.device | None = None) -> torch.Tensor:
        """Turn uint8 [B, H, W, 3] into the selector's pixels [B, 3, h, w], for a model on this device."""
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
    batches: ClosableIterator[FrameBatch], num_frames: int, doing: str, prepare: Callable[[np.ndarray], Prepared]
) -> Iterator[tuple[FrameBatch, Prepared]]:
    """Yield batches and what is made of their frames, such as pixels, under a progress bar.

    A thread makes the next ones meanwhile, unless somebody measures the stages.

    Args:
        batches: one pass over a source; closed at the end.
        num_frames: in all of them; more or fewer are an error.
        doing: what is being done.
        prepare: makes something of uint8 [B, H, W, 3].
    """

    def made() -> Iterator[tuple[FrameBatch, Prepared]]:
        count = 0
        with closing(batches) if hasattr(batches, "close") else nullcontext():
            while True:
                with stage("decode"):
                    batch = next(batches, None)
                count += 0 if batch is None else len(batch.frames)
                if count > num_frames or (batch is None and count < num_frames):
                    more = "more" if count > num_frames else count
                    raise ValueError(f"the source must give its {num_frames} frames in every pass, got {more}")
                if batch is None:
                    return
                with stage("resizing"):
                    ready = prepare(batch.frames)
                yield batch, ready

    with progress_bar(num_frames, "frames", doing) as bar:
        for batch, ready in made_ahead(made()):
            yield batch, ready
            bar.update(len(batch.indices))


class VideoEncoding:
    """The part of the model that turns a video into its mixed-precision sequence."""

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
        """
        with stage("selection"):
            keyframes = self.select(frame_embeds, query_embed.to(frame_embeds.device)).indices
        with stage("patches and merging"):
            read_ahead = {frame: patches_at(frame) for frame in self.early_references(len(frame_embeds), keyframes)}
            return self.mix_tokens(patch_batches, len(frame_embeds), keyframes, query_embed, read_ahead)

    @torch.no_grad()
    def encode_video(
        self,
        video: str | PathLike[str] | FrameSource,
        query: str,
        processor: FrameProcessor,
        *,
        fps: float | None = None,
        max_frames: int | None = None,
        batch_size: int | None = None,
    ) -> "MixedPrecisionSequence":
        """Stream a video into its mixed-precision sequence, in two passes: the selector's, then the patches'.

        A first keyframe that is not the first frame is read ahead, which decodes the file up to it once more. Memory:
        two batches of frames, one selector embedding per frame, the patches of reference frames (see `mix_tokens`), and
        the tokens.

        Args:
            video: a file, or any source of frames, such as a `SampledVideo`.
            query: what the keyframes should be relevant to; the bare question.
            processor: makes pixels and query tokens, such as `ViLaMPProcessor`.
            fps: frames sampled per second of a file; the configuration's when left out.
            max_frames: the most frames to sample of a file, spread over it.
            batch_size: frames decoded and encoded at a time, `frames_at_once` when left out; it changes the result only
                by rounding.

        Raises:
            ValueError: more tokens than the language model's context holds (before anything is decoded), or no frame is
                a keyframe.
            VideoError: the file can't be read, or not to its end.
        """
        with stage("probe"):
            source = sampled(video, default_fps=self.config.fps, fps=fps, max_frames=max_frames)
            self.config.require_room(source.num_frames)
        batch_size = frames_at_once(self.config, self.device) if batch_size is None else batch_size
        frame_embeds, timestamps = KeptRows(source.num_frames), KeptRows(source.num_frames)

        def one_pass(doing: str, pixels: Callable[[np.ndarray, torch.device], torch.Tensor]) -> Iterator:
            batches = source.batches(batch_size)
            return prepared(batches, source.num_frames, doing, lambda frames: pixels(frames, self.device))

        def patches_at(frame: int) -> torch.Tensor:
            with stage("decode"):
                picture = source.at([frame])
            with stage("resizing"):
                pixels = processor.vision_pixels(picture, self.device)
            return self.patch_features(pixels)[0]

        with stage("selector embedding"):
            query_embed = self.embed_query(**processor.selector_query([query]))[0]
            for batch, pixels in one_pass("decode, select", processor.selector_pixels):
                frame_embeds.add(self.embed_frames(pixels))
                timestamps.add(torch.from_numpy(batch.timestamps))
        patches = (self.patch_features(pixels) for _, pixels in one_pass("decode, encode", processor.vision_pixels))
        sequence = self.distill(frame_embeds.rows.cpu(), patches, patches_at, query_embed)
        return replace(sequence, timestamps=timestamps.rows.numpy())
