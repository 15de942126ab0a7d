"""The `vilamp` command: bad input prints one line and exits 2; `--json` prints one object."""

import json
import math
import os
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from hashlib import sha256
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand
from typer.exceptions import Abort, TyperException

from vilamp_lite.tinyworld import MINIATURE

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


evaluate = typer.Typer(no_args_is_help=True, help="Measure a model.")


app.add_typer(evaluate, name="evaluate")


_errors = Console(stderr=True, highlight=False, soft_wrap=True)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"vilamp-lite {version('vilamp-lite')}")
        raise typer.Exit


@app.callback()
def _main(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """ViLaMP: keyframes and merged tokens for long videos."""


Video = Annotated[Path, typer.Argument(metavar="VIDEO", help="A video file.", show_default=False)]


AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]


ModelFolder = Annotated[
    Path | None, typer.Option(help="A checkpoint directory: ours, or in the authors' format.", show_default=False)
]


TokenizerName = Annotated[
    str | None, typer.Option(help="The language model's, for a checkpoint without one.", show_default=False)
]


SelectorTokenizer = Annotated[
    str | None, typer.Option(help="The selector's, for a checkpoint without one.", show_default=False)
]


Fps = Annotated[float | None, typer.Option(help="Frames sampled per second.", show_default="the checkpoint's")]


MaxFrames = Annotated[
    int | None, typer.Option(help="The most frames to sample, spread over the video.", show_default="no limit")
]


Device = Annotated[
    str | None, typer.Option(help="Where the model runs, such as cpu or cuda.", show_default="a GPU if any")
]


# Names that help lists; the modules that have them load torch.
_FAMILIES = "attribute, companion, roll call, two needles, two companions"


_STUDIES = (
    "full, released_reference, no_keyframe_block, no_attention_scaling, no_position_interpolation, no_grounding, "
    "peer_dense, peer_two_tokens, peer_clip_merging"
)


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
    from vilamp_lite.video.source import probe

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
        typer.Option(
            help="'conse' (offline), 'tinyworld' (TinyWorld's own), or a CLIP or SigLIP checkpoint by name or folder."
        ),
    ] = "conse",
    max_keyframes: Annotated[int, typer.Option(help="K, the most keyframes to choose.")] = 32,
    similarity_threshold: Annotated[float, typer.Option(help="τ, the largest cosine between two keyframes.")] = 0.85,
    relevance_threshold: Annotated[
        float | None, typer.Option(help="Visit no frame less relevant than this.", show_default="none")
    ] = None,
    fps: Annotated[float, typer.Option(help="Frames sampled per second.")] = 1.0,
    max_frames: MaxFrames = None,
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
        from vilamp_lite.video.source import stream_frames

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
            from vilamp_lite.plots.selection import film_strip
            from vilamp_lite.plots.style import set_style
            from vilamp_lite.video.source import frames_at

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


@contextmanager
def _interruptible(state: str) -> Iterator[None]:
    """Turn Ctrl-C into one line that says what is kept and how to go on, and exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        command = shlex.join(["vilamp", *sys.argv[1:]])
        _errors.print(f"vilamp: stopped; {state}; to go on: {command}", markup=False)
        raise typer.Exit(130) from None


@app.command()
def encode(
    video: Video,
    out: Annotated[
        Path | None, typer.Option(help="The store, a folder.", show_default="VIDEO with the ending .features")
    ] = None,
    model: ModelFolder = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Try the way with a tiny random model.")
    ] = False,
    tokenizer: TokenizerName = None,
    selector_tokenizer: SelectorTokenizer = None,
    fps: Fps = None,
    max_frames: MaxFrames = None,
    stored: Annotated[Dtype, typer.Option(help="Type of the stored patches.")] = Dtype.FLOAT16,
    device: Device = None,
    dtype: Annotated[Dtype | None, typer.Option(help="Of the weights.", show_default="as in the checkpoint")] = None,
    force: Annotated[bool, typer.Option("--force", help="Let the miniature encode other footage.")] = False,
    as_json: AsJson = False,
) -> None:
    """Encode VIDEO once into a store, which `vilamp ask` then takes; a stopped run goes on where it was."""
    out = out or video.with_suffix(".features")
    with _interruptible(f"what is finished is kept in {out}"), _one_line_errors():
        chosen = _Chosen(model, random_weights, tokenizer, selector_tokenizer, {} if fps is None else {"fps": fps})
        chosen.require_its_world(video, force)
        import torch

        from vilamp_lite.streaming.feature_store import FeatureStore
        from vilamp_lite.video.source import stream_frames

        store = FeatureStore.open(out)
        chosen.config.require_room(stream_frames(video, fps=chosen.config.fps, max_frames=max_frames).num_frames)
        vilamp = chosen.load(device, dtype)
        store.encode(video, vilamp, chosen.processor, max_frames=max_frames, dtype=getattr(torch, stored))
        summary = store.summary()
    per_frame = round(summary.num_bytes / summary.num_frames)
    if as_json:
        typer.echo(
            json.dumps({"store": str(out), "video": str(video), **asdict(summary), "bytes_per_frame": per_frame})
        )
        return
    Console().print(
        f"{out}: {summary.num_frames:,} frames in {summary.shards:,} shards, {summary.num_bytes:,} bytes, "
        f"{per_frame:,} of each frame; patches in {summary.dtype}, off by {summary.error:.1e} of their size at most",
        soft_wrap=True,
    )


@app.command()
def ask(
    video: Annotated[
        Path, typer.Argument(metavar="VIDEO", help="A video file, or a store of `vilamp encode`.", show_default=False)
    ],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What to answer.", show_default=False)],
    model: ModelFolder = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Try the way with a tiny random model; its answers mean nothing.")
    ] = False,
    tokenizer: TokenizerName = None,
    selector_tokenizer: SelectorTokenizer = None,
    max_keyframes: Annotated[
        int | None, typer.Option(help="K, the most keyframes.", show_default="the checkpoint's")
    ] = None,
    similarity_threshold: Annotated[
        float | None, typer.Option(help="τ, the largest cosine of two keyframes.", show_default="the checkpoint's")
    ] = None,
    fps: Fps = None,
    max_frames: MaxFrames = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest answer, in tokens.")] = 256,
    device: Device = None,
    dtype: Annotated[Dtype | None, typer.Option(help="Of the weights.", show_default="as stored")] = None,
    force: Annotated[bool, typer.Option("--force", help="Let the miniature answer about other footage.")] = False,
    as_json: AsJson = False,
) -> None:
    """Answer QUESTION about VIDEO: choose keyframes, merge the other frames, read both, generate."""
    is_store = video.is_dir()
    state = f"{video} is as it was" if is_store else "nothing is kept"
    with _interruptible(state), _one_line_errors():
        if is_store and (fps, max_frames) != (None, None):
            raise ValueError(f"{video} was sampled when it was encoded: leave out --fps and --max-frames")
        # Imported here: torch takes seconds, and `vilamp --help` should not.
        from transformers import TextStreamer

        from vilamp_lite.common.progress import progress_bar
        from vilamp_lite.modeling import TokenKind
        from vilamp_lite.streaming.feature_store import FeatureStore
        from vilamp_lite.video.source import stream_frames

        asked = {"max_keyframes": max_keyframes, "similarity_threshold": similarity_threshold, "fps": fps}
        changes = {name: value for name, value in asked.items() if value is not None}
        chosen = _Chosen(model, random_weights, tokenizer, selector_tokenizer, changes)
        chosen.require_its_world(video, force, question)
        config, processor = chosen.config, chosen.processor
        prompt = processor.prompts([question])
        prompt_tokens = prompt["input_ids"].shape[1] - 1
        if is_store:
            store = FeatureStore.open(video)
            num_frames, sampling = store.num_frames, {name: store.settings[name] for name in ("fps", "max_frames")}
        else:
            sampling = {"fps": config.fps, "max_frames": max_frames}
            num_frames = stream_frames(video, **sampling).num_frames
        config.require_room(num_frames, prompt_tokens, max_new_tokens)

        vilamp = chosen.load(device, dtype)
        if is_store:
            sequence = store.sequence(vilamp, question, processor)
        else:
            sequence = vilamp.encode_video(video, question, processor, max_frames=max_frames)

        total = len(sequence.embeds) + prompt_tokens
        streamer = None if as_json else TextStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        with progress_bar(total, "tokens", "prefill") as bar:

            def tokens_read(_module: object, _inputs: object, named: dict[str, Any], _output: object) -> None:
                bar.update(named["inputs_embeds"].shape[1] if bar.n < total else 0)
                if bar.n == total:
                    bar.close()  # the answer is printed below it

            vilamp.language_model.register_forward_hook(tokens_read, with_kwargs=True)
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
            "model": str(chosen.model) if chosen.model else None,
            "weights": "random" if random_weights else "checkpoint",
            "encoder": f"{selector.model_type}, {selector.vision_config.image_size} px, {config.query_size} dimensions",
            "frames_sampled": num_frames,
            **sampling,
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


class _Chosen:
    """The model that the options name; what can be refused is refused before its weights, which may take minutes."""

    def __init__(
        self,
        model: Path | None,
        random_weights: bool,
        tokenizer: str | None,
        selector_tokenizer: str | None,
        changes: dict[str, Any],
    ) -> None:
        if model is not None and random_weights:
            raise ValueError("give either --model DIR or --random-weights")
        if random_weights and (tokenizer or selector_tokenizer):
            raise ValueError("--random-weights has its own tokenizers, of bytes: leave out yours")
        from vilamp_lite.checkpoints import load_config, load_processor
        from vilamp_lite.configuration import ViLaMPConfig
        from vilamp_lite.processing import ViLaMPProcessor

        self.model = None if random_weights else model or MINIATURE
        if self.model == MINIATURE and not (MINIATURE / "config.json").is_file():
            raise ValueError(f"there is no model in {MINIATURE}: give --model DIR (`vilamp train` makes one)")
        self.changes = changes
        if self.model is None:
            self.config = ViLaMPConfig.tiny(**changes)
            self.processor = ViLaMPProcessor.byte_level(self.config)
        else:
            self.config = load_config(self.model, **changes)
            names = {"tokenizer": tokenizer, "selector_tokenizer": selector_tokenizer}
            self.processor = load_processor(self.model, self.config, **names)

    def require_its_world(self, video: Path, force: bool, question: str | None = None) -> None:
        """Refuse what a TinyWorld model was not trained for; a store's footage was looked at when it was encoded."""
        if self.config.selector_config.model_type != "tinyworld":
            return
        from vilamp_lite.tinyworld.encoder import require_known_words
        from vilamp_lite.tinyworld.render import is_tinyworld
        from vilamp_lite.video.source import probe

        if not force and video.is_file() and not is_tinyworld(probe(video)):
            raise ValueError(
                f"{video} does not show TinyWorld, and the model in {self.model} was trained on nothing else; make "
                "such a video with `vilamp tinyworld`, name another model with --model DIR, or --force"
            )
        if question is not None:
            require_known_words(question)

    def load(self, device: str | None, dtype: Dtype | None) -> Any:
        """Load the weights, in their own type or another, to where they shall run."""
        import torch

        from vilamp_lite.checkpoints import load_checkpoint
        from vilamp_lite.common.hub import usable_device
        from vilamp_lite.modeling import ViLaMPForConditionalGeneration

        place = usable_device(device)
        weight_type = None if dtype is None else getattr(torch, dtype)
        if self.model is not None:
            return load_checkpoint(self.model, dtype=weight_type, **self.changes).to(place)
        _errors.print("random weights: the answer means nothing", markup=False)
        torch.manual_seed(0)
        vilamp = ViLaMPForConditionalGeneration(self.config).eval().to(weight_type)
        vilamp.selector.float()  # as a loaded one is
        return vilamp.to(place)


@app.command()
def tinyworld(
    out: Annotated[Path, typer.Option(help="The video to write, such as X.mp4; X.json goes beside it.")],
    frames: Annotated[int, typer.Option(help="Frames, one per second.")] = 256,
    depth: Annotated[float, typer.Option(help="Where the needle stands, from 0 (start) to 1 (end).")] = 0.5,
    family: Annotated[str, typer.Option(help=f"What is asked: {_FAMILIES}.")] = "attribute",
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


@app.command()
def costs(
    frames: Annotated[int, typer.Option(help="N, frames of the video that are sampled.")] = 10_000,
    gpu: Annotated[str, typer.Option(help="a100-40gb, a100-80gb, rtx-4090 or h100-80gb.")] = "a100-80gb",
    model: Annotated[
        str,
        typer.Option(
            help="vilamp, vilamp-released (both streaming), released-code (all frames at once), or a peer: llama-vid, "
            "videochat-flash, longva, longvu, llava-video, qwen2-vl."
        ),
    ] = "vilamp",
    keyframes: Annotated[
        int | None, typer.Option(help="K, keyframes chosen.", show_default="32, or N if fewer")
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(help="Of the text around the video.")] = 64,
    answer_tokens: Annotated[int, typer.Option(help="Generated.")] = 128,
    dtype: Annotated[Dtype, typer.Option(help="Of weights, activations and cache.")] = Dtype.BFLOAT16,
    batch_size: Annotated[int, typer.Option(help="Frames in a vision tower at a time.")] = 8,
    utilisation: Annotated[float, typer.Option(help="Part of the GPU's peak that is reached, above 0 to 1.")] = 0.4,
    decode_rate: Annotated[float, typer.Option(help="Frames sampled per second in one pass of decoding.")] = 100.0,
    as_json: AsJson = False,
) -> None:
    """Say what a long video costs, stage by stage: tokens, FLOPs, memory, what fits, and estimated seconds.

    Nothing runs: the figures follow from the models' shapes and the GPU's data sheet.
    """
    with _one_line_errors():
        # Imported here: torch takes seconds, and `vilamp --help` should not.
        from vilamp_lite.common.checks import choice
        from vilamp_lite.costs.shapes import GPUS, Workload
        from vilamp_lite.costs.tables import model_costs

        card = GPUS[choice("--gpu", gpu, tuple(GPUS))]
        workload = Workload(frames, prompt_tokens, answer_tokens, dtype.value, batch_size)
        counted = model_costs(model, workload, keyframes)
        stages = counted.schedule(card, utilisation=utilisation, decode_rate=decode_rate)
    result = {
        "model": counted.model,
        "gpu": asdict(card),
        "workload": asdict(workload),
        "utilisation": utilisation,
        "decode_rate": decode_rate,
        "visual_tokens": counted.visual_tokens,
        "tokens": counted.tokens,
        "context": counted.context,
        "fits_context": None if counted.context is None else counted.tokens <= counted.context,
        "weights": counted.weights,
        "kv_cache": counted.kv_cache,
        "peak_activations": counted.peak_activations,
        "peak_memory": counted.peak_memory,
        "fits": counted.peak_memory <= card.memory,
        "seconds": sum(stage["seconds"] for stage in stages),
        "seconds_to_first_token": sum(stage["seconds"] for stage in stages if stage["stage"] != "decode"),
        "stages": stages,
    }
    if as_json:
        typer.echo(json.dumps(result))
    else:
        _print_costs(result)


def _print_costs(result: dict[str, Any]) -> None:
    title = f"{result['model']}, {result['workload']['num_frames']:,} frames, {result['gpu']['name']}"
    table = Table(title=title, caption_justify="left")
    table.add_column("stage", no_wrap=True)
    for column in ("linear\nTFLOP", "attention,\nsquare", "attention,\ncausal", "memory\nGB", "fits", "time\ns"):
        table.add_column(column, justify="right", no_wrap=True)
    for stage in result["stages"]:
        numbers = [stage[name] for name in ("flops_linear", "flops_attention_square", "flops_attention_causal")]
        flops = ["–" if number == 0 else f"{number / 1e12:,.1f}" for number in numbers]
        fits = "yes" if stage["fits"] else "no"
        rest = (f"{stage['memory'] / 1e9:,.1f}", fits, f"{stage['seconds']:,.1f}")
        table.add_row(stage["stage"], *flops, *rest)
    Console().print(table)
    context = result["context"]
    room = "" if context is None else f" of a context of {context:,}"
    if context is not None and not result["fits_context"]:
        room += ": does NOT fit"
    gb = {name: f"{result[name] / 1e9:,.1f} GB" for name in ("weights", "kv_cache", "peak_activations", "peak_memory")}
    verdict = "fits" if result["fits"] else "does NOT fit"
    workload = result["workload"]
    lines = (
        *(f"{stage['stage']}: {stage['counts']}" for stage in result["stages"]),
        f"tokens: {result['visual_tokens']:,} visual, {workload['prompt_tokens']} of the prompt, "
        f"{workload['answer_tokens']} of the answer; {result['tokens']:,}{room}",
        f"memory: {gb['weights']} weights, {gb['kv_cache']} KV cache, {gb['peak_activations']} activations at most; "
        f"peak {gb['peak_memory']} of {result['gpu']['memory'] / 1e9:g} GB ({workload['dtype']}): {verdict}",
        f"time: {result['seconds_to_first_token']:,.0f} s to the first token, {result['seconds']:,.0f} s in all; an "
        f"estimate at {result['utilisation']:g} of the GPU's peak, stages one after the other",
        "FLOPs are 2 × multiply-adds; norms, activations and softmax are left out. Square: all pairs of tokens; "
        "causal: those that the mask leaves, and what the time is from.",
        "Memory is what tensors hold: all weights at every stage, no allocator's reserve, no kernel's workspace. 1 GB "
        "is 10⁹ bytes.",
    )
    for line in lines:
        Console().print(line, highlight=False)


class Preset(StrEnum):
    """What `vilamp train` trains."""

    MINIATURE = "miniature"
    PAPER = "paper"


class Precision(StrEnum):
    """Mixed precision in training."""

    NO = "no"
    BF16 = "bf16"


@app.command()
def train(
    context: typer.Context,
    preset: Annotated[
        Preset, typer.Option(help="miniature: TinyWorld's, from nothing. paper: a checkpoint, on your own data.")
    ] = Preset.MINIATURE,
    out: Annotated[Path, typer.Option(help="Holds all that is made; the same command goes on there.")] = Path(
        "runs/train"
    ),
    seed: Annotated[int, typer.Option(help="Of batches and new weights.")] = 0,
    processes: Annotated[int, typer.Option(min=1, help="Share each batch, with one thread each.")] = 1,
    mixed_precision: Annotated[Precision, typer.Option(help="bf16 on a GPU that has it.")] = Precision.NO,
    study: Annotated[str, typer.Option(help=f"miniature: what is trained, of {_STUDIES}.")] = "full",
    encoder: Annotated[
        Path | None, typer.Option(help="miniature: take this encoder, skip its stage.", show_default=False)
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="paper: a ViLaMP or LLaVA-OneVision checkpoint.", show_default=False)
    ] = None,
    selector: Annotated[
        Path | None, typer.Option(help="paper: a CLIP checkpoint, for a LLaVA-OneVision.", show_default=False)
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help='paper: JSON lines, {"video", "question", "answer"} each.', show_default=False),
    ] = None,
    trains: Annotated[str, typer.Option(help="paper: what learns, such as connectors.")] = "all but the encoders",
    steps: Annotated[int, typer.Option(help="paper: of the optimizer.")] = 1000,
    batch_size: Annotated[int, typer.Option(help="paper: examples per step, of all processes.")] = 8,
    learning_rate: Annotated[float, typer.Option(help="paper: the peak.")] = 1e-5,
    max_frames: Annotated[int, typer.Option(help="paper: the most frames of a video.")] = 600,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="paper: compute twice, keep less.")
    ] = False,
) -> None:
    """Train: the miniature from nothing, or a full-size model on your data. A killed run goes on where it stopped."""
    with _interruptible(f"what is finished is kept in {out}"), _one_line_errors():
        given = [
            f"--{name.replace('_', '-')}"
            for name in context.params
            if context.get_parameter_source(name).name != "DEFAULT" and context.params[name] is not None
        ]
        own = ["--study", "--encoder"] if preset is Preset.PAPER else _PAPER_OPTIONS
        if foreign := sorted(set(given) & set(own)):
            raise ValueError(f"--preset {preset.value} has no {', '.join(foreign)}")
        if preset is Preset.PAPER and (model is None or data is None):
            raise ValueError("--preset paper needs --model DIR and --data FILE")
        if processes > 1 and "LOCAL_RANK" not in os.environ:
            _run_in_processes(processes)
        if preset is Preset.MINIATURE:
            from vilamp_lite.training.miniature import curves, train_miniature

            saved = train_miniature(out, seed, study, encoder=encoder, mixed_precision=mixed_precision)
            if os.environ.get("LOCAL_RANK", "0") == "0":
                from vilamp_lite.plots.studies import training_curves

                training_curves(curves(out, study, seed)).savefig(saved.parent / "curves.png")
        else:
            import torch

            from vilamp_lite.checkpoints import from_llava_onevision, load_checkpoint, load_processor
            from vilamp_lite.common.checks import choice
            from vilamp_lite.training.finetuning import TRAINABLE, finetune, read_examples
            from vilamp_lite.training.loop import Stage, make_accelerator

            # Whatever can be refused is refused before weights are loaded, which may take minutes.
            stage = Stage(
                choice("trains", trains, tuple(TRAINABLE)), steps, batch_size, learning_rate, weight_decay=0.0
            )
            examples = read_examples(data)
            if selector is None:
                vilamp = load_checkpoint(model, dtype=torch.float32)
            else:
                vilamp = from_llava_onevision(model, selector=selector, dtype=torch.float32, seed=seed)
            finetune(
                vilamp,
                load_processor(model, vilamp.config, selector_tokenizer=selector),
                examples,
                stage,
                trains,
                out,
                seed,
                accelerator=make_accelerator(mixed_precision),
                max_frames=max_frames,
                gradient_checkpointing=gradient_checkpointing,
            )
            saved = out / "model"
    if os.environ.get("LOCAL_RANK", "0") == "0":
        typer.echo(saved)


_PAPER_OPTIONS = [
    "--model",
    "--selector",
    "--data",
    "--trains",
    "--steps",
    "--batch-size",
    "--learning-rate",
    "--max-frames",
    "--gradient-checkpointing",
]


def _run_in_processes(count: int) -> None:
    """Replace this process by torchrun, which starts the same command in `count` processes."""
    import torch

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if not torch.cuda.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
    os.execv(sys.executable, [sys.executable, *launch, "-m", "vilamp_lite", *sys.argv[1:]])


class _PairsCommand(TyperCommand):
    """Reads `-p NAME VALUE`, as papermill does: typer has no list of pairs, so they become NAME=VALUE."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        def joined() -> Iterator[str]:
            words = iter(args)
            for word in words:
                yield word
                if word in ("-p", "--parameter"):
                    pair = list(islice(words, 2))
                    if len(pair) < 2:
                        raise typer.BadParameter(f"{word} needs a NAME and a VALUE")
                    yield "=".join(pair)

        return super().parse_args(ctx, list(joined()))


@app.command(cls=_PairsCommand)
def reproduce(
    notebooks: Annotated[
        list[str] | None, typer.Argument(metavar="[NOTEBOOK]...", help="Such as 02, or a path; all when left out.")
    ] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option("--parameter", "-p", metavar="NAME VALUE", help="Set a parameter; may be repeated."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Gets a folder for each notebook.")] = Path("runs"),
    time_limit: Annotated[float, typer.Option(help="Seconds for each notebook.")] = 1800,
    list_parameters: Annotated[bool, typer.Option("--list", help="Only list the notebooks' parameters.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run notebooks: executed copies, HTML, figures and a stamped result.json. Exit code 1 if one fails."""
    with _interruptible(f"finished notebooks are in {out}"), _one_line_errors():
        from vilamp_lite.notebook.reproduce import (
            all_notebooks,
            find_notebook,
            parameters_of,
            parse_parameters,
            run_notebooks,
        )

        chosen = [find_notebook(name) for name in notebooks] if notebooks else all_notebooks()
        if list_parameters:
            if parameter:
                raise ValueError("--list runs nothing: leave out -p")
            _print_parameters({path.stem: list(parameters_of(path).values()) for path in chosen}, as_json)
            return
        start = time.monotonic()
        pairs = [text.partition("=") for text in parameter or []]
        values = parse_parameters(chosen[0], [(name, value) for name, _, value in pairs])
        runs = list(run_notebooks(chosen, out, values, time_limit))
    if as_json:
        typer.echo(json.dumps([asdict(run) | {"folder": str(out / run.notebook)} for run in runs]))
    else:
        table = Table(title=f"{len(runs)} notebooks in {time.monotonic() - start:.0f} s")
        for column in ("notebook", "seconds", "figures", "metrics", "result"):
            table.add_column(column, justify="left" if column in ("notebook", "result") else "right")
        for run in runs:
            counts = (f"{run.seconds:.0f}", str(len(run.figures)), str(len(run.metrics)))
            table.add_row(run.notebook, *counts, "failed" if run.error else "ok")
        console = Console(highlight=False, soft_wrap=True)
        console.print(table)
        console.print(f"Read {out}/NAME/NAME.html; the figures (PNG) and result.json lie beside it.", markup=False)
    for run in runs:
        if run.error:
            partial = out / run.notebook / f"{run.notebook}.ipynb"
            _errors.print(f"{run.notebook}: {run.error}; as far as it came: {partial}", markup=False)
    if any(run.error for run in runs):
        raise typer.Exit(1)


def _print_parameters(notebooks: dict[str, list[Any]], as_json: bool) -> None:
    if as_json:
        rows = {
            name: [asdict(about) | {"type": about.type.__name__} for about in parameters]
            for name, parameters in notebooks.items()
        }
        typer.echo(json.dumps(rows))
        return
    for name, parameters in notebooks.items():
        table = Table(title=name)
        table.add_column("parameter", no_wrap=True)
        for column in ("type", "default", "help"):
            table.add_column(column)
        for about in parameters:
            words = (about.name, about.type.__name__, repr(about.default), about.help)
            table.add_row(*(Text(word) for word in words))
        Console().print(table)


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="YAML: notebook, parameters, metric, …")],
    out: Annotated[
        Path | None, typer.Option(help="A folder; the same command goes on there.", show_default="runs/sweeps/NAME")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes, with one thread each.", show_default="one per core")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a Dask scheduler, instead of local processes.", show_default=False)
    ] = None,
    time_limit: Annotated[float, typer.Option(help="Seconds for each cell of the grid.")] = 1800,
    as_json: AsJson = False,
) -> None:
    """Run a notebook for each cell of a grid, in parallel; a table and a figure of it. Exit code 1 if a cell fails."""
    out = out or Path("runs") / "sweeps" / file.stem
    with _interruptible(f"finished cells are kept in {out}"), _one_line_errors():
        if scheduler and workers:
            raise ValueError("--workers are local processes: leave them out with --scheduler")
        from vilamp_lite.notebook.sweep import load_sweep, run_sweep

        result = run_sweep(load_sweep(file), out, workers=workers, scheduler=scheduler, time_limit=time_limit)
    if as_json:
        # JSON has no NaN, which stands where a cell failed.
        rows = result.table.astype(object).where(result.table.notna(), None).to_dict("records")
        typer.echo(json.dumps({"out": str(out), "table": rows, "failed": result.failed}))
    else:
        console = Console(highlight=False, soft_wrap=True)
        console.print(f"{len(result.table) - len(result.failed)} of {len(result.table)} cells finished", markup=False)
        console.print(f"{out}/table.csv and figure.png; each cell lies in cells/CELL", markup=False)
    for cell, error in result.failed.items():
        _errors.print(f"{cell}: {error}; as far as it came: {out / 'cells' / cell}", markup=False)
    if result.failed:
        raise typer.Exit(1)


_EVALUATED = Path("runs") / "evaluate"


@evaluate.command()
def niah(
    context: typer.Context,
    model: Annotated[
        Path, typer.Option(help="A checkpoint directory.", show_default="data/vilamp-miniature")
    ] = MINIATURE,
    frames: Annotated[str, typer.Option(help="Lengths of the haystacks, such as 256,2048,10000.")] = "2048",
    depths: Annotated[str, typer.Option(help="Of the needle, from 0 (start) to 1 (end), such as 0,0.5,1.")] = "0.5",
    families: Annotated[str, typer.Option(help="Of questions.")] = _FAMILIES.replace(", ", ","),
    selector: Annotated[str, typer.Option(help="How keyframes are chosen, such as dks,uniform.")] = "dks",
    merger: Annotated[str, typer.Option(help="Of the other frames: dfm, mean, max, drop, qformer.")] = "dfm",
    questions: Annotated[int, typer.Option(help="In each cell.")] = 50,
    seed: Annotated[int, typer.Option(help="Of questions and haystacks.")] = 0,
    processes: Annotated[int, typer.Option(help="Each works on a cell at a time, with one thread.")] = 1,
    cases: Annotated[
        Path | None,
        typer.Option(
            help="Your own footage: JSON, a list of {haystack, needle, depth, question, options, answer}.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Gets every prediction; what is finished there is skipped.",
            show_default="a folder of runs/evaluate for each model and its questions",
        ),
    ] = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Ask about needles in haystacks (the paper's Fig. 2): TinyWorld's, each combination of the lists a cell; or CASES.

    The depth is that of the first needle; a roll call's many are spread over the video, whatever the depth.
    """
    with _interruptible(f"what is finished is kept in {out or _EVALUATED}"), _one_line_errors():
        of_cells = ("frames", "depths", "families", "selector", "merger", "questions", "seed", "processes")
        given = [f"--{name}" for name in of_cells if context.get_parameter_source(name).name != "DEFAULT"]
        if cases is not None and given:
            raise ValueError(f"--cases have their own questions and haystacks: leave out {', '.join(given)}")
        # Imported here: torch takes seconds, and `vilamp --help` should not.
        from vilamp_lite.checkpoints import load_config
        from vilamp_lite.common.fingerprints import code_fingerprint, weights_fingerprint
        from vilamp_lite.evaluation.footage import evaluate_cases, load_cases
        from vilamp_lite.evaluation.niah import grid
        from vilamp_lite.evaluation.runs import evaluate_cells

        if cases is not None:
            loaded = load_cases(cases)
            load_config(model)
            asked = sha256(cases.read_bytes()).hexdigest()[:16]
            out = out or _EVALUATED / f"{weights_fingerprint(model)}_{code_fingerprint()}_cases_{asked}"
            result = evaluate_cases(model, loaded, out=out, device=device)
        else:
            cells = grid(
                _listed("frames", frames, int),
                _listed("depths", depths, float),
                _listed("families", families, str),
                _listed("selector", selector, str),
                _listed("merger", merger, str),
                questions,
            )
            load_config(model)
            same = f"{weights_fingerprint(model)}_{code_fingerprint()}"
            out = out or _EVALUATED / f"{same}_seed{seed}_questions{questions}"
            result = evaluate_cells(model, cells, seed=seed, processes=processes, out=out, device=device).as_json()
    if as_json:
        typer.echo(json.dumps(result))
    else:
        (_print_cells if cases is None else _print_cases)(result)
        Console(highlight=False, soft_wrap=True).print(f"Each prediction: {out}", markup=False)


def _listed(option: str, text: str, kind: Callable[[str], Any]) -> list[Any]:
    """Read a list with commas."""
    try:
        return [kind(part.strip()) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"--{option} must be numbers with commas between them, got {text!r}") from error


def _print_cells(result: dict[str, Any]) -> None:
    table = Table(title=f"VideoNIAH, {result['stamp']['model']}: mean accuracy {result['mean']:.3f}")
    for column in ("frames", "depth", "family", "variant", "correct", "accuracy"):
        table.add_column(column, justify="left" if column in ("family", "variant") else "right")
    for cell in result["cells"]:
        share = f"{cell['accuracy']:.3f} ({cell['low']:.2f}–{cell['high']:.2f})"
        names = (f"{cell['frames']:,}", f"{cell['depth']:g}", cell["family"], f"{cell['selector']} + {cell['merger']}")
        table.add_row(*names, f"{cell['correct']}/{cell['questions']}", share)
    table.caption = "accuracy with Wilson's 95 % interval"
    Console().print(table)


def _print_cases(result: dict[str, Any]) -> None:
    share = f"{result['correct']} of {result['questions']} right (95 %: {result['low']:.2f}–{result['high']:.2f})"
    table = Table("question", "answer", "prediction", "correct", title=f"{result['stamp']['model']}: {share}")
    for case in result["predictions"]:
        words = [Text(case[column]) for column in ("question", "answer", "prediction")]
        table.add_row(*words, "yes" if case["correct"] else "no")
    Console().print(table)


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
