"""What comes from outside, checked with pydantic: one line says where it stands, what is wrong, and what was found."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Annotated, Any, ClassVar, TypeVar

import yaml
from pydantic import AfterValidator, TypeAdapter, ValidationError, ValidationInfo

from vilamp_lite.common.checks import describe

Kind = TypeVar("Kind")
_MOST_SHOWN = 100  # characters of what was found
# pydantic's kinds of error whose message names our classes, or speaks of calls.
_NO_MAPPING = ("model_type", "dataclass_type", "dict_type")
_UNKNOWN_FIELD = ("extra_forbidden", "unexpected_keyword_argument")


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError(f"must be a non-empty string, got {text!r}")
    return text


def _that_is_there(path: Path, about: ValidationInfo) -> Path:
    whole = (about.context or Path()) / path
    if not whole.is_file():
        raise ValueError(f"there is no file {whole}")
    return whole


Text = Annotated[str, AfterValidator(_not_blank)]
File = Annotated[Path, AfterValidator(_that_is_there)]  # relative to the folder that is given with the check


def checked(kind: type[Kind], value: object, where: str, *, remedy: str = "") -> Kind:
    """Take a value of a type that pydantic knows; no other type is turned into it, but an integer into a float.

    Args:
        kind: such as `int` or `list[Text]`.
        value: from YAML or the command line.
        where: it was found: a file, a parameter.
        remedy: what to do about an error.

    Raises:
        ValueError: another type; the message says where, what is wrong, what was found, and the remedy.
    """
    with _in_one_line(where, remedy):
        return TypeAdapter(kind).validate_python(value, strict=True)


def checked_json(kind: type[Kind], text: str, where: str, *, remedy: str = "", folder: Path | None = None) -> Kind:
    """Read a JSON text of a type that pydantic knows, such as a dataclass; as `checked`.

    Args:
        kind: such as a dataclass, or a list of one.
        text: a file's, or a line's.
        where: it was found.
        remedy: what to do about an error.
        folder: what a `File` in it is relative to.
    """
    with _in_one_line(where, remedy):
        return TypeAdapter(kind).validate_json(text, strict=True, context=folder)


class _Yaml(yaml.SafeLoader):
    """Reads numbers as YAML 1.2 does: 1e-3 is one, 010 is ten, 1:30 is text.

    It refuses a name that stands twice, of which it would take one, and values that repeat one another without end.
    """

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":int", ":float"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._values, self._sizes = 0, {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Count values, those behind an alias as often as they stand for another."""
        is_alias, before, mark = self.check_event(yaml.AliasEvent), self._values, self.peek_event().start_mark
        node = super().compose_node(parent, index)
        self._values += self._sizes.get(id(node), 1) if is_alias else 1
        self._sizes.setdefault(id(node), self._values - before)
        if self._values > _MOST_VALUES:
            problem = f"it holds more than {_MOST_VALUES:,} values; split it"
            raise yaml.constructor.ConstructorError(None, None, problem, mark)
        return node

    def construct_whole_number(self, node: yaml.ScalarNode) -> int:
        """Read it to the base of ten, or of sixteen behind 0x."""
        digits = self.construct_scalar(node).replace("_", "")
        return int(digits, 16 if "x" in digits else 10)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if first := lines.get(key.value):
                problem = f"{key.value} stands there twice, first in line {first}"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            lines[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)


_MOST_VALUES = 50_000
_SIGNS_AND_DIGITS = list("-+.0123456789")
_WHOLE = re.compile(r"[-+]?(?:0x[0-9a-fA-F_]+|\d[\d_]*)$", re.ASCII)
_FLOAT = re.compile(
    r"[-+]?(?:(?:\d[\d_]*\.[\d_]*|\.\d[\d_]*)(?:[eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.(?:inf|Inf|INF))$|\.(?:nan|NaN|NAN)$",
    re.ASCII,
)
_Yaml.add_implicit_resolver("tag:yaml.org,2002:int", _WHOLE, _SIGNS_AND_DIGITS)
_Yaml.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, _SIGNS_AND_DIGITS)
_Yaml.add_constructor("tag:yaml.org,2002:int", _Yaml.construct_whole_number)


def read_yaml(text: str, where: str) -> Any:
    """Read a YAML text, found somewhere, in which 1e-3 is a number and every name stands once."""
    try:
        return yaml.load(text, _Yaml)
    except yaml.constructor.ConstructorError as error:  # it is YAML, but can't be taken
        raise ValueError(f"{where}, line {error.problem_mark.line + 1}: {error.problem}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not YAML: {error}") from error


@contextmanager
def _in_one_line(where: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        place, kind = first["loc"], first["type"]
        if kind == "value_error":  # of a check of our own, which says what it got
            wrong = str(first["ctx"]["error"])
        elif kind in _UNKNOWN_FIELD:
            *place, name = place
            wrong = f"has no field {name!r}"
        else:
            said = "must be a mapping of names to values" if kind in _NO_MAPPING else first["msg"]
            wrong = f"{said[0].lower()}{said[1:]}, got {shorten(describe(first['input']), _MOST_SHOWN)}"
        for part in place:
            where += f" {part}" if isinstance(part, int) else f": {part}"
        raise ValueError(f"{where}: {wrong}" + (f"; {remedy}" if remedy else "")) from error
