"""The `vilamp` command: bad input prints one line and exits 2; `--json` prints one object."""

import json
import math
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from typer.exceptions import Abort, TyperException

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="ViLaMP: keyframes and merged tokens for long videos.",
)
_errors = Console(stderr=True, highlight=False, soft_wrap=True)

Video = Annotated[Path, typer.Argument(metavar="VIDEO", help="A video file.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]


class Dtype(StrEnum):
    """Floating-point types that weights can have."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Turn what a user can mend into one line on stderr and exit code 2, and warnings into one line each."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: _errors.print(f"warning: {message}", markup=False)
        try:
            yield
        except (ValueError, ImportError, OSError) as error:
            _errors.print(f"vilamp: {' '.join(str(error).split())}", markup=False)
            raise typer.Exit(2) from error


def _check_picture_path(path: Path) -> None:
    """Refuse a path that no PNG can be written to, before hours of decoding."""
    if path.suffix.lower() != ".png" or path.is_dir():
        raise ValueError(f"--strip must name a .png file, got {path}")
    if not path.resolve().parent.is_dir():
        raise ValueError(f"--strip: there is no folder {path.resolve().parent}")


@app.command()
def probe(video: Video, as_json: AsJson = False) -> None:
    """Say what a video file holds: duration, frame rate, frames, size, codec."""
    from vilamp_lite.video import probe

    with _one_line_errors():
        info = asdict(probe(video)) | {"path": str(video)}
    if as_json:
        typer.echo(json.dumps(info))
        return
    table = Table(show_header=False, box=None)
    for name, text in {
        "file": info["path"],
        "duration": f"{info['duration']:.2f} s",
        "frames": f"{info['num_frames']:,} at {info['fps']:.3f} per second",
        "size": f"{info['width']} × {info['height']} pixels",
        "codec": info["codec"],
    }.items():
        table.add_row(name, text)
    Console().print(table)


@app.command()
def keyframes(
    video: Video,
    query: Annotated[str, typer.Argument(metavar="QUERY", help="What to look for.", show_default=False)],
    encoder: Annotated[
        str,
        typer.Option(help="'conse' (offline), or a CLIP or SigLIP checkpoint, such as openai/clip-vit-base-patch32."),
    ] = "conse",
    max_keyframes: Annotated[int, typer.Option(help="K, the most keyframes to choose.")] = 32,
    similarity_threshold: Annotated[float, typer.Option(help="τ, the largest cosine between two keyframes.")] = 0.85,
    relevance_threshold: Annotated[
        float | None, typer.Option(help="Visit no frame less relevant than this.", show_default="none")
    ] = None,
    fps: Annotated[float, typer.Option(help="Frames sampled per second.")] = 1.0,
    max_frames: Annotated[
        int | None, typer.Option(help="The most frames to sample, spread over the video.", show_default="no limit")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Where the encoder runs, such as cpu or cuda.", show_default="a GPU if any")
    ] = None,
    strip: Annotated[
        Path | None, typer.Option(help="Write a film strip of the keyframes to this PNG.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Choose the frames of VIDEO that answer QUERY and differ from each other (the paper's Algorithm 1)."""
    with _one_line_errors():
        if strip is not None:
            _check_picture_path(strip)
        # Imported here: torch takes seconds, and `vilamp --help` should not.
        import torch

        from vilamp_lite.encoders import embed_video, load_encoder
        from vilamp_lite.keyframes import select_keyframes
        from vilamp_lite.video import stream_frames

        sampling = {"fps": fps, "max_frames": max_frames}
        settings = {
            "max_keyframes": max_keyframes,
            "similarity_threshold": similarity_threshold,
            "relevance_threshold": relevance_threshold,
        }
        # A long video should not be embedded only to refuse its settings.
        stream_frames(video, **sampling)
        select_keyframes(torch.ones(1, 1), torch.ones(1), **settings)

        frame_encoder = load_encoder(encoder, device)
        query_embed = frame_encoder.encode_text([query])[0]
        embedding = embed_video(video, frame_encoder, **sampling)
        selection = select_keyframes(embedding.embeds, query_embed, **settings)
        if strip is not None and not len(selection.indices):
            raise ValueError("--strip: no frame was chosen; lower --relevance-threshold")
        if strip is not None:
            from vilamp_lite.plots import film_strip, set_style
            from vilamp_lite.video import frames_at

            set_style()
            thumbnails = frames_at(video, selection.indices.tolist(), **sampling)
            film_strip(thumbnails, embedding.timestamps, selection, query).savefig(strip)

    rows = [
        {
            "rank": rank,
            "sample": sample,
            "frame": int(embedding.indices[sample]),
            "seconds": float(embedding.timestamps[sample]),
            "relevance": float(selection.relevance[sample]),
            # JSON has no infinity: the first keyframe has nothing to repeat.
            "redundancy": None if math.isinf(redundancy) else redundancy,
        }
        for rank, (sample, redundancy) in enumerate(
            zip(selection.order.tolist(), selection.redundancy.tolist(), strict=True), start=1
        )
    ]
    if as_json:
        result = {
            "video": str(video),
            "query": query,
            "encoder": embedding.encoder,
            "frames_sampled": len(embedding.embeds),
            **sampling,
            **settings,
            "keyframes": rows,
        }
        typer.echo(json.dumps(result))
        return
    table = Table(title=f"{len(rows)} keyframes of {len(embedding.embeds)} frames for “{query}” ({embedding.encoder})")
    for column in ("rank", "time", "frame", "relevance", "redundancy"):
        table.add_column(column, justify="right")
    for row in rows:
        redundancy = "–" if row["redundancy"] is None else f"{row['redundancy']:.3f}"
        minutes, seconds = divmod(row["seconds"], 60)
        table.add_row(
            str(row["rank"]), f"{minutes:.0f}:{seconds:04.1f}", str(row["frame"]), f"{row['relevance']:.3f}", redundancy
        )
    Console().print(table)


@app.command()
def ask(
    video: Video,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What to answer.", show_default=False)],
    model: Annotated[
        Path | None,
        typer.Option(help="A checkpoint directory: ours, or in the authors' format.", show_default=False),
    ] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Try the way with a tiny random model; its answers mean nothing.")
    ] = False,
    tokenizer: Annotated[
        str | None, typer.Option(help="The language model's, for a checkpoint without one.", show_default=False)
    ] = None,
    selector_tokenizer: Annotated[
        str | None, typer.Option(help="The selector's, for a checkpoint without one.", show_default=False)
    ] = None,
    max_keyframes: Annotated[
        int | None, typer.Option(help="K, the most keyframes.", show_default="the checkpoint's")
    ] = None,
    similarity_threshold: Annotated[
        float | None, typer.Option(help="τ, the largest cosine of two keyframes.", show_default="the checkpoint's")
    ] = None,
    fps: Annotated[
        float | None, typer.Option(help="Frames sampled per second.", show_default="the checkpoint's")
    ] = None,
    max_frames: Annotated[
        int | None, typer.Option(help="The most frames to sample, spread over the video.", show_default="no limit")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest answer, in tokens.")] = 256,
    device: Annotated[
        str | None, typer.Option(help="Where the model runs, such as cpu or cuda.", show_default="a GPU if any")
    ] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="Of the weights.", show_default="as stored")] = None,
    as_json: AsJson = False,
) -> None:
    """Answer QUESTION about VIDEO: choose keyframes, merge the other frames, read both, generate."""
    with _one_line_errors():
        if (model is None) != random_weights:
            raise ValueError("give either --model DIR or --random-weights")
        if random_weights and (tokenizer or selector_tokenizer):
            raise ValueError("--random-weights has its own tokenizers, of bytes: leave out yours")
        # Imported here: torch takes seconds, and `vilamp --help` should not.
        import torch
        from transformers import TextStreamer

        from vilamp_lite.checkpoints import load_checkpoint, load_config, load_processor
        from vilamp_lite.configuration import ViLaMPConfig
        from vilamp_lite.encoders import usable_device
        from vilamp_lite.modeling import TokenKind, ViLaMPForConditionalGeneration
        from vilamp_lite.processing import ViLaMPProcessor
        from vilamp_lite.progress import progress_bar
        from vilamp_lite.video import stream_frames

        place = usable_device(device)
        asked = {"max_keyframes": max_keyframes, "similarity_threshold": similarity_threshold, "fps": fps}
        changes = {name: value for name, value in asked.items() if value is not None}
        # Everything that can be refused comes before the weights, which may take minutes to load.
        if model is None:
            config = ViLaMPConfig.tiny(**changes)
            processor = ViLaMPProcessor.byte_level(config)
        else:
            config = load_config(model, **changes)
            processor = load_processor(model, config, tokenizer=tokenizer, selector_tokenizer=selector_tokenizer)
        prompt = processor.prompts([question])
        prompt_tokens = prompt["input_ids"].shape[1] - 1
        num_frames = stream_frames(video, fps=config.fps, max_frames=max_frames).num_frames
        config.require_room(num_frames, prompt_tokens, max_new_tokens)

        weight_type = None if dtype is None else getattr(torch, dtype)
        if model is None:
            _errors.print("random weights: the answer means nothing", markup=False)
            torch.manual_seed(0)
            vilamp = ViLaMPForConditionalGeneration(config).eval().to(weight_type)
        else:
            vilamp = load_checkpoint(model, dtype=weight_type, **changes)
        vilamp.to(place)
        sequence = vilamp.encode_video(video, question, processor, max_frames=max_frames)

        total = len(sequence.embeds) + prompt_tokens
        streamer = None if as_json else TextStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        with progress_bar(total, "tokens", "prefill") as bar:

            def first_step(*_: object) -> None:
                bar.update(total - bar.n)
                bar.close()  # the answer is printed below it

            vilamp.language_model.register_forward_hook(first_step)
            answer = vilamp.generate(
                **prompt,
                video_embeds=[sequence.embeds],
                max_new_tokens=max_new_tokens,
                do_sample=False,
                streamer=streamer,
            )
    keyframes, selector = sequence.keyframes.tolist(), config.selector_config
    tokens = {
        "keyframes": int((sequence.kind_of_token == TokenKind.PATCH).sum()),
        "merged": int((sequence.kind_of_token == TokenKind.MERGED).sum()),
        "newline": int((sequence.kind_of_token == TokenKind.NEWLINE).sum()),
        "prompt": prompt_tokens,
        "prefill": total,
        "answer": answer.shape[1],
    }
    if as_json:
        result = {
            "video": str(video),
            "question": question,
            "answer": processor.batch_decode(answer)[0],
            "model": str(model) if model else None,
            "weights": "random" if random_weights else "checkpoint",
            "encoder": f"{selector.model_type}, {selector.vision_config.image_size} px, {config.query_size} dimensions",
            "frames_sampled": num_frames,
            "fps": config.fps,
            "max_frames": max_frames,
            "max_keyframes": config.max_keyframes,
            "similarity_threshold": config.similarity_threshold,
            "keyframes": [{"sample": sample, "seconds": float(sequence.timestamps[sample])} for sample in keyframes],
            "tokens": tokens,
            "device": str(vilamp.device),
            "dtype": str(vilamp.language_model.dtype).removeprefix("torch."),
            "versions": {name: version(name) for name in ("vilamp-lite", "torch", "transformers", "av")},
        }
        typer.echo(json.dumps(result))
        return
    times = ", ".join(f"{sequence.timestamps[sample]:.0f}" for sample in keyframes)
    _errors.print(
        f"{num_frames:,} frames, {len(keyframes)} of them keyframes (at {times} s); tokens: {tokens['keyframes']:,} of "
        f"keyframes, {tokens['merged']:,} merged, {tokens['prompt']:,} of the prompt, {tokens['answer']:,} answered",
        markup=False,
    )


@app.command()
def tinyworld(
    out: Annotated[Path, typer.Option(help="The video to write, such as X.mp4; X.json goes beside it.")],
    frames: Annotated[int, typer.Option(help="Frames, one per second.")] = 256,
    depth: Annotated[float, typer.Option(help="Where the needle stands, from 0 (start) to 1 (end).")] = 0.5,
    family: Annotated[str, typer.Option(help="What is asked: attribute, companion, roll call, …")] = "attribute",
    seed: Annotated[int, typer.Option(min=0, help="Of the question and the haystack.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Write a TinyWorld video with a needle in a haystack, and a question that only the needle answers."""
    with _one_line_errors():
        if out.suffix.lower() != ".mp4" or not out.resolve().parent.is_dir():
            raise ValueError(f"--out must name a .mp4 file in an existing folder, got {out}")
        from vilamp_lite.tinyworld.haystack import hide, save
        from vilamp_lite.tinyworld.questions import sample_questions

        (question,) = sample_questions(family, 1, seed)
        haystack = hide(question, frames, depth, seed)
        description = save(haystack, out)
    if as_json:
        typer.echo(description.read_text().strip())
        return
    needles = ", ".join(f"{start}–{stop - 1}" for start, stop in haystack.needle_frames)
    Console().print(f"{out}: {frames:,} frames; “{question.text}” {question.answer} (frames {needles})", soft_wrap=True)


def main() -> None:
    """Run the command; misuse, too, is one line on stderr and exit code 2."""
    try:
        # Without standalone mode typer hands errors of usage back instead of drawing a box around them.
        code = app(standalone_mode=False)
    except TyperException as error:
        # Without arguments the help has been printed, and there is nothing to add.
        if message := " ".join(error.format_message().split()):
            _errors.print(f"vilamp: {message}", markup=False)
        code = 2
    except Abort:
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
