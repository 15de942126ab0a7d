"""The README's tables, of results against the paper and of long runs, made from committed result files.

`make table` runs the notebooks that the first one quotes, keeps each one's `result.json` as
figures/results/notebooks/NAME.json, and writes both tables. Nothing in them is written by hand.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vilamp_lite.common.files import write_json
from vilamp_lite.common.fingerprints import code_checksum
from vilamp_lite.common.stamp import ROOT
from vilamp_lite.evaluation.report import results_table
from vilamp_lite.evaluation.results import RESULTS
from vilamp_lite.notebook.reproduce import NOTEBOOKS, RESULT, run_notebook

README = ROOT / "README.md"


KEPT = RESULTS / "notebooks"


START, END = "<!-- {}: made by `make table` -->\n", "<!-- end of {} -->\n"


@dataclass(frozen=True)
class Row:
    """A question, what the paper says to it, and what this repository measures.

    Attributes:
        question: in words.
        paper: its figure with the trust letter, or "not verified".
        notebook: whose metrics answer it.
        here: the answer, in which `{name:format}` stands for a metric.
        differs: what is not as in the paper.
    """

    question: str
    paper: str
    notebook: str
    here: str
    differs: str


_TOUR = "two minutes of photographs; `conse`, far weaker than CLIP"


_EMBEDDING, _KEYFRAMES, _MERGING = "01_frame_embedding", "02_differential_keyframe_selection", "03_patch_merging"


_TEN_THOUSAND, _NIAH, _ABLATIONS = "05_10k_frame_inference", "07_video_niah", "08_ablations"


_MINIATURE = "TinyWorld and its miniature"


ROWS = (
    Row(
        "How alike are the frames most relevant to a query, against all frames?",
        "mean cosine above 0.8, against 0.54 to 0.61 (C)",
        _EMBEDDING,
        "{cosine_most_relevant:.2f}, against {cosine_all:.2f}",
        _TOUR,
    ),
    Row(
        "Does the first keyframe show the right scene? (Hit@1)",
        "not verified",
        _KEYFRAMES,
        "{hit_at_1_dks:.2f} of the queries; by chance {hit_at_1_chance:.2f}",
        _TOUR,
    ),
    Row(
        "Is it among the first five? (Hit@5)",
        "not verified",
        _KEYFRAMES,
        "DKS {hit_at_5_dks:.2f}, k-means {hit_at_5_kmeans:.2f}, MMR {hit_at_5_mmr:.2f}, AKS {hit_at_5_aks:.2f}, "
        "top-K {hit_at_5_top_k:.2f}, uniform {hit_at_5_uniform:.2f}",
        _TOUR,
    ),
    Row(
        "How near is a merged token to the query, against a mean of patches?",
        "not verified",
        _MERGING,
        "cosine {relevance_differential:.2f}, against {relevance_mean:.2f}",
        _TOUR + "; bare cosines, nothing learned",
    ),
    Row(
        "Does a merged token alone find its frame, against a mean?",
        "not verified",
        _MERGING,
        "precision {precision_differential:.2f}, against {precision_mean:.2f}; without the redundancy term "
        "{precision_without_redundancy:.2f}",
        _TOUR + "; bare cosines, nothing learned",
    ),
    Row(
        "How much GPU memory do 10,000 frames take? (Fig. 1)",
        "one A100; a curve only (A)",
        _TEN_THOUSAND,
        "{gb_measured:.1f} GB streaming, measured on an H100; {gb_released_code:.0f} GB in the released code's way, "
        "calculated",
        "full size, with random weights",
    ),
    Row(
        "Which share of VideoChat-Flash's FLOPs at 8,192 frames? (Table 5)",
        "18.4 % (C)",
        _TEN_THOUSAND,
        "{share_of_videochat_flash:.1%}, in that of the ways to count which comes nearest",
        "calculated; what the paper counts is not known",
    ),
    Row(
        "How often is a needle's question answered at 10,000 frames? (Fig. 2)",
        "58.15 %, VideoChat-Flash 47.25 % (C)",
        _NIAH,
        "{full_longest:.1%}, uniform keyframes + mean pooling {uniform_mean_longest:.1%}, by chance {chance:.1%}",
        _MINIATURE + "; another opponent",
    ),
    Row(
        "Are both DKS and DFM needed? (Table 2)",
        "not verified",
        _ABLATIONS,
        "with both {table2_full:.1%}, DKS + mean {table2_dks_mean:.1%}, uniform + DFM {table2_uniform_dfm:.1%}, with "
        "neither {table2_uniform_mean:.1%}; DKS + max {table2_dks_max:.1%} (against both: p = {table2_max_p:.2f})",
        _MINIATURE,
    ),
    Row(
        "What does the released code's slip of the reference frame cost?",
        "not verified",
        _ABLATIONS,
        "{released_reference:+.3f} of accuracy for the right reference "
        "({released_reference_low:+.3f} to {released_reference_high:+.3f}, p = {released_reference_p:.2f})",
        _MINIATURE + "; the last stage was trained with each",
    ),
    Row(
        "On which share of the frames do 90 % of the attention fall? (§3)",
        "under 0.05 (C)",
        _ABLATIONS,
        "{frames_needed:.2f}",
        _MINIATURE + ", uniform keyframes",
    ),
    Row(
        "How alike are those frames, against random ones? (§3)",
        "above 0.8, against 0.54 to 0.61 (C)",
        _ABLATIONS,
        "{cosine_attended:.2f}, against {cosine_random:.2f}",
        _MINIATURE + ", uniform keyframes",
    ),
)


def render(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Write the table as Markdown.

    Args:
        results: of each notebook that `ROWS` name, its `result.json`.

    Raises:
        ValueError: a metric that the notebook did not record.
    """
    lines = ["| question | paper | here | what differs | again |", "|---|---|---|---|---|"]
    for row in ROWS:
        metrics = results[row.notebook]["metrics"]
        try:
            here = row.here.format(**metrics).replace("%", " %")  # as the paper's figures beside it
        except KeyError as error:
            raise ValueError(f"{row.notebook} does not record {error}: its notebook and `ROWS` must agree") from None
        recorded = "`make studies`, " if row.notebook in (_NIAH, _ABLATIONS) else ""
        again = f"{recorded}`vilamp reproduce {row.notebook[:2]}`"
        lines.append(f"| {row.question} | {row.paper} | {here} | {row.differs} | {again} |")
    return "\n".join(lines) + "\n"


def kept_results(folder: Path = KEPT) -> dict[str, dict[str, Any]]:
    """Read the committed results of the notebooks that the table quotes.

    Raises:
        ValueError: one is not there, is of an earlier version of its notebook, or ended with an error.
    """
    results = {}
    for name in dict.fromkeys(row.notebook for row in ROWS):
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


def render_runs() -> str:
    """Write the table of runs from file to answer as Markdown; what nobody has run says so."""
    head, *rows = results_table()
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, ["---"] * len(head), *rows))


def placed(text: str, tables: Mapping[str, str]) -> str:
    """Put each table between its two markers.

    Args:
        text: the README.
        tables: Markdown by the markers' name.

    Raises:
        ValueError: markers are not there, once each and in order.
    """
    for name, table in tables.items():
        opening, closing = START.format(name), END.format(name)
        before, start, rest = text.partition(opening)
        _, end, after = rest.partition(closing)
        if not start or not end or opening in rest or closing in after:
            raise ValueError(f"README.md must hold {opening.strip()} and then {closing.strip()}, once each")
        text = before + opening + table + closing + after
    return text


def tables() -> dict[str, str]:
    """Both tables, by the names of their markers.

    Raises:
        ValueError: as `kept_results` and `render`.
    """
    return {"results": render(kept_results()), "runs": render_runs()}


def main() -> int:
    """Run the quoted notebooks, keep their results and write the README's tables."""
    for name in dict.fromkeys(row.notebook for row in ROWS):
        folder = ROOT / "runs" / "table" / name
        if error := run_notebook(NOTEBOOKS / f"{name}.ipynb", folder).error:
            print(f"error: {name}: {error}", file=sys.stderr)
            return 1
        write_json(KEPT / f"{name}.json", json.loads((folder / RESULT).read_text()))
        print(KEPT / f"{name}.json")
    README.write_text(placed(README.read_text(), tables()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
