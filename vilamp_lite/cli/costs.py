"""`vilamp costs`: what a long video costs, by formula."""

from typing import Annotated, Any

from typer import Context, Option

from vilamp_lite.cli.options import AsJson, Dtype
from vilamp_lite.cli.shown import show, table
from vilamp_lite.common import choice
from vilamp_lite.costs import GPUS, LEFT_OUT, PEER_MODELS, Workload, model_costs, table_5


def costs(
    context: Context,
    frames: Annotated[int, Option(help="N, frames of the video that are sampled.")] = 10_000,
    gpu: Annotated[str, Option(help=f"One of {', '.join(GPUS)}.")] = "a100-80gb",
    model: Annotated[
        str,
        Option(
            help="vilamp, vilamp-released (both streaming), released-code (all frames at once), or a peer: "
            f"{', '.join(PEER_MODELS)}."
        ),
    ] = "vilamp",
    keyframes: Annotated[int | None, Option(help="K, keyframes chosen.", show_default="32, or N if fewer")] = None,
    prompt_tokens: Annotated[int, Option(help="Tokens of the text around the video.")] = 64,
    answer_tokens: Annotated[int, Option(help="Tokens of the answer.")] = 128,
    dtype: Annotated[Dtype, Option(help="The type of weights, activations and cache.")] = "bfloat16",
    batch_size: Annotated[int, Option(help="Frames in a vision tower at a time.")] = 8,
    utilisation: Annotated[float, Option(help="Part of the GPU's peak that is reached, above 0 to 1.")] = 0.4,
    decode_rate: Annotated[float, Option(help="Frames sampled per second in one pass of decoding.")] = 100.0,
    as_paper: Annotated[
        bool,
        Option(
            "--as-paper",
            help="Print the paper's Table 5 for ViLaMP beside FLOPs counted its way; takes --frames alone.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say what a long video costs, stage by stage: tokens, FLOPs, memory, what fits, and estimated seconds.

    Nothing runs: the figures follow from the models' shapes and the GPU's data sheet.
    """
    if as_paper:
        others = context.params.keys() - {"frames", "as_paper", "as_json"}
        if given := sorted(name for name in others if context.get_parameter_source(name).name != "DEFAULT"):
            options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise ValueError(f"--as-paper is Table 5's own ViLaMP, which {options} can't change: leave it out")
        rows = table_5(frames)
        shown = [
            {
                "frames": f"{row['frames']:,}",
                "here": row["tflops"],
                "in the paper": row["paper"],
                "apart, %": row["apart_percent"],
            }
            for row in rows
        ]
        show(as_json, {"rows": rows, "notes": LEFT_OUT}, table("TFLOPs of ViLaMP, as in Table 5", shown), *LEFT_OUT)
        return
    card = GPUS[choice("--gpu", gpu, tuple(GPUS))]
    workload = Workload(frames, prompt_tokens, answer_tokens, dtype, batch_size)
    result = model_costs(model, workload, keyframes).on(card, utilisation=utilisation, decode_rate=decode_rate)
    rows = [
        {
            "stage": stage["stage"],
            "linear\nTFLOP": stage["flops_linear"] / 1e12 or None,
            "attention,\nsquare": stage["flops_attention_square"] / 1e12 or None,
            "attention,\ncausal": stage["flops_attention_causal"] / 1e12 or None,
            "memory\nGB": stage["memory"] / 1e9,
            "fits": stage["fits"],
            "time\ns": stage["seconds"],
        }
        for stage in result["stages"]
    ]
    show(as_json, result, table(f"{result['model']}, {frames:,} frames, {card.name}", rows), *_notes(result))


def _notes(result: dict[str, Any]) -> list[str]:
    """What the table does not say."""
    workload, context = result["workload"], result["context"]
    room = "" if context is None else f" of a context of {context:,}"
    if context is not None and not result["fits_context"]:
        room += ": does NOT fit"
    gb = {name: f"{result[name] / 1e9:,.1f} GB" for name in ("weights", "kv_cache", "peak_activations", "peak_memory")}
    return [
        *(f"{stage['stage']}: {stage['counts']}" for stage in result["stages"]),
        f"tokens: {result['visual_tokens']:,} visual, {workload['prompt_tokens']} of the prompt, "
        f"{workload['answer_tokens']} of the answer; {result['tokens']:,}{room}",
        f"memory: {gb['weights']} weights, {gb['kv_cache']} KV cache, {gb['peak_activations']} activations at most; "
        f"peak {gb['peak_memory']} of {result['gpu']['memory'] / 1e9:g} GB ({workload['dtype']}): "
        f"{'fits' if result['fits'] else 'does NOT fit'}",
        f"time: {result['seconds_to_first_token']:,.0f} s to the first token, {result['seconds']:,.0f} s in all; an "
        f"estimate at {result['utilisation']:g} of the GPU's peak, stages one after the other",
        "FLOPs are 2 × multiply-adds; norms, activations and softmax are left out. Square: all pairs of tokens; "
        "causal: those that the mask leaves, and what the time is from.",
        "Memory is what tensors hold: all weights at every stage, no allocator's reserve, no kernel's workspace. 1 GB "
        "is 10⁹ bytes.",
    ]
