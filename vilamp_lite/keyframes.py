"""Level 1 of ViLaMP: differential keyframe selection (paper, Algorithm 1).

A keyframe should be relevant to the query and unlike the keyframes already chosen:

    R_f(n) = cos(f_n, q)            T_f(n) = max over chosen k of cos(f_n, f_k)
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from vilamp_lite.common.checks import ArrayLike, choice, cosine, describe, float_tensor, positive_int, require_finite

_ROWS = 256  # frames in double precision at a time: they stay in a core's cache


@dataclass(frozen=True, eq=False)
class KeyframeSelection:
    """Keyframes of one video for one query; all tensors lie on the CPU.

    Attributes:
        indices: [K'] int64, frame numbers in temporal order.
        order: [K'] int64, the same frames in the order they were chosen; gap-filling frames come last.
        relevance: [N] R_f, the cosine of every frame with the query; float32 (float64 for float64 input).
        redundancy: [K'] T_f of each frame of `order` when it was chosen; −inf for the first.
        refused_by: [N] int64, of the keyframes chosen so far the one most like a frame that was refused; −1 elsewhere.
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

    Time O(N·D + N log N + visited·K·D), extra memory O(N + K·D).

    Args:
        frame_embeds: [N, D] floating point, any scale; a zero vector has cosine 0 with everything.
        query_embed: [D], or [Q, D] for several queries over one video.
        max_keyframes: K, the most keyframes to choose; fewer may be.
        similarity_threshold: τ, the largest cosine two keyframes may have.
        relevance_threshold: if given, frames with a smaller R_f are not visited (the released code's floor, 0.2).
        fill: "none" as in the paper; "gaps" adds evenly spaced frames up to min(N, K), as the released code does.

    Returns:
        One selection, or a list of Q selections for queries [Q, D]. Ties in relevance go to the earlier frame.
    """
    check_rule(max_keyframes, similarity_threshold, relevance_threshold, fill)
    floor = -math.inf if relevance_threshold is None else relevance_threshold
    selections = []
    for video in score_frames(frame_embeds, query_embed):
        order, refused_by = _algorithm_1(video, max_keyframes, similarity_threshold, floor)
        if fill == "gaps":
            from vilamp_lite.released import fill_gaps  # here, since it loads transformers

            order += fill_gaps(len(refused_by), order, max_keyframes)
        selections.append(video.selection(order, refused_by))
    return selections if query_embed.ndim == 2 else selections[0]


def _algorithm_1(
    video: "ScoredFrames", max_keyframes: int, threshold: float, floor: float
) -> tuple[list[int], np.ndarray]:
    """Walk down the frames by relevance and take each one that no keyframe chosen so far resembles too much."""
    num_frames, size = video.frames.shape
    keyframes = np.empty((min(max_keyframes, num_frames), size), video.relevance.dtype)  # unit vectors
    order: list[int] = []
    refused_by = np.full(num_frames, -1)
    for frame in descending(video.relevance):
        if len(order) == max_keyframes or video.relevance[frame] < floor:
            break
        unit = video.units(frame)
        redundancy, nearest = _redundancy(unit, keyframes[: len(order)])
        if redundancy <= threshold:
            keyframes[len(order)] = unit
            order.append(int(frame))
        else:
            refused_by[frame] = order[nearest]
    return order, refused_by


def _redundancy(unit: np.ndarray, keyframes: np.ndarray) -> tuple[float, int]:
    """T_f of a frame [D], and which of the keyframes [k, D] it is most like; −∞ before there is any."""
    if not len(keyframes):
        return -math.inf, -1
    cosines = keyframes @ unit
    nearest = int(cosines.argmax())
    return min(cosines[nearest], 1), nearest  # Rounding can give more than 1, which τ = 1 would refuse.


def check_rule(max_keyframes: int, similarity_threshold: float, relevance_threshold: float | None, fill: str) -> None:
    """Refuse settings that `select_keyframes` can't follow."""
    positive_int("max_keyframes", max_keyframes)
    cosine("similarity_threshold", similarity_threshold)
    if relevance_threshold is not None:
        cosine("relevance_threshold", relevance_threshold)
    choice("fill", fill, ("none", "gaps"))


@dataclass(frozen=True, eq=False)
class ScoredFrames:
    """A video and its scores for one query, which every selector starts from."""

    frames: torch.Tensor  # [N, D] as given
    norms: np.ndarray  # [N] float64, infinite for a zero vector
    relevance: np.ndarray  # [N] R_f: float32, or float64 for such frames

    def units(self, which: int | slice | list[int]) -> np.ndarray:
        """One frame [D] or several [n, D], L2-normalised, in the precision of the scores."""
        rows = self.frames[which].cpu().double().numpy()
        return (rows / self.norms[which, None]).astype(self.relevance.dtype)

    def selection(self, order: list[int], refused_by: np.ndarray | None = None) -> KeyframeSelection:
        """The frames that a selector has chosen, with T_f of each against those before it."""
        units = self.units(order)
        redundancy = [_redundancy(units[n], units[:n])[0] for n in range(len(order))]
        chosen, relevance = torch.tensor(order, dtype=torch.int64), torch.from_numpy(self.relevance)
        return KeyframeSelection(
            indices=chosen.sort().values,
            order=chosen,
            relevance=relevance,
            redundancy=torch.tensor(redundancy, dtype=relevance.dtype),
            refused_by=torch.from_numpy(np.full(len(relevance), -1) if refused_by is None else refused_by),
        )


def descending(scores: np.ndarray) -> np.ndarray:
    """Frame numbers [N], the highest score first, ties to the earlier frame."""
    return np.argsort(-scores, kind="stable")


@np.errstate(over="ignore", invalid="ignore")  # `_norms` names what is too large
def score_frames(frame_embeds: ArrayLike, query_embed: ArrayLike) -> list[ScoredFrames]:
    """Score frames [N, D] for each query of [D] or [Q, D], in double precision, where squares of floats stay in range.

    `np.vecdot` takes each row by itself, so that equal frames get equal scores wherever they stand and ties stay ties;
    a matrix product does not promise that.
    """
    frames = float_tensor("frame_embeds", frame_embeds, 2).detach()
    queries = torch.atleast_2d(float_tensor("query_embed", query_embed, 1, 2).detach()).cpu().double()
    if queries.shape[1] != frames.shape[1]:
        raise ValueError(f"query_embed must have the frames' size D, {frames.shape[1]}, got {describe(query_embed)}")
    asked = queries.numpy()
    asked = asked / _norms(np.vecdot(asked, asked), query_embed=queries)[:, None]
    squares, dots = np.empty(len(frames)), np.empty((len(asked), len(frames)))
    for start in range(0, len(frames), _ROWS):
        part = slice(start, start + _ROWS)
        rows = frames[part].cpu().double().numpy()
        squares[part], dots[:, part] = np.vecdot(rows, rows), np.vecdot(rows, asked[:, None])
    norms = _norms(squares, frame_embeds=frames)
    precision = np.float64 if frames.dtype == torch.float64 else np.float32
    return [ScoredFrames(frames, norms, relevance) for relevance in (dots / norms).astype(precision)]


def _norms(squares: np.ndarray, **rows: torch.Tensor) -> np.ndarray:
    """Lengths [n] to divide by, infinite for a zero vector: its cosines are 0."""
    require_finite(torch.from_numpy(squares), **rows)
    return np.where(squares > 0, np.sqrt(squares), math.inf)
