"""What answers are worth: right or wrong, how sure a share is, and whether one variant really beats another."""

import math
import re
import string
from collections.abc import Sequence
from typing import Any

from scipy.stats import binomtest, norm

from vilamp_lite.common.checks import describe, finite_number, positive_int

# Around an answer these say nothing; other signs do: "-5" is not "5", and "C++" not "C".
_AROUND = string.whitespace + "\"'`“”‘’«»()[]{}.,;:!?*"
_ANY = f"[{re.escape(_AROUND)}]*"
_LETTER = re.compile(rf"{_ANY}([a-z])(?:{_ANY}|[).:]\s.*)", re.DOTALL)


def answers_match(prediction: str, answer: str) -> bool:
    """Tell whether two answers are the same but for case, spaces, and quotes, brackets or punctuation around them."""
    return _normalised(prediction) == _normalised(answer)


def option_matches(prediction: str, options: Sequence[str], answer: str) -> bool:
    """Tell whether a prediction chooses the right one of the options A, B, C, … by letter ("B", "(b) cat") or words."""
    require_distinct(options)
    if answer not in options:
        raise ValueError(f"answer must be one of the options {', '.join(options)}, got {answer!r}")
    if answers_match(prediction, answer):
        return True
    letter = _LETTER.fullmatch(prediction.casefold())
    return letter is not None and letter[1] == string.ascii_lowercase[options.index(answer)]


def require_distinct(options: Sequence[str]) -> None:
    """Refuse options that `answers_match` can't tell apart."""
    if len({_normalised(option) for option in options}) != len(options):
        raise ValueError(f"options must differ by more than case and punctuation, got {', '.join(options)}")


def wilson_interval(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Bound a share, low and high: Wilson's score interval, which stays sensible near 0 and 1 and for few questions."""
    _check_confidence(confidence)
    if not 0 <= correct <= positive_int("total", total):
        raise ValueError(f"correct must lie from 0 to total = {total}, got {correct}")
    interval = binomtest(int(correct), int(total)).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def paired_sign_test(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Test whether two variants differ on the same questions: the exact two-sided sign test (exact McNemar test).

    Both say right or wrong, a question each. Only questions that one gets right and the other wrong count; without a
    difference each is a fair coin. Returns p; 1 when they never disagree.
    """
    wins, losses = _disagreements(first, second)
    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def paired_difference_interval(
    first: Sequence[bool], second: Sequence[bool], confidence: float = 0.95
) -> tuple[float, float]:
    """Bound the accuracy of `first` minus that of `second` on the same questions.

    Bonett and Price's (2012) adjusted Wald interval: one question is added to each of the two kinds of disagreement.
    Fagerland, Lydersen and Laake (2014) recommend it for paired shares. Its middle is drawn towards 0 a little.
    Returns low and high, from −1 to 1.
    """
    _check_confidence(confidence)
    wins, losses = ((count + 1) / (len(first) + 2) for count in _disagreements(first, second))
    middle = wins - losses
    half = norm.ppf((1 + confidence) / 2) * math.sqrt((wins + losses - middle**2) / (len(first) + 2))
    return float(max(middle - half, -1)), float(min(middle + half, 1))


def _normalised(answer: str) -> str:
    plain = " ".join(answer.casefold().split())
    return plain.strip(_AROUND) or plain  # an answer may be nothing but such signs


def _check_confidence(confidence: float) -> None:
    if not 0 < finite_number("confidence", confidence) < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")


def _disagreements(first: Sequence[bool], second: Sequence[bool]) -> tuple[int, int]:
    """How many questions only the first gets right, and only the second."""
    if len(first) != len(second) or not len(first):
        raise ValueError(f"first and second must be of the same questions, got {len(first)} and {len(second)}")
    wins = losses = 0
    for one, other in zip(first, second, strict=True):
        for value in (one, other):
            if value not in (0, 1):
                raise ValueError(f"first and second must say right or wrong, got {describe(value)}")
        wins, losses = wins + (one > other), losses + (other > one)
    return int(wins), int(losses)


def score(correct: int, questions: int) -> dict[str, Any]:
    """Right answers as a share of the questions: questions, correct, accuracy, and Wilson's 95 % interval low, high."""
    low, high = wilson_interval(correct, questions)
    return {"questions": questions, "correct": correct, "accuracy": correct / questions, "low": low, "high": high}
