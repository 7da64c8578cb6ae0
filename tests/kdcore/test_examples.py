"""Every example on data that is always there: some steps of each stage, a pause in its midst, the same bytes."""

import json
from pathlib import Path
from typing import Any

import pytest

from kdcore.document import read_document
from kdcore.reporter import Interrupted, RecordingReporter
from kdcore.spec import parse_spec

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
PRESENT = [path for path in EXAMPLES if read_document(path.read_text())["data"]["type"] == "digits"]


def shortened(path: Path) -> dict[str, Any]:
    """The example on 120 samples, with two epochs of four steps for every stage."""
    document: dict[str, Any] = json.loads(json.dumps(read_document(path.read_text())))
    document["data"] |= {"train_samples": 120, "validation": 40}
    short = {"epochs": 2, "batch_size": 32}
    for teacher in document["teachers"]:
        teacher["train"] = teacher.get("train", {}) | short
    document["stages"] = [stage | short for stage in document.get("stages", [{}])]
    return document


@pytest.mark.parametrize("path", PRESENT, ids=lambda path: path.stem)
def test_each_example_trains_and_resumes_to_the_same_bytes(light: Any, path: Path) -> None:
    document = shortened(path) | {"checkpoint": {"every_seconds": 3600}}
    wanted, whole = light(document)
    assert whole.stages[-1] == parse_spec(document).stages[-1].name
    reporter = RecordingReporter(request="pause", request_at=whole.polls - 4)  # within the last epoch
    with pytest.raises(Interrupted):
        light(document, reporter)
    found, _ = light(document, resume=reporter.checkpoints[-1].path)
    assert found["digests"] == wanted["digests"]


def test_most_examples_are_tried() -> None:
    assert len(PRESENT) > len(EXAMPLES) / 2
