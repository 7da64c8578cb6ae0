"""Specs by machine, from the published JSON Schema: valid ones, and ones with a few faults in them."""

import copy
import math
import string
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

from kdcore.catalog import spec_schema
from kdcore.config import Loc

SCHEMA = spec_schema()
DEEP: Any = None
for _ in range(60):
    DEEP = [DEEP]
LIKELY: dict[str, list[Any]] = {
    "classes": [*[None] * 6, 10, 10, 10, 2],
    "student_layer": ["logits", "hidden_1", "conv_1", "hidden_9", ""],
    "teacher_layer": ["logits", "hidden_1", "conv_1", "hidden_9", ""],
    "student_layers": [["hidden_1"], ["conv_1"], ["conv_1", "conv_2"], ["hidden_9"], []],
    "teacher_layers": [["hidden_1"], ["conv_1"], ["conv_1", "conv_2"], ["hidden_9"], []],
    "teacher": [1, 1, 2, 16],
    "offset_classes": [["3"], ["3", "9"], ["none such"]],
    "without_classes": [["3"], ["3", "9"], ["none such"]],
    "select_by": ["accuracy", "nll", "last", "rmse"],
    "epochs": [1, 1, 2, 100_000],
    "batch_size": [1, *[7] * 3, *[32] * 4, *[48] * 4, *[64] * 4, 1000, 1_048_576],
    "depth": [1, 2, 8, 10, 14, 16],
    "train_samples": [*[None] * 4, 64, 100, 100, 200, 1000, 7],
    "validation": [1, 20, 20, 100, 100, 0.1, 0.1, 0.1, 0.1, 0.5, 1e-9, 0.999, 5000],
    "max_memory": [None, None, 2**30, "4GiB", "1.5 GB", 2**26, 2**60, "80MB", "1KiB", "many"],
    "file": ["t.safetensors", "folder.safetensors", "absent.safetensors", "a/../b.safetensors", "t.pt"],
    "crop": [0, 1, *[7] * 4, 8, 64],
    "jitter": [0, 1, *[7] * 4, 8, 64],
    "milestones": [[1], [1, 2], [3, 5, 100_000], [2, 2]],
}
"""Where the schema alone would hardly ever give what also fits the models and the data."""
USUAL: dict[str, list[Any]] = {
    "data": [{"$ref": "DigitsConfig"}],  # the one that is always there
    "model": [{"$ref": "MLPConfig"}, *[{"$ref": "CNNConfig"}] * 3],  # which read its pictures
    "peer": [{"$ref": "MLPConfig"}],
}
"""Branches that are taken most of the time, for the same reason."""
SELDOM = [
    "classes", "offset_classes", "select_by", "student_layer", "student_layers", "teacher", "teacher_layer",
    "teacher_layers", "view", "weights", "without_classes", "TeacherTrainConfig.losses", "shrink", "max_parameters",
    "max_latency_ms", "family", "initialize", "task", "tokenizer", "pos_weight", "views", "tuning",
]  # fmt: skip
CHANCES = dict.fromkeys(SELDOM, 1) | {"stages": 8, "StageConfig.losses": 8, "StudentConfig.model": 10}
"""How often of ten times a field is given that could be left out; others four times."""
WEIRD: list[Any] = [
    None, True, "", "1", "kd", "x" * 5_000, "\x00", "\ud800", "Größe\n", -1, 0, 1, 0.5, 1e-320, 1e308, 2**63, -(2**63),
    10**400, math.nan, math.inf, -math.inf, [], {}, [[]], [{}], {"type": "kd"}, {"type": []}, {"": 0}, DEEP,
    list(range(500)), {f"key-{number}": number for number in range(500)},
]  # fmt: skip


@st.composite
def specs(draw: st.DrawFn, faults: int = 3) -> Any:
    """A document: as the schema has it, with up to so many faults."""
    document = _value(draw, SCHEMA, "")
    for _ in range(draw(st.sampled_from([*[0] * 6, *range(1, faults + 1)]))):
        document = _with_fault(draw, document)
    return document


def _value(draw: st.DrawFn, schema: Any, name: str) -> Any:
    if "$ref" in schema:
        schema = SCHEMA["$defs"][schema["$ref"].rsplit("/", 1)[-1]]
    if name in LIKELY:
        return draw(st.sampled_from(LIKELY[name]))
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return draw(st.sampled_from(schema["enum"]))
    branches = schema.get("anyOf") or schema.get("oneOf")
    if branches:
        if name in USUAL and draw(st.integers(0, 9)):
            return _value(draw, draw(st.sampled_from(USUAL[name])), "")
        return _value(draw, draw(st.sampled_from(branches)), "")
    return {
        "object": _mapping,
        "array": _list,
        "string": _text,
        "integer": _integer,
        "number": _number,
        "boolean": lambda draw, schema, name: draw(st.booleans()),
        "null": lambda draw, schema, name: None,
    }[schema["type"]](draw, schema, name)


def _mapping(draw: st.DrawFn, schema: Any, name: str) -> Any:
    if "properties" not in schema:
        return draw(st.dictionaries(st.sampled_from(["team", "a/b", "A"]), st.text(string.printable[:95]), max_size=2))
    needed = [*schema.get("required", ()), *(["type"] if "type" in schema["properties"] else [])]
    chances = {key: CHANCES.get(f"{schema['title']}.{key}", CHANCES.get(key, 4)) for key in schema["properties"]}
    return {
        key: _value(draw, part, key)
        for key, part in schema["properties"].items()
        if key in needed or draw(st.integers(0, 9)) > 9 - chances[key]
    }


def _list(draw: st.DrawFn, schema: Any, name: str) -> Any:
    if "prefixItems" in schema:
        return [_value(draw, part, "") for part in schema["prefixItems"]]
    least = schema.get("minItems", 0)
    if name in ("teachers", "stages") and draw(st.integers(0, 9)):  # most losses need a teacher
        least = 1
    size = min(draw(st.sampled_from([least, least, least + 1, least + 2])), schema.get("maxItems", least + 2))
    return [_value(draw, schema["items"], name) for _ in range(size)]


def _text(draw: st.DrawFn, schema: Any, name: str) -> Any:
    if "pattern" in schema:
        text = draw(st.from_regex(schema["pattern"], fullmatch=True))
        return text[: schema.get("maxLength", 200)]
    return draw(st.text(max_size=20))


def _integer(draw: st.DrawFn, schema: Any, name: str) -> Any:
    least, most = schema.get("minimum", 0), schema.get("maximum", schema.get("exclusiveMaximum", 2**63) - 1)
    usual = st.integers(least, min(most, least + 40))
    return draw(
        usual if draw(st.integers(0, 9)) else st.sampled_from([least, most, most - 1]) | st.integers(least, most)
    )


def _number(draw: st.DrawFn, schema: Any, name: str) -> Any:
    least = schema.get("minimum", schema.get("exclusiveMinimum", 0))
    most = schema.get("maximum", schema.get("exclusiveMaximum", 1e9))
    edges = {"exclude_min": "exclusiveMinimum" in schema, "exclude_max": "exclusiveMaximum" in schema}
    if most <= 1 or not draw(st.integers(0, 9)):
        return draw(
            st.floats(least, most, **edges) | st.just(most if "maximum" in schema else least + (most - least) / 2)
        )
    return min(max(least, draw(st.sampled_from([0.001, 0.01, 0.5, 1, 1.0, 4]))), most)


def _with_fault(draw: st.DrawFn, document: Any) -> Any:
    """The document with one value replaced, left out, added, or under a misspelt name."""
    document = copy.deepcopy(document)
    places = [place for place in walk(document) if place]
    if not places:
        return draw(st.sampled_from(WEIRD))
    place = draw(st.sampled_from(places))
    parent, last = at(document, place[:-1]), place[-1]
    fault = draw(st.sampled_from(["replace", "replace", "drop", "extra", "misspell"]))
    if fault == "replace" or isinstance(parent, list):
        parent[last] = draw(st.sampled_from(WEIRD))
    elif fault == "drop":
        del parent[last]
    elif fault == "extra":
        parent[draw(st.sampled_from(["", "bogus", "type", "weight", "x" * 300, "\x00", "\ud800", "0"]))] = 1
    else:
        parent[last[1:] + last[:1]] = parent.pop(last)
    return document


def walk(value: Any, place: Loc = ()) -> Iterator[Loc]:
    """The paths of everything in a document; of a large or deep part not all."""
    yield place
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for _, (key, part) in zip(range(20), parts, strict=False):
        if len(place) < 12:
            yield from walk(part, (*place, key))


def at(document: Any, place: Loc) -> Any:
    """What stands there; a KeyError or IndexError where nothing does."""
    for part in place:
        if isinstance(document, list) and not isinstance(part, int):
            raise KeyError(part)
        if not isinstance(document, (dict, list)):
            raise KeyError(part)
        if isinstance(document, dict):
            part, document = readable(part), {readable(key): value for key, value in document.items()}
        document = document[part]
    return document


def readable(key: Any) -> Any:
    """A key as pydantic's errors have it: half a character is shown as three that stand for what is unreadable."""
    return key.encode("utf-8", "surrogatepass").decode("utf-8", "replace") if isinstance(key, str) else key


def leads(document: Any, loc: Loc, *, exactly: bool = False) -> bool:
    """Whether a path ends at something in the document, or, unless `exactly`, one step beyond: at what is missing."""
    try:
        parent = at(document, loc if exactly else loc[:-1])
        if exactly:
            return True
        if not loc or isinstance(parent, list):
            return not loc or (isinstance(loc[-1], int) and 0 <= loc[-1] <= len(parent))
    except (KeyError, IndexError):
        return False
    return isinstance(parent, dict) and (loc[-1] in map(readable, parent) or loc[-1] in FIELDS)


FIELDS = {name for part in [SCHEMA, *SCHEMA["$defs"].values()] for name in part.get("properties", {})}
