"""Augmentation of whole batches on their device: crop, flip and jitter, drawn per sample.

Each is one gather: for every sample the rows and columns of the source are worked out, so a batch
costs a handful of kernels however large it is.
"""

import torch
from torch import Tensor

from kdcore.spec import AugmentConfig


def augment(images: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Crop, then flip, then jitter, as far as `config` asks for them.

    Args:
        images: (B, C, H, W), 0 being black; not changed.
        config: what to do.
        generator: on the device of `images`; the only source of chance.

    Returns:
        (B, C, H, W), a new tensor, or `images` itself where nothing is asked for.
    """
    if config.crop:
        images = random_crop(images, config.crop, generator)
    if config.flip:
        images = random_flip(images, generator)
    if config.jitter:
        images = random_jitter(images, config.jitter, generator)
    return images


def random_crop(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Pad every side by `padding` black pixels and cut (H, W) out at a random place, per sample."""
    batch, _, height, width = images.shape
    rows = torch.arange(height, device=images.device) + _draw(batch, padding, generator)  # (B, H)
    columns = torch.arange(width, device=images.device) + _draw(batch, padding, generator)  # (B, W)
    inside = (_within(rows, height)[:, :, None] & _within(columns, width)[:, None, :])[:, None]  # (B, 1, H, W)
    cut = _take(images, rows.clamp(0, height - 1), columns.clamp(0, width - 1))
    return cut.masked_fill_(~inside, 0)


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror left and right with probability one half, per sample."""
    draws = torch.randint(0, 2, (images.shape[0], 1, 1, 1), generator=generator, device=images.device)
    return torch.where(draws.bool(), images.flip(3), images)


def random_jitter(images: Tensor, pixels: int, generator: torch.Generator) -> Tensor:
    """Shift by up to `pixels` in both directions, per sample; the border's pixels are repeated."""
    batch, _, height, width = images.shape
    rows = torch.arange(height, device=images.device) + _draw(batch, pixels, generator)
    columns = torch.arange(width, device=images.device) + _draw(batch, pixels, generator)
    return _take(images, rows.clamp(0, height - 1), columns.clamp(0, width - 1))


def _draw(batch: int, limit: int, generator: torch.Generator) -> Tensor:
    """Offsets in [-limit, limit], (B, 1) int64."""
    return torch.randint(-limit, limit + 1, (batch, 1), generator=generator, device=generator.device)


def _within(places: Tensor, size: int) -> Tensor:
    return (places >= 0) & (places < size)


def _take(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(B, C, H, W) at rows (B, H) and columns (B, W) -> (B, C, H, W)."""
    batch, channels, height, width = images.shape
    places = (rows[:, :, None] * width + columns[:, None, :]).view(batch, 1, height * width)
    return images.flatten(2).gather(2, places.expand(-1, channels, -1)).view(batch, channels, height, width)
