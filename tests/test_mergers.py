"""Any merger in the model's own sequence, against a plain loop over the frames; any selector by its name."""

import pytest
import torch

from vilamp_lite.baselines.mergers import QFormerMerger, mixed_tokens
from vilamp_lite.baselines.selectors import SELECTORS, choose_keyframes, top_k_keyframes, uniform_keyframes
from vilamp_lite.modeling import TokenKind, ViLaMPForConditionalGeneration
from vilamp_lite.tinyworld.miniature import miniature_config

FRAMES = 13
KEYFRAMES = [[0, 5], [9, 3, 4], [6, 12], [12], [0], [0, 6, 12], list(range(FRAMES))]


def miniature(seed: int = 0, **changes: object) -> ViLaMPForConditionalGeneration:
    """A random miniature whose merge prefers some patches, which it would hardly do at first."""
    torch.manual_seed(seed)
    model = ViLaMPForConditionalGeneration(miniature_config(**changes)).eval()
    with torch.no_grad():
        for linear in (model.merger.query_map, model.merger.relevance_map):
            linear.weight.normal_(std=0.3)
    return model


def inputs(num_frames: int = FRAMES, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_frames, 16, 96, generator=generator), torch.randn(96, generator=generator)


@pytest.fixture(scope="module")
def model() -> ViLaMPForConditionalGeneration:
    return miniature()


@pytest.fixture(scope="module")
def qformer() -> QFormerMerger:
    torch.manual_seed(1)
    return QFormerMerger(96, 96).eval()


def expected_token(
    model: ViLaMPForConditionalGeneration,
    features: torch.Tensor,
    query: torch.Tensor,
    merger: str,
    qformer: QFormerMerger,
) -> torch.Tensor:
    """One frame's token, before the connector, from its features [M, D]."""
    if merger == "mean":
        return features.mean(dim=0)
    if merger == "qformer":
        return qformer(features[None], features[None], query)[0][0]
    asked, mapped = model.merger.query_map(query), model.merger.relevance_map(features)
    cosines = [torch.nn.functional.cosine_similarity(asked, one, dim=0) for one in mapped]
    return features[torch.stack(cosines).argmax()]


@pytest.mark.parametrize("before", [True, False], ids=["before the connector", "after it"])
@pytest.mark.parametrize("merger", ["mean", "max", "qformer"])
@torch.no_grad()
def test_mergers_against_a_loop(merger: str, before: bool) -> None:
    model = miniature(merge_before_projection=before)
    torch.manual_seed(1)
    qformer = QFormerMerger(model.config.merge_size, 96)
    patches, query = inputs()
    chosen_patches = set()
    for keyframes in KEYFRAMES:
        rows = []
        for frame, own in enumerate(patches):
            if frame in keyframes:
                rows.append(model.keyframe_tokens(own[None]))
                continue
            features = own if before else model.merged_connector(own)
            token = expected_token(model, features, query, merger, qformer)
            if merger == "max":
                chosen_patches.add(int((features == token).all(dim=1).nonzero()))
            rows.append((model.merged_connector(token) if before else token)[None])
        rows.append(model.video_newline[None])
        got = mixed_tokens(model, patches, torch.tensor(keyframes), query, merger, qformer)
        torch.testing.assert_close(got.embeds, torch.cat(rows), rtol=0, atol=1e-5)
        assert got.frame_of_token.tolist() == [
            frame for frame in range(FRAMES) for _ in range(16 if frame in keyframes else 1)
        ] + [-1]
    assert merger != "max" or len(chosen_patches) > 3


@torch.no_grad()
def test_drop_keeps_keyframes_only(model: ViLaMPForConditionalGeneration) -> None:
    patches, query = inputs()
    for keyframes in KEYFRAMES:
        got = mixed_tokens(model, patches, torch.tensor(keyframes), query, "drop")
        expected = torch.cat([model.keyframe_tokens(patches[sorted(keyframes)]), model.video_newline[None]])
        torch.testing.assert_close(got.embeds, expected)
        assert got.keyframes.tolist() == sorted(keyframes)
        assert got.frame_of_token.tolist() == [frame for frame in sorted(keyframes) for _ in range(16)] + [-1]
        assert got.kind_of_token.tolist() == [TokenKind.PATCH] * 16 * len(keyframes) + [TokenKind.NEWLINE]


@pytest.mark.parametrize("merger", ["dfm", "mean", "max", "qformer"])
@torch.no_grad()
def test_chunks_leave_no_trace(merger: str, model: ViLaMPForConditionalGeneration, qformer: QFormerMerger) -> None:
    """More frames than are merged at a time: around the border they are what they are by themselves."""
    patches, query = inputs(1100)
    keyframes = torch.tensor([7, 511, 513, 1030])
    got = mixed_tokens(model, patches, keyframes, query, merger, qformer)
    assert len(got.embeds) == 4 * 16 + 1096 + 1
    reference_of = model.reference_frames(1100, keyframes)
    for frame in (0, 6, 8, 510, 512, 514, 515, 516, 1027, 1028, 1029, 1031, 1099):
        # The frame and its reference alone, the reference a keyframe.
        pair = patches[[frame, int(reference_of[frame])]]
        alone = mixed_tokens(model, pair, torch.tensor([1]), query, merger, qformer)
        row = got.embeds[got.frame_of_token == frame]
        torch.testing.assert_close(row, alone.embeds[:1], rtol=0, atol=1e-5)


# --- What is refused -------------------------------------------------------------------------------------------------


def test_what_is_refused(model: ViLaMPForConditionalGeneration) -> None:
    patches, query = inputs()
    with pytest.raises(ValueError, match="merger='qformer' needs a trained QFormerMerger"):
        mixed_tokens(model, patches, torch.tensor([3]), query, "qformer")
    with pytest.raises(ValueError, match="merger must be one of 'dfm', 'mean', 'max', 'qformer', 'drop', got 'median'"):
        mixed_tokens(model, patches, torch.tensor([3]), query, "median")
    with pytest.raises(ValueError, match=r"selector must be one of .*'dks'.*, got 'random'"):
        choose_keyframes(model, patches[:, 0], query, "random")


@pytest.mark.parametrize("keyframes", [[FRAMES], [-1], []], ids=str)
@pytest.mark.parametrize("merger", ["dfm", "drop"])
def test_impossible_keyframes(keyframes: list[int], merger: str, model: ViLaMPForConditionalGeneration) -> None:
    patches, query = inputs()
    with pytest.raises(ValueError, match="keyframes must"):
        mixed_tokens(model, patches, torch.tensor(keyframes, dtype=torch.long), query, merger)


# --- Selectors -------------------------------------------------------------------------------------------------------


def test_selectors_follow_the_configuration() -> None:
    model = miniature(max_keyframes=3, similarity_threshold=0.2)
    _, query = inputs()
    embeds = torch.randn(40, 96, generator=torch.Generator().manual_seed(3))
    embeds[20:] = embeds[19] + 0.01 * embeds[20:]  # near-duplicates
    embeds[19:] += 0.3 * query
    top = choose_keyframes(model, embeds, query, "top_k")
    assert torch.equal(top, top_k_keyframes(embeds, query, max_keyframes=3).indices)
    assert top.min() >= 19
    uniform = choose_keyframes(model, embeds, query, "uniform")
    assert torch.equal(uniform, uniform_keyframes(embeds, query, max_keyframes=3).indices)
    chosen = choose_keyframes(model, embeds, query, "dks")
    assert torch.equal(chosen, model.select(embeds, query).indices)
    assert (chosen >= 19).sum() == 1  # τ refuses the near-duplicates
    for selector in SELECTORS.keys() - {"kmeans"}:  # whose first call imports for seconds
        keyframes = choose_keyframes(model, embeds, query, selector)
        assert keyframes.dtype == torch.int64
        assert 1 <= len(keyframes) <= 3
        assert keyframes.tolist() == sorted(keyframes.tolist())
