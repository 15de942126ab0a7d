"""Sampling a video at one frame per second: ours against decord, PyAV and OpenCV used plainly.

Run with `python -m benchmarks.video`. The video is the photo tour: 3,600 frames of 640×360, H.264.
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.measure import compare, report
from vilamp_lite.video.source import stream_frames

TOUR = str(Path(__file__).resolve().parents[1] / "data" / "photo_tour.mp4")
RATE, SAMPLES = 30, 120


def ours() -> Callable[[], object]:
    return lambda: sum(len(batch.frames) for batch in stream_frames(TOUR, fps=1.0))


def ours_decord() -> Callable[[], object]:
    return lambda: sum(len(batch.frames) for batch in stream_frames(TOUR, fps=1.0, backend="decord"))


def decord() -> Callable[[], object]:
    import decord

    def work() -> int:
        reader = decord.VideoReader(TOUR, num_threads=os.cpu_count())
        wanted = np.arange(SAMPLES) * RATE
        return sum(len(reader.get_batch(part).asnumpy()) for part in np.array_split(wanted, 4))

    return work


def pyav() -> Callable[[], object]:
    import av

    def work() -> int:
        count = 0
        with av.open(TOUR) as container:
            container.streams.video[0].thread_type = "AUTO"
            for number, frame in enumerate(container.decode(video=0)):
                if number % RATE == 0:
                    count += len(frame.to_ndarray(format="rgb24")) > 0
        return count

    return work


def opencv() -> Callable[[], object]:
    import cv2

    def work() -> int:
        capture, number, count = cv2.VideoCapture(TOUR), 0, 0
        while capture.grab():
            if number % RATE == 0:
                _, picture = capture.retrieve()
                count += len(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)) > 0
            number += 1
        return count

    return work


METHODS = {
    "OpenCV grab loop": opencv,
    "PyAV loop": pyav,
    "decord get_batch": decord,
    "ours": ours,
    "ours, backend=decord": ours_decord,
}


def main() -> None:
    """Measure every decoder on the photo tour."""
    rows = [
        {"case": "photo tour, 1 fps", "method": name, "measurement": measurement}
        for name, measurement in compare(METHODS).items()
    ]
    title = f"Sampling {SAMPLES} of 3,600 frames, 640×360 H.264 (a batch of 32 is 22 MB), median of 5"
    report("video", title, "OpenCV grab loop", rows)


if __name__ == "__main__":
    main()
