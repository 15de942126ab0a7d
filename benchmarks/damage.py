"""Damaged videos: three campaigns of 720 cases each, by seeds that nobody has seen before.

Run with `python -m benchmarks.damage`.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

from benchmarks.measure import RESULTS, machine

COUNT = 720
TESTS = Path(__file__).parents[1] / "tests"


def main() -> None:
    """Run the campaigns, print their table and write it."""
    seeds = [str(random.SystemRandom().randrange(1000, 20_000)) for _ in range(3)]
    run = subprocess.run(
        [sys.executable, "-m", "fuzz", str(COUNT), "--seeds", *seeds, "--json"],
        env=os.environ | {"PYTHONPATH": f"{TESTS.parent}:{TESTS}"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    table = json.loads(run.stdout)["table"]
    counts = dict(zip(table[0][1:], map(int, table[-1][1:]), strict=True))
    told = sum(counts[name] for name in ("short", "late", "missing", "pixels"))
    silent = counts["allowed"] + told
    miscounted = counts["too few"] + counts["too many"]
    share = f"{silent / counts['cases']:.1%}"
    title = (
        f'Damaged videos, `make fuzz N={COUNT} SEEDS="{" ".join(seeds)}"`: of {counts["cases"]:,} cases '
        f"{counts['crash']} crashes, {counts['hang']} hangs, {counts['over 1 GB']} over 1 GB; {silent} silent "
        f"({share}; to reach: 8 %), {told} of them where the file could have told (to reach: 0); "
        f"{miscounted} warned with a wrong count (to reach: 0)"
    )
    result = {"title": title, "machine": machine(), "table": table}
    (RESULTS / "damage.json").write_text(json.dumps(result, indent=1) + "\n")
    print(title)


if __name__ == "__main__":
    main()
