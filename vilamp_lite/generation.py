"""From a prompt with a video in its place to an answer."""

from vilamp_lite.modeling import MixedPrecisionSequence, ViLaMPForConditionalGeneration
from vilamp_lite.processing import ViLaMPProcessor


def answer(
    model: ViLaMPForConditionalGeneration,
    processor: ViLaMPProcessor,
    prompt: str,
    sequence: MixedPrecisionSequence,
    max_new_tokens: int,
    prefill_chunk_size: int | None = None,
) -> str:
    """Let a model answer a question about a video that is already a sequence.

    Args:
        model: in evaluation mode.
        processor: its processor.
        prompt: with one video.
        sequence: the video.
        max_new_tokens: of the answer.
        prefill_chunk_size: as in `model.generate`.
    """
    tokens = model.generate(
        **processor.prompts([prompt]),
        video_embeds=[sequence.embeds],
        max_new_tokens=max_new_tokens,
        do_sample=False,
        prefill_chunk_size=prefill_chunk_size,
    )
    return processor.batch_decode(tokens)[0].strip()
