"""What can be wrong with a model that is given and not trained: with its file, and with the names of its classes."""

from kdcore.config import Loc
from kdcore.data import DataFacts
from kdcore.models import AnswersConfig, LogitsConfig
from kdcore.spec import JobWeights, StudentConfig, TeacherConfig

SHOWN = 8


def given_errors(owner: TeacherConfig | StudentConfig, facts: DataFacts) -> list[tuple[Loc, str]]:
    """Pairs of `loc`, within the teacher or the student, and message."""
    config = owner.model
    if isinstance(owner, StudentConfig):
        message = f"a student is trained, and a model of type {config.type} cannot be; use another model"
        return [] if config.trainable else [(("model", "type"), message)]
    if found := _tokenizer_errors(owner, facts):
        return found
    if isinstance(config, AnswersConfig):
        return _answers_errors(owner, facts)
    if not config.trainable and owner.weights is None:
        return [(("weights",), f"a teacher of type {config.type} is a file; name it, such as {{file: teacher.onnx}}")]
    if not config.trainable and isinstance(owner.weights, JobWeights):
        return [(("weights", "job"), f"another job's teacher is no file of type {config.type}; name its own model")]
    if found := _probabilities(owner, facts):
        return found
    return [] if owner.classes is None else [(("classes",), why) for why in _class_errors(owner, facts)]


def _tokenizer_errors(teacher: TeacherConfig, facts: DataFacts) -> list[tuple[Loc, str]]:
    if teacher.tokenizer is None:
        return []
    if facts.vocabulary is None:
        return [(("tokenizer",), f"is for texts, the samples are {facts.input_shape}; leave it out")]
    message = "a teacher that is trained here reads the data's own tokens; leave it out, or give its `weights`"
    return [] if teacher.is_given else [(("tokenizer",), message)]


def _answers_errors(teacher: TeacherConfig, facts: DataFacts) -> list[tuple[Loc, str]]:
    brought = isinstance(teacher.model, LogitsConfig)
    fields = ("view", "tokenizer", "classes", "train", "weights") if brought else ("train", "weights")
    found: list[tuple[Loc, str]] = [
        ((field,), f"a teacher of type {teacher.model.type} is no network; leave it out")
        for field in fields
        if getattr(teacher, field) is not None
    ]
    found += _probabilities(teacher, facts)
    if not brought:
        return found + (
            [] if teacher.classes is None else [(("classes",), why) for why in _class_errors(teacher, facts)]
        )
    if not facts.teacher_logits:
        message = "the data brings no teacher's logits; upload a data set with a column or tensor `logits`"
        found.append((("model", "type"), message))
    return found


def _probabilities(teacher: TeacherConfig, facts: DataFacts) -> list[tuple[Loc, str]]:
    """Only those of a classification become logits by their logarithm."""
    if getattr(teacher.model, "gives", "logits") == "logits" or facts.task == "classification":
        return []
    return [(("model", "gives"), f"the probabilities of a {facts.task} do not become its logits; have it give logits")]


def _class_errors(teacher: TeacherConfig, facts: DataFacts) -> list[str]:
    assert teacher.classes is not None
    if not teacher.is_given:
        return ["a teacher that is trained here learns the data's classes; leave `classes` out"]
    if facts.task == "embedding":
        return ["an embedding has no classes; leave `classes` out"]
    if len(set(teacher.classes)) < len(teacher.classes):
        twice = next(name for name in teacher.classes if teacher.classes.count(name) > 1)
        return [f"{twice!r} is there twice; every output has a name of its own"]
    if missing := [name for name in facts.classes if name not in teacher.classes]:
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        named = ", ".join(repr(name[:50]) for name in missing[:SHOWN])
        return [f"the data's {named}{more} are not among the teacher's classes; it cannot teach them"]
    return []
