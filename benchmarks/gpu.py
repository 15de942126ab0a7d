"""What a GPU does, in parts that are saved as they end: `python -m benchmarks.gpu`.

The model has the full size and random weights: time and memory don't depend on what it knows. A part that is saved is
not run again by the same code, so that an interrupted run goes on; a part that fails is saved as its error, and the
others go on. Each part takes four minutes at most on an H100. `--device cpu --tiny` tries every part with tiny shapes.
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import DynamicCache, PreTrainedModel

from vilamp_lite.common.files import write_json
from vilamp_lite.common.fingerprints import code_fingerprint
from vilamp_lite.common.stamp import ROOT, make_stamp
from vilamp_lite.configuration import QWEN2_7B, ViLaMPConfig
from vilamp_lite.costs.peers import PEER_MODELS
from vilamp_lite.costs.shapes import QWEN2_7B as LANGUAGE
from vilamp_lite.costs.shapes import Workload
from vilamp_lite.costs.vilamp import vilamp_costs
from vilamp_lite.evaluation.results import RESULTS, result_of
from vilamp_lite.generation import answer, without_cudnn_attention
from vilamp_lite.modeling import ViLaMPForConditionalGeneration
from vilamp_lite.processing import ViLaMPProcessor
from vilamp_lite.streaming.feature_store import FeatureStore
from vilamp_lite.streaming.measured import FirstToken, Stopwatch, measured_answer
from vilamp_lite.tinyworld.long_videos import LongVideo, long_video
from vilamp_lite.training.finetuning import VideoQuestion, finetune
from vilamp_lite.training.loop import Stage
from vilamp_lite.video.source import stream_frames

Row = dict[str, Any]
NEW_TOKENS = 16
PROMPT_TOKENS = 82  # around a video: what the full size's question of notebook 05 has, byte by byte
# A model of half a billion parameters, for training all of it: Qwen2's smallest.
SMALL = {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14}
SMALL |= {"num_key_value_heads": 2}


@dataclass
class Bench:
    """Where and how large, and the model that the parts share.

    Attributes:
        device: where it runs.
        tiny: whether shapes are tiny.
        folder: for videos and stores.
    """

    device: torch.device
    tiny: bool
    folder: Path

    @property
    def dtype(self) -> torch.dtype:
        """Of weights."""
        return torch.float32 if self.tiny else torch.bfloat16

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    def config(self, **changes: Any) -> ViLaMPConfig:
        """The released configuration, or a tiny one in its form."""
        return ViLaMPConfig.tiny(**changes) if self.tiny else ViLaMPConfig.released(**changes)

    @cached_property
    def model(self) -> ViLaMPForConditionalGeneration:
        """The full-size model with random weights; the selector in float32, as a checkpoint's."""
        return self.built(self.config())

    @cached_property
    def processor(self) -> ViLaMPProcessor:
        """Of the model; bytes are its tokens."""
        return ViLaMPProcessor.byte_level(self.model.config)

    def built(self, config: ViLaMPConfig) -> ViLaMPForConditionalGeneration:
        """A model with random weights."""
        torch.manual_seed(0)
        torch.set_default_dtype(self.dtype)
        try:
            with self.device:
                model = ViLaMPForConditionalGeneration(config).eval()
        finally:
            torch.set_default_dtype(torch.float32)
        model.selector.float()
        return model

    def video(self, num_frames: int) -> LongVideo:
        """A TinyWorld of so many frames; of few where shapes are tiny."""
        return long_video(self.folder / "videos", num_frames // 20 if self.tiny else num_frames)

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def timed(self, work: Callable[[], object], repeats: int = 3) -> Row:
        """Seconds of a first run, and the median of further ones if there are any, with the peak of a GPU's memory."""
        seconds = []
        for _ in range(1 + repeats):
            if self.on_gpu:
                torch.cuda.reset_peak_memory_stats(self.device)
            self.wait()
            start = time.perf_counter()
            work()
            self.wait()
            seconds.append(time.perf_counter() - start)
        peak = {"peak_memory": torch.cuda.max_memory_allocated(self.device)} if self.on_gpu else {}
        return {"first_seconds": seconds[0], "seconds": statistics.median(seconds[1:] or seconds), **peak}


# --- Parts, by what they are worth -----------------------------------------------------------------------------------


def machine(bench: Bench) -> Iterator[Row]:
    """What the others are compared with: a product of matrices and a copy."""
    side, numbers = (256, 2**20) if bench.tiny else (8192, 2**30)
    a, b = (torch.randn(side, side, device=bench.device, dtype=bench.dtype) for _ in range(2))
    row = bench.timed(lambda: a @ b, 10)
    yield {"what": f"product of {side} × {side} matrices", **row, "tflops": 2 * side**3 / row["seconds"] / 1e12}
    block = torch.empty(numbers, device=bench.device)
    row = bench.timed(block.clone, 10)
    yield {"what": f"copy of {block.nbytes:,} bytes", **row, "gb_per_second": 2 * block.nbytes / row["seconds"] / 1e9}


def tests(bench: Bench) -> Iterator[Row]:
    """`pytest -m gpu`: a tiny model gives on the GPU what it gives on the CPU."""
    if not bench.on_gpu:
        yield {"what": "pytest -m gpu", "not_run": "no GPU"}
        return
    start = time.perf_counter()
    code = pytest.main(["-q", "-m", "gpu", "-p", "no:cacheprovider", str(ROOT / "tests" / "test_gpu.py")])
    yield {"what": "pytest -m gpu", "exit_code": int(code), "seconds": time.perf_counter() - start}
    if code:
        raise ValueError("tests failed")


@torch.no_grad()
def equality(bench: Bench) -> Iterator[Row]:
    """A streamed video against the same frames all at once, and against pixels that the CPU made."""
    model, processor = bench.model, bench.processor
    video = bench.video(256)
    question = video.haystack.question.text
    streamed = model.encode_video(video.path, question, processor)
    (frames,) = [batch.frames for batch in stream_frames(video.path, fps=model.config.fps, batch_size=256)]
    query = model.embed_query(**processor.selector_query([question]))[0]
    for made_on in (bench.device, torch.device("cpu")):
        pixels = (make(frames, made_on) for make in (processor.vision_pixels, processor.selector_pixels))
        together = model.encode_frames(*pixels, query)
        same = torch.equal(streamed.keyframes.cpu(), together.keyframes.cpu())
        difference = (streamed.embeds - together.embeds).float().norm(dim=1) if same else torch.tensor([torch.inf])
        norm = together.embeds.float().norm(dim=1).clamp(min=1e-12)
        yield {
            "what": f"streamed, and all at once with pixels made on a {made_on.type}",
            "frames": len(frames),
            "same_keyframes": same,
            "largest_difference": float((difference / norm).max()) if same else None,
        }


@torch.no_grad()
def language(bench: Bench) -> Iterator[Row]:
    """The language model alone: a prompt in pieces of several sizes, and tokens with and without a mask."""
    language_model: PreTrainedModel = bench.model.language_model
    length = 600 if bench.tiny else 16_241 + PROMPT_TOKENS
    width = language_model.config.hidden_size
    embeds = 0.02 * torch.randn(1, length, width, device=bench.device, dtype=bench.dtype)
    mask = torch.ones(1, length + 1000, dtype=torch.long, device=bench.device)

    def read(cache: DynamicCache, embeds: torch.Tensor, masked: bool) -> None:
        seen = mask[:, : cache.get_seq_length() + embeds.shape[1]] if masked else None
        options = {"attention_mask": seen, "past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
        language_model(inputs_embeds=embeds, **options)

    def prefill(chunk: int, masked: bool) -> DynamicCache:
        cache = DynamicCache(config=language_model.config)
        for piece in embeds.split(chunk, dim=1):
            read(cache, piece, masked)
        return cache

    for kernels, chosen in {"without cuDNN": without_cudnn_attention, "all kernels": nullcontext}.items():
        for chunk in (512, 4096, length):
            with chosen():
                row = bench.timed(partial(prefill, chunk, False), 2)
            yield {"what": "prefill", "kernels": kernels, "tokens": length, "chunk": chunk, **row}
        for masked in (False, True):
            with chosen():
                cache = prefill(length, False)
                row = bench.timed(lambda c=cache, m=masked: [read(c, embeds[:, :1], m) for _ in range(8)], 3)
            del cache  # the next peak is without it
            row = {name: value / 8 if "seconds" in name else value for name, value in row.items()}
            yield {"what": "a token", "kernels": kernels, "tokens": length, "masked": masked, **row}


@torch.no_grad()
def from_file_to_answer(bench: Bench, num_frames: int, repeats: int = 3) -> Iterator[Row]:
    """Answers about a file: runs as a user has them, after one to warm up, and one that tells the stages apart."""
    model, processor = bench.model, bench.processor
    video = bench.video(num_frames)
    question = video.haystack.question.text
    short = bench.video(256)
    measured_answer(model, processor, short.path, question, max_new_tokens=NEW_TOKENS)
    rows = []
    for _ in range(repeats):
        with Stopwatch(bench.device) as clock:
            with clock.stage("encoding"):
                sequence = model.encode_video(video.path, question, processor)
            with clock.stage("prefill"):
                said = answer(
                    model, processor, question, sequence, max_new_tokens=NEW_TOKENS, streamer=FirstToken(clock)
                )
        stages, tokens = clock.stages, len(said.tokens)
        about = {"frames": len(sequence.timestamps), "visual_tokens": len(sequence.embeds), "tokens": tokens}
        rows.append(
            {
                "seconds": sum(stage["seconds"] for stage in stages.values()),
                "encoding_seconds": stages["encoding"]["seconds"],
                "prefill_seconds": stages["prefill"]["seconds"],
                "token_seconds": stages["decoding"]["seconds"] / max(tokens - 1, 1),
                "peak_memory": max(stage["peak_memory"] for stage in stages.values()),
            }
        )
        yield {"what": "from file to answer", **about, "visual_tokens": len(sequence.embeds), "tokens": tokens} | rows[
            -1
        ]
    median = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    reserved = {"reserved_memory": torch.cuda.max_memory_reserved(bench.device)} if bench.on_gpu else {}
    yield {"what": "from file to answer, median", **about, **median, **reserved}
    measured = measured_answer(model, processor, video.path, question, max_new_tokens=NEW_TOKENS)
    yield {"what": "stage by stage, one after another", **result_of(measured, video)}


@torch.no_grad()
def further_question(bench: Bench, num_frames: int = 2_000) -> Iterator[Row]:
    """A store of features: encoding it, the first question in a process, and a further one."""
    video = bench.video(num_frames)
    with tempfile.TemporaryDirectory(dir=bench.folder) as folder:
        store = FeatureStore.open(folder)
        first, second = ({"question": text} for text in (video.haystack.question.text, "How many things are red?"))
        answered = partial(store.ask, bench.model, processor=bench.processor, max_new_tokens=4)
        steps = {
            "encode into the store": partial(store.encode, video.path, bench.model, bench.processor),
            "first question": partial(answered, **first),
            "second question": partial(answered, **second),
        }
        for what, work in steps.items():
            bench.wait()
            start = time.perf_counter()
            work()
            bench.wait()
            yield {"what": what, "frames": store.settings["num_frames"], "seconds": time.perf_counter() - start}
        yield {"what": "size", "bytes": sum(file.stat().st_size for file in store.folder.iterdir())}


@torch.no_grad()
def peer(bench: Bench, seconds: float = 150) -> Iterator[Row]:
    """Fig. 1 measured: the same language model reads 169 tokens of every frame, until memory or time ends."""
    model = bench.model
    language_model = model.language_model
    per_frame, width = PEER_MODELS["llava-video"].tokens_per_frame, language_model.config.hidden_size
    side = model.config.vision_config.image_size
    start = time.perf_counter()
    for frames in (4, 8) if bench.tiny else (64, 128, 256, 512, 768, 1024, 1536, 2048, 4096):
        if time.perf_counter() - start > seconds:
            yield {"what": "peer", "frames": frames, "not_run": "no time left"}
            return

        about = {"what": "peer", "frames": frames, "tokens": frames * per_frame}

        def read(frames: int = frames) -> None:
            tokens = torch.empty(frames, per_frame, width, device=bench.device, dtype=bench.dtype)
            for part in tokens.split(32):
                pixels = torch.zeros(len(part), 3, side, side, device=bench.device, dtype=bench.dtype)
                grid = model.keyframe_connector(model.patch_features(pixels)).transpose(1, 2)
                grid = grid.unflatten(2, [math.isqrt(grid.shape[2])] * 2)
                part.copy_(F.interpolate(grid, (13, 13), mode="bilinear").flatten(2).transpose(1, 2))
            with without_cudnn_attention():
                language_model(inputs_embeds=tokens.flatten(0, 1)[None], use_cache=True, logits_to_keep=1)

        try:
            yield about | bench.timed(read, 1 if frames < 512 else 0)
        except torch.cuda.OutOfMemoryError:
            yield about | {"out_of_memory": True}
            return


def training(bench: Bench) -> Iterator[Row]:
    """Three steps of fine-tuning everything but the encoders, with checkpointing, of a small language model."""
    small = {} if bench.tiny else {"text_config": QWEN2_7B | SMALL}
    model = bench.built(bench.config(**small)).float()
    processor = ViLaMPProcessor.byte_level(model.config)
    video = bench.video(256)
    examples = [VideoQuestion(video.path, video.haystack.question.text, video.haystack.question.answer)]
    stage, frames = Stage("three steps", 3, 1, 1e-5), 16 if bench.tiny else 64
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        options = {"max_frames": frames, "gradient_checkpointing": True}
        curve = finetune(model, processor, examples, stage, "all but the encoders", folder, **options)
    row = {"what": "three steps", "frames": frames, "seconds": time.perf_counter() - start}
    row |= {"peak_memory": torch.cuda.max_memory_allocated(bench.device)} if bench.on_gpu else {}
    yield row | {"parameters": model.num_parameters(), "losses": curve[:, 0].tolist()}


PARTS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "machine": machine,
    "tests": tests,
    "equality": equality,
    "language": language,
    "1000": partial(from_file_to_answer, num_frames=1_000),
    "10000": partial(from_file_to_answer, num_frames=10_000),
    "store": further_question,
    "peer": peer,
    "training": training,
}


# --- What was measured, in words -------------------------------------------------------------------------------------


def section(folder: Path = RESULTS / "gpu") -> str:
    """What stands in RESULTS.md: the parts that were run, each beside what the machine itself can do."""
    parts = {name: json.loads((folder / f"{name}.json").read_text()) for name in PARTS if _is_run(folder, name)}
    if not parts.keys() >= {"machine", "10000"}:
        return "## On a GPU\n\nNot run.\n"
    stamp, rows = parts["10000"]["stamp"], parts["10000"]["rows"]
    product, copy = parts["machine"]["rows"]
    median = next(row for row in rows if "median" in row["what"])
    workload = Workload(median["frames"], prompt_tokens=PROMPT_TOKENS, answer_tokens=median["tokens"])
    *_, prefill, _ = vilamp_costs(ViLaMPConfig.released(), workload).stages
    speed = prefill.flops() / median["prefill_seconds"] / 1e12
    read = LANGUAGE.body.weights + LANGUAGE.vocabulary * LANGUAGE.body.width  # the embedding is looked up, not read
    rate = (2 * read + prefill.cache) / median["token_seconds"] / 1e9
    lines = [
        "## On a GPU",
        f"{stamp['gpus'][0]}, torch {stamp['versions']['torch']}; full size, random weights, bfloat16; files of 64×64 "
        "pixels; warm, median of three runs. *Of the machine* compares with its own product of matrices "
        f"({product['tflops']:.0f} TFLOP/s) and copy ({copy['gb_per_second']:,.0f} GB/s), measured in the same run.",
        "| what | measured | to reach | of the machine |\n| --- | ---: | ---: | ---: |\n"
        f"| {median['frames']:,} frames, from file to answer | {median['seconds']:.1f} s | 40 s | |\n"
        f"| prefill of {median['visual_tokens'] + PROMPT_TOKENS:,} tokens | {median['prefill_seconds']:.2f} s | 1.2 s "
        f"| {speed / product['tflops']:.0%} of its products |\n"
        f"| a token of the answer | {1000 * median['token_seconds']:.0f} ms | 30 ms "
        f"| {rate / copy['gb_per_second']:.0%} of its bandwidth |\n"
        f"| peak of what tensors hold | {median['peak_memory'] / 1e9:.1f} GB | 22 GB | |",
    ]
    if "language" in parts:
        table = ["| kernels | tokens at once | first prompt | a further one |", "| --- | ---: | ---: | ---: |"]
        table += [
            f"| {row['kernels']} | {row['chunk']:,} | {row['first_seconds']:.2f} s | {row['seconds']:.2f} s |"
            for row in parts["language"]["rows"]
            if row["what"] == "prefill"
        ]
        lines += [
            "A prompt in pieces, the first one and the median of two further ones. cuDNN makes a plan for each new "
            "length: 32 of them in pieces of 512, one where it is read at once. From then on it is faster:",
            "\n".join(table),
        ]
    if "store" in parts:
        seconds = {row["what"]: row for row in parts["store"]["rows"]}
        first, second = seconds["first question"], seconds["second question"]
        lines.append(
            f"A store of {first['frames']:,} frames ({seconds['size']['bytes'] / 1e9:.1f} GB): encoding "
            f"{seconds['encode into the store']['seconds']:.0f} s, the first question {first['seconds']:.1f} s, a "
            f"further one {second['seconds']:.1f} s, in one run each."
        )
    if "peer" in parts:
        table = ["| frames | tokens | time to the first token | peak |", "| ---: | ---: | ---: | ---: |"]
        table += [
            f"| {row['frames']:,} | {row['tokens']:,} | {row['seconds']:.1f} s | {row['peak_memory'] / 1e9:.1f} GB |"
            for row in parts["peer"]["rows"]
            if "seconds" in row
        ]
        lines += [
            "The same language model with 169 tokens for every frame, read at once and without a file; one run each:",
            "\n".join(table),
        ]
    missing = [name for name in PARTS if name not in parts]
    lines += [f"Not run: {', '.join(missing)}."] if missing else []
    return "\n\n".join(lines) + "\n"


def _is_run(folder: Path, name: str) -> bool:
    file = folder / f"{name}.json"
    return file.is_file() and "error" not in json.loads(file.read_text())


def main() -> int:
    """Run the parts that are not there yet."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all when left out")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, to try the parts themselves")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu", help="a file for each part goes here")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "gpu", help="videos and stores go here")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        print("no GPU that torch can use: nothing was run", file=sys.stderr)
        return 2
    bench = Bench(torch.device(options.device), options.tiny, options.folder)
    settings = {"code": code_fingerprint(), "device": options.device, "tiny": options.tiny}
    failed = False
    for name in options.parts or PARTS:
        file = options.out / f"{name}.json"
        if file.is_file() and json.loads(file.read_text())["parameters"] == settings:
            print(f"{name}: is in {file}", flush=True)
            continue
        part: Row = {"study": f"gpu {name}", "parameters": settings, "rows": [], "stamp": make_stamp(seed=0)}
        start = time.perf_counter()
        try:
            for row in PARTS[name](bench):
                part["rows"].append(row)
                said = {what: value for what, value in row.items() if what not in ("stages", "trace")}
                print(f"{name}: {json.dumps(said)}", flush=True)
                write_json(file.with_suffix(".part"), part)
        except Exception as error:  # whatever it is, the other parts go on
            part["error"] = f"{type(error).__name__}: {error}"[:500]
            failed = True
            print(f"{name}: {part['error']}", file=sys.stderr, flush=True)
        part["seconds"] = time.perf_counter() - start
        write_json(file, part)
        file.with_suffix(".part").unlink(missing_ok=True)
        if bench.on_gpu:
            torch.cuda.empty_cache()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
