"""Level 1 of ViLaMP: differential keyframe selection (paper, Algorithm 1), and what it is compared with.

A keyframe should be relevant to the query and unlike the keyframes already chosen:

    R_f(n) = cos(f_n, q)            T_f(n) = max over chosen k of cos(f_n, f_k)

Every selector takes frame embeddings [N, D] and a query embedding [D], and returns a `KeyframeSelection`.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from vilamp_lite.common.checks import ArrayLike, choice, describe, finite_number, float_tensor, positive_int
from vilamp_lite.released import fill_gaps

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
    frames, queries = check_embeds(frame_embeds, query_embed)
    max_keyframes = positive_int("max_keyframes", max_keyframes)
    similarity_threshold = _cosine_bound("similarity_threshold", similarity_threshold)
    floor = -math.inf if relevance_threshold is None else _cosine_bound("relevance_threshold", relevance_threshold)
    choice("fill", fill, ("none", "gaps"))

    relevances, inverse_norms = relevances_of(frames, queries)
    selections = []
    for relevance in relevances:
        order, redundancy, refused_by = _walk(
            frames, inverse_norms, relevance, max_keyframes, similarity_threshold, floor
        )
        if fill == "gaps":
            order += fill_gaps(len(frames), order, max_keyframes)
            redundancy += redundancies(frames, inverse_norms, order, start=len(redundancy))
        selections.append(make_selection(order, redundancy, relevance, refused_by))
    return selections if query_embed.ndim == 2 else selections[0]


def _cosine_bound(name: str, value: float) -> float:
    if not -1 <= finite_number(name, value) <= 1:
        raise ValueError(f"{name} is a cosine, from -1 to 1, got {value}")
    return float(value)


def check_embeds(frame_embeds: ArrayLike, query_embed: ArrayLike) -> tuple[torch.Tensor, torch.Tensor]:
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


@np.errstate(over="ignore", invalid="ignore")  # `_norms` looks after numbers that are too large
def relevances_of(
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


def by_relevance(relevance: torch.Tensor, count: int | None = None) -> np.ndarray:
    """Frame numbers, the most relevant first, ties to the earlier frame: all [N], or at least the first `count`."""
    scores = relevance.numpy()
    if count is None or count >= len(scores):
        return np.argsort(-scores, kind="stable")
    among = np.flatnonzero(scores >= np.partition(scores, -count)[-count])
    return among[np.argsort(-scores[among], kind="stable")]


def unit_rows(frames: torch.Tensor, inverse_norms: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
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
    candidates = by_relevance(relevance, _SORTED_FIRST)[:eligible]
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
            candidates = by_relevance(relevance)[:eligible]
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


def redundancies(frames: torch.Tensor, inverse_norms: torch.Tensor, order: list[int], start: int = 0) -> list[float]:
    """T_f of order[start:], each against all that were chosen before it."""
    units = unit_rows(frames, inverse_norms, torch.tensor(order))
    return [float((units[:i] @ units[i]).clamp_(-1, 1).max()) if i else -math.inf for i in range(start, len(order))]


def make_selection(
    order: list[int], redundancy: list[float], relevance: torch.Tensor, refused_by: torch.Tensor
) -> KeyframeSelection:
    """Put a selection together."""
    chosen = torch.tensor(order, dtype=torch.int64)
    return KeyframeSelection(
        indices=chosen.sort().values,
        order=chosen,
        relevance=relevance,
        redundancy=torch.tensor(redundancy, dtype=relevance.dtype),
        refused_by=refused_by,
    )
