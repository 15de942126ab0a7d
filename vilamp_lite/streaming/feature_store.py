"""Encode a video once, ask any number of questions: what no question changes, kept on disk.

    STORE/manifest.json                        what all shards were made of: video, sampling, model, type
    STORE/frames-00000-CHECKSUM.safetensors    selector embeddings, float32 [B, query_size]; timestamps, float64 [B]
    STORE/patches-00000-CHECKSUM.safetensors   patch features, [B, M, D_v]

A question then takes selection, merging and the language model alone. A patch in half precision is all the disk that
counts: a frame takes 729 · 1152 · 2 bytes = 1.7 MB with the paper's model.

A file is written whole beside the others and then renamed, so a kill at any moment leaves the shards before it as they
are. Its name holds the checksum of its bytes and of the manifest: what is cut short, altered, or of another store shows
itself, and `encode` makes it anew.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from itertools import count
from math import ceil
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import safetensors.torch
import torch
from safetensors import safe_open

from vilamp_lite.common.checks import require_finite
from vilamp_lite.common.files import LOCK, UNFINISHED, alone_in, clear_unfinished, written_whole
from vilamp_lite.common.fingerprints import file_sha256, tensors_fingerprint
from vilamp_lite.common.progress import progress_bar
from vilamp_lite.common.text import require_text
from vilamp_lite.generation import answer
from vilamp_lite.modeling import MixedPrecisionSequence, ViLaMPForConditionalGeneration
from vilamp_lite.processing import ViLaMPProcessor
from vilamp_lite.streaming.encode import FrameProcessor, frames_at_once, prepared
from vilamp_lite.video.ahead import mapped_ahead
from vilamp_lite.video.source import SampledVideo, sampled

FRAMES_PER_SHARD = 32  # a multiple of `frames_at_once`; 54 MB with the paper's model
STORED_TYPES = (torch.float16, torch.bfloat16, torch.float32)
_KINDS = ("frames", "patches")
_READERS = 4  # threads, each with a shard in memory
_MADE_OF = {"video", "fps", "max_frames", "num_frames", "dtype", "weights", "vision_feature_layer", "pixels"}
_MANIFEST = "manifest.json"
_SHARD_NAME = re.compile(r"(frames|patches)-(\d{5,})-[0-9a-f]{16}\.safetensors")
_Shard = tuple[str, int]  # kind and number
# What this process has looked through: shards, by device and inode, and models' towers.
_INTACT: dict[tuple[int, int], tuple[int, int, str, str]] = {}
_TOWERS: WeakKeyDictionary[ViLaMPForConditionalGeneration, tuple[list[tuple[Any, ...]], str]] = WeakKeyDictionary()


@dataclass(frozen=True)
class StoreSummary:
    """What a store holds.

    Attributes:
        num_frames: N.
        shards: of up to `FRAMES_PER_SHARD` frames each.
        num_bytes: of all shards together.
        dtype: of the stored patches, such as "float16".
        error: the largest relative error of a patch, ‖stored − computed‖ / ‖computed‖.
    """

    num_frames: int
    shards: int
    num_bytes: int
    dtype: str
    error: float


class FeatureStore:
    """One video's selector embeddings, patch features and timestamps, in a folder.

    One process writes at a time; any number may read.

    Attributes:
        folder: where it lies.
    """

    def __init__(self, folder: Path) -> None:
        """Name the folder; `open` checks it."""
        self.folder = folder
        self._made_of: dict[str, Any] | None = None

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> "FeatureStore":
        """Open a store, or name a folder that `encode` will make one of.

        Raises:
            ValueError: the folder holds other files, its manifest is damaged, or it is no folder.
        """
        require_text(os.fspath(folder))
        store = cls(Path(folder))
        if store.folder.exists() and not store.folder.is_dir():
            raise ValueError(f"{folder} is not a folder: a store is one")
        if store.folder.is_dir() and not store._is_made():
            names = (path.name for path in store.folder.iterdir())
            if any(name != LOCK and not name.startswith(UNFINISHED) for name in names):
                raise ValueError(f"{folder} holds other files and no {_MANIFEST}: name a store, or a new folder")
        return store

    @property
    def num_frames(self) -> int:
        """N, the frames of the video."""
        return self.settings["num_frames"]

    @property
    def settings(self) -> dict[str, Any]:
        """What the store was made of: video, fps, max_frames, num_frames, dtype, and what tells the model.

        Raises:
            ValueError: no video has been encoded into this folder.
        """
        if not self._is_made():
            raise ValueError(f"{self.folder} holds no encoded video: `vilamp encode VIDEO` makes a store")
        return self._made_of

    # --- Writing -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(
        self,
        video: str | os.PathLike[str] | SampledVideo,
        model: ViLaMPForConditionalGeneration,
        processor: FrameProcessor,
        *,
        fps: float | None = None,
        max_frames: int | None = None,
        dtype: torch.dtype = torch.float16,
    ) -> None:
        """Write what is missing of a video's features, in one pass over the file; all of it, the first time.

        Shards that are there are checked first; damaged ones are made anew. However often this was interrupted, the
        files are the same in the end, on the same machine. Memory: two batches of frames, and a few times one shard.

        Args:
            video: the video file, or one that is sampled already.
            model: its vision tower and selector make the features.
            processor: makes pixels, such as `ViLaMPProcessor`.
            fps: frames sampled per second of a file; the configuration's when left out.
            max_frames: the most frames to sample of a file, spread over it.
            dtype: of the stored patches, one of `STORED_TYPES`; what it costs is in `summary().error`. Selector
                embeddings stay in float32: a keyframe is chosen by thresholds.

        Raises:
            ValueError: more tokens than the language model's context holds; the store is of another video, sampling,
                model or type, or another process writes to it; a patch that the type can't hold.
            VideoError: the file can't be read, or not to its end.
            OSError: the disk is full, or can't be written to; finished shards are kept.
        """
        if dtype not in STORED_TYPES:
            raise ValueError(f"dtype must be one of {', '.join(map(_type_name, STORED_TYPES))}, got {dtype}")
        source = sampled(video, default_fps=model.config.fps, fps=fps, max_frames=max_frames)
        if not isinstance(source, SampledVideo) or source.size is not None:
            raise ValueError("a store is of a video file, with its frames as they are stored there")
        model.config.require_room(source.num_frames)
        made_of = {
            "video": file_sha256(source.info.path),
            "fps": source.fps,
            "max_frames": source.max_frames,
            "num_frames": source.num_frames,
            "dtype": _type_name(dtype),
            **_model_settings(model, processor),
        }
        clear_unfinished(self.folder)
        if self._holds_all_of(made_of):
            return
        with alone_in(self.folder, "encoding"):
            self._claim(made_of)
            if missing := self._clean():
                self._fill(source, missing, model, processor, dtype)

    def _holds_all_of(self, made_of: dict[str, Any]) -> bool:
        """Tell whether there is nothing to write; then nothing is touched, and the disk may be read-only."""
        if not self._is_made() or _differences(self.settings, made_of):
            return False
        return len(self._shards()) == len(_KINDS) * self._count and not self._damaged_or_missing()

    def _claim(self, made_of: dict[str, Any]) -> None:
        """Write the manifest of a new store; refuse to add to a store that was made otherwise."""
        if not self._is_made():
            self._write(_MANIFEST, (json.dumps(made_of, indent=1) + "\n").encode())
        elif other := _differences(self.settings, made_of):
            raise ValueError(
                f"{self.folder} was encoded otherwise ({other}); choose another folder, or delete it to start again"
            )

    def _clean(self) -> set[int]:
        """Delete shards that are damaged or half there, and return the numbers of those to be made."""
        missing = self._damaged_or_missing()
        unfit = [path for (_, number), path in self._found() if number in missing]
        if links := sorted(str(path) for path in unfit if path.is_symlink()):
            raise ValueError(f"{links[0]} is a link to no whole shard, and links are not replaced: move it elsewhere")
        for path in unfit:
            path.unlink()
        return missing

    def _damaged_or_missing(self) -> set[int]:
        """The numbers of which not every kind is there as it was written."""
        found = list(self._found())
        checked = mapped_ahead(lambda shard: self._name(*shard[0], shard[1].read_bytes()), found, _READERS)
        intact = {key for (key, path), name in zip(found, checked, strict=True) if name == path.name}
        return {number for number in range(self._count) for kind in _KINDS if (kind, number) not in intact}

    def _fill(
        self,
        source: SampledVideo,
        missing: set[int],
        model: ViLaMPForConditionalGeneration,
        processor: FrameProcessor,
        dtype: torch.dtype,
    ) -> None:
        """Encode the frames of the missing shards; the others are only decoded past."""
        at_once, end = frames_at_once(model.config, model.device), (max(missing) + 1) * FRAMES_PER_SHARD
        numbers = (start // FRAMES_PER_SHARD for start in count(0, at_once))

        def pixels_of_missing(frames: np.ndarray) -> list[torch.Tensor]:
            makers = (processor.selector_pixels, processor.vision_pixels) if next(numbers) in missing else ()
            return [make(frames, model.device) for make in makers]

        batches = prepared(source.batches(at_once), source.num_frames, "decode, encode", pixels_of_missing)
        parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        with closing(batches):
            for start, (batch, pixels) in zip(range(0, end, at_once), batches, strict=False):
                if not pixels:
                    continue
                embeds, patches = model.embed_frames(pixels[0]), model.patch_features(pixels[1])
                parts.append((embeds.cpu(), torch.from_numpy(batch.timestamps), patches.cpu()))
                stop = start + len(batch.frames)
                if stop % FRAMES_PER_SHARD == 0 or stop == source.num_frames:
                    self._write_shard(start // FRAMES_PER_SHARD, *map(torch.cat, zip(*parts, strict=True)), dtype)
                    parts.clear()

    def _write_shard(
        self, number: int, embeds: torch.Tensor, timestamps: torch.Tensor, patches: torch.Tensor, dtype: torch.dtype
    ) -> None:
        require_finite(embeds, embeds=embeds)
        require_finite(patches, patches=patches)
        stored = patches.to(dtype)
        error = ((stored.float() - patches.float()).norm(dim=-1) / patches.float().norm(dim=-1).clamp(min=1e-8)).max()
        if not error.isfinite():
            largest = float(patches.abs().max())
            raise ValueError(f"{_type_name(dtype)} can't hold patches of up to {largest:.3g}: store them as bfloat16")
        contents = {
            "frames": ({"embeds": embeds.float(), "timestamps": timestamps}, None),
            # One entry: safetensors writes several in any order, and equal shards should be equal files.
            "patches": ({"patches": stored}, {"error": f"{float(error):.6g}"}),
        }
        for kind, (tensors, metadata) in contents.items():
            data = safetensors.torch.save(tensors, metadata)
            self._write(self._name(kind, number, data), data)

    def _write(self, name: str, data: bytes) -> None:
        """Write a file whole or not at all, and onto the disk: a store is hours of work."""
        try:
            with written_whole(self.folder / name, durable=True) as waiting:
                waiting.write_bytes(data)
        except OSError as error:
            raise OSError(
                f"can't write {len(data):,} bytes into {self.folder} ({error.strerror}); what is finished there is "
                "kept: make room, and run the same command again"
            ) from error

    # --- Reading -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def ask(
        self,
        model: ViLaMPForConditionalGeneration,
        question: str,
        processor: ViLaMPProcessor,
        *,
        max_new_tokens: int = 256,
    ) -> str:
        """Answer a question about the video, greedily, without its file: selection, merging, language model.

        The model is the one that `encode` had; its K, thresholds, merger, connectors and language model may be others.
        """
        return answer(
            model, processor, question, self.sequence(model, question, processor), max_new_tokens=max_new_tokens
        ).text

    @torch.no_grad()
    def sequence(
        self, model: ViLaMPForConditionalGeneration, query: str, processor: FrameProcessor
    ) -> MixedPrecisionSequence:
        """Make the video's mixed-precision sequence for a query, as `encode_video` does from the file.

        Memory: about six shards, one selector embedding per frame, the patches of reference frames, and the tokens.

        Raises:
            ValueError: the store was made by another model, is incomplete or damaged; more tokens than the language
                model's context holds; or no frame is a keyframe.
        """
        if other := _differences(self.settings, _model_settings(model, processor)):
            raise ValueError(
                f"{self.folder} was encoded by another model ({other}): give the model that it was encoded with"
            )
        model.config.require_room(self.num_frames)
        shards = self._complete()
        frames = list(mapped_ahead(partial(self._read, shards, "frames"), range(self._count), _READERS))
        query_embed = model.embed_query(**processor.selector_query([query]))[0]

        def patches_at(frame: int) -> torch.Tensor:
            number, row = divmod(frame, FRAMES_PER_SHARD)
            return model.onto_tower(self._read(shards, "patches", number)["patches"][row])

        sequence = model.distill(
            torch.cat([shard["embeds"] for shard in frames]),
            map(model.onto_tower, self._patch_batches(shards)),
            patches_at,
            query_embed,
        )
        timestamps = torch.cat([shard["timestamps"] for shard in frames])
        return replace(sequence, timestamps=timestamps.numpy())

    def summary(self) -> StoreSummary:
        """Say what the store holds; it must be complete."""
        shards, errors = self._complete(), []
        for (kind, _), path in shards.items():
            if kind == "patches":
                with safe_open(path, "pt") as shard:
                    errors.append(float(shard.metadata()["error"]))
        num_bytes = sum(path.stat().st_size for path in shards.values())
        return StoreSummary(self.num_frames, self._count, num_bytes, self.settings["dtype"], max(errors))

    def _patch_batches(self, shards: dict[_Shard, Path]) -> Iterator[torch.Tensor]:
        """Yield all patches in order, a shard at a time; threads read the next ones and check them."""
        with progress_bar(self.num_frames, "frames", "merge") as bar:
            for shard in mapped_ahead(partial(self._read, shards, "patches"), range(self._count), _READERS):
                yield shard["patches"]
                bar.update(len(shard["patches"]))

    def _read(self, shards: dict[_Shard, Path], kind: str, number: int) -> dict[str, torch.Tensor]:
        """Read a shard whose bytes are what was written.

        A process looks them through once, and again when the file's size, time or inode change: what changes on the
        disk without these is not noticed until the next process.
        """
        path = shards[kind, number]
        stat = path.stat()
        state = (stat.st_size, stat.st_mtime_ns, path.name, self._described())
        data = path.read_bytes()
        if _INTACT.get((stat.st_dev, stat.st_ino)) != state and self._name(kind, number, data) != path.name:
            raise ValueError(f"{path} is damaged: run `vilamp encode` again with the same video, which makes it anew")
        _INTACT[stat.st_dev, stat.st_ino] = state
        return safetensors.torch.load(data)

    # --- Files -------------------------------------------------------------------------------------------------------

    @property
    def _count(self) -> int:
        """How many shards of each kind the video takes."""
        return ceil(self.num_frames / FRAMES_PER_SHARD)

    def _found(self) -> Iterator[tuple[_Shard, Path]]:
        """What is called like a shard of this video, whole or not; there may be two of one number."""
        for path in self.folder.iterdir():
            match = _SHARD_NAME.fullmatch(path.name)
            if match and int(match[2]) < self._count:
                yield (match[1], int(match[2])), path

    def _shards(self) -> dict[_Shard, Path]:
        """The shards that are there, whole or not."""
        return dict(self._found())

    def _complete(self) -> dict[_Shard, Path]:
        """All shards; none may be missing."""
        count, shards = self._count, self._shards()
        lacking = sorted({number for number in range(count) for kind in _KINDS if (kind, number) not in shards})
        if lacking:
            raise ValueError(
                f"{self.folder} lacks {len(lacking)} of {count} shards: run `vilamp encode` again with the same video, "
                "which goes on where it was stopped"
            )
        return shards

    def _described(self) -> str:
        """What all shards were made of, as their checksums have it."""
        return json.dumps(self.settings)

    def _name(self, kind: str, number: int, data: bytes) -> str:
        """The name of a shard that holds these bytes."""
        checksum = blake2b(f"[{self._described()}, {json.dumps(kind)}, {number}]".encode(), digest_size=8)
        checksum.update(data)
        return f"{kind}-{number:05d}-{checksum.hexdigest()}.safetensors"

    def _is_made(self) -> bool:
        """Tell whether there is a manifest; it is read once."""
        file = self.folder / _MANIFEST
        if self._made_of is None and file.is_file():
            try:
                manifest = json.loads(file.read_text())
                if manifest["num_frames"] >= 1 and manifest.keys() >= _MADE_OF:
                    self._made_of = manifest
            except (ValueError, KeyError, TypeError, RecursionError):
                pass
            if self._made_of is None:
                raise ValueError(
                    f"{file} is damaged, or no store's; delete the folder to start again, or choose another"
                )
        return self._made_of is not None


def _model_settings(model: ViLaMPForConditionalGeneration, processor: FrameProcessor) -> dict[str, Any]:
    """What of a model the features depend on: its two towers' weights, the layer that is read, and the pixels."""
    picture = np.arange(48 * 64 * 3).astype(np.uint8).reshape(1, 48, 64, 3)
    return {
        "weights": f"{_type_name(model.vision_tower.dtype)} {_towers_fingerprint(model)}",
        "vision_feature_layer": model.config.vision_feature_layer,
        "pixels": tensors_fingerprint([processor.vision_pixels(picture), processor.selector_pixels(picture)]),
    }


def _towers_fingerprint(model: ViLaMPForConditionalGeneration) -> str:
    """Of both towers' weights; a model's is made again only when torch has written to them, or moved them."""
    towers = (model.selector, model.vision_tower)
    weights = [value for tower in towers for _, value in sorted(tower.state_dict().items())]
    if any(value.is_inference() for value in weights):  # torch doesn't count who writes to these
        return tensors_fingerprint(weights)
    state = [(value.data_ptr(), value._version, value.dtype) for value in weights]
    if _TOWERS.get(model, (None,))[0] != state:
        _TOWERS[model] = state, tensors_fingerprint(weights)
    return _TOWERS[model][1]


def _differences(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Name what is not as wanted."""
    return "; ".join(
        f"{name} {found.get(name)}, not {value}" for name, value in wanted.items() if found.get(name) != value
    )


def _type_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
