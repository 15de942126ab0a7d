"""Stages of an answer and what they cost together."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from vilamp_lite.common.checks import choice, finite_number
from vilamp_lite.costs.shapes import ATTENTION, Gpu, Workload

# Sampled frames a second in one pass: about what PyAV gives on two CPU cores for 640×360 H.264 at 30 frames a second of
# which one is sampled. It hangs on the file and the machine: measure yours.
DECODE_RATE = 100.0
UTILISATION = 0.4
_OF_BANDWIDTH = 0.5  # single tokens reach half as much of the peak as products do: 0.2 of an H100's, as measured


@dataclass(frozen=True)
class CostStage:
    """What one stage of a model costs.

    Attributes:
        name: of the stage.
        counts: what its figures count, in words.
        linear: FLOPs of products with weights, and in the merge of cosines and weighted sums.
        square: FLOPs of attention over all pairs of tokens.
        causal: FLOPs of attention over the pairs that a causal mask leaves.
        activations: bytes held at the stage's peak, besides weights and cache: its own, and the video's tokens.
        cache: bytes of the KV cache at its end.
        single: whether it computes in float32 whatever the weights' type.
    """

    name: str
    counts: str
    linear: int = 0
    square: int = 0
    causal: int = 0
    activations: int = 0
    cache: int = 0
    single: bool = False

    def flops(self, attention: str = "causal") -> int:
        """All its FLOPs, with attention as a "square", "causal", or "none" of it."""
        choice("attention", attention, ATTENTION)
        return self.linear + {"square": self.square, "causal": self.causal, "none": 0}[attention]


@dataclass(frozen=True)
class Costs:
    """What a model costs for a workload.

    Attributes:
        model: its name.
        workload: what is asked of it.
        visual_tokens: that the language model reads.
        context: tokens that the language model takes; None where it is not known.
        parameters: in matrices and embeddings.
        weights: bytes of them.
        stages: in order; encoding, "prefill" and "decode".
        passes: how often the video is decoded.
    """

    model: str
    workload: Workload
    visual_tokens: int
    context: int | None
    parameters: int
    weights: int
    stages: tuple[CostStage, ...]
    passes: int = 1

    @property
    def tokens(self) -> int:
        """Of the video, the prompt and the answer."""
        return self.visual_tokens + self.workload.prompt_tokens + self.workload.answer_tokens

    @property
    def kv_cache(self) -> int:
        """Bytes of the KV cache when the answer is complete."""
        return self.stages[-1].cache

    @property
    def peak_activations(self) -> int:
        """Bytes of activations in the stage that holds the most."""
        return max(stage.activations for stage in self.stages)

    @property
    def peak_memory(self) -> int:
        """Bytes in the stage that needs the most: weights, cache and activations."""
        return max(map(self.memory, self.stages))

    def memory(self, stage: CostStage) -> int:
        """Bytes while a stage runs: all weights, the cache and its activations."""
        return self.weights + stage.cache + stage.activations

    def flops(self, attention: str = "causal", *, without: Iterable[str] = ("decode",)) -> int:
        """FLOPs up to the first token, or of all stages but those named."""
        return sum(stage.flops(attention) for stage in self.stages if stage.name not in without)

    def schedule(
        self, gpu: Gpu, *, utilisation: float = UTILISATION, decode_rate: float = DECODE_RATE
    ) -> list[dict[str, Any]]:
        """Go through the stages on a GPU: what each costs, whether it fits, and how long it takes by estimate.

        Args:
            gpu: one of `GPUS`, or your own.
            utilisation: the part of the GPU's peak FLOP/s that is reached, from above 0 to 1; of its bandwidth half of
                that.
            decode_rate: frames sampled per second in one pass of video decoding.

        Returns:
            A row for each stage, "video decoding" first: stage, counts, `flops_linear`, `flops_attention_square`,
            `flops_attention_causal`, `memory` in bytes, `fits`, `seconds`.
        """
        if finite_number("utilisation", utilisation, above=0) > 1:
            raise ValueError(f"utilisation is a part of the peak, at most 1, got {utilisation}")
        finite_number("decode_rate", decode_rate, above=0)
        seconds = self.passes * self.workload.num_frames / decode_rate
        words = f"{self.passes} × the file on the CPU, at {decode_rate:g} sampled frames/s; resizing left out"
        rows = [self._row(CostStage("video decoding", words), self.weights, gpu, seconds)]
        for stage in self.stages:
            single = stage.single or self.workload.dtype == "float32"
            seconds = stage.flops() / (gpu.single if single else gpu.half)
            if stage.name == "decode":
                # Each token reads all weights of the language model and the cache so far, for few FLOPs.
                seconds = max(seconds, self._decode_bytes / (_OF_BANDWIDTH * gpu.bandwidth))
            rows.append(self._row(stage, self.memory(stage), gpu, seconds / utilisation))
        return rows

    def on(self, gpu: Gpu, *, utilisation: float = UTILISATION, decode_rate: float = DECODE_RATE) -> dict[str, Any]:
        """All that is to say of a run on a GPU: tokens, bytes, whether they fit, and the stages of `schedule`.

        Args:
            gpu: as in `schedule`.
            utilisation: as in `schedule`.
            decode_rate: as in `schedule`.
        """
        stages = self.schedule(gpu, utilisation=utilisation, decode_rate=decode_rate)
        return {
            "model": self.model,
            "gpu": asdict(gpu),
            "workload": asdict(self.workload),
            "utilisation": utilisation,
            "decode_rate": decode_rate,
            "visual_tokens": self.visual_tokens,
            "tokens": self.tokens,
            "context": self.context,
            "fits_context": None if self.context is None else self.tokens <= self.context,
            "weights": self.weights,
            "kv_cache": self.kv_cache,
            "peak_activations": self.peak_activations,
            "peak_memory": self.peak_memory,
            "fits": self.peak_memory <= gpu.memory,
            "seconds": sum(stage["seconds"] for stage in stages),
            "seconds_to_first_token": sum(stage["seconds"] for stage in stages if stage["stage"] != "decode"),
            "stages": stages,
        }

    @property
    def _decode_bytes(self) -> int:
        """Read from memory while decoding; at most, since the cache only ends up so large."""
        steps = self.workload.answer_tokens - 1
        # FLOPs per step are two for each weight that is read.
        return self.stages[-1].linear // 2 * self.workload.bytes + steps * self.kv_cache

    @staticmethod
    def _row(stage: CostStage, memory: int, gpu: Gpu, seconds: float) -> dict[str, Any]:
        return {
            "stage": stage.name,
            "counts": stage.counts,
            "flops_linear": stage.linear,
            "flops_attention_square": stage.square,
            "flops_attention_causal": stage.causal,
            "memory": memory,
            "fits": memory <= gpu.memory,
            "seconds": seconds,
        }
