"""ViLaMP assembled: frames → keyframes and merged tokens, in temporal order → language model.

    selector   embeds every frame and the query; `select_keyframes` chooses the keyframes          (Level 1, DKS)
    vision     makes M patches of every frame
    merger     makes one token of every other frame, against its reference keyframe                (Level 2, DFM)
    connectors carry keyframe patches and merged tokens into the language model's space
    language   reads both in temporal order, in the place of the prompt's video token

The model has no algorithm of its own. Selection is in `keyframes.py`, merging in `merging.py`. The two passes over a
file are in `streaming/encode.py`, prompts and answers in `generation.py`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    GenerationMixin,
    PreTrainedModel,
    initialization,
)
from transformers.activations import ACT2FN
from transformers.modeling_outputs import ModelOutput
from transformers.utils import can_return_tuple

from vilamp_lite.additions import KeyframeBlock, attention_factor, let_attention_sharpen
from vilamp_lite.common.checks import describe
from vilamp_lite.common.hub import IGNORED
from vilamp_lite.common.precision import full_precision
from vilamp_lite.configuration import ViLaMPConfig
from vilamp_lite.generation import LanguageGenerationConfig, VideoGeneration
from vilamp_lite.keyframes import KeyframeSelection, select_keyframes
from vilamp_lite.merging import DifferentialMerger, frame_numbers, pool_patches, preceding_keyframe
from vilamp_lite.released import released_reference, straight_through_gate
from vilamp_lite.streaming.encode import KeptRows, VideoEncoding, frames_at_once

_REFERENCES = {"preceding": preceding_keyframe, "released": released_reference}
# A merge takes features and mapped references [B, M, D] and returns tokens [B, D]; it returns [0, D] when it drops
# frames.
Merge: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class TokenKind(IntEnum):
    """What a visual token is made of."""

    MERGED = 0  # a whole frame
    PATCH = 1  # one patch of a keyframe
    NEWLINE = 2  # the learned vector at the end of the video


@dataclass(frozen=True, eq=False)
class MixedPrecisionSequence:
    """A video as the language model reads it: keyframes in patches, every other frame as one token.

    Attributes:
        embeds: [T, D] in the language model's space, T = `config.visual_tokens(N, K')`.
        keyframes: [K'] int64 frame numbers in temporal order.
        frame_of_token: [T] int64, the frame of each token; −1 for the newline.
        kind_of_token: [T] int64, a `TokenKind` each.
        timestamps: float64 [N], seconds of each frame; None where the frames came without.
    """

    embeds: torch.Tensor
    keyframes: torch.Tensor
    frame_of_token: torch.Tensor
    kind_of_token: torch.Tensor
    timestamps: np.ndarray | None = None


@dataclass
class ViLaMPOutput(ModelOutput):
    """What `forward` returns.

    Attributes:
        loss: mean next-token loss over the supervised positions, if labels were given.
        logits: [B, n, vocabulary] of the last n = `logits_to_keep` positions.
        past_key_values: the language model's cache.
        hidden_states, attentions: the language model's, if asked for.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Any = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class Connector(nn.Sequential):
    """A 2-layer MLP from the vision tower's space into the language model's (paper: MLP_k and MLP_n)."""

    def __init__(self, config: ViLaMPConfig) -> None:
        """Build it for the sizes and activation of `config`."""
        hidden = config.text_config.hidden_size
        super().__init__(
            nn.Linear(config.vision_config.hidden_size, hidden),
            ACT2FN[config.projector_hidden_act],
            nn.Linear(hidden, hidden),
        )


def differential_merger(config: ViLaMPConfig) -> DifferentialMerger:
    """Build the merger that a configuration describes."""
    return DifferentialMerger(
        config.merge_size,
        config.query_size,
        config.merge_relevance,
        config.merge_redundancy,
        redundancy_weight=config.redundancy_weight,
        temperature=config.temperature,
    )


class ViLaMPPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation, as in every transformers model."""

    config: ViLaMPConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("video", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # A keyframe is chosen by thresholds, which half precision's rounding crosses; a selector is small.
    _keep_in_fp32_modules_strict = ("selector",)
    _skip_keys_device_placement = ("past_key_values",)
    generation_config_class = LanguageGenerationConfig
    # A trainer must not hand over its own count of items: the loss is a mean.
    accepts_loss_kwargs = False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, DifferentialMerger):
            initialization.constant_(module.temperature, self.config.temperature)
        elif isinstance(module, ViLaMPForConditionalGeneration) and module.video_newline is not None:
            initialization.normal_(module.video_newline, std=self.config.text_config.hidden_size**-0.5)


class ViLaMPForConditionalGeneration(VideoEncoding, VideoGeneration, ViLaMPPreTrainedModel, GenerationMixin):
    """ViLaMP: a video and a question in, an answer out.

    `forward` and `generate` take pixels, or videos that `encode_video` has turned into tokens. Each prompt holds one
    `config.video_token_id`, whose place the video's tokens take; their number depends on the selection.

    Attributes:
        selector: embeds frames and queries in one space.
        vision_tower: makes patches of frames.
        merger: makes one token of a frame's patches.
        keyframe_connector: MLP_k, for keyframe patches.
        keyframe_block: lets a keyframe's patches see each other; None without `config.keyframe_block`.
        merged_connector: MLP_n, for merged tokens; the same module with `connectors="shared"`.
        video_newline: [D], ends the video; None without `config.video_newline`.
        language_model: any causal language model.
    """

    def __init__(self, config: ViLaMPConfig) -> None:
        """Build the parts with random weights."""
        super().__init__(config)
        self.selector = AutoModel.from_config(config.selector_config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.merger = differential_merger(config)
        self.keyframe_connector = Connector(config)
        self.own_merged_connector = Connector(config) if config.connectors == "dual" else None
        self.keyframe_block = KeyframeBlock(config) if config.keyframe_block else None
        hidden = config.text_config.hidden_size
        self.video_newline = nn.Parameter(torch.randn(hidden) * hidden**-0.5) if config.video_newline else None
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        if config.attention_log_base and not let_attention_sharpen(self.language_model):
            raise ValueError(f"attention_log_base can't be used with a {config.text_config.model_type}")
        if config.video_positions and getattr(config.text_config, "rope_parameters", None) is None:
            raise ValueError(
                f"video_positions can't be used with a {config.text_config.model_type}: it rotates nothing"
            )
        self.post_init()

    @property
    def merged_connector(self) -> Connector:
        """MLP_n, for merged tokens; MLP_k itself where one connector serves both."""
        return self.own_merged_connector or self.keyframe_connector

    def get_input_embeddings(self) -> nn.Module:
        """Return the language model's token embeddings."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's token embeddings."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """Return the language model's head."""
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's head."""
        self.language_model.set_output_embeddings(value)

    # --- Level 1: keyframes ------------------------------------------------------------------------------------------

    def embed_frames(self, selector_pixel_values: torch.Tensor) -> torch.Tensor:
        """Embed frames [B, 3, h, w] in the selector's space, [B, query_size], not normalised."""
        with full_precision(self.device):
            return _features(self.selector.get_image_features(_onto(selector_pixel_values, self.selector)))

    def embed_query(
        self, query_input_ids: torch.Tensor, query_attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Embed queries [B, L] in the selector's space, [B, query_size], not normalised."""
        mask = None if query_attention_mask is None else query_attention_mask.to(self.device)
        with full_precision(self.device):
            return _features(self.selector.get_text_features(query_input_ids.to(self.device), attention_mask=mask))

    def select(self, frame_embeds: torch.Tensor, query_embed: torch.Tensor) -> KeyframeSelection:
        """Choose keyframes among [N, query_size] for a query [query_size] with the configured K, τ, floor and filling.

        Raises:
            ValueError: no frame reaches the relevance floor, or as `select_keyframes`.
        """
        config = self.config
        selection = select_keyframes(
            frame_embeds,
            query_embed,
            max_keyframes=config.max_keyframes,
            similarity_threshold=config.similarity_threshold,
            relevance_threshold=config.relevance_threshold,
            fill=config.fill,
        )
        if not len(selection.indices):
            raise ValueError(
                f"no frame is a keyframe: the most relevant has R_f = {selection.relevance.max():.3f}, below "
                f"relevance_threshold = {config.relevance_threshold}; lower it, or set fill='gaps'"
            )
        return selection

    # --- Level 2: patches and merged tokens --------------------------------------------------------------------------

    def patch_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Turn frames [B, 3, H, W] into patches [B, M, D_v]: the vision tower's hidden states, without class tokens."""
        layer = self.config.vision_feature_layer
        # A list in place of True: only that layer's states are kept.
        output = self.vision_tower(_onto(pixel_values, self.vision_tower), output_hidden_states=[layer])
        states = output.hidden_states[layer]
        if states.ndim != 3 or len(states) != len(pixel_values) or states.shape[1] < self.config.num_patches:
            raise ValueError(
                f"a vision tower must give {self.config.num_patches} patches for each of {len(pixel_values)} frames, "
                f"got states of shape {tuple(states.shape)} from a {self.config.vision_config.model_type}"
            )
        return states[:, -self.config.num_patches :]

    def onto_tower(self, patches: torch.Tensor) -> torch.Tensor:
        """Bring stored patches to the type and place that `patch_features` gives."""
        return _onto(patches, self.vision_tower)

    def reference_frames(self, num_frames: int, keyframes: torch.Tensor) -> torch.Tensor:
        """Say which frame each of N frames is compared with, [N], as `config.reference` and `before_first` have it."""
        return _REFERENCES[self.config.reference](num_frames, keyframes, self.config.before_first)

    def mix_tokens(
        self,
        patch_batches: Iterable[torch.Tensor],
        num_frames: int,
        keyframes: torch.Tensor,
        query_embed: torch.Tensor,
        read_ahead: Mapping[int, torch.Tensor] | None = None,
        merge: Merge | None = None,
    ) -> MixedPrecisionSequence:
        """Build a video's mixed-precision sequence from its patches, in temporal order and one batch at a time.

        Held at any time are one batch with its references, the mapped patches of the reference frames still in use (one
        with the paper's reference, up to K with the released one), and the tokens made so far. Gradients flow.

        Args:
            patch_batches: the N frames' patches in order, [B, M, D_v] each.
            num_frames: N.
            keyframes: [K'] int64 frame numbers.
            query_embed: [query_size].
            read_ahead: patches [M, D_v] of frames that frames of earlier batches refer to (`early_references`).
            merge: what makes tokens of the other frames; the model's own differential merge when left out.

        Raises:
            ValueError: the batches hold more or fewer than N frames, or `read_ahead` lacks a frame.
        """
        keyframes = frame_numbers("keyframes", keyframes, num_frames)
        compared_with = self.reference_frames(num_frames, keyframes).tolist()
        is_keyframe = torch.zeros(num_frames, dtype=torch.bool).index_fill_(0, keyframes, True)
        last_use = {compared_with[frame]: frame for frame in (~is_keyframe).nonzero()[:, 0].tolist()}
        references = {
            frame: self.merger.map_reference(self.mergeable(patches)) for frame, patches in (read_ahead or {}).items()
        }
        merge = merge or self.merge_for(query_embed)
        tokens = KeptRows(int(torch.where(is_keyframe, self.config.tokens_per_keyframe, 1).sum()))
        frame_of_token = []
        stop = 0
        for patches in filter(len, patch_batches):
            start, stop = stop, stop + len(patches)
            if stop > num_frames:
                break
            features = self.mergeable(patches)
            for frame in last_use.keys() & set(range(start, stop)) - references.keys():
                references[frame] = self.merger.map_reference(features[frame - start])
            keys, others = ((is_keyframe[start:stop] == kind).nonzero()[:, 0] for kind in (True, False))
            kept = [self.keyframe_tokens(patches[keys])] if len(keys) else []
            if len(others):
                try:
                    reference = torch.stack([references[compared_with[start + n]] for n in others.tolist()])
                except KeyError as frame:
                    raise ValueError(f"read_ahead must hold frame {frame}, which earlier frames refer to") from None
                merged = merge(features[others], reference)
                if merged.ndim != 2 or len(merged) not in (0, len(others)):
                    raise ValueError(f"merge must return one token for each of {len(others)} frames, or none at all")
                others = others[: len(merged)]
                kept.append(self.merged_connector(merged) if self.config.merge_before_projection else merged)
            frames = torch.cat([keys.repeat_interleave(self.config.tokens_per_keyframe), others])
            order = frames.argsort(stable=True)
            tokens.add(torch.cat(kept)[order])
            frame_of_token.append(start + frames[order])
            references = {frame: mapped for frame, mapped in references.items() if last_use.get(frame, -1) >= stop}
        if stop != num_frames:
            raise ValueError(
                f"patch_batches must hold {num_frames} frames, got {'more' if stop > num_frames else stop}"
            )
        return self.sequence(tokens.rows, is_keyframe, torch.cat(frame_of_token))

    def merge_for(self, query_embed: torch.Tensor) -> Merge:
        """The model's own differential merge under a query [query_size]."""
        query = self.merger.map_query(query_embed.to(self.keyframe_connector[0].weight.dtype))
        return lambda features, reference: self.merger.merge(features, reference, query)[0]

    def early_references(self, num_frames: int, keyframes: torch.Tensor) -> list[int]:
        """Name the frames that frames before them refer to: the first keyframe, unless it is the first frame."""
        reference_of = self.reference_frames(num_frames, keyframes)
        return sorted(set(reference_of[reference_of > torch.arange(num_frames)].tolist()))

    def mergeable(self, patches: torch.Tensor) -> torch.Tensor:
        """The features that are merged: patches before or after their connector, [..., D]."""
        return patches if self.config.merge_before_projection else self.merged_connector(patches)

    def keyframe_tokens(self, patches: torch.Tensor) -> torch.Tensor:
        """The tokens that keyframes keep: [B, M, D_v] to [B · tokens_per_keyframe, D]."""
        tokens = self.keyframe_connector(patches)
        if self.config.keyframe_pooling == "bilinear":
            tokens = pool_patches(tokens)
        if self.keyframe_block is not None:
            tokens = self.keyframe_block(tokens)
        return tokens.flatten(0, 1)

    def sequence(
        self, embeds: torch.Tensor, is_keyframe: torch.Tensor, frame_of_token: torch.Tensor
    ) -> MixedPrecisionSequence:
        """Name the frame and kind of each token [T, D] of N frames, and end with the newline if there is one."""
        kind_of_token = is_keyframe.long()[frame_of_token]
        if self.video_newline is not None:
            embeds = torch.cat([embeds, self.video_newline[None]])
            frame_of_token = F.pad(frame_of_token, (0, 1), value=-1)
            kind_of_token = F.pad(kind_of_token, (0, 1), value=int(TokenKind.NEWLINE))
        return MixedPrecisionSequence(embeds, is_keyframe.nonzero()[:, 0], frame_of_token, kind_of_token)

    # --- A video as tokens -------------------------------------------------------------------------------------------

    def encode_frames(
        self, pixel_values_videos: torch.Tensor, selector_pixel_values: torch.Tensor, query_embed: torch.Tensor
    ) -> MixedPrecisionSequence:
        """Turn one video's frames, all in memory, into its mixed-precision sequence; gradients flow.

        The pixels are [N, 3, H, W] for the vision tower and [N, 3, h, w] for the selector.
        """
        at_once = frames_at_once(self.config)
        frame_embeds = torch.cat([self.embed_frames(pixels) for pixels in selector_pixel_values.split(at_once)])
        if self.config.relevance_gate:
            relevance = F.cosine_similarity(frame_embeds, query_embed[None])
            gate = straight_through_gate(relevance)[:, None, None, None]
            pixels = _onto(pixel_values_videos, self.vision_tower)
            pixel_values_videos = pixels * gate.to(pixels)
        batches = (self.patch_features(pixels) for pixels in pixel_values_videos.split(at_once))
        return self.distill(
            frame_embeds,
            batches,
            lambda frame: self.patch_features(pixel_values_videos[frame : frame + 1])[0],
            query_embed,
        )

    # --- Language model ----------------------------------------------------------------------------------------------

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        selector_pixel_values: torch.Tensor | None = None,
        query_input_ids: torch.Tensor | None = None,
        query_attention_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        video_num_frames: torch.Tensor | None = None,
        video_embeds: list[torch.Tensor] | None = None,
        inputs_embeds: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 1,
        **options: Any,
    ) -> ViLaMPOutput:
        """Read prompts with their videos; return the last logits, and the loss if there are labels.

        Without pixels and video_embeds the prompt is plain text.

        Args:
            input_ids: [B, L], one `config.video_token_id` in each row.
            pixel_values_videos: [ΣN, 3, H, W], the frames of all videos in order, for the vision tower.
            selector_pixel_values: [ΣN, 3, h, w], the same frames for the selector.
            query_input_ids: [B, L_q], for the selector.
            query_attention_mask: [B, L_q].
            attention_mask: [B, L], 0 for padding on either side.
            labels: [B, L], −100 where the next token is not supervised.
            video_num_frames: [B], frames of each video; left out for one video.
            video_embeds: B tensors [T, D] in place of pixels, such as `encode_video` makes.
            inputs_embeds: [B, S, D] in place of all of the above.
            position_ids: [B, S]; when left out counted from the attention mask, a video's as configured.
            past_key_values: the language model's cache.
            use_cache: whether to return one.
            logits_to_keep: how many last positions get logits; 0 for all (at 10,000 frames, 16,241 × vocabulary).
            options: passed to the language model, such as `output_attentions`.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass either input_ids or inputs_embeds")
        if not isinstance(logits_to_keep, int) or logits_to_keep < 0:
            raise ValueError(f"logits_to_keep must be a number of positions, 0 for all, got {describe(logits_to_keep)}")
        videos = {
            "video_embeds": video_embeds,
            "pixel_values_videos": pixel_values_videos,
            "selector_pixel_values": selector_pixel_values,
            "query_input_ids": query_input_ids,
            "query_attention_mask": query_attention_mask,
            "video_num_frames": video_num_frames,
        }
        if inputs_embeds is None:
            inputs_embeds, attention_mask, positions, labels = self._read(input_ids, attention_mask, labels, **videos)
            position_ids = positions if position_ids is None else position_ids
        elif given := [name for name, value in videos.items() if value is not None]:
            raise ValueError(f"inputs_embeds have their videos in place: leave out {', '.join(given)}")
        length = inputs_embeds.shape[1]
        if position_ids is None and attention_mask is not None and attention_mask.ndim == 2:
            position_ids = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)[:, -length:]

        kept = torch.arange(length - min(logits_to_keep or length, length), length)
        supervised = torch.empty(0, dtype=torch.long)
        if labels is not None:
            # Only positions whose next token is supervised need logits.
            supervised = (labels[:, 1:] != IGNORED).any(dim=0).nonzero()[:, 0].cpu()
            if not len(supervised):
                raise ValueError("labels supervise no token: all are -100, or only the first is not")
        needed = torch.cat([kept, supervised]).unique()
        read = past_key_values.get_seq_length() if self.config.attention_log_base and past_key_values is not None else 0
        output = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            logits_to_keep=needed.to(inputs_embeds.device),
            **attention_factor(self.config, read + length),
            **options,
        )
        loss = None
        if labels is not None:
            predicted = output.logits[:, torch.searchsorted(needed, supervised)].flatten(0, 1).float()
            targets = labels[:, supervised + 1].flatten().to(predicted.device)
            loss = F.cross_entropy(predicted, targets, ignore_index=IGNORED)
        logits = output.logits[:, torch.searchsorted(needed, kept)]
        cache = getattr(output, "past_key_values", None)  # a recurrent model has another kind
        return ViLaMPOutput(loss, logits, cache, output.hidden_states, getattr(output, "attentions", None))


def _onto(pixels: torch.Tensor, model: PreTrainedModel) -> torch.Tensor:
    """Pixels in the type and on the device of the model that reads them."""
    return pixels.to(model.device, model.dtype)


def _features(output: Any) -> torch.Tensor:
    """Unwrap what a CLIP's `get_*_features` return: an output, TinyWorld's the tensor itself."""
    return output if torch.is_tensor(output) else output.pooler_output


AutoModel.register(ViLaMPConfig, ViLaMPForConditionalGeneration)
