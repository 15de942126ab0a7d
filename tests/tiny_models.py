"""Tiny models and inputs that several tests share."""

import json
from pathlib import Path

import numpy as np
import torch

from vilamp_lite.baselines.mergers import QFormerMerger
from vilamp_lite.configuration import ViLaMPConfig
from vilamp_lite.modeling import ViLaMPForConditionalGeneration
from vilamp_lite.tinyworld.miniature import miniature_config
from vilamp_lite.training.miniature import save_miniature

GOLDEN = Path(__file__).parent / "golden"
OFFICIAL = GOLDEN / "official_tiny"

# What the goldens call their variants, as changes to `released()`.
VARIANTS = {
    "official": {},
    "fixed_self": {"reference": "preceding"},
    "fixed_first": {"reference": "preceding", "before_first": "first"},
}

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
# A selector that is no CLIP: its text is padded and its frames are squashed.
SIGLIP = {
    "model_type": "siglip",
    "text_config": SMALL | {"vocab_size": 260, "max_position_embeddings": 64, "projection_size": 16},
    "vision_config": SMALL | {"image_size": 32, "patch_size": 8},
}


def tiny_model(seed: int = 0, **changes: object) -> ViLaMPForConditionalGeneration:
    """A random model; a random selector finds all frames alike, so gaps are filled to get several keyframes."""
    torch.manual_seed(seed)
    return ViLaMPForConditionalGeneration(ViLaMPConfig.tiny(**{"fill": "gaps"} | changes)).eval()


def save_random_miniature(folder: Path) -> None:
    """A random miniature with its Q-Former, as a training lays them out; its gaps are filled, see `tiny_model`."""
    torch.manual_seed(0)
    model = ViLaMPForConditionalGeneration(miniature_config(fill="gaps"))
    model.vision_tower.load_state_dict(model.selector.vision.state_dict())
    save_miniature(model, QFormerMerger(96, 96), folder)


def tiny_inputs(num_frames: int = 7, seed: int = 0, text: tuple[int, ...] = (5, 6, -200, 7, 8, 9)) -> dict:
    """Random pixels and a prompt for a tiny model."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "input_ids": torch.tensor([text]),
        "pixel_values_videos": torch.randn(num_frames, 3, 70, 70, generator=generator),
        "selector_pixel_values": torch.randn(num_frames, 3, 32, 32, generator=generator),
        "query_input_ids": torch.tensor([[40, 41, 42 + seed, 257]]),
    }


def official_pixels(size: int) -> torch.Tensor:
    """The pixels of golden/official_tiny, by the formula in its case.json."""
    case = json.loads((OFFICIAL / "case.json").read_text())
    y, x = np.mgrid[0:size, 0:size] / size
    seed = case["pixel_seed"]
    frames = np.empty((case["num_frames"], 3, size, size))
    for t in range(case["num_frames"]):
        s = t // 3
        for c in range(3):
            waves = (1 + (7 * s + seed) % 5) * x + (1 + (3 * s + c) % 4) * y
            frames[t, c] = 0.7 * np.sin(2 * np.pi * waves + 0.7 * s + c)
            frames[t, c] += 0.2 * np.cos(2 * np.pi * (3 * x - 2 * y) + 0.9 * t + seed)
    return torch.from_numpy(frames.astype(np.float32))
