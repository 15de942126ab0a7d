"""Merging a video's frames: ours, a chunk at a time, against everything broadcast to [N, M, D].

Run with `python -m benchmarks.merging`.
"""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from benchmarks.measure import compare, report
from vilamp_lite.merging import DifferentialMerger, merge_frames, preceding_keyframe

NUM_PATCHES, QUERY_SIZE, KEYFRAMES_EVERY = 729, 512, 20


def video(num_frames: int, hidden_size: int) -> tuple[DifferentialMerger, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A merger, patches [N, 729, D], each frame's reference and a query."""
    torch.manual_seed(0)
    merger = DifferentialMerger(hidden_size, QUERY_SIZE)
    keyframes = torch.arange(0, num_frames, KEYFRAMES_EVERY)
    patches = torch.randn(num_frames, NUM_PATCHES, hidden_size)
    return merger, patches, preceding_keyframe(num_frames, keyframes), torch.randn(QUERY_SIZE)


def ours(num_frames: int, hidden_size: int) -> Callable[[], object]:
    merger, patches, references, query = video(num_frames, hidden_size)
    return lambda: merge_frames(merger, patches, references, query)


def broadcast(num_frames: int, hidden_size: int) -> Callable[[], object]:
    """As the released code does it: every operand is as large as the video, and every frame's is mapped.

    The reference tensor and the broadcast query are made by the work itself, since only this way of working needs them.
    Cosines are taken in blocks of 60 frames, sums frame by frame.
    """
    merger, patches, references, query = video(num_frames, hidden_size)

    def work() -> torch.Tensor:
        reference = patches[references]
        queries = query.repeat(num_frames, NUM_PATCHES, 1)
        relevant = merger.query_map(queries), merger.relevance_map(patches)
        redundant = merger.reference_map(reference), merger.redundancy_map(patches)
        scores = [
            F.cosine_similarity(*relevance, dim=-1) - F.cosine_similarity(*redundancy, dim=-1)
            for relevance, redundancy in zip(
                zip(*(side.split(60) for side in relevant), strict=True),
                zip(*(side.split(60) for side in redundant), strict=True),
                strict=True,
            )
        ]
        weights = (torch.cat(scores) / merger.temperature).softmax(dim=-1)
        return torch.stack([weight @ frame for weight, frame in zip(weights, patches, strict=True)])

    return work


METHODS = {"broadcast": broadcast, "ours": ours}
# At D = 896 and 240 frames the broadcast form holds six tensors of 627 MB.
CASES = [(60, 256), (240, 256), (60, 896), (240, 896)]


def main() -> None:
    """Measure every case with both methods."""
    rows = []
    for num_frames, hidden_size in CASES:
        measured = compare(METHODS, num_frames=num_frames, hidden_size=hidden_size)
        case = f"N = {num_frames}, D = {hidden_size}"
        rows += [{"case": case, "method": name, "measurement": measured[name]} for name in METHODS]
    title = f"Merging N frames of {NUM_PATCHES} patches of size D (query size {QUERY_SIZE}), float32, median of 5"
    report("merging", title, "broadcast", rows)


if __name__ == "__main__":
    main()
