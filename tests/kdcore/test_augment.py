"""Augmentation: every sample is one of the images that the rule allows, drawn by the generator alone."""

import torch
from torch import Tensor

from kdcore.augment import augment, draw
from kdcore.training import AugmentConfig


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def changed_by(batch: Tensor, config: AugmentConfig, seed: int = 0) -> Tensor:
    return augment(batch, draw(len(batch), config, generator(seed)))


def images(batch: int, channels: int = 2, height: int = 4, width: int = 5) -> Tensor:
    return torch.rand(1, channels, height, width, generator=generator(9)).expand(batch, -1, -1, -1).contiguous() + 1


def shifted(image: Tensor, rows: int, columns: int, mode: str) -> Tensor:
    """An independent way to the same: pad, then cut at one place."""
    pad = max(abs(rows), abs(columns), 1)
    padded = torch.nn.functional.pad(image[None], (pad,) * 4, mode=mode)[0]
    height, width = image.shape[1:]
    return padded[:, pad + rows : pad + rows + height, pad + columns : pad + columns + width]


def places(found: Tensor, image: Tensor, limit: int, mode: str) -> set[tuple[int, int]]:
    """Which shift each sample of the batch is; fails if one is none."""
    span = range(-limit, limit + 1)
    allowed = {(r, c): shifted(image, r, c, mode) for r in span for c in span}
    hits = set()
    for sample in found:
        match = [place for place, expected in allowed.items() if torch.equal(sample, expected)]
        assert match
        hits.add(match[0])
    return hits


def test_crop_is_a_shift_with_black_border_and_reaches_every_place() -> None:
    batch = images(300)
    found = places(changed_by(batch, AugmentConfig(crop=2)), batch[0], 2, "constant")
    assert found == {(r, c) for r in range(-2, 3) for c in range(-2, 3)}


def test_jitter_is_a_shift_that_repeats_the_border_and_reaches_every_place() -> None:
    batch = images(200)
    found = places(changed_by(batch, AugmentConfig(jitter=1)), batch[0], 1, "replicate")
    assert found == {(r, c) for r in (-1, 0, 1) for c in (-1, 0, 1)}


def test_flip_mirrors_about_half_of_the_samples_and_leaves_the_rest() -> None:
    batch = images(1000)
    flipped = changed_by(batch, AugmentConfig(flip=True))
    mirrored = torch.tensor([torch.equal(sample, batch[0].flip(2)) for sample in flipped])
    assert all(torch.equal(sample, batch[0]) for sample in flipped[~mirrored])
    assert 430 < int(mirrored.sum()) < 570


def test_samples_of_a_batch_are_drawn_apart_and_stay_in_their_rows() -> None:
    batch = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 1, 4, 4) + 1
    changed = changed_by(batch, AugmentConfig(crop=1, flip=True, jitter=1))
    for number, sample in enumerate(changed):
        assert set(sample.unique().tolist()) <= {0.0, number + 1.0}


def test_the_generator_alone_decides() -> None:
    batch, config = images(20), AugmentConfig(crop=2, flip=True, jitter=1)
    first = changed_by(batch, config, 1)
    torch.rand(3)
    assert torch.equal(first, changed_by(batch, config, 1))
    assert not torch.equal(first, changed_by(batch, config, 2))


def test_off_changes_nothing_and_inputs_are_never_written_to() -> None:
    batch = images(5)
    before = batch.clone()
    assert changed_by(batch, AugmentConfig()) is batch
    changed_by(batch, AugmentConfig(crop=3, flip=True, jitter=3))
    assert torch.equal(batch, before)


def test_a_crop_wider_than_the_image_may_leave_black() -> None:
    assert changed_by(images(50), AugmentConfig(crop=20)).shape == (50, 2, 4, 5)


def test_what_is_drawn_for_a_sample_changes_it_alike_in_any_batch() -> None:
    batch, config = torch.rand(30, 2, 6, 6, generator=generator(3)), AugmentConfig(crop=2, flip=True, jitter=1)
    draws = draw(len(batch), config, generator())
    whole, some = augment(batch, draws), torch.tensor([17, 3, 28])
    assert torch.equal(augment(batch[some], draws.of(some)), whole[some])
    assert torch.equal(augment(batch[5:9], draws.of(slice(5, 9))), whole[5:9])
