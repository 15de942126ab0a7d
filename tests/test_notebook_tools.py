"""The runner, the widgets and the progress bar."""

import json
import subprocess
import sys
from pathlib import Path

import ipywidgets
import nbformat
import pytest

from vilamp_lite.notebook import show_widget
from vilamp_lite.reproduce import run_notebook


def write_notebook(path: Path, *sources: str) -> Path:
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    cells[0].metadata["tags"] = ["parameters"]
    cells[-1].id = "last-cell"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


def test_a_run_leaves_everything_behind(tmp_path: Path) -> None:
    drawing = "import matplotlib.pyplot as plt\nplt.plot([size, 2])\nplt.show()\nplt.plot([3, 1])\nplt.show()"
    notebook = write_notebook(
        tmp_path / "draw.ipynb",
        "size: int = 1  # how large\nname: str = 'x'  # whose",
        "print('size is', size)",
        drawing,
    )
    before = notebook.read_bytes()
    run = run_notebook(notebook, tmp_path / "out", {"size": 7})
    folder = tmp_path / "out" / "draw"
    assert run.error is None
    assert run.figures == ["last-cell.png", "last-cell_2.png"]
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in run.figures)
    assert "size is 7" in (folder / "draw.html").read_text()
    result = json.loads((folder / "result.json").read_text())
    assert result["parameters"] == {"size": 7, "name": "'x'"}
    assert result["versions"]["torch"]
    assert notebook.read_bytes() == before


def test_a_failing_notebook_says_where(tmp_path: Path) -> None:
    notebook = write_notebook(
        tmp_path / "fail.ipynb", "size: int = 1  # how large", "print('so far')", "1 / (size - 1)"
    )
    run = run_notebook(notebook, tmp_path / "out")
    assert "ZeroDivisionError" in run.error
    assert "so far" in (tmp_path / "out" / "fail" / "fail.html").read_text()
    assert json.loads((tmp_path / "out" / "fail" / "result.json").read_text())["error"] == run.error


def test_a_missing_notebook_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no notebook"):
        run_notebook(tmp_path / "none.ipynb", tmp_path)


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
    code = "from vilamp_lite.progress import progress_bar\nwith progress_bar(3, 'frames', 'work') as bar: bar.update(3)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == run.stderr == ""
