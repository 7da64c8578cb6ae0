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
from kdcore.data import DataConfig, TokenizerConfig, ViewConfig
from kdcore.document import read_document
from kdcore.machine_speed import MachineSpeed
from kdcore.messages import explain
from kdcore.models import ModelConfig, OnnxConfig
from kdcore.models.onnx import JOB_MEMORY
from kdcore.student_choice import StudentWishes, fill_model
from kdcore.tasks import TASKS, MetricName
from kdcore.training import StageConfig, TeacherTrainConfig
from kdcore.transfer import ClassName, TransferConfig
from kdcore.tuning import TuningConfig
from kdcore.upgrade import upgrade

Name = Annotated[str, StringConstraints(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._ -]*$")]
LabelKey = Annotated[str, StringConstraints(max_length=63, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")]
LabelValue = Annotated[str, StringConstraints(max_length=255, pattern=r"^[^\x00-\x1f\x7f]*$")]
JobId = Annotated[str, StringConstraints(pattern=r"^job_[0-9a-z]{26}$")]
ModelId = Annotated[
    str, StringConstraints(pattern=r"^(mdl_[0-9a-z]{26}|[A-Za-z0-9][A-Za-z0-9._-]{0,99}@[1-9][0-9]{0,8})$")
]
RelativePath = Annotated[str, StringConstraints(min_length=1, max_length=500, pattern=r"^[^/\\\x00][^\\\x00]*$")]
WEIGHT_FILES = (".safetensors", ".pt", ".pth", ".bin", ".onnx")
RESERVED_STAGES = ("teacher", "baseline")


class JobWeights(Config):
    """Weights that another job trained: a teacher's are of its first teacher, a student's of its student."""

    job: JobId


class UploadWeights(Config):
    """Weights, or an ONNX file, that were uploaded."""

    model: ModelId
    """Its id, or `name@version`."""


class FileWeights(Config):
    """Weights, or an ONNX file, in the data directory."""

    file: RelativePath
    """Relative to the data directory, which it may not leave."""

    @field_validator("file")
    @classmethod
    def _contained(cls, value: str) -> str:
        if ".." in value.split("/"):
            raise ValueError("the path may not contain '..'")
        if not value.endswith(WEIGHT_FILES):
            raise ValueError(f"only these files are read as weights: {', '.join(WEIGHT_FILES)}")
        return value


class TeacherConfig(Config):
    """A teacher: its architecture, and either how to train it or the weights it has."""

    model: ModelConfig
    view: ViewConfig | None = None
    """What it reads of a sample; none: all of it. The student may read another view of the same sample."""
    tokenizer: TokenizerConfig | None = None
    """Of texts: its own, where it knows other words than the data's; none: the data's. Of a given teacher only."""
    classes: list[ClassName] | None = Field(default=None, min_length=2, max_length=10_000)
    """Names of its outputs, in order, where these are not the data's classes as they are: more of them, or in another
    order. Its logits are cut down to the data's classes, by name. Of a teacher with `weights` only."""
    train: TeacherTrainConfig | None = None
    """Defaults are filled in where neither `train` nor `weights` is given."""
    weights: JobWeights | UploadWeights | FileWeights | None = None

    @model_validator(mode="before")
    @classmethod
    def _train_unless_given(cls, value: Any) -> Any:
        model = value.get("model") if isinstance(value, Mapping) else None
        said = isinstance(model, Mapping) and model.get("type") in ("logits", "http")  # there is nothing to train
        if isinstance(value, Mapping) and not said and value.get("weights") is None and value.get("train") is None:
            return {**value, "train": {}}
        return value

    @field_validator("weights")
    @classmethod
    def _one_of(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None and info.data.get("train") is not None:
            raise ValueError("give either `train` or `weights`: a teacher with weights is not trained again")
        return value

    @property
    def is_given(self) -> bool:
        """Whether nothing here trains it: it comes with weights, or with its logits."""
        return self.train is None


def _model_may_be_left_out(schema: dict[str, Any]) -> None:
    needed = [name for name in schema.pop("required", []) if name != "model"]
    if needed:
        schema["required"] = needed


class StudentConfig(StudentWishes, json_schema_extra=_model_may_be_left_out):
    """The student: its architecture, by name or by what it is to be like, and the weights with which it begins."""

    model: ModelConfig
    """May be left out where `shrink`, `max_parameters` or `max_latency_ms` says what it is to be like; the complete
    spec names it. Where both are given, this is what is used."""
    weights: JobWeights | UploadWeights | FileWeights | None = None
    """That student and baseline begin with, of the same model: another job's student, uploaded, or a file."""
    initialize: Literal["random", "from_teacher"] = "random"
    """`from_teacher`: student and baseline begin with layers of the first teacher, every k-th of its blocks."""
    view: ViewConfig | None = None
    """What it reads of a sample; none: all of it. What is exported reads the view."""
    offset_classes: list[ClassName] = Field(default_factory=list, max_length=10_000)
    """Classes to whose logits an offset is added in the end, the one that is best on the validation split: for
    classes that the transfer set lacks. The baseline gets its own."""

    @field_validator("initialize")
    @classmethod
    def _one_beginning(cls, value: str, info: ValidationInfo) -> str:
        if value != "random" and info.data.get("weights") is not None:
            raise ValueError("give either `weights` or `initialize`: the student begins once")
        return value


class LimitsConfig(Config):
    """What a job may use; beyond it the service fails the job with kind `user`."""

    max_seconds: float = Field(default=86_400.0, gt=0, le=30 * 86_400)
    """Training time summed over all attempts, in seconds."""
    max_memory: ByteSize | None = Field(default=None, ge=64 * 2**20, le=2**60)
    """Resident memory of the training process, in bytes or as `"4GiB"`; none: no limit, with an ONNX teacher 16 GiB."""


class CheckpointConfig(Config):
    """How often the training state is saved; whichever comes first."""

    every_seconds: float = Field(default=30.0, ge=0.1, le=86_400)
    """Of training; longer where a checkpoint takes so long that it would cost more than 2% of it."""
    every_steps: int | None = Field(default=None, ge=1, le=1_000_000_000)


class EvaluateConfig(Config):
    """What is measured beside the usual."""

    robustness: bool = False
    """Of classifiers of pictures: accuracy under noise, common corruptions and attacks, on 1,000 test samples."""


class ExportConfig(Config):
    """Files of the student beside the usual."""

    int8: bool = False
    """`student-int8.onnx` too, of 8-bit whole numbers, its scores and its speed measured beside the float one's."""


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
    stages: list[StageConfig] = Field(default_factory=lambda: [StageConfig()], max_length=100)
    """Empty: nothing is trained, and the student's weights, which then must be given, are evaluated and exported."""
    name: Name = Field(default_factory=_default_name)
    baseline: bool = True
    """Train the same student on the labels alone as well: what distillation must beat."""
    repeats: int = Field(default=1, ge=1, le=20)
    """Train baseline and student this often, each time with other initial weights and order, so that the gain has a
    spread; the first one is the student that is published."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    select_by: MetricName | Literal["last"] = Field(default_factory=_default_score)
    """The validation metric that picks the best epoch of the teacher and of the last stage; left out: the task's
    first: accuracy, macro_f1, mae or recall_at_1. `last`: none picks, the last epoch's weights are kept."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["float32", "bf16"] = "float32"
    """`bf16` runs forward passes under autocast; weights stay float32. Slow on many CPUs: event `slow_precision`."""
    priority: int = Field(default=0, ge=-100, le=100)
    """Higher runs first."""
    labels: dict[LabelKey, LabelValue] = Field(default_factory=dict, max_length=32)
    """Free tags to find the job by; nothing to do with class labels."""
    limits: LimitsConfig = Field(default=LimitsConfig(), validate_default=True)
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    export: ExportConfig = ExportConfig()
    tuning: TuningConfig = TuningConfig()
    keep_targets: bool = True
    """Ask a teacher once about each sample, where samples repeat and there is room; false: ask in every step."""
    reuse_teachers: bool = True
    """Take the weights of a teacher that an earlier job trained in the same way; false: train it again."""
    profile: bool = False
    """Leave a trace of some steps, for Perfetto, and a table of where a step's time goes."""

    @field_validator("limits")
    @classmethod
    def _limit_files(cls, value: LimitsConfig, info: ValidationInfo) -> LimitsConfig:
        files = any(isinstance(teacher.model, OnnxConfig) for teacher in info.data.get("teachers", ()))
        return value.model_copy(update={"max_memory": JOB_MEMORY}) if files and value.max_memory is None else value

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


def parse_spec(document: str | bytes | Mapping[str, Any], speed: MachineSpeed | None = None) -> JobSpec:
    """Read a spec of this version or an older one.

    Args:
        document: YAML 1.2 or JSON text, or an already parsed mapping.
        speed: of the machine for which `max_latency_ms` picks a student.

    Raises:
        SpecError: the spec is not valid; the `loc` of each error ends in the field's name.
        DocumentError: the text is neither YAML nor JSON.
    """
    value = read_document(document) if isinstance(document, (str, bytes)) else document
    if not isinstance(value, Mapping):
        raise SpecError([((), "a spec is a mapping with `data`, `teachers` and `student`")])
    try:
        spec = JobSpec.model_validate(fill_model(upgrade(value), speed))
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


def tokenizers_of(spec: JobSpec) -> list[TokenizerConfig]:
    """Of the teachers that have their own, in order."""
    return [teacher.tokenizer for teacher in spec.teachers if teacher.tokenizer is not None]


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
