"""The catalogue names everything a spec may name, and its schemas are the parser's."""

import json
from collections.abc import Callable
from typing import Any, get_args

import pytest
from jsonschema import Draft202012Validator

from kdcore.catalog import catalog_data, catalog_losses, catalog_models
from kdcore.data import DATA, DataConfig
from kdcore.losses import LOSSES, LossConfig
from kdcore.models import MODELS, ModelConfig


@pytest.mark.parametrize(("union", "listed"), [(LossConfig, LOSSES), (ModelConfig, MODELS), (DataConfig, DATA)])
def test_the_union_and_the_list_are_one(union: Any, listed: tuple[type, ...]) -> None:
    assert get_args(get_args(union)[0]) == listed


NEEDED: dict[str, dict[str, Any]] = {
    "sequential": {"layers": [{"type": "relu"}]},
    "mutual": {"peer": {"type": "mlp"}},
    "http": {"url": "http://models/v1/a"},
    "upload": {"dataset": "flowers@1"},
    "image_folder": {"folder": "mine", "classes": ["a", "b"], "train_pictures": 9, "test_pictures": 3},
}
"""What has no default."""


@pytest.mark.parametrize("catalog", [catalog_losses, catalog_models, catalog_data])
def test_entries_are_complete(catalog: Callable[[], list[dict[str, Any]]]) -> None:
    entries = catalog()
    assert entries
    for entry in entries:
        json.dumps(entry)
        assert all(len(entry[key]) > 3 for key in ("title", "source", "doc"))
        Draft202012Validator.check_schema(entry["schema"])
        validator = Draft202012Validator(entry["schema"])
        needed = NEEDED.get(entry["type"], {})
        assert validator.is_valid({"type": entry["type"], **needed})
        assert not validator.is_valid({"type": entry["type"], "bogus": 1})
        for name, field in entry["schema"]["properties"].items():
            assert name in ("type", "dropout", "activation") or "description" in field, f"{entry['type']}.{name}"


def test_losses_say_what_they_need() -> None:
    needs = {entry["type"]: (entry["needs_teacher"], entry["needs_labels"]) for entry in catalog_losses()}
    assert needs["cross_entropy"] == (False, True)
    assert needs["kd"] == (True, False)
    assert needs["dkd"] == (True, True)


def test_data_says_what_it_holds() -> None:
    cifar = next(entry for entry in catalog_data() if entry["type"] == "cifar10")
    assert (cifar["input_shape"], cifar["train"], cifar["test"]) == ([3, 32, 32], 50_000, 10_000)
    assert cifar["classes"][0] == "airplane"
    known = {entry["type"]: entry["classes"] and len(entry["classes"]) for entry in catalog_data()}
    assert known == {
        **dict.fromkeys(["digits", "mnist", "fashion_mnist", "cifar10"], 10),
        "cifar100": 100, "image_folder": None, "ag_news": 4, "sst2": 2, "synthetic": 4, "upload": None,
    }  # fmt: skip
