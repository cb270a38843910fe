"""Power laws of loss against tokens, fitted to the runs of a few seeds; pure functions.

Two forms: L = A * D^-alpha, a straight line in logarithms (Kaplan et al. 2020), and L = E + A * D^-alpha with an
irreducible loss E (Hoffmann et al. 2022). Both minimize squared residuals of log L. A fit says what is wrong with it
(`problems`) and knows no loss outside the tokens that it has seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares, nnls

from lightning_apps.statistics.t_interval import Estimate, line_error, line_fit, mean_interval, t_estimate

Points = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Tokens (n,) and losses (n,) of one seed, all positive."""
Form = Literal["A * D^-alpha", "E + A * D^-alpha"]

MIN_COUNTS: dict[Form, int] = {"A * D^-alpha": 3, "E + A * D^-alpha": 5}
"""Different token counts that a form needs: one more than its parameters, two where one of them is E."""
MIN_RANGE = 4.0
"""Largest over smallest token count below which an exponent says little."""
MIN_R_SQUARED = 0.9


@dataclass(frozen=True)
class PowerLaw:
    """One fitted form.

    Attributes:
        form: which one.
        irreducible: E in nats; 0 in the pure form.
        amplitude: A, the reducible loss extrapolated to one token; only its product with D^-alpha means something.
        exponent: alpha with its interval.
        method: `seeds`: the interval is Student's t over exponents fitted to each seed. `covariance`: over the points
            of a single fit, as if their residuals were independent.
        r_squared: share of the variance of log L that the fit explains.
        tokens: smallest and largest token count.
        num_points: points over all seeds.
        problems: why the fit should not be believed; empty where nothing speaks against it.
        cautions: what to know of a fit that may be believed.
    """

    form: Form
    irreducible: float
    amplitude: float
    exponent: Estimate
    method: Literal["seeds", "covariance"]
    r_squared: float
    tokens: tuple[float, float]
    num_points: int
    problems: tuple[str, ...] = ()
    cautions: tuple[str, ...] = ()

    def loss(self, tokens: NDArray[np.float64]) -> NDArray[np.float64]:
        """Fitted losses (n,) in nats.

        Raises:
            ValueError: a token count lies outside the fitted ones; the law is not extrapolated.
        """
        low, high = self.tokens
        if len(tokens) and (tokens.min() < low * (1 - 1e-9) or tokens.max() > high * (1 + 1e-9)):
            raise ValueError(f"the fit covers {low:,.0f} to {high:,.0f} tokens and is not extrapolated")
        return self.irreducible + self.amplitude * tokens**-self.exponent.value


def fit_power_law(seeds: Sequence[Points], form: Form) -> PowerLaw | str:
    """Fit one form to the points of one or several seeds.

    Returns:
        The fit, or in words why there are too few points for it.
    """
    tokens = np.concatenate([points[0] for points in seeds]) if seeds else np.empty(0)
    losses = np.concatenate([points[1] for points in seeds]) if seeds else np.empty(0)
    counts = len(np.unique(tokens))
    if counts < MIN_COUNTS[form]:
        return f"{counts} different token counts; {form} needs at least {MIN_COUNTS[form]}"
    if not (np.isfinite(losses).all() and (losses > 0).all() and (tokens > 0).all()):
        return "a loss is not positive or not finite"
    scale = float(np.exp(np.log(tokens).mean()))  # D / scale keeps amplitude and exponent apart
    fit = _fit_line if form == "A * D^-alpha" else _fit_offset
    irreducible, amplitude, exponent, error, degrees = fit(tokens / scale, losses)
    whole = [points for points in seeds if len(np.unique(points[0])) >= MIN_COUNTS[form]]
    method: Literal["seeds", "covariance"] = "seeds" if len(whole) > 1 else "covariance"
    if method == "seeds":
        estimate = mean_interval([fit(points[0] / scale, points[1])[2] for points in whole])
        if form == "A * D^-alpha":
            amplitude = float(np.exp((np.log(losses) + estimate.value * np.log(tokens / scale)).mean()))
        else:
            _, irreducible, amplitude = _linear_fit(tokens / scale, losses, estimate.value)
    elif degrees > 0 and np.isfinite(error):
        estimate = t_estimate(exponent, error, degrees, len(seeds))
    else:
        estimate = Estimate(exponent, None, None, len(seeds))
    predicted = np.log(irreducible + amplitude * (tokens / scale) ** -estimate.value)
    residuals = np.log(losses) - predicted
    total = float(((np.log(losses) - np.log(losses).mean()) ** 2).sum())
    r_squared = 1 - float((residuals**2).sum()) / total if total > 0 else 0.0
    law = PowerLaw(
        form=form,
        irreducible=irreducible,
        amplitude=amplitude * scale**estimate.value,
        exponent=estimate,
        method=method,
        r_squared=r_squared,
        tokens=(float(tokens.min()), float(tokens.max())),
        num_points=len(tokens),
    )
    return replace(law, problems=tuple(_problems(law)), cautions=tuple(_cautions(law, seeds)))


def _fit_line(tokens: NDArray[np.float64], losses: NDArray[np.float64]) -> tuple[float, float, float, float, int]:
    """E = 0, A, alpha, its standard error and the degrees of freedom."""
    x, y = np.log(tokens), np.log(losses)
    intercept, slope = line_fit(x, y)
    return 0.0, float(np.exp(intercept)), -slope, line_error(x, y, intercept, slope), len(x) - 2


def _fit_offset(tokens: NDArray[np.float64], losses: NDArray[np.float64]) -> tuple[float, float, float, float, int]:
    """E, A, alpha, its standard error and the degrees of freedom.

    For a given alpha the other two are linear; that gives the starting point, which least squares of the logarithms
    then improves.
    """
    start = min(np.geomspace(0.02, 3.0, 60).tolist(), key=lambda alpha: _linear_fit(tokens, losses, alpha)[0])
    _, e, a = _linear_fit(tokens, losses, start)
    # at the geometric mean of the tokens, where D / scale is 1, neither E nor A can exceed the losses
    highest = np.array([0.999 * float(losses.min()), np.log(10 * float(losses.max())), 10.0])
    lowest = np.array([0.0, -np.inf, 1e-3])
    guess = np.array([max(e, 1e-6), np.log(max(a, 1e-9)), start])
    solution = least_squares(
        lambda p: np.log(p[0] + np.exp(p[1]) * tokens ** -p[2]) - np.log(losses),
        np.minimum(guess, highest - 1e-6),
        bounds=(lowest, highest),
        x_scale="jac",
        xtol=1e-12, ftol=1e-12, gtol=1e-12,
    )  # fmt: skip
    e, log_a, alpha = map(float, solution.x)
    degrees = len(tokens) - 3
    error = float("nan")
    if degrees > 0 and e > 0:
        information = solution.jac.T @ solution.jac
        if np.linalg.cond(information) < 1e14:
            error = float(np.sqrt(np.linalg.inv(information)[2, 2] * 2 * solution.cost / degrees))
    return e, float(np.exp(log_a)), alpha, error, degrees


def _linear_fit(tokens: NDArray[np.float64], losses: NDArray[np.float64], alpha: float) -> tuple[float, float, float]:
    """Norm of the relative residuals, E and A of the best fit with a given exponent; neither is negative."""
    columns = np.stack([np.ones_like(tokens), tokens**-alpha], axis=1) / losses[:, None]
    (e, a), residual = nnls(columns, np.ones_like(losses))
    return float(residual), float(e), float(a)


def _problems(law: PowerLaw) -> list[str]:
    problems = []
    alpha, (low, high) = law.exponent, law.tokens
    if not alpha.has_interval:
        problems.append("the exponent has no interval: too few points")
    elif not alpha.excludes_zero:
        problems.append("the interval of the exponent includes 0: no power law is visible")
    elif alpha.value < 0:
        problems.append("the loss rises with tokens")
    if high / low < MIN_RANGE:
        problems.append(f"the tokens span a factor of {high / low:.2g} only")
    if law.r_squared < MIN_R_SQUARED:
        problems.append(f"R² is {law.r_squared:.2f}: more than tokens moves the loss")
    if law.form == "E + A * D^-alpha":
        if law.irreducible <= 1e-3 * law.amplitude * high**-alpha.value:
            problems.append("E is 0: the points do not show an irreducible loss")
        elif alpha.value > 9.9 or alpha.value < 2e-3:
            problems.append("the exponent ran to the end of its range: E and alpha cannot be told apart")
    return problems


def _cautions(law: PowerLaw, seeds: Sequence[Points]) -> list[str]:
    if law.form == "E + A * D^-alpha":
        return []
    bend = curvature(seeds)
    if bend is None or not bend.excludes_zero:
        return []
    way = "flattens" if bend.value > 0 else "steepens"
    return [f"the points bend, the loss {way}: alpha is the mean slope over these tokens, not a law"]


def curvature(seeds: Sequence[Points]) -> Estimate | None:
    """Coefficient of log(D)^2 in a parabola through log L; positive where the loss flattens.

    Several seeds of three token counts or more give one coefficient each; a single one needs five.
    """
    whole = [(np.log(points[0]), np.log(points[1])) for points in seeds if len(np.unique(points[0])) >= 3]
    if len(whole) > 1:
        return mean_interval([float(np.polyfit(x - x.mean(), y, 2)[0]) for x, y in whole])
    if not whole or len(np.unique(whole[0][0])) < 5:
        return None
    x, y = whole[0]
    (value, *_), covariance = np.polyfit(x - x.mean(), y, 2, cov=True)
    return t_estimate(float(value), float(covariance[0, 0]) ** 0.5, len(x) - 3, 1)
