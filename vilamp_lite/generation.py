"""From a prompt with a video in its place to an answer."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedConfig
from transformers.generation import BaseStreamer

from vilamp_lite.additions import attention_factor, position_step
from vilamp_lite.common.checks import describe, float_tensor
from vilamp_lite.common.hub import IGNORED
from vilamp_lite.common.progress import progress_bar

if TYPE_CHECKING:
    from vilamp_lite.modeling import MixedPrecisionSequence, ViLaMPForConditionalGeneration
    from vilamp_lite.processing import ViLaMPProcessor

TOKENS_AT_ONCE = 512  # of a prompt on a CPU; their activations are all that the language model holds beside its cache
_FEWEST_ON_GPU = 4096

# What to do about numbers that are too large for a type, or were so when the weights were saved.
_AGAIN = "if that does not help, copy or download the checkpoint again"
_REMEDIES = {
    "float16": f"its numbers end at 65,504: try --dtype bfloat16 or float32; {_AGAIN}",
    "bfloat16": f"try --dtype float32; {_AGAIN}",
}

# The arguments of `forward` that bring videos.
_VIDEO_INPUTS = (
    "video_embeds",
    "pixel_values_videos",
    "selector_pixel_values",
    "query_input_ids",
    "query_attention_mask",
    "video_num_frames",
)


class PlacedPrompts(NamedTuple):
    """Prompts with their videos in place, padded on the left.

    Attributes:
        inputs_embeds: [B, S, D].
        attention_mask: [B, S], 0 for padding.
        position_ids: [B, S], 0 for padding; whole numbers if every token takes one position.
        labels: [B, S], or None.
    """

    inputs_embeds: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor
    labels: torch.Tensor | None


class LanguageGenerationConfig(GenerationConfig):
    """Generation settings from the language model's configuration: ViLaMP's `temperature` is the merge's."""

    @classmethod
    def from_model_config(cls, model_config: PreTrainedConfig) -> GenerationConfig:
        """Take the language model's part."""
        return GenerationConfig.from_model_config(model_config.get_text_config())


class VideoGeneration:
    """The part of the model that reads prompts with videos in place, and generates."""

    def place_videos(
        self,
        input_ids: torch.Tensor,
        video_embeds: list[torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        video_steps: Sequence[float] | None = None,
    ) -> PlacedPrompts:
        """Put each video's tokens in the place of its prompt's video token, and pad on the left.

        Args:
            input_ids: [B, L], one `config.video_token_id` in each row.
            video_embeds: B tensors [T, D].
            attention_mask: [B, L], 0 for padding on either side.
            labels: [B, L]; the video's tokens get −100.
            video_steps: B, how far each token of a video moves the position; `position_step` when left out.
        """
        input_ids = input_ids.to(self.device)
        if len(video_embeds) != len(input_ids):
            raise ValueError(f"{len(input_ids)} prompts need as many videos, got {len(video_embeds)}")
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(self.device)
        embed = self.get_input_embeddings()
        shape = (embed.weight.shape[1],)
        for name, value in {"attention_mask": attention_mask, "labels": labels}.items():
            if value is not None and value.shape != input_ids.shape:
                raise ValueError(f"{name} must have input_ids' shape {tuple(input_ids.shape)}, got {describe(value)}")
        for video in video_embeds:
            if not torch.is_tensor(video) or video.shape[1:] != shape or video.ndim != 2:
                raise ValueError(f"video_embeds must be tensors [T, {shape[0]}], got {describe(video)}")
        if video_steps is None and self.config.video_positions is not None:
            video_steps = [position_step(self.config, len(video)) for video in video_embeds]
        rows, positions, targets = [], [], []
        for row, (ids, mask, video) in enumerate(zip(input_ids, attention_mask, video_embeds, strict=True)):
            ids = ids[mask.bool()]
            at = (ids == self.config.video_token_id).nonzero()[:, 0].tolist()
            if len(at) != 1:
                raise ValueError(
                    f"prompt {row} must hold one video token ({self.config.video_token_id}), got {len(at)}"
                )
            before, after = ids[: at[0]], ids[at[0] + 1 :]
            video = video.to(embed.weight)
            rows.append(torch.cat([embed(before), video, embed(after)]))
            moves = torch.ones(len(rows[-1]), dtype=torch.long, device=self.device)
            if video_steps is not None:
                moves = moves.float()
                moves[at[0] : at[0] + len(video)] = video_steps[row]
            positions.append(moves.cumsum(0) - moves[0])
            if labels is not None:
                own = labels[row].to(self.device)[mask.bool()]
                ignored = own.new_full((len(video),), IGNORED)
                targets.append(torch.cat([own[: at[0]], ignored, own[at[0] + 1 :]]))
        longest, context = max(map(len, rows)), getattr(self.config.text_config, "max_position_embeddings", None)
        if context is not None and longest > context:
            raise ValueError(
                f"{longest:,} tokens of prompt and video do not fit the language model's {context:,}: sample fewer "
                "frames, choose fewer keyframes, or shorten the prompt"
            )
        mask = [torch.ones(len(row), dtype=torch.long, device=self.device) for row in rows]
        targets = _pad_left(targets, IGNORED) if targets else None
        return PlacedPrompts(_pad_left(rows, 0), _pad_left(mask, 0), _pad_left(positions, 0), targets)

    @torch.no_grad()
    def generate(self, input_ids: torch.Tensor | None = None, **options: Any) -> torch.Tensor:
        """Answer: encode the videos once, then generate with any of transformers' strategies.

        Args:
            input_ids: [B, L], one `config.video_token_id` in each row.
            options: `attention_mask` and the videos, as in `forward`; and those of `GenerationMixin.generate`, such as
                `max_new_tokens`, `do_sample`, `num_beams`, or `prefill_chunk_size`, the tokens read at a time
                (`tokens_at_once` when left out; it changes the logits only by rounding).

        The answers come alone, [B, new tokens], without their prompts.
        """
        if input_ids is None:
            raise ValueError("generate needs input_ids")
        if options.get("use_cache") is False:
            raise ValueError("generate reads a video once and keeps it in the cache: leave out use_cache=False")
        inputs = {name: options.pop(name, None) for name in ("attention_mask", *_VIDEO_INPUTS)}
        inputs_embeds, attention_mask, position_ids, _ = self._read(input_ids, labels=None, **inputs)
        with without_cudnn_attention():
            return super().generate(
                inputs_embeds=inputs_embeds, attention_mask=attention_mask, position_ids=position_ids, **options
            )

    @wraps(GenerationMixin.prepare_inputs_for_generation)  # transformers asks its signature what it takes
    def prepare_inputs_for_generation(self, *inputs: Any, **options: Any) -> dict[str, Any]:
        """Leave out a mask without padding: it says nothing, and on a GPU a token takes a sixth longer with it."""
        prepared = super().prepare_inputs_for_generation(*inputs, **options)
        return prepared | {"attention_mask": _only_with_padding(prepared.get("attention_mask"))}

    def _prefill(
        self,
        input_ids: torch.Tensor,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        is_first_iteration: bool = True,
    ) -> Any:
        """Read a prompt in chunks, so that activations don't grow with it; transformers then reads the last one.

        Its own chunks are of input_ids; a prompt with a video in place has none.
        """
        embeds, cache = model_kwargs.get("inputs_embeds"), model_kwargs.get("past_key_values")
        if is_first_iteration and embeds is not None and cache is not None:
            length = embeds.shape[1]
            chunk = generation_config.prefill_chunk_size or tokens_at_once(self.config.text_config, embeds)
            mask, positions = _only_with_padding(model_kwargs.get("attention_mask")), model_kwargs["position_ids"]
            # Every chunk's attention is scaled as if all were read at once.
            starts = range(0, length - chunk, chunk)
            sharpened = attention_factor(self.config, length)
            with progress_bar(chunk * len(starts), "tokens", "prefill") as bar:
                for start in starts:
                    stop = start + chunk
                    self.language_model(
                        inputs_embeds=embeds[:, start:stop],
                        attention_mask=None if mask is None else mask[:, :stop],
                        position_ids=positions[:, start:stop],
                        past_key_values=cache,
                        use_cache=True,
                        logits_to_keep=1,
                        **sharpened,
                    )
                    bar.update(chunk)
        rest = copy(generation_config)
        rest.prefill_chunk_size = None
        read = super()._prefill(input_ids, rest, model_kwargs, is_first_iteration)
        _require_finite(self.language_model, read.logits)
        return read

    def adjust_generation_fn(self, *args: Any, **options: Any) -> None:
        """Load the generation settings that were saved; without any, take the language model's, not ViLaMP's."""
        super().adjust_generation_fn(*args, **options)
        if self.generation_config._from_model_config:
            self.generation_config = self.generation_config_class.from_model_config(self.config)

    def _read(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        labels: torch.Tensor | None,
        *,
        video_embeds: list[torch.Tensor] | None,
        pixel_values_videos: torch.Tensor | None,
        **pixel_inputs: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Turn prompts into what `PlacedPrompts` lists, with their videos in place, if there are any."""
        if pixel_values_videos is not None:
            if video_embeds is not None:
                raise ValueError("pass videos as pixel_values_videos or as video_embeds, not as both")
            video_embeds = self._encode_batch(pixel_values_videos, **pixel_inputs)
        elif given := [name for name, value in pixel_inputs.items() if value is not None]:
            raise ValueError(f"{', '.join(given)} came without pixel_values_videos: pass both, or neither")
        if video_embeds is not None:
            return self.place_videos(input_ids, video_embeds, attention_mask, labels)
        if (input_ids == self.config.video_token_id).any():
            raise ValueError("input_ids hold a video token, but no video came with them")
        return self.get_input_embeddings()(input_ids.to(self.device)), attention_mask, None, labels

    def _encode_batch(
        self,
        pixel_values_videos: torch.Tensor,
        selector_pixel_values: torch.Tensor | None,
        query_input_ids: torch.Tensor | None,
        query_attention_mask: torch.Tensor | None,
        video_num_frames: torch.Tensor | None,
    ) -> list[torch.Tensor]:
        """Encode a batch's videos, frames of all of them on axis 0."""
        for name, value in {
            "selector_pixel_values": selector_pixel_values,
            "query_input_ids": query_input_ids,
        }.items():
            if value is None:
                raise ValueError(f"pixel_values_videos need {name} too: keyframes are chosen by the query")
        vision = float_tensor("pixel_values_videos", pixel_values_videos, 4)
        selector = float_tensor("selector_pixel_values", selector_pixel_values, 4)
        total = len(vision)
        if len(selector) != total:
            raise ValueError(
                f"pixel_values_videos and selector_pixel_values must hold the same frames, got {total} and "
                f"{len(selector)}"
            )
        counts = [total] if video_num_frames is None else torch.as_tensor(video_num_frames).flatten().tolist()
        if sum(counts) != total or min(counts) < 1 or len(counts) != len(query_input_ids):
            raise ValueError(
                f"video_num_frames must name the frames of each of {len(query_input_ids)} videos, {total} together, "
                f"got {counts}"
            )
        query_embeds = self.embed_query(query_input_ids, query_attention_mask)
        videos = zip(vision.split(counts), selector.split(counts), query_embeds, strict=True)
        return [self.encode_frames(*video).embeds for video in videos]


@dataclass(frozen=True, eq=False)
class Answer:
    """What a model says.

    Attributes:
        text: without special tokens and outer spaces.
        tokens: [n] int64.
    """

    text: str
    tokens: torch.Tensor


@torch.no_grad()
def answer(
    model: "ViLaMPForConditionalGeneration",
    processor: "ViLaMPProcessor",
    prompt: str,
    sequence: "MixedPrecisionSequence",
    *,
    max_new_tokens: int,
    streamer: BaseStreamer | None = None,
    prefill_chunk_size: int | None = None,
) -> Answer:
    """Answer a question about a video that is already a sequence, greedily.

    Args:
        model: in evaluation mode.
        processor: its processor.
        prompt: the question, and whatever else stands beside the video.
        sequence: the video, such as `encode_video` makes.
        max_new_tokens: the longest answer.
        streamer: is given each token as it comes.
        prefill_chunk_size: as in `generate`.

    Raises:
        ValueError: logits that are not finite, at any token; `generate` looks at the first.
    """
    tokens = model.generate(
        **processor.prompts([prompt]),
        video_embeds=[sequence.embeds],
        max_new_tokens=max_new_tokens,
        do_sample=False,
        streamer=streamer,
        prefill_chunk_size=prefill_chunk_size,
        logits_processor=[lambda _, logits: _require_finite(model.language_model, logits)],
    )
    return Answer(processor.batch_decode(tokens)[0].strip(), tokens[0])


def _require_finite(language_model: nn.Module, logits: torch.Tensor) -> torch.Tensor:
    """Refuse logits of which a token would be chosen that means nothing, and say what to do."""
    if logits.isfinite().all():
        return logits
    dtype = str(language_model.dtype).removeprefix("torch.")
    bad = next((name for name, value in language_model.named_parameters() if not value.isfinite().all()), None)
    cause = f": {bad} of the language model holds NaN or infinity" if bad else ""
    remedy = _REMEDIES.get(dtype, "copy or download the checkpoint again")
    raise ValueError(f"the logits are not finite in {dtype}{cause}; {remedy}")


def tokens_at_once(text_config: PreTrainedConfig, embeds: torch.Tensor) -> int:
    """Tokens of prompts [B, S, D] that the language model reads together.

    On a GPU all of them, if half of the free memory holds what a layer makes of them; otherwise as many as it holds,
    but at least 4,096: every piece after the first needs a mask, which the fastest kernels don't take.
    """
    if embeds.device.type != "cuda":
        return TOKENS_AT_ONCE
    free = torch.cuda.mem_get_info(embeds.device)[0]
    free += torch.cuda.memory_reserved(embeds.device) - torch.cuda.memory_allocated(embeds.device)
    # As costs count: inputs of stack and layer, what attention made, its norm; the MLP's gate, values and product.
    numbers = 4 * text_config.hidden_size + 3 * text_config.intermediate_size
    return max(free // 2 // (numbers * len(embeds) * embeds.element_size()), _FEWEST_ON_GPU)


@contextmanager
def without_cudnn_attention() -> Iterator[None]:
    """Compute attention with PyTorch's other kernels.

    cuDNN makes a new plan for every number of keys: on an H100 a first prompt of 16,323 tokens took 4.2 s in pieces of
    512, and a further one 0.9 s. Without it these are 1.4 s and 1.2 s, or 0.6 s both when it is read at once.
    """
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def _only_with_padding(attention_mask: torch.Tensor | None) -> torch.Tensor | None:
    """None in place of a mask [B, S] that hides nothing."""
    says_nothing = attention_mask is None or (attention_mask.ndim == 2 and bool(attention_mask.all()))
    return None if says_nothing else attention_mask


def _pad_left(rows: list[torch.Tensor], value: float) -> torch.Tensor:
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value, padding_side="left")
