"""Bundle a trained miniature: its weights into data/vilamp-miniature, and a model card from the recorded results.

    vilamp train miniature --seed 0
    python data/make_miniature.py
    make studies
    python data/make_miniature.py --card

The first call copies runs/train/full-seed0/model; with --card only README.md is written, from figures/results.
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

from vilamp_lite.common.files import written_whole
from vilamp_lite.common.stamp import ROOT, short_commit
from vilamp_lite.evaluation.report import difference_text, find, not_best, variant_name
from vilamp_lite.evaluation.results import RESULTS, load_result
from vilamp_lite.evaluation.studies import ALL
from vilamp_lite.plots.studies import shown_name
from vilamp_lite.tinyworld import MINIATURE
from vilamp_lite.tinyworld.encoder import vocabulary
from vilamp_lite.tinyworld.miniature import miniature_config
from vilamp_lite.tinyworld.questions import FAMILIES
from vilamp_lite.tinyworld.render import COLORS, SHAPES, SIDE
from vilamp_lite.training.miniature import Recipe
from vilamp_lite.training.mixed import LENGTHS

LIMIT = 12e6  # bytes
FAMILY_NAMES = (*FAMILIES, ALL)


def bundle(trained: Path, target: Path) -> int:
    """Copy a trained model in the place of the bundled one; return its size in bytes.

    Raises:
        ValueError: there is no model, or it is larger than 12 MB.
    """
    if not (trained / "config.json").is_file():
        raise ValueError(f"there is no model in {trained}: `vilamp train miniature` makes it")
    size = sum(file.stat().st_size for file in trained.rglob("*") if file.is_file())
    if size > LIMIT:
        raise ValueError(f"{trained} has {size / 1e6:.1f} MB, more than {LIMIT / 1e6:.0f}")
    card = target / "README.md"
    kept = card.read_text() if card.is_file() else None
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(trained, target)
    if kept is not None:
        with written_whole(card) as waiting:
            waiting.write_text(kept)
    for file in target.rglob("*"):
        file.chmod(0o755 if file.is_dir() else 0o644)
    return size


def card(results: Path = RESULTS) -> str:
    """The model card; every number comes from `figures/results` and the recipe.

    Raises:
        ValueError: a result that was not recorded.
    """
    seeds, long, ablation = (load_result(name, results) for name in ("seeds", "seeds_10000", "ablation"))
    retrained = load_result("retrained", results)
    again = find(retrained["rows"], family=ALL)
    frames, questions = seeds["parameters"]["frames"][0], seeds["rows"][0]["questions"]
    recipe = Recipe()
    stages = "\n".join(
        f"| {stage.name} | {stage.steps:,} | {stage.batch_size} | {stage.learning_rate:g} |"
        for stage in (recipe.contrastive, recipe.alignment, recipe.grounding, recipe.mixed)
    )
    return CARD.format(
        stages=stages,
        num_random=recipe.num_random,
        num_pairs=recipe.num_pairs,
        frames=frames,
        questions=questions,
        count=len(seeds["parameters"]["models"]),
        seeds=_seeds_table(seeds["rows"], seeds["parameters"]["variants"]),
        not_best="\n".join(f"- {sentence}" for sentence in not_best(seeds["rows"], _name)) or "It is best on all.",
        own=_own_table(ablation["rows"]),
        bundled=again["first_accuracy"],
        again=again["second_accuracy"],
        again_questions=again["questions"],
        difference=difference_text(again),
        long=_seeds_table(long["rows"], long["parameters"]["variants"]),
        long_questions=long["rows"][0]["questions"],
        commit=short_commit(seeds["stamp"]),
        own_commit=short_commit(ablation["stamp"]),
        again_commit=short_commit(retrained["stamp"]),
        long_commit=short_commit(long["stamp"]),
        families=_families_table(),
        words=sum(word.isalpha() for word in vocabulary()),
        tokens=len(vocabulary()),
        config=miniature_config(),
        longest=max(tokens for _, tokens in LENGTHS),
        side=SIDE,
        shapes=len(SHAPES),
        colors=len(COLORS),
    )


def _name(row: dict[str, Any]) -> str:
    return shown_name(variant_name(row))


def _header(first: str) -> list[str]:
    return [f"| {first} | {' | '.join(FAMILY_NAMES)} |", "|---" * (len(FAMILY_NAMES) + 1) + "|"]


def _seeds_table(rows: list[dict[str, Any]], variants: list[list[str]]) -> str:
    lines = _header("mean ± spread")
    for selector, merger in variants:
        own = [find(rows, selector=selector, merger=merger, family=family) for family in FAMILY_NAMES]
        cells = " | ".join(f"{row['mean']:.2f} ± {row['spread']:.2f}" for row in own)
        lines.append(f"| {shown_name(f'{selector} + {merger}')} | {cells} |")
    return "\n".join(lines)


def _own_table(rows: list[dict[str, Any]]) -> str:
    lines = _header("seed 0 (95 % interval)")
    own = [find(rows, selector="dks", merger="dfm", family=family) for family in FAMILY_NAMES]
    cells = " | ".join(f"{row['accuracy']:.2f} ({row['low']:.2f}–{row['high']:.2f})" for row in own)
    return "\n".join([*lines, f"| DKS + DFM | {cells} |"])


def _families_table() -> str:
    lines = ["| family | asks, such as | chance | what it separates |", "|---|---|---|---|"]
    for name, family in FAMILIES.items():
        asked, why = (text.format(shape="star") for text in (family.text, family.separates))
        lines.append(f"| {name} | {asked} | 1/{len(family.options('star'))} | {why} |")
    return "\n".join(lines)


CARD = """# The miniature: a ViLaMP for TinyWorld

The miniature is a small ViLaMP (arXiv 2504.02438) that makes the method's claims testable on a laptop. It was trained
from nothing on TinyWorld, a synthetic world of coloured shapes. It answers five families of questions about TinyWorld
videos and knows nothing else. Apache-2.0.

    vilamp tinyworld --frames 2048 --depth 0.5 --family companion --seed 7 --out needle.mp4
    vilamp ask needle.mp4 "what is with the heart?"

In a clone of the repository write `.venv/bin/vilamp`, or activate `.venv` first.

`model.safetensors` holds the whole model, `selector/` its dual encoder by itself, and `qformer/` the Q-Former that
notebook 08 compares with. All weights are float32.

## How it was made

`vilamp train miniature --seed 0` trained it, and `python data/make_miniature.py` bundled it. We took seed 0 and did
not pick the best of several seeds. The data are {num_random:,} rendered scenes of three to five things and
{num_pairs:,} of two. No scene of the examination is among them.

| stage | steps | examples per step | learning rate |
|---|---|---|---|
{stages}

## Where it departs from the paper

- **Labels.** The contrastive stage and the alignment learn what each patch shows. The alignment also learns what is
  beside a thing in frames of two, and the grounding learns where the thing asked for is. The renderer knows all this;
  the paper's training has no such labels.
- **Early answers.** In the alignment and the mixed stage the end of a question is trained to name the answer already.
- **A keyframe block.** One layer of attention works among a keyframe's {config.num_patches} patches before the language
  model.
- **Attention scaled with length.** Logits are multiplied by log L / log {config.attention_log_base}.
- **Interpolated positions.** A video takes at most {config.video_positions} positions. The mixed stage also trains with
  other numbers.
- **No pooling.** A keyframe keeps all its patches, where the paper pools 729 to 196. K is {config.max_keyframes}, and
  the merge's temperature starts at {config.temperature}.
- **Own encoder and language model.** Both were trained here; no weights of SigLIP, CLIP or Qwen2 are in it.

Notebook 08 shows the model without each addition.

## Measured accuracy

There are five families of questions:

{families}

The questions are about scenes that training never met, with needles at five depths. DKS + DFM is the full method.
"Uniform" and "top-K" choose keyframes otherwise; "mean" and "drop" treat the other frames otherwise.

At {frames:,} frames, {count} seeds of stages 2 to 4, {questions} questions of each family and seed, mean ± standard
deviation between seeds (commit {commit}):

{seeds}

Where another variant's mean is ahead, the paired difference is the full method minus that variant, for each seed:

{not_best}

The bundled model by itself (commit {own_commit}):

{own}

We trained once more from nothing with the same command and asked both models {again_questions:,} questions of all
families. The bundled one answers {bundled:.3f} of them, the other {again:.3f}; bundled minus other is {difference}
(commit {again_commit}).

At 10,000 frames, {long_questions} questions of each family and seed (commit {long_commit}):

{long}

## Limits

- It knows TinyWorld alone: {side} × {side} pictures of {shapes} shapes in {colors} colors. `vilamp ask` refuses other
  footage without `--force`, because any answer would be a guess.
- It was trained on at most {longest:,} tokens.
- It gives one of its known answers whatever you ask, and can't say that it does not know. It knows {words} words and
  refuses a question with any other. Its {tokens} tokens are these words, two signs and four markers.
"""


def main() -> None:
    """Bundle, or write the card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trained", type=Path, default=ROOT / "runs" / "train" / "full-seed0" / "model")
    parser.add_argument("--card", action="store_true", help="write the card only")
    options = parser.parse_args()
    if options.card:
        with written_whole(MINIATURE / "README.md") as waiting:
            waiting.write_text(card())
    else:
        print(f"{MINIATURE}: {bundle(options.trained, MINIATURE) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
