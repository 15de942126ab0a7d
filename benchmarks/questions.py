"""A first question about a video, which encodes it into a store, against every further one.

Run with `python -m benchmarks.questions`.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.end_to_end import VIDEOS, miniature
from benchmarks.measure import measure_once, report
from vilamp_lite.modeling import MixedPrecisionSequence
from vilamp_lite.streaming.feature_store import FeatureStore
from vilamp_lite.tinyworld.long_videos import long_video


def first(num_frames: int) -> Callable[[], MixedPrecisionSequence]:
    """Encode the video into a new store and make the tokens of the question."""
    return _case(num_frames, encoded=False)


def further(num_frames: int) -> Callable[[], MixedPrecisionSequence]:
    """Make the tokens of a question about a video that is in the store."""
    return _case(num_frames, encoded=True)


def _case(num_frames: int, *, encoded: bool) -> Callable[[], MixedPrecisionSequence]:
    model, processor = miniature()
    video = long_video(VIDEOS, num_frames)
    folder = tempfile.TemporaryDirectory(dir=VIDEOS)  # goes when the work is forgotten

    def store() -> FeatureStore:
        return FeatureStore.open(Path(folder.name) / "features")

    if encoded:
        store().encode(video.path, model, processor)

    def work() -> MixedPrecisionSequence:
        if not encoded:
            store().encode(video.path, model, processor)
        return store().sequence(model, video.haystack.question.text, processor)

    return work


METHODS = {"first question": first, "further question": further}
CASES = [1_000, 10_000]


def main() -> None:
    """Measure every case with both methods."""
    rows = []
    for num_frames in CASES:
        measured = measure_once(METHODS, {"num_frames": 16}, num_frames=num_frames)
        case = f"N = {num_frames:,}"
        rows += [{"case": case, "method": name, "measurement": measured[name]} for name in METHODS]
    title = (
        "From N frames in a file or a store to the language model's tokens, miniature, float32, one run; "
        "to reach: 20 times faster"
    )
    report("questions", title, "first question", rows)


if __name__ == "__main__":
    main()
