"""ViLaMP in a small package: a few keyframes with all their patches, and one token for every other frame.

Names are imported when they are first used: torch takes seconds to load, `vilamp --help` should not.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "keyframes": ["KeyframeSelection", "select_keyframes"],
        "merging": ["DifferentialMerger", "differential_merge", "merge_frames", "pool_patches", "preceding_keyframe"],
        "modeling": ["MixedPrecisionSequence", "TokenKind", "ViLaMPForConditionalGeneration"],
        "configuration": ["ViLaMPConfig"],
        "encoders": ["VideoEmbedding", "embed_video", "load_encoder"],
        "processing": ["ViLaMPProcessor"],
        "checkpoints": ["from_llava_onevision", "load_checkpoint", "load_processor", "load_released_checkpoint"],
        "baselines": ["MERGERS", "SELECTORS"],
        "video": [
            "FrameBatch",
            "FrameStream",
            "SampledVideo",
            "VideoError",
            "VideoInfo",
            "frames_at",
            "probe",
            "stream_frames",
        ],
        "streaming": ["FeatureStore"],
    },
)
