"""The numbers that a sweep is run for: effects of the grid's keys, scaling fits, in-context curves."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lightning_apps.statistics.t_interval import Estimate, mean_curve, slope_interval
from lightning_apps.sweeps.results import REPEAT, Array, Group, InContext, JobResult, SweepResults, sort_key
from lightning_apps.sweeps.scaling_fit import MIN_COUNTS, Form, Points, PowerLaw, fit_power_law

HEADLINES = ("val/loss", "test/loss", "test/held_out_loss")
FORMS: tuple[Form, ...] = ("A * D^-alpha", "E + A * D^-alpha")
TENTH = 10
"""The beginning and the end of a window are the first and last 1/TENTH of its positions."""


@dataclass(frozen=True)
class Effect:
    """A metric against one numeric key of the grid, everything else fixed.

    Attributes:
        metric: name of the metric.
        factor: key of the grid.
        fixed: the other keys' values.
        means: value of the key -> mean over seeds.
        slope: over the key, or over its logarithm to base 10 where `per_tenfold`.
        per_tenfold: the values are all below 1, as rates are, or span more than a factor of ten: a step of 1 says
            nothing there.
    """

    metric: str
    factor: str
    fixed: Mapping[str, Any]
    means: Mapping[float, Estimate]
    slope: Estimate | None
    per_tenfold: bool


@dataclass(frozen=True)
class ScalingSeries:
    """Loss against tokens of the jobs that differ in budget and seed only.

    Attributes:
        fixed: the other keys' values.
        source: `budgets`: final losses of runs of several lengths. `curve`: evaluations within the longest runs.
        points: seed -> tokens and losses.
        laws: fits, one for each form that has points enough.
        refusals: in words, why a form was not fitted.
    """

    fixed: Mapping[str, Any]
    source: Literal["budgets", "curve"]
    points: Mapping[Any, Points]
    laws: Sequence[PowerLaw]
    refusals: Sequence[str]

    @property
    def believed(self) -> PowerLaw | None:
        """The fit to draw: the richest form that nothing speaks against."""
        return next((law for law in reversed(self.laws) if not law.problems), None)


Curve = tuple[Array, Array | None, Array | None]
"""Mean, lower and upper end; the ends are None where there is no band."""


@dataclass(frozen=True)
class ContextCurves:
    """Mean loss by position with its band.

    Attributes:
        position: (T,) of the window, or (B,) means of groups of positions.
        chosen: over the categories trained on.
        held_out: over the other categories; None where no run held categories out.
    """

    position: Array
    chosen: Curve
    held_out: Curve | None


@dataclass(frozen=True)
class ContextSeries:
    """Mean loss by position over the seeds of one group.

    Attributes:
        fixed: the keys' values.
        curves: at every position.
        pooled: at means of growing groups of positions, as the picture has it.
        band: what the ends are, in words.
        gains: seed -> nats that the loss falls from the first to the last tenth of positions, chosen categories.
        gaps: seed -> held-out minus chosen loss in the last tenth.
        num_seeds: runs averaged.
    """

    fixed: Mapping[str, Any]
    curves: ContextCurves
    pooled: ContextCurves
    band: str
    gains: Mapping[Any, float]
    gaps: Mapping[Any, float]
    num_seeds: int


def is_numeric(values: Sequence[object]) -> bool:
    """Whether these grid values have an order and distances."""
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def split(groups: Sequence[Group], key: str) -> list[tuple[dict[str, Any], list[Group]]]:
    """Groups that agree in everything but `key`, each family sorted by it."""
    families: dict[str, tuple[dict[str, Any], list[Group]]] = {}
    for group in groups:
        fixed = {name: value for name, value in group.values.items() if name != key}
        families.setdefault(repr(fixed), (fixed, []))[1].append(group)
    return [
        (fixed, sorted(family, key=lambda group: sort_key(group.values[key]))) for fixed, family in families.values()
    ]


def headline_metrics(results: SweepResults) -> list[str]:
    """The metrics that sentences are made about: losses, and what chose the best checkpoints."""
    monitors = [job.monitor for job in results.completed if job.monitor is not None]
    return [name for name in dict.fromkeys([*HEADLINES, *monitors]) if name in results.metrics]


def effects(results: SweepResults, metric: str) -> list[Effect]:
    """A metric against every numeric key of the grid that took several values."""
    found = []
    for factor in results.factors:
        for fixed, family in split(results.groups(), factor):
            pairs = [(group.values[factor], mean) for group in family if (mean := group.mean(metric)) is not None]
            if len(pairs) < 2 or not is_numeric([value for value, _ in pairs]):
                continue
            means = dict(pairs)
            per_tenfold = min(means) > 0 and (max(means) < 1 or max(means) / min(means) > 10)
            lines: dict[Any, list[tuple[float, float]]] = {}
            for group in family:
                for job in group.jobs:
                    value = job.metrics.get(metric, np.nan)
                    if np.isfinite(value):
                        x = float(group.values[factor])
                        lines.setdefault(job.values.get(REPEAT), []).append(
                            (float(np.log10(x)) if per_tenfold else x, value)
                        )
            found.append(Effect(metric, factor, fixed, means, slope_interval(lines), per_tenfold))
    return found


def scaling(results: SweepResults) -> list[ScalingSeries]:
    """Loss against tokens for every combination of the keys other than budget and seed."""
    budget = results.budget_key
    families = split(results.groups(), budget) if budget else [(dict(g.values), [g]) for g in results.groups()]
    series = []
    for fixed, family in families:
        finals: dict[Any, list[tuple[float, float]]] = {}
        for group in family:
            for job in group.jobs:
                loss = job.metrics.get("val/loss", np.nan)
                if np.isfinite(loss) and loss > 0 and job.tokens:
                    finals.setdefault(job.values.get(REPEAT), []).append((float(job.tokens), loss))
        counts = {tokens for points in finals.values() for tokens, _ in points}
        source: Literal["budgets", "curve"] = "budgets" if len(counts) >= MIN_COUNTS[FORMS[0]] and budget else "curve"
        if source == "budgets":
            columns = {seed: np.array(sorted(pairs), dtype=np.float64).T for seed, pairs in finals.items()}
            points = {seed: (tokens, losses) for seed, (tokens, losses) in columns.items()}
        else:
            points = {job.values.get(REPEAT): job.curve for job in family[-1].jobs if len(job.curve[0])}
        outcomes = [fit_power_law(list(points.values()), form) for form in FORMS]
        laws = [outcome for outcome in outcomes if isinstance(outcome, PowerLaw)]
        refusals = [outcome for outcome in outcomes if isinstance(outcome, str)]
        series.append(ScalingSeries(fixed, source, points, laws, refusals))
    return series


def in_context(results: SweepResults) -> list[ContextSeries]:
    """Mean loss by position for every combination of keys, at the largest budget."""
    groups = results.groups()
    if budget := results.budget_key:
        groups = [family[-1] for _, family in split(groups, budget)]
    series = []
    for group in groups:
        jobs = [job for job in group.jobs if job.in_context is not None]
        contexts = [job.in_context for job in jobs if job.in_context is not None]
        if not contexts:
            continue
        length = min(len(context.position) for context in contexts)
        tenth = max(1, length // TENTH)
        by_seed = {seed_of(job): context for job, context in zip(jobs, contexts, strict=True)}
        series.append(
            ContextSeries(
                fixed=group.values,
                curves=_curves(contexts, [slice(start, start + 1) for start in range(length)]),
                pooled=_curves(contexts, growing_groups(length)),
                band="95 % t interval over seeds" if len(contexts) > 1 else "95 % interval over the windows of one run",
                gains={
                    seed: float(context.chosen[0, :tenth].mean() - context.chosen[0, length - tenth : length].mean())
                    for seed, context in by_seed.items()
                },
                gaps={
                    seed: float((context.held_out[0] - context.chosen[0])[length - tenth : length].mean())
                    for seed, context in by_seed.items()
                    if context.held_out is not None
                },
                num_seeds=len(contexts),
            )
        )
    return series


def seed_of(job: JobResult) -> Any:
    """The repetition that a job belongs to."""
    return job.values.get(REPEAT)


def growing_groups(length: int, number: int = 24) -> list[slice]:
    """At most `number` neighbouring groups of positions whose ends grow geometrically: single ones at first."""
    ends = np.unique(np.round(np.geomspace(1, length + 1, number + 1)).astype(int)) - 1
    return [slice(int(start), int(end)) for start, end in itertools.pairwise(ends)]


def _curves(contexts: Sequence[InContext], groups: Sequence[slice]) -> ContextCurves:
    def pooled(curve: Array) -> Array:
        return np.stack([curve[..., group].mean(axis=-1) for group in groups], axis=-1)

    others = [pooled(context.held_out) for context in contexts if context.held_out is not None]
    return ContextCurves(
        pooled(contexts[0].position),
        _average([pooled(context.chosen) for context in contexts]),
        _average(others) if others else None,
    )


def _average(curves: Sequence[Array]) -> Curve:
    """Mean over runs with its band over seeds; a single run keeps its own band."""
    if len(curves) == 1:
        mean, low, high = curves[0]
        return mean, low, high
    return mean_curve(np.stack([curve[0] for curve in curves]))


def varying_key(combinations: Sequence[Mapping[str, Any]]) -> str | None:
    """The one numeric key in which these combinations differ; None where there is none, or several."""
    keys = dict.fromkeys(key for fixed in combinations for key in fixed)
    varying = [key for key in keys if len({repr(fixed.get(key)) for fixed in combinations}) > 1]
    if len(varying) == 1 and is_numeric([fixed.get(varying[0]) for fixed in combinations]):
        return varying[0]
    return None


def seed_exponents(series: ScalingSeries) -> dict[Any, float]:
    """Seed -> exponent of A * D^-alpha fitted to it alone."""
    fits = {seed: fit_power_law([points], FORMS[0]) for seed, points in series.points.items()}
    return {seed: law.exponent.value for seed, law in fits.items() if isinstance(law, PowerLaw)}


def slope_over_key(found: Sequence[tuple[Mapping[str, Any], Mapping[Any, float]]]) -> tuple[str, Estimate] | None:
    """How values (keys of the grid, seed -> value) change with the one key in which they differ."""
    key = varying_key([fixed for fixed, _ in found])
    if key is None:
        return None
    lines: dict[Any, list[tuple[float, float]]] = {}
    for fixed, by_seed in found:
        for seed, value in by_seed.items():
            lines.setdefault(seed, []).append((float(fixed[key]), value))
    slope = slope_interval(lines)
    return None if slope is None else (key, slope)
