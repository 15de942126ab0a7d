"""What is said about studies' rows: true for any numbers."""

import pytest

from vilamp_lite.evaluation.report import (
    beside_claim,
    beside_figure,
    difference_text,
    find,
    grid_of,
    mean_text,
    not_best,
    share_text,
    source_text,
    spread_text,
    told_apart,
    verdict,
)


def row(accuracy: float, reference: float, p: float = 0.5, **about: object) -> dict:
    difference = reference - accuracy
    interval = {"low": accuracy - 0.1, "high": accuracy + 0.1, "accuracy": accuracy}
    paired = {"difference": difference, "difference_low": difference - 0.1, "difference_high": difference + 0.1, "p": p}
    return {"frames": 1024, "family": "all"} | about | interval | paired


def test_claims_stand_beside_differences() -> None:
    for difference, p, word in (
        (0.2, 0.01, "confirmed here, +0.20"),
        (-0.2, 0.01, "contradicted here, -0.20"),
        (0.2, 0.05, "neither confirmed nor contradicted here, +0.20"),
        (0.0, 1.0, "neither confirmed nor contradicted here, +0.00"),
    ):
        text = beside_claim(row(0.5, 0.5 + difference, p), "DKS is better than uniform frames")
        assert text.startswith(f"DKS is better than uniform frames: {word}")
    # It is seen on which side of the level p lies.
    for p, shown in ((0.0483, "0.048"), (0.0504, "0.05"), (0.0532, "0.053"), (0.0321, "0.03")):
        assert beside_claim(row(0.5, 0.6, p), "claim").endswith(f"p = {shown})")


def test_numbers_in_words() -> None:
    for difference, p, text, words in (
        (0.5234, 2e-19, "+0.52 (+0.42 to +0.62, p = 2e-19)", "a is better than b"),
        (-0.1, 0.01, "-0.10 (-0.20 to +0.00, p = 0.01)", "a is worse than b"),
        (-0.001, 0.9, "+0.00 (-0.10 to +0.10, p = 0.9)", "no difference between a and b is shown"),
    ):
        ends = {"difference_low": difference - 0.1, "difference_high": difference + 0.1}
        row = {"difference": difference, "p": p, "accuracy": 0.951, "low": 0.909, "high": 0.966} | ends
        assert difference_text(row) == text
        assert verdict(row, "a", "b") == words
        assert share_text(row) == "0.95 (0.91–0.97)"


def test_one_row_or_none() -> None:
    rows = [{"a": 1, "b": 1}, {"a": 1, "b": 2}]
    assert find(rows, a=1, b=2) is rows[1]
    for fields, count in (({"a": 1}, 2), ({"a": 2}, 0)):
        with pytest.raises(ValueError, match=f"must be one row, got {count}"):
            find(rows, **fields)
    assert grid_of(rows, "b", lambda row: f"a = {row['a']}", "b").to_dict() == {"a = 1": {1: 1, 2: 2}}


def test_the_best_is_looked_for_at_the_same_place() -> None:
    def name(row: dict) -> str:
        return f"K = {row['k']}"

    rows = [
        row(0.7, 0.7, k=4),
        row(0.9, 0.7, k=8),
        row(0.8, 0.7, k=16),
        row(1.0, 1.0, k=4, family="companion"),
        row(1.0, 1.0, k=8, family="companion"),
        row(0.6, 0.6, k=4, frames=2048),
        row(0.5, 0.6, k=8, frames=2048),
    ]
    (sentence,) = not_best(rows, name)
    wanted = (
        "K = 4 is not best on all at 1,024 frames: K = 8 0.90 (0.80–1.00) against 0.70 (0.60–0.80), difference -0.2"
    )
    assert sentence.startswith(wanted)
    (sentence,) = not_best(rows, name, "K = 8")
    assert sentence.startswith("K = 8 is not best on all at 2,048 frames: K = 4 0.60")
    with pytest.raises(ValueError, match="no row is called 'K = 5'"):
        not_best(rows, name, "K = 5")


def test_budgets_are_places_too() -> None:
    methods = ("full", "dense")
    rows = [row(0.5 + 0.1 * n, 0.5, method=own, budget=128 * (n + 1)) for n in range(2) for own in methods]
    assert not_best(rows, lambda row: row["method"]) == []
    rows[-1]["accuracy"] = 0.9
    (sentence,) = not_best(rows, lambda row: row["method"])
    assert "full is not best on all at 1,024 frames and 256 tokens: dense 0.90" in sentence


def test_means_and_spreads() -> None:
    seeds = {"mean": 0.93, "spread": 0.0283, "accuracies": [0.91, 0.95]}
    assert spread_text(seeds) == "0.93 ± 0.03 (0.91, 0.95)"
    means = {"frames_needed": 0.312, "low": {"frames_needed": 0.28}, "high": {"frames_needed": 0.344}}
    assert mean_text(means, "frames_needed") == "0.31 (0.28 to 0.34)"
    for figure, place in ((0.05, "above 0.05"), (0.3, "not told apart from 0.3"), (0.5, "below 0.5")):
        assert beside_figure(means, "frames_needed", figure) == f"0.31 (0.28 to 0.34), {place}"


def test_settings_are_told_apart_by_their_pairs() -> None:
    rows = [row(0.9, 0.9, 1.0), row(0.7, 0.9, 0.01), row(0.7, 0.9, 0.06), row(0.95, 0.9, 0.04), row(0.6, 0.9, 0.001)]
    text = told_apart(rows)
    assert text.startswith("4 other settings: 2 worse than as trained, 1 better, 1 not told apart")
    del rows[1]["p"]
    with pytest.raises(ValueError, match="own setting must be among those"):
        told_apart(rows)


def test_a_source_counts_every_question() -> None:
    about = {"frames": [256, 2048], "depths": [0.0, 0.5, 1.0], "families": ["attribute", "companion"], "questions": 10}
    study = {"parameters": about, "stamp": {"commit": "0123456789abcdef"}}
    text = source_text(study)
    assert text == (
        "commit 0123456789; haystacks of 256, 2,048 frames; 120 questions of each variant, "
        "10 at each length, depth and family"
    )


def test_means_over_seeds_say_where_the_first_is_behind() -> None:
    paired = [{"difference": -0.02, "difference_low": -0.05, "difference_high": 0.01, "p": 0.2}] * 2
    rows = [
        {"selector": "dks", "merger": merger, "family": family, "frames": 64, "mean": mean, "paired": paired}
        for merger, family, mean in (
            *(("dfm", "attribute", 0.95), ("dfm", "companion", 0.9)),
            *(("drop", "attribute", 0.95), ("drop", "companion", 0.92)),
        )
    ]
    one = "-0.02 (-0.05 to +0.01, p = 0.2)"
    assert not_best(rows) == [
        f"dks + dfm is not best on companion: dks + drop 0.920 against 0.900, difference by seed {one}; {one}"
    ]
