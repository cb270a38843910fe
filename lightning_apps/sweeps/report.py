"""The report of a sweep: report.html, table.csv, results.json and the pictures, all in the sweep's folder."""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from lightning_apps.process.console import human_time
from lightning_apps.reports.page import Table, write_page
from lightning_apps.run_files.atomic_files import write_json_atomically, write_text_atomically
from lightning_apps.run_files.directory import check_writable
from lightning_apps.statistics.t_interval import Estimate
from lightning_apps.sweeps.analysis import (
    ContextSeries,
    Effect,
    ScalingSeries,
    effects,
    headline_metrics,
    in_context,
    scaling,
)
from lightning_apps.sweeps.findings import sentences
from lightning_apps.sweeps.pictures import draw_pictures
from lightning_apps.sweeps.results import Array, SweepResults, read_sweep, show
from lightning_apps.sweeps.search_pictures import draw_search
from lightning_apps.sweeps.shared_text import CATEGORIES


def write_sweep_report(folder: Path, *, out: str | None = None) -> tuple[list[Path], list[str]]:
    """Gather the sweep in `folder` and write its report; returns the files, and what they say in sentences.

    Args:
        folder: of the sweep.
        out: folder for the report; None is that of the sweep.

    Raises:
        ConfigError: there is no sweep, or a run's file is damaged.
    """
    results = read_sweep(folder)
    if out is not None:
        folder = Path(out)
        results = replace(results, folder=folder)
    check_writable(folder, "out=... writes elsewhere")
    studied = results.budget_key is not None or CATEGORIES in results.factors
    fits = scaling(results)
    contexts = in_context(results)
    said = sentences(results, fits if studied else [], contexts)
    pictures = draw_pictures(results, fits, contexts, studied=studied)
    if results.state.search is not None:
        pictures = [*draw_search(results.state.search, results.state.grid, folder), *pictures]
    write_text_atomically(folder / "table.csv", runs_csv(results))
    write_json_atomically(folder / "results.json", as_json(results, fits if studied else [], contexts, said))
    write_page(
        folder / "report.html", "sweep.html", f"Sweep {results.state.name}",
        overview=overview(results), said=said, pictures=pictures, means=means_table(results),
        fits=fits_table(results, fits if studied else []), runs=runs_table(results),
        unfinished=[job for job in results.jobs if job.status != "completed"],
    )  # fmt: skip
    files = [folder / name for name in ("report.html", "table.csv", "results.json")]
    return [*files, *(path for path, _, _ in pictures)], said


def overview(results: SweepResults) -> list[tuple[str, str]]:
    """What was run, and how far it got."""
    counts = Counter(job.status for job in results.jobs)
    commits = sorted({job.commit[:12] + job.commit[40:] for job in results.completed if job.commit})
    wall_s = sum(job.wall_s or 0.0 for job in results.jobs)
    tokens = sum(job.tokens or 0 for job in results.jobs)
    entries = [
        ("experiment", results.state.experiment),
        ("grid", "; ".join(f"{key}: {', '.join(map(show, values))}" for key, values in results.state.grid.items())),
        ("jobs", ", ".join(f"{count} {status}" for status, count in counts.most_common())),
        ("together", f"{tokens:,} tokens, {human_time(wall_s)} of runs"),
        ("code", ", ".join(commits) or "unknown"),
        ("command", results.state.command),
    ]
    if len(commits) > 1:
        entries.append(("mind", "the runs come from different commits"))
    return entries


def number(value: float | None) -> str:
    """Five digits for the page; table.csv has them all."""
    if value is None or not np.isfinite(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1e5 else f"{value:,.5g}"


def plus_minus(estimate: Estimate | None, whole: int) -> str:
    """`4.21 ± 0.03`; the number of runs where some lack the metric."""
    if estimate is None:
        return "–"
    half = "" if estimate.high is None else f" ± {estimate.high - estimate.value:.2g}"
    return number(estimate.value) + half + (f" (n = {estimate.n})" if estimate.n != whole else "")


def means_table(results: SweepResults) -> Table:
    """A row for every combination of the keys other than the seed."""
    wanted = [f"{split_name}/{name}" for name in ("perplexity", "bits_per_byte") for split_name in ("val", "test")]
    metrics = headline_metrics(results)
    metrics += [name for name in wanted if name in results.metrics and name not in metrics]
    head = [*(results.labels[key] for key in results.factors), "runs", *metrics]
    rows = [
        [
            *(show(group.values[key]) for key in results.factors),
            str(len(group.jobs)),
            *(plus_minus(group.mean(metric), len(group.jobs)) for metric in metrics),
        ]
        for group in results.groups()
    ]
    caption = (
        "Final metrics of completed runs: mean over seeds ± half of the 95 % t interval; no ± where there is one run."
    )
    return Table(caption, head, rows)


def fits_table(results: SweepResults, fits: Sequence[ScalingSeries]) -> Table:
    """A row for every fit, and for every series that allows none."""
    rows = []
    for series in fits:
        name = results.label(series.fixed)
        source = "final losses of budgets" if series.source == "budgets" else "evaluations in longest runs"
        for law in series.laws:
            alpha = law.exponent
            interval = "–" if alpha.low is None else f"{number(alpha.low)} to {number(alpha.high)}"
            method = f"t over {alpha.n} seeds" if law.method == "seeds" else "covariance of one fit"
            span = f"{law.tokens[0]:,.0f} to {law.tokens[1]:,.0f}"
            rows.append(
                [
                    name, f"L = {law.form}", source, str(law.num_points), span,
                    number(alpha.value), interval, method, number(law.irreducible) if law.irreducible else "–",
                    f"{law.r_squared:.4f}", "; ".join([*law.problems, *law.cautions]) or "nothing speaks against it",
                ]
            )  # fmt: skip
        rows += [[name, refusal, source, *["–"] * 7, "not fitted"] for refusal in series.refusals]
    head = [
        "runs", "form", "points are", "points", "tokens", "alpha", "95 % interval", "interval from", "E", "R²",
        "verdict",
    ]  # fmt: skip
    return Table("Power laws", head, rows, text=(0, 1, 2, 7), long=(10,))


def runs_table(results: SweepResults) -> Table:
    """A row for every job of the state."""
    keys = list(results.state.grid)
    head = [*(results.labels[key] for key in keys), "status", "steps", "tokens", "seconds", *results.metrics]
    rows = [
        [
            *(show(job.values.get(key)) for key in keys),
            job.status,
            *(number(value) for value in (job.steps, job.tokens, job.wall_s)),
            *(number(job.metrics.get(metric)) for metric in results.metrics),
        ]
        for job in results.jobs
    ]
    caption = "Every job; metrics are those of the last evaluation. Runs that are not complete count nowhere else."
    return Table(caption, head, rows, text=(len(keys),))


def runs_csv(results: SweepResults) -> str:
    """Every job with full keys and all digits; empty where there is no value."""
    keys, text = list(results.state.grid), io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["job", *keys, "status", "reason", "optimizer_steps", "tokens_seen", "wall_s", *results.metrics, "directory"]
    )
    for job in results.jobs:
        values = [job.steps, job.tokens, job.wall_s, *(job.metrics.get(metric) for metric in results.metrics)]
        writer.writerow(
            [
                job.name, *(job.values.get(key) for key in keys), job.status, job.reason,
                *("" if value is None else repr(value) for value in values), job.directory,
            ]
        )  # fmt: skip
    return text.getvalue()


def as_json(
    results: SweepResults, fits: Sequence[ScalingSeries], contexts: Sequence[ContextSeries], said: Sequence[str]
) -> dict[str, Any]:
    """Everything the page shows, for programs."""
    return {
        "sweep": results.state.name,
        "experiment": results.state.experiment,
        "grid": results.state.grid,
        "jobs": {job.name: {"status": job.status, "reason": job.reason} for job in results.jobs},
        "groups": [
            {
                "values": group.values,
                "runs": [job.name for job in group.jobs],
                "metrics": {name: _plain(group.mean(name)) for name in results.metrics},
            }
            for group in results.groups()
        ],
        "effects": [_effect_json(effect) for name in results.metrics for effect in effects(results, name)],
        "scaling": [
            {
                "values": series.fixed,
                "source": series.source,
                "points": {str(seed): [array.tolist() for array in points] for seed, points in series.points.items()},
                "laws": [asdict(law) for law in series.laws],
                "not_fitted": series.refusals,
            }
            for series in fits
        ],
        "in_context": [
            {
                "values": series.fixed,
                "runs": series.num_seeds,
                "band": series.band,
                "position": series.curves.position.tolist(),
                "chosen": _curves_json(series.curves.chosen),
                "held_out": None if series.curves.held_out is None else _curves_json(series.curves.held_out),
                "gain_by_seed": {str(seed): value for seed, value in series.gains.items()},
                "gap_by_seed": {str(seed): value for seed, value in series.gaps.items()},
            }
            for series in contexts
        ],
        "says": list(said),
    }  # fmt: skip


def _plain(estimate: Estimate | None) -> dict[str, Any] | None:
    return None if estimate is None else asdict(estimate)


def _effect_json(effect: Effect) -> dict[str, Any]:
    means = {str(value): _plain(mean) for value, mean in effect.means.items()}
    return {**vars(effect), "means": means, "slope": _plain(effect.slope)}


def _curves_json(curves: Sequence[Array | None]) -> dict[str, list[float] | None]:
    return {
        name: None if curve is None else curve.tolist()
        for name, curve in zip(("mean", "low", "high"), curves, strict=True)
    }
