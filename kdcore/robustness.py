"""How a classifier of pictures bears what it never saw: noise, common corruptions, and attacks on its own gradient.

Everything happens in [0, 1], before normalisation, on the first samples of the test split, the same for every model.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from torch import Tensor, nn

SAMPLES, SECONDS, BATCH = 1_000, 60.0, 250
NOISES = (0.05, 0.1, 0.2)
EPSILONS = (2 / 255, 8 / 255)
PGD_STEPS = 10
Change = Callable[[Tensor, torch.Generator], Tensor]
Hits = Mapping[str, Tensor | None]
"""On which pictures a model is right, (N,) bool, by test; none of a test that was not made to its end."""


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


class _TimeError(Exception):
    """What is left of a test is not made."""


def attack(
    model: nn.Module,
    pictures: Tensor,
    labels: Tensor,
    epsilon: float,
    steps: int,
    poll: Callable[[], None] = lambda: None,
) -> Tensor:
    """Pictures within `epsilon` of the given ones, each pixel, on which the model is as wrong as its gradient finds.

    One step of `epsilon` is the fast gradient sign method (Goodfellow, Shlens, Szegedy, arXiv 1412.6572); several of
    epsilon / 4 from the picture itself, projected back after each, are projected gradient descent (Madry et al.,
    arXiv 1706.06083).

    Args:
        model: (B, C, H, W) in [0, 1] -> (B, classes) logits, frozen.
        labels: (B,) int64.
        poll: called before each step.
    """
    found = pictures.clone()
    size = epsilon if steps == 1 else epsilon / 4
    for _ in range(steps):
        poll()
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
    attacks: bool = True,
) -> Hits:
    """On which of the first samples the model is right, as they are and under each change and attack.

    Args:
        model: (B, C, H, W) float32 in [0, 1] -> (B, classes) logits, frozen and in eval mode.
        pictures: (N, C, H, W) in [0, 1]; at most 1,000 are used.
        labels: (N,) int64.
        poll: called before each batch, and before each step of an attack.
        seconds: after which nothing further is begun, be it in the midst of a test.
        attacks: whether it has a gradient that can be followed.

    Returns:
        (N,) bool by test, `clean` first; none of a test that there was no time for.
    """
    pictures, labels = pictures[:SAMPLES], labels[:SAMPLES]
    end = time.monotonic() + seconds

    def in_time() -> None:
        poll()
        if time.monotonic() >= end:
            raise _TimeError

    changes: dict[str, Change] = {"clean": lambda x, _: x, **CHANGES}
    tests = {name: _fixed(change) for name, change in changes.items()}
    hostile = {
        f"{name}_{round(epsilon * 255)}/255": _hostile(model, epsilon, steps, in_time)
        for epsilon in EPSILONS
        for name, steps in (("fgsm", 1), ("pgd", PGD_STEPS))
    }
    found: dict[str, Tensor | None] = {}
    for name, alter in (tests | (hostile if attacks else {})).items():
        try:
            found[name] = _right(model, pictures, labels, alter, in_time)
        except _TimeError:
            found[name] = None
    return found


def accuracies(hits: Hits) -> dict[str, Any]:
    """What the result says of a model: its accuracy in every test, none where it was not made to its end; of how many
    `samples`; and `left_out`, the tests that there was no time for."""
    hostile = [f"{name}_{round(epsilon * 255)}/255" for epsilon in EPSILONS for name in ("fgsm", "pgd")]
    found = {name: hits.get(name) for name in ("clean", *CHANGES, *hostile)}
    return {
        "samples": max((len(right) for right in hits.values() if right is not None), default=0),
        **{name: float(right.double().mean()) if right is not None else None for name, right in found.items()},
        "left_out": [name for name, right in hits.items() if right is None],
    }


def compare_robustness(student: Hits, baseline: Hits) -> dict[str, float] | None:
    """Whether the distilled student loses less under changes and attacks than the one that learnt labels alone.

    Args:
        student, baseline: of `measure_robustness`, on the same pictures.

    Returns:
        `student` and `baseline`: the mean accuracy lost, from that on clean pictures, over all tests that both had
        time for; `gain`: how much less the student loses; `low` and `high`: its 95% interval, by the standard error of
        the pictures' differences. None where no test was made.
    """
    both = [name for name in student if student[name] is not None and baseline.get(name) is not None]
    if "clean" not in both or len(both) < 2:
        return None
    ours, theirs = (_lost(hits, both) for hits in (student, baseline))
    less = theirs - ours
    wide = 1.96 * float(less.std()) / math.sqrt(len(less)) if len(less) > 1 else math.inf
    gain = float(less.mean())
    found = {"student": float(ours.mean()), "baseline": float(theirs.mean()), "gain": gain}
    return found | {"low": max(-2.0, gain - wide), "high": min(2.0, gain + wide)}


def _lost(hits: Hits, tests: Sequence[str]) -> Tensor:
    """(N,) what each picture adds to the mean accuracy that these tests take, `clean` not being one."""
    right = {name: cast(Tensor, hits[name]).double() for name in tests}
    return right.pop("clean") - torch.stack(list(right.values())).mean(0)


Altered = Callable[[Tensor, Tensor], Tensor]


def _fixed(change: Change) -> Altered:
    """The same chance for every model."""

    def altered(pictures: Tensor, _: Tensor) -> Tensor:
        generator = torch.Generator(pictures.device).manual_seed(0)
        return change(pictures, generator).clamp(0, 1)

    return altered


def _hostile(model: nn.Module, epsilon: float, steps: int, poll: Callable[[], None]) -> Altered:
    return lambda pictures, labels: attack(model, pictures, labels, epsilon, steps, poll)


def _right(model: nn.Module, pictures: Tensor, labels: Tensor, alter: Altered, poll: Callable[[], None]) -> Tensor:
    right = []
    for start in range(0, len(pictures), BATCH):
        poll()
        batch, truth = pictures[start : start + BATCH], labels[start : start + BATCH]
        changed = alter(batch, truth)
        with torch.no_grad():
            right.append((model(changed).argmax(1) == truth).cpu())
    return torch.cat(right)
