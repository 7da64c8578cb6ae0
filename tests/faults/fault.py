"""What a fault is, and the list of all of them."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.faults.scene import Injection, Scene

BOTH = ("deployed", "embedded")
Inject = Callable[[Scene], Injection | None]


@dataclass(frozen=True)
class Fault:
    """A small named thing that goes wrong.

    Args:
        group: `processes`, `moments`, `broker`, `database`, `storage`, or `time and people`.
        forms: of the service in which it can happen.
        inject: lets it happen and heals it; None where there was no occasion within its bound.
    """

    name: str
    group: str
    forms: tuple[str, ...]
    inject: Inject


FAULTS: dict[str, Fault] = {}


def fault(name: str, group: str, forms: tuple[str, ...] = BOTH) -> Callable[[Inject], Inject]:
    """Put a function into the list under a name."""

    def register(inject: Inject) -> Inject:
        add(Fault(name, group, forms, inject))
        return inject

    return register


def add(new: Fault) -> None:
    assert new.name not in FAULTS, new.name
    FAULTS[new.name] = new
