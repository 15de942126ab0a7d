"""Mergers that DFM is compared with: mean, most relevant patch, Q-Former, none at all."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from vilamp_lite.common.checks import choice, positive_int, require_finite
from vilamp_lite.merging import (
    Merger,
    check_merge_inputs,
    cosine_with_unit,
    differential_merge,
    linear_map,
    unit,
    weighted_sum,
)
from vilamp_lite.modeling import MixedPrecisionSequence, ViLaMPForConditionalGeneration


def mean_merge(
    patches: torch.Tensor, reference: torch.Tensor, query: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Average a frame's patches [B, M, D], whatever the query and the keyframe (Table 2's mean pooling).

    Raises:
        ValueError: as `differential_merge`.
    """
    patches, reference, query = check_merge_inputs(patches, reference, query)
    tokens, weights = weighted_sum(patches, torch.zeros_like(patches[..., 0]))
    require_finite(tokens, patches=patches)
    return tokens, weights


def max_relevance_merge(
    patches: torch.Tensor, reference: torch.Tensor, query: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keep of each frame the one patch most like the query; the first of several. Query [D].

    Raises:
        ValueError: as `differential_merge`.
    """
    patches, reference, query = check_merge_inputs(patches, reference, query, same_size=True)
    relevance = cosine_with_unit(patches, unit(query))
    weights = F.one_hot(relevance.argmax(dim=1), patches.shape[1]).to(patches.dtype)
    tokens = torch.einsum("bm,bmd->bd", weights, patches)
    require_finite(tokens, patches=patches, query=query)
    return tokens, weights


def drop_merge(
    patches: torch.Tensor, reference: torch.Tensor, query: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keep nothing of the frames between keyframes: tokens [0, D] and weights [0, M].

    Raises:
        ValueError: as `differential_merge`.
    """
    patches, reference, query = check_merge_inputs(patches, reference, query)
    require_finite(patches, patches=patches)
    return patches.new_zeros(0, patches.shape[2]), patches.new_zeros(0, patches.shape[1])


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


# The mergers without parameters; `DifferentialMerger` and `QFormerMerger` are built to size and called the same way.
MERGERS: dict[str, Merger] = {
    "differential": differential_merge,
    "mean": mean_merge,
    "max_relevance": max_relevance_merge,
    "drop": drop_merge,
}


MERGER_NAMES = ("dfm", "mean", "max", "drop", "qformer")


_FRAMES_AT_ONCE = 512  # merged at a time


def mixed_tokens(
    model: ViLaMPForConditionalGeneration,
    patches: torch.Tensor,
    keyframes: torch.Tensor,
    query_embed: torch.Tensor,
    merger: str = "dfm",
    qformer: QFormerMerger | None = None,
) -> MixedPrecisionSequence:
    """Build a video's mixed-precision sequence with any merger; gradients flow.

    Args:
        model: makes the tokens.
        patches: [N, M, D_v], of the vision tower.
        keyframes: [K'] int64 frame numbers.
        query_embed: [query_size].
        merger: "dfm", the model's own; "mean"; "max", the patch most relevant under the model's own maps; "drop", no
            tokens between keyframes; "qformer".
        qformer: needed for the last.

    Raises:
        ValueError: an unknown merger, "qformer" without one, or as `preceding_keyframe`.
    """
    choice("merger", merger, MERGER_NAMES)
    reference_of = model.reference_frames(len(patches), keyframes)
    is_keyframe = torch.zeros(len(patches), dtype=torch.bool).index_fill_(0, keyframes, True)
    chosen, others = is_keyframe.nonzero()[:, 0], (~is_keyframe).nonzero()[:, 0]
    if merger == "drop":
        others = others[:0]
    key_tokens = model.keyframe_tokens(patches[chosen])
    merged = key_tokens.new_zeros(0, key_tokens.shape[1])
    if len(others):
        merge = _merge_function(model, query_embed.to(patches.dtype), merger, qformer)
        features = model.mergeable(patches)
        merged = torch.cat(
            [merge(features[part], features[reference_of[part]]) for part in others.split(_FRAMES_AT_ONCE)]
        )
        if model.config.merge_before_projection:
            merged = model.merged_connector(merged)
    frame_of_token = torch.cat([chosen.repeat_interleave(model.config.tokens_per_keyframe), others])
    order = frame_of_token.argsort(stable=True)
    return model.sequence(torch.cat([key_tokens, merged])[order], is_keyframe, frame_of_token[order])


def _merge_function(
    model: ViLaMPForConditionalGeneration, query: torch.Tensor, merger: str, qformer: QFormerMerger | None
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The merger as a function of patches and references, both [B, M, D], to tokens [B, D]."""
    if merger == "dfm":
        mapped_query = model.merger.map_query(query)
        return lambda patches, reference: model.merger.merge(
            patches, model.merger.map_reference(reference), mapped_query
        )[0]
    if merger == "mean":
        return lambda patches, reference: patches.mean(dim=1)
    if merger == "max":
        mapped_query = model.merger.map_query(query)

        def merge(patches: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
            mapped = model.merger.relevance_map(patches)
            _, weights = max_relevance_merge(mapped, mapped, mapped_query.to(mapped))
            return torch.einsum("bm,bmd->bd", weights, patches)

        return merge
    if qformer is None:
        raise ValueError("merger='qformer' needs a trained QFormerMerger")
    return lambda patches, reference: qformer(patches, reference, query)[0]
