"""The uploads that a spec names: found, ready and of its owner, before it is planned."""

import re
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from sqlalchemy.orm import Session

from kdcore.config import Loc, SpecError
from kdcore.data import DataError, DataFacts, ViewError
from kdcore.data.upload import UploadConfig
from kdcore.modelfiles import ModelOptions, ModelProfile, reading_fault
from kdcore.models import HttpConfig, ModelConfig
from kdcore.spec import JobSpec, StudentConfig, TeacherConfig, UploadWeights, tokenizers_of
from storage.errors import ConflictError, NotFoundError
from storage.references import find_ready, is_gone
from storage.settings import Settings
from storage.teacher_urls import is_allowed
from storage.uploads import lock_upload

REFERENCE = re.compile(r"[A-Za-z0-9._@-]{1,200}")


def fill_in(session: Session, owner: str, document: Any, earlier: Mapping[str, Any] | None = None) -> Any:
    """A spec's document with the ids of the dataset and models that it names, and with what the dataset's check found.

    Before it is read: what a spec has by default depends on its data.

    Args:
        earlier: the spec of the job that was submitted with the same key: what it names may be deleted since.

    Raises:
        SpecError: there is no such dataset that is ready, or the document brings a profile of its own.
    """
    if not isinstance(document, Mapping):
        return document
    document = _with_model_ids(session, owner, document, earlier or {})
    data = document.get("data")
    if not isinstance(data, Mapping) or data.get("type") != "upload":
        return document
    reference = data.get("dataset")
    if not isinstance(reference, str) or not REFERENCE.fullmatch(reference):
        return document  # reading it says why
    try:
        found = find_ready(session, "dataset", reference, owner)
        known: Mapping[str, Any] = {"dataset": found.upload.id, "profile": found.profile}
    except (NotFoundError, ConflictError) as error:
        known = earlier["data"] if earlier is not None else {}
        if known.get("type") != "upload" or not is_gone(session, "dataset", reference, owner, known["dataset"]):
            raise SpecError([(("data", "dataset"), str(error))]) from None
    if data.get("profile") not in (None, known["profile"]):  # as a job's own spec has it, it may be sent again
        raise SpecError([(("data", "profile"), "is what the service found in the dataset; leave it out")])
    return {**document, "data": {**data, "dataset": known["dataset"], "profile": known["profile"]}}


def _with_model_ids(
    session: Session, owner: str, document: Mapping[str, Any], earlier: Mapping[str, Any]
) -> Mapping[str, Any]:
    """`weights: {model: name@version}` by the model's id. Where there is none that is ready, `check_models` says so."""

    def renamed(owned: Any, before: Any) -> Any:
        reference = model_of(owned)
        if reference is None or "@" not in reference:
            return owned
        try:
            found = find_ready(session, "model", reference, owner).upload.id
        except (NotFoundError, ConflictError):
            known = model_of(before)
            if known is None or not is_gone(session, "model", reference, owner, known):
                return owned
            found = known
        return {**owned, "weights": {**owned["weights"], "model": found}}

    given = {"student": renamed(document["student"], earlier.get("student"))} if "student" in document else {}
    if isinstance(document.get("teachers"), list):
        pairs = zip_longest(document["teachers"], earlier.get("teachers", [])[: len(document["teachers"])])
        given["teachers"] = [renamed(*pair) for pair in pairs]
    return {**document, **given}


def model_of(owned: Any) -> str | None:
    """The model whose weights a teacher or student of a document has, by its id or name; None where it names none."""
    weights = owned.get("weights") if isinstance(owned, Mapping) else None
    reference = weights.get("model") if isinstance(weights, Mapping) else None
    return reference if isinstance(reference, str) and REFERENCE.fullmatch(reference) else None


def check_models(session: Session, owner: str, spec: JobSpec) -> None:
    """See that the models that teachers and student have their weights from can be theirs.

    Raises:
        SpecError: leads to each that cannot.
    """
    errors: list[tuple[Loc, str]] = []
    try:
        facts = spec.data.facts()
    except DataError:
        return  # the plan says what is wrong with the data
    for loc, owned in _weighted(spec):
        if isinstance(owned.weights, UploadWeights):
            fault = _fault(session, owner, owned, owned.weights.model, facts)
            if fault is not None:
                errors.append(((*loc, "weights", "model"), fault))
    if errors:
        raise SpecError(errors)


def check_addresses(settings: Settings, spec: JobSpec) -> None:
    """See that teachers over HTTP are asked where the operator allows it.

    Raises:
        SpecError: leads to each address and secret that is not there to be used.
    """
    errors: list[tuple[Loc, str]] = []
    for index, teacher in enumerate(spec.teachers):
        if isinstance(teacher.model, HttpConfig):
            loc: Loc = ("teachers", index, "model")
            if not is_allowed(teacher.model.url, settings.teacher_urls):
                errors.append(((*loc, "url"), "the service may not ask there; its operator allows it by teacher_urls"))
            secret = settings.teacher_secrets.get(teacher.model.secret or "")
            if teacher.model.secret is not None and secret is None:
                errors.append(((*loc, "secret"), "the service has no secret of this name (teacher_secrets)"))
            if secret is not None and not secret.is_for(teacher.model.url):
                errors.append(((*loc, "secret"), "this secret is for another address (teacher_secrets)"))
    if errors:
        raise SpecError(errors)


def check_room(settings: Settings, spec: JobSpec) -> None:
    """See that a worker can prepare the dataset: that it fits into the cache, and on the disk.

    Raises:
        SpecError: leads to what makes it too large.
    """
    if isinstance(spec.data, UploadConfig):
        try:
            spec.data.check_cache(settings.cache, settings.cache_bytes, settings.min_free_bytes, tokenizers_of(spec))
        except DataError as error:
            raise SpecError([(("data", error.field) if error.field else ("data",), str(error))]) from None


def _weighted(spec: JobSpec) -> list[tuple[Loc, TeacherConfig | StudentConfig]]:
    """All that may have weights from elsewhere."""
    teachers: list[tuple[Loc, TeacherConfig | StudentConfig]] = [
        (("teachers", index), teacher) for index, teacher in enumerate(spec.teachers)
    ]
    return [*teachers, (("student",), spec.student)]


def _fault(
    session: Session, owner: str, owned: TeacherConfig | StudentConfig, model_id: str, facts: DataFacts
) -> str | None:
    try:
        found = find_ready(session, "model", model_id, owner)
    except (NotFoundError, ConflictError) as error:
        return str(error)
    profile = ModelProfile.model_validate(found.profile)
    same = profile.model is None or profile.format == "onnx" or _bare(profile.model) == _bare(owned.model)
    if not same:
        return f"{model_id} was checked against another model; copy `options.model` from `GET /models/{model_id}`"
    here = owned.classes if isinstance(owned, TeacherConfig) and owned.classes is not None else facts.classes
    if profile.classes is not None and owned.model.trainable and profile.classes != list(here):
        return f"the outputs of {model_id} are {_listed(profile.classes)}, here {_listed(here)}; name them in `classes`"
    try:
        seen = owned.view.facts(facts) if owned.view is not None else facts
    except ViewError:
        return None  # the plan says what is wrong with the view
    options = ModelOptions.model_validate(found.upload.options)
    fault = reading_fault(profile, options, owned.model, seen, owned.model.classes or len(here))
    return f"{model_id} does not fit: {fault}" if fault is not None else None


def _bare(model: ModelConfig) -> ModelConfig:
    """Whether the number of classes is written down makes no other model."""
    return model.model_copy(update={"classes": None})


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (", …" if len(names) > 10 else "")


def hold(session: Session, owner: str, spec: JobSpec) -> list[str]:
    """The uploads that a job reads, none of which is deleted before this transaction ends.

    Raises:
        SpecError: one was deleted since the spec was planned.
    """
    weights = [each.weights for _, each in _weighted(spec)]
    named = [("model", each.model) for each in weights if isinstance(each, UploadWeights)]
    if isinstance(spec.data, UploadConfig):
        named.append(("dataset", spec.data.dataset))
    try:
        return [lock_upload(session, kind, upload_id, owner, share=True).id for kind, upload_id in sorted(set(named))]
    except NotFoundError as error:
        raise SpecError([((), f"{error}: it was deleted a moment ago")]) from None
