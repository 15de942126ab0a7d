"""A synthetic world in which the paper's claims can be tried on a laptop: scenes, questions, needles in haystacks."""

from pathlib import Path

# The model that `vilamp train --preset miniature --seed 0` made; it lies in the repository, not in the package.
MINIATURE = Path(__file__).parents[2] / "data" / "vilamp-miniature"
