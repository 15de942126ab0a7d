"""Bad input gets one clear error that names the argument and says what it got."""

import math
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import torch

ArrayLike: TypeAlias = "torch.Tensor | np.ndarray"


def describe(value: object) -> str:
    """Say what a value is, short enough for an error message."""
    shape = getattr(value, "shape", None)
    if shape is not None:
        return f"{type(value).__name__} of shape {tuple(shape)} and type {value.dtype}"
    return f"{type(value).__name__} {value!r}"


def float_tensor(name: str, value: ArrayLike, *ranks: int) -> "torch.Tensor":
    """Take a floating-point tensor or array of one of the given ranks, with no empty axis.

    Values are not looked at here: NaN and infinity show up in sums that the callers form anyway.
    """
    import torch

    if isinstance(value, np.ndarray) and np.issubdtype(value.dtype, np.floating):
        value = torch.from_numpy(np.require(value, requirements="CW"))  # a copy of what can't be written to
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        raise ValueError(f"{name} must be a floating-point tensor or NumPy array, got {describe(value)}")
    if value.ndim not in ranks:
        expected = " or ".join(str(rank) for rank in ranks)
        raise ValueError(f"{name} must have {expected} axes, got {describe(value)}")
    if value.numel() == 0:
        raise ValueError(f"{name} is empty: got {describe(value)}")
    return value


def finite_number(name: str, value: float, *, above: float = -math.inf) -> float:
    """Take a finite real number greater than `above`."""
    is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value <= above:
        bound = "" if above == -math.inf else f" above {above:g}"
        raise ValueError(f"{name} must be a finite number{bound}, got {describe(value)}")
    return float(value)


def cosine(name: str, value: float) -> float:
    """Take a number from −1 to 1."""
    if not -1 <= finite_number(name, value) <= 1:
        raise ValueError(f"{name} is a cosine, from -1 to 1, got {value}")
    return float(value)


def positive_int(name: str, value: int) -> int:
    """Take an integer of at least 1."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {describe(value)}")
    return int(value)


def choice(name: str, value: str, options: tuple[str, ...]) -> str:
    """Take one of a few words."""
    if value not in options:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}, got {value!r}")
    return value


def require_finite(result: "torch.Tensor", **inputs: "torch.Tensor") -> None:
    """Blame a non-finite result on the input that caused it.

    Looking at a small result is cheap; the large inputs are searched only when it is bad.
    """
    import torch

    if result.is_meta or torch.isfinite(result).all():
        return
    for name, value in inputs.items():
        bad = ~torch.isfinite(value)
        if bad.any():
            where = tuple(torch.nonzero(bad)[0].tolist())
            raise ValueError(f"{name} holds NaN or infinity, first at index {where}")
    verb, pronoun = ("is", "it") if len(inputs) == 1 else ("are", "them")
    blamed = " and ".join(inputs)
    raise ValueError(f"{blamed} {verb} finite, but too large for {result.dtype} arithmetic: scale {pronoun}")
