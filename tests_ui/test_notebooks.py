"""Every notebook in a real JupyterLab: all cells run, and every slider and menu changes its figure."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from selenium.webdriver import Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
# Limits in seconds, generous for a machine that is busy with other work. Alone, a notebook takes up to 100.
ALL_CELLS = 900
ONE_MOVE = 90
START = 300  # of JupyterLab, of a kernel

# The open notebook's code cells, as JupyterLab's own model holds them.
CELLS = """
    const panel = window.jupyterapp.shell.currentWidget;
    return panel.content.widgets.map((cell, index) => ({cell, index})).filter(({cell}) => cell.model.type === 'code')
        .map(({cell, index}) => ({
            index,
            source: cell.model.sharedModel.source,
            count: cell.model.executionCount,
            error: cell.model.outputs.toJSON().filter(output => output.output_type === 'error')
                .map(output => output.ename + ': ' + output.evalue),
        }));
"""
KERNEL = """
    const panel = window.jupyterapp?.shell.currentWidget;
    return panel?.sessionContext?.session?.kernel?.status ?? 'none';
"""
SHOW_CELL = """
    const [index, done] = arguments;
    const content = window.jupyterapp.shell.currentWidget.content;
    content.activeCellIndex = index;
    content.scrollToItem(index, 'start').then(() => done(content.widgets[index].node));
"""
# One step: an image may be replaced between two.
FIGURE = """
    return Array.from(arguments[0].querySelectorAll('.jp-OutputArea img'), image => image.src).join('');
"""
STOP_KERNEL = """
    const done = arguments[0];
    window.jupyterapp.shell.currentWidget.sessionContext.shutdown().then(() => done());
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """JupyterLab on this machine, on a copy of the notebooks: it saves what it opens."""
    home = tmp_path_factory.mktemp("lab")
    root = home / "repository"
    root.mkdir()
    for entry in ROOT.iterdir():
        if entry.name != "notebooks" and not entry.name.startswith("."):
            (root / entry.name).symlink_to(entry)
    shutil.copytree(ROOT / "notebooks", root / "notebooks")
    folders = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_WORKSPACES_DIR")
    environment = os.environ | {name: str(home / name) for name in (*folders, "JUPYTERLAB_SETTINGS_DIR")}
    environment.pop("VILAMP_HEADLESS", None)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", "--port=0"]
    command += [f"--ServerApp.root_dir={root}", "--expose-app-in-browser"]
    command += ["--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    with (home / "log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        yield wait_for_address(home / "JUPYTER_RUNTIME_DIR", server, home / "log")
    finally:
        server.terminate()
        server.wait(60)


def wait_for_address(runtime: Path, server: subprocess.Popen, log: Path) -> str:
    deadline = time.monotonic() + START
    while time.monotonic() < deadline and server.poll() is None:
        for file in runtime.glob("jpserver-*.json"):
            about = json.loads(file.read_text())
            return f"{about['url']}lab/tree/{{path}}?reset&token={about['token']}"
        time.sleep(0.5)
    raise AssertionError(f"JupyterLab did not start:\n{log.read_text()}")


def wait(browser: Chrome, seconds: float, condition: Callable[[], object], what: str) -> None:
    WebDriverWait(browser, seconds, 0.5).until(lambda _: condition(), f"{what}: not within {seconds} s")


def choose(browser: Chrome, menu: str, item: str) -> None:
    browser.find_element(By.XPATH, f"//div[@id='jp-MainMenu']//*[text()='{menu}']").click()
    path = f"//ul[contains(@class,'lm-Menu-content')]//div[contains(@class,'lm-Menu-itemLabel') and text()='{item}']"
    wait(browser, 20, lambda: browser.find_elements(By.XPATH, path), f"{menu} → {item}")
    browser.find_element(By.XPATH, path).click()


def run_all_cells(browser: Chrome) -> list[dict]:
    choose(browser, "Edit", "Clear Outputs of All Cells")
    choose(browser, "Run", "Run All Cells")

    def finished() -> bool:
        cells = browser.execute_script(CELLS)
        for cell in cells:
            assert not cell["error"], f"{cell['error']} in\n{cell['source']}"
        return all(cell["count"] for cell in cells) and browser.execute_script(KERNEL) == "idle"

    wait(browser, ALL_CELLS, finished, "all cells run")
    return browser.execute_script(CELLS)


def figure_of(cell: WebElement) -> str:
    """The figure of an interactive cell: the data of its images, while it is redrawn nothing."""
    return cell.parent.execute_script(FIGURE, cell)


def move(control: WebElement) -> None:
    """Set a slider to its lowest value, or its highest if it is there; choose a menu's next entry."""
    if control.tag_name == "select":
        menu = Select(control)
        chosen = menu.options.index(menu.first_selected_option)
        menu.select_by_index((chosen + 1) % len(menu.options))
    else:
        lowest = control.get_attribute("aria-valuenow") == control.get_attribute("aria-valuemin")
        control.send_keys(Keys.END if lowest else Keys.HOME)


@pytest.mark.timeout(ALL_CELLS + 10 * ONE_MOVE)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells_run_and_widgets_change_their_figures(browser: Chrome, lab: str, path: Path) -> None:
    browser.get(lab.format(path=f"notebooks/{path.name}"))
    wait(browser, START, lambda: browser.execute_script(KERNEL) == "idle", "the kernel's start")
    cells = run_all_cells(browser)
    interactive = [cell["index"] for cell in cells if "show_widget(" in cell["source"]]
    assert interactive
    for index in interactive:
        cell = browser.execute_async_script(SHOW_CELL, index)
        wait(browser, 20, lambda cell=cell: figure_of(cell), f"a figure in cell {index}")
        found = cell.find_elements(By.CSS_SELECTOR, ".widget-slider .noUi-handle, .widget-dropdown select")
        assert found
        for number, control in enumerate(found):
            assert control.tag_name != "select" or len(Select(control).options) > 1, f"cell {index}: a menu of one"
            before = figure_of(cell)
            move(control)
            wait(
                browser,
                ONE_MOVE,
                lambda cell=cell, before=before: figure_of(cell) not in ("", before),
                f"cell {index}: another figure after control {number} is moved",
            )
            wait(browser, ONE_MOVE, lambda: browser.execute_script(KERNEL) == "idle", "an idle kernel")
    browser.execute_async_script(STOP_KERNEL)  # it holds the models of this notebook
