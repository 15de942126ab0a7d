"""The model with one mechanism exchanged: the selectors × mergers of Table 2, on features that are already there.

`mixed_tokens` is what `ViLaMPForConditionalGeneration.mix_tokens` does, for a video whose patches are in memory and for
any merger. With "dks" and "dfm" both give the same.
"""

from collections.abc import Callable

import torch

from vilamp_lite.checks import choice
from vilamp_lite.keyframes import SELECTORS
from vilamp_lite.merging import QFormerMerger, max_relevance_merge
from vilamp_lite.modeling import MixedPrecisionSequence, ViLaMPForConditionalGeneration

MERGER_NAMES = ("dfm", "mean", "max", "drop", "qformer")
_FRAMES_AT_ONCE = 512  # merged at a time


def choose_keyframes(
    model: ViLaMPForConditionalGeneration, frame_embeds: torch.Tensor, query_embed: torch.Tensor, selector: str
) -> torch.Tensor:
    """Choose a video's keyframes, with the configuration's K, and τ where the selector has one.

    Args:
        model: its configuration is used.
        frame_embeds: [N, query_size].
        query_embed: [query_size].
        selector: a name in `SELECTORS`.

    Returns:
        [K'] int64 frame numbers in temporal order.

    Raises:
        ValueError: an unknown selector, or as `select_keyframes`.
    """
    if choice("selector", selector, tuple(SELECTORS)) == "dks":
        return model.select(frame_embeds, query_embed).indices
    return SELECTORS[selector](frame_embeds, query_embed, max_keyframes=model.config.max_keyframes).indices


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
