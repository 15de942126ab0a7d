"""No command changes or deletes a file that it did not write, wherever its output is pointed."""

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import nbformat
import pytest
from conftest import Vilamp
from tiny_models import tiny_model
from video_files import write_video

from vilamp_lite import evaluation
from vilamp_lite.processing import ViLaMPProcessor
from vilamp_lite.tinyworld.questions import random_scene
from vilamp_lite.tinyworld.render import write_video as write_world

# Each of them is what some command writes, or might take for its own.
NAMES = """
    manifest.json frames-00000-0123456789abcdef.safetensors patches-00000-0123456789abcdef.safetensors
    state.safetensors model.safetensors model-00001-of-00002.safetensors model.safetensors.index.json config.json
    tokenizer.json curves.png bank.safetensors result.json .run.json last-cell.png last-cell_2.png draw.ipynb draw.html
    table.csv figure.png out.png out.mp4 out.json case_0.json 16_0.5_attribute_dks_dfm.json notes.tmp holiday.png
"""
LINKS = (".waiting", ".lock", ".config.json.waiting", "state.safetensors.tmp")
FOLDERS = ("out", "out.features", "model", "draw", "cells", "encoder", "full-seed0", "full-seed0/model")
COMMANDS = ("strip", "world", "encode", "niah", "footage", "miniature", "finetune", "reproduce", "sweep")
FILES = {"strip": "out.png", "world": "out.mp4"}  # the others write to a folder


def strangers_in(folder: Path, outside: Path) -> None:
    """Put all of the names into a folder where they are free."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES.split():
        if not os.path.lexists(folder / name):
            (folder / name).write_text(f"mine: {name}")
    for number, name in enumerate(LINKS):
        if not os.path.lexists(folder / name):
            (folder / name).symlink_to(outside / "victim" if number % 2 else outside / "nowhere")
    for name in FOLDERS:
        if not os.path.lexists(folder / name):
            (folder / name).mkdir()
            (folder / name / "config.json").write_text("mine")


def snapshot(folder: Path) -> dict[Path, object]:
    """Bytes and time of every file, and where each link leads."""
    seen: dict[Path, object] = {}
    for path in folder.rglob("*"):
        if path.is_symlink():
            seen[path] = path.readlink()
        elif path.is_file():
            seen[path] = (path.read_bytes(), path.stat().st_mtime_ns)
    return seen


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory, miniature: Path) -> dict[str, list[object]]:
    """Every command that writes, up to where it writes to."""
    given = tmp_path_factory.mktemp("given")
    write_world(given / "world.mp4", [random_scene(1)])
    write_video(given / "hay.mp4", 8, rate=1)
    case = {"haystack": "hay.mp4", "needle": "world.mp4", "depth": 0.5, "question": "which?", "options": []}
    (given / "cases.json").write_text(json.dumps([case | {"answer": "red"}]))
    example = {"video": "world.mp4", "question": "which?", "answer": "red"}
    (given / "train.jsonl").write_text(json.dumps(example))
    model = tiny_model()
    for part in (model, ViLaMPProcessor.byte_level(model.config)):
        part.save_pretrained(given / "tiny")
    sources = ("a: int = 1  # any", "from vilamp_lite.notebook import record\nrecord(total=a)")
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    cells[0].metadata["tags"], cells[-1].id = ["parameters"], "last-cell"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), given / "draw.ipynb")
    (given / "grid.yaml").write_text("{notebook: draw.ipynb, parameters: {a: [1]}, metric: total}")
    strip = ["keyframes", given / "world.mp4", "a star", "--encoder", "tinyworld", "--max-frames", 3, "--strip"]
    tune = ["--model", given / "tiny", "--data", given / "train.jsonl", "--steps", 1, "--batch-size", 1]
    niah = ["evaluate", "niah", "--model", miniature, "--frames", 16, "--questions", 1, "--families", "attribute"]
    return {
        "strip": strip,
        "world": ["tinyworld", "--frames", 16, "--out"],
        "encode": ["encode", given / "world.mp4", "--model", miniature, "--out"],
        "niah": [*niah, "--out"],
        "footage": ["evaluate", "footage", given / "cases.json", "--model", miniature, "--out"],
        "miniature": ["train", "miniature", "--encoder", miniature / "selector", "--out"],
        "finetune": ["train", "finetune", *tune, "--max-frames", 2, "--out"],
        "reproduce": ["reproduce", given / "draw.ipynb", "--out"],
        "sweep": ["sweep", given / "grid.yaml", "--workers", 1, "--out"],
    }


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Haystacks of few scenes."""
    monkeypatch.setattr(evaluation, "evaluate_cells", partial(evaluation.evaluate_cells, pool=30))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


KINDS: dict[str, Callable[[Path, Path], object]] = {
    "file": lambda path, _: path.write_text("mine"),
    "link": lambda path, outside: path.symlink_to(outside / "victim"),
    "loose link": lambda path, outside: path.symlink_to(outside / "nowhere"),
    "folder": lambda path, _: (path.mkdir(), (path / "mine.txt").write_text("mine")),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_touches_a_file_that_it_did_not_write(
    name: str, commands: dict[str, list[object]], tmp_path: Path, vilamp: Vilamp
) -> None:
    """Among strangers, with one in the place of each file that it writes, and with strangers that came afterwards."""
    outside, whole = tmp_path / "outside", tmp_path / "whole"
    outside.mkdir()
    (outside / "victim").write_text("mine")
    own: set[Path] = set()

    def run(out: Path) -> int:
        before = {path: state for path, state in snapshot(tmp_path).items() if path not in own}
        code, _, said = vilamp(*commands[name], out / FILES.get(name, ""))
        after = snapshot(tmp_path)
        assert {path: after.get(path) for path in before} == before, said
        return code

    strangers_in(tmp_path / "full", outside)
    run(tmp_path / "full")
    if name == "miniature":  # which takes a while
        written = [Path("full-seed0", file) for file in ("curves.png", "model/config.json")]
    else:
        whole.mkdir()
        assert run(whole) == 0
        own |= set(snapshot(whole))
        written = [path.relative_to(whole) for path in sorted(own) if needed(path.relative_to(whole), name)]
    assert written
    for number, path in enumerate(written):
        for kind, put in KINDS.items():
            out = tmp_path / f"{number} {kind}"
            (out / path).parent.mkdir(parents=True)
            put(out / path, outside)
            run(out)
    if not own:
        return
    for number, path in enumerate(written):
        again = tmp_path / f"again {number}"
        shutil.copytree(whole, again)
        own |= set(snapshot(again)) - {again / path}
        (again / path).unlink()
        KINDS["link"](again / path, outside)
        run(again)
    for folder in [whole, *(path for path in whole.rglob("*") if path.is_dir())]:
        strangers_in(folder, outside)
    run(whole)


def needed(path: Path, name: str) -> bool:
    """Whether a place is tried: one file stands for all of a model, and a sweep's cells are runs of `reproduce`."""
    if "model" in path.parts:
        return path == Path("model", "config.json")
    return "cells" not in path.parts and (path.name != ".lock" or name == "encode")
