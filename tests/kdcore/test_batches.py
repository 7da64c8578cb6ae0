"""Samples that are gathered for several steps are those that are gathered for one."""

from pathlib import Path
from typing import Any

import pytest
import torch

from kdcore.batches import batches
from kdcore.data import Places
from kdcore.inputs import Reader
from kdcore.spec import parse_spec

SPEC = (
    "{data: {type: digits, train_samples: 200}, teachers: [{model: {type: mlp}}],"
    " student: {model: {type: mlp}, view: {type: resize, size: 6}}}"
)


def drawn(at_once: int, monkeypatch: pytest.MonkeyPatch, change: Any = None, count: int = 107) -> list[Any]:
    spec = parse_spec(SPEC)
    data = spec.data.load(Places(Path()))
    monkeypatch.setattr("kdcore.batches.AT_ONCE", at_once)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))[:count]
    reader = Reader(data.facts, spec.student.view)
    return list(batches(data, data.train.labels, reader, order, 16, change))


@pytest.mark.parametrize("at_once", [3 * 16 * 4 * 64, 2**30])
def test_however_many_are_gathered_together(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found, wanted = drawn(at_once, monkeypatch), drawn(0, monkeypatch)
    assert [len(each.places) for each in wanted] == [16] * 6 + [11]
    assert wanted[0].read.shape == (16, 1, 6, 6)
    for mine, other in zip(found, wanted, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, other, strict=True))


def test_what_a_step_changes_is_changed_when_it_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def change(inputs: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        assert len(places) == len(inputs)
        calls.append(len(inputs))
        return inputs + 1

    plain = drawn(2**30, monkeypatch)
    changed = drawn(2**30, monkeypatch, change)
    assert calls == [16] * 6 + [11]
    assert all(torch.equal(a.inputs + 1, b.inputs) for a, b in zip(plain, changed, strict=True))


def test_nothing_is_left_of_an_epoch_that_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    assert drawn(2**30, monkeypatch, count=0) == []
