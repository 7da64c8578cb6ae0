"""Following pydantic's error locations through the models, to tell fields from union tags."""

import types
from dataclasses import dataclass
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from kdcore.config import Loc


@dataclass(frozen=True)
class Place:
    """Where an error is.

    Attributes:
        loc: the path in the document, without tags.
        types: what may stand there.
        parents: what may stand one step above.
        branch: the place and the name of the last union member, without a `type`, that the path goes through.
    """

    loc: Loc
    types: list[Any]
    parents: list[Any]
    branch: tuple[Loc, str] | None


def walk(model: type[BaseModel], raw: Loc) -> Place:
    """Follow a pydantic location through `model`."""
    here: list[Any] = [model]
    parents: list[Any] = [model]
    loc: list[str | int] = []
    branch: tuple[Loc, str] | None = None
    in_union = False
    for index, part in enumerate(raw):
        if in_union and isinstance(part, str):
            in_union = False
            tagged = [member for member in here if part == _tag(member)]
            if tagged:
                here = tagged
                continue
            # A union member without a `type` is called by its class, perhaps wrapped: function-after[f(), Name].
            named = [member for member in here if part.rstrip("]").split(" ")[-1] == getattr(member, "__name__", None)]
            if named or not any(_is_model(member) for member in here):
                here = named or here
                branch = (tuple(loc), part)
                continue
        below = [annotation for member in here for annotation in _below(member, part)]
        if not below and index == len(raw) - 1 and part == "[key]":
            continue
        here, parents = [member for annotation in below for member in members(annotation)], here
        in_union = len([member for member in here if member is not type(None)]) > 1
        loc.append(part)
    return Place(tuple(loc), here, parents, branch)


def members(annotation: Any) -> list[Any]:
    """The plain types that an annotation allows."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return members(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [member for argument in get_args(annotation) for member in members(argument)]
    return [annotation]


def tags(candidates: list[Any]) -> list[str]:
    """The values of `type` among `candidates`."""
    return [tag for tag in map(_tag, candidates) if tag is not None]


def field_names(candidates: list[Any]) -> list[str]:
    """The names of the fields of the models among `candidates`."""
    return [name for member in candidates if _is_model(member) for name in member.model_fields]


def _below(member: Any, part: str | int) -> list[Any]:
    if _is_model(member):
        return [member.model_fields[part].annotation] if part in member.model_fields else []
    arguments = get_args(member)
    if get_origin(member) in (list, tuple) and isinstance(part, int):
        return [arguments[0]]
    if get_origin(member) is dict and isinstance(part, str):
        return [arguments[1]]
    return []


def _is_model(member: Any) -> bool:
    return isinstance(member, type) and issubclass(member, BaseModel)


def _tag(member: Any) -> str | None:
    if not _is_model(member) or "type" not in member.model_fields:
        return None
    default = member.model_fields["type"].default
    return default if isinstance(default, str) else None
