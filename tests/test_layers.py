"""Imports point one way: who reads a file needs those below it, and none above."""

import ast
import json
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "vilamp_lite"
# Lowest first; a room stands for all its files but those that have a place of their own.
LAYERS = [
    "common",
    "video tinyworld",
    "keyframes merging configuration released additions",
    "streaming.encode",
    "modeling generation",
    "encoders clip conse processing checkpoints",
    "streaming.feature_store streaming.measured",
    "baselines costs",
    "tinyworld.miniature",
    "training",
    "evaluation",
    "plots",
    "notebook",
    "demo",
    "cli",
    "__main__",
]
LEVELS = {name: level for level, names in enumerate(LAYERS) for name in names.split()}
PATHS = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.parent != PACKAGE or path.name != "__init__.py"
}
CODE = {name: ast.parse(path.read_text()) for name, path in PATHS.items()}
# A room's own file hands names on, each when it is first asked for.
ROOMS = {name: code for name, code in CODE.items() if "lazy_loader.attach" in ast.unparse(code)}
FILES = {name: code for name, code in CODE.items() if name not in ROOMS}


def level(file: str) -> int:
    return LEVELS[file if file in LEVELS else file.split(".")[0]]


def imported(code: ast.AST) -> Iterator[str]:
    """What code imports of this package, wherever it says so, except for types: "merging", "common.checks.choice"."""
    if isinstance(code, ast.If) and ast.unparse(code.test) == "TYPE_CHECKING":
        for part in code.orelse:
            yield from imported(part)
        return
    names = []
    if isinstance(code, ast.Import):
        names = [name.name for name in code.names]
    elif isinstance(code, ast.ImportFrom):
        names = [f"{'.' * code.level}{code.module or ''}.{name.name}" for name in code.names]
    for name in names:
        assert not name.startswith("."), f"a relative import, {ast.unparse(code)}"
        assert name != "vilamp_lite", "the whole package, which hides what is needed of it"
        if name.startswith("vilamp_lite."):
            yield name.removeprefix("vilamp_lite.")
    for part in ast.iter_child_nodes(code):
        yield from imported(part)


def file_of(name: str) -> str | None:
    """The file that an imported name is or stands in; None for a room, or a name of a room."""
    return next((file for file in (name, name.rpartition(".")[0]) if file in FILES), None)


ARROWS = {file: {name: file_of(name) for name in imported(code)} for file, code in FILES.items()}


def test_arrows_point_one_way() -> None:
    wrong = [
        f"{file} imports {name}"
        for file, arrows in ARROWS.items()
        for name, other in arrows.items()
        if other is not None and level(other) > level(file)
    ]
    assert wrong == []


def test_there_is_no_circle() -> None:
    TopologicalSorter({file: set(filter(None, arrows.values())) for file, arrows in ARROWS.items()}).prepare()


def test_files_import_from_files() -> None:
    """Not from a room, which would hide how high a name stands, unless the room lies below or says it itself."""
    wrong = []
    for file, arrows in ARROWS.items():
        for name in (name for name, other in arrows.items() if other is None):
            room, _, attribute = name.partition(".")
            own = {
                target.id
                for node in ROOMS[room].body
                if isinstance(node, ast.Assign)
                for target in node.targets
                if isinstance(target, ast.Name)
            }
            highest = max(level(other) for other in FILES if other.startswith(f"{room}."))
            if attribute not in own and highest >= level(file):
                wrong.append(f"{file} imports {name}")
    assert wrong == []


def test_no_name_of_a_room_is_a_module_of_it() -> None:
    """Whichever were imported first would hide the other."""
    for room in ["", *ROOMS]:
        modules = {path.stem for path in (PACKAGE / room).iterdir()}
        assert not modules & set(import_module(f"vilamp_lite.{room}".rstrip(".")).__all__), room


def test_the_command_line_is_the_cli_s() -> None:
    """And no file imports by a text, which nobody could follow."""
    for file, code in CODE.items():
        found = {name.name for node in ast.walk(code) if isinstance(node, ast.Import) for name in node.names}
        found |= {node.module for node in ast.walk(code) if isinstance(node, ast.ImportFrom)}
        assert not found & {"argparse", "importlib"}, file


def test_rooms_only_hand_names_on() -> None:
    for room, code in ROOMS.items():
        assert not list(imported(code)), room


def test_notebooks_import_from_doors() -> None:
    """From the package, one of its flat files, or a room: what moves inside a room is nobody's business."""
    wrong = []
    for path in sorted((REPOSITORY / "notebooks").rglob("*.ipynb")):
        cells = json.loads(path.read_text())["cells"]
        code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        plain = re.sub(r"^(\s*)[%!].*", r"\1pass", code, flags=re.MULTILINE)
        wrong += [f"{path.name} imports {name}" for name in imported(ast.parse(plain)) if "." in (file_of(name) or "")]
    assert wrong == []
