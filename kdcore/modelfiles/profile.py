"""What is said of a model file by who brings it, and what a check found in it."""

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from kdcore.config import Config
from kdcore.data import TokenizerConfig
from kdcore.models import ModelConfig
from kdcore.transfer import ClassName

Format = Literal["safetensors", "state_dict", "onnx"]
Size = Annotated[int, Field(ge=1, le=1_000_000)]


class ModelOptions(Config):
    """What the uploader says of a model file; everything may be left out."""

    model: ModelConfig | None = None
    """The architecture whose weights these are: names and shapes are compared with it. None: only what the file itself
    says is looked at."""
    classes: list[ClassName] | None = Field(default=None, min_length=2, max_length=10_000)
    """Names of its outputs, in order."""
    input_shape: list[Size] | None = Field(default=None, min_length=1, max_length=3)
    """Of one sample, as the model reads it: [C, H, W], [T, D] or [D]; [3, 224, 224] where left out."""
    vocabulary: Size | None = None
    """How many tokens there are, of a model that reads texts."""
    tokenizer: TokenizerConfig | None = None
    """How its texts were cut, of a model that reads texts: jobs that name it as a teacher cut theirs so as well. Then
    `input_shape` and `vocabulary` follow from it."""

    @field_validator("tokenizer")
    @classmethod
    def _of_this_model(cls, value: TokenizerConfig | None, info: ValidationInfo) -> TokenizerConfig | None:
        known = info.data.get("vocabulary")
        if value is not None and known not in (None, value.tokens):
            raise ValueError(f"it has {value.tokens} tokens, `vocabulary` says {known}; leave `vocabulary` out")
        shape = info.data.get("input_shape")
        if value is not None and shape not in (None, [value.length]):
            raise ValueError(f"its texts have {value.length} tokens, `input_shape` is {shape}; leave that out")
        return value


class ValueProfile(Config):
    """An input or output of an ONNX file, or a tensor of another."""

    name: str
    dtype: str
    shape: list[int | str | None]
    """Of an input or output with the batch; a name or none where a dimension is free."""


class ModelProfile(Config):
    """What a check found in a model file."""

    format: Format
    """By the file's content, whatever its name."""
    bytes: int
    parameters: int
    """Numbers in its weights."""
    tensors: int
    model: ModelConfig | None = None
    """The architecture that it fits; none: it was compared with none."""
    classes: list[str] | None = None
    """Names of its outputs, as its uploader gave them."""
    prefix: str = ""
    """What stood before all its names and was taken away, such as `module.`."""
    file: str | None = None
    """A file that the check wrote: the same weights as safetensors, to be used instead; none: the file is used as it
    is."""
    weights: list[ValueProfile] = Field(default_factory=list)
    """Its tensors, where they were compared with no architecture: a job's spec names one."""
    opset: int | None = None
    """Of an ONNX file, as are inputs and outputs."""
    inputs: list[ValueProfile] = Field(default_factory=list)
    outputs: list[ValueProfile] = Field(default_factory=list)
