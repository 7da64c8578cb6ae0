"""What a job is: the one definition, as pydantic models.

`parse_spec` reads a document (YAML text, JSON text or a plain mapping) into a `JobSpec` with every
default filled in; what is wrong is raised as `SpecError`, each error leading to its field.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    ByteSize,
    Field,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from kdcore.config import SPEC_VERSION, Config, SpecError
from kdcore.data import DataConfig, ViewConfig
from kdcore.document import read_document
from kdcore.losses import LossConfig, default_losses
from kdcore.messages import explain
from kdcore.models import ModelConfig
from kdcore.optim import AdamConfig, ConstantConfig, OptimizerConfig, ScheduleConfig
from kdcore.tasks import TASKS, MetricName
from kdcore.transfer import ClassName, TransferConfig
from kdcore.upgrade import upgrade

Name = Annotated[str, StringConstraints(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._ -]*$")]
StageName = Annotated[str, StringConstraints(max_length=60, pattern=r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$")]
LabelKey = Annotated[str, StringConstraints(max_length=63, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")]
LabelValue = Annotated[str, StringConstraints(max_length=255, pattern=r"^[^\x00-\x1f\x7f]*$")]
JobId = Annotated[str, StringConstraints(pattern=r"^job_[0-9a-z]{26}$")]
RelativePath = Annotated[str, StringConstraints(min_length=1, max_length=500, pattern=r"^[^/\\\x00][^\\\x00]*$")]
RESERVED_STAGES = ("teacher", "baseline")


class AugmentConfig(Config):
    """Augmentation of a batch of images, drawn per sample; only the training inputs are changed."""

    crop: int = Field(default=0, ge=0, le=64)
    """Pad every side by this many black pixels and cut the original size out at a random place."""
    flip: bool = False
    """Mirror left and right with probability one half."""
    jitter: int = Field(default=0, ge=0, le=64)
    """Shift by up to this many pixels in each direction; the border's pixels are repeated."""

    @property
    def is_on(self) -> bool:
        return bool(self.crop or self.flip or self.jitter)


class EarlyStoppingConfig(Config):
    """Stop a stage when `select_by` has not become better for `patience` epochs."""

    patience: int = Field(default=5, ge=1, le=10_000)
    min_delta: float = Field(default=0.0, ge=0, le=100)


class TrainConfig(Config):
    """Consecutive epochs with one optimizer."""

    epochs: int = Field(default=10, ge=1, le=100_000)
    batch_size: int = Field(default=64, ge=1, le=1_048_576)
    optimizer: OptimizerConfig = AdamConfig()
    schedule: ScheduleConfig = ConstantConfig()
    gradient_clip: float | None = Field(default=None, gt=0, le=1e6)
    """Largest L2 norm of all gradients together; none: gradients are left as they are."""
    augment: AugmentConfig = AugmentConfig()
    early_stopping: EarlyStoppingConfig | None = None


class TeacherTrainConfig(TrainConfig):
    """How a teacher is trained: on the labels, unless `losses` say otherwise."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Of the label loss that it has where `losses` are left out."""
    losses: list[LossConfig] | None = Field(default=None, min_length=1, max_length=32)
    """None: cross-entropy on the labels. A teacher may itself be distilled from those before it in `teachers`:
    an assistant between teacher and student, or the next generation of a born-again network."""


class StageConfig(TrainConfig):
    """One distillation stage."""

    name: StageName | None = None
    """Unique within the job; `distill-1`, `distill-2`, … where left out."""
    losses: list[LossConfig] = Field(default_factory=default_losses, min_length=1, max_length=32)


class JobWeights(Config):
    """Weights of the teacher that another job trained."""

    job: JobId


class FileWeights(Config):
    """Weights in a safetensors file of the data directory."""

    file: RelativePath
    """Relative to the data directory, which it may not leave."""

    @field_validator("file")
    @classmethod
    def _contained(cls, value: str) -> str:
        if ".." in value.split("/"):
            raise ValueError("the path may not contain '..'")
        if not value.endswith(".safetensors"):
            raise ValueError("only .safetensors files are read as weights")
        return value


class TeacherConfig(Config):
    """A teacher: its architecture, and either how to train it or the weights it has."""

    model: ModelConfig
    view: ViewConfig | None = None
    """What it reads of a sample; none: all of it. The student may read another view of the same sample."""
    train: TeacherTrainConfig | None = None
    """Defaults are filled in where neither `train` nor `weights` is given."""
    weights: JobWeights | FileWeights | None = None

    @model_validator(mode="before")
    @classmethod
    def _train_unless_given(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and value.get("weights") is None and value.get("train") is None:
            return {**value, "train": {}}
        return value

    @field_validator("weights")
    @classmethod
    def _one_of(cls, value: JobWeights | FileWeights | None, info: ValidationInfo) -> JobWeights | FileWeights | None:
        if value is not None and info.data.get("train") is not None:
            raise ValueError("give either `train` or `weights`: a teacher with weights is not trained again")
        return value


class StudentConfig(Config):
    """The student: its architecture."""

    model: ModelConfig
    view: ViewConfig | None = None
    """What it reads of a sample; none: all of it. What is exported reads the view."""
    offset_classes: list[ClassName] = Field(default_factory=list, max_length=10_000)
    """Classes to whose logits an offset is added in the end, the one that is best on the validation split: for
    classes that the transfer set lacks. The baseline gets its own."""


class LimitsConfig(Config):
    """What a job may use; beyond it the service fails the job with kind `user`."""

    max_seconds: float = Field(default=86_400.0, gt=0, le=30 * 86_400)
    """Training time summed over all attempts, in seconds."""
    max_memory: ByteSize | None = Field(default=None, ge=64 * 2**20, le=2**60)
    """Resident memory of the training process, in bytes or as `"4GiB"`; none: no limit."""


class CheckpointConfig(Config):
    """How often the training state is saved; whichever comes first."""

    every_seconds: float = Field(default=30.0, ge=0.1, le=86_400)
    """Of training; longer where a checkpoint takes so long that it would cost more than 2% of it."""
    every_steps: int | None = Field(default=None, ge=1, le=1_000_000_000)


class EvaluateConfig(Config):
    """What is measured beside the usual."""

    robustness: bool = False
    """Of classifiers of pictures: accuracy under noise, common corruptions and attacks, on 1,000 test samples."""


def _default_name(values: dict[str, Any]) -> str:
    return f"{values['data'].type}-{values['student'].model.type}"


def _default_score(values: dict[str, Any]) -> MetricName:
    return TASKS[values["data"].task_name].main


class JobSpec(Config):
    """A job, complete: what is stored, shown and run."""

    spec_version: Literal[2] = SPEC_VERSION
    data: DataConfig
    teachers: list[TeacherConfig] = Field(max_length=16)
    """May be empty where every loss brings what the student learns from: peers, or the student's own deeper layers."""
    student: StudentConfig
    transfer: TransferConfig = TransferConfig()
    stages: list[StageConfig] = Field(default_factory=lambda: [StageConfig()], min_length=1, max_length=100)
    name: Name = Field(default_factory=_default_name)
    baseline: bool = True
    """Train the same student on the labels alone as well: what distillation must beat."""
    repeats: int = Field(default=1, ge=1, le=20)
    """Train baseline and student this often, each time with other initial weights and order, so that the gain has a
    spread; the first one is the student that is published."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    select_by: MetricName = Field(default_factory=_default_score)
    """The validation metric that picks the best epoch of the teacher and of the last stage; left out: the task's
    first: accuracy, macro_f1, mae or recall_at_1."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["float32", "bf16"] = "float32"
    """`bf16` runs forward passes under autocast; weights stay float32."""
    priority: int = Field(default=0, ge=-100, le=100)
    """Higher runs first."""
    labels: dict[LabelKey, LabelValue] = Field(default_factory=dict, max_length=32)
    """Free tags to find the job by; nothing to do with class labels."""
    limits: LimitsConfig = LimitsConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    keep_targets: bool = True
    """Ask a teacher once about each sample and keep what it says, where a stage does not augment and memory allows;
    false: ask in every step."""

    @model_validator(mode="before")
    @classmethod
    def _name_stages(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        stages = value.get("stages", [{}])
        if not isinstance(stages, list):
            return value
        named = [
            {**stage, "name": f"distill-{number}"}
            if isinstance(stage, Mapping) and stage.get("name") is None
            else stage
            for number, stage in enumerate(stages, start=1)
        ]
        return {**value, "stages": named}


def parse_spec(document: str | bytes | Mapping[str, Any]) -> JobSpec:
    """Read a spec of this version or an older one.

    Args:
        document: YAML 1.2 or JSON text, or an already parsed mapping.

    Raises:
        SpecError: the spec is not valid; the `loc` of each error ends in the field's name.
        DocumentError: the text is neither YAML nor JSON.
    """
    value = read_document(document) if isinstance(document, (str, bytes)) else document
    if not isinstance(value, Mapping):
        raise SpecError([((), "a spec is a mapping with `data`, `teachers` and `student`")])
    try:
        spec = JobSpec.model_validate(upgrade(value))
    except ValidationError as error:
        raise SpecError(explain(error, JobSpec)) from None
    _check_stage_names(spec)
    return spec


def _check_stage_names(spec: JobSpec) -> None:
    errors: list[tuple[tuple[str | int, ...], str]] = []
    seen: set[str | None] = set()
    for index, stage in enumerate(spec.stages):
        loc = ("stages", index, "name")
        if str(stage.name).split("-")[0] in RESERVED_STAGES:
            errors.append((loc, f"{stage.name!r} is a name the service gives; choose another"))
        if stage.name in seen:
            errors.append((loc, f"{stage.name!r} names two stages; names are unique within a job"))
        seen.add(stage.name)
    if errors:
        raise SpecError(errors)


def spec_document(spec: JobSpec) -> dict[str, Any]:
    """The spec as plain JSON values, complete with defaults."""
    document: dict[str, Any] = spec.model_dump(mode="json")
    return document


def spec_digest(spec: JobSpec) -> str:
    """SHA-256 of the canonical JSON of the complete spec, as `sha256:<hex>`.

    A later version may complete the same document to another one: a stored digest is kept, never computed again.
    """
    text = json.dumps(spec_document(spec), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
