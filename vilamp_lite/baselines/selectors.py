"""Selectors that DKS is compared with: uniform, most relevant, MMR, k-means, adaptive sampling."""

import math
from collections.abc import Callable

import numpy as np
import torch

from vilamp_lite.common.checks import ArrayLike, choice, describe, finite_number, positive_int
from vilamp_lite.keyframes import (
    KeyframeSelection,
    by_relevance,
    check_embeds,
    make_selection,
    redundancies,
    relevances_of,
    select_keyframes,
    unit_rows,
)
from vilamp_lite.modeling import ViLaMPForConditionalGeneration


def uniform_keyframes(frame_embeds: ArrayLike, query_embed: ArrayLike, *, max_keyframes: int = 32) -> KeyframeSelection:
    """Choose the middle frames of K equal parts of the video, whatever they show (Table 2's baseline).

    `order` ranks them by relevance, so that "the first five" means the same as for the other selectors.

    Args:
        frame_embeds: [N, D] floating point; used only to rank the frames and report their scores.
        query_embed: [D]; likewise.
        max_keyframes: K; min(N, K) frames are chosen.

    Raises:
        ValueError: as `select_keyframes`.
    """
    frames, query, count = _check_baseline(frame_embeds, query_embed, max_keyframes)
    middles = {(2 * part + 1) * len(frames) // (2 * count) for part in range(count)}
    return _ranked_selection(frames, query, middles)


def top_k_keyframes(frame_embeds: ArrayLike, query_embed: ArrayLike, *, max_keyframes: int = 32) -> KeyframeSelection:
    """Choose the K most relevant frames, however alike (Table 2's query-guided baseline).

    Args:
        frame_embeds: [N, D] floating point.
        query_embed: [D].
        max_keyframes: K; min(N, K) frames are chosen, ties to the earlier frame.

    Raises:
        ValueError: as `select_keyframes`.
    """
    frames, query, count = _check_baseline(frame_embeds, query_embed, max_keyframes)
    relevance, _ = relevances_of(frames, query[None])
    return _baseline_selection(frames, query, by_relevance(relevance[0], count)[:count].tolist())


def mmr_keyframes(
    frame_embeds: ArrayLike, query_embed: ArrayLike, *, max_keyframes: int = 32, trade_off: float = 0.5
) -> KeyframeSelection:
    """Choose K frames by maximal marginal relevance (Carbonell and Goldstein 1998).

    Each step takes the frame with the largest trade_off·R_f − (1 − trade_off)·T_f; where DKS refuses a redundant
    frame outright, MMR only marks it down. Time O(N·K·D), extra memory O(N).

    Args:
        frame_embeds: [N, D] floating point.
        query_embed: [D].
        max_keyframes: K; min(N, K) frames are chosen.
        trade_off: weight of relevance against redundancy, from 0 to 1.

    Raises:
        ValueError: as `select_keyframes`, or `trade_off` outside 0 to 1.
    """
    frames, query, count = _check_baseline(frame_embeds, query_embed, max_keyframes)
    if not 0 <= finite_number("trade_off", trade_off) <= 1:
        raise ValueError(f"trade_off must lie between 0 and 1, got {trade_off}")
    (relevance,), inverse_norms = relevances_of(frames, query[None])
    left = torch.ones(len(frames), dtype=torch.bool)
    redundancy = torch.full_like(relevance, -math.inf)
    order = [int(by_relevance(relevance, 1)[0])]
    while len(order) < count:
        left[order[-1]] = False
        newest = unit_rows(frames, inverse_norms, torch.tensor(order[-1:]))
        similarity, _ = relevances_of(frames, newest, inverse_norms)
        redundancy = torch.maximum(redundancy, similarity[0])
        gain = trade_off * relevance - (1 - trade_off) * redundancy
        order.append(int(gain.masked_fill(~left, -math.inf).argmax()))
    return _baseline_selection(frames, query, order)


def kmeans_keyframes(
    frame_embeds: ArrayLike, query_embed: ArrayLike, *, max_keyframes: int = 32, seed: int = 0
) -> KeyframeSelection:
    """Choose the most relevant frame of each of K clusters of frames (scikit-learn's k-means on the sphere).

    Args:
        frame_embeds: [N, D] floating point; a normalised copy is made.
        query_embed: [D].
        max_keyframes: K, the number of clusters; fewer frames come back when fewer are distinct.
        seed: of the clustering.

    Raises:
        ValueError: as `select_keyframes`, or a negative seed.
    """
    # Imported here: it takes a second, and only this baseline needs it.
    from sklearn.cluster import KMeans

    if not isinstance(seed, int | np.integer) or seed < 0:
        raise ValueError(f"seed must be an integer of at least 0, got {describe(seed)}")
    frames, query, count = _check_baseline(frame_embeds, query_embed, max_keyframes)
    (relevance,), inverse_norms = relevances_of(frames, query[None])
    units = unit_rows(frames, inverse_norms, torch.arange(len(frames)))
    # k-means warns when asked for more clusters than there are distinct points, so ask for no more.
    clusters = min(count, len(torch.unique(units, dim=0)))
    labels = KMeans(clusters, n_init=1, random_state=seed).fit_predict(units.numpy())
    best: dict[int, int] = {}
    for frame in by_relevance(relevance).tolist():
        best.setdefault(int(labels[frame]), frame)
    return _baseline_selection(frames, query, list(best.values()))


def aks_keyframes(
    frame_embeds: ArrayLike,
    query_embed: ArrayLike,
    *,
    max_keyframes: int = 32,
    max_depth: int = 5,
    contrast: float = 0.8,
) -> KeyframeSelection:
    """Choose frames by adaptive keyframe sampling, AKS (Tang et al. 2025): judge a span, or split it in two.

    Scores are scaled to 0…1 over the video. A span keeps its best frames when they stand out, that is when their mean
    exceeds the span's mean by `contrast`; otherwise its two halves get half of its share each, down to `max_depth`
    splits. Shares are rounded so that min(N, K) frames always come back.

    Args:
        frame_embeds: [N, D] floating point.
        query_embed: [D].
        max_keyframes: K; min(N, K) frames are chosen.
        max_depth: the most times a span is split.
        contrast: how far the best frames' mean must exceed the span's mean, in units of the score range.

    Raises:
        ValueError: as `select_keyframes`.
    """
    frames, query, count = _check_baseline(frame_embeds, query_embed, max_keyframes)
    positive_int("max_depth", max_depth)
    finite_number("contrast", contrast)
    (relevance,), _ = relevances_of(frames, query[None])
    spread = relevance.max() - relevance.min()
    scores = (relevance - relevance.min()) / spread if spread > 0 else torch.zeros_like(relevance)

    def sample(start: int, stop: int, share: int, depth: int) -> list[int]:
        if share == 0:
            return []
        best = by_relevance(scores[start:stop])[:share] + start
        if depth == max_depth or scores[best].mean() - scores[start:stop].mean() > contrast:
            return best.tolist()
        middle = (start + stop) // 2
        # A half can't give more frames than it has; the other one takes what is left.
        first = min(max(share // 2, share - (stop - middle)), middle - start)
        return sample(start, middle, first, depth + 1) + sample(middle, stop, share - first, depth + 1)

    return _ranked_selection(frames, query, set(sample(0, len(frames), count, 0)))


SELECTORS: dict[str, Callable[..., KeyframeSelection]] = {
    "dks": select_keyframes,
    "uniform": uniform_keyframes,
    "top_k": top_k_keyframes,
    "mmr": mmr_keyframes,
    "kmeans": kmeans_keyframes,
    "aks": aks_keyframes,
}


def _check_baseline(
    frame_embeds: ArrayLike, query_embed: ArrayLike, max_keyframes: int
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """The frames, one query [D], and how many keyframes to choose."""
    frames, queries = check_embeds(frame_embeds, query_embed)
    if query_embed.ndim != 1:
        raise ValueError(f"query_embed must have 1 axis here, got {describe(query_embed)}")
    return frames, queries[0], min(positive_int("max_keyframes", max_keyframes), len(frames))


def _ranked_selection(frames: torch.Tensor, query: torch.Tensor, chosen: set[int]) -> KeyframeSelection:
    """A selection by some other rule that has no order of its own: the most relevant frame first."""
    (relevance,), _ = relevances_of(frames, query[None])
    return _baseline_selection(frames, query, [f for f in by_relevance(relevance).tolist() if f in chosen])


def _baseline_selection(frames: torch.Tensor, query: torch.Tensor, order: list[int]) -> KeyframeSelection:
    """A selection by some other rule, with the scores that DKS would have reported; nothing was refused."""
    (relevance,), inverse_norms = relevances_of(frames, query[None])
    redundancy = redundancies(frames, inverse_norms, order)
    return make_selection(order, redundancy, relevance, torch.full((len(frames),), -1))


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
