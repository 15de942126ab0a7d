"""The tables of README and book, made from committed result files; nothing in them is written by hand.

`make table` runs the notebooks that they quote, keeps each one's `result.json` as figures/results/notebooks/NAME.json,
and writes three tables: results against the paper, all of them into the book and six into the README, and the runs
from file to answer.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vilamp_lite.common.files import write_json, written_whole
from vilamp_lite.common.fingerprints import code_checksum
from vilamp_lite.common.stamp import ROOT
from vilamp_lite.evaluation.report import results_table
from vilamp_lite.evaluation.results import RESULTS
from vilamp_lite.notebook.reproduce import NOTEBOOKS, RESULT, run_notebook

KEPT = RESULTS / "notebooks"
README, BOOK = ROOT / "README.md", ROOT / "book"
START, END = "<!-- {}: made by `make table` -->\n", "<!-- end of {} -->\n"
REPRODUCED, NOT_REPRODUCED, NOT_COMPARABLE, NOT_RUN = "reproduced", "not reproduced", "not comparable", "not run"


@dataclass(frozen=True)
class Row:
    """A question, what the paper says to it, and what this repository measures.

    Attributes:
        question: in words.
        paper: its figure with the trust letter, or "no figure".
        notebook: whose metrics answer it; None if nothing was run.
        here: the answer, in which `{name:format}` stands for a metric.
        differs: what is not as in the paper.
        verdict: one of the four above.
        short: whether the README has it, too.
    """

    question: str
    paper: str
    notebook: str | None
    here: str
    differs: str
    verdict: str
    short: bool = False


_TOUR = "two minutes of photographs; `conse`, an encoder weaker than CLIP"
_MINIATURE = "TinyWorld and its miniature"
_EMBEDDING, _KEYFRAMES, _MERGING = "01_frame_embedding", "02_differential_keyframe_selection", "03_patch_merging"
_TEN_THOUSAND, _NIAH, _ABLATIONS = "05_10k_frame_inference", "07_video_niah", "08_ablations"

ROWS = (
    Row(
        "Do 10,000 frames fit on one GPU? (Fig. 1)",
        "yes: 46 GB on an A100 (R)",
        _TEN_THOUSAND,
        "yes: {gb_measured:.1f} GB streamed, measured on an H100; {gb_released_code:.0f} GB in the released code's "
        "way, calculated",
        "full size, with random weights",
        REPRODUCED,
        short=True,
    ),
    Row(
        "Do DKS and DFM beat uniform keyframes and mean pooling? (Table 2)",
        "yes: Video-MME 61.8 % with DKS, 60.2 % with uniform keyframes; 65.1 % with DFM, 62.1 % with mean pooling (A)",
        _ABLATIONS,
        "yes, in TinyWorld: with both {table2_full:.1%}, DKS + mean {table2_dks_mean:.1%}, uniform + DFM "
        "{table2_uniform_dfm:.1%}, with neither {table2_uniform_mean:.1%}; DKS + the "
        "most relevant patch {table2_dks_max:.1%}",
        _MINIATURE + "; both parts crossed, where the paper changes one at a time",
        REPRODUCED,
        short=True,
    ),
    Row(
        "Is DFM better than the most relevant patch alone?",
        "no figure",
        _ABLATIONS,
        "DKS + max {table2_dks_max:.1%}, DKS + DFM {table2_full:.1%} (p = {table2_max_p:.2f})",
        _MINIATURE,
        NOT_COMPARABLE,
    ),
    Row(
        "How often is a needle's question answered at 10,000 frames? (Fig. 2)",
        "58.15 %; VideoChat-Flash 47.25 % (A)",
        _NIAH,
        "in TinyWorld {full_longest:.1%}; uniform keyframes and mean pooling {uniform_mean_longest:.1%}; "
        "chance {chance:.1%}",
        _MINIATURE + "; another opponent",
        NOT_COMPARABLE,
        short=True,
    ),
    Row(
        "Is the right scene among the first five keyframes? (Hit@5, Table 3)",
        "47.3 % on QVHighlights (A)",
        _KEYFRAMES,
        "on the bundled video DKS {hit_at_5_dks:.0%}; k-means {hit_at_5_kmeans:.0%}, MMR {hit_at_5_mmr:.0%}, AKS "
        "{hit_at_5_aks:.0%}, top-K {hit_at_5_top_k:.0%}, uniform {hit_at_5_uniform:.0%}",
        _TOUR,
        NOT_COMPARABLE,
        short=True,
    ),
    Row(
        "Does the first keyframe show the right scene? (Hit@1, Table 3)",
        "26.1 % on QVHighlights (A)",
        _KEYFRAMES,
        "DKS {hit_at_1_dks:.0%}; chance {hit_at_1_chance:.0%}",
        _TOUR,
        NOT_COMPARABLE,
    ),
    Row(
        "On which share of the frames does 90 % of the attention fall? (§3)",
        "under 5 % (A)",
        _ABLATIONS,
        "in TinyWorld {frames_needed:.0%}",
        _MINIATURE + ", uniform keyframes",
        NOT_REPRODUCED,
        short=True,
    ),
    Row(
        "How alike are these frames, and random ones? (§3)",
        "mean cosine above 0.8; 0.54 to 0.61 (A)",
        _ABLATIONS,
        "{cosine_attended:.2f}; {cosine_random:.2f}",
        _MINIATURE + ", uniform keyframes",
        NOT_REPRODUCED,
    ),
    Row(
        "How alike are the frames most relevant to a query, and all frames?",
        "no figure: §3 goes by attention",
        _EMBEDDING,
        "mean cosine {cosine_most_relevant:.2f}; {cosine_all:.2f}",
        _TOUR + "; frames of one scene are alike, relevant or not",
        NOT_COMPARABLE,
    ),
    Row(
        "How near is a merged token to the query, and a mean of patches?",
        "no figure",
        _MERGING,
        "cosine {relevance_differential:.2f}; {relevance_mean:.2f}",
        _TOUR + "; bare cosines, nothing learned",
        NOT_COMPARABLE,
    ),
    Row(
        "Does a merged token alone find its frame, and a mean of patches?",
        "no figure",
        _MERGING,
        "precision {precision_differential:.2f}; {precision_mean:.2f}; without the redundancy term "
        "{precision_without_redundancy:.2f}",
        _TOUR + "; bare cosines, nothing learned",
        NOT_COMPARABLE,
    ),
    Row(
        "Which share of VideoChat-Flash's FLOPs at 8,192 frames? (Table 5)",
        "18.4 % (A)",
        _TEN_THOUSAND,
        "{share_of_videochat_flash:.1%}: ViLaMP's FLOPs counted here as the paper counts them, within "
        "{table5_apart:.1f}% at all four lengths, and VideoChat-Flash's from the paper",
        "multiply-adds of linear layers only; VideoChat-Flash's figure follows another rule",
        NOT_COMPARABLE,
    ),
    Row(
        "What does the released code's slip of the reference frame cost?",
        "no figure",
        _ABLATIONS,
        "the right reference gains {released_reference:+.3f} of accuracy "
        "({released_reference_low:+.3f} to {released_reference_high:+.3f}, p = {released_reference_p:.2f})",
        _MINIATURE + "; the last stage was trained with each",
        NOT_COMPARABLE,
    ),
    Row(
        "How accurate is the trained 7B model on benchmarks? (Table 1)",
        "Video-MME 67.5 %, MLVU 72.6 %, LVBench 45.2 % (A)",
        None,
        "–",
        "needs the authors' weights and the benchmarks' videos",
        NOT_RUN,
        short=True,
    ),
    Row(
        "How well does it recognise actions? (Table 4)",
        "ActivityNet 78.6 mAP, Something-Something V2 86.9 %, UCF-101 97.6 % (A)",
        None,
        "–",
        "needs the authors' weights and the data sets' videos",
        NOT_RUN,
    ),
    Row(
        "Does the full-size training give the same model? (App. A.3)",
        "two weeks on 32 A100 (A)",
        None,
        "–",
        "the data and the hardware",
        NOT_RUN,
    ),
)
QUOTED = tuple(dict.fromkeys(row.notebook for row in ROWS if row.notebook))


def answer(row: Row, results: Mapping[str, Mapping[str, Any]]) -> str:
    """What was measured here, in words.

    Args:
        row: of the table.
        results: of each notebook that `ROWS` name, its `result.json`.

    Raises:
        ValueError: a metric that the notebook did not record.
    """
    if row.notebook is None:
        return row.here
    try:
        # A space before the sign, as in the paper's figures beside it.
        return row.here.format(**results[row.notebook]["metrics"]).replace("%", " %")
    except KeyError as error:
        raise ValueError(f"{row.notebook} does not record {error}: its notebook and `ROWS` must agree") from None


def markdown(lines: list[list[str]]) -> str:
    """A table, its head first."""
    head, *rows = lines
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, ["---"] * len(head), *rows))


def short_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The README's rows."""
    head = ["question", "paper", "here", "verdict"]
    return markdown(
        [head, *([row.question, row.paper, answer(row, results), row.verdict] for row in ROWS if row.short)]
    )


def full_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """All rows, with what differs from the paper and the commands that show the number again."""
    lines = [["question", "paper", "here", "verdict", "what differs", "again"]]
    for row in ROWS:
        recorded = "`make studies`, " if row.notebook in (_NIAH, _ABLATIONS) else ""
        again = f"{recorded}`vilamp reproduce {row.notebook[:2]}`" if row.notebook else "–"
        lines.append([row.question, row.paper, answer(row, results), row.verdict, row.differs, again])
    return markdown(lines)


def kept_results(folder: Path = KEPT) -> dict[str, dict[str, Any]]:
    """Read the committed results of the notebooks that the tables quote.

    Raises:
        ValueError: one is not there, is of an earlier version of its notebook, or ended with an error.
    """
    results = {}
    for name in QUOTED:
        file = folder / f"{name}.json"
        if not file.is_file():
            raise ValueError(f"there is no {file}: `make table` makes it")
        result = json.loads(file.read_text())
        if result["code"] != code_checksum(NOTEBOOKS / f"{name}.ipynb"):
            raise ValueError(f"{file} is older than its notebook: `make table` makes it again")
        if result["error"]:
            raise ValueError(f"{file} is of a run that failed: {result['error']}")
        results[name] = result
    return results


def placed(text: str, name: str, table: str) -> str:
    """Put a table between its two markers.

    Args:
        text: a page.
        name: in the markers.
        table: Markdown.

    Raises:
        ValueError: the markers are not there, once each and in order.
    """
    opening, closing = START.format(name), END.format(name)
    before, start, rest = text.partition(opening)
    _, end, after = rest.partition(closing)
    if not start or not end or opening in rest or closing in after:
        raise ValueError(f"the page must hold {opening.strip()} and then {closing.strip()}, once each")
    return before + opening + table + closing + after


def pages(results: Mapping[str, Mapping[str, Any]]) -> dict[Path, str]:
    """Every page that has a table, with the content it must have."""
    tables = {
        README: ("results", short_table(results)),
        BOOK / "results.md": ("results", full_table(results)),
        BOOK / "costs.md": ("runs", markdown(results_table())),
    }
    return {page: placed(page.read_text(), name, table) for page, (name, table) in tables.items()}


def main() -> int:
    """Run the quoted notebooks, keep their results and write the tables."""
    for name in QUOTED:
        folder = ROOT / "runs" / "table" / name
        if error := run_notebook(NOTEBOOKS / f"{name}.ipynb", folder).error:
            print(f"error: {name}: {error}", file=sys.stderr)
            return 1
        write_json(KEPT / f"{name}.json", json.loads((folder / RESULT).read_text()))
        print(KEPT / f"{name}.json")
    for page, text in pages(kept_results()).items():
        with written_whole(page) as waiting:
            waiting.write_text(text)
        print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
