"""Every loss, model and data source has its row, an example that plans, and a test."""

import re
from pathlib import Path
from typing import Any

import pytest

from kdcore.catalog import catalog_data, catalog_losses, catalog_models
from kdcore.config import Config
from kdcore.data import DATA
from kdcore.document import read_document
from kdcore.losses import LOSSES
from kdcore.models import MODELS
from kdcore.plan import make_plan
from kdcore.spec import JobSpec, parse_spec
from tests.kdcore.standins import upload
from tests.speed import SPEED

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
KINDS: dict[str, tuple[list[dict[str, Any]], tuple[type[Config], ...]]] = {
    "Losses": (catalog_losses(), LOSSES),
    "Models": (catalog_models(), MODELS),
    "Data": (catalog_data(), DATA),
}
THINGS = [(kind, entry["type"], config) for kind, (entries, configs) in KINDS.items()
          for entry, config in zip(entries, configs, strict=True)]  # fmt: skip
COMMON = {
    *("type", "weight", "weight_schedule", "temperature_schedule", "teacher"),
    *("student_layer", "teacher_layer", "student_layers", "teacher_layers"),
    *("validation", "train_samples", "classes", "task"),
}
"""Options that many have: they are explained once, above the tables."""


def section(kind: str) -> str:
    page = (ROOT / "docs" / "methods.md").read_text()
    match = re.search(rf"^## {kind}\n(.*?)(?=^## |\Z)", page, flags=re.DOTALL | re.MULTILINE)
    assert match is not None, f"docs/methods.md has no section {kind}"
    return match[1]


@pytest.mark.parametrize(("kind", "name", "config"), THINGS, ids=[name for _, name, _ in THINGS])
def test_it_has_a_row_that_names_all_its_options(kind: str, name: str, config: type[Config]) -> None:
    rows = [line for line in section(kind).splitlines() if line.startswith(f"| `{name}` |")]
    assert len(rows) == 1, f"docs/methods.md, {kind}: one row for {name}"
    for option in set(config.model_fields) - COMMON:
        assert f"`{option}`" in rows[0], f"the row of {name} does not name its option {option}"


@pytest.mark.parametrize("kind", KINDS)
def test_no_row_describes_what_is_not_there(kind: str) -> None:
    named = re.findall(r"^\| `(\w+)` \|", section(kind), flags=re.MULTILINE)
    assert named == [entry["type"] for entry in KINDS[kind][0]]


def spec_of(path: Path, folder: Path) -> JobSpec:
    """An example; of an upload with what the check of its file found, which the service fills in."""
    document: Any = read_document(path.read_text())
    if document["data"]["type"] == "upload":
        _, profile = upload(path.stem, folder)
        document["data"]["profile"] = profile.model_dump(mode="json")
    return parse_spec(document, SPEED)


@pytest.fixture(scope="session")
def specs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, JobSpec]:
    return {path.name: spec_of(path, tmp_path_factory.mktemp("data")) for path in EXAMPLES}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_each_example_plans(path: Path, tmp_path: Path) -> None:
    spec = spec_of(path, tmp_path)
    assert (make_plan(spec, SPEED).total_steps > 0) == bool(spec.stages)
    assert path.read_text().startswith("# "), "an example begins with a line that says what it shows"


@pytest.mark.parametrize(("kind", "name", "config"), THINGS, ids=[name for _, name, _ in THINGS])
def test_it_has_an_example(kind: str, name: str, config: type[Config], specs: dict[str, JobSpec]) -> None:
    used = {
        "Losses": {loss.type for spec in specs.values() for stage in spec.stages for loss in stage.losses},
        "Models": {
            model.type
            for spec in specs.values()
            for model in (spec.student.model, *(teacher.model for teacher in spec.teachers))
        },
        "Data": {spec.data.type for spec in specs.values()},
    }
    assert name in used[kind], f"no examples/*.yaml uses {name}"


@pytest.mark.parametrize(("kind", "name", "config"), THINGS, ids=[name for _, name, _ in THINGS])
def test_it_has_a_test(kind: str, name: str, config: type[Config]) -> None:
    here = Path(__file__)
    tests = [path for path in (ROOT / "tests").rglob("test_*.py") if path != here]
    mention = re.compile(rf"\b(?:{re.escape(name)}|{config.__name__})\b")
    assert any(mention.search(path.read_text()) for path in tests)


@pytest.mark.parametrize("kind", KINDS)
def test_everything_says_where_it_is_from(kind: str) -> None:
    for entry in KINDS[kind][0]:
        assert entry["source"], entry["type"]
        assert entry["doc"], entry["type"]
