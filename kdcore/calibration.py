"""Temperature scaling: how well a classifier's probabilities could be made to fit, without another prediction."""

import math

import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from torch import Tensor

from kdcore.evaluate import expected_calibration_error

LOWEST, HIGHEST = 0.01, 100.0
HALVINGS = 60


def best_temperature(logits: Tensor, labels: Tensor) -> float:
    """The T at which softmax(z / T) has the least negative log-likelihood (Guo et al. 2017, section 4.2).

    It is convex in 1 / T, so that its slope, the mean over samples of E_p[z] - z_y, is bisected. At the ends of the
    range, 0.01 and 100, stay those that are right, or wrong, on every sample.

    Args:
        logits: (N, C) of samples that the classifier was not trained on.
        labels: (N,) int64.
    """
    values = logits.double()
    of_label = values.gather(1, labels[:, None]).squeeze(1)

    def rises(inverse: float) -> bool:
        expected = (F.softmax(values * inverse, 1) * values).sum(1)
        return bool((expected - of_label).mean() > 0)

    low, high = math.log(1 / HIGHEST), math.log(1 / LOWEST)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if rises(math.exp(middle)) else (middle, high)
    return math.exp(-(low + high) / 2)


def scaled(held_logits: Tensor, held_labels: Tensor, logits: Tensor, labels: Tensor) -> dict[str, float]:
    """The temperature that fits the held-out samples, and the calibration error that is left with it on others."""
    temperature = best_temperature(held_logits, held_labels)
    return {"temperature": temperature, "ece_scaled": expected_calibration_error(logits / temperature, labels)}
