"""metrics.csv: one row per logged step.

Lightning's CSVLogger deletes the file of an earlier start, writes training and validation values of one step into two
rows, and keeps every row in memory; a run that resumes needs none of the three.
"""

import csv
import io
import os
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from lightning_apps.run_files.atomic_files import write_bytes_atomically
from lightning_apps.run_files.metrics import read_metrics


class MetricsCSV(Logger):
    """Writes each step's values at once; values logged later for the same step join its row.

    Columns appear as metrics do, `step` first. A step that did not log a metric leaves its field empty. Floats are
    written with repr, so that reading them gives back the same bits.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._columns: list[str] = []
        self._row: dict[str, Any] = {}
        self._row_start = 0

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "metrics"

    @property
    def version(self) -> str:
        """There is one file per run."""
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Settings are in config.yaml."""

    @rank_zero_only
    def start_after(self, step: int | None) -> None:
        """Go on with the file that is there; the values of a step that it ends with can still be added to.

        Args:
            step: rows beyond it are dropped, an interrupted run wrote them; None keeps all.
        """
        rows = read_metrics(self.path) if self.path.exists() else []
        if step is not None:
            rows = [row for row in rows if row["step"] <= step]
        self._columns = list(dict.fromkeys(["step", *(key for row in rows for key in row)]))
        self._row = rows.pop() if rows else {}
        self._rewrite(rows)
        if self._row:
            self._append(self._row)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Write the values of one step."""
        if not self._columns:
            self.start_after(None)
        metrics = {_writable(name): value for name, value in metrics.items()}
        same_step = self._row.get("step") == step
        self._row = {**self._row, **metrics} if same_step else {"step": step, **metrics}
        if new_columns := [key for key in metrics if key not in self._columns]:
            self._columns += new_columns
            rows = read_metrics(self.path)
            if same_step:
                rows.pop()
            self._rewrite(rows)
        elif same_step:
            os.truncate(self.path, self._row_start)
        self._append(self._row)

    @rank_zero_only
    def save(self) -> None:
        """Make the rows survive a power cut; done before each checkpoint, which does."""
        if self.path.exists():
            with self.path.open("r+b") as file:
                os.fsync(file.fileno())

    def _append(self, row: dict[str, Any]) -> None:
        with self.path.open("r+b") as file:
            self._row_start = file.seek(0, os.SEEK_END)
            file.write(self._lines([row]))

    def _lines(self, rows: list[dict[str, Any]], *, header: bool = False) -> bytes:
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows(
            {key: repr(value) if isinstance(value, float) else value for key, value in row.items()} for row in rows
        )
        return text.getvalue().encode()

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        write_bytes_atomically(self.path, self._lines(rows, header=True))


def _writable(name: str) -> str:
    """A metric's name as UTF-8 can hold it: names of classes come from data."""
    return name.encode("utf-8", "backslashreplace").decode()
