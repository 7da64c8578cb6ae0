"""What a plan checks of a spec beside its networks: peers, labels, batches and augmentation."""

from kdcore.config import Loc
from kdcore.data import DataFacts
from kdcore.spec import JobSpec
from kdcore.stages import label_loss, list_stages
from kdcore.tasks import TASKS
from kdcore.training import TrainConfig

MOST_PEERS = 16
"""In a spec: each is a network that the plan has to build."""

Errors = list[tuple[Loc, str]]


def too_many_peers(spec: JobSpec) -> Errors:
    """Peers beyond `MOST_PEERS`."""
    peers = [
        ("stages", number, "losses", index, "peer")
        for number, stage in enumerate(spec.stages)
        for index, loss in enumerate(stage.losses)
        if loss.type == "mutual"
    ]
    return [(loc, f"a job may have {MOST_PEERS} peers in all its stages") for loc in peers[MOST_PEERS:]]


def evaluation_errors(spec: JobSpec) -> Errors:
    """Of a job without stages, which trains nothing."""
    if spec.stages:
        return []
    found: Errors = []
    if spec.student.weights is None:
        message = "a job without stages only evaluates: name the student's weights, or give it a stage"
        found.append((("student", "weights"), message))
    if spec.student.offset_classes:
        found.append((("student", "offset_classes"), "an offset is found at the end of a stage; leave it out"))
    if spec.repeats > 1:
        found.append((("repeats",), "a job without stages only evaluates, once; leave it out"))
    found += [
        (
            ("teachers", index, "train"),
            "a job without stages trains nothing; give the teacher's weights or leave it out",
        )
        for index, teacher in enumerate(spec.teachers)
        if teacher.train is not None
    ]
    return found


def check_labels(spec: JobSpec, facts: DataFacts, errors: Errors) -> None:
    """Offsets name classes; with some labels unseen, only a loss that can do without a sample's label stays."""
    for index, name in enumerate(spec.student.offset_classes):
        if facts.task != "classification" or name not in facts.classes:
            errors.append((("student", "offset_classes", index), f"the data has no class {name!r}"))
    if set(spec.student.offset_classes) >= set(facts.classes):
        message = "an offset on every class changes nothing; name those that the student never sees"
        errors.append((("student", "offset_classes"), message))
    errors += _unlabelled(spec)
    errors += _embeddings(spec, facts)
    for number, stage in enumerate(spec.stages):
        for index, loss in enumerate(stage.losses):
            loc = ("stages", number, "losses", index, "type")
            if spec.transfer.labelled == 0 and loss.reads_labels:
                errors.append(
                    (loc, f"{loss.type} needs labels, transfer.labelled is 0; use losses on the teacher only")
                )
            elif spec.transfer.labelled < 1 and loss.reads_labels and not loss.skips_unlabelled:
                errors.append((loc, f"{loss.type} needs the label of every sample; set transfer.labelled to 1"))


def _embeddings(spec: JobSpec, facts: DataFacts) -> Errors:
    """Embeddings of another width than there are classes, where nothing but the classes is to be learned."""
    count = len(facts.classes)
    if facts.task != "embedding":
        return []
    told = "the cross-entropy on the labels wants {0} outputs, one for each class; leave `classes` out, or {1}"
    found: Errors = [
        (("teachers", index, "model", "classes"), told.format(count, "name the `losses` of its `train`"))
        for index, teacher in enumerate(spec.teachers)
        if teacher.train is not None and not teacher.train.losses and teacher.model.classes not in (None, count)
    ]
    if any(stage.role == "baseline" for stage in list_stages(spec)) and spec.student.model.classes not in (None, count):
        found.append((("student", "model", "classes"), told.format(count, "set `baseline` to false")))
    return found


def _unlabelled(spec: JobSpec) -> Errors:
    """What needs labels that the data itself does not have."""
    share = spec.data.labelled
    if share == 1:
        return []
    trains = [
        (("teachers", index, "train"), teacher.train.losses or [label_loss(spec.data.task_name)])
        for index, teacher in enumerate(spec.teachers)
        if teacher.train is not None
    ]
    stages = [(("stages", index), stage.losses) for index, stage in enumerate(spec.stages)]
    return [
        (
            (*loc, "losses", index, "type"),
            f"{loss.type} needs labels, {share:.0%} of the training samples have one; use losses on the teacher only",
        )
        for loc, losses in (*trains, *stages)
        for index, loss in enumerate(losses)
        if loss.reads_labels and (share == 0 or not loss.skips_unlabelled)
    ]


def selection_errors(spec: JobSpec, facts: DataFacts) -> Errors:
    """What picks the best epoch, and what stops a stage early by it."""
    scores = TASKS[facts.task].scores
    if spec.select_by in scores:
        return []
    if spec.select_by != "last":
        return [(("select_by",), f"{spec.select_by} is no score of a {facts.task}; use {', '.join(scores)} or last")]
    given = [(("teachers", index, "train"), teacher.train) for index, teacher in enumerate(spec.teachers)]
    trained = [*given, *((("stages", index), stage) for index, stage in enumerate(spec.stages))]
    return [
        ((*loc, "early_stopping"), "select_by: last looks at no score that could stop a stage; name one of them")
        for loc, config in trained
        if config is not None and config.early_stopping is not None
    ]


def check_training(config: TrainConfig, facts: DataFacts, loc: Loc, errors: Errors) -> None:
    """Batches and augmentation against the samples."""
    if config.batch_size > facts.train:
        message = f"{config.batch_size} is more than the {facts.train} training samples; use at most {facts.train}"
        errors.append(((*loc, "batch_size"), message))
    pictures = len(facts.input_shape) == 3
    if config.augment.is_on and not pictures:
        message = f"augmentation changes pictures (C, H, W), the samples are {facts.input_shape}; leave it out"
        errors.append(((*loc, "augment"), message))
        return
    size = min(facts.input_shape[1:], default=0)
    for field, pixels in (("crop", config.augment.crop), ("jitter", config.augment.jitter)):
        if pictures and pixels >= size:
            message = f"{pixels} pixels can push the whole {size}-pixel image out; use less, an eighth is usual"
            errors.append(((*loc, "augment", field), message))
