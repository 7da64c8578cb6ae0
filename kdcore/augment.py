"""Augmentation of whole batches on their device: crop, flip and jitter, drawn per sample.

Each is one gather: for every sample the rows and columns of the source are worked out, so a batch
costs a handful of kernels however large it is.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kdcore.training import AugmentConfig

Shifts = tuple[Tensor, Tensor]
"""Rows and columns by which each sample is shifted, (B, 1) int64 both."""


@dataclass(frozen=True)
class Draws:
    """What is drawn for each of B samples; None where it is not asked for.

    Attributes:
        crop, jitter: by how much it is shifted.
        flip: (B, 1, 1, 1) int64, 1 where it is mirrored.
    """

    crop: Shifts | None
    flip: Tensor | None
    jitter: Shifts | None

    def of(self, batch: Tensor | slice) -> "Draws":
        """Those of some of the samples."""

        def cut(shifts: Shifts | None) -> Shifts | None:
            return (shifts[0][batch], shifts[1][batch]) if shifts is not None else None

        return Draws(cut(self.crop), self.flip[batch] if self.flip is not None else None, cut(self.jitter))


def draw(samples: int, config: AugmentConfig, generator: torch.Generator) -> Draws:
    """Draw for so many samples, on the generator's device, which is the only source of chance."""
    crop = _shifts(samples, config.crop, generator) if config.crop else None
    flip = None
    if config.flip:
        flip = torch.randint(0, 2, (samples, 1, 1, 1), generator=generator, device=generator.device)
    return Draws(crop, flip, _shifts(samples, config.jitter, generator) if config.jitter else None)


def augment(images: Tensor, draws: Draws) -> Tensor:
    """Crop, then flip, then jitter, as far as they were drawn.

    Args:
        images: (B, C, H, W), 0 being black; not changed.

    Returns:
        (B, C, H, W), a new tensor, or `images` itself where nothing was asked for.
    """
    if draws.crop is not None:
        images = _cropped(images, *draws.crop)
    if draws.flip is not None:
        images = torch.where(draws.flip.bool(), images.flip(3), images)
    if draws.jitter is not None:
        images = _jittered(images, *draws.jitter)
    return images


def _cropped(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Padded with black pixels on every side, and (H, W) cut out at the drawn place."""
    height, width = images.shape[2:]
    rows = torch.arange(height, device=images.device) + down  # (B, H)
    columns = torch.arange(width, device=images.device) + right  # (B, W)
    inside = (_within(rows, height)[:, :, None] & _within(columns, width)[:, None, :])[:, None]  # (B, 1, H, W)
    cut = _take(images, rows.clamp(0, height - 1), columns.clamp(0, width - 1))
    return cut.masked_fill_(~inside, 0)


def _jittered(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Shifted by as much as was drawn; the border's pixels are repeated."""
    height, width = images.shape[2:]
    rows = torch.arange(height, device=images.device) + down
    columns = torch.arange(width, device=images.device) + right
    return _take(images, rows.clamp(0, height - 1), columns.clamp(0, width - 1))


def _shifts(batch: int, limit: int, generator: torch.Generator) -> Shifts:
    return _draw(batch, limit, generator), _draw(batch, limit, generator)


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
