"""Training: the loop, the miniature from nothing, and any ViLaMP on your own data."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "alignment": ["AlignmentTask", "FEW", "KEYFRAMES_ONLY", "LATE", "MANY", "MOST_AROUND", "naming_loss"],
        "contrastive": ["ContrastiveTask", "caption_matches", "caption_texts"],
        "examples": ["COLOR_NAMES", "Example", "Examples", "MiniatureTask", "describe_scenes", "questions_about"],
        "finetuning": [
            "FinetuningTask",
            "TRAINABLE",
            "VideoQuestion",
            "finetune",
            "finetune_checkpoint",
            "read_examples",
        ],
        "grounding": ["GroundingTask"],
        "loop": ["Stage", "Task", "make_accelerator", "read_curve", "run_stage", "smoothed"],
        "miniature": [
            "ALIGNMENT",
            "CONTRASTIVE",
            "GROUNDING",
            "MIXED",
            "Recipe",
            "assemble",
            "curves",
            "load_encoder_model",
            "save_miniature",
            "train_encoder",
            "train_miniature",
            "train_reader",
        ],
        "mixed": [
            "FAMILY_SHARES",
            "FEWEST_POSITIONS",
            "KEYFRAME_FAMILY_SHARES",
            "LENGTHS",
            "MixedTask",
            "PeerTask",
            "VARIANTS",
        ],
        "variants": ["STAGES", "STUDIES", "Variant", "stage_folder"],
    },
)
