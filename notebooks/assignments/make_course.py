"""Make the release version of the course and check the grading: what `make course` runs.

For every assignment of source/ nbgrader makes the release version. Then it grades, as if students had handed them in,
the solution (full marks), the blank release (zero) and every wrong submission of mutations/, which loses what it says.
None may take over two minutes of CPU time.
"""

import argparse
import copy
import os
import shutil
import sys
import tomllib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from rich.console import Console
from rich.table import Table
from traitlets.config.loader import PyFileConfigLoader

from vilamp_lite.common.progress import progress_bar

HERE = Path(__file__).resolve().parent
OUT = HERE.parents[1] / "runs" / "course"
MARKERS = ("BEGIN SOLUTION", "BEGIN HIDDEN TESTS")
LIMIT = 120  # seconds of CPU time that grading one submission may take


@dataclass(frozen=True)
class Mutation:
    """A wrong submission: the solution with one piece of code replaced.

    Attributes:
        name: the mistake, in words joined by hyphens; also the name of the student who hands it in.
        cell: grade id of the solution cell that is changed.
        replace: code that stands in that cell exactly once.
        by: what stands there instead.
        loses: points lost, by grade id of the test; every other test gives full marks.
    """

    name: str
    cell: str
    replace: str
    by: str
    loses: dict[str, float]


def assignment_names() -> list[str]:
    """Names of the assignments, in order: the folders of source/."""
    return sorted(folder.name for folder in (HERE / "source").iterdir() if folder.is_dir())


def read_source(name: str) -> NotebookNode:
    """An assignment's notebook with solutions and hidden tests."""
    return nbformat.read(HERE / "source" / name / f"{name}.ipynb", as_version=4)


def read_mutations(name: str) -> list[Mutation]:
    """An assignment's wrong submissions.

    Raises:
        TypeError: an entry lacks a field or has one too many.
    """
    entries = tomllib.loads((HERE / "mutations" / f"{name}.toml").read_text())["mutation"]
    return [Mutation(**entry) for entry in entries]


def graded_cells(notebook: NotebookNode) -> dict[str, NotebookNode]:
    """Cells that carry points, by grade id."""
    return {cell.metadata.nbgrader.grade_id: cell for cell in notebook.cells if cell.metadata.nbgrader.grade}


def automatic_points(notebook: NotebookNode) -> dict[str, float]:
    """Points of the cells that are graded automatically, by grade id."""
    return {
        grade_id: cell.metadata.nbgrader.points
        for grade_id, cell in graded_cells(notebook).items()
        if not cell.metadata.nbgrader.solution
    }


def mutate(source: NotebookNode, mutation: Mutation) -> NotebookNode:
    """The solution with the mutation's mistake in it.

    Raises:
        ValueError: there is no such solution cell, the code to replace does not stand in it exactly once, or a test
            that should lose points does not exist or has fewer.
    """
    changed = copy.deepcopy(source)
    cells = [cell for cell in changed.cells if cell.id == mutation.cell and cell.metadata.nbgrader.solution]
    if len(cells) != 1 or cells[0].source.count(mutation.replace) != 1:
        raise ValueError(f"{mutation.name}: {mutation.replace!r} must stand once in a solution cell {mutation.cell!r}")
    points = automatic_points(source)
    for test, lost in mutation.loses.items():
        if not 0 < lost <= points.get(test, 0):
            raise ValueError(f"{mutation.name}: {test!r} cannot lose {lost} of {points.get(test, 0)} points")
    cells[0].source = cells[0].source.replace(mutation.replace, mutation.by)
    return changed


def hand_in(release: NotebookNode, answers: NotebookNode) -> NotebookNode:
    """The release version with the answers filled in, as a student hands it in: without hidden tests."""
    answer_of = {cell.id: cell.source for cell in answers.cells if cell.metadata.nbgrader.solution}
    submission = copy.deepcopy(release)
    for cell in submission.cells:
        if cell.metadata.nbgrader.solution:
            cell.source = answer_of[cell.metadata.nbgrader.grade_id]
    return submission


@dataclass(frozen=True)
class Outcome:
    """What the grading made of one submission.

    Attributes:
        assignment: its name.
        student: "solution", "blank" or the mutation's name.
        scores: points, by grade id, of the tests; of a blank release also of the written answers.
        expected: the points there should be.
        seconds: CPU time of the grading, kernel included: a busy machine makes no difference to it.
    """

    assignment: str
    student: str
    scores: dict[str, float | None]
    expected: dict[str, float]
    seconds: float

    @property
    def fault(self) -> str:
        """What differs from what was expected, test by test, and whether it took too long; empty if nothing does."""
        found = {test: self.scores.get(test) for test in self.expected}
        wrong = [f"{test}: {found[test]} not {want}" for test, want in self.expected.items() if found[test] != want]
        if self.seconds > LIMIT:
            wrong.append(f"{self.seconds:.0f} seconds, over {LIMIT}")
        return ", ".join(wrong)


def course_api(out: Path):
    """nbgrader on a course folder of its own, with this folder's settings."""
    try:
        from nbgrader.apps.api import NbGraderAPI
    except ImportError as error:
        raise SystemExit(f"the course needs nbgrader: pip install 'vilamp-lite[course]' ({error})") from error
    # SQLAlchemy 2.1 warns at each of nbgrader's submissions, of a step that nbgrader does take afterwards.
    warnings.filterwarnings("ignore", message="Object of type <Submitted", module=r"nbgrader\.")
    config = PyFileConfigLoader("nbgrader_config.py", path=str(HERE)).load_config()
    config.CourseDirectory.root = str(out)
    return NbGraderAPI(config=config)


def make_release(api, name: str, out: Path) -> NotebookNode:
    """Let nbgrader make the release version in out/release; returns its notebook.

    Raises:
        RuntimeError: nbgrader failed, or a solution or hidden test is left in it.
    """
    shutil.copytree(HERE / "source" / name, out / "source" / name)
    result = api.generate_assignment(name, force=True, create=True)
    if not result["success"]:
        raise RuntimeError(f"{name}: no release version\n{result.get('error')}\n{result.get('log')}")
    release = nbformat.read(out / "release" / name / f"{name}.ipynb", as_version=4)
    leaks = [cell.id for cell in release.cells if any(marker in cell.source for marker in MARKERS)]
    if leaks:
        raise RuntimeError(f"{name}: solutions or hidden tests are left in the release version, in {', '.join(leaks)}")
    return release


def grade(api, name: str, student: str, submission: NotebookNode, out: Path) -> dict[str, float | None]:
    """Let nbgrader grade one submission; returns points by grade id, None where a person must grade.

    Raises:
        RuntimeError: nbgrader failed.
    """
    folder = out / "submitted" / student / name
    folder.mkdir(parents=True)
    nbformat.write(submission, folder / f"{name}.ipynb")
    result = api.autograde(name, student, force=True, create=True)
    if not result["success"]:
        raise RuntimeError(f"{name}, {student}: not graded\n{result.get('error')}\n{result.get('log')}")
    with api.gradebook as gradebook:
        (notebook,) = gradebook.find_submission(name, student).notebooks
        return {grade.name: grade.auto_score for grade in notebook.grades}


def cpu_seconds() -> float:
    """CPU time of this process and of those it started that have ended."""
    return sum(os.times()[:4])


def check_assignment(api, name: str, out: Path) -> Iterator[Outcome]:
    """Make the release version, then grade the solution, the blank release and every mutation."""
    source, release = read_source(name), make_release(api, name, out)
    points = automatic_points(source)
    submissions = [
        ("solution", hand_in(release, source), points),
        ("blank", release, dict.fromkeys(graded_cells(source), 0)),
    ]
    for mutation in read_mutations(name):
        expected = {test: most - mutation.loses.get(test, 0) for test, most in points.items()}
        submissions.append((mutation.name, hand_in(release, mutate(source, mutation)), expected))
    for student, submission, expected in submissions:
        start = cpu_seconds()
        scores = grade(api, name, student, submission, out)
        yield Outcome(name, student, scores, expected, cpu_seconds() - start)


def main() -> int:
    """Check the assignments and print a table; 1 if a submission got other points than it should, or took too long."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("assignments", nargs="*", help="names, as in source/; all of them when left out")
    parser.add_argument("--out", type=Path, default=OUT, help="course folder; it is made anew")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.assignments) - set(assignment_names()))
    if unknown:
        parser.error(f"there is no assignment {', '.join(unknown)}; there are {', '.join(assignment_names())}")
    names = arguments.assignments or assignment_names()
    if arguments.out.exists() and not (arguments.out / "gradebook.db").exists() and any(arguments.out.iterdir()):
        parser.error(f"--out {arguments.out} holds something else than a course; name another folder")
    shutil.rmtree(arguments.out, ignore_errors=True)
    arguments.out.mkdir(parents=True)

    os.environ["VILAMP_HEADLESS"] = "1"  # for the notebooks' kernels, which inherit it
    # nbgrader calls `alembic` by its bare name, which lies beside a Python that need not be activated.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    api = course_api(arguments.out.resolve())
    outcomes = []
    with progress_bar(sum(2 + len(read_mutations(name)) for name in names), "submissions", "make course") as bar:
        for name in names:
            for outcome in check_assignment(api, name, arguments.out.resolve()):
                outcomes.append(outcome)
                bar.update()
    table = Table()
    for column in ("assignment", "submission", "points", "seconds", "result"):
        table.add_column(column, justify="right" if column in ("points", "seconds") else "left", overflow="fold")
    for outcome in outcomes:
        points = sum(outcome.scores[test] or 0 for test in outcome.expected)
        row = (
            outcome.assignment,
            outcome.student,
            f"{points:g}",
            f"{outcome.seconds:.0f}",
            outcome.fault or "as it should",
        )
        table.add_row(*row)
    console = Console()
    console.print(table)
    faults = sum(bool(outcome.fault) for outcome in outcomes)
    closing = f"All {len(outcomes)} submissions were graded as they should be. Hand out {arguments.out / 'release'}."
    if faults:
        closing = f"{faults} of {len(outcomes)} submissions were not graded as they should be: see the table."
    console.print(closing, soft_wrap=True)
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
