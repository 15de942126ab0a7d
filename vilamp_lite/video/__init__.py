"""A video file in, sampled frames out: one forward pass, the memory of one batch."""

import lazy_loader

_NAMES = {
    "ahead": "ClosableIterator made_ahead mapped_ahead",
    "source": "Backend FrameBatch FrameSource FrameStream SampledVideo frames_at probe sampled stream_frames",
    "timeline": "VideoError VideoInfo",
}

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={module: names.split() for module, names in _NAMES.items()}
)
