"""The report of one run: `<run>/report.html`."""

from pathlib import Path
from typing import Any

from lightning_apps.atomic_files import write_text_atomically
from lightning_apps.errors import ConfigError
from lightning_apps.html_page import details, facts, figure, page, section, table
from lightning_apps.run_directory import open_run, read_summary
from lightning_apps.sweep_jobs import human_time


def write_run_report(place: str) -> list[Path]:
    """Put a run's summary, pictures, metrics and configuration on one page; returns the file.

    Raises:
        ConfigError: no run is there, or it has no summary yet.
    """
    directory, _ = open_run(place)
    summary = read_summary(directory)
    if summary is None:
        raise ConfigError(
            f"run={place}: it has no summary.json yet; it is still running, or was killed before it wrote one"
        )
    pictures = sorted({*directory.path.glob("*.png"), *directory.path.glob("in_context/*.png")})
    parts = [facts(overview(summary))]
    if pictures:
        parts.append(
            section("Pictures", *(figure(path, f"Picture {path.stem} of this run.", path.name) for path in pictures))
        )
    parts.append(section("Metrics", metrics_table(summary)))
    parts.append(
        section("Configuration", details("config.yaml", directory.config.read_text(encoding="utf-8", errors="replace")))
    )
    path = directory.path / "report.html"
    write_text_atomically(path, page(f"Run {summary['experiment']}/{summary['name']}", parts))
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


def metrics_table(summary: dict[str, Any]) -> str:
    """Final metrics beside those of the best checkpoint."""
    best = summary["best"] or {"metrics": {}, "step": "none", "metric": "none"}
    names = sorted({*summary["metrics"], *best["metrics"]})
    rows = [[name, _number(summary["metrics"].get(name)), _number(best["metrics"].get(name))] for name in names]
    caption = f"At the end, and at the best checkpoint by {best['metric']}"
    return table(caption, ["metric", "final", f"best, step {best['step']}"], rows, text=(0,))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.6g}"
