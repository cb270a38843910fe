"""Fits on synthetic data with known exponents, and how often their intervals hold them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_apps.statistics.t_interval import Estimate, mean_curve, mean_interval, slope_interval
from lightning_apps.sweeps.scaling_fit import PowerLaw, curvature, fit_power_law

PURE, OFFSET = "A * D^-alpha", "E + A * D^-alpha"
BUDGETS = np.array([1e6, 4e6, 1.6e7])
CURVE = np.geomspace(1e6, 3e7, 12)


def losses(tokens, *, alpha=0.3, amplitude=3.0, irreducible=0.0, noise=0.0, source=None, shift=0.0):
    clean = irreducible + amplitude * (tokens / 1e6) ** -alpha
    return clean * np.exp(shift + (noise * source.normal(size=len(tokens)) if noise else 0.0))


@given(
    alpha=st.floats(0.01, 1.5),
    amplitude=st.floats(0.1, 50),
    start=st.floats(1e3, 1e9),
    ratio=st.floats(1.5, 30),
    count=st.integers(3, 8),
)
def test_a_pure_law_is_found_to_the_digit(alpha, amplitude, start, ratio, count):
    tokens = start * ratio ** np.arange(count)
    law = fit_power_law([(tokens, amplitude * tokens**-alpha)], PURE)
    assert law.exponent.value == pytest.approx(alpha, rel=1e-6)
    assert law.amplitude == pytest.approx(amplitude, rel=1e-4)
    assert law.r_squared == pytest.approx(1, abs=1e-9)
    assert law.irreducible == 0


@given(alpha=st.floats(0.1, 1.0), irreducible=st.floats(0.5, 4), amplitude=st.floats(0.5, 5), count=st.integers(5, 15))
def test_an_offset_law_is_found(alpha, irreducible, amplitude, count):
    tokens = np.geomspace(1e5, 1e8, count)
    exact = losses(tokens, alpha=alpha, amplitude=amplitude, irreducible=irreducible)
    law = fit_power_law([(tokens, exact)], OFFSET)
    assert law.exponent.value == pytest.approx(alpha, rel=1e-3)
    assert law.irreducible == pytest.approx(irreducible, rel=1e-2)
    np.testing.assert_allclose(law.loss(tokens), exact, rtol=1e-4)


@pytest.mark.parametrize(
    ("seeds", "tokens", "form", "irreducible", "method"),
    [
        (3, BUDGETS, PURE, 0.0, "seeds"),
        (2, CURVE, PURE, 0.0, "seeds"),
        (1, CURVE, PURE, 0.0, "covariance"),
        (3, CURVE, OFFSET, 2.0, "seeds"),
        (1, CURVE, OFFSET, 2.0, "covariance"),
    ],
)
def test_intervals_hold_the_exponent_as_often_as_they_say(seeds, tokens, form, irreducible, method):
    """Binomial: of 200 intervals of 95 %, fewer than 180 hold with a probability of 0.002; of 60, fewer than 51."""
    source, held, repeats = np.random.default_rng(0), 0, 200 if form == PURE else 60
    for _ in range(repeats):
        law = fit_power_law(
            [
                # seeds differ as a whole too: that must not widen the interval of the exponent
                (tokens, losses(tokens, irreducible=irreducible, noise=0.005, source=source, shift=0.02 * seed))
                for seed in range(seeds)
            ],
            form,
        )
        assert law.method == method
        held += law.exponent.low <= 0.3 <= law.exponent.high
    assert held >= 0.85 * repeats if form == OFFSET else held >= 0.9 * repeats


def test_points_of_one_run_that_hang_together_fool_the_covariance_but_not_the_seeds():
    """Noise that drifts along a curve: the interval of one fit holds far too rarely, which is why seeds go first."""
    source, held = np.random.default_rng(1), {"seeds": 0, "covariance": 0}
    for _ in range(150):
        runs = [(CURVE, losses(CURVE) * np.exp(np.cumsum(source.normal(0, 0.005, len(CURVE))))) for _ in range(3)]
        for points in (runs, runs[:1]):
            law = fit_power_law(points, PURE)
            held[law.method] += law.exponent.low <= 0.3 <= law.exponent.high
    assert held["seeds"] > 134
    assert held["covariance"] < 105


def test_seeds_with_too_few_budgets_count_for_the_curve_but_not_for_the_interval():
    source = np.random.default_rng(2)
    runs = [(BUDGETS, losses(BUDGETS, noise=0.01, source=source)) for _ in range(3)]
    law = fit_power_law([*runs, (BUDGETS[:2], losses(BUDGETS[:2]))], PURE)
    assert law.exponent.n == 3
    assert law.num_points == 11
    assert law.exponent.value == pytest.approx(fit_power_law(runs, PURE).exponent.value, rel=1e-12)


@pytest.mark.parametrize(
    ("tokens", "values", "problem"),
    [
        (CURVE, np.full(12, 3.0) + np.random.default_rng(0).normal(0, 0.01, 12), "includes 0"),
        (CURVE, 3.0 * (CURVE / 1e6) ** 0.2, "the loss rises with tokens"),
        (np.linspace(1e6, 3e6, 12), losses(np.linspace(1e6, 3e6, 12)), "span a factor of 3 only"),
        (CURVE, losses(CURVE, noise=0.5, source=np.random.default_rng(0)), "R² is"),
        (BUDGETS, losses(BUDGETS), None),
    ],
)
def test_a_meaningless_fit_says_so(tokens, values, problem):
    law = fit_power_law([(tokens, values)], PURE)
    assert isinstance(law, PowerLaw)
    if problem is None:
        assert law.problems == ()
    else:
        assert any(problem in text for text in law.problems), law.problems


def test_an_offset_that_is_not_there_is_said():
    source = np.random.default_rng(0)
    law = fit_power_law([(CURVE, losses(CURVE, noise=1e-3, source=source, alpha=0.1))], OFFSET)
    wide = law.exponent.low is None or law.exponent.low < 0.1 < law.exponent.high
    assert wide or any("E is 0" in text for text in law.problems)


def test_too_few_points_are_refused_in_words():
    assert fit_power_law([(BUDGETS[:2], losses(BUDGETS[:2]))], PURE) == (
        "2 different token counts; A * D^-alpha needs at least 3"
    )
    assert "needs at least 5" in fit_power_law([(BUDGETS, losses(BUDGETS))], OFFSET)
    assert "0 different" in fit_power_law([], PURE)
    assert "not finite" in fit_power_law([(BUDGETS, np.array([3.0, np.nan, 2.0]))], PURE)
    assert "not positive" in fit_power_law([(BUDGETS, np.array([3.0, 0.0, 2.0]))], PURE)


def test_nothing_is_extrapolated():
    law = fit_power_law([(BUDGETS, losses(BUDGETS))], PURE)
    np.testing.assert_allclose(law.loss(BUDGETS), losses(BUDGETS))
    for outside in (0.9e6, 1.7e7):
        with pytest.raises(ValueError, match="not extrapolated"):
            law.loss(np.array([outside]))


@pytest.mark.parametrize(("seeds", "tokens"), [(3, BUDGETS), (1, CURVE)])
def test_points_that_bend_are_a_caution(seeds, tokens):
    source = np.random.default_rng(0)
    runs = [(tokens, losses(tokens, irreducible=2.0, noise=1e-3, source=source)) for _ in range(seeds)]
    assert curvature(runs).low > 0
    (caution,) = fit_power_law(runs, PURE).cautions
    assert "flattens" in caution
    straight = [(tokens, losses(tokens, noise=1e-3, source=source)) for _ in range(seeds)]
    assert fit_power_law(straight, PURE).cautions == ()


def test_three_points_of_one_seed_say_nothing_about_a_bend():
    assert curvature([(BUDGETS, losses(BUDGETS, irreducible=2.0))]) is None


# Means and slopes


def test_mean_interval_against_the_table_of_student():
    """t(0.975, 2) = 4.30265: 2 +- 4.30265 * 1 / sqrt(3)."""
    estimate = mean_interval([1.0, 2.0, 3.0])
    assert (estimate.value, estimate.n) == (2.0, 3)
    assert estimate.high - 2 == pytest.approx(4.302652729911275 / 3**0.5)
    assert 2 - estimate.low == pytest.approx(estimate.high - 2)
    assert mean_interval([5.0]) == Estimate(5.0, None, None, 1)
    assert not mean_interval([5.0]).excludes_zero


def test_mean_interval_holds_the_mean_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(3.0, 1.0, size=(1000, 3))
    held = sum(estimate.low <= 3.0 <= estimate.high for estimate in map(mean_interval, draws))
    assert 925 <= held <= 975


def test_mean_curve_is_the_mean_interval_at_every_place():
    curves = np.random.default_rng(0).normal(size=(3, 5))
    mean, low, high = mean_curve(curves)
    for place in range(5):
        expected = mean_interval(curves[:, place])
        assert (mean[place], low[place], high[place]) == pytest.approx((expected.value, expected.low, expected.high))
    assert mean_curve(curves[:1])[1] is None


def test_slopes_of_seeds_ignore_what_shifts_a_whole_line():
    lines = {seed: [(x, 10.0 * seed + (0.5 + 0.01 * seed) * x) for x in (1.0, 2.0, 3.0)] for seed in range(3)}
    estimate = slope_interval(lines)
    expected = mean_interval([0.5, 0.51, 0.52])
    assert (estimate.value, estimate.low) == pytest.approx((expected.value, expected.low))
    assert estimate.excludes_zero


def test_a_seed_that_saw_part_of_the_line_does_not_count():
    whole = {seed: [(x, x**2 + 0.1 * seed * x) for x in (1.0, 2.0, 3.0)] for seed in range(2)}
    assert slope_interval({**whole, 2: [(1.0, 1.0), (2.0, 4.0)]}) == slope_interval(whole)


def test_a_single_seed_has_the_interval_of_regression():
    """numpy.polyfit's covariance, scaled by the residuals, is the textbook one."""
    from scipy.stats import t as student_t

    x = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    y = np.array([1.1, 1.9, 3.2, 3.9, 5.3])
    estimate = slope_interval({0: list(zip(x, y, strict=True))})
    (slope, _), covariance = np.polyfit(x, y, 1, cov=True)
    assert estimate.value == pytest.approx(slope)
    assert estimate.high - estimate.value == pytest.approx(student_t.ppf(0.975, 3) * covariance[0, 0] ** 0.5)
    assert slope_interval({0: [(1.0, 2.0), (2.0, 3.0)]}) == Estimate(1.0, None, None, 1)
    assert slope_interval({0: [(1.0, 2.0)], 1: [(1.0, 3.0)]}) is None
