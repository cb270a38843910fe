"""Shares of successes: their intervals, and whether two of them on the same questions differ."""

from scipy.stats import binomtest


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95 % score interval of a proportion (Wilson 1927); inside [0, 1] and sensible at 0 and 1, unlike p +- 2 sigma.

    Without a trial nothing is known: (0, 1).
    """
    if trials == 0:
        return 0.0, 1.0
    interval = binomtest(successes, trials).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar_p_value(only_first: int, only_second: int) -> float:
    """Two-sided exact p-value that both are right equally often (McNemar 1947, in its binomial form).

    Args:
        only_first: questions that only the first got right.
        only_second: questions that only the second got right.
    """
    discordant = only_first + only_second
    return float(binomtest(min(only_first, only_second), discordant).pvalue) if discordant else 1.0
