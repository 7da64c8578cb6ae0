"""The temperature that fits, against a search over many; and what is left of the calibration error."""

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by

from kdcore.calibration import HIGHEST, LOWEST, best_temperature, scaled
from kdcore.evaluate import expected_calibration_error


@pytest.mark.parametrize("seed", range(5))
def test_no_temperature_fits_better(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(200, 5, generator=generator, dtype=torch.float64)
    labels = torch.where(
        torch.rand(200, generator=generator) < 0.6, logits.argmax(1), torch.randint(0, 5, (200,), generator=generator)
    )
    found = best_temperature(logits, labels)
    values = {t: F.cross_entropy(logits / t, labels).item() for t in torch.logspace(-2, 2, 2001).tolist()}
    assert F.cross_entropy(logits / found, labels).item() <= min(values.values()) + 1e-12


def test_labels_drawn_from_the_probabilities_want_the_temperature_they_were_drawn_at() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20_000, 4, generator=generator)
    labels = F.softmax(logits / 1.7, 1).multinomial(1, generator=generator).flatten()
    assert best_temperature(logits, labels) == pytest.approx(1.7, rel=0.05)


def test_the_ends_of_the_range() -> None:
    logits = torch.eye(3) * 4
    assert best_temperature(logits, torch.tensor([0, 1, 2])) == pytest.approx(LOWEST)
    assert best_temperature(logits, torch.tensor([1, 2, 0])) == pytest.approx(HIGHEST)
    assert math.isfinite(best_temperature(torch.zeros(3, 3), torch.tensor([0, 1, 2])))


def test_scaling_mends_overconfidence() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4_000, 4, generator=generator)
    labels = F.softmax(logits, 1).multinomial(1, generator=generator).flatten()
    found = scaled(5 * logits[:2_000], labels[:2_000], 5 * logits[2_000:], labels[2_000:])
    assert found["temperature"] == pytest.approx(5, rel=0.1)
    assert found["ece_scaled"] < 0.05 < expected_calibration_error(5 * logits[2_000:], labels[2_000:])
