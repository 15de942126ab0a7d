"""The repository keeps its promises: environments in step, notebooks in form, links that point at files."""

import json
import re
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml

from figures.make_table import ROWS, kept_results, placed, render, tables
from vilamp_lite.notebook.metrics import recorded

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
REPOSITORY = "vilamp-lite/vilamp-lite"  # on GitHub
# The same in every notebook; ready to be copied into a new one.
COLAB_CELL = """\
# On Colab: fetch the repository and install the package. Elsewhere this cell does nothing.
import sys

if "google.colab" in sys.modules:
    !test -d /content/vilamp-lite || git -C /content clone -q --depth 1 https://github.com/vilamp-lite/vilamp-lite
    %run /content/vilamp-lite/notebooks/colab.py"""
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().split()
    assert all("==" in line for line in lines)
    return {canonical(name): version for name, version in (line.split("==") for line in lines)}


def requirement_names(requirements: list[str]) -> set[str]:
    return {canonical(re.match(r"[\w.-]+", requirement)[0]) for requirement in requirements}


def installed_extras() -> list[str]:
    return re.search(r"torch --editable \"\.\[(.+?)\]\"", (ROOT / "Makefile").read_text())[1].split(",")


def test_conda_environment_is_in_step() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *_, pip = environment["dependencies"]
    options, packages = pip["pip"][:2], pip["pip"][2:]
    assert options == ["--constraint constraints.txt", f"--editable .[{','.join(installed_extras())}]"]
    wanted = PROJECT["dependencies"] + [r for e in installed_extras() for r in PROJECT["optional-dependencies"][e]]
    assert requirement_names(packages) == requirement_names(wanted)
    for package in packages:
        name, version = re.match(r"([\w.-]+)==([\w.]+)", package).groups()
        assert pins()[canonical(name)] == version, name
    python = next(d for d in environment["dependencies"] if str(d).startswith("python="))
    assert PROJECT["requires-python"] == f">={python.removeprefix('python=')}"


def test_every_direct_dependency_is_pinned() -> None:
    extras = [r for requirements in PROJECT["optional-dependencies"].values() for r in requirements]
    assert requirement_names(PROJECT["dependencies"] + extras) <= set(pins())


def test_make_sets_up_what_ci_runs() -> None:
    assert {"make lint", "make test"} <= set((ROOT / ".ci" / "run").read_text().splitlines())
    readme = (ROOT / "README.md").read_text()
    assert "make run" in readme
    assert "make test" in readme


def test_links_point_at_files() -> None:
    folders = ("data", "benchmarks", "book", "notebooks/assignments")
    for page in [*ROOT.glob("*.md"), *(page for folder in folders for page in (ROOT / folder).glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text()):
            if "://" not in target:
                # In the book a link to a folder leads nowhere.
                assert (page.parent / target).is_file(), f"{page.name} links to {target}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_form(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for heading in ("**What you will learn**", "**Time:**", "## Check by hand", "## Summary and takeaways"):
        assert heading in text, heading
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in code) == 1
    for line in next(cell for cell in code if "parameters" in cell.metadata.get("tags", [])).source.splitlines():
        assert re.fullmatch(r"\w+: \w+ = \S.*  # .+", line), line
    lengths = [len(cell.source.splitlines()) for cell in code]
    assert statistics.median(lengths) <= 8
    assert max(lengths) <= 40
    assert any("show_widget(" in cell.source for cell in code)
    assert path.stat().st_size < 1_000_000
    # Strict comparison of outputs means nothing for a notebook that was never run.
    assert all(cell.execution_count for cell in code)
    assert not any(output.output_type == "error" for cell in code for output in cell.outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_links(path: Path) -> None:
    banner = nbformat.read(path, as_version=4).cells[0].source
    for start in (
        f"https://mybinder.org/v2/gh/{REPOSITORY}/HEAD?labpath=",
        f"https://colab.research.google.com/github/{REPOSITORY}/blob/main/",
    ):
        (link,) = re.findall(rf"{re.escape(start)}(\S+?)\)", banner)
        assert ROOT / link == path
    for target in re.findall(r"\]\((?!http)([^)]+)\)", banner):
        assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_first_cell_prepares_colab(path: Path) -> None:
    first, *_ = (cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
    assert first.source == COLAB_CELL
    assert not first.outputs  # it did nothing here


def test_what_the_first_cell_runs_is_in_the_repository() -> None:
    (script,) = re.findall(r"%run /content/vilamp-lite/(\S+)", COLAB_CELL)
    assert (ROOT / script).is_file()
    assert f"clone -q --depth 1 https://github.com/{REPOSITORY}\n" in COLAB_CELL


def test_results_in_the_readme_are_the_notebooks() -> None:
    """Edited by hand, or older than a notebook or its result: `make table` mends it."""
    readme = (ROOT / "README.md").read_text()
    assert placed(readme, tables()) == readme


@pytest.mark.parametrize("name", sorted({row.notebook for row in ROWS}))
def test_stored_notebooks_have_the_metrics_of_the_table(name: str) -> None:
    stored = recorded(nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4))
    kept = kept_results()[name]["metrics"]
    assert stored.keys() == kept.keys()
    for metric, value in kept.items():
        assert stored[metric] == pytest.approx(value, abs=1e-3), metric


def test_a_table_that_is_not_made_from_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`make table` makes it"):
        kept_results(tmp_path)
    results = kept_results()
    old = results[ROWS[0].notebook] | {"code": "0" * 16}
    (tmp_path / f"{ROWS[0].notebook}.json").write_text(json.dumps(old))
    with pytest.raises(ValueError, match="older than its notebook"):
        kept_results(tmp_path)
    failed = results[ROWS[0].notebook] | {"error": "code cell 3: ValueError"}
    (tmp_path / f"{ROWS[0].notebook}.json").write_text(json.dumps(failed))
    with pytest.raises(ValueError, match="of a run that failed"):
        kept_results(tmp_path)
    without = results | {ROWS[0].notebook: results[ROWS[0].notebook] | {"metrics": {}}}
    with pytest.raises(ValueError, match="does not record 'cosine_most_relevant'"):
        render(without)
    with pytest.raises(ValueError, match="once each"):
        placed("no markers", {"results": "a table"})


def test_public_names_exist_and_help_is_quick() -> None:
    import vilamp_lite

    for name in vilamp_lite.__all__:
        assert getattr(vilamp_lite, name).__doc__
    with pytest.raises(AttributeError, match="nothing"):
        vilamp_lite.nothing  # noqa: B018
    code = "import sys, vilamp_lite.cli; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"
