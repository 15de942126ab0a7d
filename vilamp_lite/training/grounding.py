"""Stage 3 of the miniature: the merge finds what a question names."""

import numpy as np
import torch
import torch.nn.functional as F

from vilamp_lite.modeling import ViLaMPForConditionalGeneration
from vilamp_lite.tinyworld.questions import FAMILIES
from vilamp_lite.tinyworld.render import SHAPES
from vilamp_lite.training.conversations import MiniatureTask
from vilamp_lite.training.examples import Examples


class GroundingTask(MiniatureTask):
    """Stage 3: the merge's maps and temperature learn to put the weight on the patch of the thing asked for."""

    def __init__(self, model: ViLaMPForConditionalGeneration, examples: Examples) -> None:
        """Make the merger trainable."""
        super().__init__(model, examples)
        model.merger.requires_grad_(True)

    def forward(self, random: np.random.Generator, batch_size: int, progress: float) -> tuple[torch.Tensor, float]:
        """Merge frames that show a shape, each against a frame of another scene or of its own; accuracy is top-1."""
        bank, examples = self.examples.bank, self.examples
        family, shape = random.choice(list(FAMILIES)), int(random.integers(len(SHAPES)))
        query = self.query_embeds[FAMILIES[family].text.format(shape=SHAPES[shape])]
        holding = np.flatnonzero(examples.shown[:, shape].sum(axis=1) == 1)
        scenes = random.choice(holding, batch_size)
        others = np.where(random.random(batch_size) < 0.2, scenes, random.integers(0, len(bank.scenes), batch_size))
        frames, references = (bank.first_frame[s] + random.integers(0, bank.lengths[s]) for s in (scenes, others))
        merger = self.model.merger
        _, weights = merger.merge(
            self.patches(frames), merger.map_reference(self.patches(references)), merger.map_query(query)
        )
        asked = torch.from_numpy((examples.cells[scenes][..., 0] == shape).argmax(axis=1)).to(weights.device)
        loss = F.nll_loss(weights.clamp_min(1e-8).log(), asked)
        return loss, float((weights.argmax(dim=1) == asked).float().mean())
