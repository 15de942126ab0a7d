"""Stage 1 of the miniature: scenes and captions in one space."""

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from vilamp_lite.tinyworld.bank import tinyworld_pixels
from vilamp_lite.tinyworld.encoder import TinyWorldModel, tinyworld_tokenizer
from vilamp_lite.tinyworld.questions import FAMILIES, random_scene, scene_seed
from vilamp_lite.tinyworld.render import COLORS, SHAPES, Scene, render_scene
from vilamp_lite.training.examples import COLOR_NAMES, describe_scenes
from vilamp_lite.training.loop import Task


@cache
def caption_texts() -> tuple[str, ...]:
    """The texts that frames are matched with: every question, every thing, every shape, every color."""
    questions = [family.text.format(shape=shape) for family in FAMILIES.values() for shape in SHAPES]
    things = [f"a {color} {shape}" for shape in SHAPES for color in COLOR_NAMES]
    return (*questions, *things, *(f"a {shape}" for shape in SHAPES), *(f"something {color}" for color in COLOR_NAMES))


def caption_matches(shown: np.ndarray) -> np.ndarray:
    """Which frames each of `caption_texts` fits.

    Args:
        shown: [B, 10, 8], how many things of each shape and color each frame shows.

    Returns:
        bool [B, texts].
    """
    things, shapes = shown > 0, shown.any(axis=2)
    return np.concatenate(
        [*[shapes] * len(FAMILIES), things.reshape(len(shown), -1), shapes, shown.any(axis=1)], axis=1
    )


class ContrastiveTask(Task):
    """Train the dual encoder: SigLIP's sigmoid loss against the exact matches, and a label for each patch."""

    def __init__(self, encoder: TinyWorldModel) -> None:
        """Add the two classifiers of patches, which are thrown away afterwards."""
        super().__init__()
        self.encoder = encoder
        width = encoder.config.vision_config.hidden_size
        self.shape_head = nn.Linear(width, len(SHAPES) + 1)
        self.color_head = nn.Linear(width, len(COLORS) + 1)
        self.tokens = tinyworld_tokenizer(ends=True)(list(caption_texts()), padding=True, return_tensors="pt")

    def forward(self, random: np.random.Generator, batch_size: int, progress: float) -> tuple[torch.Tensor, float]:
        """Draw one frame of each of `batch_size` new scenes; accuracy is the share of things whose patch is right."""
        scenes = [random_scene(scene_seed(random, "train")) for _ in range(batch_size)]
        shown, cells = describe_scenes(scenes)
        frames = np.concatenate([render_scene(Scene(scene.seed, scene.things, 1)) for scene in scenes])
        device = self.encoder.device
        states = self.encoder.vision(tinyworld_pixels(frames).to(device))
        images = F.normalize(self.encoder.pool(states.last_hidden_state), dim=-1)
        tokens = self.tokens.to(device)
        texts = F.normalize(self.encoder.get_text_features(tokens["input_ids"], tokens["attention_mask"]), dim=-1)
        logits = images @ texts.T * self.encoder.scale.exp() + self.encoder.bias
        matches = torch.from_numpy(caption_matches(shown)).to(logits)
        matching = F.binary_cross_entropy_with_logits(logits, matches)

        labels = torch.from_numpy(cells).long().to(device) + 1  # 0 for an empty cell
        patches = states.hidden_states[0]
        shape_logits, color_logits = self.shape_head(patches), self.color_head(patches)
        naming = F.cross_entropy(shape_logits.flatten(0, 1), labels[..., 0].flatten())
        naming = naming + F.cross_entropy(color_logits.flatten(0, 1), labels[..., 1].flatten())
        right = (shape_logits.argmax(-1) == labels[..., 0]) & (color_logits.argmax(-1) == labels[..., 1])
        return 10 * matching + naming, float(right[labels[..., 0] > 0].float().mean())
