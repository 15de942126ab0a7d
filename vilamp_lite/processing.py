"""A video and a question into the tensors of `ViLaMPForConditionalGeneration`."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoImageProcessor,
    BatchFeature,
    CLIPImageProcessorPil,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    SiglipImageProcessorPil,
)
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from vilamp_lite.clip import pixels_of, require_vocabulary, text_inputs
from vilamp_lite.common.checks import describe
from vilamp_lite.common.hub import holds_tokenizer, loaded, loaded_tokenizer
from vilamp_lite.configuration import ViLaMPConfig
from vilamp_lite.video.source import stream_frames

Video: TypeAlias = str | PathLike[str] | np.ndarray

# Qwen's chat format, as the released code writes it. The video stands before the question.
PROMPT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",  # then the video
    "\n",  # then the question
    "<|im_end|>\n<|im_start|>assistant\n",
)

SELECTOR_FOLDER = "selector"  # holds the selector's tokenizer and image processor

_PIXELS = {
    "siglip": ([0.5] * 3, [0.5] * 3),
    "clip": (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD),
}

_IMAGE_PROCESSOR_FILE = "preprocessor_config.json"
_FRAMES_AT_ONCE = 32
_BYTE_LEVEL_SPECIALS = ("<|endoftext|>", "<|im_end|>", "<|im_start|>")
_BYTES_END = 257  # <|im_end|>


class ViLaMPProcessor:
    """Videos into pixels for two vision models, and questions into tokens for two text models.

    The language model reads the question in Qwen's chat format (`PROMPT`), the selector the bare question.

    Attributes:
        config: of the model; its K, pooling and context length say how much fits.
        tokenizer: of the language model.
        selector_tokenizer: of the selector's text tower.
        image_processor: makes the vision tower's pixels: a bicubic square, whatever the shape of the frame.
        selector_image_processor: makes the selector's pixels.
    """

    def __init__(
        self,
        config: ViLaMPConfig,
        tokenizer: Any,
        selector_tokenizer: Any,
        image_processor: Any = None,
        selector_image_processor: Any = None,
    ) -> None:
        """Put a processor together.

        Args:
            config: of the model; shared, not copied, so that changes to K count here too.
            tokenizer: of the language model.
            selector_tokenizer: of the selector.
            image_processor: for the vision tower; the released code's when left out (SigLIP and CLIP towers).
            selector_image_processor: for the selector; CLIP's or SigLIP's own when left out.
        """
        self.config = config
        self.tokenizer = tokenizer
        self.selector_tokenizer = selector_tokenizer
        self.image_processor = image_processor or _squashed(config.vision_config)
        self.selector_image_processor = selector_image_processor or _selector_image_processor(config)

    @classmethod
    def byte_level(cls, config: ViLaMPConfig) -> "ViLaMPProcessor":
        """Make a processor whose tokens are bytes, for tiny models with a vocabulary of at least 259."""
        needed = 256 + len(_BYTE_LEVEL_SPECIALS)
        for name, vocabulary in {
            "text_config": config.text_config.vocab_size,
            "selector_config": config.selector_config.text_config.vocab_size,
        }.items():
            if vocabulary < needed:
                raise ValueError(f"bytes need a vocabulary of {needed}, {name} has {vocabulary}")
        # CLIP reads the end token that its configuration names; old ones name 2 in its place.
        named = config.selector_config.text_config.eos_token_id if config.selector_config.model_type == "clip" else 2
        end = _BYTES_END if named == 2 else named
        return cls(config, _byte_tokenizer(), _byte_tokenizer(end))

    @classmethod
    def from_pretrained(
        cls,
        path: str | PathLike[str],
        config: ViLaMPConfig | None = None,
        *,
        tokenizer: str | PathLike[str] | None = None,
        selector_tokenizer: str | PathLike[str] | None = None,
    ) -> "ViLaMPProcessor":
        """Load what `save_pretrained` wrote; a directory without image processors gets the released code's pixels.

        A selector that comes from elsewhere brings its own image processor.

        Args:
            path: the directory.
            config: the model's, to share it; read from the directory when left out.
            tokenizer: a directory or name to take the language model's tokenizer from instead.
            selector_tokenizer: likewise for the selector's, with its image processor if it lies there.
        """
        if config is None:
            if not (Path(path) / "config.json").is_file():
                raise ValueError(f"{path} holds no ViLaMP configuration: there is no config.json in it")
            config = ViLaMPConfig.from_pretrained(path)
        selector = Path(path) / SELECTOR_FOLDER
        whole = (selector / _IMAGE_PROCESSOR_FILE).is_file()
        return cls(
            config,
            _tokenizer(tokenizer or Path(path), "tokenizer", "the language model"),
            _tokenizer(selector_tokenizer or selector, "selector_tokenizer", "the selector"),
            _image_processor(Path(path)) if whole else None,
            _image_processor(selector if whole else Path(selector_tokenizer or selector)),
        )

    def save_pretrained(self, path: str | PathLike[str]) -> None:
        """Write the four parts and the configuration to a directory; the selector's go to a folder of their own."""
        selector = Path(path) / SELECTOR_FOLDER
        for tokenizer in (self.tokenizer, self.selector_tokenizer):
            if tokenizer.is_fast:  # it would write down how its last call padded and cut, which is no part of it
                tokenizer.backend_tokenizer.no_padding()
                tokenizer.backend_tokenizer.no_truncation()
        self.config.save_pretrained(path)
        self.tokenizer.save_pretrained(path)
        self.image_processor.save_pretrained(path)
        self.selector_tokenizer.save_pretrained(selector)
        self.selector_image_processor.save_pretrained(selector)

    def __call__(
        self,
        videos: Video | Sequence[Video],
        text: str | Sequence[str],
        *,
        fps: float | None = None,
        max_frames: int | None = None,
    ) -> BatchFeature:
        """Turn videos and their questions into the inputs of `forward` and `generate`.

        All frames' pixels are held in memory; for long files see `ViLaMPForConditionalGeneration.encode_video`.

        Args:
            videos: a file or frames (uint8 [N, H, W, 3]) for one question, or a list of them for a list.
            text: a question, or a list of questions.
            fps: frames sampled per second of a file; the configuration's when left out.
            max_frames: the most frames to sample of a file, spread over it.

        Returns:
            `input_ids`, `attention_mask` (padded on the left), `pixel_values_videos`, `selector_pixel_values`,
            `query_input_ids`, `query_attention_mask` where the selector takes one, and `video_num_frames`.

        Raises:
            ValueError: numbers of videos and questions differ, frames of another form, or too long a sequence.
            VideoError: a file can't be read.
        """
        single = isinstance(text, str)
        questions, videos = ([text], [videos]) if single else (list(text), list(videos))
        if len(questions) != len(videos) or not questions:
            raise ValueError(f"each question needs a video: got {len(questions)} questions and {len(videos)} videos")
        prompts = self.prompts(questions)
        pixels = []
        for video, mask in zip(videos, prompts["attention_mask"], strict=True):
            pixels.append(self._pixels(video, int(mask.sum()), fps, max_frames))
        vision, selector = zip(*pixels, strict=True)
        return BatchFeature(
            {
                **prompts,
                "pixel_values_videos": torch.cat(vision),
                "selector_pixel_values": torch.cat(selector),
                **self.selector_query(questions),
                "video_num_frames": torch.tensor([len(frames) for frames in vision]),
            }
        )

    def prompts(self, questions: list[str]) -> dict[str, torch.Tensor]:
        """Write questions in the chat format, with `config.video_token_id` where the video goes.

        They are `input_ids` and `attention_mask`, int64 [B, L], padded on the left.
        """
        rows = []
        for question in questions:
            if not isinstance(question, str) or not question.strip():
                raise ValueError(f"a question must be a non-empty string, got {describe(question)}")
            before, after = (self._ids(part) for part in PROMPT[1:])
            # The question is the user's: whatever it says, it is text, not a marker of the chat or a video's place.
            asked = self._ids(question, split_special_tokens=True)
            ids = torch.tensor([*self._ids(PROMPT[0]), self.config.video_token_id, *before, *asked, *after])
            require_vocabulary("tokenizer", ids, self.config.text_config.vocab_size)
            if self.config.video_token_id in asked:
                raise ValueError(f"the question holds the token that stands for the video: {question!r}")
            rows.append(ids)
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0
        sequence = torch.nn.utils.rnn.pad_sequence
        return {
            "input_ids": sequence(rows, batch_first=True, padding_value=pad, padding_side="left"),
            "attention_mask": sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left"),
        }

    def selector_query(self, queries: list[str]) -> dict[str, torch.Tensor]:
        """Tokenise bare questions for the selector; one that is too long for it is cut, with a warning.

        They are `query_input_ids` [B, L] and, unless the selector is a SigLIP, `query_attention_mask` [B, L].
        """
        inputs = text_inputs(queries, self.selector_tokenizer, self.config.selector_config, "selector_tokenizer")
        return {f"query_{name}": tensor for name, tensor in inputs.items()}

    def vision_pixels(self, frames: np.ndarray, device: torch.device | None = None) -> torch.Tensor:
        """Turn frames, uint8 [B, H, W, 3], into the vision tower's pixels, float32 [B, 3, h, w].

        A model on a GPU names its device: the pixels are made there, within a grey level of the CPU's.
        """
        return pixels_of(frames, self.image_processor, self.config.vision_config.image_size, device)

    def selector_pixels(self, frames: np.ndarray, device: torch.device | None = None) -> torch.Tensor:
        """Turn frames, uint8 [B, H, W, 3], into the selector's pixels, float32 [B, 3, h, w]; as `vision_pixels`."""
        side = self.config.selector_config.vision_config.image_size
        return pixels_of(frames, self.selector_image_processor, side, device)

    def batch_decode(self, token_ids: torch.Tensor) -> list[str]:
        """Turn the tokens that `generate` returns, [B, L], into texts."""
        return self.tokenizer.batch_decode(token_ids, skip_special_tokens=True)

    def _ids(self, text: str, **options: bool) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, **options)["input_ids"]

    def _pixels(
        self, video: Video, text_tokens: int, fps: float | None, max_frames: int | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both kinds of pixels of a whole video."""
        if isinstance(video, np.ndarray):
            self.config.require_room(len(video), text_tokens - 1)
            return self.vision_pixels(video), self.selector_pixels(video)
        if not isinstance(video, str | PathLike):
            raise ValueError(f"a video is a path or a uint8 array [N, H, W, 3], got {describe(video)}")
        stream = stream_frames(
            video,
            fps=self.config.fps if fps is None else fps,
            max_frames=max_frames,
            batch_size=_FRAMES_AT_ONCE,
        )
        self.config.require_room(stream.num_frames, text_tokens - 1)
        batches = [(self.vision_pixels(batch.frames), self.selector_pixels(batch.frames)) for batch in stream]
        vision, selector = zip(*batches, strict=True)
        return torch.cat(vision), torch.cat(selector)


def _tokenizer(name_or_path: str | PathLike[str], option: str, whose: str) -> PreTrainedTokenizerBase:
    if isinstance(name_or_path, Path) and not holds_tokenizer(name_or_path):
        flag = f"--{option.replace('_', '-')}"
        raise ValueError(f"{name_or_path} holds no tokenizer for {whose}; name one with {option} ({flag})")
    return loaded_tokenizer(name_or_path, remedy=f"it should be {whose}'s, see {option}")


def _image_processor(folder: Path) -> Any:
    """A folder's image processor, or None if it holds none."""
    if not (folder / _IMAGE_PROCESSOR_FILE).is_file():
        return None
    return loaded(AutoImageProcessor, folder, backend="pil")


def _squashed(vision: PreTrainedConfig) -> SiglipImageProcessorPil:
    """The released code's: the whole frame squashed to a square, bicubic, with the tower's own mean and deviation."""
    known = [values for name, values in _PIXELS.items() if vision.model_type.startswith(name)]
    if not known:
        raise ValueError(f"the pixels of a {vision.model_type} are not known here: pass an image_processor")
    mean, std = known[0]
    size = {"height": vision.image_size, "width": vision.image_size}
    return SiglipImageProcessorPil(size=size, image_mean=mean, image_std=std)


def _selector_image_processor(config: ViLaMPConfig) -> Any:
    """CLIP's or SigLIP's own."""
    kind, vision = config.selector_config.model_type, config.selector_config.vision_config
    if kind.startswith("siglip"):
        return _squashed(vision)
    if not kind.startswith("clip"):
        raise ValueError(f"the pixels of a {kind} are not known here: pass a selector_image_processor")
    square = {"height": vision.image_size, "width": vision.image_size}
    return CLIPImageProcessorPil(size={"shortest_edge": vision.image_size}, crop_size=square)


def _byte_tokenizer(end: int | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer without merges; with `end`, this token follows each text, as a CLIP text tower expects."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: number for number, symbol in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(_BYTE_LEVEL_SPECIALS))
    if end is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"$A {_BYTE_LEVEL_SPECIALS[1]}", special_tokens=[(_BYTE_LEVEL_SPECIALS[1], end)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=_BYTE_LEVEL_SPECIALS[0], eos_token=_BYTE_LEVEL_SPECIALS[1]
    )
