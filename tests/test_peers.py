"""Peers of ViLaMP in the miniature's arena: budgets kept, tokens in order, merging as its paper describes it."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from vilamp_lite.baselines.peers import PEERS, merge_similar, peer_tokens, sampled_frames
from vilamp_lite.modeling import ViLaMPForConditionalGeneration
from vilamp_lite.tinyworld.miniature import miniature_config


@pytest.fixture(scope="module")
def model() -> ViLaMPForConditionalGeneration:
    torch.manual_seed(0)
    return ViLaMPForConditionalGeneration(miniature_config()).eval()


@torch.no_grad()
def test_a_budget_is_kept_and_used(model: ViLaMPForConditionalGeneration) -> None:
    for peer, budget, num_frames in itertools.product(PEERS, (17, 65, 200), (1, 3, 50)):
        sequence = peer_tokens(model, peer, torch.randn(num_frames, 16, 96), torch.randn(96), budget)
        _, per_frame = PEERS[peer]
        seen = min(num_frames, (budget - 1) // per_frame)
        assert len(sequence.embeds) == seen * per_frame + 1 <= budget
        frames = sequence.frame_of_token[:-1]
        assert (frames.diff() >= 0).all()
        assert len(frames.unique()) == seen


def test_tokens_by_hand(model: ViLaMPForConditionalGeneration) -> None:
    patches, query = torch.randn(2, 16, 96), torch.randn(96)
    with torch.no_grad():
        dense = peer_tokens(model, "dense", patches, query, 1000).embeds
        torch.testing.assert_close(dense[:-1], model.keyframe_tokens(patches))
        tokens = peer_tokens(model, "two_tokens", patches, query, 1000).embeds
        asked = model.merger.query_map(query)
        for number, frame in enumerate(patches):
            scores = torch.stack([F.cosine_similarity(asked, model.merger.relevance_map(p), dim=0) for p in frame])
            weights = (scores / model.merger.temperature).softmax(dim=0)
            torch.testing.assert_close(tokens[2 * number], model.merged_connector(weights @ frame))
            torch.testing.assert_close(tokens[2 * number + 1], model.keyframe_connector(frame.mean(dim=0)))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(2, 20), st.data())
def test_merging_keeps_the_sum(batch: int, length: int, data: st.DataObject) -> None:
    """Every token counts as often as it stands for others, so that with sizes the mean of all is unchanged."""
    count = data.draw(st.integers(1, length))
    tokens = torch.randn(batch, length, 8, generator=torch.Generator().manual_seed(length), dtype=torch.float64)
    merged = merge_similar(tokens, count)
    assert merged.shape == (batch, count, 8)
    # A merged token is a mean of tokens: none leaves their range.
    assert (merged.amax(dim=1) <= tokens.amax(dim=1) + 1e-12).all()
    assert (merged.amin(dim=1) >= tokens.amin(dim=1) - 1e-12).all()
    if count == 1:
        torch.testing.assert_close(merged[:, 0], tokens.mean(dim=1))


def test_twins_are_merged_first() -> None:
    random = torch.Generator().manual_seed(0)
    different = torch.randn(4, 16, generator=random)
    tokens = torch.stack([different[0], different[0], different[1], different[1], different[2], different[3]])[None]
    merged = merge_similar(tokens, 4)[0]
    for wanted in different:
        assert (merged - wanted).abs().amax(dim=1).min() < 1e-6


def test_sampled_frames_are_spread() -> None:
    assert sampled_frames(5, 8).tolist() == [0, 1, 2, 3, 4]
    assert sampled_frames(100, 4).tolist() == [12, 37, 62, 87]
    assert len(np.unique(sampled_frames(1000, 999).numpy())) == 999
    assert sampled_frames(10, 0).tolist() == []


def test_bad_input(model: ViLaMPForConditionalGeneration) -> None:
    patches = torch.randn(2, 16, 96)
    with pytest.raises(ValueError, match="budget must be at least 17 for dense, got 16"):
        peer_tokens(model, "dense", patches, torch.randn(96), 16)
    with pytest.raises(ValueError, match="peer"):
        peer_tokens(model, "sparse", patches, torch.randn(96), 100)
    with pytest.raises(ValueError, match="with 16 patches in a frame, got 25"):
        peer_tokens(model, "dense", torch.randn(2, 25, 96), torch.randn(96), 100)
    with pytest.raises(ValueError, match="count must be from 1 to 3"):
        merge_similar(torch.randn(1, 3, 2), 4)
