"""Bad specs by machine, as a client sends them: planned, or refused with a way to each fault; never a 500."""

import json
from typing import Any

import httpx
import yaml
from hypothesis import event, given, settings

from kdcore.document import DocumentError, read_document, read_json
from tests.api.conftest import said
from tests.kdcore.strategies import FIELDS, leads, specs
from tests.kdcore.test_spec_fuzz import EXAMPLES, by_machine, pytestmark  # noqa: F401 - the same limit of time

few = settings(by_machine, max_examples=EXAMPLES // 2)


def check(client: httpx.Client, body: bytes, type: str, document: Any) -> None:
    response = client.post("/jobs/plan", content=body, headers={"Content-Type": type})
    event(str(response.status_code))
    if response.status_code == 200:
        assert response.json()["total_steps"] > 0
    elif document is None:
        said(response, 400, "malformed")
    else:
        for error in said(response, 422, "invalid_spec")["errors"]:
            # The plan's own words may be about a default, which only the complete spec has.
            assert leads(document, tuple(error["loc"])) or error["loc"][-1] in FIELDS, error
            assert error["message"]


@few
@given(specs())
def test_a_json_spec_is_planned_or_refused(files_client: httpx.Client, document: Any) -> None:
    text = json.dumps(document).encode()  # NaN and Infinity as Python writes them, which is no JSON
    try:
        read: Any = read_json(text)
    except DocumentError:
        read = None
    check(files_client, text, "application/json", read)


@few
@given(specs())
def test_a_yaml_spec_is_planned_or_refused(files_client: httpx.Client, document: Any) -> None:
    text = yaml.dump(document, allow_unicode=True).encode("utf-8", "replace")
    try:
        read = read_document(text)
    except DocumentError:
        read = None
    check(files_client, text, "application/yaml", read)
