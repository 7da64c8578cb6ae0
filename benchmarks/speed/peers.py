"""The loops that others write, for `python -m benchmarks.speed`: a tutorial's, an expert's, and torchdistill's.

Each trains `student` in place for so many epochs and does nothing else but what its author would: no checkpoints, no
metrics, the test set looked at once in the end by the caller.
"""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

Optimizer = torch.optim.Optimizer


def distillation_loss(
    student: Tensor, teacher: Tensor | None, labels: Tensor, temperature: float, alpha: float
) -> Tensor:
    """`alpha` of Hinton's loss and the rest of cross-entropy; without a teacher, cross-entropy. (B, C) twice, (B,)."""
    hard = F.cross_entropy(student, labels)
    if teacher is None:
        return hard
    soft = F.kl_div(
        F.log_softmax(student / temperature, dim=1), F.softmax(teacher / temperature, dim=1), reduction="batchmean"
    )
    return alpha * soft * temperature**2 + (1 - alpha) * hard


def tutorial(
    student: nn.Module,
    teacher: nn.Module | None,
    dataset: "Dataset[Any]",
    optimizer: Optimizer,
    *,
    epochs: int,
    batch_size: int,
    temperature: float = 1.0,
    alpha: float = 0.0,
) -> None:
    """As a thousand articles have it: a DataLoader over a data set that transforms sample by sample."""
    loader = DataLoader(dataset, batch_size=batch_size, shuffle=True)
    if teacher is not None:
        teacher.eval()
    student.train()
    for _ in range(epochs):
        running = 0.0
        for inputs, labels in loader:
            optimizer.zero_grad()
            logits = None
            if teacher is not None:
                with torch.no_grad():
                    logits = teacher(inputs)
            loss = distillation_loss(student(inputs), logits, labels, temperature, alpha)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            running += loss.item()


def expert(
    student: nn.Module,
    teacher: nn.Module | None,
    inputs: Tensor,
    labels: Tensor,
    optimizer: Optimizer,
    *,
    epochs: int,
    batch_size: int,
    temperature: float = 1.0,
    alpha: float = 0.0,
) -> None:
    """As someone writes it who knows that a DataLoader costs more than a small net: normalised tensors, `randperm`."""
    if teacher is not None:
        teacher.eval()
    student.train()
    for _ in range(epochs):
        order = torch.randperm(len(inputs))
        for batch in order.split(batch_size):
            chosen = inputs[batch]
            logits = None
            if teacher is not None:
                with torch.no_grad():
                    logits = teacher(chosen)
            loss = distillation_loss(student(chosen), logits, labels[batch], temperature, alpha)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()


def torchdistill(
    student: nn.Module,
    teacher: nn.Module,
    dataset: "Dataset[Any]",
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    temperature: float,
    alpha: float,
) -> None:
    """torchdistill 1.1's box, set up as its documentation's examples are; it is no dependency of this project."""
    from torch.utils.data import RandomSampler
    from torchdistill.core.distillation import get_distillation_box  # type: ignore[import-not-found, unused-ignore]

    io = {f"{who}_module_{what}": value for who in ("student", "teacher") for what, value in LOGITS.items()}
    loader = {"dataset_id": "train", "kwargs": {"batch_size": batch_size, "num_workers": 0}}
    train = {
        "num_epochs": epochs,
        "train_data_loader": {**loader, "sampler": {"class_or_func": RandomSampler}},
        "val_data_loader": {},
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only", "requires_grad": True},
        "optimizer": {"key": "Adam", "kwargs": {"lr": lr}},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": {"kd": {"criterion": kd_criterion(io, temperature, alpha), "weight": 1.0}}},
        },
    }
    box = get_distillation_box(
        teacher, student, {"train": dataset}, train, torch.device("cpu"), None, distributed=False, lr_factor=1
    )
    for epoch in range(epochs):
        box.pre_epoch_process(epoch=epoch)
        for inputs, labels, supplement in box.train_data_loader:
            box.pre_forward_process()
            box.post_forward_process(box.forward_process(inputs, labels, supplement))
        box.post_epoch_process()


LOGITS = {"path": ".", "io": "output"}


def kd_criterion(io: dict[str, str], temperature: float, alpha: float) -> dict[str, Any]:
    """torchdistill's `alpha` is the weight of cross-entropy."""
    return {"key": "KDLoss", "kwargs": {**io, "temperature": temperature, "alpha": 1 - alpha}}
