"""Means and slopes over a few repeated runs, with Student's t intervals.

The quantiles are scipy's. Its ttest_1samp gives the same ends in seven times the time and warns where seeds agree;
linregress loses the third digit of the error where points lie nearly on a line; the slope of numpy.polyfit is not 0
where all values are equal, and so would have a direction.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

LEVEL = 0.95
"""Coverage of every interval here."""


@dataclass(frozen=True)
class Estimate:
    """A value and its interval.

    Attributes:
        value: the estimate.
        low: lower end of the interval; None where there is too little to have one.
        high: upper end of the interval; None where there is too little to have one.
        n: independent observations that it rests on.
    """

    value: float
    low: float | None
    high: float | None
    n: int

    @property
    def has_interval(self) -> bool:
        """Whether there is an interval."""
        return self.low is not None

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def t_estimate(value: float, standard_error: float, degrees_of_freedom: int, n: int) -> Estimate:
    """An estimate whose error follows Student's t distribution.

    Args:
        value: the estimate.
        standard_error: its standard error, in the unit of the value.
        degrees_of_freedom: of the distribution, at least 1.
        n: independent observations that it rests on.
    """
    half = float(student_t.ppf((1 + LEVEL) / 2, degrees_of_freedom)) * standard_error
    return Estimate(value, value - half, value + half, n)


def mean_interval(values: Sequence[float] | NDArray[np.float64]) -> Estimate:
    """Mean of independent values (n,), n >= 1; a single one has no interval."""
    array = np.asarray(values, dtype=np.float64)
    n = len(array)
    if n == 1:
        return Estimate(float(array[0]), None, None, 1)
    return t_estimate(float(array.mean()), float(array.std(ddof=1)) / n**0.5, n - 1, n)


def mean_curve(
    curves: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None, NDArray[np.float64] | None]:
    """Mean (T,) of curves (n, T) of n independent runs, and its pointwise interval; None ends for a single run."""
    mean: NDArray[np.float64] = curves.mean(axis=0)
    n = len(curves)
    if n == 1:
        return mean, None, None
    half = float(student_t.ppf((1 + LEVEL) / 2, n - 1)) * curves.std(axis=0, ddof=1) / n**0.5
    return mean, mean - half, mean + half


def slope_interval(lines: Mapping[object, Sequence[tuple[float, float]]]) -> Estimate | None:
    """Least-squares slope of y over x, from repetitions that each saw several x.

    With two repetitions or more, each gives one slope and the interval is that of their mean: what differs between
    repetitions may shift a whole line without widening it. Only the repetitions that saw the most x count: on a curve,
    a line through part of it has another slope. A single repetition of three points or more gives the ordinary
    interval of regression.

    Args:
        lines: repetition -> its points (x, y).

    Returns:
        The slope, or None where no repetition has two different x.
    """
    most = max((len({x for x, _ in points}) for points in lines.values()), default=0)
    if most < 2:
        return None
    usable = [np.asarray(points, dtype=np.float64) for points in lines.values() if len({x for x, _ in points}) == most]
    if len(usable) > 1:
        return mean_interval([line_fit(points[:, 0], points[:, 1])[1] for points in usable])
    x, y = usable[0].T
    intercept, slope = line_fit(x, y)
    if len(x) < 3:
        return Estimate(slope, None, None, 1)
    return t_estimate(slope, line_error(x, y, intercept, slope), len(x) - 2, 1)


def line_fit(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float]:
    """Intercept and slope of the least-squares line through points (n,), (n,)."""
    centred = x - x.mean()
    slope = float((centred * y).sum() / (centred**2).sum())
    return float(y.mean()) - slope * float(x.mean()), slope


def line_error(x: NDArray[np.float64], y: NDArray[np.float64], intercept: float, slope: float) -> float:
    """Standard error of the slope of a line through points (n,), (n,), n at least 3."""
    residuals = y - intercept - slope * x
    return float(np.sqrt((residuals**2).sum() / (len(x) - 2) / ((x - x.mean()) ** 2).sum()))
