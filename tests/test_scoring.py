"""Scores: intervals and tests against a published example, brute force and enumeration."""

import itertools
import math

import numpy as np
import pytest

from vilamp_lite.evaluation.scoring import (
    answers_match,
    option_matches,
    paired_difference_interval,
    paired_sign_test,
    wilson_interval,
)


def test_answers_match() -> None:
    for prediction, answer, same in (
        ("red", "red", True),
        (" Red and  BLUE.\n", "red and blue", True),
        ('"moon"', "moon", True),
        ("red blue", "red and blue", False),
        ("red and blue", "blue and red", False),
        ("reddish", "red", False),
        ("", "red", False),
        ("3.5", "35", False),
        ("-5", "5", False),
        ("C", "C++", False),
        ("50%", "50", False),
        ("(“C++”).", "c++", True),
        ("?", "", False),
        ("...", "…", False),
    ):
        assert answers_match(prediction, answer) == same
        assert answers_match(answer, prediction) == same


def test_an_option_is_chosen_by_letter_or_words() -> None:
    for prediction, right in (
        ("B", True),
        ("b.", True),
        ("(B)", True),
        ("B. a dog", True),
        ("(b) something else", True),
        ("A dog", True),
        ("**B**", True),
        ("A", False),
        ("C", False),
        ("A. a cat", False),
        ("a dog or a cat", False),
        ("Because", False),
        ("", False),
    ):
        assert option_matches(prediction, ["a cat", "a dog", "b"], "a dog") == right
    # Words of another option are not taken for a letter.
    options = ["Java", "C++", "Python"]
    assert not option_matches("C++", options, "Python")
    assert option_matches("C.", options, "Python")
    with pytest.raises(ValueError, match="options must differ by more than case and punctuation, got Yes, yes"):
        option_matches("yes", ["Yes", "yes."], "Yes")
    with pytest.raises(ValueError, match="answer must be one of the options a cat, a dog, got 'a cow'"):
        option_matches("A", ["a cat", "a dog"], "a cow")


@pytest.mark.parametrize(("confidence", "z"), [(0.95, 1.959964), (0.8, 1.281552)])
def test_wilson_holds_the_shares_that_a_score_test_accepts(confidence: float, z: float) -> None:
    shares = np.linspace(0, 1, 200_001)
    for correct, total in [(0, 7), (3, 7), (7, 7), (46, 50), (199, 200)]:
        accepted = shares[np.abs(correct / total - shares) <= z * np.sqrt(shares * (1 - shares) / total)]
        assert wilson_interval(correct, total, confidence) == pytest.approx((accepted[0], accepted[-1]), abs=1e-5)


def test_wilson_refuses() -> None:
    for arguments, message in (
        ((1, 0), "total must be an integer of at least 1"),
        ((3, 2), "correct must lie from 0 to total = 2, got 3"),
        ((-1, 2), "correct must lie from 0"),
        ((1, 2, 1), "confidence must lie between 0 and 1, got 1"),
        ((1, 2, math.nan), "confidence must be a finite number"),
    ):
        with pytest.raises(ValueError, match=message):
            wilson_interval(*arguments)


def pairs(wins: int, losses: int, ties: int) -> tuple[list[bool], list[bool]]:
    return [True] * wins + [False] * losses + [True] * ties, [False] * wins + [True] * losses + [True] * ties


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (0, 1), (3, 1), (5, 5), (7, 0), (2, 9), (10, 3)])
def test_sign_test_counts_the_coins_at_least_as_uneven(wins: int, losses: int) -> None:
    throws = itertools.product((-1, 1), repeat=wins + losses)
    uneven = sum(abs(sum(throw)) >= abs(wins - losses) for throw in throws)
    p = paired_sign_test(*pairs(wins, losses, 4))
    assert p == pytest.approx(uneven / 2 ** (wins + losses))
    assert p == paired_sign_test(*pairs(losses, wins, 1))


def test_difference_interval_of_a_published_example() -> None:
    """Fagerland, Lydersen and Laake (2014), the airway example: 1 and 7 disagreements among 21."""
    assert paired_difference_interval(*pairs(1, 7, 13)) == pytest.approx((-0.508, -0.013), abs=5e-4)
    assert paired_difference_interval(*pairs(7, 1, 13)) == pytest.approx((0.013, 0.508), abs=5e-4)
    # No difference lies beyond 1.
    assert (paired_difference_interval(*pairs(0, 9, 0))[0], paired_difference_interval(*pairs(9, 0, 0))[1]) == (-1, 1)


def test_pairs_refuse() -> None:
    for first, second, message in (
        ([], [], "first and second must be of the same questions, got 0 and 0"),
        ([True], [True, False], "of the same questions, got 1 and 2"),
        ([True], [0.5], "must say right or wrong, got float 0.5"),
    ):
        for score in (paired_sign_test, paired_difference_interval):
            with pytest.raises(ValueError, match=message):
                score(first, second)


def test_arrays_serve_as_well() -> None:
    first, second = (np.array(values) for values in pairs(5, 1, 3))
    assert paired_sign_test(first, second) == paired_sign_test(*pairs(5, 1, 3))
    assert paired_difference_interval(first, second, 0.8)[0] > paired_difference_interval(first, second)[0]
