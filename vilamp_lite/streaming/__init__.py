"""A long video in bounded memory: encoded in two passes, kept on disk, measured stage by stage."""

import lazy_loader

_NAMES = {
    "encode": "FrameProcessor KeptRows frames_at_once",
    "feature_store": "FRAMES_PER_SHARD FeatureStore STORED_TYPES StoreSummary",
    "measured": "ANSWER_STAGES MeasuredAnswer STORE_STAGES Stopwatch VIDEO_STAGES measured_answer used_memory",
}

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={module: names.split() for module, names in _NAMES.items()}
)
