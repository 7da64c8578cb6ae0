"""Bad specs by machine, as a client sends them: planned, or refused with a way to each fault; never a 500."""

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import yaml
from hypothesis import given, settings

from kdcore.document import DocumentError, read_document, read_json
from tests.api.conftest import said
from tests.kdcore.strategies import FIELDS, leads, specs
from tests.kdcore.test_spec_fuzz import EXAMPLES, LEAST_REFUSED, LEAST_TRAINED, THOROUGH, by_machine

pytestmark = pytest.mark.timeout(3_600 if THOROUGH else 300)
few = settings(by_machine, max_examples=EXAMPLES // 3)


def check(client: httpx.Client, body: bytes, type: str, read: Callable[[bytes], Any]) -> int:
    """The status with which a document is planned or refused."""
    response = client.post("/jobs/plan", content=body, headers={"Content-Type": type})
    try:
        document = read(body)
    except DocumentError:
        said(response, 400, "malformed")
        return 400
    if response.status_code == 200:
        assert response.json()["total_steps"] > 0
        return 200
    for error in said(response, 422, "invalid_spec")["errors"]:
        # The plan's own words may be about a default, which only the complete spec has.
        assert leads(document, tuple(error["loc"])) or error["loc"][-1] in FIELDS, error
        assert error["message"]
    return 422


def assert_mixed(statuses: Counter[int]) -> None:
    assert statuses[200] >= LEAST_TRAINED * statuses.total(), statuses
    assert statuses[422] >= LEAST_REFUSED * statuses.total(), statuses


def test_a_json_spec_is_planned_or_refused(files_client: httpx.Client) -> None:
    statuses: Counter[int] = Counter()

    @few
    @given(specs())
    def as_json(document: Any) -> None:
        text = json.dumps(document).encode()  # NaN and Infinity as Python writes them, which is no JSON
        statuses[check(files_client, text, "application/json", read_json)] += 1

    as_json()
    assert_mixed(statuses)


def test_a_yaml_spec_is_planned_or_refused(files_client: httpx.Client) -> None:
    statuses: Counter[int] = Counter()

    @few
    @given(specs())
    def as_yaml(document: Any) -> None:
        text = yaml.dump(document, allow_unicode=True).encode("utf-8", "replace")
        statuses[check(files_client, text, "application/yaml", read_document)] += 1

    as_yaml()
    assert_mixed(statuses)
