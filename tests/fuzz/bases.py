"""Twelve small videos, one for each codec and container that people bring; each frame carries its number."""

import os
from pathlib import Path

from video_files import write_video

FRAMES, RATE = 120, 10
# One thread each, and H.264 first: else the encoders' bytes differ from run to run.
_X264 = {"codec": "libx264", "bframes": 2, "codec_options": {"threads": "1", "preset": "veryfast"}}
_VP9 = {"codec": "libvpx-vp9", "codec_options": {"threads": "1", "deadline": "realtime", "cpu-used": "8"}}
_AV1 = {"codec": "libsvtav1", "codec_options": {"preset": "8", "crf": "35", "svtav1-params": "lp=1"}}
_HEVC = {"codec": "libx265", "codec_options": {"x265-params": "pools=none:frame-threads=1:log-level=none"}}
_CHOICES = {
    "h264.mkv": _X264,
    "h264.mp4": _X264,
    "h264.ts": _X264,
    "h264_fast.mp4": _X264 | {"container_options": {"movflags": "faststart"}},
    "h264_frag.mp4": _X264 | {"container_options": {"movflags": "frag_keyframe+empty_moov+default_base_moof"}},
    "hevc.mp4": _HEVC,
    "mjpeg.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "mpeg4.avi": {"codec": "mpeg4"},
    "vp9.webm": _VP9,
    "anim.gif": {"codec": "gif", "pix_fmt": "gray", "texture": False},
    "av1.mp4": _AV1,
    "av1.webm": _AV1,
}
BASES = list(_CHOICES)


def make_bases(folder: Path) -> None:
    """Write all twelve, the same bytes each time."""
    os.environ["SVT_LOG"] = "1"  # errors only
    for name, choices in _CHOICES.items():
        options = {"fflags": "bitexact"} | choices.get("container_options", {})
        common = {"rate": RATE, "gop": 24, "size": (96, 160), "texture": True}
        write_video(folder / name, FRAMES, **(common | choices | {"container_options": options}))
