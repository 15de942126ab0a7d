"""Run benchmarks, all or those that are named, then write RESULTS.md from what has been measured."""

import argparse
import json
from pathlib import Path

from benchmarks import damage, end_to_end, gpu, keyframes, merging, questions, render, video
from benchmarks.measure import RESULTS, columns

INTRODUCTION = """# Benchmarks

Made by `make bench` from `results/*.json`; don't edit. Each method runs in a process of its own: once to warm up, once
for memory, five times for time (the median is shown), in turns with the other methods. Where the title says *one run*,
each method runs once for both. *Extra memory* is the peak above what was resident with the inputs loaded. Ratios refer
to the baseline in the same run. Times are wall times, unless the title says CPU time.
"""
BENCHMARKS = {
    "keyframes": keyframes,
    "merging": merging,
    "video": video,
    "end_to_end": end_to_end,
    "questions": questions,
    "render": render,
    "damage": damage,
}


def markdown(result: dict[str, object]) -> str:
    """One benchmark as a Markdown section."""
    head, *body = columns(result)
    lines = [head, ["---", "---", *["---:"] * (len(head) - 2)], *body]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"## {result['title']}\n\n{result['machine']}\n\n{table}\n"


def main() -> None:
    """Run them and collect all tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}")
    names = parser.parse_args().names or list(BENCHMARKS)
    if unknown := set(names) - set(BENCHMARKS):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    for name in names:
        BENCHMARKS[name].main()
    files = [RESULTS / f"{name}.json" for name in BENCHMARKS]
    results = [json.loads(file.read_text()) for file in files if file.is_file()]
    Path(RESULTS.parent / "RESULTS.md").write_text("\n".join([INTRODUCTION, *map(markdown, results), gpu.section()]))


if __name__ == "__main__":
    main()
