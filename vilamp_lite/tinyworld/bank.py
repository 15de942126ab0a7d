"""A bank of scenes, drawn and encoded once: long TinyWorld videos are then put together without drawing a pixel."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vilamp_lite.common.files import written_whole
from vilamp_lite.common.fingerprints import parameters_sum
from vilamp_lite.common.progress import progress_bar
from vilamp_lite.tinyworld.encoder import TinyWorldModel
from vilamp_lite.tinyworld.questions import pair_scene, random_scene
from vilamp_lite.tinyworld.render import Scene, render_scene

_FRAMES_AT_ONCE = 96  # the activations of more leave a core's cache


def tinyworld_pixels(frames: np.ndarray) -> torch.Tensor:
    """Turn frames, uint8 [B, 64, 64, 3], into pixels from −1 to 1, float32 [B, 3, 64, 64]."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def encode_scenes(encoder: TinyWorldModel, scenes: Sequence[Scene]) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw scenes and encode them.

    Args:
        encoder: TinyWorld's.
        scenes: S scenes of F frames together.

    Returns:
        Frame embeddings, unit vectors [F, D], and patches by themselves [F, 16, D_v], both float32.
    """
    embeds, patches = [], []
    with progress_bar(sum(scene.num_frames for scene in scenes), "frames", "draw, encode") as bar:
        waiting: list[np.ndarray] = []
        for number, scene in enumerate(scenes):
            waiting.append(render_scene(scene))
            if sum(map(len, waiting)) < _FRAMES_AT_ONCE and number + 1 < len(scenes):
                continue
            frames = np.concatenate(waiting)
            waiting = []
            states = encoder.vision(tinyworld_pixels(frames).to(encoder.device))
            embeds.append(F.normalize(encoder.pool(states.last_hidden_state), dim=-1).cpu())
            patches.append(states.hidden_states[0].cpu())
            bar.update(len(frames))
    return torch.cat(embeds), torch.cat(patches)


@dataclass(frozen=True, eq=False)
class SceneBank:
    """Scenes and what the encoder makes of their frames.

    Attributes:
        scenes: S scenes.
        embeds: float32 [F, D], unit vectors, the frames of all scenes in order.
        patches: float16 [F, 16, D_v].
        first_frame: int64 [S], where each scene starts in them.
        num_random: the first so many scenes are random ones, the others show two things (`pair_scene`).
    """

    scenes: tuple[Scene, ...]
    embeds: torch.Tensor
    patches: torch.Tensor
    first_frame: np.ndarray
    num_random: int

    @cached_property
    def lengths(self) -> np.ndarray:
        """Frames of each scene, int64 [S]."""
        return np.array([scene.num_frames for scene in self.scenes])


def bank_scenes(num_random: int, num_pairs: int, first_seed: int = 0) -> list[Scene]:
    """The scenes of a bank: training scenes with even seeds from `first_seed` on, random ones, then pairs."""
    draw: list[Callable[[int], Scene]] = [random_scene] * num_random + [pair_scene] * num_pairs
    return [make(first_seed + 2 * number) for number, make in enumerate(draw)]


def build_bank(encoder: TinyWorldModel, num_random: int, num_pairs: int, file: Path | None = None) -> SceneBank:
    """Make a bank, or open the file that holds it.

    Args:
        encoder: TinyWorld's.
        num_random: scenes of three to five things.
        num_pairs: scenes of two.
        file: where the bank is kept; memory-mapped, so that processes share it. Only in memory when left out.

    Raises:
        ValueError: the file holds another bank, or none.
    """
    scenes = bank_scenes(num_random, num_pairs)
    about = json.dumps({"num_random": num_random, "num_pairs": num_pairs, "encoder": parameters_sum(encoder)})
    if file is None or not file.is_file():
        embeds, patches = encode_scenes(encoder, scenes)
        tensors = {"embeds": embeds, "patches": patches.half()}
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(file) as waiting:
                save_file(tensors, waiting, metadata={"about": about})
    if file is not None:
        try:
            with safe_open(file, "pt") as stored:
                found = (stored.metadata() or {}).get("about")
                tensors = {name: stored.get_tensor(name) for name in ("embeds", "patches")}
        except SafetensorError as error:
            raise ValueError(f"{file} is no bank ({error}); delete it, or choose another folder") from error
        if found != about:
            raise ValueError(f"{file} is the bank of another encoder or size; delete it, or choose another folder")
    lengths = np.array([scene.num_frames for scene in scenes])
    first = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    return SceneBank(tuple(scenes), tensors["embeds"], tensors["patches"], first, num_random)
