"""Made-up samples whose labels a fixed random network gives: for every task, with nothing to download."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from kdcore.data.base import BaseDataConfig, DataError, DataFacts, Dataset, Places, Split, TaskName
from kdcore.data.splits import assemble, split_facts

HIDDEN = 32


class SyntheticConfig(BaseDataConfig):
    """Normal vectors, labelled by a random network of one hidden layer: what a student could learn exactly.

    The same options give the same samples, whatever the job's seed. Regression: its outputs, scaled to a spread of 1,
    and noise. Several labels: the outputs above 0. Classification and embedding: the largest output.
    """

    title: ClassVar[str] = "Synthetic samples"
    source: ClassVar[str] = "the teacher-student setting of Saad, Solla: On-line learning in soft committee machines"

    type: Literal["synthetic"] = "synthetic"
    task: TaskName = "classification"
    """What is to be learned."""
    features: int = Field(default=16, ge=1, le=10_000)
    """Numbers of a sample."""
    outputs: int = Field(default=4, ge=1, le=1_000)
    """Classes, or targets of a regression; at least 2 where they are classes."""
    samples: int = Field(default=2_000, ge=10, le=10_000_000)
    """To train on, those held out included; half as many are tested with."""
    noise: float = Field(default=0.1, ge=0, le=100)
    """Standard deviation of what is added to the network's outputs, whose own is 1, before they become labels."""

    @property
    def task_name(self) -> TaskName:
        return self.task

    def facts(self) -> DataFacts:
        if self.outputs < 2 and self.task != "regression":
            raise DataError(f"outputs {self.outputs}: there are at least 2 classes", "outputs")
        known = DataFacts(
            input_shape=(self.features,),
            classes=tuple(f"{'target' if self.task == 'regression' else 'class'}-{n + 1}" for n in range(self.outputs)),
            train=self.samples,
            validation=0,
            test=max(1, self.samples // 2),
            mean=(0.0,),
            std=(1.0,),
            task=self.task,
            bytes_each=4,
        )
        return split_facts(self, known, self.samples)

    def load(self, places: Places) -> Dataset:
        facts = self.facts()
        generator = torch.Generator().manual_seed(0)
        count = len(facts.classes)
        first = torch.randn(self.features, HIDDEN, generator=generator) / self.features**0.5
        second = torch.randn(HIDDEN, count, generator=generator) / HIDDEN**0.5
        inputs = torch.randn(self.samples + facts.test, self.features, generator=generator)
        outputs = (inputs @ first * 2).tanh() @ second
        outputs = (outputs - outputs.mean(0)) / outputs.std(0).clamp(min=1e-6)
        outputs = outputs + self.noise * torch.randn(outputs.shape, generator=generator)
        labels = self._labels(outputs)
        training = Split(inputs[: self.samples], labels[: self.samples])
        return assemble(self, facts, training, Split(inputs[self.samples :], labels[self.samples :]), scale=1.0)

    def _labels(self, outputs: Tensor) -> Tensor:
        if self.task == "regression":
            return outputs
        return (outputs > 0).float() if self.task == "multi_label" else outputs.argmax(1)
