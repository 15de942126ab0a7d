"""Reading a study's rows: finding one, adding several up, and saying in words what they show."""

from collections.abc import Sequence
from typing import Any

from vilamp_lite.evaluation.results import score

Row = dict[str, Any]


def pooled(rows: Sequence[Row], *names: str) -> list[Row]:
    """Add rows up that agree in some fields: correct and questions are summed, and the interval made anew.

    Args:
        rows: of a study; leave out those of the family "all" where families are pooled.
        names: the fields that must agree; the others are dropped.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return [
        dict(zip(names, key, strict=True)) | score(sum(r["correct"] for r in same), sum(r["questions"] for r in same))
        for key, same in groups.items()
    ]


def find(rows: Sequence[Row], **fields: Any) -> Row:
    """The one row that has these fields.

    Raises:
        ValueError: there is none, or there are several.
    """
    found = [row for row in rows if all(row[name] == value for name, value in fields.items())]
    if len(found) != 1:
        raise ValueError(f"{fields} must be one row, got {len(found)}")
    return found[0]


def share_text(row: Row) -> str:
    """An accuracy with its interval: "0.95 (0.91–0.97)"."""
    return f"{row['accuracy']:.2f} ({row['low']:.2f}–{row['high']:.2f})"


def difference_text(row: Row) -> str:
    """A paired difference with its interval and p: "+0.52 (+0.44 to +0.59, p = 2e-19)"."""
    # Adding 0 makes -0.00 a +0.00.
    difference, low, high = (round(row[name], 2) + 0.0 for name in ("difference", "difference_low", "difference_high"))
    return f"{difference:+.2f} ({low:+.2f} to {high:+.2f}, p = {row['p']:.1g})"


def verdict(row: Row, first: str, second: str) -> str:
    """Say in words what a paired difference, first minus second, shows at the 5 % level."""
    if row["p"] >= 0.05:
        return f"no difference between {first} and {second} is shown"
    return f"{first} is {'better' if row['difference'] > 0 else 'worse'} than {second}"


def not_best(rows: Sequence[Row]) -> list[str]:
    """Say for every length and family where the first row's variant is not the best, and what is.

    Args:
        rows: of `ablation_study` or `niah_study`, the reference's first; all are compared with it in pairs.
    """
    full = (rows[0]["selector"], rows[0]["merger"])
    found = []
    for own in (row for row in rows if (row["selector"], row["merger"]) == full):
        place = {name: own[name] for name in ("depth", "frames", "family") if name in own}
        same = [row for row in rows if all(row[name] == value for name, value in place.items())]
        best = max(same, key=lambda row: row["accuracy"])
        if best["accuracy"] > own["accuracy"]:
            found.append(
                f"{' + '.join(full)} is not best on {own['family']} at {own['frames']:,} frames: {best['selector']} + "
                f"{best['merger']} {share_text(best)} against {share_text(own)}, difference {difference_text(best)}"
            )
    return found
