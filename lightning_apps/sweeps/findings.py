"""What the results of a sweep say, in words.

Every sentence is made from the numbers it states; every estimate comes with its 95 % interval, or the remark that there
is none. A direction is named where the interval excludes zero.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lightning_apps.statistics.t_interval import Estimate, mean_interval
from lightning_apps.sweeps.analysis import (
    FORMS,
    ContextSeries,
    Effect,
    ScalingSeries,
    effects,
    headline_metrics,
    seed_exponents,
    seed_of,
    slope_over_key,
    split,
)
from lightning_apps.sweeps.results import Group, SweepResults, show
from lightning_apps.sweeps.scaling_fit import PowerLaw
from lightning_apps.sweeps.shared_text import CATEGORIES, shared_text

MAX_ENTRIES = 8
"""More combinations than this are left to results.json."""


def sentences(results: SweepResults, fits: Sequence[ScalingSeries], contexts: Sequence[ContextSeries]) -> list[str]:
    """What the numbers say, a few sentences for each metric and analysis.

    Args:
        results: all jobs of the sweep.
        fits: power laws of loss against tokens; where there are any, the budget has no sentence of its own.
        contexts: in-context curves.
    """
    said = []
    for metric in headline_metrics(results):
        for factor in results.factors:
            if not fits or factor != results.budget_key:
                said += factor_sentences(results, metric, factor)
    said += scaling_sentences(results, fits)
    said += context_sentences(results, contexts)
    if said and CATEGORIES in results.factors:
        said.append(
            "Read with care: a run is measured on the categories it was trained on (held-out metrics on the others), "
            "so num_categories changes the text that is measured as well as the training."
        )
        said += shared_text_sentences(results)
    return said or ["Nothing yet: no two completed runs differ in a key of the grid other than the seed."]


def factor_sentences(results: SweepResults, metric: str, factor: str) -> list[str]:
    """One sentence on a metric against a key of the grid, with an entry for every combination of the other keys."""
    label = results.labels[factor]
    found = [effect for effect in effects(results, metric) if effect.factor == factor]
    if found:
        unit = f"for ten times the {label}" if found[0].per_tenfold else f"for each step of 1 in {label}"
        entries = [effect_words(results, effect) for effect in found]
        return [f"{metric} against {label}, change {unit}: {listed(entries)}."]
    entries = [
        words
        for fixed, family in split(results.groups(), factor)
        if (words := contrast_words(results, metric, factor, fixed, family)) is not None
    ]
    return [f"{metric} by {label}: {listed(entries)}."] if entries else []


def effect_words(results: SweepResults, effect: Effect) -> str:
    """`at max_tokens 1,000,000 it rises by 0.1 (0.08 to 0.12, 3 seeds), from 3.6 at 1 to 4 at 5`."""
    first, last = min(effect.means), max(effect.means)
    ends = f"from {effect.means[first].value:.4g} at {show(first)} to {effect.means[last].value:.4g} at {show(last)}"
    slope = effect.slope
    if slope is None:
        return f"{_where(results, effect.fixed)}no seed saw two values, {ends}"
    values = [effect.means[x].value for x in sorted(effect.means)]
    steady = "" if sorted(values) in (values, values[::-1]) else ", but not steadily"
    return (
        f"{_where(results, effect.fixed)}it {direction_words(slope)}, {slope.value:+.3g} {interval_words(slope)}, "
        f"{ends}{steady}"
    )


def contrast_words(
    results: SweepResults, metric: str, factor: str, fixed: Mapping[str, Any], family: Sequence[Group]
) -> str | None:
    """Lowest and highest mean among values that have no order, and their difference between runs of the same seed."""
    means = [(group, mean) for group in family if (mean := group.mean(metric)) is not None]
    if len(means) < 2:
        return None
    ordered = sorted(means, key=lambda entry: entry[1].value)
    lowest, highest = ordered[0], ordered[-1]
    by_seed = [{seed_of(job): job.metrics.get(metric, np.nan) for job in group.jobs} for group, _ in (lowest, highest)]
    differences = [by_seed[1][seed] - value for seed, value in by_seed[0].items() if seed in by_seed[1]]
    differences = [value for value in differences if np.isfinite(value)]
    tail = "no seed in common"
    if differences:
        estimate = mean_interval(differences)
        tail = f"difference {estimate.value:.3g} {interval_words(estimate)}"
        if estimate.has_interval and not estimate.excludes_zero:
            tail += ", not clear"
        if len(means) > 2:
            tail += f", optimistic because these are the extremes of {len(means)}"
    return (
        f"{_where(results, fixed)}lowest with {show(lowest[0].values[factor])}, {lowest[1].value:.4g}, highest with "
        f"{show(highest[0].values[factor])}, {highest[1].value:.4g}; {tail}"
    )


def scaling_sentences(results: SweepResults, fits: Sequence[ScalingSeries]) -> list[str]:
    """One sentence for each form of the law, and one for the direction of the exponent where it can be named."""
    said = []
    for form in FORMS:
        fitted = [(results.label(series.fixed), law) for series in fits for law in series.laws if law.form == form]
        if fitted:
            entries = [f"{name}: {law_words(law)}" for name, law in fitted]
            said.append(f"Loss against tokens, L = {form}, {_points_words(fits)}: {listed(entries)}.")
        for caution in dict.fromkeys(caution for _, law in fitted for caution in law.cautions):
            names = [name for name, law in fitted if caution in law.cautions]
            said[-1] += f" Mind for {'all of them' if len(names) == len(fitted) else ', '.join(names)}: {caution}."
    unfitted = [results.label(series.fixed) for series in fits if not series.laws]
    if unfitted:
        said.append(f"Loss against tokens has no fit for lack of points: {listed(unfitted)}.")
    if (slope := slope_over_key([(series.fixed, seed_exponents(series)) for series in fits])) is not None:
        key, estimate = slope
        said.append(
            f"The exponent of {FORMS[0]} {direction_words(estimate)} with {results.labels[key]}: {estimate.value:+.3g} "
            f"{interval_words(estimate)} for each step of 1."
        )
    return said


def _points_words(fits: Sequence[ScalingSeries]) -> str:
    sources = {series.source for series in fits}
    low = min(law.tokens[0] for series in fits for law in series.laws)
    high = max(law.tokens[1] for series in fits for law in series.laws)
    text = f"{low:,.0f} to {high:,.0f} tokens"
    if sources == {"budgets"}:
        return f"final losses of separate budgets, {text}"
    mixed = "in part " if len(sources) > 1 else ""
    narrow = any(law.method == "covariance" for series in fits for law in series.laws)
    return (
        f"{mixed}evaluations within the longest runs, {text} (there the learning rate has not decayed yet, so this is "
        "not the law of separate budgets"
        + ("; evaluations of one run hang together, so an interval from a covariance is too narrow)" if narrow else ")")
    )


def law_words(law: PowerLaw) -> str:
    """A fit and its problems; what there is to mind is said once for all series."""
    alpha = law.exponent
    if alpha.low is None or alpha.high is None:
        interval = "no interval"
    elif law.method == "seeds":
        interval = f"{alpha.low:.3g} to {alpha.high:.3g}, t over {alpha.n} seeds"
    else:
        interval = f"{alpha.low:.3g} to {alpha.high:.3g}, from the covariance of one fit"
    offset = f", E {law.irreducible:.3g}" if law.irreducible else ""
    text = f"alpha {alpha.value:.3g} ({interval}){offset}, R² {law.r_squared:.4f}"
    if law.problems:
        return f"{text}, not to be believed ({'; '.join(law.problems)})"
    return text


def context_sentences(results: SweepResults, contexts: Sequence[ContextSeries]) -> list[str]:
    """The gain from the beginning to the end of the window, the gap to held-out categories, and their directions."""
    falls = "In context the loss falls from the first to the last tenth of the window by (nats)"
    above = "At the end of the window held-out categories lie above the chosen ones by (nats)"
    said = []
    budget = results.budget_key
    for text, found in (
        (falls, [(series.fixed, series.gains) for series in contexts]),
        (above, [(series.fixed, series.gaps) for series in contexts]),
    ):
        entries = [
            f"{results.label(fixed, without=[budget] if budget else [])}: "
            f"{estimate_words(mean_interval(list(by_seed.values())))}"
            for fixed, by_seed in found
            if by_seed
        ]
        if not entries:
            continue
        direction = ""
        if (slope := slope_over_key(found)) is not None:
            key, estimate = slope
            direction = (
                f". This {direction_words(estimate)} with {results.labels[key]}: {estimate.value:+.3g} "
                f"{interval_words(estimate)} for each step of 1"
            )
        said.append(f"{text}: {listed(entries)}{direction}.")
    return said


def shared_text_sentences(results: SweepResults) -> list[str]:
    """Loss on the categories that all runs of a seed share, against their number; nothing without such runs."""
    found = shared_text(results)
    if found is None or found.slope is None:
        return []
    first, last = min(found.means), max(found.means)
    names = listed([f"{', '.join(names)} (seed {seed})" for seed, names in found.categories.items()])
    return [
        f"On text that stays the same, the categories in every run of a seed ({names}), the loss "
        f"{direction_words(found.slope)} with num_categories: {found.slope.value:+.3g} {interval_words(found.slope)} "
        f"for each further one, from {found.means[first].value:.4g} at {first} to {found.means[last].value:.4g} at "
        f"{last}; each further category leaves the shared ones a smaller part of the same number of tokens."
    ]


def listed(entries: Sequence[str]) -> str:
    """The entries with semicolons between them, the first MAX_ENTRIES of them."""
    more = len(entries) - MAX_ENTRIES
    return "; ".join(entries[:MAX_ENTRIES]) + (f"; and {more} more in results.json" if more > 0 else "")


def _where(results: SweepResults, fixed: Mapping[str, Any]) -> str:
    return f"at {results.label(fixed)} " if fixed else ""


def direction_words(slope: Estimate) -> str:
    """`rises`, `falls`, or why neither can be said."""
    if not slope.has_interval:
        return "has too few runs to name a direction"
    if not slope.excludes_zero:
        return "shows no clear direction"
    return "rises" if slope.value > 0 else "falls"


def estimate_words(estimate: Estimate) -> str:
    """`4.21 (4.15 to 4.27, 3 seeds)`, or `4.21 (one run)`."""
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.4g} (one run)"
    return f"{estimate.value:.4g} ({estimate.low:.4g} to {estimate.high:.4g}, {estimate.n} seeds)"


def interval_words(estimate: Estimate) -> str:
    """`(0.08 to 0.12, t over 3 seeds)`: the 95 % interval and what it rests on."""
    if estimate.low is None or estimate.high is None:
        return "(one seed, no interval)"
    kind = f"t over {estimate.n} seeds" if estimate.n > 1 else "regression, one seed"
    return f"({estimate.low:.3g} to {estimate.high:.3g}, {kind})"
