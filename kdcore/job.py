"""A job that runs: its data on the device, its state, and the networks it is about."""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn

from kdcore.bias import best_offset
from kdcore.choices import Choices
from kdcore.data import DataFacts, Dataset
from kdcore.evaluate import predict
from kdcore.inputs import Classifier, Reader, example_inputs
from kdcore.losses import Context, Shapes, Term
from kdcore.memory import Need
from kdcore.models import Network
from kdcore.reporter import Reporter
from kdcore.seeds import again, derive
from kdcore.session import Session
from kdcore.spec import JobSpec
from kdcore.stages import Stage
from kdcore.state import State, Training, Weights, copy_weights, trained_parameters
from kdcore.targets import Kept, Targets, keep, kept_bytes, views_read
from kdcore.tasks import TASKS, Task
from kdcore.teacher import freeze
from kdcore.transfer import choose_samples

FINISHED = {"baseline": "baseline", "distill": "student"}
"""What the stages of a role leave, by its key in `state.models`."""


def student_name(role: str, repeat: int = 0) -> str:
    """Of the baseline or the student of a repeat in `state.models`."""
    return FINISHED[role] + (f"-{repeat + 1}" if repeat else "")


def teacher_name(index: int) -> str:
    """Of the teacher at this place in `teachers`: as a stage, in `state.models` and, with its suffix, as a file."""
    return f"teacher-{index + 1}"


@dataclass
class Job:
    """Everything the loop reads; `state` is what it writes."""

    spec: JobSpec
    spec_digest: str
    """Under which the spec is known, whatever the version that stored it completed it to."""
    stages: list[Stage]
    data: Dataset
    device: torch.device
    choices: Choices
    reporter: Reporter
    session: Session
    state: State
    resumed: Mapping[str, Any] | None
    """The modules' state in the checkpoint this run began with, until it is restored."""
    need: Need
    room: int | None
    """Bytes of the host's memory that there were for this job when it began."""
    student_reader: Reader = field(init=False)
    teacher_readers: list[Reader] = field(init=False)
    _teachers: dict[int, Network] = field(default_factory=dict)
    _teacher_logits: dict[int, Tensor] = field(default_factory=dict)
    _kept: Kept = field(default_factory=Kept)

    def __post_init__(self) -> None:
        facts, spec = self.data.facts, self.spec
        self.student_reader = Reader(facts, spec.student.view).to(self.device)
        self.teacher_readers = [Reader(facts, teacher.view).to(self.device) for teacher in spec.teachers]

    def memory_advice(self, batch_size: int) -> str:
        """What to do about running out of memory with this batch size."""
        return self.need.advise(batch_size, device_room() if self.device.type == "cuda" else self.room)

    def steps_per_epoch(self, stage: Stage) -> int:
        return math.ceil(len(self.samples(stage)[0]) / stage.train.batch_size)

    def samples(self, stage: Stage) -> tuple[Tensor, Tensor]:
        """The places of the training samples that the stage learns on, and every training sample's label as it is
        seen there: teachers see all, the student the transfer set."""
        if stage.role == "teacher" or self.spec.transfer.is_whole:
            return self._everything
        return self._transfer

    @cached_property
    def _everything(self) -> tuple[Tensor, Tensor]:
        labels = self.data.train.labels
        return torch.arange(len(labels), device=labels.device), labels

    @cached_property
    def _transfer(self) -> tuple[Tensor, Tensor]:
        return choose_samples(self.spec.transfer, self.data.train.labels, self.data.facts.classes)

    def family(self, stage: Stage) -> str:
        """What shares its chance: the baseline has the initial weights, order and dropout of the student."""
        return "teacher" if stage.role == "teacher" else "student"

    def is_last(self, stage: Stage) -> bool:
        """Whether no later stage trains the same network; every teacher is a network of its own."""
        alike = (other for other in self.stages if (other.role, other.repeat) == (stage.role, stage.repeat))
        later = (other for other in alike if other.index > stage.index)
        return stage.role == "teacher" or next(later, None) is None

    def network(self, role: str, index: int = 0, repeat: int = 0) -> Network:
        """A teacher or a student as it is initialised: on the CPU, so that every device begins alike.

        The global generators are left as they were: a network may be built while another trains.
        """
        config = self.spec.teachers[index].model if role == "teacher" else self.spec.student.model
        facts = self.reader(role, index).facts
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(derive(self.spec.seed, "weights", role, index, *again(repeat)))
            return config.build(facts.input_shape, len(facts.classes), facts.vocabulary)

    def reader(self, role: str, index: int = 0) -> Reader:
        """What the network of that role does with a sample before its first layer."""
        return self.teacher_readers[index] if role == "teacher" else self.student_reader

    def reader_of(self, name: str) -> Reader:
        """Of a finished network; `name` is a key of `state.models`."""
        _, _, number = name.partition("teacher-")
        return self.reader("teacher", int(number) - 1) if number else self.student_reader

    def finished(self, name: str) -> Network:
        """A finished network with its weights, frozen, on the device; `name` is a key of `state.models`."""
        _, _, number = name.partition("teacher-")
        network = self.network("teacher", int(number) - 1) if number else self.network("student")
        network.load_state_dict(self.state.models[name])
        return freeze(network.to(self.device))

    def teacher(self, index: int) -> Network:
        """A finished teacher; built once."""
        if index not in self._teachers:
            self._teachers[index] = self.finished(teacher_name(index))
        return self._teachers[index]

    def teachers_of(self, stage: Stage) -> dict[int, Network]:
        """The teachers that the stage's losses look at, by their place in `teachers`."""
        return {index: self.teacher(index) for index in stage.teachers(len(self.spec.teachers))}

    @property
    def task(self) -> Task:
        return TASKS[self.data.facts.task]

    @cached_property
    def validation_labels(self) -> Tensor:
        return self.data.validation.labels.cpu()

    def teacher_validation_logits(self, index: int) -> Tensor:
        """(N, C) on the CPU; computed once."""
        if index not in self._teacher_logits:
            self._teacher_logits[index] = self.predict(self.teacher(index), "validation", self.teacher_readers[index])
        return self._teacher_logits[index]

    def autocast(self) -> AbstractContextManager[object]:
        """The precision of forward passes."""
        if self.choices.precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def targets(self, stage: Stage, terms: nn.ModuleList) -> Targets:
        """What the teachers say of the stage's samples; kept where these are the same in every epoch, and it fits."""
        count = stage.index if stage.role == "teacher" else len(self.spec.teachers)
        read = views_read(stage.losses, cast(Sequence[Term], list(terms)), count)
        shapes = [
            view_shapes(self.teacher(at), self.teacher_readers[at].facts) if at in read else {} for at in range(count)
        ]
        size = kept_bytes(read, shapes, len(self.data.train))
        if stage.train.augment.is_on or size > self.choices.keep_bytes:
            return Targets(read, {place: self.teacher(place) for place in read}, self.teacher_readers, {})
        self._kept.make_room(read, size, self.choices.keep_bytes)
        for place, names in read.items():
            if missing := self._kept.missing(place, names):
                reader, poll = self.teacher_readers[place], self.session.poll
                keep(self._kept, place, missing, self.teacher(place), reader, self.data, self.autocast, poll)
        return Targets(read, {}, self.teacher_readers, self._kept.views)

    def predict(self, network: Network, split: str, reader: Reader) -> Tensor:
        """Logits of the validation or the test split, (N, C) on the CPU; answers requests between batches."""
        samples = self.data.validation if split == "validation" else self.data.test
        return predict(Classifier(reader, network), samples, self.data.scale, self.session.poll)

    def prepare(self, stage: Stage) -> Training:
        """The stage's modules and generators as they begin, or as the checkpoint has them."""
        family = self.family(stage)
        index = stage.index if family == "teacher" else 0
        model = self.network(family, index, stage.repeat)
        if self.state.handed is not None:
            model.load_state_dict(self.state.handed)
        model.to(self.device)
        terms = self._terms(stage, model)
        rivals = {place: rival for place, term in enumerate(terms) if (rival := cast(Term, term).rival()) is not None}
        optimizer = stage.train.optimizer.build(trained_parameters(model, terms, rivals))
        training = Training(model, terms, optimizer, self.device, rivals)
        torch.manual_seed(derive(self.spec.seed, family, stage.index, "dropout", *again(stage.repeat)))
        if self.resumed is not None:
            training.restore(self.resumed)
            self.resumed = None
        return training

    def _terms(self, stage: Stage, model: Network) -> nn.ModuleList:
        teachers = self.teachers_of(stage)
        places = range(max(teachers, default=-1) + 1)
        facts, readers = self.reader(stage.role, stage.index).facts, self.teacher_readers
        context = Context(
            student=view_shapes(model, facts),
            teachers=[view_shapes(teachers[at], readers[at].facts) if at in teachers else {} for at in places],
            input_shape=facts.input_shape,
            vocabulary=facts.vocabulary,
            classes=len(facts.classes),
            task=facts.task,
            partly_labelled=stage.role != "teacher" and self.spec.transfer.labelled < 1,
            label_counts=self._label_counts(stage),
            samples=len(self.data.train),
            epochs=stage.train.epochs,
            teacher_networks=[teachers.get(at, nn.Identity()) for at in places],
        )
        torch.manual_seed(derive(self.spec.seed, "terms", stage.role, stage.index, *again(stage.repeat)))
        return nn.ModuleList(loss.build(context) for loss in stage.losses).to(self.device)

    def _label_counts(self, stage: Stage) -> Tensor | None:
        """(C,) how often each class is among the labels that the stage sees, on the CPU."""
        samples, labels = self.samples(stage)
        if labels.is_floating_point():
            return None
        seen = labels[samples].cpu()
        return torch.bincount(seen[seen >= 0], minlength=len(self.data.facts.classes))

    def offset(self, stage: Stage, best: dict[str, Any]) -> Weights:
        """The best epoch's weights; of a student whose spec asks for it, with the offset that validates best."""
        weights: Weights = best["weights"]
        named = self.spec.student.offset_classes
        if stage.role == "teacher" or not named:
            return weights
        student = self.network("student")
        student.load_state_dict(weights)
        chosen = torch.tensor([name in named for name in self.data.facts.classes])
        logits = self.predict(student.to(self.device), "validation", self.student_reader)
        best["values"]["offset"] = best_offset(logits, self.validation_labels, chosen)
        bias = student.output_bias()
        assert bias is not None, "the plan has seen that there is one"
        with torch.no_grad():
            bias[chosen.to(self.device)] += best["values"]["offset"]
        return copy_weights(student)

    def conclude(self, stage: Stage, weights: Weights) -> None:
        """Note what a stage leaves, and go on to the next."""
        state = self.state
        assert state.best is not None
        state.selected[stage.name] = {"epoch": state.best["epoch"], "epochs": state.epoch, **state.best["values"]}
        if self.is_last(stage):
            name = teacher_name(stage.index) if stage.role == "teacher" else student_name(stage.role, stage.repeat)
            state.models[name] = weights
            state.handed = None
        else:
            state.handed = weights
        state.next_stage()


@torch.no_grad()
def view_shapes(model: Network, facts: DataFacts) -> Shapes:
    """The shapes of a model's views, without the batch; `facts` are of what it reads."""
    device = next(model.parameters()).device
    modes = [(module, module.training) for module in model.modules()]
    views = model.eval().views(example_inputs(facts, 1).to(device))
    for module, training in modes:
        module.training = training
    return {name: tuple(view.shape[1:]) for name, view in views.items()}


def device_room() -> int:
    """What this process could have of the GPU's memory, what it holds of it included."""
    free, _ = torch.cuda.mem_get_info()
    return free + torch.cuda.memory_reserved()
