"""Make the photo tour: two minutes of slow pans and zooms over freely licensed photographs.

    python data/make_photo_tour.py [--out DIR]

writes ``photo_tour.mp4`` (640×360, 30 fps, H.264) and ``photo_tour.json`` (scenes and queries). The
photographs ship inside the scikit-image and scikit-learn wheels; nothing is downloaded. README.md in this
folder gives their sources and licences.
"""

import argparse
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import Colorspace
from PIL import Image

WIDTH, HEIGHT, FPS = 640, 360, 30


class Photo(NamedTuple):
    """A photograph inside an installed wheel."""

    package: str
    path: str
    sha256: str  # the first 16 hex digits: another file under the same name may have another licence


class Crop(NamedTuple):
    """A 16:9 part of a photograph, in the photograph's pixels; fractions are allowed."""

    left: float
    top: float
    width: float

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom."""
        return self.left, self.top, self.left + self.width, self.top + self.width * HEIGHT / WIDTH


@dataclass(frozen=True)
class Scene:
    """One photograph on screen, the crop moving evenly from `start` to `end`."""

    photo: str
    title: str
    seconds: float
    start: Crop
    end: Crop
    queries: tuple[str, str, str]  # a noun phrase, a detailed description, a question

    @property
    def num_frames(self) -> int:
        """Length in frames."""
        return round(self.seconds * FPS)


PHOTOS = {
    "astronaut": Photo("skimage", "data/astronaut.png", "88431cd9653ccd53"),
    "brick": Photo("skimage", "data/brick.png", "7966caf324f6ba84"),
    "camera": Photo("skimage", "data/camera.png", "b0793d2adda0fa6a"),
    "cat": Photo("skimage", "data/chelsea.png", "596aa1e7cb875eb7"),
    "clock": Photo("skimage", "data/clock_motion.png", "f029226b28b642e8"),
    "coffee": Photo("skimage", "data/coffee.png", "cc02f8ca188b167c"),
    "flower": Photo("sklearn", "datasets/images/flower.jpg", "a77f6ec41e353afd"),
    "grass": Photo("skimage", "data/grass.png", "b6b6022426b38936"),
    "gravel": Photo("skimage", "data/gravel.png", "c48615b451bf1e60"),
    "hubble": Photo("skimage", "data/hubble_deep_field.jpg", "3a19c5dd8a927a93"),
    "retina": Photo("skimage", "data/retina.jpg", "38a07f36f27f095e"),
    "rocket": Photo("skimage", "data/rocket.jpg", "c2dd0de7c538df8d"),
    "temple": Photo("sklearn", "datasets/images/china.jpg", "8378025ad2519d64"),
}

# The temple and the coffee come twice: the same thing again, but not the same pixels.
SCENES = (
    Scene(
        "astronaut",
        "An astronaut's portrait",
        10.7,
        Crop(40, 8, 440),
        Crop(0, 8, 512),
        (
            "an astronaut in an orange space suit",
            "A smiling woman with short hair in front of an American flag",
            "Who is standing next to a model of the space shuttle?",
        ),
    ),
    Scene(
        "temple",
        "A temple tower above a lake",
        8.6,
        Crop(55, 28, 580),
        Crop(0, 28, 580),
        (
            "a Chinese temple",
            "A tower with several curved roofs stands among trees beside a lake",
            "Which building looks out over the water?",
        ),
    ),
    Scene(
        "cat",
        "A tabby cat",
        11.3,
        Crop(30, 40, 400),
        Crop(0, 20, 451),
        (
            "a close-up of a tabby cat",
            "A ginger striped cat with green eyes and long white whiskers",
            "Where is the cat?",
        ),
    ),
    Scene(
        "gravel",
        "Gravel",
        5.4,
        Crop(30, 130, 450),
        Crop(30, 70, 450),
        (
            "a bed of gravel",
            "Lots of small sharp-edged stones cover the ground, in black and white",
            "When do we see loose stones?",
        ),
    ),
    Scene(
        "coffee",
        "A cup of coffee",
        8.8,
        Crop(0, 10, 600),
        Crop(45, 12, 540),
        (
            "a cup of coffee on a wooden table",
            "An espresso in a white and brown cup on a red-brown saucer with a small spoon",
            "What is there to drink?",
        ),
    ),
    Scene(
        "camera",
        "A man with a camera",
        9.1,
        Crop(0, 40, 512),
        Crop(60, 50, 420),
        (
            "a photographer at work",
            "A man in a dark coat bends down to look through a camera on a tripod",
            "Who is filming something out on the grass?",
        ),
    ),
    Scene(
        "hubble",
        "Galaxies in deep space",
        7.3,
        Crop(150, 190, 760),
        Crop(260, 270, 640),
        (
            "galaxies in deep space",
            "Hundreds of small coloured galaxies scattered over a black sky",
            "What can a telescope see far out in the universe?",
        ),
    ),
    Scene(
        "flower",
        "A dahlia",
        8.3,
        Crop(0, 33, 640),
        Crop(50, 72, 520),
        (
            "an orange flower",
            "A round dahlia with many peach-coloured petals against dark green leaves",
            "Which plant is in bloom?",
        ),
    ),
    Scene(
        "brick",
        "Bricks",
        5.6,
        Crop(20, 40, 460),
        Crop(20, 120, 460),
        (
            "rows of bricks",
            "Dark grey bricks with pale mortar between them, running away from the viewer",
            "Where is something built out of bricks?",
        ),
    ),
    Scene(
        "temple",
        "The temple tower again, nearer",
        9.4,
        Crop(0, 170, 440),
        Crop(0, 22, 440),
        (
            "a pagoda with curved tiled roofs",
            "A red and green tower of several storeys rises over the treetops under a bright sky",
            "Is there any traditional Asian architecture?",
        ),
    ),
    Scene(
        "retina",
        "The inside of an eye",
        6.7,
        Crop(0, 300, 1411),
        Crop(60, 400, 1100),
        (
            "the retina of a human eye",
            "An orange-red disc crossed by branching blood vessels, with one bright yellow spot",
            "Which picture would an eye doctor take?",
        ),
    ),
    Scene(
        "rocket",
        "A rocket on the launch pad",
        9.9,
        Crop(0, 67, 640),
        Crop(55, 110, 540),
        (
            "a rocket on its launch pad",
            "A tall white rocket stands between steel lattice towers at dusk, lit by floodlights",
            "What is about to be launched into space?",
        ),
    ),
    Scene(
        "clock",
        "A blurred clock",
        5.1,
        Crop(0, 37, 400),
        Crop(30, 55, 340),
        (
            "a blurred wall clock",
            "A round white thing on a grey wall, smeared sideways because the camera moved",
            "When is the picture too shaky to read the time?",
        ),
    ),
    Scene(
        "coffee",
        "The cup of coffee again, from the spoon",
        7.9,
        Crop(130, 130, 440),
        Crop(0, 50, 600),
        (
            "a spoon on a saucer",
            "A shiny teaspoon lies beside a half-empty cup of espresso",
            "Where did somebody leave their coffee?",
        ),
    ),
    Scene(
        "grass",
        "Grass",
        5.9,
        Crop(20, 140, 440),
        Crop(60, 140, 440),
        (
            "blades of grass",
            "A tangle of grass and a few small leaves seen from straight above, in black and white",
            "What does the lawn look like close up?",
        ),
    ),
)


def load_photo(name: str) -> Image.Image:
    """Read a photograph from its wheel.

    Args:
        name: A key of `PHOTOS`.

    Returns:
        The photograph in RGB; grey ones get three equal channels.

    Raises:
        ValueError: If the wheel's file is not the one whose licence was checked.
    """
    photo = PHOTOS[name]
    file = files(photo.package) / photo.path
    found = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    if found != photo.sha256:
        raise ValueError(f"{file} is not the photo whose licence was checked: SHA-256 {found}…")
    with file.open("rb") as stream:
        return Image.open(stream).convert("RGB")


def render_scene(scene: Scene) -> Iterator[np.ndarray]:
    """Render one scene.

    Args:
        scene: What to show and how the crop moves.

    Yields:
        Frames, uint8 [360, 640, 3] RGB.
    """
    photo = load_photo(scene.photo)
    for step in np.linspace(0, 1, scene.num_frames):
        crop = Crop(*(a + step * (b - a) for a, b in zip(scene.start, scene.end, strict=True)))
        # Pillow takes fractional boxes, so that the picture glides instead of hopping from pixel to pixel.
        yield np.asarray(photo.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS, box=crop.box))


def render_frames(scenes: Iterable[Scene] = SCENES) -> Iterator[np.ndarray]:
    """Render scenes one after another with hard cuts.

    Args:
        scenes: The whole tour by default.

    Yields:
        Frames, uint8 [360, 640, 3] RGB.
    """
    for scene in scenes:
        yield from render_scene(scene)


def encode(frames: Iterable[np.ndarray], path: Path) -> None:
    """Encode frames as H.264.

    Args:
        frames: uint8 [360, 640, 3] RGB each.
        path: The MP4 file to write.
    """
    options = {
        "preset": "medium",
        "crf": "23",
        "g": "60",  # a keyframe at least every two seconds, so that seeking is quick
        "threads": "1",  # the number of threads changes the bits
        "x264-params": "cpu-independent=1",  # and so does the processor
    }
    with av.open(path, "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        context = stream.codec_context
        context.color_range = 1  # limited ("TV") range
        context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            # The tags above only say BT.709; swscale would convert with BT.601 if not told.
            picture = picture.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def describe(scenes: Iterable[Scene] = SCENES) -> dict:
    """Describe the tour, as in photo_tour.json.

    Args:
        scenes: The whole tour by default.

    Returns:
        video, fps, duration (seconds) and scenes; a scene lasts from `start` up to, not including, `end`
        (seconds).
    """
    entries, frame = [], 0
    for index, scene in enumerate(scenes):
        start, frame = frame, frame + scene.num_frames
        entries.append(
            {
                "scene": index,
                "photo": scene.photo,
                "title": scene.title,
                "start": round(start / FPS, 3),
                "end": round(frame / FPS, 3),
                "queries": list(scene.queries),
            }
        )
    return {"video": "photo_tour.mp4", "fps": FPS, "duration": round(frame / FPS, 3), "scenes": entries}


def main() -> None:
    """Write the video and its description."""
    parser = argparse.ArgumentParser(description="Make the photo tour.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write into")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    description = describe()
    encode(render_frames(), out / description["video"])
    text = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
    (out / "photo_tour.json").write_text(text, encoding="utf-8")
    print(f"{out / description['video']}: {description['duration']} s, {len(description['scenes'])} scenes")


if __name__ == "__main__":
    main()
