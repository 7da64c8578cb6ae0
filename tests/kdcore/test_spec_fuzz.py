"""Bad input by machine: whatever the document, it is refused with a way to its fault, or it trains.

`DISTILLERY_TEST_THOROUGH=1` tries ten times as many, other ones each time.
"""

import os
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from kdcore import train
from kdcore.choices import choose
from kdcore.config import Loc, SpecError
from kdcore.errors import TrainingError
from kdcore.plan import Plan, make_plan
from kdcore.reporter import Interrupted, RecordingReporter
from kdcore.spec import JobSpec, parse_spec, spec_digest, spec_document
from tests.kdcore.strategies import leads, specs

THOROUGH = os.environ.get("DISTILLERY_TEST_THOROUGH") == "1"
EXAMPLES = 3_000 if THOROUGH else 300
MOST_FLOPS, MOST_BYTES = 2e9, 5e8
"""Of a step and of a job: what is larger is planned but not trained."""
TRAINED = {"to its end", "interrupted", "diverged"}
NO_WEIGHTS = {f"{fault}_{whose}_weights" for fault in ("no", "bad") for whose in ("teacher", "student")}
UNTRAINED = {"refused", "too large to train here", "bad_data", *NO_WEIGHTS}
LEAST_TRAINED, LEAST_REFUSED = 0.05, 0.3
"""Of all examples: fewer would try little. Which they are changes with the schema."""
pytestmark = pytest.mark.timeout(3_600 if THOROUGH else 300)
by_machine = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=not THOROUGH,
    suppress_health_check=list(HealthCheck),
)


def accepted(document: Any) -> tuple[JobSpec, Plan] | None:
    """The spec and its plan; None where it is refused as it should be."""
    try:
        spec = parse_spec(document)
    except SpecError as error:
        return check_refusal(error, lambda loc: leads(document, loc))
    try:
        return spec, make_plan(spec)
    except SpecError as error:
        complete = spec_document(spec)
        return check_refusal(error, lambda loc: leads(complete, loc, exactly=True))


def check_refusal(error: SpecError, is_there: Callable[[Loc], bool]) -> None:
    assert error.errors
    for loc, message in error.errors:
        assert is_there(loc), (loc, message)
        assert 0 < len(message) < 1_000, (loc, message)


def test_a_spec_is_refused_where_it_is_wrong_or_it_trains() -> None:
    seen: Counter[str] = Counter()

    @by_machine
    @given(specs())
    def one(document: Any) -> None:
        seen[found := ending(document)] += 1
        assert found in TRAINED | UNTRAINED, found

    one()
    assert sum(seen[found] for found in TRAINED) >= LEAST_TRAINED * EXAMPLES, seen
    assert seen["refused"] >= LEAST_REFUSED * EXAMPLES, seen


def ending(document: Any) -> str:
    """What became of a document."""
    found = accepted(document)
    if found is None:
        return "refused"
    spec, plan = found
    assert parse_spec(spec_document(spec)) == spec
    assert spec_digest(parse_spec(spec_document(spec))) == spec_digest(spec)
    if plan.training_flops / plan.total_steps > MOST_FLOPS or plan.memory.total > MOST_BYTES:
        return "too large to train here"
    return trained(spec, plan)


def trained(spec: JobSpec, plan: Plan) -> str:
    """Train it for some steps, of several stages where they are short; how that ended."""
    reporter = RecordingReporter(request="pause", request_at=12)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "folder.safetensors").mkdir()
        (root / "t.safetensors").write_bytes(b"no weights")
        options: dict[str, Any] = {"choices": choose(spec, plan, device="cpu", cores=1), "download": False}
        try:
            train.run(spec, data_root=root, out=root / "out", reporter=reporter, **options)
        except Interrupted:
            return "interrupted" if reporter.checkpoints else "without a checkpoint"
        except TrainingError as error:
            return error.code if error.kind == "user" else f"system error: {error}"
    return "to its end"
