"""Whether one model really beats another on the same samples."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

RESAMPLES = 10_000
Z_95 = 1.959963984540054
T_95 = (
    *(12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624, 2.306004, 2.262157, 2.228139),
    *(2.200985, 2.178813, 2.160369, 2.144787, 2.131450, 2.119905, 2.109816, 2.100922, 2.093024),
)
"""Student's t at 97.5%, by degrees of freedom from 1 to 19: a job has at most 20 repeats."""


def gain(score: str, student: Tensor, baseline: Tensor, seed: int) -> dict[str, Any]:
    """The student's gain over the baseline, with its uncertainty, as JSON values; above 0 the student is better.

    Args:
        score: what is compared; its mean difference is under this name.
        student, baseline: (N,) float64, what each test sample adds to the score; more is better.
        seed: of the resampling.
    """
    if bool(((student == 0) | (student == 1)).all() and ((baseline == 0) | (baseline == 1)).all()):
        return {"score": score, **gain_of_hits(score, student > 0, baseline > 0, seed)}
    difference = (student - baseline).numpy()
    draws = np.random.default_rng(seed)
    samples = len(difference)
    means = [difference[draws.integers(0, samples, samples)].mean() for _ in range(RESAMPLES // 10)]
    low, high = np.percentile(means, [2.5, 97.5])
    return {
        "score": score,
        score: float(difference.mean()),
        "interval": [float(low), float(high)],
        "confidence": 0.95,
        "method": f"paired bootstrap over the {samples} test samples, {RESAMPLES // 10} resamples, percentile interval",
        "sign_flips": {"p": sign_flips(difference, draws), "method": f"{RESAMPLES // 10} random flips, two-sided"},
    }


def sign_flips(differences: NDArray[np.float64], draws: np.random.Generator) -> float:
    """p of the paired randomisation test: how often the mean is as far from 0 where each sign is drawn (Fisher 1935).

    If student and baseline were alike, each sample's difference could as well have the other sign. What was found
    counts as one of the draws, so that p is never 0 (Phipson and Smyth 2010).
    """
    whole, flips = differences.sum(), RESAMPLES // 10
    least = abs(whole) * (1 - 1e-12)  # sums in another order differ in the last digits
    flipped = (differences[draws.integers(0, 2, len(differences), np.int8) == 1].sum() for _ in range(flips))
    return (1 + sum(bool(abs(whole - 2 * each) >= least) for each in flipped)) / (1 + flips)


def gain_of_hits(score: str, student_right: Tensor, baseline_right: Tensor, seed: int) -> dict[str, Any]:
    """The gain where every sample is a hit or a miss, with McNemar's test.

    Args:
        student_right, baseline_right: (N,) bool: which test samples each classifies rightly.
        seed: of the resampling.
    """
    only_student = int((student_right & ~baseline_right).sum())
    only_baseline = int((baseline_right & ~student_right).sum())
    samples = len(student_right)
    low, high = bootstrap_interval(only_student, only_baseline, samples, seed)
    return {
        score: (only_student - only_baseline) / samples,
        "interval": [low, high],
        "confidence": 0.95,
        "method": f"paired bootstrap over the {samples} test samples, {RESAMPLES} resamples, percentile interval",
        "mcnemar": {
            "only_baseline_right": only_baseline,
            "only_student_right": only_student,
            "p": mcnemar(only_baseline, only_student),
            "method": "exact, two-sided",
        },
    }


def spread(differences: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation and 95% interval of the mean of a few independent differences, as JSON values.

    The interval is by Student's t; there is none of a single difference.
    """
    count, values = len(differences), np.array(differences, dtype=np.float64)
    mean = float(values.mean())
    if count < 2:
        return {"mean": mean, "std": None, "interval": None}
    std = float(values.std(ddof=1))
    half = T_95[min(count - 1, len(T_95)) - 1] * std / math.sqrt(count)
    return {"mean": mean, "std": std, "interval": [mean - half, mean + half]}


def wilson_interval(hits: int, samples: int) -> tuple[float, float]:
    """95% interval of a share (Wilson 1927): inside [0, 1], also where all or none are hits."""
    share, z2 = hits / samples, Z_95**2
    centre = (share + z2 / (2 * samples)) / (1 + z2 / samples)
    half = Z_95 / (1 + z2 / samples) * math.sqrt(share * (1 - share) / samples + z2 / (4 * samples**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap_interval(better: int, worse: int, samples: int, seed: int) -> tuple[float, float]:
    """95% percentile interval of a paired difference in accuracy.

    Resampling N pairs whose difference is -1, 0 or +1 draws their three counts from a multinomial,
    so no sample is ever copied (Efron and Tibshirani 1993, section 13.3).

    Args:
        better, worse: pairs with difference +1 and -1, of `samples`.
    """
    shares = np.array([better, samples - better - worse, worse]) / samples
    counts = np.random.default_rng(seed).multinomial(samples, shares, size=RESAMPLES)
    low, high = np.percentile((counts[:, 0] - counts[:, 2]) / samples, [2.5, 97.5])
    return float(low), float(high)


def mcnemar(b: int, c: int) -> float:
    """p of McNemar's exact test: two-sided binomial at one half on the `b` + `c` pairs that differ."""
    pairs = b + c
    if b == c:
        return 1.0
    logs = (
        math.lgamma(pairs + 1) - math.lgamma(k + 1) - math.lgamma(pairs - k + 1) - pairs * math.log(2)
        for k in range(min(b, c) + 1)
    )
    return min(1.0, 2 * math.fsum(map(math.exp, logs)))
