"""Spec text: YAML 1.2's core schema, JSON, and what is refused."""

import json
import math
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcore.document import MAX_DEPTH, MAX_YAML, DocumentError, read_document, read_json


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("1.", 1.0),
        (".5", 0.5),
        ("-1.5e+3", -1500.0),
        ("+7", 7),
        ("012", 12),
        ("0o17", 15),
        ("0x1F", 31),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("Off", "Off"),
        ("y", "y"),
        ("True", True),
        ("false", False),
        ("~", None),
        ("null", None),
        ("", None),
        ("2024-01-01", "2024-01-01"),
        ("2024-01-01T00:00:00Z", "2024-01-01T00:00:00Z"),
        ("=", "="),
        ('"1e-4"', "1e-4"),
        ("'true'", "true"),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("1e999", math.inf),
        ("0b11", "0b11"),
        ("1e", "1e"),
        (".", "."),
    ],
)
def test_plain_scalars_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    read = read_document(f"a: {text}")["a"]
    assert read == value
    assert type(read) is type(value)


def test_nan_is_a_float_for_others_to_refuse() -> None:
    assert math.isnan(read_document("a: .nan")["a"])


def test_a_merge_key_is_a_plain_key() -> None:
    assert read_document("<<: {a: 1}") == {"<<": {"a": 1}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x 1\nb: *x", "line 1, column 4: anchors and aliases"),
        ("a: *x", "anchors and aliases"),
        ("a: !!python/object/apply:os.system [echo]", "tags are not read"),
        ("a: !!str 1", "tags are not read"),
        ("! a: 1", "tags are not read"),
        ("a: 1\nb: 2\na: 3", "line 3, column 1: the key 'a' is there twice"),
        ("1: 2", "a key must be a string"),
        ("null: 2", "a key must be a string"),
        ("? [a]\n: 1", "a key must be a string"),
        ("a: 1\n---\nb: 2", "another document"),
        ("a: b: c", "line 1, column 5"),
        ("[1, 2", "line 1"),
        ("\t- 1", "line 1"),
        ("a: \x01", "not YAML"),
        ("a: " + "9" * 5000, "too many digits"),
        ("a: 0x" + "f" * 5000, "too many digits"),
        ("a: 0o" + "7" * 5000, "too many digits"),
        ('{"a": 1, "a": 2}', "the key 'a' is there twice"),
        ('{"a": NaN}', "NaN is not JSON"),
        ("[" * 60_000, f"deeper than {MAX_DEPTH}"),
        ("{a: " * 5_000, f"deeper than {MAX_DEPTH}"),
        ("- " * 5_000, f"deeper than {MAX_DEPTH}"),
        ("a: " + "x" * MAX_YAML, "too many for YAML"),
        (b"\xff", "not UTF-8"),
    ],
)
def test_refused(text: str | bytes, message: str) -> None:
    with pytest.raises(DocumentError, match=message):
        read_document(text)


def test_a_billion_laughs_cost_nothing() -> None:
    bomb = "a: &a [x,x]\n" + "\n".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)},*{chr(97 + i)}]" for i in range(20)
    )
    with pytest.raises(DocumentError, match="aliases"):
        read_document(bomb)


def test_json_is_read_by_either() -> None:
    text = '{\n\t"a": [1, 2.5, "x\\/y \\ud83d\\ude00", true, null, 1e-4],\n\t"b": {}\n}'
    expected = {"a": [1, 2.5, "x/y \U0001f600", True, None, 1e-4], "b": {}}
    assert read_document(text) == read_json(text) == expected
    assert read_document("\ufeff{}".encode()) == {}
    assert read_document("{a: 1, b: [x, y]}") == {"a": 1, "b": ["x", "y"]}


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(), json_values, max_size=4))
def test_any_json_is_read_as_json_reads_it(value: Any) -> None:
    for text in (json.dumps(value), json.dumps(value, indent=2, ensure_ascii=False)):
        assert read_document(text) == value
        assert read_json(text) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "twice"),
        ('{"x": {"a": 1, "b": 2, "a": 2}}', "twice"),
        ('{"a": Infinity}', "Infinity is not JSON"),
        ("{a: 1}", "line 1, column 2"),
        ("", "line 1"),
        ('{"a": 1} x', "line 1, column 10"),
        ("[" * 100_000, "deeper"),
        ("[" * 50 + "]" * 50, "deeper"),
        ("1" * 5000, "digits"),
        (b"\xff\xfe", "UTF-8"),
    ],
)
def test_strict_json(text: str | bytes, message: str) -> None:
    with pytest.raises(DocumentError, match=message):
        read_json(text)


def test_a_key_twice_among_many_is_found_in_time() -> None:
    keys = [*(f"k{number}" for number in range(100_000)), "twice", "twice"]
    begun = time.thread_time()
    with pytest.raises(DocumentError, match="'twice' is there twice"):
        read_json("{" + ",".join(f'"{key}":1' for key in keys) + "}")
    assert time.thread_time() - begun < 20  # a tenth of a second; minutes where each key is looked for among all


def test_the_deepest_that_is_read() -> None:
    text = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert read_document(text) == read_json(text)
