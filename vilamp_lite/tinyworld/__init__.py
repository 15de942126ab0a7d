"""A synthetic world in which the paper's claims can be tried on a laptop: scenes, questions, needles in haystacks."""

from pathlib import Path

import lazy_loader

# The model that `vilamp train miniature --seed 0` made; it lies in the repository, not in the package.
MINIATURE = Path(__file__).parents[2] / "data" / "vilamp-miniature"

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "bank": ["SceneBank", "bank_scenes", "build_bank", "encode_scenes", "fingerprint", "tinyworld_pixels"],
        "encoder": [
            "TinyWorldConfig",
            "TinyWorldModel",
            "TinyWorldTextConfig",
            "TinyWorldVisionConfig",
            "TinyWorldVisionModel",
            "require_known_words",
            "tinyworld_tokenizer",
            "vocabulary",
        ],
        "haystack": ["Haystack", "describe_haystack", "hide", "pool_scenes", "save"],
        "long_videos": ["LongVideo", "PART_FRAMES", "long_video"],
        "miniature": ["miniature_config", "miniature_processor"],
        "questions": [
            "FAMILIES",
            "Family",
            "Needles",
            "Question",
            "SCENE_FRAMES",
            "SPLITS",
            "pair_scene",
            "random_scene",
            "sample_questions",
            "scene_seed",
        ],
        "render": [
            "COLORS",
            "FORMAT_TAG",
            "GRID",
            "SHAPES",
            "SIDE",
            "Scene",
            "Thing",
            "is_tinyworld",
            "render_scenes",
            "render_scene",
            "write_video",
        ],
    },
)
__all__ += ["MINIATURE"]
