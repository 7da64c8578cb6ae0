"""How a classifier of pictures bears what it never saw: noise, common corruptions, and attacks on its own gradient.

Everything happens in [0, 1], before normalisation, on the first samples of the test split, the same for every model.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from torch import Tensor, nn

SAMPLES, SECONDS, BATCH = 1_000, 60.0, 250
NOISES = (0.05, 0.1, 0.2)
EPSILONS = (2 / 255, 8 / 255)
PGD_STEPS = 10
Change = Callable[[Tensor, torch.Generator], Tensor]


def gaussian(sigma: float) -> Change:
    """Independent normal noise of this standard deviation."""
    return lambda pictures, generator: (
        pictures + sigma * torch.randn(pictures.shape, generator=generator, device=pictures.device)
    )


def blur(pictures: Tensor, _: torch.Generator) -> Tensor:
    """The mean of 3x3 pixels."""
    return F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, stride=1)


def pixelate(pictures: Tensor, _: torch.Generator) -> Tensor:
    """Half the resolution, each pixel as a square."""
    height, width = pictures.shape[2:]
    return F.interpolate(F.adaptive_avg_pool2d(pictures, (max(1, height // 2), max(1, width // 2))), (height, width))


def contrast(pictures: Tensor, _: torch.Generator) -> Tensor:
    """Two fifths of the distance from each picture's mean."""
    mean = pictures.mean((1, 2, 3), keepdim=True)
    return mean + 0.4 * (pictures - mean)


def brightness(pictures: Tensor, _: torch.Generator) -> Tensor:
    """A fifth of the range brighter."""
    return pictures + 0.2


def impulse(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """One pixel in twenty is black or white."""
    draw = torch.rand(pictures[:, :1].shape, generator=generator, device=pictures.device)
    return torch.where(draw < 0.025, 0.0, torch.where(draw > 0.975, 1.0, pictures))


CHANGES: Mapping[str, Change] = {
    **{f"gaussian_{sigma:g}": gaussian(sigma) for sigma in NOISES},
    "blur": blur,
    "pixelate": pixelate,
    "contrast": contrast,
    "brightness": brightness,
    "impulse": impulse,
}


def attack(model: nn.Module, pictures: Tensor, labels: Tensor, epsilon: float, steps: int) -> Tensor:
    """Pictures within `epsilon` of the given ones, each pixel, on which the model is as wrong as its gradient finds.

    One step of `epsilon` is the fast gradient sign method (Goodfellow, Shlens, Szegedy, arXiv 1412.6572); several of
    epsilon / 4 from the picture itself, projected back after each, are projected gradient descent (Madry et al.,
    arXiv 1706.06083).

    Args:
        model: (B, C, H, W) in [0, 1] -> (B, classes) logits, frozen.
        labels: (B,) int64.
    """
    found = pictures.clone()
    size = epsilon if steps == 1 else epsilon / 4
    for _ in range(steps):
        found.requires_grad_(True)
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(found), labels), found)
        moved = found.detach() + size * gradient.sign()
        found = pictures + (moved - pictures).clamp(-epsilon, epsilon)
        found = found.clamp(0, 1)
    return found.detach()


def measure_robustness(
    model: nn.Module,
    pictures: Tensor,
    labels: Tensor,
    *,
    poll: Callable[[], None] = lambda: None,
    seconds: float = SECONDS,
) -> dict[str, Any]:
    """Accuracy on the first samples as they are, and under each change and attack.

    Args:
        model: (B, C, H, W) float32 in [0, 1] -> (B, classes) logits, frozen and in eval mode.
        pictures: (N, C, H, W) in [0, 1]; at most 1,000 are used.
        labels: (N,) int64.
        poll: called before each batch.
        seconds: after which no further test is begun; what is missing then is none.
    """
    pictures, labels = pictures[:SAMPLES], labels[:SAMPLES]
    end = time.monotonic() + seconds
    tests: dict[str, Change] = {"clean": lambda x, _: x, **CHANGES}
    found: dict[str, Any] = {"samples": len(pictures)}
    for name, change in tests.items():
        found[name] = _accuracy(model, pictures, labels, _fixed(change), poll) if time.monotonic() < end else None
    for epsilon in EPSILONS:
        for name, steps in (("fgsm", 1), ("pgd", PGD_STEPS)):
            hostile = _hostile(model, epsilon, steps)
            key = f"{name}_{round(epsilon * 255)}/255"
            found[key] = _accuracy(model, pictures, labels, hostile, poll) if time.monotonic() < end else None
    return found


Altered = Callable[[Tensor, Tensor], Tensor]


def _fixed(change: Change) -> Altered:
    """The same chance for every model."""

    def altered(pictures: Tensor, _: Tensor) -> Tensor:
        generator = torch.Generator(pictures.device).manual_seed(0)
        return change(pictures, generator).clamp(0, 1)

    return altered


def _hostile(model: nn.Module, epsilon: float, steps: int) -> Altered:
    return lambda pictures, labels: attack(model, pictures, labels, epsilon, steps)


def _accuracy(model: nn.Module, pictures: Tensor, labels: Tensor, alter: Altered, poll: Callable[[], None]) -> float:
    right = 0
    for start in range(0, len(pictures), BATCH):
        poll()
        batch, truth = pictures[start : start + BATCH], labels[start : start + BATCH]
        changed = alter(batch, truth)
        with torch.no_grad():
            right += int((model(changed).argmax(1) == truth).sum())
    return right / len(pictures)
