"""What is said of a dataset or model that is to be uploaded."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

from pydantic import Field, StringConstraints, ValidationError

from api.problems import InvalidUploadError
from kdcore.config import Config, Loc
from kdcore.document import DocumentError, read_json
from kdcore.messages import explain
from kdcore.modelfiles import ModelOptions
from kdcore.uploads import DatasetOptions
from storage import uploads
from storage.errors import NotFoundError
from storage.ids import ID

Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
UploadName = Annotated[str, StringConstraints(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
FileName = Annotated[str, StringConstraints(max_length=255, pattern=r"^[^\x00-\x1f\x7f/\\]*$")]


class NewUpload(Config):
    """What is to be uploaded."""

    name: UploadName
    """The next version of this name."""
    size: int = Field(ge=1, le=2**44)
    """Of the whole file, in bytes."""
    digest: Digest | None = None
    """SHA-256 of the whole file, as `sha256:<hex>`: checked once all parts are there."""
    file: FileName = ""
    """The file's name, to recognise it by."""


class NewDataset(NewUpload):
    """A dataset that is to be uploaded."""

    options: DatasetOptions = DatasetOptions()
    """What is known of it that its bytes do not say."""


class NewModel(NewUpload):
    """A model that is to be uploaded."""

    options: ModelOptions = ModelOptions()
    """What is known of it that its bytes do not say."""


class New(Protocol):
    name: str
    size: int
    digest: str | None
    file: str
    options: Config


@dataclass(frozen=True)
class Kind:
    """A kind of upload: its name, that of its collection, and what is said of a new one."""

    name: str
    plural: str
    new: type[NewDataset] | type[NewModel]
    example: dict[str, Any]

    @property
    def prefix(self) -> str:
        return uploads.PREFIXES[self.name]

    def check_id(self, upload_id: str) -> str:
        """The id, if it can be one.

        Raises:
            NotFoundError: it cannot.
        """
        if ID.fullmatch(upload_id) is None or not upload_id.startswith(f"{self.prefix}_"):
            raise NotFoundError(f"there is no {self.name} of this id; ids look like {self.prefix}_01k2v9h3m4n5p6q7r8…")
        return upload_id


KINDS = {
    "datasets": Kind("dataset", "datasets", NewDataset, {"name": "flowers", "size": 104857600, "file": "flowers.zip"}),
    "models": Kind("model", "models", NewModel, {"name": "teacher", "size": 46827520, "file": "resnet18.safetensors"}),
}
"""By the first part of their addresses."""


def read_options(text: str) -> Any:
    """What a query says of a new upload, as JSON.

    Raises:
        InvalidUploadError: it is no JSON.
    """
    try:
        return read_json(text.encode())
    except DocumentError as error:
        raise _invalid([(("query", "options"), f"cannot be read: {error}")]) from None


def read_new(kind: Kind, document: Any, most: int, *, where: Loc = ()) -> New:
    """What a request says of a new upload.

    Args:
        most: bytes that it may have.
        where: it is said; before the `loc` of each fault.

    Raises:
        InvalidUploadError: leads to each fault.
    """
    try:
        new: Any = kind.new.model_validate(document)
    except ValidationError as error:
        raise _invalid([((*where, *loc), message) for loc, message in explain(error, kind.new)]) from None
    if new.size > most:
        raise _invalid([((*where, "size"), f"must be at most {most} (max_upload_bytes), found {new.size}")])
    if "\\u0000" in json.dumps(new.options.model_dump(mode="json")):
        raise _invalid([((*where, "options"), "hold a NUL character")])
    return new  # type: ignore[no-any-return]


def _invalid(errors: Sequence[tuple[Loc, str]]) -> InvalidUploadError:
    detail = "; ".join(f"{'.'.join(map(str, loc)) or 'body'}: {message}" for loc, message in errors[:3])
    return InvalidUploadError(detail, errors=errors)
