"""What lies under outputs/: a table for the terminal, and index.html."""

import os
from pathlib import Path
from urllib.parse import quote

from markupsafe import Markup

from lightning_apps.errors import ConfigError
from lightning_apps.process.console import human_time
from lightning_apps.reports.page import Table, render, showable, write_page
from lightning_apps.reports.run_record import number, read_record
from lightning_apps.reports.run_report import monitor, show, with_interval
from lightning_apps.run_files.directory import check_writable

MOST_RUNS = 2_000
HEAD = ["run", "status", "steps", "time", "chosen by", "value"]


def write_index(root: Path, *, out: str | None = None) -> tuple[list[Path], list[str]]:
    """Write the page of all runs; returns the file, and the lines of the same table for a terminal.

    Args:
        root: folder of the experiments' folders.
        out: folder for the page; None is the root.

    Raises:
        ConfigError: no run is there, or the folder cannot be written.
    """
    places = sorted(path.parent for path in root.glob("*/*/config.yaml"))[:MOST_RUNS]
    if not places:
        raise ConfigError(f"{root}: no run is there; output_root=... looks elsewhere, run=... and sweep=... name one")
    folder = root if out is None else Path(out)
    check_writable(folder, "out=... writes elsewhere")
    rows = [row(place) for place in places]
    linked = [
        [_link(place / "report.html", folder, cells[0]), *cells[1:]] for place, cells in zip(places, rows, strict=True)
    ]
    sweeps = [
        [_link(path.parent / "report.html", folder, path.parent.name)]
        for path in sorted(root.glob("sweeps/*/sweep.json"))
    ]
    write_page(
        folder / "index.html", "index.html", f"Runs under {root}",
        style=render("report.css"), script=render("report.js"), sweeps=Table("Sweeps", ["sweep"], sweeps, text=(0,)),
        runs=Table(f"{len(rows):,} runs; each head sorts.", HEAD, linked, text=(0, 1, 4), sortable=True),
    )  # fmt: skip
    return [folder / "index.html"], terminal_lines(rows)


def row(place: Path) -> list[str]:
    """A run in a line."""
    try:
        record = read_record(str(place), is_brief=True)
    except ConfigError as error:
        return [f"{place.parent.name}/{place.name}", f"damaged: {error}"[:80], *["–"] * 4]
    name, wall_s = monitor(record), number(record.summary.get("wall_s"))
    metrics = record.metrics(at_best=True) or record.metrics()
    return [
        f"{place.parent.name}/{place.name}",
        record.status,
        show(record.steps),
        "–" if wall_s is None else human_time(wall_s),
        name or "–",
        "–" if name is None else with_interval(metrics, name),
    ]


def terminal_lines(rows: list[list[str]]) -> list[str]:
    """The table in columns."""
    cells = [[showable(cell).replace("\n", " ") for cell in line] for line in [HEAD, *rows]]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEAD))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]


def _link(page: Path, folder: Path, text: str) -> str:
    """A link to a page that is there; else the text."""
    if not page.is_file():
        return text
    target = quote(os.path.relpath(page, folder))
    return Markup('<a href="{}">{}</a>').format(target if "/" in target else f"./{target}", showable(text))
