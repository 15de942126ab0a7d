"""ViLaMP's FLOPs counted by torch on the meta device: what the closed forms are held against."""

from dataclasses import dataclass, replace

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from vilamp_lite.configuration import ViLaMPConfig
from vilamp_lite.costs.shapes import Workload
from vilamp_lite.modeling import ViLaMPForConditionalGeneration


@dataclass(frozen=True)
class Counted:
    """FLOPs of one stage as torch's counter finds them; the fields are those of `Stage`."""

    linear: int
    square: int = 0
    causal: int = 0


@torch.no_grad()
def count_flops(config: ViLaMPConfig, workload: Workload, num_keyframes: int | None = None) -> dict[str, Counted]:
    """Count ViLaMP's FLOPs instead of computing them: the model itself runs, on the meta device, under torch's counter.

    On that device there are shapes and no numbers: all frames pass in one batch, keyframes stand at equal distances.
    torch counts attention as a square, whatever the mask. What a causal kernel does is counted by reading the tokens
    one by one: the i-th attends to i, so that the sum over all positions follows from the first and the last.
    """
    visual_tokens = config.visual_tokens(workload.num_frames, num_keyframes)
    with torch.device("meta"):
        model = ViLaMPForConditionalGeneration(config).eval()
    vision, selector = config.vision_config.image_size, config.selector_config.vision_config.image_size
    frames = workload.num_frames
    chosen = num_keyframes or min(frames, config.max_keyframes)
    keyframes = torch.arange(chosen) * frames // chosen
    query_tokens = config.selector_config.text_config.max_position_embeddings

    with _counter() as selecting:
        model.embed_frames(_meta(frames, 3, selector, selector))
        query = model.embed_query(_meta(1, query_tokens).long())[0]
    with _counter() as seeing:
        patches = model.patch_features(_meta(frames, 3, vision, vision))
    with _counter() as mixing:
        model.mix_tokens([patches], frames, keyframes, query)

    tokens, steps = visual_tokens + workload.prompt_tokens, workload.answer_tokens - 1
    with _counter() as prefill:
        _read(model, tokens)
    first, last = (_step(model, position) for position in (1, tokens))
    connectors = sum(mixing.get_flop_counts()["Connector"].values())
    counted = {
        "selector": _split(selecting),
        "vision tower": _split(seeing),
        "merging": Counted(mixing.get_total_flops() - connectors),
        "connectors": Counted(connectors),
        "prefill": replace(_split(prefill), causal=tokens * (first.square + last.square) // 2),
        "decode": Counted(0),
    }
    if steps:
        first, last = (_step(model, position) for position in (tokens + 1, tokens + steps))
        attention = steps * (first.square + last.square) // 2
        counted["decode"] = Counted(steps * first.linear, attention, attention)
    return counted


def _counter() -> FlopCounterMode:
    return FlopCounterMode(display=False)


def _meta(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, device="meta")


def _split(counter: FlopCounterMode) -> Counted:
    """Tell attention from other products: it alone multiplies batches of matrices, none of them weights."""
    by_kind = counter.get_flop_counts()["Global"]
    attention = by_kind.get(torch.ops.aten.bmm, 0)
    if not attention:
        raise RuntimeError("torch's counter saw no attention: its kernel is one that the counter does not know")
    return Counted(counter.get_total_flops() - attention, attention, attention)


def _read(model: ViLaMPForConditionalGeneration, tokens: int, cache: DynamicCache | None = None) -> None:
    """Let the language model read so many tokens after those in the cache."""
    model.language_model(
        inputs_embeds=_meta(1, tokens, model.config.text_config.hidden_size),
        past_key_values=cache,
        # Without a cache the positions would be looked at, which tensors without numbers do not bear.
        use_cache=True,
        logits_to_keep=1,
    )


def _step(model: ViLaMPForConditionalGeneration, position: int) -> Counted:
    """Count one token that attends to `position` tokens, itself included."""
    text = model.config.text_config
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    cache = DynamicCache(config=text)
    for layer in range(text.num_hidden_layers):
        past = _meta(1, text.num_key_value_heads, position - 1, size)
        cache.update(past, past, layer)
    with _counter() as counter:
        _read(model, 1, cache)
    return _split(counter)
