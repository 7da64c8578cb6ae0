"""What is wrong with a spec: where it is, and how to mend it."""

from collections.abc import Callable
from typing import Any

import pytest

from kdcore.config import MAX_ERRORS, SpecError
from kdcore.document import DocumentError
from kdcore.messages import MOST_READ
from kdcore.spec import parse_spec
from tests.calls import calls

BASE: dict[str, Any] = {
    "data": {"type": "digits"},
    "teachers": [{"model": {"type": "mlp"}}],
    "student": {"model": {"type": "mlp"}},
}
LOSS = ("stages", 0, "losses", 0)
NAN = float("nan")


def errors(**changes: Any) -> list[tuple[tuple[str | int, ...], str]]:
    with pytest.raises(SpecError) as caught:
        parse_spec({**BASE, **changes})
    return caught.value.errors


def stage(**values: Any) -> dict[str, Any]:
    return {"stages": [values]}


def loss(**values: Any) -> dict[str, Any]:
    return stage(losses=[values])


def taught(**values: Any) -> dict[str, Any]:
    return {"teachers": [{"model": {"type": "mlp"}, **values}]}


CASES: list[tuple[dict[str, Any], tuple[str | int, ...], str]] = [
    # unknown kinds
    (
        loss(type="kdd"),
        (*LOSS, "type"),
        "unknown loss 'kdd'; did you mean 'kd' or 'nkd' or 'dkd'? there are: cross_entropy, kd, soft_cross_entropy",
    ),
    (loss(type="zzz"), (*LOSS, "type"), "unknown loss 'zzz'; there are: cross_entropy, kd"),
    (loss(type=5), (*LOSS, "type"), "unknown loss '5'"),
    (loss(temperature=3), (*LOSS, "type"), "is missing; name the loss: cross_entropy, kd"),
    ({"data": {"type": "mnits"}}, ("data", "type"), "unknown data source 'mnits'; did you mean 'mnist'"),
    ({"data": "mnist"}, ("data",), "must be a mapping, found 'mnist'; write {type: mnist}"),
    ({"data": None}, ("data",), "must be a mapping, found null"),
    ({"student": {"model": {"type": "mpl"}}}, ("student", "model", "type"), "unknown model 'mpl'; did you mean 'mlp'"),
    (stage(optimizer={"lr": 0.1}), ("stages", 0, "optimizer", "type"), "name the optimizer: sgd, adam, adamw"),
    # unknown and missing fields
    (loss(type="kd", temprature=3), (*LOSS, "temprature"), "unknown field 'temprature'; did you mean 'temperature'"),
    (stage(epoch=3), ("stages", 0, "epoch"), "did you mean 'epochs'"),
    ({"stage": []}, ("stage",), "unknown field 'stage'; did you mean 'stages'"),
    (stage(optimizer={"type": "sgd", "sgd": 0}), ("stages", 0, "optimizer", "sgd"), "unknown field 'sgd'"),
    ({"student": {}}, ("student", "model"), "is missing; add 'model'"),
    (stage(schedule={"type": "step"}), ("stages", 0, "schedule", "milestones"), "is missing"),
    (stage(optimizer={"type": "adam", "betas": [0.9]}), ("stages", 0, "optimizer", "betas", 1), "too short"),
    # numbers
    (loss(type="kd", temperature=NAN), (*LOSS, "temperature"), "must be a finite number, found nan"),
    (loss(type="kd", temperature=0), (*LOSS, "temperature"), "must be at least 0.01, found 0"),
    (loss(type="kd", weight=-1), (*LOSS, "weight"), "must be at least 0, found -1"),
    (loss(type="kd", weight="0.3"), (*LOSS, "weight"), "must be a number, found '0.3'; leave the quotes out"),
    (loss(type="kd", weight=True), (*LOSS, "weight"), "must be a number, found true"),
    (loss(type="cross_entropy", label_smoothing=1), (*LOSS, "label_smoothing"), "must be below 1, found 1"),
    (stage(epochs=0), ("stages", 0, "epochs"), "must be at least 1, found 0"),
    (stage(epochs=2.0), ("stages", 0, "epochs"), "must be a whole number, found 2.0; write 2"),
    (stage(epochs=2.5), ("stages", 0, "epochs"), "must be a whole number, found 2.5"),
    (stage(epochs=True), ("stages", 0, "epochs"), "must be a whole number, found true"),
    (stage(optimizer={"type": "adam", "lr": float("inf")}), ("stages", 0, "optimizer", "lr"), "finite number"),
    ({"seed": 2**64}, ("seed",), "must be below 9223372036854775808"),
    ({"limits": {"max_memory": "much"}}, ("limits", "max_memory"), "a size such as '4GiB', found 'much'"),
    ({"limits": {"max_memory": "9999999EiB"}}, ("limits", "max_memory"), "must be at most 1152921504606846976"),
    ({"limits": {"max_memory": 5}}, ("limits", "max_memory"), "must be at least 67108864, found 5"),
    # lists, text, choices
    ({"stages": [{"losses": []}]}, ("stages", 0, "losses"), "must have at least 1 item"),
    ({"stages": None}, ("stages",), "must be a list, found null"),
    ({"stages": {"epochs": 3}}, ("stages",), "must be a list, found a mapping; put it in [ ]"),
    (stage(losses=[]), ("stages", 0, "losses"), "must have at least 1 item"),
    (stage(losses=[5]), LOSS, "must be a mapping, found 5"),
    ({"teachers": BASE["teachers"] * 17}, ("teachers",), "must have at most 16 items"),
    ({"teachers": [5]}, ("teachers", 0), "must be a mapping, found 5"),
    ({"student": {"model": {"type": "mlp", "hidden": 8}}}, ("student", "model", "hidden"), "put it in [ ]"),
    ({"student": {"model": {"type": "mlp", "hidden": [8, 0]}}}, ("student", "model", "hidden", 1), "at least 1"),
    (
        {"student": {"model": {"type": "mlp", "activation": "rleu"}}},
        ("student", "model", "activation"),
        "must be 'relu', 'gelu' or 'tanh', found 'rleu'; did you mean 'relu'?",
    ),
    ({"student": {"model": {"type": "cnn", "kernel_size": 4}}}, ("student", "model", "kernel_size"), "1, 3, 5 or 7"),
    ({"device": "gpu"}, ("device",), "must be 'auto', 'cpu' or 'cuda', found 'gpu'"),
    ({"baseline": "no"}, ("baseline",), "must be true or false, found 'no'"),
    ({"name": ""}, ("name",), "must have at least 1 character"),
    ({"name": "a/b"}, ("name",), "must match"),
    ({"name": "x" * 101}, ("name",), "must have at most 100 characters, found 'xxx"),
    ({"name": "\ud800"}, ("name",), "whole characters"),
    ({"labels": {"a": 5}}, ("labels", "a"), "must be text, found 5; put quotes around it"),
    ({"labels": {"a b": "x"}}, ("labels", "a b"), "must match"),
    # unions without a type
    (
        {"data": {"type": "digits", "validation": 5000.0}},
        ("data", "validation"),
        "found 5000.0; write 5000; or must be",
    ),
    ({"data": {"type": "digits", "validation": "x"}}, ("data", "validation"), "whole number, found 'x'; or must be a"),
    (taught(weights=5), ("teachers", 0, "weights"), "must be a mapping, found 5"),
    (taught(weights={"job": "x"}), ("teachers", 0, "weights", "job"), "must match ^job_"),
    (taught(weights={"file": "../x.safetensors"}), ("teachers", 0, "weights", "file"), "may not contain '..'"),
    (
        taught(weights={"file": "x.txt"}),
        ("teachers", 0, "weights", "file"),
        "only these files are read as weights",
    ),
    (
        taught(weights={"file": "x.safetensors"}, train={}),
        ("teachers", 0, "weights"),
        "give either `train` or `weights`",
    ),
    # rules between fields
    (
        stage(optimizer={"type": "sgd", "momentum": 0, "nesterov": True}),
        ("stages", 0, "optimizer", "nesterov"),
        "needs a momentum above 0",
    ),
    (
        stage(schedule={"type": "step", "milestones": [3, 2]}),
        ("stages", 0, "schedule", "milestones"),
        "milestones must rise",
    ),
]


@pytest.mark.parametrize(("changes", "loc", "message"), CASES, ids=[f"{case[1]}-{n}" for n, case in enumerate(CASES)])
def test_each_error_leads_to_its_field(changes: dict[str, Any], loc: tuple[str | int, ...], message: str) -> None:
    ((found, said),) = errors(**changes)
    assert found == loc
    assert message in said
    for jargon in ("pydantic", "https://", "Input should", "union", "discriminator"):
        assert jargon not in said


def test_every_error_is_said_at_once() -> None:
    found = errors(seed=-1, stages=[{"epochs": 0, "losses": [{"type": "kd", "weight": -1}, {"type": "x"}]}])
    assert {loc for loc, _ in found} == {
        ("seed",),
        ("stages", 0, "epochs"),
        (*LOSS, "weight"),
        ("stages", 0, "losses", 1, "type"),
    }


def test_an_empty_spec_says_what_it_needs_and_nothing_that_follows_from_it() -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec({})
    assert [loc for loc, _ in caught.value.errors] == [("data",), ("teachers",), ("student",)]


@pytest.mark.parametrize("document", ["", "- 1", "text", "5", "[]"])
def test_what_is_no_mapping(document: str) -> None:
    with pytest.raises(SpecError, match="a spec is a mapping with `data`, `teachers` and `student`"):
        parse_spec(document)


def test_a_key_twice_is_refused_before_it_is_read() -> None:
    with pytest.raises(DocumentError, match="'seed' is there twice"):
        parse_spec("seed: 1\nseed: 2")


def test_many_errors_are_bounded() -> None:
    assert len(errors(**{f"x{number}": 1 for number in range(1000)})) == MAX_ERRORS


@pytest.mark.parametrize("wrap", [lambda many: many, lambda many: taught(weights=many)], ids=["fields", "weights"])
def test_a_document_with_thirty_times_the_errors_takes_no_more_work(
    wrap: Callable[[dict[str, Any]], dict[str, Any]],
) -> None:
    few, many = (wrap({f"stages{number}": 1 for number in range(count)}) for count in (2 * MOST_READ, 60_000))
    assert len(errors(**many)) == MAX_ERRORS
    assert calls(lambda: errors(**many)) < 1.1 * calls(lambda: errors(**few))
