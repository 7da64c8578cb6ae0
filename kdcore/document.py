"""Reading a spec's text: YAML 1.2's core schema, of which JSON is a subset, and strict JSON.

PyYAML reads YAML 1.1, where `1e-4` is a string, `no` a boolean and `2024-01-01` a date; here the plain
scalars are resolved as YAML 1.2 does. What could surprise or explode is refused: aliases, tags,
duplicate keys, keys that are no strings, deep nesting.
"""

import json
import re
from collections import Counter
from typing import Any, NoReturn

import yaml

MAX_DEPTH = 40
MAX_YAML = 256 * 1024
"""Characters; PyYAML reads some 100 kB a second. JSON has no such limit."""
MAX_DIGITS = 1000
"""Of a whole number in YAML; Python writes none of over 4,300 digits back, and JSON's parser refuses those itself."""


class DocumentError(ValueError):
    """The text is not a document that can be read; the message gives the line where it is known."""


class _NotJSONError(DocumentError):
    """Not JSON's syntax at all."""


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's plain scalars and without aliases, tags and duplicate keys."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            _refuse("anchors and aliases are not read; write the value out", event.start_mark)
        if getattr(event, "tag", None) is not None:
            _refuse(f"tags are not read; leave {event.tag} out", event.start_mark)
        if self.depth >= MAX_DEPTH:
            _refuse(f"nested deeper than {MAX_DEPTH} levels", event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:str":
                _refuse("a key must be a string; put quotes around it", key.start_mark)
            if key.value in seen:
                _refuse(f"the key {key.value!r} is there twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)

    def construct_integer(self, node: yaml.ScalarNode) -> int:
        text = str(node.value)
        if len(text) > MAX_DIGITS:
            _refuse("the number has too many digits", node.start_mark)
        return int(text, 8 if text.startswith("0o") else 16 if text.startswith("0x") else 10)


def _refuse(message: str, mark: Any) -> NoReturn:
    raise DocumentError(f"line {mark.line + 1}, column {mark.column + 1}: {message}")


_CORE = (
    ("null", r"~|null|Null|NULL|", "~nN"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
)
_Loader.yaml_implicit_resolvers = {}
for _name, _pattern, _first in _CORE:
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_name}", re.compile(rf"^(?:{_pattern})$"), [*_first, *([""] if _name == "null" else [])]
    )
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_integer)


def read_document(text: str | bytes) -> Any:
    """Read one YAML 1.2 or JSON document.

    `.nan` and `.inf` come out as floats, so that whoever checks the values can say where they are.

    Raises:
        DocumentError: says what cannot be read and in which line.
    """
    text = _decoded(text)
    if text.lstrip()[:1] in ("{", "["):
        try:
            return read_json(text)
        except _NotJSONError:
            pass  # YAML's own braces, perhaps
    if len(text) > MAX_YAML:
        raise DocumentError(f"{len(text):,} characters are too many for YAML (at most {MAX_YAML:,}); write JSON")
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - derived from SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        message = f"{error.problem or error.context}"
        if mark is None:
            raise DocumentError(message) from None
        raise DocumentError(f"line {mark.line + 1}, column {mark.column + 1}: {message}") from None
    except yaml.YAMLError as error:
        raise DocumentError(f"not YAML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise DocumentError(f"nested deeper than {MAX_DEPTH} levels") from None


def read_json(text: str | bytes) -> Any:
    """Read strict JSON: no duplicate keys, no NaN or Infinity, nesting bounded.

    Raises:
        DocumentError: says what cannot be read and where.
    """
    try:
        value = json.loads(_decoded(text), object_pairs_hook=_unique, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise _NotJSONError(f"line {error.lineno}, column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise DocumentError(f"nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:
        if isinstance(error, DocumentError):
            raise
        raise DocumentError("a number has too many digits") from None
    _check_depth(value)
    return value


def _decoded(text: str | bytes) -> str:
    if isinstance(text, str):
        return text
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DocumentError(f"byte {error.start}: not UTF-8") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise DocumentError(f"the key {twice!r} is there twice")
    return value


def _no_constant(name: str) -> NoReturn:
    raise DocumentError(f"{name} is not JSON; write a finite number")


def _check_depth(value: Any, depth: int = 0) -> None:
    if depth > MAX_DEPTH:
        raise DocumentError(f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            _check_depth(item, depth + 1)
