"""The graded course: its form. `make course` grades solutions, blank releases and wrong submissions."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "notebooks" / "assignments"))

import make_course  # noqa: E402

ASSIGNMENTS = make_course.assignment_names()
SOLUTION = re.compile(r"^( *)### BEGIN SOLUTION\n.*?### END SOLUTION$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_form(name: str) -> None:
    notebook = make_course.read_source(name)
    ids = [cell.metadata.nbgrader.grade_id for cell in notebook.cells]
    assert ids == [cell.id for cell in notebook.cells]
    graded = make_course.graded_cells(notebook)
    assert len(graded) >= 5
    assert sum(cell.metadata.nbgrader.points for cell in graded.values()) == 10
    assert {cell.cell_type for cell in graded.values() if cell.metadata.nbgrader.solution} == {"markdown"}, "written"
    assert "mathematics" in "".join(cell.source for cell in notebook.cells)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    for cell in notebook.cells:
        about = cell.metadata.nbgrader
        assert about.locked != about.solution, f"{cell.id}: only answers may be edited"
        if cell.cell_type == "code" and about.solution:
            assert SOLUTION.search(cell.source), f"{cell.id} has nothing to clear"
        else:
            assert "BEGIN SOLUTION" not in cell.source
        begins, ends = cell.source.count("### BEGIN HIDDEN TESTS"), cell.source.count("### END HIDDEN TESTS")
        assert begins == ends <= about.grade


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_every_assertion_has_a_message(name: str) -> None:
    cells = make_course.graded_cells(make_course.read_source(name)).values()
    for cell in (cell for cell in cells if cell.cell_type == "code"):
        assertions = [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Assert)]
        assert assertions, cell.id
        assert all(node.msg for node in assertions), cell.id


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_mutations_cover_the_code(name: str) -> None:
    mutations = make_course.read_mutations(name)
    source = make_course.read_source(name)
    code = {c.id for c in source.cells if c.cell_type == "code" and c.metadata.nbgrader.solution}
    assert {mutation.cell for mutation in mutations} == code
    for mutation in mutations:
        make_course.mutate(source, mutation)  # it applies
    assert len({mutation.name for mutation in mutations}) == len(mutations) >= 3
    assert {test for mutation in mutations for test in mutation.loses} == set(make_course.automatic_points(source))


@pytest.mark.parametrize(
    "change", [{"cell": "pairs"}, {"cell": "sampling-test"}, {"replace": "i"}, {"loses": {"sampling-test": 3}}]
)
def test_a_mutation_that_does_not_apply_is_refused(change: dict[str, object]) -> None:
    good = {"name": "x", "cell": "sampling", "replace": "i += 1", "by": "i += 2", "loses": {"sampling-test": 2}}
    source = make_course.read_source("01_frame_embedding")
    make_course.mutate(source, make_course.Mutation(**good))
    with pytest.raises(ValueError, match="x: "):
        make_course.mutate(source, make_course.Mutation(**good | change))


@pytest.mark.parametrize(
    ("scores", "seconds", "fault"),
    [
        ({"walk-test": 3}, 119, ""),
        ({"walk-test": 0}, 10, "walk-test: 0 not 3"),
        ({}, 10, "walk-test: None not 3"),
        ({"walk-test": 3}, 121, "121 seconds, over 120"),
    ],
)
def test_wrong_points_and_slow_grading_are_faults(scores: dict[str, float], seconds: float, fault: str) -> None:
    assert make_course.Outcome("a", "solution", scores, {"walk-test": 3}, seconds).fault == fault


def test_students_get_no_hidden_tests_back() -> None:
    """A submission is the release version with answers: nothing else of the source comes with it."""
    source = make_course.read_source("01_frame_embedding")
    release = make_course.mutate(source, make_course.read_mutations("01_frame_embedding")[0])
    for cell in release.cells:
        cell.source = "released"
    submission = make_course.hand_in(release, source)
    kept = [cell.source for cell in submission.cells if not cell.metadata.nbgrader.solution]
    assert set(kept) == {"released"}
    answers = [cell.source for cell in submission.cells if cell.metadata.nbgrader.solution]
    assert answers == [cell.source for cell in source.cells if cell.metadata.nbgrader.solution]


def test_nbgrader_is_an_extra_of_its_own() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert any(requirement.startswith("nbgrader") for requirement in extras["course"])
