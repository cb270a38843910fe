"""Runs side by side: what differs in their configuration, curves over each other, metrics, paired intervals."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_apps.errors import ConfigError
from lightning_apps.reports.curves import FIRST_CHARTS, charts
from lightning_apps.reports.page import Table, render, write_page
from lightning_apps.reports.run_record import RunRecord, read_record
from lightning_apps.reports.run_report import monitor, outcome, show, with_interval
from lightning_apps.run_files.directory import check_writable
from lightning_apps.run_files.metrics import headlines_first, is_interval_end
from lightning_apps.statistics.paired_comparison import compare_predictions

MOST_RUNS = 20


def write_comparison(places: Sequence[str], *, out: str | None = None) -> list[Path]:
    """Write the page of several runs; returns the file.

    Args:
        places: directories or URLs of the runs; differences are to the first.
        out: folder for the page; None is the one above the first run.

    Raises:
        ConfigError: too few or too many runs, one is not there, or the folder cannot be written.
    """
    if not 2 <= len(places) <= MOST_RUNS:
        raise ConfigError(f"run=[...]: {len(places)} runs; from 2 to {MOST_RUNS} can be laid side by side")
    records = [read_record(place) for place in places]
    folder = records[0].directory.path.parent if out is None else Path(out)
    check_writable(folder, "out=... writes elsewhere")
    names = labels(records)
    drawn = charts(
        [(name, record.rows) for name, record in zip(names, records, strict=True)], monitor=monitor(records[0])
    )
    write_page(
        folder / "comparison.html", "comparison.html", f"{len(records)} runs side by side",
        style=render("report.css"), script=render("report.js"), charts=drawn, first_charts=FIRST_CHARTS,
        outcomes=[(name, outcome(record)) for name, record in zip(names, records, strict=True)],
        settings=settings_table(records, names), metrics=metrics_table(records, names),
        paired=paired_table(records, names),
        told=[f"{name}: {text}" for name, record in zip(names, records, strict=True) for text in record.told],
    )  # fmt: skip
    return [folder / "comparison.html"]


def labels(records: Sequence[RunRecord]) -> list[str]:
    """What each run is called: by its name, by its path where another has the same."""
    found = [record.name for record in records]
    return [
        name if found.count(name) == 1 else str(record.directory.path)
        for name, record in zip(found, records, strict=True)
    ]


def settings_table(records: Sequence[RunRecord], names: Sequence[str]) -> Table:
    """Settings in which the runs differ."""
    keys = sorted({key for record in records for key in record.settings})
    values = {key: [record.settings.get(key, "not set") for record in records] for key in keys}
    rows = [[key, *row] for key, row in values.items() if len(set(row)) > 1]
    return Table("Settings that differ", ["key", *names], rows, text=range(len(names) + 1))


def metrics_table(records: Sequence[RunRecord], names: Sequence[str]) -> Table:
    """A row for each metric: on validation that of the best evaluation where one was chosen, on test the last."""
    metrics = [record.metrics() | record.metrics(at_best=True) for record in records]
    found = headlines_first({key for values in metrics for key in values}, monitor=monitor(records[0]))
    rows = [
        [key, *(with_interval(values, key) for values in metrics)]
        for key in found
        if key.count("/") < 2 and not is_interval_end(key, found)
    ]
    caption = "Validation as the best evaluation measured it, or else the last; 95 % intervals in brackets."
    return Table(caption, ["metric", *names], rows, text=(0,))


def paired_table(records: Sequence[RunRecord], names: Sequence[str]) -> Table:
    """Each run against the first on the same samples, where both answered them."""
    rows: list[list[str]] = []
    answers = [[_with_verdict(row) for _, row in record.predictions] for record in records]
    for name, other in zip(names[1:], answers[1:], strict=True):
        try:
            compared = compare_predictions(answers[0], other) if answers[0] and other else []
        except (ConfigError, KeyError, TypeError, ValueError, OverflowError):  # other samples, or no run's file
            continue
        for c in compared:
            interval = f"{c.difference:+.4g} ({c.difference_low:+.4g} to {c.difference_high:+.4g})"
            p_value = "–" if c.p_value is None else f"{c.p_value:.2g}"
            score, means = c.score.removeprefix("right_"), (show(c.first), show(c.second))
            rows.append([name, score, f"{c.num_questions:,}", *means, interval, f"{c.won:,}", f"{c.lost:,}", p_value])
    caption = f"Against {names[0]} on the same samples: paired 95 % bootstrap intervals, exact McNemar test."
    head = ["run", "score", "samples", "first", "this", "difference", "higher", "lower", "p"]
    return Table(caption, head, rows, text=(0, 1))


def _with_verdict(row: Mapping[str, Any]) -> dict[str, Any]:
    """A classifier's answer with whether it is right, beside the probability that it gives its label."""
    return {**row, "right_label": row.get("output") == row.get("target")} if "confidence" in row else dict(row)
