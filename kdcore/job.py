"""A job that runs: its data on the device, its state, and the networks it is about."""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from kdcore.choices import Choices, device_room, laid_out, steps_of
from kdcore.data import Dataset, Places, Split, StoredRows
from kdcore.evaluate import predict
from kdcore.initial import beginning
from kdcore.inputs import Classifier, Reader, readers, view_shapes
from kdcore.losses import Context, Term
from kdcore.memory import KEPT, Need, give_back
from kdcore.models import Network, Precomputed, mapped
from kdcore.plan import Plan
from kdcore.reporter import Reporter
from kdcore.seeds import again, derive
from kdcore.session import Session
from kdcore.spec import JobSpec
from kdcore.stages import Stage
from kdcore.state import State, Training, Weights, student_name, teacher_name, trained_parameters
from kdcore.targets import Kept, Targets
from kdcore.tasks import TASKS, Task
from kdcore.teacher import freeze
from kdcore.transfer import choose_samples, labelled


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
    plan: Plan
    need: Need
    room: int | None
    """Bytes of the host's memory that there were for this job when it began."""
    places: Places
    student_reader: Reader = field(init=False)
    teacher_readers: list[Reader] = field(init=False)
    answers: dict[int, Mapping[str, Tensor | StoredRows]] = field(default_factory=dict)
    """By its place, what a teacher that was asked over HTTP said of each split: (N, C) on the device."""
    _teachers: dict[int, Network] = field(default_factory=dict)
    _teacher_logits: dict[int, Tensor] = field(default_factory=dict)
    kept: Kept = field(default_factory=Kept)

    def __post_init__(self) -> None:
        facts, spec = self.data.facts, self.spec
        theirs = [(teacher.view, teacher.tokenizer) for teacher in spec.teachers]
        own, others = readers(facts, spec.student.view, theirs)
        self.student_reader, self.teacher_readers = own.to(self.device), [each.to(self.device) for each in others]

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

    def learnt(self) -> Tensor:
        """The places of the training samples that the student learnt on; where it did not learn, of all."""
        return (self.samples(self.stages[-1]) if self.stages else self._everything)[0]

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
            network = config.build(facts.input_shape, len(self.outputs(role, index)), facts.vocabulary)
        if isinstance(network, Precomputed):  # whose answers are cut to the data's classes already
            network.classes, network.said = len(self.data.facts.classes), partial(self._said, index)
        return network

    def _said(self, index: int, split: str) -> Tensor | StoredRows:
        """What a teacher without a network said of a split, which it was asked about or which the data brings."""
        asked = self.answers.get(index)
        brought: Split = getattr(self.data, split)
        return asked[split] if asked is not None else brought.said()

    def outputs(self, role: str, index: int) -> Sequence[str]:
        """The names of a network's outputs."""
        theirs = self.spec.teachers[index].classes if role == "teacher" else None
        return theirs or self.data.facts.classes

    def reader(self, role: str, index: int = 0) -> Reader:
        """What the network of that role does with a sample before its first layer."""
        return self.teacher_readers[index] if role == "teacher" else self.student_reader

    def reader_of(self, name: str) -> Reader:
        """Of a finished network; `name` is a key of `state.models`."""
        _, _, number = name.partition("teacher-")
        return self.reader("teacher", int(number) - 1) if number else self.student_reader

    def finished(self, name: str) -> Network:
        """A finished network with its weights, frozen, on the device, and with the data's classes as its outputs;
        `name` is a key of `state.models`."""
        _, _, number = name.partition("teacher-")
        role, index = ("teacher", int(number) - 1) if number else ("student", 0)
        network = self.loaded(name)
        if not isinstance(network, Precomputed):
            network = mapped(network, self.outputs(role, index), self.data.facts.classes)
        return freeze(network.to(self.device))

    def loaded(self, name: str) -> Network:
        """A finished network with its weights and its own outputs, on the CPU."""
        _, _, number = name.partition("teacher-")
        network = self.network("teacher", int(number) - 1) if number else self.network("student")
        network.load_state_dict(self.state.models[name])
        return network

    def placed(self, network: Network) -> Network:
        """The network on the device, its maps in memory as chosen."""
        return laid_out(network.to(self.device), self.choices)

    def teacher(self, index: int) -> Network:
        """A finished teacher; built once."""
        if index not in self._teachers:
            self._teachers[index] = self.placed(self.finished(teacher_name(index)))
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

    def validation_scores(self, logits: Tensor) -> dict[str, float]:
        """The task's, of the samples whose label is known; none where no label is.

        Args:
            logits: (N, C) of the validation split, on the CPU.
        """
        known = labelled(self.validation_labels)
        if not known.any():
            return {}
        labels = self.validation_labels[known]
        return {name: score(logits[known], labels) for name, score in self.task.scores.items()}

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

    def steps(self, stage: Stage, targets: Targets) -> AbstractContextManager[None]:
        """The threads and products of the stage's steps, by the largest network that they run."""
        trained = self.plan.teachers[stage.index] if stage.role == "teacher" else self.plan.student
        asked = [self.plan.teachers[place] for place in targets.teachers]
        beside = self.plan.stages[self.stages.index(stage)].losses
        largest = max(*(each.flops for each in (trained, *asked)), *(term.flops for term in beside))
        return steps_of(self.choices, largest * stage.train.batch_size)

    def predict(self, network: Network, split: str, reader: Reader) -> Tensor:
        """Logits of the validation or the test split, (N, C) on the CPU; answers requests between batches."""
        samples = self.data.validation if split == "validation" else self.data.test
        if isinstance(network, Precomputed):
            return network.said(split)[:].cpu()
        said = predict(Classifier(reader, network), samples, self.data.scale, self.session.poll, self.choices.at_once)
        if self.plan.memory.evaluation > KEPT:  # steps have other sizes, and what they need comes on top of it
            give_back()
        return said

    def prepare(self, stage: Stage) -> Training:
        """The stage's modules and generators as they begin, or as the checkpoint has them."""
        family = self.family(stage)
        index = stage.index if family == "teacher" else 0
        model = self.network(family, index, stage.repeat)
        begin = self.state.handed
        if begin is None and family == "student":
            begin = beginning(self.spec.student, model, self.state.models, lambda: self.teacher(0))
        if begin is not None:
            model.load_state_dict(begin)
        model = self.placed(model)
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
        counts, seen = self._label_counts(stage)
        context = Context(
            student=view_shapes(model, facts),
            teachers=[view_shapes(teachers[at], readers[at].facts) if at in teachers else {} for at in places],
            input_shape=facts.input_shape,
            vocabulary=facts.vocabulary,
            classes=len(facts.classes),
            task=facts.task,
            partly_labelled=self.spec.data.labelled < 1
            or (stage.role != "teacher" and self.spec.transfer.labelled < 1),
            label_counts=counts,
            labels_seen=seen,
            samples=len(self.data.train),
            epochs=stage.train.epochs,
            teacher_networks=[teachers.get(at, nn.Identity()) for at in places],
        )
        torch.manual_seed(derive(self.spec.seed, "terms", stage.role, stage.index, *again(stage.repeat)))
        return nn.ModuleList(loss.build(context) for loss in stage.losses).to(self.device)

    def _label_counts(self, stage: Stage) -> tuple[Tensor | None, int]:
        """(C,) how often each class is among the labels that the stage sees, on the CPU, and of how many samples."""
        samples, labels = self.samples(stage)
        seen = labels[samples].cpu()
        if seen.is_floating_point():
            return (seen > 0.5).sum(0) if self.task.name == "multi_label" else None, len(seen)
        known = seen[seen >= 0]
        return torch.bincount(known, minlength=len(self.data.facts.classes)), len(known)

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
