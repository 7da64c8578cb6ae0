"""Accepting a spec: read, planned and checked before anything is stored."""

from sqlalchemy.orm import Session

from api import machines, references, schemas, tokenizers
from api.bodies import Body
from api.problems import OtherVersionError
from api.receiving import check_disk
from api.service import Service
from kdcore.config import Loc, SpecError
from kdcore.data import DataFacts
from kdcore.models import ModelConfig
from kdcore.plan import Plan, make_plan
from kdcore.spec import JobSpec, JobWeights, StudentConfig, TeacherConfig, parse_spec, spec_digest, spec_document
from storage.errors import KeyReusedError, NotFoundError
from storage.lifecycle import Status
from storage.queries import get_job, list_artifacts
from storage.submissions import find_job, find_key, submit


def prepare(service: Service, owner: str, body: Body, key: str | None = None) -> tuple[JobSpec, Plan]:
    """Read a spec, with the uploads that it names, and plan it. Computes for a while: not for the event loop.

    Args:
        key: the request's Idempotency-Key. What it stored already is not looked for again: it may be gone since.

    Raises:
        DocumentError: it is neither JSON nor YAML.
        SpecError: it cannot be run; says why, and where.
    """
    document = body.parse()
    with service.database.read() as session:
        earlier = find_job(session, owner, key) if key is not None else None
        speed = machines.speed_for(session, document, service.settings.lease_seconds)
        before = earlier.spec if earlier is not None else None
        filled = references.fill_in(session, owner, document, before)
        spec = parse_spec(tokenizers.fill_in(session, owner, filled, before), speed)
        if earlier is not None and earlier.spec_digest == spec_digest(spec):
            return spec, make_plan(spec, speed)
        references.check_models(session, owner, spec)
    references.check_addresses(service.settings, spec)
    plan = make_plan(spec, speed)
    references.check_room(service.settings, spec)
    return spec, plan


def accept(service: Service, owner: str, spec: JobSpec, plan: Plan, key: str | None) -> schemas.Job:
    """Store a job as queued, or find the one that this Idempotency-Key stored; the job as it is now.

    Raises:
        SpecError: the weights of a teacher, or those the student begins with, are not to be had.
        DiskFullError: there is too little room for what it would write.
        KeyReusedError, QueueFullError: see `storage.submissions.submit`.
        OtherVersionError: the key's job has a spec that only a later version reads.
        SchemaError: the database was migrated under this process.
    """
    try:
        return _accept(service, owner, spec, plan, key)
    except NotFoundError:
        if key is None:
            raise
        return _accept(service, owner, spec, plan, key)  # the key's job was deleted this moment, and the key with it


def _accept(service: Service, owner: str, spec: JobSpec, plan: Plan, key: str | None) -> schemas.Job:
    try:
        job_id = _store(service, owner, spec, plan, key)
    except KeyReusedError as error:
        if not _is_spec_of(service, error.job_id, owner, spec, plan):
            raise
        job_id = error.job_id
    return service.jobs.read(owner, job_id).job


def _store(service: Service, owner: str, spec: JobSpec, plan: Plan, key: str | None) -> str:
    digest = spec_digest(spec)
    with service.database.read() as session:
        earlier = find_key(session, owner, key, digest) if key is not None else None
    if earlier is not None:
        return earlier
    check_disk(service)
    with service.database.write() as session:
        _check_weights(session, owner, spec)  # in the job's own transaction: nobody deletes them in between
        uploads = references.hold(session, owner, spec)
        return submit(
            session,
            owner=owner,
            spec=spec_document(spec),
            spec_digest=digest,
            plan=plan.model_dump(mode="json"),
            idempotency_key=key,
            max_queued=service.settings.max_queued,
            uploads=uploads,
        )


def _is_spec_of(service: Service, job_id: str, owner: str, spec: JobSpec, plan: Plan) -> bool:
    """Whether a job has this spec, though it was completed to another document, of another digest: by another version,
    or by another calibration, which picks another student."""
    try:
        with service.database.read() as session:
            theirs = parse_spec(get_job(session, job_id, owner).spec)
        if plan.student_choice is not None and plan.student_choice.by == "max_latency_ms":
            spec = _with_model(spec, theirs.student.model)
        return theirs == spec
    except SpecError as error:
        detail = f"the Idempotency-Key is that of {job_id}, which a later version accepted; ask that version ({error})"
        raise OtherVersionError(detail, headers={"Retry-After": "5"}) from None


def _with_model(spec: JobSpec, model: ModelConfig) -> JobSpec:
    """The spec, had this model been picked; a name that nobody gave follows from it."""
    document = spec_document(spec)
    document["student"]["model"] = model.model_dump(mode="json")
    if spec.name == f"{spec.data.type}-{spec.student.model.type}":
        del document["name"]
    return parse_spec(document)


def _check_weights(session: Session, owner: str, spec: JobSpec) -> None:
    errors: list[tuple[Loc, str]] = []
    for index, teacher in enumerate(spec.teachers):
        if isinstance(teacher.weights, JobWeights):
            fault = _fault(session, owner, spec, teacher, teacher.weights.job)
            if fault is not None:
                errors.append((("teachers", index, "weights", "job"), fault))
            elif (fault := _tokenizer_fault(session, owner, spec, teacher, teacher.weights.job)) is not None:
                errors.append((("teachers", index, "tokenizer"), fault))
    if isinstance(spec.student.weights, JobWeights):
        fault = _student_fault(session, owner, spec, spec.student.weights.job)
        if fault is not None:
            errors.append((("student", "weights", "job"), fault))
    if errors:
        raise SpecError(errors)


def _tokenizer_fault(session: Session, owner: str, spec: JobSpec, teacher: TeacherConfig, job_id: str) -> str | None:
    theirs = _spec_of(session, owner, job_id, "teacher") if teacher.tokenizer is not None else None
    return tokenizers.job_fault(teacher, spec, theirs) if isinstance(theirs, JobSpec) else None


def _student_fault(session: Session, owner: str, spec: JobSpec, job_id: str) -> str | None:
    """Why that job's student cannot be what this one begins with; None where it can."""
    theirs = _spec_of(session, owner, job_id, "student")
    if isinstance(theirs, str):
        return theirs
    if theirs.student.model != spec.student.model:
        return f"the student of {job_id} has another model; copy `student.model` from its spec"
    if (fault := _other_samples("student", spec.student, spec, theirs.student, theirs)) is not None:
        return fault
    if all(artifact.name != "student.safetensors" for artifact in list_artifacts(session, job_id)):
        return f"{job_id} no longer has its artifact student.safetensors"
    return None


Owner = TeacherConfig | StudentConfig


def _other_samples(whose: str, mine: Owner, spec: JobSpec, other: Owner, theirs: JobSpec) -> str | None:
    """Why a network that read the samples of one job cannot read those of another: their shape, their words."""
    (here, outputs), (there, had) = _read(mine, spec), _read(other, theirs)
    if (here.input_shape, outputs) != (there.input_shape, had):
        known = f"the {whose} of that job reads {there.input_shape} for {had} outputs"
        return f"{known}, this one {here.input_shape} for {outputs}"
    if isinstance(mine, TeacherConfig) and mine.tokenizer is not None:
        return None  # its words are its own
    if spec.data.facts().vocabulary is not None and spec.data != theirs.data:
        # Which words there are, and in which order, comes from the samples.
        mend = "copy `data` from its spec"
        if isinstance(mine, TeacherConfig):
            mend += ", or give it `tokenizer`: `preprocessing.tokenizer` of that job's model.json"
        return f"the {whose} of that job knows the words of its own data; {mend}"
    return None


def _read(owner: Owner, spec: JobSpec) -> tuple[DataFacts, int]:
    """What a network reads, and how many outputs it has."""
    facts = spec.data.facts()
    if isinstance(owner, TeacherConfig) and owner.tokenizer is not None:
        facts = owner.tokenizer.facts(facts)
    outputs = owner.model.classes or len(facts.classes)
    return (owner.view.facts(facts) if owner.view is not None else facts), outputs


def _spec_of(session: Session, owner: str, job_id: str, what: str) -> JobSpec | str:
    """The spec of a job that has a teacher or a student to give; else why it has none."""
    try:
        job = get_job(session, job_id, owner, keep=True)
    except NotFoundError as error:
        return str(error)
    if job.status != Status.SUCCEEDED:
        return f"{job_id} is {job.status}; only a succeeded job has a {what} to give"
    try:
        return parse_spec(job.spec)  # perhaps of an older version
    except SpecError as error:
        return f"this version cannot read the spec of {job_id}: {error}"


def _fault(session: Session, owner: str, spec: JobSpec, teacher: TeacherConfig, job_id: str) -> str | None:
    """Why that job's teacher cannot be this one's; None where it can."""
    theirs = _spec_of(session, owner, job_id, "teacher")
    if isinstance(theirs, str):
        return theirs
    if theirs.data.type != spec.data.type:
        return f"{job_id} was trained on {theirs.data.type}, this spec is about {spec.data.type}"
    if theirs.data.facts().classes != spec.data.facts().classes:
        return f"{job_id} was trained on other classes, or on these in another order; name the data as its spec does"
    if not theirs.teachers:
        return f"{job_id} had no teacher"
    if theirs.teachers[0].model != teacher.model:
        return f"the teacher of {job_id} has another model; copy `teachers[0].model` from its spec"
    if theirs.teachers[0].view != teacher.view:
        return f"the teacher of {job_id} reads another view; copy `teachers[0].view` from its spec"
    if (fault := _other_samples("teacher", teacher, spec, theirs.teachers[0], theirs)) is not None:
        return fault
    if all(artifact.name != "teacher-1.safetensors" for artifact in list_artifacts(session, job_id)):
        return f"{job_id} no longer has its artifact teacher-1.safetensors"
    return None
