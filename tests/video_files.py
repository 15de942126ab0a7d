"""Makes small video files whose frames carry their own number, and reads the numbers back.

The number is drawn as 12 black or white blocks, followed by their 12 complements: a frame that a damaged file has
spoilt does not read as some other number but as unreadable (-1).
"""

import json
import sys
import warnings
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from vilamp_lite.video.source import stream_frames
from vilamp_lite.video.timeline import VideoError

HEIGHT, WIDTH = 128, 192  # 4 rows of 6 blocks
ROWS, COLUMNS, BITS = 4, 6, 12


def draw_number(number: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Return a picture [height, width, 3] that carries `number` (below 4096)."""
    bits = (number >> np.arange(BITS)) & 1
    cells = np.concatenate([bits, 1 - bits]).reshape(ROWS, COLUMNS)
    row, column = np.arange(height) * ROWS // height, np.arange(width) * COLUMNS // width
    blocks = cells[np.ix_(row, column)]
    return np.repeat((20 + 215 * blocks).astype(np.uint8)[..., None], 3, axis=2)


def read_number(frame: np.ndarray) -> int:
    """Read the number back from a picture [H, W, 3] of any size; -1 if it can't be read."""
    height, width = frame.shape[0] // ROWS, frame.shape[1] // COLUMNS
    cells = frame[: ROWS * height, : COLUMNS * width].reshape(ROWS, height, COLUMNS, width, 3)
    middle = cells[:, height // 4 : -(height // 4), :, width // 4 : -(width // 4)].mean(axis=(1, 3, 4)).ravel()
    bits, complement = middle[:BITS] > 127, middle[BITS:] > 127
    return int(bits @ (1 << np.arange(BITS))) if (bits != complement).all() else -1


def read_numbers(frames: Iterable[np.ndarray]) -> list[int]:
    """Read the number in each picture."""
    return [read_number(frame) for frame in frames]


def require_encoder(codec: str) -> None:
    """Skip the test, visibly, where this build of PyAV can't encode with `codec`."""
    try:
        av.Codec(codec, "w")
    except av.codec.codec.UnknownCodecError:
        pytest.skip(f"this build of PyAV has no {codec} encoder")


def write_video(
    path: Path,
    count: int = 60,
    *,
    rate: Fraction | int = 10,
    codec: str = "libx264",
    ticks: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    gop: int = 12,
    bframes: int = 0,
    rotation: int = 0,
    audio_seconds: float = 0.0,
    size: tuple[int, int] = (HEIGHT, WIDTH),
    pix_fmt: str = "yuv420p",
    codec_options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    texture: bool = False,
) -> Path:
    """Write a video of `count` numbered frames.

    Args:
        path: File to write; its suffix chooses the container.
        count: Number of frames.
        rate: Frames per second.
        codec: Name of the encoder.
        ticks: Presentation time of each frame in units of `time_base`, for a variable rate.
        time_base: Unit of `ticks`; 1 / rate when left out.
        gop: Frames from keyframe to keyframe.
        bframes: Largest number of B-frames in a row.
        rotation: Display rotation written to the header, degrees anticlockwise; the numbers read upright after it.
        audio_seconds: Length of a silent track; none when 0.
        size: Height and width of the stored picture.
        pix_fmt: Pixel format.
        codec_options: Further options for the encoder.
        container_options: Options for the container, such as movflags.
        texture: Add moving noise, so that packets are large enough for byte damage to reach the picture data.
    """
    require_encoder(codec)
    noise = np.random.default_rng(0).integers(0, 20, (*size, 1), dtype=np.uint8)
    with av.open(path, "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=codec_options or {})
        stream.height, stream.width, stream.pix_fmt = *size, pix_fmt
        stream.gop_size = gop
        stream.max_b_frames = bframes
        stream.time_base = stream.codec_context.time_base = time_base or 1 / Fraction(rate)
        if rotation:
            stream.set_display_rotation(rotation)
        audio = _add_sound(container) if audio_seconds else None
        for number in range(count):
            # As a camera held sideways does it: the header's rotation turns the picture upright.
            picture = draw_number(number, *(size if rotation % 180 == 0 else size[::-1]))
            picture = np.rot90(picture, -rotation // 90)
            if texture:
                picture = picture + np.roll(noise, 7 * number, axis=1)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts = ticks[number] if ticks is not None else number
            frame.time_base = stream.codec_context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if audio:
            _write_silence(container, audio, audio_seconds)
    return path


def write_audio(path: Path, seconds: float = 2.0) -> Path:
    """Write a file with a silent AAC track and no picture."""
    with av.open(path, "w") as container:
        _write_silence(container, _add_sound(container), seconds)
    return path


def _add_sound(container: av.container.OutputContainer) -> av.AudioStream:
    if container.format.name == "dv":  # which holds no other
        return container.add_stream("pcm_s16le", rate=48000, layout="stereo")
    return container.add_stream("aac", rate=16000, layout="mono")


def _write_silence(container: av.container.OutputContainer, stream: av.AudioStream, seconds: float) -> None:
    for start in range(0, int(stream.rate * seconds), 1024):
        frame = av.AudioFrame(stream.format.name, stream.layout.name, 1024)
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        frame.sample_rate, frame.pts = stream.rate, start
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def cut_with_edit_list(source: Path, path: Path, start: float) -> Path:
    """Copy the packets from the keyframe before `start` on; an edit list hides those shown before `start`."""
    with av.open(source) as reader, av.open(path, "w") as writer:
        stream = reader.streams.video[0]
        copy = writer.add_stream_from_template(stream)
        offset = round(start / stream.time_base)
        reader.seek(offset, stream=stream)
        for packet in reader.demux(stream):
            if packet.dts is None:
                continue
            packet.pts, packet.dts = packet.pts - offset, packet.dts - offset
            packet.stream = copy
            writer.mux(packet)
    return path


def truncate(source: Path, path: Path, share: float) -> Path:
    """Copy the first `share` of the bytes."""
    data = source.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    return path


def flip_bytes(source: Path, path: Path, positions: Iterable[int]) -> Path:
    """Copy the file with the byte at each position inverted."""
    data = bytearray(source.read_bytes())
    for position in positions:
        data[position] ^= 0xFF
    path.write_bytes(data)
    return path


def report(backend: str, path: str) -> dict:
    """Say what someone gets who samples a file at 2 fps."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            batches = list(stream_frames(path, fps=2, batch_size=5, backend=backend))
        except VideoError as error:
            return {"error": str(error)}
        return {
            "numbers": [number for batch in batches for number in read_numbers(batch.frames)],
            "indices": [int(index) for batch in batches for index in batch.indices],
            "warnings": [str(warning.message) for warning in caught],
        }


if __name__ == "__main__":  # python video_files.py BACKEND FILE...: one line of JSON per file
    for file in sys.argv[2:]:
        print(json.dumps(report(sys.argv[1], file)), flush=True)
