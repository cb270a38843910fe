"""Shares of successes: their intervals, and whether two of them on the same questions differ."""

import math

import numpy as np
from numpy.typing import NDArray

from lightning_apps.statistics.bootstrap import bootstrap_interval

Z95 = 1.959963984540054
"""97.5 % quantile of the normal distribution."""


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95 % score interval of a proportion (Wilson 1927); inside [0, 1] and sensible at 0 and 1, unlike p +- 2 sigma.

    Without a trial nothing is known: (0, 1).
    """
    if trials == 0:
        return 0.0, 1.0
    share, z2 = successes / trials, Z95 * Z95
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z95 * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials * trials)) / (1 + z2 / trials)
    # at the ends one limit is exact, but for rounding
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == trials else min(1.0, centre + half)
    return low, high


def mcnemar_p_value(only_first: int, only_second: int) -> float:
    """Two-sided exact p-value that both are right equally often (McNemar 1947, in its binomial form).

    Args:
        only_first: questions that only the first got right.
        only_second: questions that only the second got right.
    """
    discordant = only_first + only_second
    tail = sum(math.comb(discordant, count) for count in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**discordant)


def paired_difference(first: NDArray[np.float64], second: NDArray[np.float64]) -> tuple[float, float, float]:
    """Mean of second - first, and its 95 % bootstrap interval over the questions.

    Args:
        first: (n,) scores of one model.
        second: (n,) scores of another on the same questions.
    """
    difference = second - first
    low, high = bootstrap_interval(difference, np.mean)
    return float(difference.mean()), low, high
