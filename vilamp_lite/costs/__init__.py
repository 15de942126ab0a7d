"""What a video costs by formula: visual tokens, FLOPs, memory and seconds, for ViLaMP and its peers at full size."""

import lazy_loader

_NAMES = {
    "shapes": "ATTENTION BYTES GPUS Gpu LanguageModel Transformer VisionTower Workload",
    "stages": "Costs CostStage DECODE_RATE UTILISATION",
    "vilamp": "all_at_once_memory released_code_costs vilamp_costs",
    "peers": "PEER_MODELS Peer",
    "tables": "MODELS costs_by_frames model_costs peer_costs",
    "as_paper": "LEFT_OUT TABLE_5 TABLE_5_VIDEOCHAT_FLASH flops_as_paper table_5",
    "room": "VIDEO_BYTES preflight",
}
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={module: names.split() for module, names in _NAMES.items()}
)
