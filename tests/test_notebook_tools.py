"""The runner, metrics, the widgets and the progress bar."""

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import ipywidgets
import matplotlib.pyplot as plt
import nbformat
import pytest
import torch
from conftest import Refusal, Vilamp

from vilamp_lite.common.outside import read_yaml
from vilamp_lite.notebook import reproduce
from vilamp_lite.notebook.metrics import record
from vilamp_lite.notebook.reproduce import (
    check_parameters,
    find_notebook,
    parameters_of,
    parse_parameters,
    run_notebook,
)
from vilamp_lite.notebook.widgets import show_widget
from vilamp_lite.tinyworld import sample_questions


def write_notebook(path: Path, *sources: str) -> Path:
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    cells[0].metadata["tags"] = ["parameters"]
    cells[-1].id = "last-cell"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    path.parent.mkdir(exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


def test_a_run_leaves_everything_behind(tmp_path: Path) -> None:
    drawing = "import matplotlib.pyplot as plt\nplt.plot([size, 2])\nplt.show()\nplt.plot([3, 1])\nplt.show()"
    notebook = write_notebook(
        tmp_path / "draw.ipynb",
        "size: int = 1  # how large\nname: str = 'x'  # whose\nseed: int = 5  # of nothing",
        "from vilamp_lite.notebook.metrics import record\nrecord(area=size**2, third=size / 3)",
        "print('size is', size)",
        drawing,
    )
    before = notebook.read_bytes()
    folder = tmp_path / "out"
    (folder / "old").mkdir(parents=True)
    (folder / "old.png").write_text("mine")
    run = run_notebook(notebook, folder, {"size": 7})
    assert run.error is None
    assert run.figures == ["last-cell.png", "last-cell_2.png"]
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in run.figures)
    assert (folder / "old.png").read_text() == "mine"
    page = (folder / "draw.html").read_text()
    assert "size is 7" in page
    assert "area = 49, third = 2.33" in page
    result = json.loads((folder / "result.json").read_text())
    assert result["metrics"] == run.metrics == {"area": 49, "third": 7 / 3}
    assert result["parameters"] == {"size": 7, "name": "x", "seed": 5}
    assert result["seeds"] == {"seed": 5}
    assert result["versions"]["torch"]
    assert notebook.read_bytes() == before


def test_a_run_replaces_what_a_run_wrote_and_nothing_else(tmp_path: Path, refusal: Refusal) -> None:
    drawing = "import matplotlib.pyplot as plt\nfor n in range(count):\n    plt.plot([n])\n    plt.show()"
    notebook = write_notebook(tmp_path / "own" / "draw.ipynb", "count: int = 1  # of figures", drawing)
    mine = {"draw.ipynb": None, "draw.html": b"mine", "result.json": b"{}", ".run.json": b"[", "last-cell_7.png": b""}
    for name, content in mine.items():
        folder = tmp_path / name / "draw"
        folder.mkdir(parents=True)
        (folder / name).write_bytes(notebook.read_bytes() if content is None else content)
        before = (folder / name).read_bytes()
        assert f"holds {name}, which no run of this notebook" in refusal("reproduce", notebook, "--out", folder.parent)
        assert (folder / name).read_bytes() == before
        assert [path.name for path in folder.iterdir()] == [name]
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "draw.ipynb").symlink_to(tmp_path / "victim")
    with pytest.raises(ValueError, match=r"holds draw\.ipynb"):
        run_notebook(notebook, folder)
    (folder / "draw.ipynb").unlink()
    (folder / "my-picture.png").write_text("mine")
    for count, killed in ((3, False), (2, True), (1, False)):
        assert len(run_notebook(notebook, folder, {"count": count}).figures) == count
        figures = ["last-cell.png", *(f"last-cell_{n}.png" for n in range(2, count + 1))]
        assert sorted(path.name for path in folder.glob("last*")) == figures
        assert (folder / "my-picture.png").read_text() == "mine"
        if killed:  # before its end
            (folder / "result.json").unlink()
    # Even if it is said to be a run's.
    for path in folder.iterdir():
        shutil.copy(path, notebook.with_name(path.name))
    before = notebook.read_bytes()
    with pytest.raises(ValueError, match=r"is where draw\.ipynb lies, and it is not changed"):
        run_notebook(notebook, notebook.parent)
    assert notebook.read_bytes() == before


def test_parameters_that_cannot_work_leave_an_earlier_run_alone(tmp_path: Path, refusal: Refusal) -> None:
    source = "s: str = 'x'\no: dict = {}\nany_ = None"
    notebook = write_notebook(tmp_path / "kept.ipynb", source, "1")
    folder = tmp_path / "out" / "kept"
    assert run_notebook(notebook, folder).error is None
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    not_text = "caf\udce9"
    command = ("reproduce", notebook, "--out", folder.parent, "-p")
    assert "s must be finite numbers and words" in refusal(*command, "s", not_text)
    assert "the names in a mapping must be words" in refusal(*command, "o", "{1: a, b: c}")
    for name, value in (
        ("s", not_text),
        ("o", {not_text: 1}),
        ("o", {"a": [{"b": not_text}]}),
        ("o", {"a": {1: 2, "1": 3}}),
        ("any_", [b"x"]),
        ("any_", {"a": (1, 2), True: 3}),
    ):
        with pytest.raises(ValueError, match=f"^{name}"):
            run_notebook(notebook, folder, {name: value})
    for default in (r"'\ud800'", "{1, 2}", "1e999"):
        write_notebook(notebook, f"bad = {default}", "1")
        with pytest.raises(ValueError, match="the default of bad must be finite numbers and words"):
            run_notebook(notebook, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_no_picture_is_lost_to_another_cell(tmp_path: Path) -> None:
    drawing = (
        "import matplotlib.pyplot as plt\nfor size in {}:\n    plt.figure(figsize=(size, 1))\n"
        "    plt.plot([1])\n    plt.show()"
    )
    notebook = write_notebook(tmp_path / "draw.ipynb", *(drawing.format(sizes) for sizes in ([1, 2, 3], [4, 5], [6])))
    content = nbformat.read(notebook, as_version=4)
    for cell, name in zip(content.cells, ("a", "a_2", "a_2_2"), strict=True):
        cell.id = name
    nbformat.write(content, notebook)
    for _ in range(2):  # the second run takes the first one's place
        run = run_notebook(notebook, tmp_path / "out")
        assert run.figures == ["a.png", "a_3.png", "a_4.png", "a_2.png", "a_2_3.png", "a_2_2.png"]
    widths = [plt.imread(tmp_path / "out" / name).shape[1] for name in run.figures]
    assert widths == sorted(widths)
    assert len(set(widths)) == 6


def test_a_cell_s_id_leads_nowhere(tmp_path: Path) -> None:
    notebook = write_notebook(tmp_path / "draw.ipynb", "n: int = 1  # of nothing", "1")
    notebook.write_text(notebook.read_text().replace("last-cell", "../../victim"))
    with pytest.raises(ValueError, match=r"a cell with the id '\.\./\.\./victim'"):
        run_notebook(notebook, tmp_path / "out")


def test_a_failing_notebook_says_where(tmp_path: Path) -> None:
    notebook = write_notebook(
        tmp_path / "fail.ipynb", "size: int = 1  # how large", "print('so far')", "1 / (size - 1)"
    )
    run = run_notebook(notebook, tmp_path / "out")
    assert run.error == "code cell 3 (last-cell): ZeroDivisionError: division by zero"
    assert "so far" in (tmp_path / "out" / "fail.html").read_text()
    assert json.loads((tmp_path / "out" / "result.json").read_text())["error"] == run.error


def test_a_notebook_has_a_time_limit(tmp_path: Path) -> None:
    # Each cell is quick enough, all together are not.
    notebook = write_notebook(tmp_path / "slow.ipynb", "n: int = 0  # of nothing", *["import time\ntime.sleep(3)"] * 5)
    run = run_notebook(notebook, tmp_path / "out", time_limit=8)
    assert re.fullmatch(r"code cell \d \(.+\): not finished after 8 s", run.error)
    assert json.loads((tmp_path / "out" / "result.json").read_text())["error"] == run.error


def test_a_metric_recorded_twice_is_an_error(tmp_path: Path) -> None:
    code = "from vilamp_lite.notebook.metrics import record\nrecord(share=0.5)"
    notebook = write_notebook(tmp_path / "twice.ipynb", "n: int = 0  # of nothing", code, code)
    run = run_notebook(notebook, tmp_path / "out")
    assert run.error == "cell last-cell records the metric share once more: give it a name of its own"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "0.5", None, torch.ones(1)])
def test_a_metric_is_a_finite_number(value: object) -> None:
    with pytest.raises(ValueError, match="metric share must be a finite number"):
        record(share=value)


def test_a_missing_notebook_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no notebook"):
        run_notebook(tmp_path / "none.ipynb", tmp_path)


def test_parameters_of_every_type(tmp_path: Path) -> None:
    source = (
        "n: int = 10_000  # frames\nrate: float = 1e-3  # of learning\non: bool = False  # or off\n"
        "word: str = 'a'  # any\ndepths: list = [0.5]  # of needles\nplain = 2  # not annotated"
    )
    notebook = write_notebook(tmp_path / "all.ipynb", source, "1")
    known = parameters_of(notebook)
    assert {name: (about.type, about.default) for name, about in known.items()} == {
        "n": (int, 10_000),
        "rate": (float, 1e-3),
        "on": (bool, False),
        "word": (str, "a"),
        "depths": (list, [0.5]),
        "plain": (int, 2),
    }
    assert known["depths"].help == "of needles"
    texts = {"n": "-3", "rate": "1e-4", "on": "true", "word": "12", "depths": "[0, 0.25]"}
    values = {"n": -3, "rate": 1e-4, "on": True, "word": "12", "depths": [0, 0.25]}
    assert parse_parameters(notebook, list(texts.items())) == values
    refused = [("n", "1.5", "int"), ("on", "1", "bool"), ("depths", "0.5", "list"), ("depths", "[.nan]", "list")]
    refused += [("rate", text, "a finite number") for text in ("fast", "nan", "-inf")]
    for name, text, kind in refused:
        with pytest.raises(ValueError, match=re.escape(f"{name} must be {kind}, got {text!r}")):
            parse_parameters(notebook, [(name, text)])
    with pytest.raises(ValueError, match="twice"):
        parse_parameters(notebook, [("n", "1"), ("n", "2")])
    assert check_parameters(notebook, {"rate": 1})["rate"] == 1.0
    for value in (True, "1", 1.0):
        with pytest.raises(ValueError, match="n: input should be a valid integer"):
            check_parameters(notebook, {"n": value})


def test_parameters_that_may_be_none(tmp_path: Path) -> None:
    source = (
        "%matplotlib inline\nfrom typing import Optional\n# what a user may leave out\n"
        "video: str | None = None  # a file\nlimit: Optional[int] = None\nrate: 'float' = None  # of learning\n"
        "any_ = None  # whatever\nshare: float | None = 0.5\nwhere: list[str] = [\n    'here',\n]  # or there"
    )
    notebook = write_notebook(tmp_path / "none.ipynb", source, "print(video, limit, rate, any_, share)")
    known = parameters_of(notebook)
    assert {name: (about.type_name, about.default, about.help) for name, about in known.items()} == {
        "video": ("str | None", None, "a file"),
        "limit": ("int | None", None, ""),
        "rate": ("float | None", None, "of learning"),
        "any_": ("any", None, "whatever"),
        "share": ("float | None", 0.5, ""),
        "where": ("list", ["here"], "or there"),
    }
    for name, text, value in (
        ("video", "a.mp4", "a.mp4"),
        ("video", "12", "12"),
        ("limit", "12", 12),
        ("limit", "None", None),
        ("rate", "1e-3", 1e-3),
        ("any_", "a.mp4", "a.mp4"),
        ("any_", "1e-3", 1e-3),
        ("any_", "[1, a]", [1, "a"]),
        ("share", "None", None),
    ):
        read = parse_parameters(notebook, [(name, text)])
        assert read == {name: value}, (name, text)
        assert check_parameters(notebook, read)[name] == value
    for name, text, kind in (("limit", "1.5", "int | None"), ("share", "half", "float | None"), ("where", "x", "list")):
        with pytest.raises(ValueError, match=re.escape(f"{name} must be {kind}, got {text!r}")):
            parse_parameters(notebook, [(name, text)])
    assert run_notebook(notebook, tmp_path / "out", {"video": "a.mp4", "limit": None}).error is None
    assert "a.mp4 None None None 0.5" in (tmp_path / "out" / "none.html").read_text()


def test_numbers_are_written_as_in_python(tmp_path: Path) -> None:
    notebook = write_notebook(tmp_path / "list.ipynb", "items: list = []  # of numbers\nof: dict = {}\nx = None", "1")
    text = "[1e-3, 1E5, -2.5e3, .5e-1, '1e-3', 2, 1e, e3, 0x1e3]"
    values = [1e-3, 1e5, -2.5e3, 0.05, "1e-3", 2, "1e", "e3", 0x1E3]
    assert parse_parameters(notebook, [("items", text)]) == {"items": values}
    assert parse_parameters(notebook, [("of", "{a: 1e-3, b: [1e-4]}")]) == {"of": {"a": 1e-3, "b": [1e-4]}}
    with pytest.raises(ValueError, match=r"items must be list, got '\[1e999\]'"):
        parse_parameters(notebook, [("items", "[1e999]")])


def test_a_comment_bounds_a_parameter(tmp_path: Path) -> None:
    source = (
        "frames: list = [100]  # N, ≥ 84 for a roll call\nfps: float = 1.0  # > 0, per second\n"
        "depths: list = [0.5]  # in [0, 1]\nsteps: dict = {'a': 1}  # ≥ 1\nfree: int = 0  # at least 3, or > is greater"
    )
    notebook = write_notebook(tmp_path / "bounds.ipynb", source, "1")
    good = {"frames": [84, 85], "fps": 0.01, "depths": [0, 1], "steps": {"a": 1}, "free": -1}
    assert check_parameters(notebook, good) == good
    for name, text, message in (
        ("frames", "[300, 64]", "frames must be ≥ 84, got 64; its comment says: N, ≥ 84 for a roll call"),
        ("fps", "0", "fps must be > 0, got 0.0"),
        ("depths", "[0.5, 1.5]", "depths must be in [0, 1], got 1.5"),
        ("depths", "[-0.1]", "depths must be in [0, 1], got -0.1"),
        ("steps", "{a: 0}", "steps must be ≥ 1, got 0"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            parse_parameters(notebook, [(name, text)])


def test_frames_that_hold_no_roll_call_are_refused_before_the_first_cell(tmp_path: Path, refusal: Refusal) -> None:
    most = max(
        sum(needle.num_frames for needle in question.needles)
        for seed in range(300)
        for question in sample_questions("roll call", 1, seed)
    )
    for name in ("07", "08"):
        bound = int(re.search(r"≥ (\d+)", parameters_of(find_notebook(name))["frames"].help)[1])
        assert bound >= most
        too_few = f"[{bound - 1}, 300]" if name == "07" else str(bound - 1)
        said = refusal("reproduce", name, "-p", "frames", too_few, "--out", tmp_path / "runs")
        assert f"frames must be ≥ {bound}, got {bound - 1}" in said
    assert not (tmp_path / "runs").exists()


def test_a_notebook_runs_in_this_python_whatever_kernel_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One names none, as nbstripout leaves it, one a kernel that isn't there; another's `python3` comes first."""
    kernel = tmp_path / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    other = {"argv": ["/no/python", "-m", "ipykernel_launcher", "-f", "{connection_file}"], "display_name": "Other"}
    (kernel / "kernel.json").write_text(json.dumps(other | {"language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    for number, kernelspec in enumerate(({}, {"kernelspec": {"name": "conda-env-mine", "display_name": "mine"}})):
        notebook = write_notebook(
            tmp_path / f"{{kernel}}{number}.ipynb", "n: int = 1", "import sys\nprint(sys.prefix, n)"
        )
        content = nbformat.read(notebook, as_version=4)
        content.metadata = kernelspec
        nbformat.write(content, notebook)
        run = run_notebook(notebook, tmp_path / f"out{number}", {"n": 7})
        assert run.error is None
        assert f"{sys.prefix} 7" in (tmp_path / f"out{number}" / f"{{kernel}}{number}.html").read_text()


@pytest.mark.parametrize(
    "content",
    ["", "{}", "[]", "3", '"a"', '{"cells": null, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}', "[" * 9999],
)
def test_what_is_no_notebook_is_named(content: str, tmp_path: Path, refusal: Refusal) -> None:
    (tmp_path / "no.ipynb").write_text(content)
    assert "no.ipynb is not a notebook" in refusal("reproduce", tmp_path / "no.ipynb")


def test_notebooks_are_found_by_their_number() -> None:
    assert find_notebook("02").stem == "02_differential_keyframe_selection"
    for name in ("0", "none", "none.ipynb"):
        with pytest.raises(ValueError, match=f"'{name}' must name one notebook"):
            find_notebook(name)


def test_the_command_runs_the_others_when_one_fails(tmp_path: Path, vilamp: Vilamp) -> None:
    source = "size: int = 1  # how large"
    fails = write_notebook(tmp_path / "fails.ipynb", source, "raise KeyError(size)")
    works = write_notebook(tmp_path / "works.ipynb", source, "print(size)")
    code, out, err = vilamp("reproduce", fails, works, "-p", "size", 7, "--out", tmp_path / "runs")
    assert code == 1
    assert out.startswith("1 of 2 notebooks ran, in ")
    partial = tmp_path / "runs" / "fails" / "fails.ipynb"
    assert f"fails: code cell 3 (last-cell): KeyError: 7; as far as it came: {partial}" in err
    assert json.loads((tmp_path / "runs" / "works" / "result.json").read_text())["parameters"] == {"size": 7}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("01", "03", "-p", "max_keyframes", "4"), "01_frame_embedding.ipynb has no parameter max_keyframes; it has"),
        (("02", "-p", "max_keyframes", "four"), "max_keyframes must be int, got 'four'"),
        (("02", "-p", "seed"), "'-p' requires 2 arguments"),
        (("02", "02"), "would be written twice"),
        (("02", "--time-limit", "0"), "the time limit must be a finite number above 0"),
    ],
)
def test_the_command_refuses_before_it_runs(
    tmp_path: Path, arguments: tuple[str, ...], complaint: str, refusal: Refusal
) -> None:
    assert complaint in refusal("reproduce", "--out", tmp_path / "runs", *arguments)
    assert not (tmp_path / "runs").exists()


def test_the_command_lists_parameters(vilamp: Vilamp) -> None:
    listed = json.loads(vilamp("reproduce", "--list", "--json")[1])
    assert [name[:2] for name in listed][:4] == ["01", "02", "03", "04"]
    (budget,) = [about for about in listed["02_differential_keyframe_selection"] if about["name"] == "max_keyframes"]
    assert (budget["type"], budget["default"]) == ("int", 8)
    assert "the most keyframes" in budget["help"]


def test_headless_widgets_draw_their_first_state() -> None:
    calls = []
    slider, menu = ipywidgets.IntSlider(value=3), ipywidgets.Dropdown(options=["a", "b"], value="b")
    show_widget(lambda **values: calls.append(values), k=slider, name=menu)
    assert calls == [{"k": 3, "name": "b"}]


def test_interactive_widgets_follow_their_controls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VILAMP_HEADLESS")
    calls = []
    slider = ipywidgets.IntSlider(value=3)
    show_widget(lambda k: calls.append(k), k=slider)
    slider.value = 5
    assert calls == [3, 5]


def test_progress_bars_are_silent_off_a_terminal() -> None:
    code = "from vilamp_lite.common import progress_bar\nwith progress_bar(3, 'frames', 'work') as bar: bar.update(3)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == run.stderr == ""


def test_each_notebook_has_a_line_with_its_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [write_notebook(tmp_path / f"{name}.ipynb", "n: int = 0  # of nothing", "pass") for name in ("a", "b")]
    runs = iter([reproduce.Run("a", 12.3, [], {}, None), reproduce.Run("b", 4.0, [], {}, "code cell 1: ValueError")])

    def run(notebook: Path, *_: object) -> reproduce.Run:
        assert capsys.readouterr().err.endswith(f"{notebook.stem} … ")  # before it starts
        return next(runs)

    monkeypatch.setattr(reproduce, "_run", run)
    ended = []
    for _ in reproduce.run_notebooks(files, tmp_path):
        ended.append(capsys.readouterr().err)
    assert ended == ["12 s\n", "failed after 4 s\n"]

    def stopped(*_: object) -> reproduce.Run:
        raise KeyboardInterrupt

    monkeypatch.setattr(reproduce, "_run", stopped)
    with pytest.raises(KeyboardInterrupt):
        list(reproduce.run_notebooks(files, tmp_path))
    assert capsys.readouterr().err == "a … \n"


def test_yaml_reads_numbers_as_they_are_written_and_counts_what_aliases_stand_for() -> None:
    text = "[010, 1:30, 1e-3, .5e-1, 0x1F, 1_000, -.inf, 12e03, 1.]"
    assert read_yaml(text, "x.yaml") == [10, "1:30", 0.001, 0.05, 31, 1000, -math.inf, 12000, 1]
    assert read_yaml("a: &x [1, 2]\nb: *x", "x.yaml") == {"a": [1, 2], "b": [1, 2]}
    levels = [f"a{number}: &a{number} [{', '.join([f'*a{number - 1}'] * 9)}]" for number in range(1, 30)]
    with pytest.raises(ValueError, match=r"x\.yaml, line 5: it holds more than 50,000 values"):
        read_yaml("\n".join(["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]", *levels]), "x.yaml")
