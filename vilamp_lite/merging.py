"""Level 2 of ViLaMP: differential feature merging (the paper's DFM).

A keyframe keeps its M patch tokens; every other frame n becomes one token. With k the nearest preceding keyframe:

    D_p(n, m) = cos(p_n^m, q) − λ · cos(p_n^m, p_k^m)       relevance minus redundancy of patch m
    w_n = softmax over m of D_p(n, ·) / α                   t_n = Σ_m w_n^m p_n^m

A merger takes (patches [B, M, D], reference [B, M, D] or [M, D], query) and returns (tokens [B, D], weights [B, M]):
what a frame became, and how much each patch gave to it. What DFM is compared with is in `baselines/mergers.py`.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from vilamp_lite.common.checks import (
    ArrayLike,
    choice,
    describe,
    finite_number,
    float_tensor,
    positive_int,
    require_finite,
)
from vilamp_lite.common.precision import full_precision

# A cosine's denominator is held above this, so that a zero vector has cosine 0 with everything.
_EPS = 1e-8
# With patches of norm 100 and a temperature of 0.01, scores then differ by about 1e-3 before the softmax.
_NEUTRAL_STD = 1e-7


def differential_merge(
    patches: torch.Tensor,
    reference: torch.Tensor,
    query: torch.Tensor,
    *,
    redundancy_weight: float = 1.0,
    temperature: float = 0.01,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Merge each frame's patches into one token: relevant to the query, unlike the keyframe (the paper's bare formula).

    Patches and query must share a space; `DifferentialMerger` learns one where they don't.

    Args:
        patches: [B, M, D] patch features of B frames.
        reference: [M, D] patch features of the keyframe they are compared with, or [B, M, D], one for each frame.
        query: [D].
        redundancy_weight: λ, how much a patch loses by resembling the keyframe's patch at the same position.
        temperature: α, how sharp the pooling is; large values give the mean.

    Returns:
        tokens [B, D] and weights [B, M], which sum to 1 over the patches.
    """
    patches, reference, query = check_merge_inputs(patches, reference, query, same_size=True)
    redundancy_weight = finite_number("redundancy_weight", redundancy_weight)
    temperature = finite_number("temperature", temperature, above=0)
    score = cosine_with_unit(patches, unit(query)) - redundancy_weight * cosine_with_unit(patches, unit(reference))
    tokens, weights = weighted_sum(patches, score / temperature)
    require_finite(tokens, patches=patches, reference=reference, query=query)
    return tokens, weights


class DifferentialMerger(nn.Module):
    """Differential merging with learned maps, for patches and queries from different spaces.

    "mapped" relevance is cos(W_q q, W_p p) and "raw" relevance cos(q, p); "mapped" redundancy is cos(W_k p_k, W_d p)
    and "raw" redundancy cos(p_k, p). Mapped + mapped is the released code's form, with its four maps and learned
    temperature; mapped + raw is the `paper()` preset's.

    A video's query is mapped once (`map_query`) and a keyframe's patches once (`map_reference`); `merge` then takes any
    number of frames. `forward` does the three in a row.
    """

    def __init__(
        self,
        hidden_size: int,
        query_size: int,
        relevance: str = "mapped",
        redundancy: str = "mapped",
        *,
        redundancy_weight: float = 1.0,
        temperature: float = 0.01,
    ) -> None:
        """Build the maps that the two scores need.

        Args:
            hidden_size: D, the size of a patch feature.
            query_size: the size of the query embedding; must be D for raw relevance.
            relevance: "mapped" or "raw".
            redundancy: "mapped" or "raw".
            redundancy_weight: λ, fixed.
            temperature: α at the start; it is learned.
        """
        super().__init__()
        self.hidden_size = positive_int("hidden_size", hidden_size)
        self.query_size = positive_int("query_size", query_size)
        self.redundancy_weight = finite_number("redundancy_weight", redundancy_weight)
        self.temperature = nn.Parameter(torch.tensor(finite_number("temperature", temperature, above=0)))
        if choice("relevance", relevance, ("mapped", "raw")) == "raw" and query_size != hidden_size:
            raise ValueError(f"raw relevance needs query_size equal to hidden_size, got {query_size} and {hidden_size}")
        mapped_redundancy = choice("redundancy", redundancy, ("mapped", "raw")) == "mapped"
        mapped_relevance = relevance == "mapped"
        self.query_map = linear_map(query_size, hidden_size) if mapped_relevance else nn.Identity()
        self.relevance_map = linear_map(hidden_size, hidden_size) if mapped_relevance else nn.Identity()
        self.reference_map = linear_map(hidden_size, hidden_size) if mapped_redundancy else nn.Identity()
        self.redundancy_map = linear_map(hidden_size, hidden_size) if mapped_redundancy else nn.Identity()

    @torch.no_grad()
    def start_neutral(self) -> None:
        """Set the maps so that the merge starts as the mean of the patches and everything in it still learns.

        The two sides of each cosine end in orthogonal biases, beside which the weights hardly count: every patch starts
        with a score near 0. The weights are not zero: equal scores for all patches would give the query's and the
        reference's maps no gradient, since a softmax does not see what its inputs share.

        Raises:
            ValueError: a score is raw, so that its start can't be chosen.
        """
        maps = (self.query_map, self.relevance_map, self.reference_map, self.redundancy_map)
        if not all(isinstance(linear, nn.Linear) for linear in maps):
            raise ValueError("a merge can start neutral only with relevance='mapped' and redundancy='mapped'")
        for position, linear in enumerate(maps):
            nn.init.normal_(linear.weight, std=_NEUTRAL_STD)
            nn.init.zeros_(linear.bias)
            linear.bias[position % 2] = 1

    def map_query(self, query: torch.Tensor) -> torch.Tensor:
        """Map a query [query_size] to a unit vector [D]; once per video. Shapes are checked by `forward`, not here.

        Raises:
            ValueError: training has let the temperature fall to 0 or below, where the merge would turn upside down.
        """
        if not self.temperature.is_meta and not self.temperature > 0:
            raise ValueError(
                f"the merge's temperature α is {self.temperature.item():.3g}, but must be above 0: train with a lower "
                "learning rate, or start from a larger α"
            )
        return unit(self.query_map(query))

    def map_reference(self, reference: torch.Tensor) -> torch.Tensor:
        """Map a keyframe's patches [M, D] (or [B, M, D]) to unit vectors of the same shape; once per keyframe.

        Shapes are checked by `forward`, not here.
        """
        return unit(self.reference_map(reference))

    def merge(
        self, patches: torch.Tensor, mapped_reference: torch.Tensor, mapped_query: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Merge patches [B, M, D], given what `map_reference` and `map_query` made.

        Returns:
            tokens [B, D] and weights [B, M].
        """
        relevance = cosine_with_unit(self.relevance_map(patches), mapped_query)
        redundancy = cosine_with_unit(self.redundancy_map(patches), mapped_reference)
        score = relevance - self.redundancy_weight * redundancy
        tokens, weights = weighted_sum(patches, score / self.temperature)
        require_finite(tokens, patches=patches, reference=mapped_reference, query=mapped_query)
        return tokens, weights

    def forward(
        self, patches: torch.Tensor, reference: torch.Tensor, query: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Merge each frame's patches into one token.

        Args:
            patches: [B, M, D].
            reference: [M, D] or [B, M, D], the keyframe's patches.
            query: [query_size].

        Returns:
            tokens [B, D] and weights [B, M], which sum to 1 over the patches.
        """
        sizes = {"query_size": self.query_size, "hidden_size": self.hidden_size}
        patches, reference, query = check_merge_inputs(patches, reference, query, **sizes)
        return self.merge(patches, self.map_reference(reference), self.map_query(query))


def merge_frames(
    merger: DifferentialMerger,
    patches: torch.Tensor,
    reference_of: torch.Tensor,
    query: torch.Tensor,
    *,
    chunk_size: int = 8,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Merge every frame of a video, a chunk at a time; extra memory is that of one chunk, besides the result.

    Args:
        merger: the learned merger.
        patches: [N, M, D] of the whole video, in temporal order.
        reference_of: [N] int64, the frame each frame is compared with (`preceding_keyframe`).
        query: [query_size].
        chunk_size: frames merged at a time; it does not change the result.

    Returns:
        tokens [N, D] and weights [N, M].
    """
    positive_int("chunk_size", chunk_size)
    patches = float_tensor("patches", patches, 3)
    references = frame_numbers("reference_of", reference_of, len(patches))
    if len(references) != len(patches):
        raise ValueError(f"reference_of must name one frame for each of {len(patches)}, got {len(references)}")
    sizes = {"query_size": merger.query_size, "hidden_size": merger.hidden_size}
    patches, _, query = check_merge_inputs(patches, patches[0], query, **sizes)
    mapped_query = merger.map_query(query)
    # Filled in place: small results kept between large temporaries would pin the allocator's memory.
    tokens = patches.new_empty(len(patches), patches.shape[2])
    weights = patches.new_empty(patches.shape[:2])
    for start in range(0, len(patches), chunk_size):
        chunk = slice(start, start + chunk_size)
        # Neighbours share their keyframe, which is mapped once for the chunk.
        frames, which = references[chunk].unique(return_inverse=True)
        mapped_reference = merger.map_reference(patches[frames])[which]
        tokens[chunk], weights[chunk] = merger.merge(patches[chunk], mapped_reference, mapped_query)
    return tokens, weights


def preceding_keyframe(num_frames: int, keyframes: torch.Tensor, before_first: str = "first") -> torch.Tensor:
    """Say which keyframe each frame is compared with: the nearest one at or before it (paper, DFM).

    Args:
        num_frames: N.
        keyframes: [K] int64 frame numbers, in any order.
        before_first: what frames before the first keyframe are compared with: "first", the first keyframe, or "self",
            themselves, as in the released code.

    Returns:
        [N] int64 frame numbers.
    """
    keyframes = frame_numbers("keyframes", keyframes, positive_int("num_frames", num_frames)).sort().values
    frames = torch.arange(num_frames, device=keyframes.device)
    position = torch.searchsorted(keyframes, frames, right=True) - 1
    preceding = keyframes[position.clamp(min=0)]
    if choice("before_first", before_first, ("first", "self")) == "self":
        preceding = torch.where(position < 0, frames, preceding)
    return preceding


def pool_patches(patches: torch.Tensor) -> torch.Tensor:
    """Halve a keyframe's square grid of patches bilinearly: 27×27 = 729 become 14×14 = 196 (released code).

    Patches [B, M, D] stand row by row; the result is [B, ⌈√M / 2⌉², D].
    """
    patches = float_tensor("patches", patches, 3)
    side = math.isqrt(patches.shape[1])
    if side * side != patches.shape[1]:
        raise ValueError(f"patches must form a square grid, got {describe(patches)}")
    grid = patches.unflatten(1, (side, side)).movedim(-1, 1)
    pooled = F.interpolate(grid, size=math.ceil(side / 2), mode="bilinear", align_corners=False)
    require_finite(pooled, patches=patches)
    return pooled.flatten(2).transpose(1, 2)


def linear_map(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer that starts with small weights and a bias of zero."""
    linear = nn.Linear(inputs, outputs)
    nn.init.normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)
    return linear


def unit(vectors: torch.Tensor) -> torch.Tensor:
    """Unit vectors along the last axis, in float32 or better."""
    with full_precision(vectors.device):
        return F.normalize(_precise(vectors), dim=-1, eps=_EPS)


def cosine_with_unit(vectors: torch.Tensor, unit: torch.Tensor) -> torch.Tensor:
    """Cosines over the last axis with unit vectors, without a normalised copy of the larger side."""
    with full_precision(vectors.device):
        vectors = _precise(vectors)
        dots = torch.einsum("...d,...d->...", vectors, unit)
        return dots / torch.linalg.vector_norm(vectors, dim=-1).clamp_min(_EPS)


def _precise(vectors: torch.Tensor) -> torch.Tensor:
    """Half precision as float32: a temperature of 0.01 would multiply the rounding of the scores by 100."""
    return vectors.to(torch.promote_types(vectors.dtype, torch.float32))


def weighted_sum(patches: torch.Tensor, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The softmax-weighted sum of each frame's patches, and the weights."""
    weights = logits.softmax(dim=-1).to(patches.dtype)
    return torch.einsum("bm,bmd->bd", weights, patches), weights


def check_merge_inputs(
    patches: ArrayLike,
    reference: ArrayLike,
    query: ArrayLike,
    *,
    same_size: bool = False,
    query_size: int | None = None,
    hidden_size: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Reject inputs of the wrong kind, rank, type or size; return them as tensors.

    The patches, the only large input, are looked through for NaN only when the result turns out bad (`require_finite`).
    """
    patches = float_tensor("patches", patches, 3)
    reference = float_tensor("reference", reference, 2, 3)
    query = float_tensor("query", query, 1)
    for name, other in (("reference", reference), ("query", query)):
        if other.dtype != patches.dtype:
            raise ValueError(f"{name} must have the type of patches, {patches.dtype}, got {describe(other)}")
    if hidden_size is not None and patches.shape[2] != hidden_size:
        raise ValueError(f"patches must have size {hidden_size} in the last axis, got {describe(patches)}")
    if reference.shape not in (patches.shape, patches.shape[1:]):
        expected = f"{tuple(patches.shape)} or {tuple(patches.shape[1:])}"
        raise ValueError(f"reference must have the shape {expected} for these patches, got {describe(reference)}")
    query_size = patches.shape[2] if same_size else query_size
    if query_size is not None and len(query) != query_size:
        raise ValueError(f"query must have size {query_size}, got {describe(query)}")
    require_finite(query, query=query)
    require_finite(reference, reference=reference)
    return patches, reference, query


def frame_numbers(name: str, frames: torch.Tensor, num_frames: int) -> torch.Tensor:
    """Frame numbers [n] as int64, all inside the video."""
    try:
        frames = torch.as_tensor(frames)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} must be a non-empty list of frame numbers, got {describe(frames)}") from error
    if frames.ndim != 1 or frames.numel() == 0 or frames.is_floating_point() or frames.dtype == torch.bool:
        raise ValueError(f"{name} must be a non-empty list of frame numbers, got {describe(frames)}")
    if frames.min() < 0 or frames.max() >= num_frames:
        raise ValueError(f"{name} must lie in 0…{num_frames - 1}, got {int(frames.min())}…{int(frames.max())}")
    return frames.long()
