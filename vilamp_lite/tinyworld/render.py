"""Draw TinyWorld: small scenes of coloured shapes, each a handful of near-duplicate frames, as in a real video.

A scene is a textured background that drifts, and a few things on a 4×4 grid that tremble. Everything follows from the
scene's seed. Frames are 64×64 pixels.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from os import PathLike

import av
import numpy as np

from vilamp_lite.common.files import written_whole
from vilamp_lite.video.timeline import VideoInfo

SIDE = 64  # pixels
GRID = 4  # cells across and down
SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond", "ring", "heart", "moon", "arrow")

COLORS = {
    "red": (225, 40, 45),
    "orange": (245, 140, 30),
    "yellow": (245, 230, 60),
    "green": (50, 170, 70),
    "cyan": (70, 215, 225),
    "blue": (45, 85, 215),
    "purple": (165, 60, 190),
    "white": (245, 245, 245),
}

FORMAT_TAG = "vilamp tinyworld"  # the files' `comment`, by which they are known
_CELL = SIDE // GRID
_SIZES = np.arange(11, 15)  # pixels across a thing
_MARGIN = 4  # pixels beyond each side, so that things may tremble at the edge
_JITTER = 2  # pixels from the cell's middle
_DRIFT = 12  # pixels that a background can drift
_COARSE = 9  # points across a background, between which it is smooth
_NOISE = 5.0  # standard deviation of the pixels' noise


@dataclass(frozen=True)
class Thing:
    """A coloured shape in a cell of the grid, 0 to 15 from the top left, row by row."""

    shape: str
    color: str
    cell: int


@dataclass(frozen=True)
class Scene:
    """A stretch of near-duplicate frames.

    Attributes:
        seed: decides everything that `things` and `num_frames` leave open.
        things: what is shown, in different cells.
        num_frames: how long.
    """

    seed: int
    things: tuple[Thing, ...]
    num_frames: int


def render_scene(scene: Scene) -> np.ndarray:
    """Draw a scene's frames, uint8 [num_frames, 64, 64, 3] RGB; the same for the same scene, anywhere."""
    _check(scene)
    random = np.random.default_rng(scene.seed)
    count = scene.num_frames
    canvas = np.empty((count, SIDE + 2 * _MARGIN, SIDE + 2 * _MARGIN, 3), np.float32)
    canvas[:] = _background(random, count)
    frame = np.arange(count)[:, None, None]
    window = np.arange(_CELL)
    for thing in scene.things:
        mask = _MASKS[SHAPES.index(thing.shape), random.integers(len(_SIZES))]
        color = np.asarray(COLORS[thing.color], np.float32) * random.uniform(0.9, 1.03)
        corner = _MARGIN + _CELL * np.array(divmod(thing.cell, GRID)) + random.integers(-_JITTER, _JITTER + 1, 2)
        rows, columns = corner[:, None] + random.integers(-1, 2, (2, count))
        at = frame, rows[:, None, None] + window[:, None], columns[:, None, None] + window
        under = canvas[at]
        canvas[at] = under + mask * (color - under)
    inside = slice(_MARGIN, _MARGIN + SIDE)
    frames = canvas[:, inside, inside] + _noise(random, count)
    return np.clip(frames, 0, 255).astype(np.uint8)


def render_scenes(scenes: Iterable[Scene], batch_size: int = 64) -> Iterator[np.ndarray]:
    """Draw scenes one after another, uint8 [batch_size, 64, 64, 3] at a time; the last batch may be shorter."""
    waiting: list[np.ndarray] = []
    for scene in scenes:
        waiting.append(render_scene(scene))
        if sum(map(len, waiting)) >= batch_size:
            frames = np.concatenate(waiting)
            whole = len(frames) // batch_size * batch_size
            yield from np.split(frames[:whole], whole // batch_size)
            waiting = [frames[whole:]]
    if sum(map(len, waiting)):
        yield np.concatenate(waiting)


def write_video(path: str | PathLike[str], scenes: Iterable[Scene], fps: int = 1) -> int:
    """Write scenes as an H.264 file that carries `FORMAT_TAG`; return the number of frames.

    Colours are stored at full resolution (4:4:4): a thing is a dozen pixels wide. The file appears
    whole or not at all.

    Args:
        path: the file, such as X.mp4.
        scenes: what to show, in order.
        fps: frames per second of the file.
    """
    written = 0
    with written_whole(path) as waiting, av.open(waiting, "w", options={"movflags": "+faststart"}) as container:
        container.metadata["comment"] = FORMAT_TAG
        stream = container.add_stream("libx264", rate=fps, options={"crf": "12", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv444p"
        for frame in itertools.chain.from_iterable(render_scenes(scenes)):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
            written += 1
        container.mux(stream.encode(None))
    return written


def is_tinyworld(video: VideoInfo) -> bool:
    """Tell by its `FORMAT_TAG` whether a video file shows TinyWorld."""
    return video.comment == FORMAT_TAG


def _check(scene: Scene) -> None:
    if scene.num_frames < 1:
        raise ValueError(f"a scene needs at least one frame, got {scene.num_frames}")
    cells = [thing.cell for thing in scene.things]
    if len(set(cells)) != len(cells) or not set(cells) <= set(range(GRID**2)):
        raise ValueError(f"things need different cells from 0 to {GRID**2 - 1}, got {cells}")
    for thing in scene.things:
        if thing.shape not in SHAPES or thing.color not in COLORS:
            raise ValueError(f"no such thing in TinyWorld: a {thing.color} {thing.shape}")


def _background(random: np.random.Generator, count: int) -> np.ndarray:
    """A smooth texture in muted tones that drifts in one direction, [count, side, side, 3]."""
    side = SIDE + 2 * _MARGIN
    tone = random.uniform(55, 115) + random.uniform(-14, 14, 3)
    coarse = tone + random.normal(0, 16, (_COARSE, _COARSE, 1)) + random.normal(0, 5, (_COARSE, _COARSE, 3))
    whole = np.einsum("yi,ijc,xj->yxc", _SMOOTH, coarse.astype(np.float32), _SMOOTH, optimize=True)
    # It drifts by up to one pixel a frame, and turns back at the end of the texture.
    path = random.uniform(0, _DRIFT, 2)[:, None] + random.uniform(-1, 1, 2)[:, None] * np.arange(count)
    top, left = np.abs((path + _DRIFT) % (2 * _DRIFT) - _DRIFT).astype(int)
    windows = np.lib.stride_tricks.sliding_window_view(whole, (side, side), axis=(0, 1))
    return windows[top, left].transpose(0, 2, 3, 1)


def _noise(random: np.random.Generator, count: int) -> np.ndarray:
    """Grain, cut out of a fixed sheet at random places, [count, 64, 64, 3]."""
    windows = np.lib.stride_tricks.sliding_window_view(_SHEET, (SIDE, SIDE), axis=(0, 1))
    top, left = random.integers(0, len(_SHEET) - SIDE, (2, count))
    return windows[top, left].transpose(0, 2, 3, 1)


def _smooth_matrix() -> np.ndarray:
    """Cosine interpolation from the coarse points to pixels, [pixels, points]."""
    at = np.linspace(0, _COARSE - 1, SIDE + 2 * _MARGIN + _DRIFT + 1)
    near = np.clip(1 - np.abs(at[:, None] - np.arange(_COARSE)), 0, 1)
    return ((1 - np.cos(np.pi * near)) / 2).astype(np.float32)


def _shape_masks() -> np.ndarray:
    """How much of each pixel a shape covers, for each shape and size, [shapes, sizes, 16, 16, 1]."""
    fine = 8  # points across a pixel
    steps = (np.arange(_CELL * fine) + 0.5) / fine - _CELL / 2
    masks = np.empty((len(SHAPES), len(_SIZES), _CELL, _CELL, 1), np.float32)
    for number, size in enumerate(_SIZES):
        y, x = np.meshgrid(2 * steps / size, 2 * steps / size, indexing="ij")
        for shape, name in enumerate(SHAPES):
            inside = _inside(name, x, y)
            masks[shape, number, ..., 0] = inside.reshape(_CELL, fine, _CELL, fine).mean(axis=(1, 3))
    return masks


def _inside(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which points of the square from −1 to 1 (y downwards) a shape holds."""
    radius, angle = np.hypot(x, y), np.arctan2(x, -y)
    match shape:
        case "circle":
            return radius <= 0.95
        case "square":
            return np.maximum(abs(x), abs(y)) <= 0.82
        case "triangle":
            return (y <= 0.8) & (abs(x) <= (y + 0.95) / 1.8)
        case "star":
            # Between its points and its inner corners a star's edge runs straight; this follows it closely.
            turn = abs((angle / (2 * np.pi / 5) + 0.5) % 1 - 0.5) * 2
            return radius <= 1.05 - 0.68 * turn**0.75
        case "cross":
            return (np.minimum(abs(x), abs(y)) <= 0.3) & (np.maximum(abs(x), abs(y)) <= 0.95)
        case "diamond":
            return abs(x) * 1.35 + abs(y) <= 1.0
        case "ring":
            return (radius <= 0.98) & (radius >= 0.55)
        case "heart":
            u, v = 1.2 * x, -1.2 * y + 0.15
            return (u**2 + v**2 - 0.75) ** 3 <= u**2 * v**3 * 1.6
        case "moon":
            return (radius <= 0.98) & (np.hypot(x - 0.45, y) > 0.78)
        case "arrow":
            shaft = (abs(x) <= 0.28) & (y >= -0.1) & (y <= 0.95)
            return shaft | ((y <= -0.05) & (abs(x) <= (y + 0.98) * 0.95))
        case _:
            raise ValueError(f"no such shape: {shape}")


_MASKS = _shape_masks()
_SMOOTH = _smooth_matrix()
_SHEET = np.random.default_rng(0).normal(0, _NOISE, (192, 192, 3)).astype(np.float32)
