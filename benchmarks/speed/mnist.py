"""W1: the MNIST pair of the README."""

import shutil
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks.speed.arms import TEACHER, Case, Place, Run, given, ours
from benchmarks.speed.limit import calls_alone, limit, teacher_limit
from benchmarks.speed.peers import expert, torchdistill, tutorial
from kdcore import export
from kdcore.data.splits import split_indices
from kdcore.evaluate import accuracy
from kdcore.inputs import Classifier, Normalise
from kdcore.latency import measure_latency
from kdcore.spec import parse_spec

W1: dict[str, Any] = {
    "data": {"type": "mnist", "validation": 5000},
    "teachers": [
        {
            "model": {"type": "mlp", "hidden": [1200, 1200], "dropout": 0.5},
            "train": {"epochs": 2, "batch_size": 32, "optimizer": {"type": "adam", "lr": 1e-4}},
        }
    ],
    "student": {"model": {"type": "mlp", "hidden": [20, 20]}},
    "stages": [
        {
            "epochs": 2,
            "batch_size": 32,
            "optimizer": {"type": "adam", "lr": 1e-4},
            "losses": [
                {"type": "cross_entropy", "weight": 0.3},
                {"type": "kd", "weight": 0.7, "temperature": 7},
            ],
        }
    ],
    "checkpoint": {"every_seconds": 30},
}


def mlp(*widths: int, dropout: float = 0.0) -> nn.Sequential:
    """Linear layers with ReLU between them, as anybody writes it."""
    layers: list[nn.Module] = [nn.Flatten()]
    for inner, outer in pairwise(widths):
        layers += [nn.Linear(inner, outer), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers[:-2])


def w1_teacher() -> nn.Sequential:
    return mlp(784, 1200, 1200, 10, dropout=0.5)


def w1_student() -> nn.Sequential:
    return mlp(784, 20, 20, 10)


def w1_given(place: Place) -> nn.Sequential:
    """The teacher that was trained for all arms; our names, in the same order."""
    teacher = w1_teacher()
    saved = load_file(place.work / TEACHER)
    names = [f"{layer}.{what}" for layer in ("hidden.0", "hidden.1", "head") for what in ("weight", "bias")]
    teacher.load_state_dict(dict(zip(teacher.state_dict(), (saved[name] for name in names), strict=True)))
    return teacher.eval().requires_grad_(False)


def unpacked(place: Place) -> str:
    """Where the four files lie as torchvision wants to find them."""
    from torchvision.datasets.utils import extract_archive

    folder = place.work / "MNIST" / "raw"
    for path in sorted((place.data / "MNIST" / "raw").glob("*ubyte*")):
        if not (folder / path.name.removesuffix(".gz")).exists():
            folder.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".gz":
                extract_archive(str(path), str(folder))
            else:
                shutil.copyfile(path, folder / path.name)
    return str(place.work)


class MNIST:
    """The training samples of W1, as torchvision's data set and as tensors, and the test set."""

    def __init__(self, place: Place) -> None:
        from torchvision import datasets, transforms

        root = unpacked(place)
        config = parse_spec(W1).data
        each = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
        whole = datasets.MNIST(root, train=True, transform=each)
        kept, held = split_indices(config, len(whole))
        self.samples = torch.utils.data.Subset(whole, kept.tolist())
        self.inputs = self.normal(whole.data[kept])
        self.labels = whole.targets[kept]
        test = datasets.MNIST(root, train=False)
        self.held = self.normal(whole.data[held]), whole.targets[held]
        self.test = self.normal(test.data), test.targets

    @staticmethod
    def normal(pixels: Tensor) -> Tensor:
        """(N, H, W) uint8 -> (N, 1, H, W) float32, normalised."""
        return ((pixels.float() / 255 - 0.1307) / 0.3081).unsqueeze(1)


@torch.no_grad()
def tested(model: nn.Module, test: tuple[Tensor, Tensor]) -> float:
    logits = torch.cat([model.eval()(each) for each in test[0].split(256)])
    return accuracy(logits, test[1])


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-4)


W1_DISTIL: dict[str, Any] = {"epochs": 1, "batch_size": 32, "temperature": 7.0, "alpha": 0.7}
W1_PLAIN: dict[str, Any] = {"epochs": 1, "batch_size": 32}


def w1_tutorial(place: Place) -> Run:
    data, teacher, student = MNIST(place), w1_given(place), w1_student()
    began = time.perf_counter()
    tutorial(student, teacher, data.samples, adam(student), **W1_DISTIL)
    return Run(time.perf_counter() - began, len(data.labels), tested(student, data.test))


def w1_expert(place: Place) -> Run:
    data, teacher, student = MNIST(place), w1_given(place), w1_student()
    began = time.perf_counter()
    expert(student, teacher, data.inputs, data.labels, adam(student), **W1_DISTIL)
    return Run(time.perf_counter() - began, len(data.labels), tested(student, data.test))


def w1_torchdistill(place: Place) -> Run:
    data, teacher, student = MNIST(place), w1_given(place), w1_student()
    began = time.perf_counter()
    torchdistill(student, teacher, data.samples, lr=1e-4, **W1_DISTIL)
    return Run(time.perf_counter() - began, len(data.labels), tested(student, data.test))


def w1_teacher_tutorial(place: Place) -> Run:
    data, teacher = MNIST(place), w1_teacher()
    began = time.perf_counter()
    tutorial(teacher, None, data.samples, adam(teacher), **W1_PLAIN)
    return Run(time.perf_counter() - began, len(data.labels), tested(teacher, data.test))


def w1_teacher_expert(place: Place) -> Run:
    data, teacher = MNIST(place), w1_teacher()
    began = time.perf_counter()
    expert(teacher, None, data.inputs, data.labels, adam(teacher), **W1_PLAIN)
    return Run(time.perf_counter() - began, len(data.labels), tested(teacher, data.test))


def w1_job(place: Place, loop: str) -> Run:
    """Teacher, baseline and student, then evaluation and export with the functions that this project uses itself."""
    began = time.perf_counter()
    data, teacher, baseline, student = MNIST(place), w1_teacher(), w1_student(), w1_student()

    def fit(model: nn.Module, by: nn.Module | None, **how: Any) -> None:
        if loop == "tutorial":
            tutorial(model, by, data.samples, adam(model), **how)
        else:
            expert(model, by, data.inputs, data.labels, adam(model), **how)

    fit(teacher, None, **W1_PLAIN | {"epochs": 2})
    fit(baseline, None, **W1_PLAIN | {"epochs": 2})
    fit(student, teacher, **W1_DISTIL | {"epochs": 2})
    for model in (teacher, baseline, student):
        tested(model, data.held)
        tested(model, data.test)
    write(teacher, student)
    return Run(time.perf_counter() - began, 0, tested(student, data.test))


def w1_files(place: Place) -> Run:
    """What the jobs of all sides end with, alone."""
    began = time.perf_counter()
    write(w1_teacher(), w1_student())
    return Run(time.perf_counter() - began, 0)


def write(teacher: nn.Module, student: nn.Module) -> None:
    """Export both, as this project does, and measure their latencies."""
    facts = parse_spec(W1).data.facts()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        for name, model in (("student", student), ("teacher", teacher)):
            whole = Classifier(Normalise(facts), model).eval()  # type: ignore[arg-type]
            program = export.trace(whole, facts)
            export.save_onnx(program, out / f"{name}.onnx")
            if name == "student":
                export.save_program(program, out / f"{name}.pt2")
                export.check(whole, program, out / f"{name}.onnx", facts)
            export.save_weights(out / f"{name}.safetensors", model.state_dict())
            measure_latency(out / f"{name}.onnx", facts)


UNTRACED, COMPILED = {"compile": "never"}, {"compile": "always"}
W1_ONCE = {**W1, "stages": [{**W1["stages"][0], "epochs": 1}]}
JITTER = {**W1, "stages": [{**W1_ONCE["stages"][0], "augment": {"jitter": 2}}]}
ONE_TEACHER = {**W1["teachers"][0], "train": {**W1["teachers"][0]["train"], "epochs": 1}}

MNIST_CASES: dict[str, Case] = {
    "w1-distil": Case(
        "W1: 784-1200-1200-10 → 784-20-20-10, MNIST, batch 32, a step of distillation",
        {
            "tutorial": w1_tutorial,
            "torchdistill": w1_torchdistill,
            "expert": w1_expert,
            "ours": ours(given(W1_ONCE, tuning=UNTRACED), "distill-1"),
            "ours, with the first asking": ours(given(W1_ONCE, tuning=UNTRACED), "distill-1", whole=True),
            # Two epochs, 3,438 steps, which are traced where nothing else is said.
            "ours, traced once": ours(given(W1), "distill-1", last_epoch=True),
            "ours, one graph, once compiled": ours(given(W1, tuning=COMPILED), "distill-1", last_epoch=True),
            "ours, teacher every step": ours(given(W1_ONCE, keep_targets=False), "distill-1"),
            "ours, jittered": ours(given(JITTER), "distill-1"),
            "bare products": limit(W1_ONCE),
            "ours, the step's calls alone": calls_alone(W1_ONCE),
        },
        W1,
        {
            "ours": {"tutorial": 8.0, "torchdistill": 9.0, "expert": 5.0},
            "ours, traced once": {"tutorial": 8.0, "torchdistill": 9.0, "expert": 5.0},
            "ours, one graph, once compiled": {"tutorial": 15.0, "torchdistill": 17.0, "expert": 9.0},
            "ours, teacher every step": {"tutorial": 2.0},
            "ours, jittered": {"tutorial": 2.0},
        },
        [("bare products", "ours, teacher every step"), ("ours, the step's calls alone", "ours")],
    ),
    "w1-teacher": Case(
        "W1: training the teacher 784-1200-1200-10 with dropout, batch 32",
        {
            "tutorial": w1_teacher_tutorial,
            "expert": w1_teacher_expert,
            "ours": ours(
                {**W1, "teachers": [ONE_TEACHER], "stages": [{"epochs": 1, "batch_size": 1024}], "baseline": False},
                "teacher-1",
            ),
            "bare products and updates": teacher_limit({**W1, "teachers": [ONE_TEACHER]}),
        },
        W1,
        {"ours": {"tutorial": 3.0}},
        [("bare products and updates", "ours")],
    ),
    "w1-job": Case(
        "W1: the whole job: teacher, baseline and student, two epochs each, evaluation, export",
        {
            "tutorial": lambda place: w1_job(place, "tutorial"),
            "expert": lambda place: w1_job(place, "expert"),
            "ours": ours(W1),
            "files and latencies alone, the same on every side": w1_files,
        },
        W1,
        {"ours": {"tutorial": 4.0, "expert": 2.5}},
    ),
}
