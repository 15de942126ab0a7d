"""Level 2: golden values of the released code, the formula written out, and its properties."""

import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.measure import compare
from benchmarks.merging import ours
from vilamp_lite.baselines.mergers import QFormerMerger, max_merge, mean_merge
from vilamp_lite.merging import DifferentialMerger, differential_merge, merge_frames, pool_patches, preceding_keyframe
from vilamp_lite.released import RELEASED_NAMES, released_reference

GOLDEN = Path(__file__).parent / "golden"
DFM = sorted(path.stem for path in GOLDEN.glob("dfm_*.npz"))


def load(name: str) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(value) for key, value in np.load(GOLDEN / f"{name}.npz").items()}


def released_merger(golden: dict[str, torch.Tensor]) -> DifferentialMerger:
    """The mapped + mapped form with the released code's parameters, under the names that checkpoints use."""
    theirs = "model.composer_projector."
    names = {name.removeprefix(theirs): ours for name, ours in RELEASED_NAMES.items() if name.startswith(theirs)}
    state = {
        re.sub("^merger.", "", key.replace(name, ours)): golden[key]
        for key in golden
        for name, ours in names.items()
        if key.startswith(name)
    }
    merger = DifferentialMerger(*golden["linear_q.weight"].shape).to(golden["linear_q.weight"].dtype)
    merger.load_state_dict(state)
    return merger


def random_video(
    seed: int, frames: int = 5, patches: int = 6, size: int = 8, query_size: int = 8, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Patches [B, M, D], a keyframe's patches [M, D] and a query."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(frames, patches, size, generator=generator, dtype=dtype),
        torch.randn(patches, size, generator=generator, dtype=dtype),
        torch.randn(query_size, generator=generator, dtype=dtype),
    )


def random_merger(seed: int, size: int = 8, query_size: int = 8, **options: object) -> DifferentialMerger:
    """A merger whose maps are far from their small initial values."""
    torch.manual_seed(seed)
    merger = DifferentialMerger(size, query_size, **options).double()
    with torch.no_grad():
        for name, parameter in merger.named_parameters():
            if name != "temperature":
                parameter.normal_(std=0.5)
    return merger


# --- golden values of the released code -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", DFM)
def test_released_merging(name: str) -> None:
    golden = load(name)
    references = preceding_keyframe(len(golden["img_embs"]), golden["key_indices"].long(), before_first="self")
    assert references.tolist() == golden["ref_index"].tolist()
    merger = released_merger(golden)
    # A small temperature multiplies the rounding of the cosines (golden/README.md).
    close = {"rtol": 0, "atol": 1e-4 if golden["tau"] <= 0.03 else 1e-5}
    for chunk_size in (1, 7, 1000):
        tokens, weights = merge_frames(merger, golden["img_embs"], references, golden["query"], chunk_size=chunk_size)
        torch.testing.assert_close(tokens, golden["output"], **close)
        torch.testing.assert_close(weights, golden["weights"], **close)


def test_released_pooling() -> None:
    golden = load("pool")
    pooled = pool_patches(golden["feats"])
    torch.testing.assert_close(pooled, golden["pooled"], atol=1e-5, rtol=0)
    rows = golden["row_weights"]
    grid = golden["feats"].double().unflatten(1, (27, 27))
    by_hand = torch.einsum("ia,jb,nabc->nijc", rows, rows, grid).flatten(1, 2)
    torch.testing.assert_close(pooled.double(), by_hand, atol=1e-5, rtol=0)


# --- the formula ----------------------------------------------------------------------------------------------------


def test_differential_merge_written_out() -> None:
    patches, reference, query = random_video(0)
    tokens, weights = differential_merge(patches, reference, query, redundancy_weight=0.7, temperature=0.3)

    def cos(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(a @ b / (a.norm() * b.norm()))

    for frame, token, weight in zip(patches, tokens, weights, strict=True):
        scores = [(cos(p, query) - 0.7 * cos(p, k)) / 0.3 for p, k in zip(frame, reference, strict=True)]
        expected = np.exp(scores) / np.exp(scores).sum()
        np.testing.assert_allclose(weight, expected, atol=1e-12)
        np.testing.assert_allclose(token, expected @ frame.numpy(), atol=1e-12)


@pytest.mark.parametrize("relevance", ["mapped", "raw"])
@pytest.mark.parametrize("redundancy", ["mapped", "raw"])
def test_learned_forms_written_out(relevance: str, redundancy: str) -> None:
    patches, reference, query = random_video(1)
    merger = random_merger(1, relevance=relevance, redundancy=redundancy, redundancy_weight=0.4, temperature=0.2)
    tokens, weights = merger(patches, reference, query)

    def apply(name: str, vectors: torch.Tensor) -> torch.Tensor:
        layer = getattr(merger, name)
        return vectors if isinstance(layer, torch.nn.Identity) else vectors @ layer.weight.T + layer.bias

    cos = torch.nn.functional.cosine_similarity
    relevances = cos(apply("relevance_map", patches), apply("query_map", query), dim=-1)
    redundancies = cos(apply("redundancy_map", patches), apply("reference_map", reference), dim=-1)
    expected = ((relevances - 0.4 * redundancies) / 0.2).softmax(dim=1)
    torch.testing.assert_close(weights, expected)
    torch.testing.assert_close(tokens, (expected[..., None] * patches).sum(1))
    assert {n.split(".")[0] for n, _ in merger.named_parameters()} == (
        {"temperature"}
        | ({"relevance_map", "query_map"} if relevance == "mapped" else set())
        | ({"redundancy_map", "reference_map"} if redundancy == "mapped" else set())
    )


# --- properties -----------------------------------------------------------------------------------------------------

SEEDS = st.integers(0, 2**31)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(SEEDS)
def test_temperature_leads_from_the_most_relevant_patch_to_the_mean(seed: int) -> None:
    patches, reference, query = random_video(seed)
    sharp, _ = differential_merge(patches, reference, query, redundancy_weight=0, temperature=1e-9)
    torch.testing.assert_close(sharp, max_merge(patches, reference, query)[0])
    flat, _ = differential_merge(patches, reference, query, temperature=1e9)
    torch.testing.assert_close(flat, patches.mean(1))
    torch.testing.assert_close(flat, mean_merge(patches, reference, query)[0])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(SEEDS, st.integers(1, 30), st.integers(1, 40))
def test_chunk_size_never_changes_the_result(seed: int, num_frames: int, chunk_size: int) -> None:
    patches, _, query = random_video(seed, frames=num_frames)
    rng = np.random.default_rng(seed)
    keyframes = torch.from_numpy(np.unique(rng.integers(num_frames, size=3)))
    references = preceding_keyframe(num_frames, keyframes)
    merger = random_merger(seed)
    tokens, weights = merge_frames(merger, patches, references, query, chunk_size=chunk_size)
    all_at_once, all_weights = merger(patches, patches[references], query)
    torch.testing.assert_close(tokens, all_at_once, atol=1e-11, rtol=0)
    torch.testing.assert_close(weights, all_weights, atol=1e-11, rtol=0)


def test_one_reference_serves_every_frame() -> None:
    patches, reference, query = random_video(4)
    for merge in (differential_merge, mean_merge, max_merge, random_merger(4), QFormerMerger(8, 8).double()):
        shared = merge(patches, reference, query)
        repeated = merge(patches, reference.expand_as(patches), query)
        torch.testing.assert_close(shared, repeated)


@pytest.mark.parametrize("redundancy", ["mapped", "raw"])
def test_gradients_match_finite_differences(redundancy: str) -> None:
    patches, reference, query = random_video(2, frames=2, patches=4, size=5, query_size=3)
    merger = random_merger(2, 5, 3, redundancy=redundancy, temperature=0.3)
    names, values = zip(*merger.named_parameters(), strict=True)
    inputs = (patches.requires_grad_(), reference.requires_grad_(), query.requires_grad_())

    def tokens(*tensors: torch.Tensor) -> torch.Tensor:
        parameters = dict(zip(names, tensors[3:], strict=True))
        return torch.func.functional_call(merger, parameters, tensors[:3])[0]

    assert torch.autograd.gradcheck(tokens, (*inputs, *values))


def test_gradients_reach_every_parameter() -> None:
    patches, _, query = random_video(3, frames=7, query_size=5)
    references = preceding_keyframe(7, torch.tensor([1, 4]))
    merger = random_merger(3, 8, 5)
    merge_frames(merger, patches, references, query, chunk_size=2)[0].square().sum().backward()
    q_former = QFormerMerger(8, 5).double()
    q_former(patches, patches[0], query)[0].square().sum().backward()
    for module in (merger, q_former):
        for name, parameter in module.named_parameters():
            # Attention's key bias adds the same to every logit, which softmax removes.
            if name == "attention.in_proj_bias":
                assert parameter.grad[[*range(8), *range(16, 24)]].abs().min() > 0
            else:
                assert parameter.grad.abs().max() > 0, name


def test_zero_vectors_have_cosine_zero() -> None:
    patches, reference, query = random_video(6)
    tokens, weights = differential_merge(torch.zeros_like(patches), reference, query)
    assert torch.equal(tokens, torch.zeros_like(tokens))
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / 6))
    _, neutral = differential_merge(patches, torch.zeros_like(reference), torch.zeros_like(query))
    torch.testing.assert_close(neutral, torch.full_like(weights, 1 / 6))


def test_memory_of_one_chunk() -> None:
    """Merging four times the frames takes no more extra memory, but for the tokens themselves."""
    methods = {"ours": ours}
    small, large = (
        compare(methods, num_frames=frames, hidden_size=128, repeats=1)["ours"].extra_memory for frames in (32, 128)
    )
    # One tensor as large as the added frames would be 36 MB; the allocator's own slack is a few.
    added_frames = (128 - 32) * 729 * 128 * 4
    assert large - small < added_frames / 4


# --- bad input ------------------------------------------------------------------------------------------------------

PATCHES, REFERENCE, QUERY = torch.ones(2, 4, 8), torch.ones(4, 8), torch.ones(8)
EVERY_MERGER = (differential_merge, mean_merge, max_merge, DifferentialMerger(8, 8), QFormerMerger(8, 8))


def bad_inputs() -> list[tuple[object, object, object, str]]:
    spoilt = PATCHES.clone()
    spoilt[1, 2, 3] = math.nan
    return [
        (PATCHES[0], REFERENCE, QUERY, "patches must have 3 axes"),
        (PATCHES[:0], REFERENCE, QUERY, "patches is empty"),
        (PATCHES.long(), REFERENCE, QUERY, "patches must be a floating-point"),
        (None, REFERENCE, QUERY, "patches must be a floating-point"),
        (spoilt, REFERENCE, QUERY, r"patches holds NaN or infinity, first at index \(1, 2, 3\)"),
        (spoilt.nan_to_num(math.inf), REFERENCE, QUERY, r"patches holds NaN or infinity, first at index \(1, 2, 3\)"),
        (PATCHES, REFERENCE[0], QUERY, "reference must have 2 or 3 axes"),
        (PATCHES, REFERENCE[:3], QUERY, "reference must have the shape"),
        (PATCHES, PATCHES[:1], QUERY, "reference must have the shape"),
        (PATCHES, REFERENCE.double(), QUERY, "reference must have the type of patches"),
        (PATCHES, REFERENCE * math.nan, QUERY, "reference holds NaN or infinity"),
        (PATCHES, REFERENCE, QUERY[None], "query must have 1 axes"),
        (PATCHES, REFERENCE, QUERY[:0], "query is empty"),
        (PATCHES, REFERENCE, QUERY * math.inf, "query holds NaN or infinity"),
    ]


@pytest.mark.parametrize("merge", EVERY_MERGER, ids=lambda merge: getattr(merge, "__name__", type(merge).__name__))
def test_bad_inputs(merge: Callable[..., tuple[torch.Tensor, torch.Tensor]]) -> None:
    for patches, reference, query, message in bad_inputs():
        with pytest.raises(ValueError, match=message):
            merge(patches, reference, query)
    from_numpy = merge(PATCHES.numpy(), REFERENCE.numpy(), QUERY.numpy())
    torch.testing.assert_close(from_numpy, merge(PATCHES, REFERENCE, QUERY))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), "1", None])
def test_bad_weights_and_temperatures(bad: object) -> None:
    for build in (
        lambda **o: differential_merge(PATCHES, REFERENCE, QUERY, **o),
        lambda **o: DifferentialMerger(8, 8, **o),
    ):
        with pytest.raises(ValueError, match="redundancy_weight must be a finite number"):
            build(redundancy_weight=bad)
        for temperature in (bad, 0, -0.1):
            with pytest.raises(ValueError, match="temperature must be a finite number above 0"):
                build(temperature=temperature)


def test_bad_sizes_and_words() -> None:
    for build, message in (
        (lambda: DifferentialMerger(0, 8), "hidden_size must be an integer"),
        (lambda: DifferentialMerger(8, 2.5), "query_size must be an integer"),
        (lambda: DifferentialMerger(8, 8, relevance="learned"), "relevance must be one of"),
        (lambda: DifferentialMerger(8, 8, redundancy="none"), "redundancy must be one of"),
        (lambda: DifferentialMerger(8, 6, relevance="raw"), "raw relevance needs query_size equal"),
        (lambda: DifferentialMerger(8, 6)(PATCHES, REFERENCE, QUERY), "query must have size 6"),
        (lambda: DifferentialMerger(6, 8)(PATCHES, REFERENCE, QUERY), "patches must have size 6"),
        (lambda: differential_merge(PATCHES, REFERENCE, torch.ones(5)), "query must have size 8"),
        (lambda: QFormerMerger(8, 8, num_heads=3), "num_heads must divide"),
        (lambda: pool_patches(torch.ones(1, 12, 4)), "square grid"),
        (lambda: preceding_keyframe(0, torch.tensor([0])), "num_frames"),
        (lambda: preceding_keyframe(4, torch.tensor([], dtype=torch.int64)), "keyframes must be a non-empty"),
        (lambda: preceding_keyframe(4, None), "keyframes must be a non-empty"),
        (lambda: pool_patches(torch.full((1, 9, 2), float("nan"))), "patches holds NaN"),
        (lambda: preceding_keyframe(4, torch.tensor([4])), "keyframes must lie in 0…3, got 4…4"),
        (lambda: preceding_keyframe(4, torch.tensor([1.5])), "keyframes must be a non-empty"),
        (lambda: preceding_keyframe(4, torch.tensor([1]), "last"), "before_first must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            build()


@pytest.mark.parametrize("temperature", [0.0, -0.01, math.nan])
def test_a_temperature_that_training_broke_is_refused(temperature: float) -> None:
    merger = DifferentialMerger(8, 8)
    merger.temperature.data.fill_(temperature)
    with pytest.raises(ValueError, match=rf"temperature α is {temperature:.3g}, but must be above 0"):
        merger(PATCHES, REFERENCE, QUERY)


def test_bad_videos() -> None:
    merger, references = DifferentialMerger(8, 8), torch.tensor([0, 0])
    for arguments, message in (
        ((PATCHES, torch.tensor([0]), QUERY), "one frame for each of 2, got 1"),
        ((PATCHES, torch.tensor([0, 2]), QUERY), "reference_of must lie in 0…1"),
        ((PATCHES[0], references, QUERY), "patches must have 3 axes"),
        ((PATCHES, references, torch.ones(3)), "query must have size 8"),
    ):
        with pytest.raises(ValueError, match=message):
            merge_frames(merger, *arguments)
    with pytest.raises(ValueError, match="chunk_size"):
        merge_frames(merger, PATCHES, references, QUERY, chunk_size=0)


# --- Reference frames as released, neutral start, half precision ------------------------------------------------------


@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1), min_size=1))))
def test_a_reference_is_the_preceding_keyframe_or_as_released_its_number(video: tuple[int, set[int]]) -> None:
    num_frames, chosen = video
    keyframes, any_order = sorted(chosen), torch.tensor(sorted(chosen, key=lambda keyframe: -(keyframe % 3)))
    for before_first in ("self", "first"):
        preceding, slipped = (
            of(num_frames, any_order, before_first) for of in (preceding_keyframe, released_reference)
        )
        for frame in range(num_frames):
            segment = sum(keyframe <= frame for keyframe in keyframes) - 1
            early = segment < 0 and before_first == "self"
            assert preceding[frame] == (frame if early else keyframes[max(segment, 0)])
            assert slipped[frame] == (frame if early else max(segment, 0))


def test_a_neutral_start_is_the_mean_and_still_learns() -> None:
    torch.manual_seed(0)
    merger = DifferentialMerger(32, 8)
    merger.start_neutral()
    patches, reference, query = 3 * torch.randn(4, 25, 32), 3 * torch.randn(25, 32), 10 * torch.randn(8)
    tokens, weights = merger(patches, reference, query)
    assert (tokens - patches.mean(dim=1)).abs().max() < 1e-3
    (tokens * torch.randn_like(tokens)).sum().backward()
    for name, parameter in merger.named_parameters():
        assert parameter.grad.any(), name
    assert weights.std() > 0
    with pytest.raises(ValueError, match="can start neutral only"):
        DifferentialMerger(32, 8, redundancy="raw").start_neutral()


@pytest.mark.parametrize(("dtype", "bits"), [(torch.bfloat16, 8), (torch.float16, 11)])
def test_half_precision_scores_are_as_good_as_its_patches(dtype: torch.dtype, bits: int) -> None:
    """At α = 0.01, rounding of the scores themselves would be multiplied by 100."""
    torch.manual_seed(0)
    patches, reference, query = torch.randn(6, 49, 64), torch.randn(49, 64), torch.randn(64)
    rounded = [tensor.to(dtype) for tensor in (patches, reference, query)]
    tokens, weights = differential_merge(*rounded)
    _, exact = differential_merge(*(tensor.float() for tensor in rounded))
    assert tokens.dtype == weights.dtype == dtype
    assert (weights.float() - exact).abs().max() < 2.0**-bits  # the rounding of the weights themselves
