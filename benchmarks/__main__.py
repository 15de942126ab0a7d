"""Run every benchmark, then write RESULTS.md from what they measured."""

import json
from pathlib import Path

from benchmarks import end_to_end, keyframes, merging, questions, render, video
from benchmarks.measure import RESULTS, columns

INTRODUCTION = """# Benchmarks

Made by `make bench` from `results/*.json`; don't edit. Each method runs in a process of its own: once to warm up, once
for memory, five times for time (the median is shown), in turns with the other methods; where a run takes minutes, once
for both. *Extra memory* is the peak above what was resident with the inputs loaded. Ratios refer to the baseline in the
same run.
"""


def markdown(result: dict[str, object]) -> str:
    """One benchmark as a Markdown section."""
    head, *body = columns(result)
    lines = [head, ["---", "---", *["---:"] * (len(head) - 2)], *body]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"## {result['title']}\n\n{result['machine']}\n\n{table}\n"


def main() -> None:
    """Run all and collect their tables."""
    benchmarks = (keyframes, merging, video, end_to_end, questions, render)
    for benchmark in benchmarks:
        benchmark.main()
    names = [benchmark.__name__.rpartition(".")[2] for benchmark in benchmarks]
    results = [json.loads((RESULTS / f"{name}.json").read_text()) for name in names]
    text = "\n".join([INTRODUCTION, *map(markdown, results)])
    Path(RESULTS.parent / "RESULTS.md").write_text(text)


if __name__ == "__main__":
    main()
