"""`vilamp probe`, `keyframes` and `tinyworld`: what needs no language model."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from vilamp_lite import plots
from vilamp_lite.cli import options
from vilamp_lite.cli.shown import show, table
from vilamp_lite.common import require_new, require_text, written_whole
from vilamp_lite.tinyworld import FAMILIES, describe_haystack, hide, sample_questions, save
from vilamp_lite.video import SampledVideo


def probe(video: options.Video, as_json: options.AsJson = False) -> None:
    """Say what a video file holds: duration, frame rate, frames, size, codec."""
    info = SampledVideo(video).info
    about = {
        "file": str(video),
        "duration": f"{info.duration:.2f} s",
        "frames": f"{info.num_frames:,} at {info.fps:.3f} per second",
        "size": f"{info.width} × {info.height} pixels",
        "codec": info.codec,
    }
    show(as_json, asdict(info) | {"path": str(video)}, *(f"{name:<10}{text}" for name, text in about.items()))


def keyframes(
    video: options.Video,
    query: Annotated[str, Argument(metavar="QUERY", help="What to look for.")],
    encoder: Annotated[
        str, Option(help="'conse' (offline), 'tinyworld' (TinyWorld's own), or a CLIP or SigLIP by name or folder.")
    ] = "conse",
    max_keyframes: Annotated[int, Option(help="K, the most keyframes to choose.")] = 32,
    similarity_threshold: Annotated[float, Option(help="τ, the largest cosine between two keyframes.")] = 0.85,
    relevance_threshold: Annotated[
        float | None, Option(help="Visit no frame less relevant than this.", show_default="none")
    ] = None,
    fps: Annotated[float, Option(help="Frames sampled per second.")] = 1.0,
    max_frames: options.MaxFrames = None,
    device: options.Device = None,
    strip: Annotated[Path | None, Option(help="Draw the keyframes into this PNG.")] = None,
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
) -> None:
    """Choose the frames of VIDEO that answer QUERY and differ from each other (the paper's Algorithm 1)."""
    require_text(query)
    if strip is not None:
        _require_writable("--strip", strip, ".png", overwrite)
    from vilamp_lite.encoders import embed_video, load_encoder
    from vilamp_lite.keyframes import check_rule, select_keyframes

    sampling = {"fps": fps, "max_frames": max_frames}
    settings = {
        "max_keyframes": max_keyframes,
        "similarity_threshold": similarity_threshold,
        "relevance_threshold": relevance_threshold,
    }
    # A long video should not be embedded only to refuse its settings.
    check_rule(**settings, fill="none")
    source = SampledVideo(video, **sampling)
    frame_encoder = load_encoder(encoder, device)
    query_embed = frame_encoder.encode_text([query])[0]
    embedding = embed_video(source, frame_encoder)
    selection = select_keyframes(embedding.embeds, query_embed, **settings)
    if strip is not None:
        if not len(selection.indices):
            raise ValueError("--strip: no frame was chosen; lower --relevance-threshold")
        plots.set_style()
        thumbnails = source.at(selection.indices.tolist())
        with written_whole(strip) as waiting:
            plots.film_strip(thumbnails, embedding.timestamps, selection, query).savefig(waiting)

    about = {"video": str(video), "query": query, "encoder": embedding.encoder, "frames_sampled": len(embedding.embeds)}
    rows = embedding.rows(selection)
    title = f"{len(rows)} keyframes of {len(embedding.embeds)} frames for “{query}” ({embedding.encoder})"
    drawn = [] if strip is None else [f"{strip}: {len(rows)} keyframes"]
    show(as_json, about | sampling | settings | {"keyframes": rows}, table(title, rows), *drawn)


def tinyworld(
    out: Annotated[Path, Option(help="The video to write, such as X.mp4; X.json goes beside it.")],
    frames: Annotated[int, Option(help="Frames, one per second.")] = 256,
    depth: Annotated[float, Option(help="Where the needle stands, from 0 (start) to 1 (end).")] = 0.5,
    family: Annotated[str, Option(help=f"What is asked: {', '.join(FAMILIES)}.")] = "attribute",
    seed: Annotated[int, Option(min=0, help="Draw the question and the haystack from this seed.")] = 0,
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
) -> None:
    """Write a TinyWorld video with a needle in a haystack, and a question that only the needle answers."""
    _require_writable("--out", out, ".mp4", overwrite)
    (question,) = sample_questions(family, 1, seed)
    haystack = hide(question, frames, depth, seed)
    save(haystack, out, overwrite=overwrite)
    needles = ", ".join(f"{start}–{stop - 1}" for start, stop in haystack.needle_frames)
    line = f"{out}: {frames:,} frames; “{question.text}” {question.answer} (frames {needles})"
    show(as_json, describe_haystack(haystack, out, frames), line)


def _require_writable(option: str, path: Path, ending: str, overwrite: bool) -> None:
    """Refuse a path that can't be written to, or has a file, before hours of work."""
    require_text(str(path))
    if path.suffix.lower() != ending or path.is_dir() or not path.resolve().parent.is_dir():
        raise ValueError(f"{option} must name a {ending} file in an existing folder, got {path}")
    require_new(path, overwrite=overwrite)
