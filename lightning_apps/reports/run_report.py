"""The report of one run: `<run>/report.html`."""

from pathlib import Path
from typing import Any

from lightning_apps.config.open_run import read_run
from lightning_apps.errors import ConfigError
from lightning_apps.process.console import human_time
from lightning_apps.reports.page import Table, write_page
from lightning_apps.run_files.directory import check_writable, leads_out, read_summary


def write_run_report(place: str, *, out: str | None = None) -> list[Path]:
    """Put a run's summary, pictures, metrics and configuration on one page; returns the file.

    Args:
        place: directory or URL of the run.
        out: folder for the page; None is that of the run.

    Raises:
        ConfigError: no run is there, or it has no summary yet.
    """
    directory, _ = read_run(place)
    folder = directory.path if out is None else Path(out)
    check_writable(folder, "out=... writes elsewhere")
    summary = read_summary(directory)
    if summary is None:
        raise ConfigError(
            f"run={place}: it has no summary.json yet; it is still running, or was killed before it wrote one"
        )
    try:
        facts, tables = overview(summary), metrics_tables(summary)
        title = f"Run {summary['experiment']}/{summary['name']}"
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"run={place}: its summary.json is not that of a run ({type(error).__name__}: {error}); the run's command "
            "with run.resume=auto writes it again"
        ) from error
    found = {*directory.path.glob("*.png"), *directory.path.glob("in_context/*.png")}
    # a link in somebody else's run may lead to any file of this machine
    pictures = sorted(path for path in found if path.is_file() and not leads_out(path, directory.path))
    path = folder / "report.html"
    config = directory.config.read_text(encoding="utf-8", errors="replace")
    write_page(path, "run.html", title, overview=facts, tables=tables, pictures=pictures, config=config)
    return [path]


def overview(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """What happened, in a few lines."""
    rate = summary["tokens_per_s"]
    return [
        ("status", f"{summary['status']}: {summary['reason']}"),
        ("seed", str(summary["seed"])),
        ("parameters", f"{summary['parameters']['total']:,}, {summary['parameters']['trainable']:,} trainable"),
        ("length", f"{summary['optimizer_steps']:,} of {summary['planned_steps']:,} optimizer steps"),
        ("tokens", f"{summary['tokens_seen']:,}, {summary['target_tokens_seen']:,} of them targets"),
        ("time", human_time(summary["wall_s"]) + (f", {rate:,.0f} tokens/s" if rate else "")),
        ("code", str(summary["git_commit"] or "unknown")),
        ("command", summary["command"]),
    ]


def metrics_tables(summary: dict[str, Any]) -> list[Table]:
    """Final metrics, those of validation beside those of the best checkpoint; a metric's interval stands behind it."""
    best = summary["best"] or {"metrics": {}, "step": "none", "metric": "none"}
    final, chosen = summary["metrics"], best["metrics"]
    names = sorted({*final, *chosen})
    ends = {f"{name}_{end}" for name in names for end in ("low", "high") if has_interval(name)}
    rows = [
        [name, _number(final, name), _number(chosen, name)]
        for name in names
        if name not in ends and name.count("/") < 2  # those of single classes are in per_class.csv
    ]
    compared = [row for row in rows if row[0] in chosen]
    alone = [row[:2] for row in rows if row[0] not in chosen]
    tables = []
    if compared:
        caption = f"At the end, and at the best checkpoint by {best['metric']}"
        tables.append(Table(caption, ["metric", "final", f"best, step {best['step']}"], compared, text=(0,)))
    if alone:
        tables.append(Table("Measured once, at the end", ["metric", "final"], alone, text=(0,)))
    return tables


def has_interval(name: str) -> bool:
    """Whether `<name>_low` and `<name>_high` are ends of this metric: behind a second slash stand names of classes."""
    return name.count("/") == 1


def _number(metrics: dict[str, float | None], name: str) -> str:
    value = metrics.get(name)
    low, high = (metrics.get(f"{name}_{end}") if has_interval(name) else None for end in ("low", "high"))
    if value is None:
        return "–"
    return f"{value:,.6g}" + ("" if low is None or high is None else f" ({low:,.4g} to {high:,.4g})")
