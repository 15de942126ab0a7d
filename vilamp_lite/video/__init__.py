"""A video file in, sampled frames out: one forward pass, the memory of one batch."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "ahead": ["ClosableIterator", "made_ahead", "mapped_ahead"],
        "decoding": ["Damage", "Pictures", "intact_frames", "pyav_pictures", "upright"],
        "decord": ["decord_pictures", "open_with_decord"],
        "source": ["Backend", "FrameBatch", "FrameStream", "frames_at", "probe", "read_timeline", "stream_frames"],
        "timeline": [
            "Plan",
            "Scan",
            "Timeline",
            "VideoError",
            "VideoInfo",
            "demux",
            "opened",
            "plan_samples",
            "refuse_cut_file",
            "scan_packets",
            "tick",
            "usual_step",
        ],
    },
)
