"""What the method is compared with: other selectors, other mergers, other ways to show a long video."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "mergers": [
            "MERGERS",
            "QFormerMerger",
            "max_merge",
            "mean_merge",
            "mixed_tokens",
        ],
        "peers": ["CLIP_FRAMES", "PEERS", "merge_similar", "peer_tokens", "sampled_frames"],
        "selectors": [
            "SELECTORS",
            "aks_keyframes",
            "choose_keyframes",
            "kmeans_keyframes",
            "mmr_keyframes",
            "top_k_keyframes",
            "uniform_keyframes",
        ],
    },
)
