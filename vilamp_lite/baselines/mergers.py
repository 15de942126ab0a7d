"""Mergers that DFM is compared with: mean, most relevant patch, Q-Former, none at all."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from vilamp_lite.common.checks import choice, positive_int, require_finite
from vilamp_lite.merging import (
    check_merge_inputs,
    cosine_with_unit,
    linear_map,
    unit,
    weighted_sum,
)
from vilamp_lite.modeling import Merge, MixedPrecisionSequence, ViLaMPForConditionalGeneration


def mean_merge(
    patches: torch.Tensor, reference: torch.Tensor, query: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Average a frame's patches [B, M, D], whatever the query and the keyframe (Table 2's mean pooling)."""
    patches, reference, query = check_merge_inputs(patches, reference, query)
    tokens, weights = weighted_sum(patches, torch.zeros_like(patches[..., 0]))
    require_finite(tokens, patches=patches)
    return tokens, weights


def max_merge(patches: torch.Tensor, reference: torch.Tensor, query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keep of each frame the one patch most like the query; the first of several. Query [D]."""
    patches, reference, query = check_merge_inputs(patches, reference, query, same_size=True)
    relevance = cosine_with_unit(patches, unit(query))
    weights = F.one_hot(relevance.argmax(dim=1), patches.shape[1]).to(patches.dtype)
    tokens = torch.einsum("bm,bmd->bd", weights, patches)
    require_finite(tokens, patches=patches, query=query)
    return tokens, weights


class QFormerMerger(nn.Module):
    """One learned token attends to a frame's patches, conditioned on the query (Table 2's Q-Former baseline).

    A single BLIP-2-style layer: cross-attention from (learned token + mapped query) to the patches, then an MLP, each
    with a residual connection. The keyframe is not looked at.
    """

    def __init__(self, hidden_size: int, query_size: int, num_heads: int = 4) -> None:
        """Build the layer for patches of `hidden_size` and queries of `query_size`.

        Raises:
            ValueError: a size below 1, or `hidden_size` not a multiple of `num_heads`.
        """
        super().__init__()
        self.hidden_size = positive_int("hidden_size", hidden_size)
        self.query_size = positive_int("query_size", query_size)
        if hidden_size % positive_int("num_heads", num_heads):
            raise ValueError(f"num_heads must divide hidden_size, got {num_heads} and {hidden_size}")
        self.token = nn.Parameter(torch.randn(hidden_size) * 0.02)
        self.query_map = linear_map(query_size, hidden_size)
        self.patch_norm = nn.LayerNorm(hidden_size)
        self.attention = nn.MultiheadAttention(hidden_size, num_heads, batch_first=True)
        self.mlp = nn.Sequential(
            nn.LayerNorm(hidden_size),
            nn.Linear(hidden_size, 4 * hidden_size),
            nn.GELU(),
            nn.Linear(4 * hidden_size, hidden_size),
        )

    def forward(
        self, patches: torch.Tensor, reference: torch.Tensor, query: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Merge patches [B, M, D] under a query [query_size] into tokens [B, D]; weights are the mean attention [B, M].

        Raises:
            ValueError: NaN or infinity, or wrong rank or size.
        """
        sizes = {"query_size": self.query_size, "hidden_size": self.hidden_size}
        patches, reference, query = check_merge_inputs(patches, reference, query, **sizes)
        asked = (self.token + self.query_map(query)).expand(len(patches), 1, -1)
        normed = self.patch_norm(patches)
        attended, weights = self.attention(asked, normed, normed)
        attended = attended + asked
        tokens = (attended + self.mlp(attended))[:, 0]
        require_finite(tokens, patches=patches, query=query)
        return tokens, weights[:, 0]


# Frames merged at a time.
_FRAMES_AT_ONCE = 512


def mixed_tokens(
    model: ViLaMPForConditionalGeneration,
    patches: torch.Tensor,
    keyframes: torch.Tensor,
    query_embed: torch.Tensor,
    merger: str = "dfm",
    qformer: QFormerMerger | None = None,
) -> MixedPrecisionSequence:
    """Build the mixed-precision sequence of a video whose patches are in memory, with any merger; gradients flow.

    Args:
        model: makes the tokens.
        patches: [N, M, D_v], of the vision tower.
        keyframes: [K'] int64 frame numbers.
        query_embed: [query_size].
        merger: a name in `MERGERS`.
        qformer: the trained one, for "qformer".

    Raises:
        ValueError: an unknown merger, or "qformer" without one.
    """
    merge = MERGERS[choice("merger", merger, tuple(MERGERS))](model, query_embed.to(patches.dtype), qformer)
    early = {frame: patches[frame] for frame in model.early_references(len(patches), keyframes)}
    return model.mix_tokens(patches.split(_FRAMES_AT_ONCE), len(patches), keyframes, query_embed, early, merge)


def _dfm(model: ViLaMPForConditionalGeneration, query: torch.Tensor, _: QFormerMerger | None) -> Merge:
    return model.merge_for(query)


def _mean(*_: object) -> Merge:
    return lambda features, _: features.mean(dim=1)  # `mean_merge` without its checks


def _max(model: ViLaMPForConditionalGeneration, query: torch.Tensor, _: QFormerMerger | None) -> Merge:
    """The patch that the model's own maps find most relevant."""
    mapped_query = model.merger.map_query(query)

    def merge(features: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        relevance = cosine_with_unit(model.merger.relevance_map(features), mapped_query)
        return features[torch.arange(len(features), device=features.device), relevance.argmax(dim=1)]

    return merge


def _qformer(_: ViLaMPForConditionalGeneration, query: torch.Tensor, qformer: QFormerMerger | None) -> Merge:
    if qformer is None:
        raise ValueError("merger='qformer' needs a trained QFormerMerger")
    return lambda features, reference: qformer(features, features[0], query)[0]


def _drop(*_: object) -> Merge:
    return lambda features, _: features[:0, 0]


# Each makes a model's `Merge` under a query.
MERGERS: dict[str, Callable[[ViLaMPForConditionalGeneration, torch.Tensor, QFormerMerger | None], Merge]] = {
    "dfm": _dfm,
    "mean": _mean,
    "max": _max,
    "qformer": _qformer,
    "drop": _drop,
}
