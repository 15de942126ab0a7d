"""What a video costs by formula: visual tokens, FLOPs, memory and seconds, for ViLaMP and its peers at full size."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "peers": ["PEER_MODELS", "Peer"],
        "room": ["VIDEO_BYTES", "preflight"],
        "shapes": [
            "ATTENTION",
            "BYTES",
            "CLIP_L",
            "DINOV2_G",
            "EVA_G",
            "GPUS",
            "Gpu",
            "LanguageModel",
            "QWEN2_7B",
            "QWEN2_VL",
            "SIGLIP",
            "Transformer",
            "UMT_L",
            "VICUNA_7B",
            "VisionTower",
            "Workload",
        ],
        "stages": ["CostStage", "Costs", "DECODE_RATE", "UTILISATION", "cost_row"],
        "tables": [
            "MODELS",
            "SCOPES",
            "costs_by_frames",
            "model_costs",
            "peer_costs",
            "shares_of_peer",
        ],
        "vilamp": [
            "FRAMES_AT_ONCE",
            "all_at_once_memory",
            "answering",
            "connector_flops",
            "released_code_costs",
            "vilamp_costs",
        ],
    },
)
