"""What a resume needs: where the job is, what is finished, and the modules of the running stage."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from kdcore.errors import diverged
from kdcore.losses.base import Batch, Rival
from kdcore.models import Network
from kdcore.update import Update

Weights = dict[str, Tensor]
"""A model's state_dict, copied to the CPU."""

FINISHED = {"baseline": "baseline", "distill": "student"}
"""What the stages of a role leave, by its key in `state.models`."""


def student_name(role: str, repeat: int = 0) -> str:
    """Of the baseline or the student of a repeat in `state.models`."""
    return FINISHED[role] + (f"-{repeat + 1}" if repeat else "")


def teacher_name(index: int) -> str:
    """Of the teacher at this place in `teachers`: as a stage, in `state.models` and, with its suffix, as a file."""
    return f"teacher-{index + 1}"


@dataclass
class State:
    """Where the job is; plain values and tensors, saved whole.

    Attributes:
        stage: index of the stage that runs or comes next, in the job's list of stages.
        epoch: epochs of it that are complete, validation included.
        step: its optimizer updates so far; within the epoch, those beyond `epoch` whole ones.
        best: its best epoch so far: `epoch`, `score`, `values` and, where they will be used, `weights`.
        reference, stale: for early stopping, the score to beat and the epochs that did not.
        handed: weights that one stage of the student hands to the next.
        models: the weights of what is finished: `teacher-1` and so on, `baseline`, `student`.
        selected: by stage, the best epoch and its validation values.
        seconds: by stage, the time spent on it over all attempts.
    """

    stage: int = 0
    epoch: int = 0
    step: int = 0
    best: dict[str, Any] | None = None
    reference: float | None = None
    stale: int = 0
    handed: Weights | None = None
    models: dict[str, Weights] = field(default_factory=dict)
    selected: dict[str, dict[str, float]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def next_stage(self) -> None:
        self.stage += 1
        self.epoch = self.step = self.stale = 0
        self.best = self.reference = None


@dataclass
class Training:
    """The modules of the running stage: what is trained, its loss terms, their common optimizer, and the rivals.

    `rivals` are the terms' parts that have an optimizer of their own, by the term's place.
    """

    model: Network
    terms: nn.ModuleList
    optimizer: torch.optim.Optimizer
    device: torch.device
    rivals: Mapping[int, Rival] = field(default_factory=dict)
    graph: Callable[[Batch, Sequence[float], float], list[Tensor] | None] | None = None
    """Makes a step of what was recorded of one, or answers with none; what it leaves in all modules is what the loop's
    steps leave."""
    update: Update = field(init=False)

    def __post_init__(self) -> None:
        self.update = Update(self.optimizer)

    def parameters(self) -> list[nn.Parameter]:
        """What the optimizer updates: the model's parameters and those of its terms that no rival has."""
        return trained_parameters(self.model, self.terms, self.rivals)

    def snapshot(self) -> dict[str, Any]:
        """All of its state, the generators' included; the tensors are the live ones."""
        cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        return {
            "model": dict(self.model.state_dict()),
            "terms": dict(self.terms.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "rivals": {str(place): rival.optimizer.state_dict() for place, rival in self.rivals.items()},
            "generator": torch.get_rng_state(),
            "cuda_generator": cuda,
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        self.model.load_state_dict(saved["model"])
        self.terms.load_state_dict(saved["terms"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.update = Update(self.optimizer)
        for place, rival in self.rivals.items():
            rival.optimizer.load_state_dict(saved["rivals"][str(place)])
        torch.set_rng_state(saved["generator"])
        if saved["cuda_generator"] is not None:
            torch.cuda.set_rng_state(saved["cuda_generator"], self.device)

    def check(self, stage: str, step: int) -> None:
        """Raise `diverged` unless every weight is finite: a bad update shows in the loss only a step later."""
        if not all_finite([*self.model.state_dict().values(), *self.terms.state_dict().values()]):
            raise diverged(stage, step, "a weight", float("nan"))


def trained_parameters(model: nn.Module, terms: nn.ModuleList, rivals: Mapping[int, Rival]) -> list[nn.Parameter]:
    """The parameters of a model and its terms, without those that rivals train."""
    theirs = {id(parameter) for rival in rivals.values() for parameter in rival.module.parameters()}
    both = [*model.parameters(), *terms.parameters()]
    return [parameter for parameter in both if id(parameter) not in theirs]


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no floating-point tensor holds a NaN or an infinity; one read from the device, and no copy."""
    ends = [end for tensor in tensors if tensor.is_floating_point() and tensor.numel() for end in tensor.aminmax()]
    return bool(torch.stack([end.double() for end in ends]).isfinite().all()) if ends else True


def copy_weights(model: nn.Module, into: Weights | None = None) -> Weights:
    """A copy of the model's state on the CPU, however it lies in memory, which later updates leave alone.

    Args:
        into: an earlier copy that nobody needs any more, to be written over: no second one is ever there.
    """
    state = {name: value.detach() for name, value in model.state_dict().items()}
    if into is None:
        plain = torch.contiguous_format
        return {name: value.to("cpu", copy=True, memory_format=plain) for name, value in state.items()}
    for name, value in state.items():
        into[name].copy_(value)
    return into
