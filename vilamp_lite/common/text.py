"""Text that others wrote, such as a file's name or a question, to be read as it is and obeyed by nothing."""

import math
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

_OBEYED = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029"  # control characters, separators of lines
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # what turns the direction of writing
    # What nobody sees, but for the joiners U+200C and U+200D, which Persian and families of emoji are written with.
    "\xad\u180e\u200b\u2060-\u2065\u206a-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"
    "\ud800-\udfff]"  # bytes of names that are no text
)


def visible(text: str, *, keep: str = "") -> str:
    r"""Write out what a terminal would obey or hide instead of showing it: an escape becomes \x1b, a line's end \n.

    Args:
        text: of anybody.
        keep: characters to leave as they are, such as the ends of an answer's lines.
    """
    return _OBEYED.sub(lambda found: found[0] if found[0] in keep else _written_out(found[0]), text)


def _written_out(character: str) -> str:
    byte = ord(character) - 0xDC00  # of a name that is not UTF-8, as Python holds it
    return f"\\x{byte:02x}" if 0x80 <= byte < 0x100 else character.encode("unicode_escape").decode()


def require_text(text: str) -> None:
    """Refuse bytes of the command line that are no text: models and safetensors read UTF-8 alone."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{text!r} is not text: write it in UTF-8") from error


def one_line(text: str) -> str:
    """Join the lines of a message."""
    return re.sub(r"\s*\n\s*", " ", text.strip())


def in_seconds(timestamps: "np.ndarray", samples: Iterable[int]) -> list[str]:
    """Write the times of some samples, with as many decimals as tell neighbours apart: none at a second between them.

    Args:
        timestamps: [N] seconds of all samples.
        samples: which of them.
    """
    between = (timestamps[-1] - timestamps[0]) / max(len(timestamps) - 1, 1) or 1.0
    decimals = max(math.ceil(-math.log10(between) - 0.05), 0)  # a rate of 29.97 leaves a little less than a second
    return [f"{timestamps[sample]:.{decimals}f}" for sample in samples]
