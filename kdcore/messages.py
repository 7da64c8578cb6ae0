"""What is wrong with a spec, said for the person who wrote it: where, what, and how to mend it."""

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from kdcore.config import Loc
from kdcore.schema_walk import Place, field_names, tags, walk

MOST_READ = 1000
"""Of pydantic's errors: a document of 1 MiB can hold a hundred thousand, and looking for near names takes time."""
NOUNS = {"losses": "loss", "data": "data source", "layers": "layer", "shortcut": "layer"}
FOLLOW_UPS = ("default_factory_not_called",)
SHAPE_ERRORS = ("missing", "extra_forbidden", "model_type")
PLAIN = {
    "bool_type": "must be true or false",
    "dict_type": "must be a mapping",
    "finite_number": "must be a finite number",
    "float_type": "must be a number",
    "int_from_float": "must be a whole number",
    "int_type": "must be a whole number",
    "list_type": "must be a list",
    "model_attributes_type": "must be a mapping",
    "model_type": "must be a mapping",
    "string_type": "must be text",
    "string_unicode": "must be text of whole characters",
    "tuple_type": "must be a list",
}
BOUNDS = {
    "greater_than": ("must be above {}", "gt"),
    "greater_than_equal": ("must be at least {}", "ge"),
    "less_than": ("must be below {}", "lt"),
    "less_than_equal": ("must be at most {}", "le"),
    "string_pattern_mismatch": ("must match {}", "pattern"),
    "string_too_long": ("must have at most {} characters", "max_length"),
    "string_too_short": ("must have at least {} characters", "min_length"),
    "too_long": ("must have at most {} items", "max_length"),
    "too_short": ("must have at least {} items", "min_length"),
}


def explain(error: ValidationError, model: type[BaseModel]) -> list[tuple[Loc, str]]:
    """Each error of a validation with the path to its field and a sentence that helps to mend it.

    Args:
        error: what pydantic raised.
        model: the model that was validated, for the names that could have been meant.

    Returns:
        Pairs of `loc` and message, of the first 1,000 errors. A `loc` starts in the document, has no union tags and
        ends in the field's name, also where the field is missing; for an unknown or missing kind it ends in `type`.
    """
    details = [detail for detail in error.errors(include_url=False) if detail["type"] not in FOLLOW_UPS]
    found = [(detail, walk(model, detail["loc"])) for detail in details[:MOST_READ]]
    messages: dict[Loc, list[str]] = {}
    for detail, place in _likely_branches(found):
        loc, message = _told(detail, place)
        said = messages.setdefault(loc, [])
        if message not in said:
            said.append(message)
    return [(loc, "; or ".join(said)) for loc, said in messages.items()]


def _likely_branches(found: list[tuple[Any, Place]]) -> Iterable[tuple[Any, Place]]:
    """Of a union without a `type`, only the errors of the branch that fits the document best."""
    misfits: dict[tuple[Loc, str], int] = {}
    for detail, place in found:
        if place.branch is not None:
            misfits[place.branch] = misfits.get(place.branch, 0) + (detail["type"] in SHAPE_ERRORS)
    for detail, place in found:
        rivals = [count for branch, count in misfits.items() if place.branch and branch[0] == place.branch[0]]
        if place.branch is None or misfits[place.branch] == min(rivals):
            yield detail, place


def _told(detail: Any, place: Place) -> tuple[Loc, str]:
    kind, context = str(detail["type"]), detail.get("ctx", {})
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return (*place.loc, "type"), _unknown_kind(kind, context, place)
    if kind == "missing":
        name = place.loc[-1]
        return place.loc, f"is missing; add {name!r}" if isinstance(name, str) else "is missing; the list is too short"
    if kind == "extra_forbidden":
        return place.loc, _unknown("field", str(place.loc[-1]), field_names(place.parents))
    if kind == "value_error":
        return place.loc, str(context["error"])
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", context["expected"])
        return place.loc, f"must be {context['expected']}{_found(detail['input'])}{_near(detail['input'], choices)}"
    if kind == "byte_size":
        return place.loc, f"must be a whole number of bytes or a size such as '4GiB'{_found(detail['input'])}"
    if kind in BOUNDS:
        text, key = BOUNDS[kind]
        sized = _found(detail["input"]) if not isinstance(detail["input"], (list, Mapping)) else ""
        return place.loc, _singular(text.format(_number(context[key]))) + sized
    if kind in PLAIN:
        return place.loc, PLAIN[kind] + _found(detail["input"]) + _hint(kind, detail["input"], tags(place.types))
    return place.loc, str(detail["msg"]).replace("Input should", "must")


def _unknown_kind(kind: str, context: Mapping[str, Any], place: Place) -> str:
    named = [part for part in place.loc if isinstance(part, str)]
    noun = NOUNS.get(named[-1], named[-1]) if named else "type"
    known = tags(place.types)
    if kind == "union_tag_not_found":
        return f"is missing; name the {noun}: {', '.join(known)}"
    return _unknown(noun, str(context["tag"]), known)


def _unknown(noun: str, name: str, known: list[str]) -> str:
    return f"unknown {noun} {_short(name)}{_near(name, known) or ';'} there are: {', '.join(known)}"


def _near(name: Any, known: list[str]) -> str:
    near = difflib.get_close_matches(str(name)[:100], known, n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


def _found(value: Any) -> str:
    return f", found {_short(value)}"


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list"
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _number(bound: Any) -> str:
    return f"{bound:g}" if isinstance(bound, float) else str(bound)


def _singular(text: str) -> str:
    return re.sub(r" 1 (item|character)s$", r" 1 \1", text)


def _hint(kind: str, value: Any, known: list[str]) -> str:
    if kind == "model_attributes_type" and value in known:
        return f"; write {{type: {value}}}"
    number = kind in ("int_type", "float_type", "int_from_float")
    if number and isinstance(value, str) and re.fullmatch(r"\s*[-+]?\d+(\.\d*)?([eE][-+]?\d+)?\s*", value):
        return "; leave the quotes out"
    if number and isinstance(value, float) and value.is_integer():
        return f"; write {int(value)}"
    if kind == "string_type" and isinstance(value, (int, float)):
        return "; put quotes around it"
    if kind == "list_type" and value is not None:
        return "; put it in [ ]"
    return ""
