"""Which pictures a sweep's report has, and what is on each."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lightning_apps.sweeps.analysis import (
    ContextSeries,
    ScalingSeries,
    headline_metrics,
    is_numeric,
    split,
    varying_key,
)
from lightning_apps.sweeps.results import REPEAT, SweepResults, show, sort_key
from lightning_apps.sweeps.scaling_picture import (
    MetricLine,
    PositionLine,
    TokenLine,
    draw_final_metrics,
    draw_in_context,
    draw_loss_against_tokens,
)

MAX_PICTURES = 4
"""Pictures of final metrics, one for each key of the grid."""
MAX_PANELS = 3
Picture = tuple[Path, str, str]
"""File, text in place of the picture, caption."""


def draw_pictures(
    results: SweepResults, fits: Sequence[ScalingSeries], contexts: Sequence[ContextSeries], *, studied: bool
) -> list[Picture]:
    """Draw what there are data for, into the sweep's folder; returns the pictures in the order of the page."""
    pictures = [_final_picture(results, key) for key in axis_keys(results)]
    if any(len(series.points) for series in fits):
        path = results.folder / "loss_tokens.png"
        draw_loss_against_tokens(
            path, [_token_line(results, series, studied=studied) for series in fits], ordered=_ordered(fits)
        )
        said = "Validation loss against training tokens, both axes logarithmic; a line for each of "
        pictures.append((path, f"Chart. {said}{len(fits)} combinations of the grid.", f"{said}{_fewer(len(fits))}."))
    if contexts:
        path = results.folder / "in_context.png"
        panels = {"chosen categories": [_position_line(results, series, "chosen") for series in contexts]}
        if any(series.pooled.held_out is not None for series in contexts):
            panels["held-out categories"] = [
                _position_line(results, series, "held_out") for series in contexts if series.pooled.held_out is not None
            ]
        draw_in_context(path, panels, ordered=_ordered(contexts), band=contexts[0].band.replace(" over", "\nover"))
        said = "Mean loss by position in the window, means of growing groups of positions"
        budget = results.budget_key
        largest = f", runs of the largest {results.labels[budget]}" if budget else ""
        pictures.append((path, f"Chart. {said}{largest}. What it says gives the gains.", f"{said}{largest}."))
    return pictures


def _fewer(number_of_lines: int) -> str:
    return f"{number_of_lines} combinations of the grid" if number_of_lines > 1 else "the sweep"


def axis_keys(results: SweepResults) -> list[str]:
    """Keys of the grid that completed runs differ in; a budget has the picture of tokens, unless it is the only one."""
    groups = results.groups()
    varied = [key for key in results.factors if len({repr(group.values[key]) for group in groups}) > 1]
    others = [key for key in varied if key != results.budget_key]
    return (others or varied)[:MAX_PICTURES]


def _ordered(series: Sequence[ScalingSeries] | Sequence[ContextSeries]) -> bool:
    return varying_key([entry.fixed for entry in series]) is not None


def _final_picture(results: SweepResults, key: str) -> Picture:
    families = split(results.groups(), key)
    # by their text: lists and mappings have no hash, and True would be 1
    values = sorted({repr(group.values[key]): group.values[key] for group in results.groups()}.values(), key=sort_key)
    numeric = is_numeric(values)
    log = numeric and min(values) > 0 and max(values) / min(values) > 10
    place = {repr(value): float(value) if numeric else float(rank) for rank, value in enumerate(values)}
    metrics = headline_metrics(results)[:MAX_PANELS]
    panels = {
        metric: [
            MetricLine(
                results.label(fixed),
                {place[repr(g.values[key])]: mean for g in family if (mean := g.mean(metric)) is not None},
                [(place[repr(g.values[key])], value) for g in family for value in g.metric(metric)],
            )
            for fixed, family in families
        ]
        for metric in metrics
    }
    label = results.labels[key]
    path = results.folder / f"final_{label.replace('.', '_')}.png"
    draw_final_metrics(
        path, panels, key=label, ticks={place[repr(value)]: show(value) for value in values}, log=log,
        ordered=varying_key([fixed for fixed, _ in families]) is not None, joined=numeric,
    )  # fmt: skip
    said = f"Final {' and '.join(metrics)} against {label}: every run, the mean over seeds, its 95 % t interval"
    return path, f"Chart. {said}. The table of means has the numbers.", f"{said}."


def _token_line(results: SweepResults, series: ScalingSeries, *, studied: bool) -> TokenLine:
    mine = [job for job in results.completed if _agrees(job.values, series.fixed)]
    longest = max((job.tokens or 0 for job in mine), default=0)
    finals = [(float(job.tokens), job.metrics["val/loss"]) for job in mine if job.tokens and "val/loss" in job.metrics]
    return TokenLine(
        results.label(series.fixed),
        [job.curve for job in mine if (job.tokens or 0) >= 0.999 * longest],
        [(tokens, loss) for tokens, loss in finals if np.isfinite(loss) and loss > 0],
        series.believed if studied else None,
    )


def _agrees(values: Mapping[str, Any], fixed: Mapping[str, Any]) -> bool:
    return all(repr(values.get(key)) == repr(value) for key, value in fixed.items() if key != REPEAT)


def _position_line(results: SweepResults, series: ContextSeries, which: str) -> PositionLine:
    pooled = series.pooled
    curves = pooled.chosen if which == "chosen" or pooled.held_out is None else pooled.held_out
    budget = results.budget_key
    label = results.label(series.fixed, without=[budget] if budget else [])
    return PositionLine(label, pooled.position, *curves)
