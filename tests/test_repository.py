"""The repository keeps its promises: environments in step, notebooks in form, tables made, links that hold."""

import json
import re
import shutil
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml

from book import make_links
from figures.make_table import QUOTED, ROWS, full_table, kept_results, pages, placed, short_table
from vilamp_lite import ViLaMPConfig
from vilamp_lite.common.fingerprints import code_checksum
from vilamp_lite.notebook.metrics import recorded

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
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
    return re.search(r"torch --editable \"\.\[(.+?)\]\"", MAKEFILE)[1].split(",")


def test_conda_environment_and_pins_are_in_step() -> None:
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
    every = [r for requirements in PROJECT["optional-dependencies"].values() for r in requirements]
    assert requirement_names(PROJECT["dependencies"] + every) <= set(pins())


def test_make_sets_up_what_ci_runs() -> None:
    assert {"make lint", "make test", "make course", "make test-ui"} <= set((ROOT / ".ci/run").read_text().splitlines())
    assert "make run" in README
    assert "make test" in README
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    assert container["postCreateCommand"] == "make run"


def test_every_target_is_listed_and_says_what_it_does() -> None:
    """Make itself is silent."""
    targets = re.search(r"^\.PHONY: (.+)$", MAKEFILE, re.MULTILINE)[1].split()
    shown = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert [line.split()[1] for line in shown.splitlines()] == targets
    installing = (ROOT / "book" / "installing.md").read_text()
    assert {f"make {target}" for target in targets} <= {*re.findall(r"`(make [a-z-]+)`", installing)}
    for name, recipe in re.findall(r"^([a-z-]+):.*## (?!list).*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE):
        assert "\techo " in recipe, name


def test_versions_are_in_step() -> None:
    version = PROJECT["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    assert f"\n## {version}\n" in (ROOT / "CHANGELOG.md").read_text()


def test_the_readme_is_short_and_leads_to_every_page_of_the_book() -> None:
    shown = re.sub(r"<!--.*?-->", "", re.sub(r"\]\([^)]*\)", "]", README))
    assert sum(any(map(str.isalnum, word)) for word in shown.split()) <= 900
    book = {str(page.relative_to(ROOT)) for page in (ROOT / "book").glob("*.md")}
    assert book <= set(re.findall(r"\]\(([^)#]+)\)", README))
    contents = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())
    files = {chapter.get("file") for part in contents["parts"] for chapter in part["chapters"]}
    assert book <= {f"{file}.md" for file in files}


def test_the_readmes_three_numbers_are_measured_ones() -> None:
    config = ViLaMPConfig.paper()
    frames, kept = 10_000, config.tokens_per_keyframe
    tokens = kept * config.max_keyframes + (frames - config.max_keyframes) + config.video_newline
    memory, needles = (
        json.loads((ROOT / "figures/results/notebooks" / f"{name}.json").read_text())["metrics"]
        for name in ("05_10k_frame_inference", "07_video_niah")
    )
    for row in (
        f"{kept * frames:,} | **{tokens:,}**",
        f"{memory['gb_released_code']:.0f} GB, all frames at once (calculated) | **{memory['gb_measured']:.1f} GB**",
        f"(chance {100 * needles['chance']:.1f} %) | {100 * needles['uniform_mean_longest']:.1f} %, uniform keyframes "
        f"and mean pooling | **{100 * needles['full_longest']:.1f} %**",
    ):
        assert row in README


def test_files_are_written_whole() -> None:
    """Through `written_whole`, so that no kill leaves half a file in the place of a good one."""
    direct = re.compile(r"(?<!waiting)\.write_(?:text|bytes)\(|\.savefig\((?!waiting)")
    sources = [path for room in ("vilamp_lite", "figures") for path in (ROOT / room).rglob("*.py")]
    for path in [*sources, ROOT / "data" / "make_miniature.py"]:
        assert not direct.search(path.read_text()), path


def test_links_point_at_files() -> None:
    folders = ("data", "benchmarks", "book", "notebooks/assignments")
    for page in [*ROOT.glob("*.md"), *(page for folder in folders for page in (ROOT / folder).glob("*.md"))]:
        for target in linked_files(page.read_text()):
            # In the book a link to a folder leads nowhere.
            assert (page.parent / target).is_file(), f"{page.name} links to {target}"


def linked_files(text: str) -> list[str]:
    """What a page links to in the repository, without titles and places in a page."""
    links = re.findall(r"\]\(\s*<?([^)\s>]+)|\bhref=[\"']?([^\"'>\s]+)", text)
    targets = [(markdown or html).partition("#")[0] for markdown, html in links]
    return [target for target in targets if target and not re.match(r"[a-z]+:", target)]


def test_links_of_every_form_are_looked_at() -> None:
    text = """[a](one.md) [b](two.md#there) [c](three.md "title") [d](<four.md>) <a href="five.md#there"> [e](#here)
    [f](https://example.org/x.md) <a href='six.md'> [g](mailto:a@b.c)"""
    assert linked_files(text) == [f"{n}.md" for n in ("one", "two", "three", "four", "five", "six")]


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
    assert all(cell.execution_count for cell in code if cell.id != make_links.LAUNCH_CELL)
    assert not any(output.output_type == "error" for cell in code for output in cell.outputs)
    for target in re.findall(r"\]\((?!http)([^)]+)\)", notebook.cells[0].source):
        assert (path.parent / target).exists(), target


def test_every_page_has_the_address_that_pyproject_names() -> None:
    """`make links REPO=owner/name` mends it."""
    for path, text in make_links.pages(make_links.repository()).items():
        assert path.read_text() == text, path


def test_no_other_address_of_this_repository_occurs() -> None:
    makers = {ROOT / "book" / "make_links.py", Path(__file__)}
    made = {".git", ".venv", "runs", "__pycache__"}
    files = [path for path in ROOT.rglob("*") if path.is_file() and not made & set(path.relative_to(ROOT).parts)]
    for path in set(files) - makers:
        found = other_addresses(path.read_bytes().decode(errors="ignore"))
        assert not found, f"{path} names {found}"


HOSTS = r"(?:github\.com|mybinder\.org/v2/gh|colab\.research\.google\.com/github|nbviewer\.org/github)"
REPOSITORY = re.compile(rf"{HOSTS}[/:]([\w.-]+/[\w.-]+?)(?:\.git)?(?![\w.-])")
HOME = re.compile(r"[\w.-]+\.[a-z]{2,}[/:](?:[\w.~-]+/)*vilamp-lite(?![\w-])")  # at any host


def other_addresses(text: str) -> set[str]:
    """Repositories that a text names on GitHub and where its notebooks open, and homes of this one anywhere."""
    own = make_links.repository()
    homes = HOME.findall(text) if "vilamp-lite" in text else []
    others = {home for home in homes if own is None or own not in home}
    return others | set(REPOSITORY.findall(text)) - {"scikit-image/scikit-image", own}


ADDRESSES = """\
github.com/someone/x
https://raw.githubusercontent.com/someone/vilamp-lite/main/README.md
someone.github.io/vilamp-lite
https://gitlab.com/someone/vilamp-lite
git@gitlab.com:someone/vilamp-lite.git"""


def test_another_address_is_found_at_any_host() -> None:
    for address in ADDRESSES.split():  # no parameters: pytest's cache would hold the addresses
        assert other_addresses(f"See {address}."), address
    assert not other_addresses("cd /content/vilamp-lite; pip install vilamp-lite; see vilamp_lite/clip.py")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """What `make links` writes into, without an address."""
    for path, text in make_links.pages(None).items():
        target = tmp_path / path.relative_to(ROOT)
        target.parent.mkdir(exist_ok=True)
        target.write_text(text)
    return tmp_path


def contents(root: Path) -> dict[Path, str]:
    return {path: path.read_text() for path in root.rglob("*") if path.is_file()}


def test_links_are_written_everywhere_and_replaced(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    without = contents(copy)
    assert "make links REPO=owner/name" in without[copy / "README.md"]
    checksums = {path: code_checksum(path) for path in (copy / "notebooks").iterdir()}
    assert make_links.main("one/two.three", copy) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(without)
    assert make_links.repository(copy) == "one/two.three"
    once = contents(copy)
    assert "git clone https://github.com/one/two.three` and `cd two.three`" in once[copy / "README.md"]
    citation = yaml.safe_load(once[copy / "CITATION.cff"])
    assert citation["repository-code"] == "https://github.com/one/two.three"
    for path, checksum in checksums.items():
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        links = re.findall(r"\((https://\S+?)\)", notebook.cells[0].source)
        assert links[:2] == [
            f"https://mybinder.org/v2/gh/one/two.three/HEAD?labpath=notebooks/{path.name}",
            f"https://colab.research.google.com/github/one/two.three/blob/main/notebooks/{path.name}",
        ]
        first = next(cell for cell in notebook.cells if cell.cell_type == "code")
        assert "clone -q --depth 1 https://github.com/one/two.three /content/vilamp-lite\n" in first.source
        (script,) = re.findall(r"%run /content/vilamp-lite/(\S+)", first.source)
        assert (ROOT / script).is_file()
        assert code_checksum(path) == checksum  # no stored result gets older by a link
    assert make_links.main("one/two.three", copy) == 0
    assert not capsys.readouterr().out
    assert contents(copy) == once
    ran = once[path].replace('"execution_count": null', '"execution_count": 1')
    assert make_links.linked(ran, "one/two.three", path.name) == ran != once[path]
    make_links.main("another/name", copy)
    assert not any("one/two" in text for text in contents(copy).values())
    assert {path: text for path, text in make_links.pages(None, copy).items()} == without


MALFORMED = ("", "x", "a/b/c", "a b/c", "a/b c", "/b", "a/", "a/..", "-a/b", "a-/b", "a/b.git", "a/b\n", "a/b)`")


def test_what_is_refused_changes_nothing(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(copy)
    for repo in (*MALFORMED, "https://a/b"):
        assert make_links.main(repo, copy) == 2
        assert capsys.readouterr().err == f"error: REPO must be owner/name of a repository on GitHub, got {repo!r}\n"
        assert contents(copy) == before
    (copy / "CITATION.cff").write_text("# end of links\n# links: made by `make links`\n")
    before = contents(copy)
    assert make_links.main("one/two", copy) == 2
    assert "CITATION.cff" in capsys.readouterr().err
    assert contents(copy) == before


def test_make_passes_the_address_on_as_it_is(tmp_path: Path) -> None:
    """No shell reads it."""
    for name in ("Makefile", "book"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / name)
    given = f"$(touch {tmp_path}/touched)`touch {tmp_path}/touched`"
    run = subprocess.run(
        ["make", "links", f"REPO={given.replace('$', '$$')}", f"PYTHON={sys.executable}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"got {given!r}" in run.stderr
    assert not (tmp_path / "touched").exists()


def test_tables_are_the_notebooks() -> None:
    """Edited by hand, or older than a notebook or its result: `make table` mends it."""
    for page, text in pages(kept_results()).items():
        assert page.read_text() == text, page


@pytest.mark.parametrize("name", sorted(QUOTED))
def test_stored_notebooks_have_the_metrics_of_the_table(name: str) -> None:
    stored = recorded(nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4))
    kept = kept_results()[name]["metrics"]
    assert stored.keys() == kept.keys()
    for metric, value in kept.items():
        assert stored[metric] == pytest.approx(value, abs=1e-3), metric


def test_the_readme_shows_six_rows_of_the_books_table() -> None:
    results = kept_results()
    cells = [line.split(" | ") for line in full_table(results).splitlines()]
    short = short_table(results).splitlines()
    assert len(short) == 2 + 6
    assert all(line.split(" | ")[:3] in [row[:3] for row in cells] for line in short[2:])
    assert {row.verdict for row in ROWS} == {"reproduced", "not reproduced", "not comparable", "not run"}
    assert all((row.verdict == "not run") == (row.notebook is None) for row in ROWS)


def test_a_table_that_is_not_made_from_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`make table` makes it"):
        kept_results(tmp_path)
    results, first = kept_results(), QUOTED[0]
    (tmp_path / f"{first}.json").write_text(json.dumps(results[first] | {"code": "0" * 16}))
    with pytest.raises(ValueError, match="older than its notebook"):
        kept_results(tmp_path)
    (tmp_path / f"{first}.json").write_text(json.dumps(results[first] | {"error": "code cell 3: ValueError"}))
    with pytest.raises(ValueError, match="of a run that failed"):
        kept_results(tmp_path)
    with pytest.raises(ValueError, match="does not record 'gb_measured'"):
        full_table(results | {first: results[first] | {"metrics": {}}})
    with pytest.raises(ValueError, match="once each"):
        placed("no markers", "results", "a table")


def test_public_names_exist() -> None:
    import vilamp_lite

    for name in vilamp_lite.__all__:
        assert getattr(vilamp_lite, name).__doc__
    with pytest.raises(AttributeError, match="nothing"):
        vilamp_lite.nothing  # noqa: B018
