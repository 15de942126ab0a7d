"""ViLaMP beside its peers: tables of costs by frames."""

from collections.abc import Iterable
from typing import Any

from vilamp_lite.common.checks import choice
from vilamp_lite.costs.peers import PEER_MODELS
from vilamp_lite.costs.shapes import GPUS, Gpu, Workload
from vilamp_lite.costs.stages import DECODE_RATE, UTILISATION, Costs, CostStage
from vilamp_lite.costs.vilamp import answering, connector_flops, released_code_costs, vilamp_costs


def peer_costs(name: str, workload: Workload) -> Costs:
    """What a peer costs if it is given N frames, whether or not its own files go so far.

    Frames pass through its towers a few at a time and only tokens are kept, as frugally as ViLaMP does it here. The
    work of merging or resampling tokens is left out, and so are connectors whose form is not known here.

    Args:
        name: in `PEER_MODELS`.
        workload: what is asked.
    """
    peer = PEER_MODELS[choice("peer", name, tuple(PEER_MODELS))]
    frames, size = workload.num_frames, workload.bytes
    kept = min(frames, peer.max_kept or frames)
    visual_tokens = kept * peer.tokens_per_frame
    tokens_made = size * visual_tokens * peer.language.body.width
    batch = min(frames, workload.batch_size)
    linear = square = 0
    # The last tower sees all frames: where frames are dropped, it is by what that tower makes of them.
    for tower, seen in zip(peer.towers, [kept] * (len(peer.towers) - 1) + [frames], strict=True):
        parts = tower.flops(seen)
        linear, square = linear + parts[0], square + parts[1]
    names = " and ".join(tower.name for tower in peer.towers)
    seeing = CostStage(
        "vision tower",
        f"{names} on {frames:,} frames" + (f", {kept} kept" if kept < frames else ""),
        linear,
        square,
        square,
        size * max(tower.activations(batch) for tower in peer.towers) + tokens_made,
    )
    connecting = CostStage(
        "connectors",
        f"an MLP on {peer.connector_inputs} vectors of each frame" if peer.connector else "left out: form not known",
        kept * peer.connector_inputs * connector_flops(peer.connector),
        activations=size * batch * peer.connector_inputs * sum(peer.connector) + tokens_made,
    )
    parameters = peer.language.weights + sum(tower.weights for tower in peer.towers)
    parameters += connector_flops(peer.connector) // 2
    return Costs(
        peer.title,
        workload,
        visual_tokens,
        peer.context,
        parameters,
        size * parameters,
        (seeing, connecting, *answering(peer.language, visual_tokens, workload)),
    )


MODELS = ("vilamp", "vilamp-released", "released-code", *PEER_MODELS)


def model_costs(name: str, workload: Workload, num_keyframes: int | None = None) -> Costs:
    """What a model of `MODELS` costs.

    Args:
        name: "vilamp" (`ViLaMPConfig.paper()`), "vilamp-released" (`ViLaMPConfig.released()`), both streaming as this
            package does; "released-code", which holds all frames at once; or a peer's.
        workload: what is asked.
        num_keyframes: K' of the first three, for a peer has none; min(N, 32) when left out.
    """
    if choice("model", name, MODELS) in PEER_MODELS:
        if num_keyframes is not None:
            raise ValueError(f"{name} has no keyframes: leave out their number")
        return peer_costs(name, workload)
    from vilamp_lite.configuration import ViLaMPConfig  # loads torch, as transformers' configurations do

    if name == "released-code":
        return released_code_costs(workload, num_keyframes)
    config = ViLaMPConfig.paper() if name == "vilamp" else ViLaMPConfig.released()
    return vilamp_costs(config, workload, num_keyframes)


def costs_by_frames(
    models: Iterable[str],
    frames: Iterable[int],
    gpu: Gpu = GPUS["a100-80gb"],
    *,
    utilisation: float = UTILISATION,
    decode_rate: float = DECODE_RATE,
    **workload: Any,
) -> list[dict[str, Any]]:
    """Tabulate models by frames, the counterpart of the paper's Fig. 1 and Table 5.

    Args:
        models: names in `MODELS`.
        frames: values of N.
        gpu: for what fits, and for the time.
        utilisation: as in `Costs.schedule`.
        decode_rate: as in `Costs.schedule`.
        workload: further fields of `Workload`.

    Returns:
        A row for each model and N: model, frames, visual_tokens, FLOPs to the first token (`flops_square`,
        `flops_causal`) and of its prefill alone (`prefill_square`, `prefill_causal`), bytes (weights, kv_cache,
        activations, memory), `fits`, `seconds_to_first_token`, `documented` (whether the model's own files speak of so
        many frames; None where they name no number).
    """
    rows = []
    frames = list(frames)
    # The paper speaks of 10,000 frames; the released evaluation reads at most 600.
    limits = {"vilamp": 10_000, "vilamp-released": 10_000, "released-code": 600}
    for name in models:
        limit = PEER_MODELS[name].documented_frames if name in PEER_MODELS else limits.get(name)
        for number in frames:
            costs = model_costs(name, Workload(number, **workload))
            prefill = next(stage for stage in costs.stages if stage.name == "prefill")
            there = costs.on(gpu, utilisation=utilisation, decode_rate=decode_rate)
            rows.append(
                {
                    "model": costs.model,
                    "frames": number,
                    "visual_tokens": costs.visual_tokens,
                    "flops_square": costs.flops("square"),
                    "flops_causal": costs.flops("causal"),
                    "prefill_square": prefill.flops("square"),
                    "prefill_causal": prefill.flops("causal"),
                    "weights": costs.weights,
                    "kv_cache": costs.kv_cache,
                    "activations": costs.peak_activations,
                    "memory": costs.peak_memory,
                    "fits": there["fits"],
                    "seconds_to_first_token": there["seconds_to_first_token"],
                    "documented": None if limit is None else number <= limit,
                }
            )
    return rows
