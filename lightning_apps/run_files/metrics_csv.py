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
    def start_after(self, step: int) -> None:
        """Begin at `step`: keep the rows up to it, drop what an interrupted run wrote beyond it."""
        rows = [row for row in read_metrics(self.path) if row["step"] <= step] if self.path.exists() else []
        self._columns = list(dict.fromkeys(["step", *(key for row in rows for key in row)]))
        self._rewrite(rows)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Write the values of one step."""
        if not self._columns:
            self.start_after(0)
        same_step = self._row.get("step") == step
        self._row = {**self._row, **metrics} if same_step else {"step": step, **metrics}
        if new_columns := [key for key in metrics if key not in self._columns]:
            self._columns += new_columns
            rows = read_metrics(self.path)
            if same_step:
                rows.pop()
            self._rewrite(rows)
            same_step = False
        with self.path.open("r+b") as file:
            if same_step:
                file.truncate(self._row_start)
            self._row_start = file.seek(0, os.SEEK_END)
            file.write(self._lines([self._row]))

    def _lines(self, rows: list[dict[str, Any]]) -> bytes:
        text = io.StringIO()
        csv.DictWriter(text, self._columns, lineterminator="\n").writerows(
            {key: repr(value) if isinstance(value, float) else value for key, value in row.items()} for row in rows
        )
        return text.getvalue().encode()

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        aside = self.path.with_suffix(".csv.part")
        aside.write_bytes((",".join(self._columns) + "\n").encode() + self._lines(rows))
        aside.replace(self.path)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics.csv: `step` as int, every other value as float, empty fields left out."""
    with path.open(newline="") as file:
        return [
            {key: int(value) if key == "step" else float(value) for key, value in row.items() if value}
            for row in csv.DictReader(file)
        ]
