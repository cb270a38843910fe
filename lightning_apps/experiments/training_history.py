"""training_history.json: the evaluations of a run, one object each."""

import math
from collections.abc import Sequence
from typing import Any

import lightning as L

from lightning_apps.callbacks.after_evaluation import AfterEvaluation
from lightning_apps.process.side_products import side_product
from lightning_apps.run_files.atomic_files import write_json_atomically
from lightning_apps.run_files.directory import RunDirectory
from lightning_apps.run_files.metrics_csv import read_metrics


class TrainingHistory(AfterEvaluation):
    """Writes the file after every evaluation, out of metrics.csv, so that a resumed run has all of them."""

    reads_checkpoint = False

    def __init__(self, *, run_directory: RunDirectory) -> None:
        self.run_directory = run_directory

    def on_evaluation_saved(self, trainer: L.Trainer, pl_module: L.LightningModule, best_step: int | None) -> None:
        """Write; the evaluation's row is in metrics.csv by now."""
        if trainer.is_global_zero:
            with side_product(self.run_directory.history.name):
                history = training_history(read_metrics(self.run_directory.metrics))
                write_json_atomically(self.run_directory.history, history)


def training_history(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry for each evaluation: step, epoch, mean training loss since the one before, all `val/` metrics.

    Values that are no numbers (NaN, infinities), which JSON does not have, are None.

    Args:
        rows: what metrics.csv holds, a logged step each.
    """
    history = []
    losses: list[float] = []
    epoch = 0.0
    for row in rows:
        epoch = row.get("train/epoch", epoch)
        losses += [row["train/loss"]] if "train/loss" in row else []
        evaluated = {key: _finite(value) for key, value in row.items() if key.startswith("val/")}
        if evaluated:
            mean = sum(losses) / len(losses) if losses else math.nan
            history.append({"step": row["step"], "epoch": epoch, "train/loss": _finite(mean), **evaluated})
            losses = []
    return history


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
