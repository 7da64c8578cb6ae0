"""Teachers of texts that bring their own tokenizer: with their upload, or beside another job's weights."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from sqlalchemy.orm import Session

from api.references import model_of
from kdcore.config import Loc, SpecError
from kdcore.data import TokenizerConfig
from kdcore.spec import JobSpec, TeacherConfig
from storage.errors import ConflictError, NotFoundError
from storage.references import find_ready, is_gone

MOST = 16
"""Teachers that a spec may have: reading one with more says so."""


def fill_in(session: Session, owner: str, document: Any, earlier: Mapping[str, Any] | None = None) -> Any:
    """A spec's document with the tokenizers that were uploaded beside its teachers' weights.

    Args:
        earlier: the spec of the job that was submitted with the same key: what it names may be deleted since.

    Raises:
        SpecError: it gives a teacher another tokenizer than its upload has.
    """
    teachers = document.get("teachers") if isinstance(document, Mapping) else None
    if not isinstance(teachers, list) or len(teachers) > MOST:
        return document
    errors: list[tuple[Loc, str]] = []
    filled = []
    before: list[Any] = earlier.get("teachers", []) if earlier is not None else []
    for index, teacher in enumerate(teachers):
        options = _uploaded(session, owner, teacher, before[index] if index < len(before) else None)
        theirs, given = options.get("tokenizer"), _read(teacher)
        if theirs is not None and isinstance(teacher, Mapping) and teacher.get("tokenizer") is None:
            teacher = {**teacher, "tokenizer": theirs}
        elif given is not None:
            errors += [(("teachers", index, *loc), message) for loc, message in _differences(given, theirs, options)]
        filled.append(teacher)
    if errors:
        raise SpecError(errors)
    return {**document, "teachers": filled}


def _uploaded(session: Session, owner: str, teacher: Any, before: Any) -> Mapping[str, Any]:
    """What was said of the model whose weights a teacher has; nothing where it has none that is ready. Of one that was
    deleted since: the tokenizer of the teacher `before`."""
    reference, known = model_of(teacher), model_of(before)
    if reference is None:
        return {}
    try:
        return find_ready(session, "model", reference, owner).upload.options
    except (NotFoundError, ConflictError):  # `references.check_models` says why
        gone = known is not None and is_gone(session, "model", reference, owner, known)
        return {"tokenizer": before.get("tokenizer")} if gone else {}


def _read(teacher: Any) -> TokenizerConfig | None:
    """The tokenizer that the document gives; None where it gives none, or none that can be read."""
    try:
        return TokenizerConfig.model_validate(teacher["tokenizer"])
    except (ValidationError, TypeError, KeyError):
        return None


def _differences(
    given: TokenizerConfig, theirs: Any, options: Mapping[str, Any]
) -> Sequence[tuple[tuple[str, ...], str]]:
    if theirs is not None:
        same = given == TokenizerConfig.model_validate(theirs)
        return [] if same else [(("tokenizer",), "the model was uploaded with another one; leave it out")]
    known = options.get("vocabulary")
    if known in (None, given.tokens):
        return []
    return [(("tokenizer", "vocabulary"), f"it has {given.tokens} tokens, the uploaded model knows {known}")]


def job_fault(teacher: TeacherConfig, spec: JobSpec, theirs: JobSpec) -> str | None:
    """Why a tokenizer cannot be that of another job's teacher, which read that job's own tokens; None where it can."""
    if teacher.tokenizer is None:
        return None
    known = theirs.data.facts().vocabulary
    if known is None or spec.data.facts().vocabulary is None or known == teacher.tokenizer.tokens:
        return None
    mend = "copy `preprocessing.tokenizer` from its model.json"
    return f"it has {teacher.tokenizer.tokens} tokens, the teacher of that job knows {known}; {mend}"
