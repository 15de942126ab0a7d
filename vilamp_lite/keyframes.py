"""Level 1 of ViLaMP: differential keyframe selection (paper, Algorithm 1), and what it is compared with.

A keyframe should be relevant to the query and unlike the keyframes already chosen:

    R_f(n) = cos(f_n, q)            T_f(n) = max over chosen k of cos(f_n, f_k)

Every selector takes frame embeddings [N, D] and a query embedding [D], and returns a `KeyframeSelection`.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from vilamp_lite.checks import ArrayLike, choice, describe, finite_number, float_tensor, positive_int

_SCORED_ROWS = 256  # few enough to stay in a core's cache between the two dot products
_SAFE_SQUARES = (1e-20, 1e36)  # float32 keeps its precision between them
_CANDIDATES = 192  # fetched at a time
_SORTED_FIRST = 1024  # more than most walks visit


@dataclass(frozen=True, eq=False)
class KeyframeSelection:
    """Keyframes of one video for one query; all tensors lie on the CPU.

    Attributes:
        indices: [K'] int64, frame numbers in temporal order.
        order: [K'] int64, the same frames in the order they were chosen; gap-filling frames come last.
        relevance: [N] R_f, the cosine of every frame with the query; float32 (float64 for float64 input).
        redundancy: [K'] T_f of each frame of `order` when it was chosen; −inf for the first.
        refused_by: [N] int64, the keyframe most like a frame that was refused; −1 where none refused it.
    """

    indices: torch.Tensor
    order: torch.Tensor
    relevance: torch.Tensor
    redundancy: torch.Tensor
    refused_by: torch.Tensor


def select_keyframes(
    frame_embeds: ArrayLike,
    query_embed: ArrayLike,
    *,
    max_keyframes: int = 32,
    similarity_threshold: float = 0.85,
    relevance_threshold: float | None = None,
    fill: str = "none",
) -> KeyframeSelection | list[KeyframeSelection]:
    """Choose the frames that matter for a query and differ from each other (paper, Algorithm 1).

    Frames are visited from the most to the least relevant. A frame is refused when its cosine with a chosen
    one is above the threshold; equality is accepted. The walk ends after `max_keyframes`, so fewer may be chosen.
    Time O(N·D + N log N + visited·K·D), extra memory O(N + K·D): candidates are compared in blocks with the chosen
    frames only, never with each other.

    Args:
        frame_embeds: [N, D] floating point, any scale; a zero vector has cosine 0 with everything.
        query_embed: [D], or [Q, D] for several queries over one video (the frames' norms are computed once).
        max_keyframes: K, the most keyframes to choose.
        similarity_threshold: τ, the largest cosine two keyframes may have.
        relevance_threshold: if given, frames with a smaller R_f are not visited (the released code's floor, 0.2).
        fill: "none" as in the paper; "gaps" then adds evenly spaced frames until min(N, K) are chosen, as the
            released code does.

    Returns:
        One selection, or a list of Q selections for queries [Q, D]. Ties in relevance go to the earlier frame.

    Raises:
        ValueError: NaN or infinity, wrong rank, no frames, mismatched D, K < 1, or a parameter out of its range.
    """
    frames, queries = _check_embeds(frame_embeds, query_embed)
    max_keyframes = positive_int("max_keyframes", max_keyframes)
    similarity_threshold = _cosine_bound("similarity_threshold", similarity_threshold)
    floor = -math.inf if relevance_threshold is None else _cosine_bound("relevance_threshold", relevance_threshold)
    choice("fill", fill, ("none", "gaps"))

    relevances, inverse_norms = _relevance(frames, queries)
    selections = []
    for relevance in relevances:
        order, redundancy, refused_by = _walk(
            frames, inverse_norms, relevance, max_keyframes, similarity_threshold, floor
        )
        if fill == "gaps":
            order += _fill_gaps(len(frames), order, max_keyframes)
            redundancy += _redundancy(frames, inverse_norms, order, start=len(redundancy))
        selections.append(_selection(order, redundancy, relevance, refused_by))
    return selections if query_embed.ndim == 2 else selections[0]


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


def top_relevance_keyframes(
    frame_embeds: ArrayLike, query_embed: ArrayLike, *, max_keyframes: int = 32
) -> KeyframeSelection:
    """Choose the K most relevant frames, however alike (Table 2's query-guided baseline).

    Args:
        frame_embeds: [N, D] floating point.
        query_embed: [D].
        max_keyframes: K; min(N, K) frames are chosen, ties to the earlier frame.

    Raises:
        ValueError: as `select_keyframes`.
    """
    frames, query, count = _check_baseline(frame_embeds, query_embed, max_keyframes)
    relevance, _ = _relevance(frames, query[None])
    return _baseline_selection(frames, query, _by_relevance(relevance[0], count)[:count].tolist())


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
    (relevance,), inverse_norms = _relevance(frames, query[None])
    left = torch.ones(len(frames), dtype=torch.bool)
    redundancy = torch.full_like(relevance, -math.inf)
    order = [int(_by_relevance(relevance, 1)[0])]
    while len(order) < count:
        left[order[-1]] = False
        newest = _unit_rows(frames, inverse_norms, torch.tensor(order[-1:]))
        similarity, _ = _relevance(frames, newest, inverse_norms)
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
    (relevance,), inverse_norms = _relevance(frames, query[None])
    units = _unit_rows(frames, inverse_norms, torch.arange(len(frames)))
    # k-means warns when asked for more clusters than there are distinct points, so ask for no more.
    clusters = min(count, len(torch.unique(units, dim=0)))
    labels = KMeans(clusters, n_init=1, random_state=seed).fit_predict(units.numpy())
    best: dict[int, int] = {}
    for frame in _by_relevance(relevance).tolist():
        best.setdefault(int(labels[frame]), frame)
    return _baseline_selection(frames, query, list(best.values()))


def adaptive_keyframes(
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
    (relevance,), _ = _relevance(frames, query[None])
    spread = relevance.max() - relevance.min()
    scores = (relevance - relevance.min()) / spread if spread > 0 else torch.zeros_like(relevance)

    def sample(start: int, stop: int, share: int, depth: int) -> list[int]:
        if share == 0:
            return []
        best = _by_relevance(scores[start:stop])[:share] + start
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
    "top_relevance": top_relevance_keyframes,
    "mmr": mmr_keyframes,
    "kmeans": kmeans_keyframes,
    "adaptive": adaptive_keyframes,
}


def _cosine_bound(name: str, value: float) -> float:
    if not -1 <= finite_number(name, value) <= 1:
        raise ValueError(f"{name} is a cosine, from -1 to 1, got {value}")
    return float(value)


def _check_embeds(frame_embeds: ArrayLike, query_embed: ArrayLike) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames [N, D] as given, and queries [Q, D] as unit vectors in the precision of the scores."""
    frames = float_tensor("frame_embeds", frame_embeds, 2).detach()
    queries = float_tensor("query_embed", query_embed, 1, 2).detach()
    if queries.shape[-1] != frames.shape[1]:
        raise ValueError(
            f"frame_embeds and query_embed must have the same size D, got {describe(frames)} and {describe(queries)}"
        )
    norms = torch.linalg.vector_norm(queries, dim=-1, dtype=torch.float64)
    if not torch.isfinite(norms).all():
        raise ValueError("query_embed holds NaN or infinity, or values too large to square")
    units = queries.to(torch.float64) * _inverse(norms)[..., None]
    return frames, torch.atleast_2d(units).to("cpu", torch.promote_types(frames.dtype, torch.float32))


def _check_baseline(
    frame_embeds: ArrayLike, query_embed: ArrayLike, max_keyframes: int
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """The frames, one query [D], and how many keyframes to choose."""
    frames, queries = _check_embeds(frame_embeds, query_embed)
    if query_embed.ndim != 1:
        raise ValueError(f"query_embed must have 1 axis here, got {describe(query_embed)}")
    return frames, queries[0], min(positive_int("max_keyframes", max_keyframes), len(frames))


@np.errstate(over="ignore", invalid="ignore")  # `_norms` looks after numbers that are too large
def _relevance(
    frames: torch.Tensor, queries: torch.Tensor, inverse_norms: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines [Q, N] of every frame with every unit query, and the frames' inverse norms [N] (0 for a zero vector).

    `np.vecdot` takes each row by itself, so that equal frames get equal scores wherever they stand and ties stay ties;
    a matrix product does not promise that.
    """
    units = queries.numpy()
    dots = np.empty((len(units), len(frames)), units.dtype)
    squares = np.empty(len(frames), units.dtype)
    for start, block in zip(range(0, len(frames), _SCORED_ROWS), frames.split(_SCORED_ROWS), strict=True):
        rows = block.to("cpu", queries.dtype).numpy()
        part = slice(start, start + len(rows))
        for unit, dot in zip(units, dots, strict=True):
            np.vecdot(rows, unit, out=dot[part])
        if inverse_norms is None:
            np.vecdot(rows, rows, out=squares[part])
    if inverse_norms is None:
        inverse_norms = _inverse(torch.from_numpy(_norms(frames, squares)))
    return torch.from_numpy(dots).mul_(inverse_norms), inverse_norms


def _norms(frames: torch.Tensor, squares: np.ndarray) -> np.ndarray:
    """Lengths [N] of frames, given their squares; where those leave the range of the type, in double precision."""
    norms = np.sqrt(squares)
    (unsafe,) = np.nonzero(~((squares > _SAFE_SQUARES[0]) & (squares < _SAFE_SQUARES[1])))
    for start in range(0, len(unsafe), _SCORED_ROWS):
        part = unsafe[start : start + _SCORED_ROWS]
        rows = frames[torch.from_numpy(part).to(frames.device)].to("cpu", torch.float64)
        norms[part] = np.linalg.norm(rows.numpy(), axis=1)
    bad = unsafe[~np.isfinite(norms[unsafe])]
    if len(bad):
        raise ValueError(f"frame_embeds holds NaN or infinity, or numbers near the largest, first in frame {bad[0]}")
    return norms


def _inverse(norms: torch.Tensor) -> torch.Tensor:
    """One over each norm, and 0 for a norm too small to invert."""
    return torch.where(norms > torch.finfo(norms.dtype).tiny, 1 / norms, 0)


def _by_relevance(relevance: torch.Tensor, count: int | None = None) -> np.ndarray:
    """Frame numbers, the most relevant first, ties to the earlier frame: all [N], or at least the first `count`."""
    scores = relevance.numpy()
    if count is None or count >= len(scores):
        return np.argsort(-scores, kind="stable")
    among = np.flatnonzero(scores >= np.partition(scores, -count)[-count])
    return among[np.argsort(-scores[among], kind="stable")]


def _unit_rows(frames: torch.Tensor, inverse_norms: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """The chosen frames [len(rows), D], L2-normalised, in the precision of the scores."""
    return frames[rows.to(frames.device)].to("cpu", inverse_norms.dtype) * inverse_norms[rows, None]


def _walk(
    frames: torch.Tensor,
    inverse_norms: torch.Tensor,
    relevance: torch.Tensor,
    max_keyframes: int,
    threshold: float,
    floor: float,
) -> tuple[list[int], list[float], torch.Tensor]:
    """Algorithm 1: the keyframes in the order chosen, their T_f, and who refused each frame [N].

    Candidates are fetched a block at a time, best first, and compared with the chosen frames in one product.
    """
    eligible = np.count_nonzero(relevance.numpy() >= floor)
    candidates = _by_relevance(relevance, _SORTED_FIRST)[:eligible]
    inverses = inverse_norms.numpy()
    refused_by = np.full(len(frames), -1)
    order: list[int] = []
    redundancy: list[float] = []
    keyframes = inverse_norms.new_empty(min(max_keyframes, eligible), frames.shape[1])  # unit vectors
    chosen = keyframes.numpy()
    buffer = frames.new_empty(_CANDIDATES, frames.shape[1])
    start = 0
    while start < eligible and len(order) < max_keyframes:
        if start + _CANDIDATES > len(candidates) < eligible:
            candidates = _by_relevance(relevance)[:eligible]
        block = candidates[start : start + _CANDIDATES]
        numbers = torch.from_numpy(block).to(frames.device)
        rows = torch.index_select(frames, 0, numbers, out=buffer[: len(block)]).to("cpu", inverse_norms.dtype)
        vectors, scale = rows.numpy(), inverses[block]
        nearest = np.full(len(block), -math.inf, scale.dtype)
        nearest_keyframe = np.full(len(block), -1)
        if order:
            similarity, which = (rows @ keyframes[: len(order)].T).max(dim=1)
            nearest = _cosine(similarity.numpy(), scale)
            nearest_keyframe = np.array(order)[which.numpy()]
        position = 0  # frames before it have been visited
        while len(order) < max_keyframes:
            (accepted,) = (nearest[position:] <= threshold).nonzero()
            if not len(accepted):
                position = len(block)
                break
            position += int(accepted[0])
            unit = np.multiply(vectors[position], scale[position], out=chosen[len(order)])
            order.append(int(block[position]))
            redundancy.append(float(nearest[position]))
            position += 1
            # Of this block only the frames still to be visited see the new keyframe.
            later = nearest[position:]
            similarity = _cosine(np.vecdot(vectors[position:], unit), scale[position:])
            nearest_keyframe[position:][similarity > later] = order[-1]
            np.maximum(similarity, later, out=later)
        refused = nearest[:position] > threshold
        refused_by[block[:position][refused]] = nearest_keyframe[:position][refused]
        start += len(block)
    return order, redundancy, torch.from_numpy(refused_by)


def _cosine(dots: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Cosines from dots with unit vectors; rounding must not carry one beyond 1, where τ = 1 would refuse it."""
    return np.minimum(dots * scale, 1)


def _fill_gaps(num_frames: int, chosen: list[int], max_keyframes: int) -> list[int]:
    """Frames that the released code adds to reach min(N, K), gap by gap, then what is left from the end backwards.

    A gap is a longest run of frames not chosen. The smallest spacing is sought for which all gaps together need no more
    frames than the budget; a gap of length L then gets ⌈L / spacing⌉ − 1 of them at equal steps. What remains of the
    budget goes to the last frames of the last gap: the ends of videos get more than their share.
    """
    budget = min(num_frames, max_keyframes) - len(chosen)
    borders = [-1, *sorted(chosen), num_frames]
    gaps = [(a + 1, b) for a, b in itertools.pairwise(borders) if b - a > 1]

    def needed(spacing: int) -> int:
        return sum(math.ceil((stop - start) / spacing) - 1 for start, stop in gaps)

    low, high = 1, num_frames
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if needed(middle) <= budget else (middle + 1, high)

    filled: list[int] = []
    for start, stop in gaps:
        count = math.ceil((stop - start) / low) - 1
        step = math.ceil((stop - start) / (count + 1))
        filled += [min(start + i * step, stop - 1) for i in range(1, count + 1)]
    filled = list(dict.fromkeys(filled))  # equal steps can meet at a gap's last frame
    taken = set(filled)
    backwards = (frame for start, stop in reversed(gaps) for frame in reversed(range(start, stop)))
    spare = (frame for frame in backwards if frame not in taken)
    return filled + [frame for _, frame in zip(range(budget - len(filled)), spare, strict=False)]


def _redundancy(frames: torch.Tensor, inverse_norms: torch.Tensor, order: list[int], start: int = 0) -> list[float]:
    """T_f of order[start:], each against all that were chosen before it."""
    units = _unit_rows(frames, inverse_norms, torch.tensor(order))
    return [float((units[:i] @ units[i]).clamp_(-1, 1).max()) if i else -math.inf for i in range(start, len(order))]


def _selection(
    order: list[int], redundancy: list[float], relevance: torch.Tensor, refused_by: torch.Tensor
) -> KeyframeSelection:
    chosen = torch.tensor(order, dtype=torch.int64)
    return KeyframeSelection(
        indices=chosen.sort().values,
        order=chosen,
        relevance=relevance,
        redundancy=torch.tensor(redundancy, dtype=relevance.dtype),
        refused_by=refused_by,
    )


def _ranked_selection(frames: torch.Tensor, query: torch.Tensor, chosen: set[int]) -> KeyframeSelection:
    """A selection by some other rule that has no order of its own: the most relevant frame first."""
    (relevance,), _ = _relevance(frames, query[None])
    return _baseline_selection(frames, query, [f for f in _by_relevance(relevance).tolist() if f in chosen])


def _baseline_selection(frames: torch.Tensor, query: torch.Tensor, order: list[int]) -> KeyframeSelection:
    """A selection by some other rule, with the scores that DKS would have reported; nothing was refused."""
    (relevance,), inverse_norms = _relevance(frames, query[None])
    redundancy = _redundancy(frames, inverse_norms, order)
    return _selection(order, redundancy, relevance, torch.full((len(frames),), -1))
