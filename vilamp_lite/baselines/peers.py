"""Other ways to show a language model a long video, in the miniature's arena: same patches, same training, same budget.

Each is what its model does to a video, scaled to 16 patches per frame; none is that model.

    dense         LLaVA-style: a few uniform frames, all their patches
    two_tokens    LLaMA-VID-style: of every frame one token that the question pools and one mean
    clip_merging  VideoChat-Flash-style: clips of four frames, similar patches merged until a quarter is left

Where a method needs more tokens for the whole video than the budget, it sees uniformly sampled frames.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from vilamp_lite.common.checks import choice, positive_int
from vilamp_lite.modeling import MixedPrecisionSequence, ViLaMPForConditionalGeneration

CLIP_FRAMES = 4
_PATCHES = 16  # of a miniature's frame
_MERGED_TO = 4  # a clip keeps one patch of so many


def peer_tokens(
    model: ViLaMPForConditionalGeneration, peer: str, patches: torch.Tensor, query_embed: torch.Tensor, budget: int
) -> MixedPrecisionSequence:
    """Turn a video into at most `budget` tokens in a peer's way; gradients flow.

    Args:
        model: its connectors, keyframe block and merge's maps are used.
        peer: a name in `PEERS`.
        patches: [N, M, D_v].
        query_embed: [query_size].
        budget: visual tokens, the newline included.

    Returns:
        The sequence; its keyframes are the frames that were seen.

    Raises:
        ValueError: an unknown peer, another number of patches than the miniature's, or a budget too small for one
            frame.
    """
    tokens_of, per_frame = PEERS[choice("peer", peer, tuple(PEERS))]
    if patches.shape[1] != _PATCHES:
        raise ValueError(f"peers are for miniatures, with {_PATCHES} patches in a frame, got {patches.shape[1]}")
    room = positive_int("budget", budget) - (model.video_newline is not None)
    frames = sampled_frames(len(patches), room // per_frame)
    if not len(frames):
        raise ValueError(f"budget must be at least {per_frame + 1} for {peer}, got {budget}")
    embeds = tokens_of(model, patches[frames], query_embed)
    frame_of_token = frames.repeat_interleave(per_frame)
    seen = torch.zeros(len(patches), dtype=torch.bool).index_fill_(0, frames, True)
    return model.sequence(embeds, seen, frame_of_token)


def sampled_frames(num_frames: int, count: int) -> torch.Tensor:
    """Numbers of at most `count` frames, each in the middle of its share of the video, [min(N, count)] int64."""
    if num_frames <= count:
        return torch.arange(num_frames)
    return ((torch.arange(count) + 0.5) * num_frames / max(count, 1)).long()


def merge_similar(tokens: torch.Tensor, count: int) -> torch.Tensor:
    """Merge the most similar tokens of each row, pair by pair, until `count` are left (ToMe, Bolya et al. 2023).

    In each round tokens at even places look for their nearest at odd places; the most similar pairs become their mean,
    weighted by how many tokens each already stands for.

    Args:
        tokens: [B, T, D].
        count: at least 1, at most T.

    Returns:
        [B, count, D].

    Raises:
        ValueError: a count out of range.
    """
    if not 1 <= count <= tokens.shape[1]:
        raise ValueError(f"count must be from 1 to {tokens.shape[1]}, got {count}")
    sizes = tokens.new_ones(tokens.shape[:2])
    while (excess := tokens.shape[1] - count) > 0:
        even, odd = tokens[:, ::2], tokens[:, 1::2]
        even_size, odd_size = sizes[:, ::2], sizes[:, 1::2]
        similarity = F.normalize(even, dim=-1) @ F.normalize(odd, dim=-1).transpose(1, 2)
        best, partner = similarity.max(dim=2)
        order = best.argsort(dim=1, descending=True, stable=True)
        going, staying = order[:, : min(excess, even.shape[1])], order[:, min(excess, even.shape[1]) :]
        target = partner.gather(1, going)
        weighted = (odd * odd_size[..., None]).scatter_add(
            1, _wide(target, odd), _rows(even * even_size[..., None], going)
        )
        odd_size = odd_size.scatter_add(1, target, even_size.gather(1, going))
        tokens = torch.cat([_rows(even, staying), weighted / odd_size[..., None]], dim=1)
        sizes = torch.cat([even_size.gather(1, staying), odd_size], dim=1)
    return tokens


def _rows(tokens: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    return tokens.gather(1, _wide(places, tokens))


def _wide(places: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return places[..., None].expand(-1, -1, tokens.shape[2])


def _dense(model: ViLaMPForConditionalGeneration, patches: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    return model.keyframe_tokens(patches)


def _two_tokens(model: ViLaMPForConditionalGeneration, patches: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    merger = model.merger
    relevance = F.cosine_similarity(merger.relevance_map(patches), merger.map_query(query), dim=-1)
    pooled = torch.einsum("bm,bmd->bd", (relevance / merger.temperature).softmax(dim=1), patches)
    pair = torch.stack([model.merged_connector(pooled), model.keyframe_connector(patches.mean(dim=1))], dim=1)
    return pair.flatten(0, 1)


def _clip_merging(model: ViLaMPForConditionalGeneration, patches: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    pieces = []
    whole = len(patches) // CLIP_FRAMES * CLIP_FRAMES
    for part in (patches[:whole].unflatten(0, (-1, CLIP_FRAMES)) if whole else None, patches[None, whole:]):
        if part is not None and part.shape[1]:
            clips = part.flatten(1, 2)
            pieces.append(merge_similar(clips, clips.shape[1] // _MERGED_TO).flatten(0, 1))
    return model.merged_connector(torch.cat(pieces))


# Each with its tokens per frame.
PEERS: dict[str, tuple[Callable[..., torch.Tensor], int]] = {
    "dense": (_dense, _PATCHES),
    "two_tokens": (_two_tokens, 2),
    "clip_merging": (_clip_merging, _PATCHES // _MERGED_TO),
}
