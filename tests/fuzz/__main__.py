"""Run campaigns and print their table: PYTHONPATH=tests python -m fuzz 720 --seeds 1 2."""

import argparse
import csv
import json
import os
import shutil
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from fuzz.bases import make_bases
from fuzz.campaign import FINE, VERDICTS, Case, run_case


def campaign(count: int, seed: int, folder: Path) -> list[Case]:
    """Run `count` cases; what failed stays in the folder, with a line each in failing.csv."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "bases").mkdir(parents=True)
    make_bases(folder / "bases")
    seeds = range(100_000 * seed, 100_000 * seed + count)
    with ProcessPoolExecutor(os.cpu_count(), get_context("fork")) as pool:
        cases = list(pool.map(partial(run_case, folder=folder), seeds))
    with open(folder / "failing.csv", "w", newline="") as file:
        csv.writer(file).writerows([Case._fields, *(case for case in cases if case.verdict not in (*FINE, "allowed"))])
    return cases


def table(cases: list[Case]) -> list[list[str]]:
    """Count the verdicts by base, by damage, and of all; the first row is the head."""
    rows = [["file or damage", "cases", *VERDICTS]]
    for name in [*sorted({case.base for case in cases}), *sorted({case.damage for case in cases}), "all"]:
        counts = Counter(case.verdict for case in cases if name in (case.base, case.damage, "all"))
        rows.append([name, str(counts.total()), *(str(counts[verdict]) for verdict in VERDICTS)])
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("count", type=int, help="cases for each seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/fuzz"), help="where failing files stay")
    parser.add_argument("--json", action="store_true", help="print cases and table as JSON")
    options = parser.parse_args()
    cases = [case for seed in options.seeds for case in campaign(options.count, seed, options.folder / str(seed))]
    if options.json:
        print(json.dumps({"cases": [case._asdict() for case in cases], "table": table(cases)}))
    else:
        for first, *others in table(cases):
            print(f"{first:16}", *(f"{other:>9}" for other in others))
