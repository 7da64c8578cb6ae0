"""Models, losses and data sources of other installed packages: one entry-point group, read where the lists are made.

An operator who installs a package trusts it: its code runs in the API and in the workers, which both need it. Nothing
that a user uploads ever gets here. An entry point's name is its kind, a dot and the type that a spec writes, as in
`model.tiny`; what it names is the Config class of that type.
"""

import re
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any, Literal, TypeVar, Union

from pydantic import Field

from kdcore.config import Config

GROUP = "distillery.plugins"
Kind = Literal["model", "loss", "data"]
KINDS = ("model", "loss", "data")
NAME = re.compile(r"(model|loss|data)\.([a-z][a-z0-9_]{0,59})")
C = TypeVar("C", bound=Config)


class PluginError(ImportError):
    """An installed package that adds something it may not; the message names the package."""


def with_plugins(kind: Kind, base: type[C], listed: tuple[type[C], ...]) -> tuple[type[C], ...]:
    """The list with what installed packages add to it, in the order of their names.

    Raises:
        PluginError: a type that is there already, a class of another base, or a package that cannot be imported.
    """
    known = {each.model_fields["type"].default: f"kdcore's {each.__name__}" for each in listed}
    added: list[type[C]] = []
    for entry in sorted(entry_points(group=GROUP), key=lambda each: (each.name, each.value)):
        named = NAME.fullmatch(entry.name)
        if named is None:
            raise _wrong(entry, f"its name must be {', '.join(KINDS[:2])} or data, a dot and a type, as in model.tiny")
        if named[1] != kind:
            continue
        if named[2] in known:
            raise _wrong(entry, f"there is a {kind} of the type {named[2]} already: {known[named[2]]}")
        added.append(_load(entry, named[2], base))
        known[named[2]] = f"that of the package {_package(entry)}"
    return (*listed, *added)


def union(listed: tuple[type[Config], ...]) -> Any:
    """What a field of a spec is annotated with, so that its `type` picks a class of the list."""
    return Annotated[Union[listed], Field(discriminator="type")]  # noqa: UP007 - the list is known only now


def _load(entry: EntryPoint, name: str, base: type[C]) -> type[C]:
    try:
        found = entry.load()
    except Exception as error:
        raise _wrong(entry, f"it cannot be imported: {type(error).__name__}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise _wrong(entry, f"it must be a subclass of {base.__module__}.{base.__name__}")
    if "type" not in found.model_fields or found.model_fields["type"].default != name:
        raise _wrong(entry, f'its `type` must be `Literal["{name}"] = "{name}"`, as the entry point is called')
    missing = [each for each in ("title", "source", "__doc__") if not getattr(found, each, None)]
    if missing:
        raise _wrong(entry, f"it lacks {', '.join(missing)}, which the catalogue shows")
    return found


def _wrong(entry: EntryPoint, why: str) -> PluginError:
    return PluginError(f"the package {_package(entry)} has the entry point {entry.name} = {entry.value}: {why}")


def _package(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else "(unknown)"
