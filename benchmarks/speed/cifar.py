"""W2: the CIFAR pairs."""

import time
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.speed.arms import TEACHER, Arm, Case, Place, Run, given, ours
from benchmarks.speed.limit import calls_alone, limit
from benchmarks.speed.peers import expert, tutorial
from kdcore.data import Dataset, Places
from kdcore.evaluate import accuracy, predict
from kdcore.inputs import Classifier, Normalise, unit
from kdcore.models import Network
from kdcore.spec import JobSpec, parse_spec

W2_SAMPLES = 1920
W2_TEACHER = {"type": "wide_resnet", "depth": 40, "width": 2}
W2_STUDENTS: dict[str, dict[str, Any]] = {
    "resnet8x4": {"type": "resnet", "depth": 8, "width": 4},
    "wrn_16_1": {"type": "wide_resnet", "depth": 16, "width": 1},
}
SGD: dict[str, Any] = {"type": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}


def w2(student: str, samples: int = W2_SAMPLES, **stage: Any) -> dict[str, Any]:
    return {
        "data": {"type": "cifar10", "validation": 500, "train_samples": samples},
        "teachers": [{"model": W2_TEACHER, "train": {"epochs": 1, "optimizer": SGD, "batch_size": 64}}],
        "student": {"model": W2_STUDENTS[student]},
        "stages": [{"epochs": 1, "batch_size": 64, "optimizer": SGD, **stage}],
    }


CROP: dict[str, Any] = {"augment": {"crop": 4, "flip": True}}
VIEWS: dict[str, Any] = {"augment": {**CROP["augment"], "views": 4}}


class Pictures(torch.utils.data.Dataset[Any]):
    """A tutorial's data set: each picture from PIL through crop, flip, ToTensor and Normalize."""

    def __init__(self, pixels: Tensor, labels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        from torchvision import transforms

        self.pixels, self.labels = pixels.permute(0, 2, 3, 1).numpy(), labels
        self.each = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(mean, std),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, place: int) -> Any:
        from PIL import Image

        return self.each(Image.fromarray(self.pixels[place])), self.labels[place]


def w2_tutorial(student: str, samples: int = W2_SAMPLES, epochs: int = 1) -> Arm:
    def arm(place: Place) -> Run:
        spec = parse_spec(w2(student, samples))
        data = spec.data.load(Places(place.data))
        model, teacher = networks(spec, data, place)
        pictures = Pictures(data.train.inputs, data.train.labels, data.facts.mean, data.facts.std)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
        began = time.perf_counter()
        tutorial(model, teacher, pictures, optimizer, epochs=epochs, batch_size=64, temperature=4.0, alpha=0.9)
        seconds = time.perf_counter() - began
        normalised = Classifier(Normalise(data.facts), model)
        return Run(
            seconds, epochs * len(data.train), accuracy(predict(normalised, data.test, data.scale), data.test.labels)
        )

    return arm


def w2_expert(student: str) -> Arm:
    """Tensors in memory and no augmentation at all, which is faster than any."""

    def arm(place: Place) -> Run:
        spec = parse_spec(w2(student))
        data = spec.data.load(Places(place.data))
        model, teacher = networks(spec, data, place)
        inputs = Normalise(data.facts)(unit(data.train.inputs, data.scale))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
        began = time.perf_counter()
        expert(
            model, teacher, inputs, data.train.labels, optimizer, epochs=1, batch_size=64, temperature=4.0, alpha=0.9
        )
        return Run(time.perf_counter() - began, len(data.train))

    return arm


def networks(spec: JobSpec, data: Dataset, place: Place) -> tuple[Network, Network]:
    """Student and teacher, the latter with the weights that all arms share."""
    shape, classes = data.facts.input_shape, len(data.facts.classes)
    teacher = spec.teachers[0].model.build(shape, classes)
    teacher.load_state_dict(load_file(place.work / TEACHER))
    return spec.student.model.build(shape, classes), teacher.eval().requires_grad_(False)


def w2_case(student: str, target: float, kept: float) -> Case:
    cropped = w2(student, **CROP)
    return Case(
        f"W2: WRN-40-2 → {student}, CIFAR-10, batch 64, a step of distillation",
        {
            "tutorial": w2_tutorial(student),
            "expert, no augmentation": w2_expert(student),
            "ours, float32": ours(given(cropped), "distill-1"),
            "ours, bf16": ours(given(cropped, precision="bf16"), "distill-1"),
            "ours, bf16, four views kept": ours(given(w2(student, **VIEWS), precision="bf16"), "distill-1"),
            "bare convolutions": limit(w2(student)),
            "bare convolutions of the student": limit(w2(student), teacher=False),
            "ours, the step's calls alone": calls_alone({**w2(student), "precision": "bf16"}),
        },
        w2(student),
        {"ours, bf16": {"tutorial": target}, "ours, bf16, four views kept": {"tutorial": kept}},
        [
            ("bare convolutions", "ours, bf16"),
            ("bare convolutions of the student", "ours, bf16, four views kept"),
            ("ours, the step's calls alone", "ours, bf16, four views kept"),
        ],
    )


def w2_quality() -> Case:
    """The quicker pair for so long that its students have learnt something; 30 steps cannot show that. The teacher is
    trained longer, too. Each side's last weights count."""
    student, samples, epochs = "wrn_16_1", 12_800, 3
    document = {**w2(student, samples, epochs=epochs), "precision": "bf16", "select_by": "last"}
    document["teachers"] = [{**document["teachers"][0], "train": {**document["teachers"][0]["train"], "epochs": 2}}]

    def long(**stage: Any) -> dict[str, Any]:
        return given({**document, "stages": [{**document["stages"][0], **stage}]})

    return Case(
        f"W2: WRN-40-2 → {student}, {epochs} epochs of {samples:,} samples: what each student has learnt",
        {
            "tutorial": w2_tutorial(student, samples, epochs),
            "ours, float32": ours({**long(**CROP), "precision": "float32"}, "distill-1"),
            "ours, bf16": ours(long(**CROP), "distill-1"),
            "ours, bf16, four views kept": ours(long(**VIEWS), "distill-1"),
        },
        document,
    )


CIFAR_CASES: dict[str, Case] = {
    "w2-resnet8x4": w2_case("resnet8x4", 2.3, 3.4),
    "w2-wrn-16-1": w2_case("wrn_16_1", 2.9, 7.0),
    "w2quality-wrn-16-1": w2_quality(),
}
