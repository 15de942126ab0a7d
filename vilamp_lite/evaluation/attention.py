"""The paper's §3 on TinyWorld: where the answer's attention falls."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from vilamp_lite.common.progress import progress_bar
from vilamp_lite.evaluation.niah import Cell, Examiner, cell_haystacks
from vilamp_lite.evaluation.results import ALL, Row, Study
from vilamp_lite.evaluation.studies import FULL, Exam, Model, make_study, single
from vilamp_lite.merging import merge_frames
from vilamp_lite.modeling import MixedPrecisionSequence, TokenKind, ViLaMPForConditionalGeneration
from vilamp_lite.processing import ViLaMPProcessor
from vilamp_lite.tinyworld.haystack import Haystack

CURVE = np.linspace(0, 1, 101)  # shares of the frames at which attention is added up


def attention_study(
    models: Sequence[Model],
    exam: Exam,
    *,
    variants: Sequence[tuple[str, str]] = (FULL, ("uniform", "dfm")),
    attention_share: float = 0.9,
    frame_share: float = 0.05,
    patch_share: float = 0.8,
) -> Study:
    """§3: what share of the answer's attention falls on what share of the frames and patches, and how alike those are.

    The attention is that of the position which says the answer's first word, averaged over layers and heads, to the
    visual tokens. A keyframe's is the sum over its patches. A uniform selector's keyframes are chosen without the
    question, so that the concentration found with it is the language model's own.

    Args:
        models: directories of TinyWorld models, one.
        exam: lengths of a few hundred frames; attention takes memory with the square.
        variants: pairs of selector and merger.
        attention_share: of the attention on frames, for `frames_needed`.
        frame_share: of the frames that are attended most, for `most_attended`, `cosine_attended` and `cosine_random`.
        patch_share: of the attention on keyframes' patches, for `patches_needed`.

    Returns:
        Rows by variant, length and family, each a mean over questions:
        frames_needed and patches_needed, the smallest shares of frames and of keyframe patches that hold those shares
        of attention; most_attended, the attention on the most attended frames; on_keyframes and on_needles, the
        attention on these; on_video, the visual tokens' part of all attention; cosine_attended and cosine_random, the
        mean cosine between two of the most attended frames, and between two of as many random ones; `curve`, the
        attention on the most attended 0, 1, …, 100 % of the frames. With the merger "dfm" also, of frames that are no
        keyframes and as `merged_patches`: merged_patches_needed, cosine_merged_patches and cosine_all_patches. `low`
        and `high` hold 95 % intervals of the means.
    """
    model = single(models)
    examiner = Examiner(model, exam.seed, exam.pool)
    # Other implementations never hold the weights of attention.
    examiner.model.language_model.set_attn_implementation("eager")
    cells = [cell for variant in variants for cell in exam.cells(*variant)]
    measured: dict[tuple[str, str, int, str], list[tuple[dict[str, float], np.ndarray]]] = {}
    with progress_bar(sum(cell.questions for cell in cells), "questions", "attention") as bar:
        for cell in cells:
            haystacks = cell_haystacks(cell, exam.seed, exam.pool)
            examiner.features.encode(scene for haystack in haystacks for scene in haystack.scenes)
            for number, haystack in enumerate(haystacks):
                random = np.random.default_rng((exam.seed, number))
                found = _measured(examiner, haystack, cell, (attention_share, frame_share, patch_share), random)
                for family in (cell.family, ALL):
                    measured.setdefault((cell.selector, cell.merger, cell.frames, family), []).append(found)
                bar.update(1)
    rows = []
    for selector, merger in variants:
        for frames in exam.frames:
            for family in (*exam.families, ALL):
                values, curves = zip(*measured[selector, merger, frames, family], strict=True)
                about = {"selector": selector, "merger": merger, "frames": frames, "family": family}
                rows.append(about | _means(values) | {"curve": np.mean(curves, axis=0).tolist()})
    shares = {"attention_share": attention_share, "frame_share": frame_share, "patch_share": patch_share}
    return make_study("attention", model, exam, rows, variants=variants, **shares)


@torch.inference_mode()
def answer_attention(
    model: ViLaMPForConditionalGeneration, processor: ViLaMPProcessor, question: str, sequence: MixedPrecisionSequence
) -> torch.Tensor:
    """The attention of the position that says the answer's first word to each of T visual tokens: [layers, heads, T].

    It is less than 1 together for each head, since the prompt's words are attended, too. The language model's attention
    must be "eager".
    """
    prompt = processor.prompts([question])
    output = model(**prompt, video_embeds=[sequence.embeds], output_attentions=True, use_cache=False)
    start = int((prompt["input_ids"][0] == model.config.video_token_id).nonzero()[0, 0])
    last = torch.stack([layer[0, :, -1] for layer in output.attentions])
    return last[..., start : start + len(sequence.embeds)].cpu()


@torch.inference_mode()
def merged_patches(
    model: ViLaMPForConditionalGeneration,
    patches: torch.Tensor,
    query: torch.Tensor,
    sequence: MixedPrecisionSequence,
    attention: torch.Tensor,
    patch_share: float,
) -> dict[str, float]:
    """How the merge weighs the patches of frames that are no keyframes, and how much these resemble their reference's.

    A frame counts by the attention on its merged token.

    Args:
        model: whose merge it is.
        patches: [N, M, D_v].
        query: [query_size].
        sequence: the video; at least one frame is no keyframe.
        attention: [T], of `answer_attention`.
        patch_share: of a frame's weight.

    Returns:
        merged_patches_needed, the smallest share of a frame's patches that hold `patch_share` of its weight;
        cosine_merged_patches, the cosine between a patch and that in the same place of the reference frame, a mean by
        the merge's weights; cosine_all_patches, the same with even weights.
    """
    patches = patches.to(model.device).to(query.dtype)
    reference_of = model.reference_frames(len(patches), sequence.keyframes)
    _, weights = merge_frames(model.merger, model.mergeable(patches), reference_of, query)
    cosines = torch.cosine_similarity(patches, patches[reference_of], dim=-1).cpu().double()
    merged = sequence.kind_of_token == TokenKind.MERGED
    frames, of_frame = sequence.frame_of_token[merged], attention[merged] / attention[merged].sum()
    weights, cosines = weights[frames].cpu().double(), cosines[frames]
    needed = torch.tensor([share_needed(one, patch_share) for one in weights.numpy()], dtype=torch.float64)
    return {
        "merged_patches_needed": float(of_frame @ needed),
        "cosine_merged_patches": float(of_frame @ (weights * cosines).sum(dim=1)),
        "cosine_all_patches": float(of_frame @ cosines.mean(dim=1)),
    }


def share_needed(attention: np.ndarray, share: float) -> float:
    """The smallest share of n items that hold a share of their attention [n] together."""
    most = np.cumsum(np.sort(attention)[::-1]) / attention.sum()
    return float((np.searchsorted(most, share - 1e-9) + 1) / len(attention))


@torch.inference_mode()
def _measured(
    examiner: Examiner, haystack: Haystack, cell: Cell, shares: tuple[float, float, float], random: np.random.Generator
) -> tuple[dict[str, float], np.ndarray]:
    """Everything `attention_study` says about one question: values by name, and the curve."""
    attention_share, frame_share, patch_share = shares
    model, processor, text = examiner.model, examiner.processor, haystack.question.text
    sequence = examiner.sequence(haystack, cell.selector, cell.merger)
    embeds, patches = examiner.features.of(haystack.scenes)
    of_token = answer_attention(model, processor, text, sequence).mean(dim=(0, 1)).double()
    attention = of_token.numpy()
    frame_of_token, kinds = sequence.frame_of_token.numpy(), sequence.kind_of_token.numpy()
    in_frame = frame_of_token >= 0
    of_frame = np.bincount(frame_of_token[in_frame], attention[in_frame], len(embeds))
    of_frame /= of_frame.sum()
    order = np.argsort(-of_frame, kind="stable")
    count = max(2, math.ceil(frame_share * len(of_frame)))
    needles = np.concatenate([np.arange(start, stop) for start, stop in haystack.needle_frames])
    values = {
        "frames_needed": share_needed(of_frame, attention_share),
        "patches_needed": share_needed(attention[kinds == TokenKind.PATCH], patch_share),
        "most_attended": float(of_frame[order[:count]].sum()),
        "on_keyframes": float(of_frame[sequence.keyframes.numpy()].sum()),
        "on_needles": float(of_frame[needles].sum()),
        "on_video": float(attention.sum()),
        "cosine_attended": _mean_cosine(embeds[order[:count]]),
        "cosine_random": _mean_cosine(embeds[random.choice(len(embeds), count, replace=False)]),
    }
    if cell.merger == "dfm":
        query = model.embed_query(**processor.selector_query([text]))[0]
        values |= merged_patches(model, patches, query, sequence, of_token, patch_share)
    reached = np.concatenate([[0], np.cumsum(of_frame[order])])
    return values, np.interp(CURVE, np.linspace(0, 1, len(reached)), reached)


def _mean_cosine(embeds: torch.Tensor) -> float:
    """Between two different ones of the unit vectors [n, D]."""
    count = len(embeds)
    return float((embeds.double().sum(dim=0).square().sum() - count) / (count * (count - 1)))


def _means(measured: Sequence[Mapping[str, float]]) -> Row:
    """Mean over questions, and both ends of its 95 % interval by name."""
    values = pd.DataFrame(measured)
    mean, half = values.mean(), 1.96 * values.sem().fillna(0)  # of one question: no interval
    bounds = {"low": (mean - half).to_dict(), "high": (mean + half).to_dict()}
    return {"questions": len(values)} | mean.to_dict() | bounds
