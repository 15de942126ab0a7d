"""A synthetic world in which the paper's claims can be tried on a laptop: scenes, questions, needles in haystacks."""

from pathlib import Path

import lazy_loader

# The model that `vilamp train miniature --seed 0` made; it lies in the repository, not in the package.
MINIATURE = Path(__file__).parents[2] / "data" / "vilamp-miniature"

_NAMES = {
    "render": "COLORS FORMAT_TAG GRID SHAPES SIDE Scene Thing is_tinyworld render_scene render_scenes write_video",
    "questions": "FAMILIES Family Question SPLITS pair_scene random_scene sample_questions",
    "haystack": "Haystack describe_haystack hide pool_scenes save",
    "long_videos": "LongVideo long_video",
    "encoder": "TinyWorldConfig TinyWorldModel require_known_words tinyworld_tokenizer vocabulary",
    "bank": "SceneBank bank_scenes build_bank encode_scenes tinyworld_pixels",
    "miniature": "miniature_config miniature_processor",
}
__getattr__, _, __all__ = lazy_loader.attach(
    __name__, submod_attrs={module: names.split() for module, names in _NAMES.items()}
)
__all__ += ["MINIATURE"]


def __dir__() -> list[str]:
    return __all__
