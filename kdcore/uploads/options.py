"""What the uploader of a data set says of it; all of it has defaults, which are the usual names."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from kdcore.config import Config
from kdcore.data.base import Fraction, TaskName

Column = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]
ClassName = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Format = Literal["zip", "tar", "parquet", "csv", "tsv", "jsonl", "npz", "safetensors"]
Kind = Literal["picture", "text", "vector"]
MOST_CLASSES = 10_000


class DatasetOptions(Config):
    """How a file is to be read as a data set."""

    format: Format | None = None
    """None: told from the file's content. What is packed with gzip is unpacked first."""
    inputs: list[Column] = Field(default_factory=list, max_length=10_000)
    """The columns that are the sample: one of pictures, of lists of numbers or of texts; several texts are joined,
    several numbers make a vector. Empty: a column with a usual name, such as `image` or `text`."""
    fields: list[Column] = Field(default_factory=list, max_length=16)
    """Of samples of several parts, such as a picture and a sound of one thing, the arrays of an `.npz` or
    `.safetensors` file, or the columns of numbers or lists of numbers of a table: each network then reads one of them,
    by its `view`. Empty: a sample is one thing."""
    kind: Kind | None = None
    """Of a table's inputs; none: told by the columns: several are numbers, one is a text."""
    labels: list[Column] = Field(default_factory=list, max_length=1_000)
    """The columns of the label: one of a class; of several labels one list of classes; of a regression the targets.
    Empty: a column with a usual name, such as `label`; where there is none, the samples have no labels."""
    task: TaskName = "classification"
    """What is to be learned from the labels."""
    classes: list[ClassName] = Field(default_factory=list, max_length=MOST_CLASSES)
    """Names of the classes, in the order of the outputs; empty: those of the file, in the order of their names. In
    every format a label that is a number is a place in this list, from 0, unless one of its names is a number: then it
    is a name. -1 is no label, unless it is a name here."""
    id: Column | None = None
    """The column of a name that a sample keeps; none: `id`, where there is one. Splits go by it, else by content."""
    split: Column | None = None
    """The column that says train, validation or test; none: `split`, where there is one."""
    file: Column | None = None
    """Of a table that lies in an archive beside the pictures: the column of their names; none: `file_name`, `file`."""
    logits: Column | None = None
    """The column, or array, of a teacher's logits; none: `logits`, where there is one."""
    logit_classes: Column | None = None
    """The column, or array, that says which classes the logits of a sample are of, by their places from 0, where only
    the largest were kept; none: `logit_classes`, where there is one. Then `logits` are log-probabilities, and what they
    leave is spread evenly over the other classes."""
    test: Fraction = 0.1
    """Share that is held out for testing where the file has no test split: of every class alike, chosen by a hash."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Of that hash: another one gives another split."""
    unreadable: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Share of the samples that may be left out because they cannot be read; more of them refuse the data set."""
