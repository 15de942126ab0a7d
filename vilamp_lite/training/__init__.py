"""Training: the loop, the miniature from nothing, and any ViLaMP on your own data."""

import lazy_loader

_NAMES = {
    "loop": "Stage Task make_accelerator read_curve run_stage smoothed",
    "finetuning": "FinetuningTask TRAINABLE VideoQuestion finetune finetune_checkpoint read_examples",
    "variants": "STAGES STUDIES Variant stage_folder",
    "miniature": "ALIGNMENT CONTRASTIVE GROUNDING MIXED Recipe assemble curves load_tinyworld_encoder save_miniature "
    "train_encoder train_miniature train_reader",
    "examples": "Example Examples describe_scenes questions_about",
    "contrastive": "ContrastiveTask caption_matches caption_texts",
    "alignment": "AlignmentTask Lesson naming_loss",
    "grounding": "GroundingTask",
    "mixed": "LENGTHS MixedTask PeerTask VIEWS",
}
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={module: names.split() for module, names in _NAMES.items()}
)
