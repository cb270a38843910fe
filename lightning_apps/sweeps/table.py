"""The jobs of a sweep as a table that stays on the terminal: one line a job, with state, step, metric and time left."""

import contextlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lightning_apps.process.console import human_time
from lightning_apps.run_files.directory import RunDirectory
from lightning_apps.run_files.metrics_csv import read_metrics
from lightning_apps.sweeps.state import JobRecord

REFRESH_S = 1.0
SHARE_OF_TIME = 0.05
"""Reading files of long runs takes no more of the engine's time."""
LINES_AROUND = 8
"""Of the terminal, beside the jobs."""
STYLES = {"running": "bold", "done": "green", "failed": "red", "pruned": "yellow", "pending": "dim"}


class Progress:
    """How far a running job is, as its files say.

    Args:
        record: of the job.
        log: of the job.
        metric: to show; a run that does not log it shows its `val/loss`.
    """

    def __init__(self, record: JobRecord, log: Path, metric: str) -> None:
        self.metrics = RunDirectory(Path(record.run_directory)).metrics
        self.log = log
        self.metric = metric
        self.step = 0
        self.total: int | None = None  # planned optimizer steps
        self.value: tuple[str, float] | None = None  # name and last value of the metric
        self._first: tuple[float, int] | None = None  # when the first step was seen, and which
        self._due = 0.0

    def look(self) -> None:
        """Read what is new; a file that cannot be read says nothing."""
        now = time.monotonic()
        if now < self._due:
            return
        with contextlib.suppress(OSError):
            if self.total is None:  # the banner says it once
                text = self.log.read_text(encoding="utf-8", errors="replace")
                found = re.findall(r"([\d,]+) optimizer steps of", text)
                self.total = int(found[-1].replace(",", "")) if found else None
            for row in read_metrics(self.metrics):
                self.step = row["step"]
                name = self.metric if self.metric in row else "val/loss"
                self.value = (name, row[name]) if name in row else self.value
        if self._first is None and self.step:
            self._first = now, self.step
        self._due = now + (time.monotonic() - now) / SHARE_OF_TIME

    def left(self) -> str:
        """`12 min`, by the speed since the first look; empty while nobody knows."""
        if self._first is None or self.total is None or self.step <= self._first[1]:
            return ""
        seconds_a_step = (time.monotonic() - self._first[0]) / (self.step - self._first[1])
        return human_time(seconds_a_step * max(0, self.total - self.step))


class JobTable:
    """What the table shows, from what the engine knows.

    Args:
        folder: of the sweep.
        metric: to show.
    """

    def __init__(self, folder: Path, metric: str) -> None:
        self.folder = folder
        self.metric = metric
        self._progress: dict[str, Progress] = {}

    def render(self, records: Sequence[JobRecord], height: int) -> Table:
        """The table.

        Args:
            records: of all jobs.
            height: lines of the terminal; where there are more jobs, those that run are shown, then the last ones.
        """
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("job", "state", "step", "metric", "time left"):
            table.add_column(name, overflow="ellipsis", no_wrap=True, justify="left" if name == "job" else "right")
        shown = self._shown(records, max(1, height - LINES_AROUND))
        for record in shown:
            table.add_row(*map(Text, self._cells(record)), style=STYLES[record.status])
        if hidden := len(records) - len(shown):
            table.add_row(f"and {hidden} more", style="dim")
        return table

    @staticmethod
    def _shown(records: Sequence[JobRecord], most: int) -> list[JobRecord]:
        if len(records) <= most:
            return list(records)
        rank = {"running": 0, "failed": 1, "done": 2, "pruned": 2, "pending": 3}
        # of those that have ended the last ones, of those that wait the first
        urgent = sorted(records, key=lambda record: record.ended_at or "", reverse=True)
        chosen = sorted(urgent, key=lambda record: rank[record.status])[:most]
        return [record for record in records if record in chosen]

    def _cells(self, record: JobRecord) -> list[str]:
        if record.status == "pending" and not record.attempts:
            return [record.name, "waits", "", "", ""]
        if (progress := self._progress.get(record.name)) is None or record.status == "running":
            if progress is None:
                progress = Progress(record, self.folder / "logs" / f"{record.name}.log", self.metric)
                self._progress[record.name] = progress
            progress.look()
        steps = f"{progress.step:,}" + (f"/{progress.total:,}" if progress.total else "")
        value = "" if progress.value is None else f"{progress.value[0]} {progress.value[1]:.5g}"
        return [record.name, record.status, steps, value, progress.left() if record.status == "running" else ""]


View = Callable[[Sequence[JobRecord]], None]
"""Shows how jobs are, if it is time."""


def no_view(records: Sequence[JobRecord]) -> None:
    """Nothing: lines say it."""


@contextmanager
def live_table(folder: Path, metric: str) -> Iterator[View]:
    """The table on a terminal, while the block runs; lines that are said go above it. Elsewhere nothing."""
    console = Console()
    if not console.is_terminal or console.is_dumb_terminal:
        yield no_view
        return
    table, due = JobTable(folder, metric), 0.0
    seen: Sequence[JobRecord] = []
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:

        def show(records: Sequence[JobRecord]) -> None:
            nonlocal due, seen
            seen = records
            if time.monotonic() >= due:
                due = time.monotonic() + REFRESH_S
                live.update(table.render(records, console.height), refresh=True)

        yield show
        live.update(table.render(seen, console.height), refresh=True)  # how it ended stays on the screen
