"""float32 that is float32, where a threshold decides or a small temperature multiplies the rounding."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@contextmanager
def full_precision(device: "torch.device") -> Iterator[None]:
    """Compute in the tensors' own type: neither in mixed precision nor, on a GPU, in TF32.

    TF32 keeps 11 bits of float32's 24. PyTorch allows it for convolutions unless told otherwise, and a CLIP's patches
    are made by one: its cosines then differ by 5e-5 on an H100, enough to pass a keyframe's threshold.

    Args:
        device: where the work is done.
    """
    import torch

    if device.type == "meta":  # knows no mixed precision
        yield
        return
    convolutions, products = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = convolutions.fp32_precision, products.fp32_precision
    convolutions.fp32_precision = products.fp32_precision = "ieee"
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        convolutions.fp32_precision, products.fp32_precision = before
