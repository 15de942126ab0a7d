"""`vilamp encode` and `ask`: a model and a video; what can be refused is refused before weights are loaded."""

from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from vilamp_lite.cli import options
from vilamp_lite.cli.shown import interruptible, show, tell, written
from vilamp_lite.common import in_seconds, require_text, visible
from vilamp_lite.tinyworld import MINIATURE
from vilamp_lite.video import SampledVideo


def encode(
    file: options.Video,
    out: Annotated[Path | None, Option(help="The store, a folder.", show_default="VIDEO, ending in .features")] = None,
    model: options.Model = None,
    random_weights: options.RandomWeights = False,
    tokenizer: options.Tokenizer = None,
    selector_tokenizer: options.SelectorTokenizer = None,
    fps: options.Fps = None,
    max_frames: options.MaxFrames = None,
    stored: Annotated[options.Dtype, Option(help="Type of the stored patches.")] = "float16",
    device: options.Device = None,
    dtype: options.WeightType = None,
    force: options.Force = False,
    as_json: options.AsJson = False,
) -> None:
    """Encode VIDEO once into a store, which `vilamp ask` then takes; a stopped run goes on where it was."""
    out = out or file.parent / f"{file.stem}.features"
    with interruptible(f"what is finished is kept in {out}"):
        from vilamp_lite.streaming import FeatureStore

        checkpoint = _checkpoint(model, random_weights, tokenizer, selector_tokenizer, fps=fps)
        source = SampledVideo(file, fps=checkpoint.config.fps, max_frames=max_frames)
        _require_its_world(checkpoint, force, source.info)
        store = FeatureStore.open(out)
        checkpoint.config.require_room(source.num_frames)
        loaded = checkpoint.load(device, options.torch_type(dtype))
        store.encode(source, loaded, checkpoint.processor, dtype=options.torch_type(stored))
        summary = store.summary()
    per_frame = round(summary.num_bytes / summary.num_frames)
    show(
        as_json,
        {"store": str(out), "video": str(file), **asdict(summary), "bytes_per_frame": per_frame},
        f"{out}: {summary.num_frames:,} frames in {summary.shards:,} shards, {summary.num_bytes:,} bytes, "
        f"{per_frame:,} of each frame; patches in {summary.dtype}, off by {summary.error:.1e} of their size at most",
    )


def ask(
    file: Annotated[Path, Argument(metavar="VIDEO", help="A file, or a store of `vilamp encode`.")],
    question: Annotated[str, Argument(metavar="QUESTION", help="What to answer.")],
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
    is_store = file.is_dir()
    with interruptible(f"{file} is as it was" if is_store else "nothing is kept"):
        require_text(question)
        if is_store and (fps, max_frames) != (None, None):
            raise ValueError(f"{file} was sampled when it was encoded: leave out --fps and --max-frames")
        from transformers import TextStreamer

        class Printed(TextStreamer):
            def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
                with written():
                    print(visible(text, keep="\n\t"), end="\n" if stream_end else "")

        from vilamp_lite.generation import answer
        from vilamp_lite.streaming import FeatureStore

        changes = {"max_keyframes": max_keyframes, "similarity_threshold": similarity_threshold, "fps": fps}
        checkpoint = _checkpoint(model, random_weights, tokenizer, selector_tokenizer, **changes)
        config, processor = checkpoint.config, checkpoint.processor
        if is_store:
            source = FeatureStore.open(file)
            sampling = {name: source.settings[name] for name in ("fps", "max_frames")}
        else:
            sampling = {"fps": config.fps, "max_frames": max_frames}
            source = SampledVideo(file, **sampling)
        # A store's footage was looked at when it was encoded.
        _require_its_world(checkpoint, force, None if is_store else source.info, question)
        prompt_tokens = processor.prompts([question])["input_ids"].shape[1] - 1
        config.require_room(source.num_frames, prompt_tokens, max_new_tokens)

        loaded = checkpoint.load(device, options.torch_type(dtype))
        if is_store:
            sequence = source.sequence(loaded, question, processor)
        else:
            sequence = loaded.encode_video(source, question, processor)
        if random_weights:
            tell("random weights: the answer means nothing")
        streamer = None if as_json else Printed(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        said = answer(loaded, processor, question, sequence, max_new_tokens=max_new_tokens, streamer=streamer)
    selector, samples = config.selector_config, sequence.keyframes.tolist()
    seconds = sequence.timestamps[samples].tolist()
    merged, patches, newline = sequence.kind_of_token.bincount(minlength=3).tolist()
    result = {
        "video": str(file),
        "question": question,
        "answer": said.text,
        "model": str(checkpoint.path) if checkpoint.path else None,
        "weights": "checkpoint" if checkpoint.path else "random",
        "encoder": f"{selector.model_type}, {selector.vision_config.image_size} px, {config.query_size} dimensions",
        "frames_sampled": source.num_frames,
        **sampling,
        "max_keyframes": config.max_keyframes,
        "similarity_threshold": config.similarity_threshold,
        "keyframes": [{"sample": n, "seconds": at} for n, at in zip(samples, seconds, strict=True)],
        "tokens": {
            "keyframes": patches,
            "merged": merged,
            "newline": newline,
            "prompt": prompt_tokens,
            "prefill": len(sequence.embeds) + prompt_tokens,
            "answer": len(said.tokens),
        },
        "device": str(loaded.device),
        "dtype": str(loaded.language_model.dtype).removeprefix("torch."),
        "versions": {name: version(name) for name in ("vilamp-lite", "torch", "transformers", "av")},
    }
    show(as_json, result)
    if not as_json:  # the answer has been printed, word by word
        times = ", ".join(in_seconds(sequence.timestamps, samples))
        tell(
            f"{source.num_frames:,} frames, {len(seconds)} of them keyframes (at {times} s); tokens: {patches:,} of "
            f"keyframes, {merged:,} merged, {prompt_tokens:,} of the prompt, {len(said.tokens):,} answered"
        )


def _checkpoint(
    model: Path | None, random_weights: bool, tokenizer: str | None, selector_tokenizer: str | None, **changes: Any
) -> Any:
    """Read the model that the options name, all but its weights."""
    from vilamp_lite.checkpoints import Checkpoint

    if model is not None and random_weights:
        raise ValueError("give either --model DIR or --random-weights")
    path = None if random_weights else model or MINIATURE
    if path == MINIATURE and not (path / "config.json").is_file():
        raise ValueError(f"there is no model in {path}: give --model DIR (`vilamp train miniature` makes one)")
    changes = {name: value for name, value in changes.items() if value is not None}
    return Checkpoint(path, tokenizer=tokenizer, selector_tokenizer=selector_tokenizer, **changes)


def _require_its_world(checkpoint: Any, force: bool, info: Any, question: str | None = None) -> None:
    """Refuse what a TinyWorld model was not trained for: other footage, if a file's is shown, and unknown words."""
    if checkpoint.config.selector_config.model_type != "tinyworld":
        return
    from vilamp_lite.tinyworld import is_tinyworld, require_known_words

    if not force and info is not None and not is_tinyworld(info):
        raise ValueError(
            f"{info.path} does not show TinyWorld, and the model in {checkpoint.path} was trained on nothing else; "
            "make such a video with `vilamp tinyworld`, name another model with --model DIR, or --force"
        )
    if question is not None:
        require_known_words(question)
