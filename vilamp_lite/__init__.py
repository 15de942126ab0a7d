"""ViLaMP in a small package: a few keyframes with all their patches, and one token for every other frame.

The public names below are imported when they are first used: torch takes seconds to load, `vilamp --help` should not.
"""

from importlib import import_module

_MODULE_OF = {
    **dict.fromkeys(
        ("FrameBatch", "FrameStream", "VideoError", "VideoInfo", "frames_at", "probe", "stream_frames"), "video"
    ),
    **dict.fromkeys(("VideoEmbedding", "embed_video", "load_encoder"), "encoders"),
    **dict.fromkeys(("SELECTORS", "KeyframeSelection", "select_keyframes"), "keyframes"),
    **dict.fromkeys(
        (
            "MERGERS",
            "DifferentialMerger",
            "differential_merge",
            "merge_frames",
            "pool_patches",
            "preceding_keyframe",
            "released_reference",
        ),
        "merging",
    ),
    "ViLaMPConfig": "configuration",
    **dict.fromkeys(("MixedPrecisionSequence", "TokenKind", "ViLaMPForConditionalGeneration"), "modeling"),
    "ViLaMPProcessor": "processing",
    "FeatureStore": "feature_store",
    **dict.fromkeys(
        ("from_llava_onevision", "load_checkpoint", "load_processor", "load_released_checkpoint"), "checkpoints"
    ),
}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
