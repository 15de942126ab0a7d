"""Selectors that DKS is compared with, and one registry of all: each takes frames [N, D] and a query [D]."""

import math
from collections.abc import Callable, Iterable

import numpy as np
import torch

from vilamp_lite.common.checks import ArrayLike, choice, describe, finite_number, positive_int
from vilamp_lite.keyframes import KeyframeSelection, ScoredFrames, descending, score_frames, select_keyframes
from vilamp_lite.modeling import ViLaMPForConditionalGeneration


def uniform_keyframes(frame_embeds: ArrayLike, query_embed: ArrayLike, *, max_keyframes: int = 32) -> KeyframeSelection:
    """Choose the middle frames of K equal parts of the video, whatever they show (Table 2's baseline).

    `order` ranks them by relevance, so that "the first five" means the same as for the other selectors.

    Args:
        frame_embeds: [N, D] floating point; used only to rank the frames and report their scores.
        query_embed: [D]; likewise.
        max_keyframes: K; min(N, K) frames are chosen.
    """
    video, count = _scored(frame_embeds, query_embed, max_keyframes)
    middles = [(2 * part + 1) * len(video.frames) // (2 * count) for part in range(count)]
    return video.selection(_ranked(video, middles))


def top_k_keyframes(frame_embeds: ArrayLike, query_embed: ArrayLike, *, max_keyframes: int = 32) -> KeyframeSelection:
    """Choose the K most relevant frames, however alike (Table 2's query-guided baseline).

    Args:
        frame_embeds: [N, D] floating point.
        query_embed: [D].
        max_keyframes: K; min(N, K) frames are chosen, ties to the earlier frame.
    """
    video, count = _scored(frame_embeds, query_embed, max_keyframes)
    return video.selection(descending(video.relevance)[:count].tolist())


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
    """
    if not 0 <= finite_number("trade_off", trade_off) <= 1:
        raise ValueError(f"trade_off must lie between 0 and 1, got {trade_off}")
    video, count = _scored(frame_embeds, query_embed, max_keyframes)
    order = [int(video.relevance.argmax())]
    redundancy = np.full_like(video.relevance, -1)
    while len(order) < count:
        (newest,) = score_frames(video.frames, video.frames[order[-1]])
        redundancy = np.maximum(redundancy, newest.relevance)
        gain = trade_off * video.relevance - (1 - trade_off) * redundancy
        gain[order] = -math.inf
        order.append(int(gain.argmax()))
    return video.selection(order)


def kmeans_keyframes(
    frame_embeds: ArrayLike, query_embed: ArrayLike, *, max_keyframes: int = 32, seed: int = 0
) -> KeyframeSelection:
    """Choose the most relevant frame of each of K clusters of frames (scikit-learn's k-means on the sphere).

    Args:
        frame_embeds: [N, D] floating point; a normalised copy is made.
        query_embed: [D].
        max_keyframes: K, the number of clusters; fewer frames come back when fewer are distinct.
        seed: of the clustering.
    """
    # Imported here: it takes a second, and only this baseline needs it.
    from sklearn.cluster import KMeans

    if not isinstance(seed, int | np.integer) or seed < 0:
        raise ValueError(f"seed must be an integer of at least 0, got {describe(seed)}")
    video, count = _scored(frame_embeds, query_embed, max_keyframes)
    units = video.units(slice(None))
    # k-means warns when asked for more clusters than there are distinct points, so ask for no more.
    clusters = min(count, len(np.unique(units, axis=0)))
    labels = KMeans(clusters, n_init=1, random_state=seed).fit_predict(units)
    best: dict[int, int] = {}
    for frame in descending(video.relevance).tolist():
        best.setdefault(int(labels[frame]), frame)
    return video.selection(list(best.values()))


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
    exceeds the span's mean by more than `contrast`; otherwise its two halves get half of its share each, down to
    `max_depth` splits. Shares are rounded so that min(N, K) frames always come back.

    Args:
        frame_embeds: [N, D] floating point.
        query_embed: [D].
        max_keyframes: K; min(N, K) frames are chosen.
        max_depth: the most times a span is split.
        contrast: how far the best frames' mean must exceed the span's mean, in units of the score range.
    """
    positive_int("max_depth", max_depth)
    finite_number("contrast", contrast)
    video, count = _scored(frame_embeds, query_embed, max_keyframes)
    lowest, highest = video.relevance.min(), video.relevance.max()
    scores = (video.relevance - lowest) / (highest - lowest if highest > lowest else 1)

    def sample(start: int, stop: int, share: int, depth: int) -> list[int]:
        if share == 0:
            return []
        best = descending(scores[start:stop])[:share] + start
        if depth == max_depth or scores[best].mean() - scores[start:stop].mean() > contrast:
            return best.tolist()
        middle = (start + stop) // 2
        # A half can't give more frames than it has; the other one takes what is left.
        first = min(max(share // 2, share - (stop - middle)), middle - start)
        return sample(start, middle, first, depth + 1) + sample(middle, stop, share - first, depth + 1)

    return video.selection(_ranked(video, sample(0, len(scores), count, 0)))


SELECTORS: dict[str, Callable[..., KeyframeSelection]] = {
    "dks": select_keyframes,
    "uniform": uniform_keyframes,
    "top_k": top_k_keyframes,
    "mmr": mmr_keyframes,
    "kmeans": kmeans_keyframes,
    "aks": aks_keyframes,
}


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
    """
    if choice("selector", selector, tuple(SELECTORS)) == "dks":
        return model.select(frame_embeds, query_embed).indices
    return SELECTORS[selector](frame_embeds, query_embed, max_keyframes=model.config.max_keyframes).indices


def _scored(frame_embeds: ArrayLike, query_embed: ArrayLike, max_keyframes: int) -> tuple[ScoredFrames, int]:
    """The frames with their scores for one query, computed once, and how many of them to choose."""
    positive_int("max_keyframes", max_keyframes)
    video, *others = score_frames(frame_embeds, query_embed)
    if others or query_embed.ndim != 1:
        raise ValueError(f"query_embed must have 1 axis here, got {describe(query_embed)}")
    return video, min(max_keyframes, len(video.frames))


def _ranked(video: ScoredFrames, chosen: Iterable[int]) -> list[int]:
    """Frames without an order of their own: the most relevant one first, ties to the earlier frame."""
    return sorted(sorted(chosen), key=lambda frame: -video.relevance[frame])
