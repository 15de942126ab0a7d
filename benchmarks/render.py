"""Drawing TinyWorld: whole scenes, as the package does, against one frame after another, and against encoding them.

Run with `python -m benchmarks.render`.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.measure import compare, report
from vilamp_lite.tinyworld.haystack import pool_scenes
from vilamp_lite.tinyworld.render import Scene, render_scene, write_video


def by_frame(num_scenes: int) -> Callable[[], object]:
    """Every frame as a scene of its own."""
    scenes = _scenes(num_scenes)
    single = [Scene(scene.seed + n, scene.things, 1) for scene in scenes for n in range(scene.num_frames)]
    return lambda: [render_scene(scene) for scene in single]


def ours(num_scenes: int) -> Callable[[], object]:
    """All frames of a scene at once."""
    scenes = _scenes(num_scenes)
    return lambda: [render_scene(scene) for scene in scenes]


def into_a_file(num_scenes: int) -> Callable[[], object]:
    """Drawn as ours, and encoded as H.264."""
    scenes = _scenes(num_scenes)
    folder = tempfile.TemporaryDirectory()

    def work() -> int:
        return write_video(Path(folder.name) / "video.mp4", scenes)

    return work


def _scenes(number: int) -> list[Scene]:
    return list(pool_scenes(number, "test"))


METHODS = {"frame by frame": by_frame, "ours": ours, "ours, into an mp4": into_a_file}
NUM_SCENES = 250


def main() -> None:
    """Measure drawing with every method."""
    measured = compare(METHODS, num_scenes=NUM_SCENES)
    frames = sum(scene.num_frames for scene in _scenes(NUM_SCENES))
    rows = [{"case": f"{frames:,} frames", "method": name, "measurement": measured[name]} for name in METHODS]
    report("render", "Drawing scenes of 64×64 pixels, median of 5", "frame by frame", rows)


if __name__ == "__main__":
    main()
