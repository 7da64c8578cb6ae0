"""Teachers' own tokenizers, through HTTP: beside an upload, from another job's artifacts, and what cannot be."""

from typing import Any

import httpx
import pytest

from tests.api.conftest import Api, said, submit
from tests.api.test_upload_specs import refused
from tests.api.test_uploads import begin, pass_check, put

LSTM = {"type": "lstm", "hidden": 8}
OWN = {"words": ["film", "fun", "dull"], "length": 5, "vocabulary": 9}
TEXTS = {"data": {"type": "sst2", "vocabulary": 20, "length": 8}, "student": {"model": LSTM}}
PROFILE = {"format": "safetensors", "bytes": 5, "parameters": 9, "tensors": 1}


def uploaded(api: Api, client: httpx.Client, **options: Any) -> str:
    """A model that is ready; its id."""
    upload = begin(client, b"bytes", "models", options=options)
    assert put(client, upload, 1, b"bytes").status_code == 200
    assert client.post(f"/models/{upload['id']}/complete").status_code == 200
    pass_check(api, upload["id"], PROFILE)
    found: str = upload["id"]
    return found


def taught(weights: dict[str, str], **teacher: Any) -> dict[str, Any]:
    return TEXTS | {"teachers": [{"model": LSTM, "weights": weights, **teacher}]}


def test_what_was_uploaded_beside_a_model_is_filled_in(api: Api, client: httpx.Client):
    model = uploaded(api, client, tokenizer=OWN)
    job = client.post("/jobs", json=taught({"model": model}))
    assert job.status_code == 201, job.text
    filled = job.json()["spec"]["teachers"][0]["tokenizer"]
    assert OWN.items() <= filled.items()
    again = client.post("/jobs/plan", json=job.json()["spec"])
    assert again.json()["spec"] == job.json()["spec"]
    same = client.post("/jobs/plan", json=taught({"model": model}, tokenizer=OWN))
    assert same.json()["spec"]["teachers"] == job.json()["spec"]["teachers"]
    loc, message = refused(client, taught({"model": model}, tokenizer=OWN | {"length": 6}))
    assert (loc, "uploaded with another one" in message) == (["teachers", 0, "tokenizer"], True)


def test_a_key_outlives_the_model_whose_tokenizer_was_filled_in(api: Api, client: httpx.Client):
    model, key = uploaded(api, client, tokenizer=OWN), {"Idempotency-Key": "gone"}
    job = client.post("/jobs", json=taught({"model": model}), headers=key).json()
    client.post(f"/jobs/{job['id']}/cancel")
    assert client.delete(f"/models/{model}").status_code == 204
    for document in (taught({"model": model}), taught({"model": model}, tokenizer=OWN)):
        again = client.post("/jobs", json=document, headers=key)
        assert (again.status_code, again.json()["id"]) == (201, job["id"]), again.text
    other = client.post("/jobs", json=taught({"model": model}, tokenizer=OWN | {"length": 6}), headers=key)
    assert other.status_code == 422


def test_one_that_is_not_the_models_is_refused_at_its_field(api: Api, client: httpx.Client):
    model = uploaded(api, client, vocabulary=10)
    loc, message = refused(client, taught({"model": model}, tokenizer=OWN))
    assert loc == ["teachers", 0, "tokenizer", "vocabulary"]
    assert "it has 9 tokens, the uploaded model knows 10" in message
    assert client.post("/jobs", json=taught({"model": model}, tokenizer=OWN | {"vocabulary": 10})).status_code == 201
    plain = uploaded(api, client)
    assert client.post("/jobs", json=taught({"model": plain}, tokenizer=OWN)).status_code == 201


@pytest.mark.parametrize("teachers", [3, [3], [{"weights": 3, "model": LSTM}], [{"weights": {"model": [1]}}]])
def test_what_is_no_teacher_is_said_as_always(client: httpx.Client, teachers: Any):
    problem = said(client.post("/jobs", json=TEXTS | {"teachers": teachers}), 422, "invalid_spec")
    assert problem["errors"][0]["loc"][0] == "teachers"


def test_a_bad_one_is_refused_when_the_model_is_uploaded(client: httpx.Client):
    new = {"name": "film", "size": 5, "options": {"tokenizer": OWN | {"words": ["Film"]}}}
    problem = said(client.post("/models", json=new), 422, "invalid_upload")
    assert problem["errors"][0]["loc"] == ["options", "tokenizer", "words"]
    assert "no word as this tokenizer cuts them" in problem["errors"][0]["message"]


def test_a_teacher_of_another_job_with_the_words_that_it_knows(api: Api, client: httpx.Client):
    job_id = submit(client, **TEXTS, teachers=[{"model": LSTM}])["id"]
    api.succeed(api.claim(job_id), {"teacher-1.safetensors": b"weights"})
    weights = {"job": job_id}
    own = {"words": ["film", "fun"], "length": 8, "vocabulary": 20}
    narrow = taught(weights) | {"data": {"type": "sst2", "vocabulary": 7, "length": 4}}

    def refusal(**teacher: Any) -> tuple[list[Any], str]:
        document = narrow | {"teachers": [{"model": LSTM, "weights": weights, **teacher}]}
        (error,) = said(client.post("/jobs", json=document), 422, "invalid_spec")["errors"]
        return error["loc"], error["message"]

    assert refusal()[0] == ["teachers", 0, "weights", "job"]
    same = {"data": {"type": "sst2", "vocabulary": 20, "length": 8, "train_samples": 500}}
    problem = said(client.post("/jobs", json=taught(weights) | same), 422, "invalid_spec")
    assert "`preprocessing.tokenizer` of that job's model.json" in problem["errors"][0]["message"]
    assert client.post("/jobs", json=taught(weights, tokenizer=own) | same).status_code == 201
    loc, message = refusal(tokenizer=own | {"vocabulary": 4})
    assert (loc, "it has 4 tokens, the teacher of that job knows 20" in message) == (["teachers", 0, "tokenizer"], True)
    assert refusal(tokenizer=own | {"length": 3})[0] == ["teachers", 0, "weights", "job"]
    assert submit(client, **(narrow | taught(weights, tokenizer=own) | {"data": narrow["data"]}))["status"] == "queued"
