"""Reading a study's rows: finding one, adding several up, laying them out, and saying in words what they show."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from vilamp_lite.common.stamp import short_commit
from vilamp_lite.evaluation.results import RESULTS, Row, Study, load_result
from vilamp_lite.evaluation.scoring import score


def pooled(rows: Sequence[Row], *names: str) -> list[Row]:
    """Add rows up that agree in some fields: correct and questions are summed, and the interval made anew.

    Args:
        rows: of a study; leave out those of the family "all" where families are pooled.
        names: the fields that must agree; the others are dropped.
    """
    sums = pd.DataFrame(rows).groupby([*names], sort=False)[["correct", "questions"]].sum().reset_index()
    return [
        {name: row[name] for name in names} | score(row["correct"], row["questions"]) for row in sums.to_dict("records")
    ]


def matching(rows: Iterable[Row], **fields: Any) -> list[Row]:
    """The rows that have these fields."""
    return [row for row in rows if all(row[name] == value for name, value in fields.items())]


def find(rows: Iterable[Row], **fields: Any) -> Row:
    """The one row that has these fields.

    Raises:
        ValueError: there is none, or there are several.
    """
    found = matching(rows, **fields)
    if len(found) != 1:
        raise ValueError(f"{fields} must be one row, got {len(found)}")
    return found[0]


Reader = Callable[[Row], Any]


def grid_of(rows: Iterable[Row], down: str | Reader, across: str | Reader, cell: str | Reader) -> pd.DataFrame:
    """Lay rows out by two of their fields, in the order of the rows.

    Args:
        rows: of a study, one for each place.
        down: the field that names the lines, or a function of the row.
        across: that names the columns.
        cell: that is shown, such as `share_text`.
    """
    read = [(lambda row, name=name: row[name]) if isinstance(name, str) else name for name in (down, across, cell)]
    columns: dict[Any, dict[Any, Any]] = {}
    for row in rows:
        line, column, shown = (of(row) for of in read)
        columns.setdefault(column, {})[line] = shown
    return pd.DataFrame(columns)


def share_text(row: Row) -> str:
    """An accuracy with its interval: "0.95 (0.91–0.97)"."""
    return f"{row['accuracy']:.2f} ({row['low']:.2f}–{row['high']:.2f})"


def difference_text(row: Row) -> str:
    """A paired difference with its interval and p: "+0.52 (+0.44 to +0.59, p = 2e-19)"."""
    # Adding 0 makes -0.00 a +0.00.
    difference, low, high = (round(row[name], 2) + 0.0 for name in ("difference", "difference_low", "difference_high"))
    p = f"{row['p']:.1g}"
    # On which side of the 5 % level it lies must be seen.
    p = f"{row['p']:.2g}" if float(p) == 0.05 else p
    return f"{difference:+.2f} ({low:+.2f} to {high:+.2f}, p = {p})"


def verdict(row: Row, first: str, second: str) -> str:
    """Say in words what a paired difference, first minus second, shows at the 5 % level."""
    if row["p"] >= 0.05:
        return f"no difference between {first} and {second} is shown"
    return f"{first} is {'better' if row['difference'] > 0 else 'worse'} than {second}"


def beside_claim(row: Row, claim: str) -> str:
    """Set the paper's claim that a first is better than a second beside the paired difference that was found here."""
    found = "confirmed" if row["difference"] > 0 else "contradicted"
    found = "neither confirmed nor contradicted" if row["p"] >= 0.05 else found
    return f"{claim}: {found} here, {difference_text(row)}"


def spread_text(row: Row) -> str:
    """Mean and standard deviation over seeds, and every seed's: "0.93 ± 0.02 (0.91, 0.93, 0.95)"."""
    return f"{row['mean']:.2f} ± {row['spread']:.2f} ({', '.join(f'{one:.2f}' for one in row['accuracies'])})"


def mean_text(row: Row, name: str) -> str:
    """A mean of `attention_study` with its interval: "0.31 (0.28 to 0.34)"."""
    return f"{row[name]:.2f} ({row['low'][name]:.2f} to {row['high'][name]:.2f})"


def beside_figure(row: Row, name: str, figure: float) -> str:
    """Set a mean of `attention_study` beside a figure of the paper: which is larger, by the mean's interval."""
    low, high = row["low"][name], row["high"][name]
    place = "above" if low > figure else "below" if high < figure else "not told apart from"
    return f"{mean_text(row, name)}, {place} {figure:g}"


def told_apart(rows: Sequence[Row]) -> str:
    """Count the settings, of one length and family, that differ from the study's reference at the 5 % level."""
    if not all("p" in row for row in rows):
        raise ValueError("the model's own setting must be among those of the study")
    worse, better = (sum(row["p"] < 0.05 and sign * row["difference"] > 0 for row in rows) for sign in (1, -1))
    others = len(rows) - 1
    return (
        f"{others} other settings: {worse} worse than as trained, {better} better, {others - worse - better} not told "
        "apart (p < 0.05 each, not corrected for their number)"
    )


def source_text(study: Study) -> str:
    """Where a study's numbers come from: the commit, and how much was asked."""
    about = study["parameters"]
    cell = f"{about['questions']} at each length, depth and family"
    lengths = ", ".join(f"{frames:,}" for frames in about["frames"])
    everything = about["questions"] * len(about["frames"]) * len(about["depths"]) * len(about["families"])
    commit = short_commit(study["stamp"])
    return f"commit {commit}; haystacks of {lengths} frames; {everything:,} questions of each variant, {cell}"


def variant_name(row: Row) -> str:
    """What rows with a selector and a merger are called: "dks + dfm"."""
    return f"{row['selector']} + {row['merger']}"


def not_best(rows: Sequence[Row], name: Callable[[Row], str] = variant_name, own: str | None = None) -> list[str]:
    """Say for every length, depth, budget and family where one variant is not the best, and what is.

    Args:
        rows: of a study; all are compared in pairs with this variant. Of `seeds_study` their means are compared.
        name: what a row's variant is called.
        own: the variant's name; that of the first row when left out.
    """
    own = name(rows[0]) if own is None else own
    if not any(name(row) == own for row in rows):
        raise ValueError(f"no row is called {own!r}")
    found = []
    for row in (row for row in rows if name(row) == own):
        place = {field: row[field] for field in ("depth", "budget", "frames", "family") if field in row}
        best = max(matching(rows, **place), key=_accuracy)
        if _accuracy(best) <= _accuracy(row):
            continue
        if "mean" in row:
            here, shares = "", f"{best['mean']:.3f} against {row['mean']:.3f}"
            difference = f"by seed {'; '.join(difference_text(one) for one in best['paired'])}"
        else:
            here = f" at {row['frames']:,} frames" + (f" and {row['budget']:,} tokens" if row.get("budget") else "")
            shares, difference = f"{share_text(best)} against {share_text(row)}", difference_text(best)
        found.append(f"{own} is not best on {row['family']}{here}: {name(best)} {shares}, difference {difference}")
    return found


def _accuracy(row: Row) -> float:
    return row["accuracy"] if "accuracy" in row else row["mean"]


# The runs of `results_table`: result, frames, model and machine.
_RUNS = (
    *(("streaming", frames, "miniature, CPU, 1 thread") for frames in (1_000, 2_000, 5_000, 10_000)),
    ("streaming_100000", 100_000, "miniature, CPU, 1 thread"),
    ("gpu/10000", 10_000, "full size with random weights, H100"),
    ("streaming_a100", 10_000, "authors' checkpoint, A100"),
)


def results_table(folder: Path = RESULTS) -> list[list[str]]:
    """The table of recorded runs from file to answer, its head first; what nobody has run says so."""
    table = [["frames", "model and machine", "time to the answer", "peak above the model's", "needle", "commit"]]
    for name, frames, about in _RUNS:
        study = load_result(name, folder) if (folder / f"{name}.json").is_file() else {"rows": []}
        measured = ["not run", "", "", ""]
        for row in matching((row for row in study["rows"] if "stages" in row), frames=frames):
            above = (row["peak_memory"] - row["memory_before"]) / 1e6
            if "random weights" in about:
                needle = "no meaning"
            else:
                needle = f"{'found' if row['needle_keyframes'] else 'missed'}, {row['answer']!r}"
            measured = [f"{row['seconds']:.0f} s", f"{above:,.0f} MB", needle, short_commit(study["stamp"])]
        table.append([f"{frames:,}", about, *measured])
    return table
