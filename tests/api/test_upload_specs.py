"""Specs that name uploads: found by id or name, only where they are ready and their owner's, and held while in use."""

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.torch import save_file

from kdcore.modelfiles import ModelOptions, ModelProfile, check_model
from kdcore.spec import parse_spec
from kdcore.uploads import DatasetOptions, check_dataset
from tests.api.conftest import SPEC, Api, said
from tests.api.test_uploads import begin, pass_check, put, send_whole


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of 200 samples of two classes."""
    folder = tmp_path_factory.mktemp("data")
    inputs = np.random.default_rng(0).integers(0, 256, (200, 6)).astype(np.uint8)
    np.savez(folder / "a.npz", inputs=inputs, labels=np.arange(200) % 2)
    found = check_dataset(folder / "a.npz", DatasetOptions(), out=folder)
    return found.model_dump(mode="json")


def ready(api: Api, client: httpx.Client, profile: dict[str, Any]) -> dict[str, Any]:
    upload = send_whole(client, b"bytes")
    pass_check(api, upload["id"], profile)
    return upload


def spec(dataset: str, **data: Any) -> dict[str, Any]:
    return SPEC | {"data": {"type": "upload", "dataset": dataset, **data}}


def refused(client: httpx.Client, document: dict[str, Any]) -> tuple[list[Any], str]:
    """The field that both ways of reading a spec complain of, and why."""
    found = []
    for address in ("/jobs", "/jobs/plan"):
        (error,) = said(client.post(address, json=document), 422, "invalid_spec")["errors"]
        found.append((error["loc"], error["message"]))
    assert found[0] == found[1]
    return found[0]


def test_a_dataset_by_its_id_and_by_its_name(api: Api, client: httpx.Client, profile: dict[str, Any]):
    upload = ready(api, client, profile)
    for reference in (upload["id"], "flowers@1"):
        answer = client.post("/jobs", json=spec(reference))
        assert answer.status_code == 201, answer.text
        data = answer.json()["spec"]["data"]
        assert (data["dataset"], data["profile"]) == (upload["id"], profile)
        plan = client.post("/jobs/plan", json=spec(reference))
        assert plan.json()["spec"]["data"] == data


def test_one_that_is_not_ready_or_not_there_is_refused_at_its_field(
    api: Api, client: httpx.Client, owners: Any, profile: dict[str, Any]
):
    checking = send_whole(client, b"bytes")
    loc, message = refused(client, spec(checking["id"]))
    assert (loc, message) == (["data", "dataset"], f"dataset {checking['id']} is checking, not ready")
    with api.client(next(owners)) as other:
        theirs = ready(api, other, profile)
    for reference in (theirs["id"], "flowers@2", "nothing@1", "flowers@99999999999999"):
        assert refused(client, spec(reference))[0] == ["data", "dataset"], reference
    model = send_whole(client, b"bytes", "models")
    teacher = {"model": SPEC["teachers"][0]["model"], "weights": {"model": model["id"]}}
    loc, message = refused(client, SPEC | {"teachers": [teacher]})
    assert (loc, message) == (["teachers", 0, "weights", "model"], f"model {model['id']} is checking, not ready")


def test_a_model_by_its_id_and_by_its_name(api: Api, client: httpx.Client):
    upload = send_whole(client, b"weights", "models")
    network = SPEC["teachers"][0]["model"]
    teacher = {"model": network, "weights": {"model": "flowers@1"}}
    student = {"model": network, "weights": {"model": "flowers@1"}}
    document = SPEC | {"teachers": [teacher], "student": student}
    for address in ("/jobs", "/jobs/plan"):
        errors = said(client.post(address, json=document), 422, "invalid_spec")["errors"]
        assert [each["loc"] for each in errors] == [
            ["teachers", 0, "weights", "model"],
            ["student", "weights", "model"],
        ]
        assert {each["message"] for each in errors} == {"model flowers@1 is checking, not ready"}
    pass_check(api, upload["id"], {"format": "safetensors", "bytes": 7, "parameters": 1, "tensors": 1})
    spec = client.post("/jobs", json=document).json()["spec"]
    found = [spec["teachers"][0]["weights"], spec["student"]["weights"]]
    assert found == [{"model": upload["id"]}] * 2
    problem = said(client.delete(f"/models/{upload['id']}"), 409, "conflict")
    assert "has not ended and reads" in problem["detail"]
    document["teachers"] = [teacher | {"weights": {"model": "flowers@2"}}]
    assert refused(client, document) == (["teachers", 0, "weights", "model"], "there is no model flowers@2")


def test_a_spec_brings_no_profile_of_its_own(api: Api, client: httpx.Client, profile: dict[str, Any]):
    upload = ready(api, client, profile)
    loc, message = refused(client, spec(upload["id"], profile=profile | {"longest": 7}))
    assert loc == ["data", "profile"]
    assert "leave it out" in message
    job = client.post("/jobs", json=spec(upload["id"])).json()
    again = client.post("/jobs", json=job["spec"])  # the complete spec, with what was found in it
    assert (again.status_code, again.json()["spec"]) == (201, job["spec"])


def test_a_dataset_in_use_stays_and_goes_after(api: Api, client: httpx.Client, profile: dict[str, Any]):
    upload = ready(api, client, profile)
    job = client.post("/jobs", json=spec("flowers@1")).json()
    problem = said(client.delete(f"/datasets/{upload['id']}"), 409, "conflict")
    assert job["id"] in problem["detail"]
    client.post(f"/jobs/{job['id']}/cancel")
    assert client.delete(f"/datasets/{upload['id']}").status_code == 204
    assert client.get(f"/jobs/{job['id']}").json()["spec"]["data"]["dataset"] == upload["id"]


def test_the_same_key_gives_the_same_job_by_either_name(api: Api, client: httpx.Client, profile: dict[str, Any]):
    upload = ready(api, client, profile)
    key = {"Idempotency-Key": "once"}
    jobs = {client.post("/jobs", json=spec(each), headers=key).json()["id"] for each in ("flowers@1", upload["id"])}
    assert len(jobs) == 1


def test_one_that_no_worker_can_prepare_is_refused(api: Api, client: httpx.Client, profile: dict[str, Any]):
    many = profile["samples"] | {"train": 10**12}
    upload = ready(api, client, profile | {"samples": many, "labelled": many})
    loc, message = refused(client, spec(upload["id"]))
    assert loc == ["data", "dataset"]
    assert "the cache may have 53,687,091,200 (cache_bytes); upload fewer samples" in message


def test_a_key_outlives_what_its_spec_named(api: Api, client: httpx.Client, profile: dict[str, Any]):
    upload, key = ready(api, client, profile), {"Idempotency-Key": "gone"}
    job = client.post("/jobs", json=spec("flowers@1"), headers=key).json()
    client.post(f"/jobs/{job['id']}/cancel")
    assert client.delete(f"/datasets/{upload['id']}").status_code == 204
    for reference in ("flowers@1", upload["id"]):
        again = client.post("/jobs", json=spec(reference), headers=key)
        assert (again.status_code, again.json()["id"]) == (201, job["id"])
        assert refused(client, spec(reference))[0] == ["data", "dataset"]  # without the key
    said(client.post("/jobs", json=spec(upload["id"], length=8), headers=key), 422, "idempotency_key_reused")
    for other in ("flowers@2", "leaves@1", "ds_" + "0" * 26):
        problem = said(client.post("/jobs", json=spec(other), headers=key), 422, "invalid_spec")
        assert problem["errors"][0]["loc"] == ["data", "dataset"]
    there = ready(api, client, profile)
    said(client.post("/jobs", json=spec(there["id"]), headers=key), 422, "idempotency_key_reused")


@pytest.mark.parametrize("whose", ["teacher", "student"])
def test_a_key_outlives_the_model_that_its_spec_named(api: Api, client: httpx.Client, whose: str):
    upload, key = send_whole(client, b"weights", "models"), {"Idempotency-Key": "gone"}
    pass_check(api, upload["id"], {"format": "safetensors", "bytes": 7, "parameters": 1, "tensors": 1})

    def document(reference: str, seed: int = 0) -> dict[str, Any]:
        owned = {"model": SPEC["teachers"][0]["model"], "weights": {"model": reference}}
        return SPEC | ({"teachers": [owned]} if whose == "teacher" else {"student": owned}) | {"seed": seed}

    job = client.post("/jobs", json=document("flowers@1"), headers=key).json()
    client.post(f"/jobs/{job['id']}/cancel")
    assert client.delete(f"/models/{upload['id']}").status_code == 204
    for reference in ("flowers@1", upload["id"]):
        again = client.post("/jobs", json=document(reference), headers=key)
        assert (again.status_code, again.json()["id"]) == (201, job["id"]), again.text
        assert refused(client, document(reference))[1] == f"there is no model {reference}"  # without the key
        said(client.post("/jobs", json=document(reference, seed=1), headers=key), 422, "invalid_spec")
    for other in ("flowers@2", "leaves@1", "mdl_" + "0" * 26):
        problem = said(client.post("/jobs", json=document(other), headers=key), 422, "invalid_spec")
        assert problem["errors"][0]["loc"][-2:] == ["weights", "model"]


MLP = {"type": "mlp", "hidden": [4]}
ONNX = {"type": "onnx"}


def ready_model(
    api: Api, client: httpx.Client, kind: dict[str, Any], options: dict[str, Any], **found: Any
) -> dict[str, Any]:
    """A model that was checked."""
    upload = begin(client, b"bytes", "models", options=options)
    assert put(client, upload, 1, b"bytes").status_code == 200
    assert client.post(f"/models/{upload['id']}/complete").status_code == 200
    format = "onnx" if kind == ONNX else "safetensors"
    profile = ModelProfile(**{"format": format, "bytes": 5, "parameters": 1, "tensors": 1, "model": kind} | found)
    pass_check(api, upload["id"], profile.model_dump(mode="json"))
    return {"model": kind, "weights": {"model": upload["id"]}}


@pytest.mark.parametrize(
    ("model", "shape", "view", "message"),
    [
        (MLP, [1, 8, 8], None, None),
        (MLP, [64], None, None),
        (MLP, [3, 8, 8], None, "is [4, 192], and [4, 64] for samples [1, 8, 8] and 10 outputs"),
        (MLP, [1, 4, 4], {"type": "resize", "size": 4}, None),
        (ONNX, ["n", 1, 8, 8], None, None),
        (ONNX, [1, "c", "h", "w"], None, None),
        (ONNX, [], None, None),
        (ONNX, ["n", 3, 224, 224], None, "it reads [3, 224, 224], here samples are [1, 8, 8]; set a `view`"),
        (ONNX, ["n", 64], None, "it reads [64], here samples are [1, 8, 8]"),
        (ONNX, ["n", 3, 16, 16], {"type": "picture", "size": 16, "colour": "rgb"}, None),
    ],
)
def test_a_model_that_cannot_read_the_samples_is_refused(
    api: Api, client: httpx.Client, model: dict[str, Any], shape: list[Any], view: Any, message: str | None
):
    options: dict[str, Any] = {"classes": [str(digit) for digit in range(10)]}
    options |= {"model": MLP, "input_shape": shape} if model == MLP else {}
    value = {"name": "x", "dtype": "tensor(float)"}
    known = {"inputs": [value | {"shape": shape}], "outputs": [value | {"name": "logits", "shape": ["n", 10]}]}
    teacher = ready_model(api, client, model, options, **(known if model == ONNX else {})) | {"view": view}
    document = SPEC | {"data": {"type": "digits"}, "teachers": [teacher]}
    if message is None:
        assert client.post("/jobs/plan", json=document).status_code == 200
        return
    loc, said = refused(client, document)
    assert loc == ["teachers", 0, "weights", "model"]
    assert message in said


@pytest.mark.parametrize(
    ("changes", "shapes", "message"),
    [
        ({}, {"logits": ["n", 9]}, "its output 'logits' is [9] for each sample, here [10]; name its outputs"),
        ({"output": "scores"}, {"logits": ["n", 10]}, "it has no output 'scores'; it has logits"),
        ({"hidden": {"flat": [8]}}, {"logits": ["n", 10], "flat": ["n", 7]}, "its output 'flat' is [7]"),
        ({"layout": "nhwc"}, {"logits": ["n", 10]}, "it reads [1, 8, 8], here samples are [8, 8, 1]"),
    ],
)
def test_outputs_are_compared_too(api: Api, client: httpx.Client, changes: Any, shapes: dict[str, Any], message: str):
    value = {"name": "x", "dtype": "tensor(float)", "shape": ["n", 1, 8, 8]}
    outputs = [value | {"name": name, "shape": shape} for name, shape in shapes.items()]
    teacher = ready_model(api, client, ONNX, {}, inputs=[value], outputs=outputs)
    teacher["model"] = ONNX | changes
    loc, said = refused(client, SPEC | {"data": {"type": "digits"}, "teachers": [teacher]})
    assert loc == ["teachers", 0, "weights", "model"]
    assert message in said


def test_a_file_of_another_kind_is_refused(api: Api, client: httpx.Client):
    for model, other, message in ((MLP, ONNX, "is an ONNX file"), (ONNX, MLP, "holds weights and is no ONNX file")):
        teacher = ready_model(api, client, other, {}, **({"model": None} if other == MLP else {}))
        loc, said = refused(client, SPEC | {"data": {"type": "digits"}, "teachers": [teacher | {"model": model}]})
        assert loc == ["teachers", 0, "weights", "model"]
        assert message in said


def test_weights_that_were_compared_with_no_architecture_are_compared_with_the_spec_s(
    api: Api, client: httpx.Client, tmp_path: Path
):
    config = parse_spec(SPEC | {"teachers": [{"model": MLP}]}).teachers[0].model
    weights = config.build((1, 8, 8), 10).state_dict()
    save_file({f"module.{name}": value for name, value in weights.items()}, tmp_path / "weights")
    found = check_model(tmp_path / "weights", ModelOptions(), out=tmp_path)
    teacher = ready_model(api, client, MLP, {}, **found.model_dump(mode="json"))
    document = SPEC | {"data": {"type": "digits"}}
    assert client.post("/jobs/plan", json=document | {"teachers": [teacher]}).status_code == 200
    wider = teacher | {"model": MLP | {"hidden": [5]}}
    loc, message = refused(client, document | {"teachers": [wider]})
    assert loc == ["teachers", 0, "weights", "model"]
    assert "has shape [4, 64], the model's is [5, 64]" in message
