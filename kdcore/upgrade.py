"""Specs of older versions, brought to this one's: the one place where what became of a field is written down."""

from collections.abc import Callable, Mapping
from typing import Any

from kdcore.config import SPEC_VERSION, SpecError


def _as_it_is(document: dict[str, Any]) -> dict[str, Any]:
    """Only fields with defaults are new: from 1 to 2 those of losses, teachers, models and data."""
    return document


STEPS: tuple[Callable[[dict[str, Any]], dict[str, Any]], ...] = (_as_it_is,)
"""The first makes a spec of version 1 one of version 2, and so on; each is given a copy that it may change."""


def upgrade(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """A spec of any version up to this one's as one of this version's; without a `spec_version` it is taken for such.

    Raises:
        SpecError: a later version wrote it.
    """
    version = document.get("spec_version", SPEC_VERSION)
    if type(version) is not int or not 1 <= version != SPEC_VERSION:
        return document  # of this version, or nonsense that validation names
    if version > SPEC_VERSION:
        reads = f"this version of Distillery reads specs up to version {SPEC_VERSION}"
        raise SpecError([(("spec_version",), f"is {version}; {reads}: upgrade it, or write the spec for it")])
    changed = dict(document)
    for step in STEPS[version - 1 :]:
        changed = step(changed)
    return changed | {"spec_version": SPEC_VERSION}
