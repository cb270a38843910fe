"""What the results of a sweep say, in words.

Every sentence is made from the numbers it states; none of them is there without its interval, or the remark that there
is none.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from lightning_apps.metrics.t_interval import Estimate, mean_interval
from lightning_apps.scaling_fit import PowerLaw
from lightning_apps.sweep_results import Group, SweepResults, show
from lightning_apps.sweep_study import (
    FORMS,
    ContextSeries,
    Effect,
    ScalingSeries,
    context_slope,
    effects,
    exponent_slope,
    headline_metrics,
    is_numeric,
    seed_of,
    split,
)

CATEGORIES = "data.num_categories"
NAMES: dict[str, Literal["gains", "gaps"]] = {"gain in context": "gains", "gap to held-out categories": "gaps"}


def sentences(results: SweepResults, fits: Sequence[ScalingSeries], contexts: Sequence[ContextSeries]) -> list[str]:
    """What the numbers say, in words."""
    said = [sentence for metric in headline_metrics(results) for sentence in metric_sentences(results, metric)]
    said += scaling_sentences(results, fits)
    said += context_sentences(results, contexts)
    if said and CATEGORIES in results.factors:
        said.append(
            "Read with care: a run is measured on the categories it was trained on (held-out metrics on the others), "
            "so num_categories changes the text that is measured as well as the training."
        )
    return said or ["Nothing yet: no two completed runs differ in a key of the grid other than the seed."]


def metric_sentences(results: SweepResults, metric: str) -> list[str]:
    """One sentence for every numeric key and combination of the others; the spread between the values of other keys."""
    said = [effect_sentence(results, effect) for effect in effects(results, metric)]
    for factor in results.factors:
        for fixed, family in split(results.groups(), factor):
            means = {
                repr(group.values[factor]): (group, mean)
                for group in family
                if (mean := group.mean(metric)) is not None
            }
            if len(means) > 1 and not is_numeric([group.values[factor] for group, _ in means.values()]):
                ordered = sorted(means.values(), key=lambda entry: entry[1].value)
                said.append(_contrast_sentence(results, metric, factor, fixed, ordered[0], ordered[-1]))
    return said


def effect_sentence(results: SweepResults, effect: Effect) -> str:
    """`At max_tokens 1,000,000, val/loss rises with num_categories: ...`."""
    label = results.labels[effect.factor]
    first, last = min(effect.means), max(effect.means)
    unit = f"for ten times the {label}" if effect.per_tenfold else f"for each step of 1 in {label}"
    direction = direction_words(effect.slope)
    values = [effect.means[x].value for x in sorted(effect.means)]
    if effect.slope is not None and effect.slope.excludes_zero and sorted(values) not in (values, values[::-1]):
        direction += ", not steadily,"
    slope = "" if effect.slope is None else f"; {effect.slope.value:+.3g} {unit} ({interval_words(effect.slope)})"
    return (
        f"{_where(results, effect.fixed)}{effect.metric} {direction} with {label}: {estimate_words(effect.means[first])} at "
        f"{show(first)}, {estimate_words(effect.means[last])} at {show(last)}{slope}."
    )


def _contrast_sentence(
    results: SweepResults,
    metric: str,
    factor: str,
    fixed: Mapping[str, Any],
    lowest: tuple[Group, Estimate],
    highest: tuple[Group, Estimate],
) -> str:
    label = results.labels[factor]
    by_seed = [{seed_of(job): job.metrics.get(metric, np.nan) for job in group.jobs} for group, _ in (lowest, highest)]
    shared = [seed for seed in by_seed[0] if seed in by_seed[1]]
    differences = [by_seed[1][seed] - by_seed[0][seed] for seed in shared]
    differences = [value for value in differences if np.isfinite(value)]
    tail = "no seed in common"
    if differences:
        estimate = mean_interval(differences)
        tail = f"difference {estimate.value:.3g} between runs of the same seed ({interval_words(estimate)})"
    return (
        f"{_where(results, fixed)}{metric} is lowest with {label} {show(lowest[0].values[factor])} "
        f"({estimate_words(lowest[1])}) and highest with {show(highest[0].values[factor])} "
        f"({estimate_words(highest[1])}); {tail}."
    )


def scaling_sentences(results: SweepResults, fits: Sequence[ScalingSeries]) -> list[str]:
    """One sentence a series, and one for the direction of the exponent where the series differ in one numeric key."""
    said = []
    for series in fits:
        name = results.label(series.fixed)
        if not series.laws:
            said.append(f"Loss against tokens, {name}: no fit ({series.refusals[0]}).")
        for law in series.laws:
            said.append(f"Loss against tokens, {name}, {law_words(law, series.source)}.")
    if (slope := exponent_slope(fits)) is not None:
        key, estimate = slope
        said.append(
            f"The exponent of {FORMS[0]} {direction_words(estimate)} with {results.labels[key]}: {estimate.value:+.3g} "
            f"for each step of 1 ({interval_words(estimate)})."
        )
    return said


def law_words(law: PowerLaw, source: Literal["budgets", "curve"]) -> str:
    """A fit in words, its problems included."""
    alpha = law.exponent
    form = f"L = {law.form}"
    offset = f", E = {law.irreducible:.3g} nats" if law.irreducible else ""
    points = "runs of different budgets" if source == "budgets" else "evaluations within the longest runs"
    how = {
        "seeds": f"t interval over exponents fitted to each of {alpha.n} seeds",
        "covariance": "from the covariance of one fit"
        + (", too narrow because evaluations of one run are not independent" if source == "curve" else ""),
    }[law.method]
    interval = f" ({alpha.low:.3g} to {alpha.high:.3g}; {how})" if alpha.has_interval else ""
    text = (
        f"{form}: alpha = {alpha.value:.3g}{interval}{offset}, R² = {law.r_squared:.4f}, {law.num_points} {points} "
        f"from {law.tokens[0]:,.0f} to {law.tokens[1]:,.0f} tokens"
    )
    if source == "curve":
        text += "; within a run the learning rate has not decayed yet, so this is not the law of separate budgets"
    return text + (f". Not to be believed: {'; '.join(law.problems)}" if law.problems else "")


def context_sentences(results: SweepResults, contexts: Sequence[ContextSeries]) -> list[str]:
    """The gain from the beginning to the end of the window, the gap to held-out categories, and their directions."""
    said = []
    for series in contexts:
        gain = mean_interval(list(series.gains.values()))
        text = (
            f"In context, {results.label(series.fixed)}: the loss falls by {estimate_words(gain)} nats from the first "
        )
        text += "to the last tenth of the window"
        if series.gaps:
            gap = mean_interval(list(series.gaps.values()))
            text += f"; held-out categories lie {estimate_words(gap)} nats above the chosen ones at its end"
        said.append(text + ".")
    for name, values in NAMES.items():
        if (slope := context_slope(contexts, values)) is not None:
            key, estimate = slope
            said.append(
                f"The {name} {direction_words(estimate)} with {results.labels[key]}: {estimate.value:+.3g} nats for each "
                f"step of 1 ({interval_words(estimate)})."
            )
    return said


def _where(results: SweepResults, fixed: Mapping[str, Any]) -> str:
    return f"At {results.label(fixed)}, " if fixed else ""


def direction_words(slope: Estimate | None) -> str:
    """`rises`, `falls`, or why neither can be said."""
    if slope is None or not slope.has_interval:
        return "has too few runs to name a direction"
    if not slope.excludes_zero:
        return "shows no clear direction"
    return "rises" if slope.value > 0 else "falls"


def estimate_words(estimate: Estimate) -> str:
    """`4.21 (4.15 to 4.27, n = 3)`, or `4.21 (n = 1)`."""
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.4g} (n = {estimate.n})"
    return f"{estimate.value:.4g} ({estimate.low:.4g} to {estimate.high:.4g}, n = {estimate.n})"


def interval_words(estimate: Estimate) -> str:
    """What kind of interval it is, and whether it excludes zero."""
    if estimate.low is None or estimate.high is None:
        return "one seed, no interval"
    kind = f"95 % t interval over {estimate.n} seeds" if estimate.n > 1 else "95 % interval of the regression, one seed"
    return (
        f"{kind}: {estimate.low:.3g} to {estimate.high:.3g}, {'excludes' if estimate.excludes_zero else 'includes'} 0"
    )
