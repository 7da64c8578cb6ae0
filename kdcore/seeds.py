"""Seeds derived from the job's one seed, so that no order or generator state has to be kept."""

import hashlib

import torch
from torch import Tensor


def derive(*parts: str | int) -> int:
    """A seed in [0, 2**63) that depends on every part and on nothing else.

    >>> derive(0, "student", 1) == derive(0, "student", 1) != derive(1, "student", 1)
    True
    """
    text = "\0".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def again(repeat: int) -> tuple[int, ...]:
    """What a repeat adds to the parts of its seeds: nothing to the first one's, which is the job without repeats."""
    return (repeat,) if repeat else ()


def generator(device: torch.device, *parts: str | int) -> torch.Generator:
    """A generator on `device`, seeded with `derive(*parts)`."""
    return torch.Generator(device).manual_seed(derive(*parts))


def epoch_order(samples: int, *parts: str | int) -> Tensor:
    """A permutation of `samples` indices, (N,) int64 on the CPU: the same on every device."""
    return torch.randperm(samples, generator=generator(torch.device("cpu"), *parts, "order"))
