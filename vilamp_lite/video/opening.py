"""Open a file that holds one video, and no other file, and choose the stream that players show."""

import re
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

import av
from PIL import Image

from vilamp_lite.video.display import MAX_PIXELS
from vilamp_lite.video.timeline import VideoError

# FFmpeg's names of the containers that hold their pictures, or their sound, themselves. It opens no other kind: a
# playlist (HLS, DASH, ffconcat, SDP) would make it read other files and addresses, a pattern (img%03d.png) other files.
_CONTAINERS = (
    "mov,matroska,avi,flv,live_flv,kux,asf,asf_o,mpegts,mpeg,mpegvideo,ogg,nut,mxf,gxf,rm,dv,swf,wtv,ivf,"
    "yuv4mpegpipe,h261,h263,h264,hevc,vvc,evc,m4v,obu,av1,dirac,dnxhd,cavsvideo,avs2,avs3,vc1,vc1test,apv,mjpeg,"
    "mjpeg_2000,smjpeg,amv,nsv,nuv,pva,ty,roq,flic,film_cpk,smk,bink,idcin,gif,apng,jpegxl_anim,bmp_pipe,dds_pipe,"
    "dpx_pipe,exr_pipe,gif_pipe,hdr_pipe,j2k_pipe,jpeg_pipe,jpegls_pipe,jpegxl_pipe,jpegxs_pipe,pam_pipe,pbm_pipe,"
    "pcx_pipe,pfm_pipe,pgm_pipe,pgmyuv_pipe,phm_pipe,png_pipe,ppm_pipe,psd_pipe,qoi_pipe,sgi_pipe,sunrast_pipe,"
    "tiff_pipe,webp_pipe,xbm_pipe,xpm_pipe,xwd_pipe,aac,ac3,aiff,amr,caf,dts,eac3,flac,mp3,w64,wav,wv"
)
_PLAYLISTS = {
    "HLS": rb"#EXTM3U",
    "ffconcat": rb"ffconcat version",
    "SDP": rb"v=\d+\r?\n",
    "DASH": rb"(<\?xml.*?)?<MPD\b",
    "Smooth Streaming": rb"(<\?xml.*?)?<SmoothStreamingMedia\b",
}
# Codecs that FFmpeg with several threads decodes to other pictures now and then: a frame's thread doesn't wait for all
# of the frame before.
_RACING = ("theora", "vp3", "vp4")

ENCRYPTED = "is encrypted (DRM); pass a copy that is not"
TOO_LARGE = f"its pictures hold more than {MAX_PIXELS // 10**6} million pixels each; scale them down with ffmpeg"
_LIMIT = {"max_pixels": str(MAX_PIXELS)}  # FFmpeg allocates nothing for a picture that is larger

Opened: TypeAlias = tuple[av.container.InputContainer, av.VideoStream]


def open_video(path: Path) -> Opened:
    """Open a file and find its video stream; its decoder reports damage that it would otherwise paint over."""
    if path.is_dir():
        raise VideoError(f"{path}: is a directory; pass a video file")
    if not path.is_file():
        if url := re.fullmatch(r"([a-z][a-z0-9+.-]+:)/(.+)", str(path), re.IGNORECASE):  # a Path keeps one slash
            slashes = "///" if url[1].lower() == "file:" else "//"
            raise VideoError(f"{url[1]}{slashes}{url[2]}: URLs are not read; pass the path of a video file")
        missing = "no such file" + " (patterns of names are not read)" * bool(re.search(r"%\d*d|[*?]", path.name))
        reason = "is not a regular file" if path.exists() else missing
        raise VideoError(f"{path}: {reason}; pass the path of a video file")
    if not path.stat().st_size:
        raise VideoError(f"{path}: is empty (0 bytes); copy or download it again")
    try:
        container = _opened(path.absolute())
    except (av.error.FFmpegError, OSError) as error:
        reason = f"cannot be opened as a video ({error.strerror}); it is of another kind, damaged, or cut short"
        raise VideoError(f"{path}: {_why_refused(path, error) or reason}") from error
    stream = _shown_stream(container)
    if stream is None:
        objection = "has no video stream; pass a file that holds pictures"
    elif stream.codec_context is None:
        objection = "this build of PyAV can't decode its video; re-encode it as H.264"
    elif "enc_key_id" in stream.metadata:  # Matroska's
        objection = ENCRYPTED
    elif stream.width * stream.height > MAX_PIXELS:
        objection = TOO_LARGE
    else:
        # Not PyAV's default, "SLICE": with it the H.264 decoder reports no damage at all, `explode` or not.
        stream.thread_type = "NONE" if stream.codec.canonical_name in _RACING else "AUTO"
        stream.codec_context.options = {"err_detect": "explode"} | _LIMIT
        return container, stream
    container.close()
    raise VideoError(f"{path}: {objection}")


def why_not_decoded(path: Path) -> str:
    """Say why no frame of a file came out, as far as Pillow can tell."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                return TOO_LARGE
            if picture.format == "WEBP" and picture.is_animated:
                way = f"Image.open({str(path)!r}).save({path.stem + '.gif'!r}, save_all=True)"
                return f"is an animated WebP, which this build of PyAV can't decode; make it a GIF with Pillow: {way}"
    except Image.DecompressionBombError:
        return TOO_LARGE
    except OSError:
        pass
    return "none of its frames can be decoded; the file is damaged"


def codec_from(path: Path, place: int) -> str | None:
    """Name the codec of the video in an MPEG-TS file from a byte on; None where that can't be told."""
    options = {"protocol_whitelist": "subfile,file"} | _LIMIT
    with suppress(av.error.FFmpegError, OSError):
        rest = av.open(f"subfile,,start,{place},end,0,,:{path.absolute()}", format="mpegts", options=options)
        with rest:
            return next((video.codec.canonical_name for video in rest.streams.video if video.codec_context), None)
    return None


def warn_of_other_streams(path: Path, container: av.container.InputContainer, shown: av.VideoStream) -> None:
    """Say which of several videos in a file is read."""
    if (count := len(films(container, shown))) > 1:
        warnings.warn(
            f"{path}: holds {count} video streams; stream {shown.index} is read, which players show by default "
            f"({shown.codec.canonical_name}, {shown.width} × {shown.height}), and no other",
            stacklevel=4,  # who asks for the file to be scanned
        )


def films(container: av.container.InputContainer, shown: av.VideoStream) -> list[av.VideoStream]:
    """The stream that is shown, and others that may hold more than one picture."""
    return [stream for stream in _pictures(container) if stream is shown or stream.frames != 1]


def _shown_stream(container: av.container.InputContainer) -> av.VideoStream | None:
    """The one that FFmpeg's player shows: the default stream, and a film before a still picture; but no cover."""
    pictures = _pictures(container)
    best = container.streams.best("video")
    return best if best in pictures else next(iter(pictures), None)


def _pictures(container: av.container.InputContainer) -> list[av.VideoStream]:
    return [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]


def _opened(path: Path) -> av.container.InputContainer:
    """Open an absolute path, of whose name FFmpeg takes no part for a protocol or a pattern of names."""
    options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file,fd"} | _LIMIT
    if not set("%*?{") & set(str(path)):
        return av.open(path, metadata_errors="replace", options=options)
    with path.open("rb", buffering=0) as file:  # FFmpeg keeps a handle of its own
        return av.open("fd:", metadata_errors="replace", options=options | {"fd": str(file.fileno())})


def _why_refused(path: Path, error: Exception) -> str | None:
    """Name the kind of a file that isn't a container of one video, if its first bytes tell."""
    start = b"\0"
    with suppress(OSError), path.open("rb") as file:
        start = file.read(4096)
    for kind, beginning in _PLAYLISTS.items():
        if re.match(beginning, start, re.DOTALL):
            return f"is a playlist ({kind}), which names other files; pass the file that holds the video itself"
    is_unlisted = isinstance(error, av.error.ArgumentError)
    if is_unlisted and b"\0" not in start:
        return "is a text file; pass a video file"  # FFmpeg would show it as a film
    return None
