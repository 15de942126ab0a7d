"""The miniature: a ViLaMP for TinyWorld, trained here from scratch in four stages.

    contrastive   the dual encoder: frames and texts in one space, patches that name their shape and color
    alignment     connectors and language model, on keyframes and single patches
    grounding     the merge: its weight belongs on the patch of the thing asked for
    mixed         connectors and language model, on whole mixed-precision sequences of growing length

Alignment and grounding use the renderer's labels, which the paper's training has not.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import nn

from vilamp_lite.baselines.mergers import QFormerMerger
from vilamp_lite.common.checks import choice
from vilamp_lite.common.files import saved_whole
from vilamp_lite.common.hub import loaded
from vilamp_lite.common.progress import loading_quietly
from vilamp_lite.modeling import ViLaMPForConditionalGeneration
from vilamp_lite.processing import SELECTOR_FOLDER
from vilamp_lite.tinyworld.bank import SceneBank, build_bank
from vilamp_lite.tinyworld.encoder import TinyWorldConfig, TinyWorldModel, vocabulary
from vilamp_lite.tinyworld.miniature import miniature_config, miniature_processor
from vilamp_lite.training.alignment import AlignmentTask
from vilamp_lite.training.contrastive import ContrastiveTask
from vilamp_lite.training.examples import Examples
from vilamp_lite.training.grounding import GroundingTask
from vilamp_lite.training.loop import Stage, Task, make_accelerator, read_curve, require_own, run_stage
from vilamp_lite.training.mixed import MixedTask, PeerTask
from vilamp_lite.training.variants import STUDIES, stage_folder

CONTRASTIVE = Stage("contrastive", steps=1500, batch_size=128, learning_rate=1e-3)
ALIGNMENT = Stage("alignment", steps=1200, batch_size=32, learning_rate=2e-3)
GROUNDING = Stage("grounding", steps=500, batch_size=64, learning_rate=2e-3)
MIXED = Stage("mixed", steps=1300, batch_size=24, learning_rate=8e-4)


@dataclass(frozen=True)
class Recipe:
    """How the miniature is trained; the defaults are `vilamp train miniature`.

    Attributes:
        contrastive: stage 1.
        alignment: stage 2.
        grounding: stage 3.
        mixed: stage 4.
        num_random: scenes of the bank that show three to five things.
        num_pairs: scenes of the bank that show two.
    """

    contrastive: Stage = CONTRASTIVE
    alignment: Stage = ALIGNMENT
    grounding: Stage = GROUNDING
    mixed: Stage = MIXED
    num_random: int = 6000
    num_pairs: int = 2500


def train_miniature(
    folder: Path,
    seed: int,
    study: str = "full",
    *,
    recipe: Recipe | None = None,
    encoder: Path | None = None,
    mixed_precision: str = "no",
) -> Path:
    """Train a miniature from nothing, or from where an earlier call was stopped.

    The encoder and the bank (seed 0, in folder/encoder) serve all readers; a reader is stages 2 to 4. Works in one
    process, and in several under `torchrun` or `accelerate launch`, which share each batch.

    Args:
        folder: holds everything that is made; a call with the same arguments goes on where this one stops.
        seed: of the reader.
        study: a name in `STUDIES`.
        recipe: of the stages; the miniature's own when left out.
        encoder: a saved encoder to take, such as data/vilamp-miniature/selector, in place of stage 1.
        mixed_precision: "no" or "bf16".

    Returns:
        The folder of the saved model, folder/STUDY-seedS/model.
    """
    recipe = recipe or Recipe()
    choice("study", study, tuple(STUDIES))
    saved = folder / f"{study}-seed{seed}" / "model"
    for file in (saved, saved.with_name("curves.png")):  # the latter is the command's
        require_own(file, stage_folder(folder, study, seed, recipe.mixed.name))
    accelerator = make_accelerator(mixed_precision)
    if encoder is None:
        trained = train_encoder(recipe, folder / "encoder", 0, accelerator)
    else:
        trained = load_tinyworld_encoder(encoder).to(accelerator.device)
    with accelerator.main_process_first():
        bank = build_bank(trained, recipe.num_random, recipe.num_pairs, folder / "encoder" / "bank.safetensors")
    model = assemble(trained, seed, **STUDIES[study].config)
    qformer = train_reader(model, bank, recipe, folder, seed, study, accelerator)
    if accelerator.is_main_process:
        save_miniature(model, qformer, saved)
    accelerator.wait_for_everyone()
    return saved


def curves(folder: Path, study: str, seed: int) -> dict[str, np.ndarray]:
    """Read the curves of a training: for each stage [steps, 2], loss and accuracy.

    Stage 1 is left out if it did not take place there, because an encoder was given.
    """
    places = {stage: stage_folder(folder, study, seed, stage) for stage in STUDIES[study].stages}
    if not places["contrastive"].is_dir():
        del places["contrastive"]
    return {stage: read_curve(place) for stage, place in places.items()}


def train_encoder(recipe: Recipe, folder: Path, seed: int, accelerator: Accelerator) -> TinyWorldModel:
    """Stage 1. Its curve is in folder/contrastive, see `run_stage`."""
    torch.manual_seed(seed)
    encoder = TinyWorldModel(TinyWorldConfig(text_config={"vocab_size": len(vocabulary())})).to(accelerator.device)
    run_stage(recipe.contrastive, ContrastiveTask(encoder), folder / "contrastive", seed, accelerator)
    return encoder.eval().requires_grad_(False)


def load_tinyworld_encoder(folder: Path) -> TinyWorldModel:
    """Load an encoder that was saved."""
    encoder = loaded(TinyWorldModel, folder, use_safetensors=True, dtype=torch.float32)
    return encoder.eval().requires_grad_(False)


def assemble(encoder: TinyWorldModel, seed: int, **changes: Any) -> ViLaMPForConditionalGeneration:
    """Build a miniature around a trained encoder; everything else is random.

    Args:
        encoder: it becomes the selector, and its vision tower the model's.
        seed: of the random weights.
        changes: fields of the configuration to set otherwise.
    """
    torch.manual_seed(seed)
    model = ViLaMPForConditionalGeneration(miniature_config(**changes))
    model.selector.load_state_dict(encoder.state_dict())
    model.vision_tower.load_state_dict(encoder.vision.state_dict())
    for connector in (model.keyframe_connector, model.merged_connector):
        for layer in connector:
            if isinstance(layer, nn.Linear):
                # The usual 0.02 suits large widths; at this size learning starts several times later with it.
                nn.init.normal_(layer.weight, std=0.1)
    return model.to(encoder.device).eval()


def train_reader(
    model: ViLaMPForConditionalGeneration,
    bank: SceneBank,
    recipe: Recipe,
    folder: Path,
    seed: int,
    study: str,
    accelerator: Accelerator,
) -> QFormerMerger | None:
    """Stages 2 to 4, everything but the encoder.

    Returns:
        The Q-Former that is trained beside the model for Table 2; None with a peer's model, which has none.
    """
    examples, changes = Examples(bank), STUDIES[study]

    def run(stage: Stage, task: Task) -> None:
        run_stage(stage, task, stage_folder(folder, study, seed, stage.name), seed, accelerator)

    run(recipe.alignment, AlignmentTask(model, examples))
    if changes.grounding:
        run(recipe.grounding, GroundingTask(model, examples))
    torch.manual_seed(seed)
    qformer = None
    if changes.peer is not None:
        run(recipe.mixed, PeerTask(model, examples, changes.peer))
    else:
        qformer = QFormerMerger(model.config.merge_size, model.config.query_size).to(model.device)
        run(recipe.mixed, MixedTask(model, examples, qformer, train_merger=not changes.grounding))
        qformer.eval().requires_grad_(False)
    model.eval().requires_grad_(False)
    return qformer


def save_miniature(model: ViLaMPForConditionalGeneration, qformer: QFormerMerger | None, folder: Path) -> None:
    """Write model, processor, encoder (folder/selector) and a Q-Former (folder/qformer) as safetensors."""
    with saved_whole(folder) as waiting, loading_quietly():
        model.save_pretrained(waiting)
        miniature_processor(model).save_pretrained(waiting)
        model.selector.save_pretrained(waiting / SELECTOR_FOLDER)
        if qformer is not None:
            (waiting / "qformer").mkdir()
            save_file(qformer.state_dict(), waiting / "qformer" / "model.safetensors")
