"""`vilamp encode` and `ask`: a model and a video; what can be refused is refused before weights are loaded."""

from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from vilamp_lite.cli import options
from vilamp_lite.cli.shown import interruptible, show, tell
from vilamp_lite.tinyworld import MINIATURE

if TYPE_CHECKING:
    from vilamp_lite.modeling import ViLaMPForConditionalGeneration
    from vilamp_lite.processing import ViLaMPProcessor


def encode(
    video: options.Video,
    out: Annotated[Path | None, Option(help="The store, a folder.", show_default="VIDEO, ending in .features")] = None,
    model: options.Model = None,
    random_weights: options.RandomWeights = False,
    tokenizer: options.Tokenizer = None,
    selector_tokenizer: options.SelectorTokenizer = None,
    fps: options.Fps = None,
    max_frames: options.MaxFrames = None,
    stored: Annotated[options.Dtype, Option(help="Type of the stored patches.")] = options.Dtype.FLOAT16,
    device: options.Device = None,
    dtype: options.WeightType = None,
    force: options.Force = False,
    as_json: options.AsJson = False,
) -> None:
    """Encode VIDEO once into a store, which `vilamp ask` then takes; a stopped run goes on where it was."""
    out = out or video.with_suffix(".features")
    with interruptible(f"what is finished is kept in {out}"):
        folder = _folder(model, random_weights)
        processor = _processor(folder, tokenizer, selector_tokenizer, fps=fps)
        import torch

        from vilamp_lite.streaming.feature_store import FeatureStore
        from vilamp_lite.video.source import stream_frames

        _require_its_world(folder, processor, video, force)
        store = FeatureStore.open(out)
        processor.config.require_room(stream_frames(video, fps=processor.config.fps, max_frames=max_frames).num_frames)
        store.encode(
            video,
            _load(folder, processor, device, dtype),
            processor,
            max_frames=max_frames,
            dtype=getattr(torch, stored),
        )
        summary = store.summary()
    per_frame = round(summary.num_bytes / summary.num_frames)
    show(
        as_json,
        {"store": str(out), "video": str(video), **asdict(summary), "bytes_per_frame": per_frame},
        f"{out}: {summary.num_frames:,} frames in {summary.shards:,} shards, {summary.num_bytes:,} bytes, "
        f"{per_frame:,} of each frame; patches in {summary.dtype}, off by {summary.error:.1e} of their size at most",
    )


def ask(
    video: Annotated[
        Path, Argument(metavar="VIDEO", help="A file, or a store of `vilamp encode`.", show_default=False)
    ],
    question: Annotated[str, Argument(metavar="QUESTION", help="What to answer.", show_default=False)],
    model: options.Model = None,
    random_weights: options.RandomWeights = False,
    tokenizer: options.Tokenizer = None,
    selector_tokenizer: options.SelectorTokenizer = None,
    max_keyframes: Annotated[int | None, Option(help="K, the most keyframes.", show_default="the checkpoint's")] = None,
    similarity_threshold: Annotated[
        float | None, Option(help="τ, the largest cosine of two keyframes.", show_default="the checkpoint's")
    ] = None,
    fps: options.Fps = None,
    max_frames: options.MaxFrames = None,
    max_new_tokens: Annotated[int, Option(min=1, help="The longest answer, in tokens.")] = 256,
    device: options.Device = None,
    dtype: options.WeightType = None,
    force: options.Force = False,
    as_json: options.AsJson = False,
) -> None:
    """Answer QUESTION about VIDEO: choose keyframes, merge the other frames, read both, generate."""
    is_store = video.is_dir()
    with interruptible(f"{video} is as it was" if is_store else "nothing is kept"):
        if is_store and (fps, max_frames) != (None, None):
            raise ValueError(f"{video} was sampled when it was encoded: leave out --fps and --max-frames")
        changes = {"max_keyframes": max_keyframes, "similarity_threshold": similarity_threshold, "fps": fps}
        folder = _folder(model, random_weights)
        processor = _processor(folder, tokenizer, selector_tokenizer, **changes)
        import torch
        from transformers import TextStreamer

        from vilamp_lite.generation import answer
        from vilamp_lite.streaming.feature_store import FeatureStore
        from vilamp_lite.video.source import stream_frames

        _require_its_world(folder, processor, video, force, question)
        prompt_tokens = processor.prompts([question])["input_ids"].shape[1] - 1
        if is_store:
            store = FeatureStore.open(video)
            num_frames, sampling = store.num_frames, {name: store.settings[name] for name in ("fps", "max_frames")}
        else:
            sampling = {"fps": processor.config.fps, "max_frames": max_frames}
            num_frames = stream_frames(video, **sampling).num_frames
        processor.config.require_room(num_frames, prompt_tokens, max_new_tokens)

        vilamp = _load(folder, processor, device, dtype)
        if is_store:
            sequence = store.sequence(vilamp, question, processor)
        else:
            sequence = vilamp.encode_video(video, question, processor, max_frames=max_frames)
        streamer = None if as_json else TextStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        said = answer(vilamp, processor, question, sequence, max_new_tokens=max_new_tokens, streamer=streamer)
    config, selector = vilamp.config, vilamp.config.selector_config
    merged, patches, newline = torch.bincount(sequence.kind_of_token, minlength=3).tolist()
    keyframes = [{"sample": n, "seconds": float(sequence.timestamps[n])} for n in sequence.keyframes.tolist()]
    result = {
        "video": str(video),
        "question": question,
        "answer": said.text,
        "model": str(folder) if folder else None,
        "weights": "checkpoint" if folder else "random",
        "encoder": f"{selector.model_type}, {selector.vision_config.image_size} px, {config.query_size} dimensions",
        "frames_sampled": num_frames,
        **sampling,
        "max_keyframes": config.max_keyframes,
        "similarity_threshold": config.similarity_threshold,
        "keyframes": keyframes,
        "tokens": {
            "keyframes": patches,
            "merged": merged,
            "newline": newline,
            "prompt": prompt_tokens,
            "prefill": len(sequence.embeds) + prompt_tokens,
            "answer": len(said.tokens),
        },
        "device": str(vilamp.device),
        "dtype": str(vilamp.language_model.dtype).removeprefix("torch."),
        "versions": {name: version(name) for name in ("vilamp-lite", "torch", "transformers", "av")},
    }
    show(as_json, result)
    if not as_json:  # the answer has been printed, word by word
        times = ", ".join(f"{keyframe['seconds']:.0f}" for keyframe in keyframes)
        tell(
            f"{num_frames:,} frames, {len(keyframes)} of them keyframes (at {times} s); tokens: {patches:,} of "
            f"keyframes, {merged:,} merged, {prompt_tokens:,} of the prompt, {len(said.tokens):,} answered"
        )


def _folder(model: Path | None, random_weights: bool) -> Path | None:
    """Where the model lies; None for random weights."""
    if model is not None and random_weights:
        raise ValueError("give either --model DIR or --random-weights")
    if model is None and not random_weights and not (MINIATURE / "config.json").is_file():
        raise ValueError(f"there is no model in {MINIATURE}: give --model DIR (`vilamp train miniature` makes one)")
    return None if random_weights else model or MINIATURE


def _processor(
    folder: Path | None, tokenizer: str | None, selector_tokenizer: str | None, **changes: Any
) -> "ViLaMPProcessor":
    """Read all of a model but its weights; the processor has the configuration."""
    from vilamp_lite.checkpoints import load_config, load_processor
    from vilamp_lite.configuration import ViLaMPConfig
    from vilamp_lite.processing import ViLaMPProcessor

    changes = {name: value for name, value in changes.items() if value is not None}
    if folder is not None:
        names = {"tokenizer": tokenizer, "selector_tokenizer": selector_tokenizer}
        return load_processor(folder, load_config(folder, **changes), **names)
    if tokenizer or selector_tokenizer:
        raise ValueError("--random-weights has its own tokenizers, of bytes: leave out yours")
    return ViLaMPProcessor.byte_level(ViLaMPConfig.tiny(**changes))


def _require_its_world(
    folder: Path | None, processor: "ViLaMPProcessor", video: Path, force: bool, question: str | None = None
) -> None:
    """Refuse what a TinyWorld model was not trained for; a store's footage was looked at when it was encoded."""
    if processor.config.selector_config.model_type != "tinyworld":
        return
    from vilamp_lite.tinyworld.encoder import require_known_words
    from vilamp_lite.tinyworld.render import is_tinyworld
    from vilamp_lite.video.source import probe

    if not force and video.is_file() and not is_tinyworld(probe(video)):
        raise ValueError(
            f"{video} does not show TinyWorld, and the model in {folder} was trained on nothing else; make such a "
            "video with `vilamp tinyworld`, name another model with --model DIR, or --force"
        )
    if question is not None:
        require_known_words(question)


def _load(
    folder: Path | None, processor: "ViLaMPProcessor", device: str | None, dtype: options.Dtype | None
) -> "ViLaMPForConditionalGeneration":
    """Load the weights, in their own type or another, to where they shall run."""
    import torch

    from vilamp_lite.checkpoints import load_checkpoint
    from vilamp_lite.common.hub import usable_device
    from vilamp_lite.modeling import ViLaMPForConditionalGeneration

    place = usable_device(device)
    weight_type = None if dtype is None else getattr(torch, dtype)
    if folder is not None:
        vilamp = load_checkpoint(folder, dtype=weight_type, config=processor.config)
    else:
        tell("random weights: the answer means nothing")
        torch.manual_seed(0)
        vilamp = ViLaMPForConditionalGeneration(processor.config).eval().to(weight_type)
        vilamp.selector.float()  # as a loaded one is
    processor.config = vilamp.config  # transformers loads with a copy; they share one again
    return vilamp.to(place)
