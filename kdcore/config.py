"""What every part of a spec is: a small frozen pydantic model that refuses what it does not know."""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

SPEC_VERSION: Literal[2] = 2
"""Of the specs that this version writes; it reads older ones as well (`kdcore.spec`)."""


class Config(BaseModel):
    """Base of every component's configuration.

    Strict, so that YAML and JSON mean the same: a number is never read from a string, nor a
    boolean from a number. Frozen, since a stored spec is immutable. NaN and infinities are refused.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        validate_default=True,
        use_attribute_docstrings=True,
    )


Loc = tuple[str | int, ...]
MAX_ERRORS = 100


class SpecError(ValueError):
    """A spec that cannot be run; each error leads to its field and says how to mend it.

    Attributes:
        errors: pairs of `loc` (the path into the spec) and message, never empty; the first 100 of them.
    """

    def __init__(self, errors: Sequence[tuple[Loc, str]]) -> None:
        self.errors = list(errors)[:MAX_ERRORS]
        super().__init__("; ".join(f"{dotted(loc)}: {message}" for loc, message in self.errors))


def dotted(loc: Loc) -> str:
    """`("stages", 0, "losses", 1, "weight")` as people write it: `stages[0].losses[1].weight`."""
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text or "spec"
