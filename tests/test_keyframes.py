"""Level 1: golden values of the released code, a brute force of Algorithm 1, and its invariants."""

import json
import math
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.keyframes import ours
from benchmarks.measure import peak_memory_of
from vilamp_lite.baselines.selectors import SELECTORS, aks_keyframes, kmeans_keyframes, mmr_keyframes
from vilamp_lite.keyframes import select_keyframes

GOLDEN = Path(__file__).parent / "golden"
CASES = json.loads((GOLDEN / "dks_cases.json").read_text())


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine matrix in float64, 0 for zero vectors."""
    a, b = np.atleast_2d(a).astype(np.float64), np.atleast_2d(b).astype(np.float64)
    norms = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)[None]
    return np.divide(a @ b.T, norms, out=np.zeros_like(norms), where=norms > 0)


def brute_force(
    relevance: np.ndarray, similarity: np.ndarray, count: int, threshold: float
) -> tuple[list[int], list[float], list[int]]:
    """Algorithm 1 frame by frame: order, redundancy, and the keyframe that refused each frame."""
    order, redundancy, refused_by = [], [], [-1] * len(relevance)
    for frame in sorted(range(len(relevance)), key=lambda n: (-relevance[n], n)):
        if len(order) == count:
            break
        closest = max(order, key=lambda k: similarity[frame, k], default=None)
        highest = -math.inf if closest is None else similarity[frame, closest]
        if highest <= threshold:
            order.append(frame)
            redundancy.append(highest)
        else:
            refused_by[frame] = closest
    return order, redundancy, refused_by


# --- golden values of the released code -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(CASES))
def test_released_selection(name: str) -> None:
    golden, case = np.load(GOLDEN / f"{name}.npz"), CASES[name]
    fields = {"max_keyframes": "K", "similarity_threshold": "f2f_thrd", "relevance_threshold": "f2t_thrd"}
    settings = {name: case[field] for name, field in fields.items()}
    greedy = select_keyframes(golden["image_embs"], golden["text_emb"], **settings)
    np.testing.assert_allclose(greedy.relevance, golden["f2t_scores"], atol=1e-5)
    if name.startswith("dks_ties"):
        # Four neighbours are one picture: which of them is taken depends on the released code's unstable sort.
        assert (greedy.indices // 4).tolist() == (golden["greedy_indices"] // 4).tolist()
        return
    filled = select_keyframes(golden["image_embs"], golden["text_emb"], fill="gaps", **settings)
    assert greedy.indices.tolist() == golden["greedy_indices"].tolist()
    assert greedy.order.tolist() == golden["greedy_order"].tolist()
    assert filled.indices.tolist() == golden["final_indices"].tolist()
    assert filled.order[: len(greedy.order)].tolist() == greedy.order.tolist()


def test_released_gap_filling() -> None:
    golden = np.load(GOLDEN / "dks_fill.npz")
    assert len(golden["N"]) == 240
    for before, after, num_frames, count in zip(
        golden["mask_in"], golden["mask_out"], golden["N"], golden["K"], strict=True
    ):
        # Frames taken already lie above the relevance floor and far from each other; the rest lie below it.
        taken = before[:num_frames] == 1
        embeds = np.eye(num_frames, num_frames + 1)
        embeds[taken] *= 0.6
        embeds[taken, -1] = 0.8
        query = np.eye(num_frames + 1)[-1]
        chosen = select_keyframes(embeds, query, max_keyframes=int(count), relevance_threshold=0.5, fill="gaps")
        assert sorted(chosen.order[: taken.sum()].tolist()) == np.flatnonzero(taken).tolist()
        assert chosen.indices.tolist() == np.flatnonzero(after[:num_frames] == 1).tolist()


def test_filled_frames_report_their_redundancy() -> None:
    embeds = torch.eye(3).repeat_interleave(4, dim=0)
    chosen = select_keyframes(embeds, torch.tensor([3.0, 2.0, 1.0]), max_keyframes=5, fill="gaps")
    assert chosen.order[:3].tolist() == [0, 4, 8]
    assert chosen.redundancy.tolist() == pytest.approx([-math.inf, 0, 0, 1, 1])


# --- brute force ----------------------------------------------------------------------------------------------------


def random_case(seed: int) -> tuple[np.ndarray, np.ndarray, int, float]:
    """Frames, query, K and τ: scenes, duplicates, zero vectors, tiny and odd sizes, extreme thresholds."""
    rng = np.random.default_rng(seed)
    num_frames = int(rng.choice([1, 2, 3, 7, 31, 128, 129, 300]))
    size = int(rng.choice([2, 3, 8, 17, 64]))
    scenes = rng.normal(size=(int(rng.integers(1, 12)), size))
    frames = scenes[rng.integers(len(scenes), size=num_frames)] + rng.normal(size=(num_frames, size)) * rng.choice(
        [0.05, 0.3, 2.0]
    )
    kind = rng.choice(["plain", "duplicates", "zeros", "all zero", "tied"])
    if kind == "duplicates":
        frames = frames[rng.integers(num_frames, size=num_frames)]
    if kind == "zeros":
        frames[rng.random(num_frames) < 0.3] = 0
    if kind == "all zero":
        frames[:] = 0
    query = rng.normal(size=size)
    if kind == "tied":
        # Mirrored about the query: the same relevance to the last bit, and different directions.
        query = np.eye(size)[0]
        frames[1::2, 1:] = -frames[: num_frames // 2 * 2 : 2, 1:]
        frames[1::2, 0] = frames[: num_frames // 2 * 2 : 2, 0]
    threshold = float(rng.choice([-1.0, 0.0, 0.5, 0.85, 0.99, 1.0]))
    count = int(rng.choice([1, 2, 8, 32, num_frames, num_frames + 5]))
    return frames, query, count, threshold


def test_agrees_with_brute_force() -> None:
    compared = 0
    for seed in range(1000):
        frames, query, count, threshold = random_case(seed)
        relevance, similarity = cosines(frames, query)[:, 0], np.clip(cosines(frames, frames), -1, 1)
        # Equal frames are tied exactly; unequal ones whose scores differ by rounding alone have no defined order.
        same = np.unique(frames, axis=0, return_inverse=True)[1].ravel()
        relevance = np.array([relevance[np.flatnonzero(same == s)[0]] for s in same]).round(13) + 0.0
        similarity[same[:, None] == same[None]] = np.where(np.linalg.norm(frames, axis=1) > 0, 1.0, 0.0)[
            np.nonzero(same[:, None] == same[None])[0]
        ]
        gaps = np.diff(np.unique(relevance))
        margin = np.abs(similarity - threshold)
        on_threshold = (margin < 1e-9) & (margin > 0)
        if (len(gaps) and gaps.min() < 1e-10) or on_threshold.any():
            continue
        chosen = select_keyframes(frames, query, max_keyframes=count, similarity_threshold=threshold)
        order, redundancy, refused_by = brute_force(relevance, similarity, count, threshold)
        assert chosen.order.tolist() == order, seed
        assert chosen.indices.tolist() == sorted(order), seed
        np.testing.assert_allclose(chosen.redundancy, redundancy, atol=1e-9, err_msg=str(seed))
        np.testing.assert_allclose(chosen.relevance, relevance, atol=1e-9, err_msg=str(seed))
        # Two keyframes may refuse a frame equally strongly; compare how strongly.
        refused = np.array(refused_by) >= 0
        assert (chosen.refused_by.numpy() >= 0).tolist() == refused.tolist(), seed
        np.testing.assert_allclose(
            similarity[np.flatnonzero(refused), chosen.refused_by[refused]],
            similarity[np.flatnonzero(refused), np.array(refused_by)[refused]],
            atol=1e-9,
        )
        compared += 1
    assert compared > 700, "cases free of rounding ties"


def test_scale_does_not_matter() -> None:
    generator = torch.Generator().manual_seed(2)
    frames, query = torch.randn(100, 16, generator=generator), torch.randn(16, generator=generator)
    plain = select_keyframes(frames, query)
    for scale in (1e-30, 1e-22, 1e-12, 1e-3, 1e3, 1e12, 1e22, 1e30):
        for scaled in (select_keyframes(frames * scale, query), select_keyframes(frames, query * scale)):
            assert plain.order.tolist() == scaled.order.tolist()
            torch.testing.assert_close(plain.relevance, scaled.relevance, atol=1e-6, rtol=0)


def test_equal_frames_tie_wherever_they_stand() -> None:
    # A matrix–vector product may round the last rows differently; ties must stay ties for every N.
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float64):
        for size in (3, 5, 8, 33, 513):
            for num_frames in (5, 7, 9, 33, 127, 257):
                frames = torch.randn(1, size, dtype=dtype, generator=generator).repeat(num_frames, 1)
                query = torch.randn(size, dtype=dtype, generator=generator)
                chosen = select_keyframes(frames, query, max_keyframes=3, similarity_threshold=1.0)
                assert chosen.relevance.unique().numel() == 1
                assert chosen.order.tolist() == [0, 1, 2]


def test_equality_passes_both_thresholds_and_one_refuses_nothing() -> None:
    frames, query, equal = torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.tensor([1.0, 0.0]), float(np.float32(0.6))
    for rule, count in (
        ({"similarity_threshold": equal}, 2),
        ({"similarity_threshold": 0.59}, 1),
        ({"relevance_threshold": equal}, 2),
        ({"relevance_threshold": 0.61}, 1),
    ):
        assert len(select_keyframes(frames, query, **rule).order) == count
    copies = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)).repeat(2, 1)
    assert len(select_keyframes(copies, torch.ones(7), max_keyframes=100, similarity_threshold=1.0).order) == 100


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells the peak")
def test_memory_is_one_row_a_frame_at_a_time() -> None:
    """Every frame is visited; a copy of the frames would be 61 MB in float32, and the N × N matrix 3.6 GB."""
    ours(1000, 10)()
    assert peak_memory_of(ours(30_000, 10)) < 15e6


# --- input kinds ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_precisions(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    frames = torch.randn(300, 64, generator=generator).to(dtype)
    query = torch.randn(64, generator=generator).to(dtype)
    chosen = select_keyframes(frames, query, similarity_threshold=0.2)
    # Half-precision input is scored in float32: the same result as for the same values given as float32.
    precision = torch.promote_types(dtype, torch.float32)
    same = select_keyframes(frames.to(precision), query.to(precision), similarity_threshold=0.2)
    assert chosen.relevance.dtype == precision
    assert chosen.order.tolist() == same.order.tolist()
    assert torch.equal(chosen.relevance, same.relevance)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_numpy_input(dtype: type) -> None:
    rng = np.random.default_rng(0)
    frames, query = rng.normal(size=(40, 8)).astype(dtype), rng.normal(size=8).astype(dtype)
    from_numpy = select_keyframes(frames[:, ::-1], query[::-1])
    from_torch = select_keyframes(torch.from_numpy(frames), torch.from_numpy(query))
    assert from_numpy.order.tolist() == from_torch.order.tolist()
    frames.flags.writeable = False
    with warnings.catch_warnings(action="error"):  # PyTorch has one about arrays that can't be written to
        assert select_keyframes(frames, query).order.tolist() == from_torch.order.tolist()


def test_several_queries_share_the_frames() -> None:
    generator = torch.Generator().manual_seed(1)
    frames, queries = torch.randn(200, 32, generator=generator), torch.randn(5, 32, generator=generator)
    together = select_keyframes(frames, queries, similarity_threshold=0.3)
    assert len(together) == 5
    for query, chosen in zip(queries, together, strict=True):
        alone = select_keyframes(frames, query, similarity_threshold=0.3)
        assert chosen.order.tolist() == alone.order.tolist()
        assert torch.equal(chosen.relevance, alone.relevance)


# --- baselines ------------------------------------------------------------------------------------------------------


@pytest.fixture
def scenes() -> tuple[torch.Tensor, torch.Tensor]:
    """Ten scenes of ten frames each, and a query nearest to scene 7."""
    generator = torch.Generator().manual_seed(5)
    centres = torch.randn(10, 32, generator=generator)
    frames = centres.repeat_interleave(10, dim=0) + 0.05 * torch.randn(100, 32, generator=generator)
    return frames, centres[7] + 0.3 * torch.randn(32, generator=generator)


@pytest.mark.parametrize("name", SELECTORS)
def test_every_selector_keeps_the_contract(name: str, scenes: tuple[torch.Tensor, torch.Tensor]) -> None:
    frames, query = scenes
    similarity = cosines(frames.numpy(), frames.numpy())
    for count in (1, 3, 8, 33, 100, 10**12):
        chosen = SELECTORS[name](frames, query, max_keyframes=count)
        order = chosen.order.tolist()
        assert len(set(order)) == len(order) <= min(count, 100)
        assert name == "dks" or len(order) == min(count, 100)
        assert chosen.indices.tolist() == sorted(order)
        np.testing.assert_allclose(chosen.relevance, cosines(frames.numpy(), query.numpy())[:, 0], atol=1e-6)
        assert name == "mmr" or (chosen.relevance[chosen.order].diff() <= 0).all()
        expected = [-math.inf] + [max(similarity[f, order[:i]]) for i, f in enumerate(order) if i]
        np.testing.assert_allclose(chosen.redundancy, expected, atol=1e-6)
        assert chosen.refused_by.shape == (100,)


def test_baselines_choose_as_they_say(scenes: tuple[torch.Tensor, torch.Tensor]) -> None:
    frames, query = scenes
    relevance = cosines(frames.numpy(), query.numpy())[:, 0]
    assert SELECTORS["uniform"](frames, query, max_keyframes=4).indices.tolist() == [12, 37, 62, 87]
    top = SELECTORS["top_k"](frames, query, max_keyframes=10).order.tolist()
    assert top == np.argsort(-relevance, kind="stable")[:10].tolist()
    # Ten clusters find the ten scenes; the frame of each is its most relevant one.
    clustered = kmeans_keyframes(frames, query, max_keyframes=10).indices
    assert (clustered // 10).tolist() == list(range(10))
    assert all(relevance[f] == relevance[f // 10 * 10 : f // 10 * 10 + 10].max() for f in clustered)


def test_mmr_against_its_definition(scenes: tuple[torch.Tensor, torch.Tensor]) -> None:
    frames, query = scenes
    relevance = cosines(frames.numpy(), query.numpy())[:, 0]
    similarity = cosines(frames.numpy(), frames.numpy())
    for trade_off in (0.0, 0.3, 0.7, 1.0):
        order = [int(relevance.argmax())]
        while len(order) < 12:
            gain = trade_off * relevance - (1 - trade_off) * similarity[:, order].max(axis=1)
            gain[order] = -math.inf
            order.append(int(gain.argmax()))
        assert mmr_keyframes(frames, query, max_keyframes=12, trade_off=trade_off).order.tolist() == order


@pytest.mark.filterwarnings("error")  # scikit-learn warns of more clusters than points
def test_kmeans_with_fewer_pictures_than_clusters_and_by_seed() -> None:
    chosen = kmeans_keyframes(torch.eye(3).repeat(5, 1), torch.tensor([3.0, 2.0, 1.0]), max_keyframes=8)
    assert chosen.order.tolist() == [0, 1, 2]
    frames = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
    by_seed = [kmeans_keyframes(frames, torch.ones(8), max_keyframes=9, seed=s).order.tolist() for s in (0, 0, 1)]
    assert by_seed[0] == by_seed[1] != by_seed[2]


def test_aks_splits_only_where_scores_are_flat() -> None:
    query, flat = torch.tensor([1.0, 0.0]), torch.ones(64, 2)
    # One frame in sixty-four stands out, by little but more than any other: it is taken alone.
    peak = torch.tensor([[0.6, 0.8], [0.8, 0.6]])[[0] * 20 + [1] + [0] * 43]
    assert aks_keyframes(peak, query, max_keyframes=1).order.tolist() == [20]
    # One of four: its score is 0.75 above the mean, which must be more than the contrast. The later half gets odd ones.
    for contrast, frame in ((0.74, 0), (0.75, 2)):
        settings = {"max_keyframes": 1, "max_depth": 1, "contrast": contrast}
        assert aks_keyframes(torch.eye(2)[[0, 1, 1, 1]], query, **settings).order.tolist() == [frame]
    # Flat scores: every eighth of the video gets one. Shares that do not halve evenly still add up.
    assert (aks_keyframes(flat, query, max_keyframes=8).indices // 8).tolist() == list(range(8))
    for count in (3, 5, 16, 31, 64):
        assert len(aks_keyframes(flat, query, max_keyframes=count).order) == count


# --- bad input ------------------------------------------------------------------------------------------------------

FRAMES, QUERY = torch.eye(4), torch.ones(4)
BAD_NUMBERS = [float("nan"), float("inf"), -float("inf")]


@pytest.mark.parametrize(
    ("frames", "query", "message"),
    [
        (torch.zeros(0, 4), QUERY, "frame_embeds is empty"),
        (torch.zeros(2, 2, 4), QUERY, "frame_embeds must have 2 axes"),
        (torch.ones(4, 4, dtype=torch.int64), QUERY, "frame_embeds must be a floating-point"),
        ([[1.0, 2.0]], QUERY, "frame_embeds must be a floating-point"),
        (FRAMES, torch.ones(3), "query_embed must have the frames' size D, 4"),
        (FRAMES, torch.ones(1, 1, 4), "query_embed must have 1 or 2 axes"),
        (FRAMES, torch.zeros(0), "query_embed is empty"),
        (torch.ones(9, 4).index_fill(0, torch.tensor(7), math.nan), QUERY, r"frame_embeds .* first at index \(7, 0\)"),
        *[(FRAMES + bad, QUERY, "frame_embeds holds NaN or infinity") for bad in BAD_NUMBERS],
        *[(FRAMES, QUERY * bad, "query_embed holds NaN or infinity") for bad in BAD_NUMBERS],
        (FRAMES.double() * 1e200, QUERY, "frame_embeds is finite, but too large"),
    ],
)
def test_bad_embeddings(frames: torch.Tensor, query: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select_keyframes(frames, query)


@pytest.mark.parametrize("name", SELECTORS)
def test_every_selector_refuses_bad_input(name: str) -> None:
    with pytest.raises(ValueError, match="frame_embeds holds NaN or infinity"):
        SELECTORS[name](FRAMES * BAD_NUMBERS[0], QUERY)
    with pytest.raises(ValueError, match="max_keyframes must be an integer of at least 1"):
        SELECTORS[name](FRAMES, QUERY, max_keyframes=0)
    if name != "dks":
        with pytest.raises(ValueError, match="query_embed must have 1 axis here"):
            SELECTORS[name](FRAMES, torch.ones(1, 4))


def test_bad_settings() -> None:
    cases = {
        "max_keyframes": (0, -1, 2.5, float("nan"), None, True, "8"),
        "similarity_threshold": (*BAD_NUMBERS, 1.01, -1.01, "0.8", None),
        "relevance_threshold": (*BAD_NUMBERS, 1.5, -2, "0.2"),
        "fill": ("all", None),
    }
    for name, values in cases.items():
        for value in values:
            with pytest.raises(ValueError, match=rf"^{name} (must be|is a cosine)"):
                select_keyframes(FRAMES, QUERY, **{name: value})


def test_bad_baseline_settings() -> None:
    for selector, name, values in (
        (mmr_keyframes, "trade_off", (*BAD_NUMBERS, -0.1, 1.1)),
        (kmeans_keyframes, "seed", (-1, 0.5)),
        (aks_keyframes, "max_depth", (0,)),
        (aks_keyframes, "contrast", BAD_NUMBERS),
    ):
        for value in values:
            with pytest.raises(ValueError, match=f"^{name} must"):
                selector(FRAMES, QUERY, **{name: value})
