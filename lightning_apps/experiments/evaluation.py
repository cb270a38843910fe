"""What callbacks share that measure a split: when they do, how they log, and where what the model said goes."""

from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L

from datamodules.contract import Split
from datamodules.text.jsonl import write_jsonl
from lightning_apps.process.side_products import side_product
from lightning_apps.run_files.directory import RunDirectory


class Evaluation(L.Callback):
    """Calls `evaluate` at the end of each pass over a split, on all ranks.

    Args:
        run_directory: whose predictions.jsonl is written.
    """

    def __init__(self, *, run_directory: RunDirectory) -> None:
        self.run_directory = run_directory

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Evaluate the split that the data module names, `validation` while training."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        self.evaluate(trainer, pl_module, data, data.evaluation_split, "val")

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Evaluate the test split."""
        self.evaluate(trainer, pl_module, trainer.datamodule, "test", "test")  # type: ignore[attr-defined]

    def evaluate(self, trainer: L.Trainer, pl_module: Any, data: Any, split: Split, prefix: str) -> None:
        """Measure a split.

        Args:
            trainer: that has gone through the split.
            pl_module: the experiment's module.
            data: its data module.
            split: which of its splits.
            prefix: first part of the metrics' names, `val` or `test`.
        """
        raise NotImplementedError

    def write_predictions(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write what the model said; a fault is told and stops nothing."""
        with side_product(self.run_directory.predictions.name):
            write_jsonl(self.run_directory.predictions, rows)


def log_metrics(pl_module: L.LightningModule, prefix: str, metrics: Mapping[str, float]) -> None:
    """Log metrics that every rank has computed from all answers: nothing is reduced."""
    pl_module.log_dict({f"{prefix}/{name}": value for name, value in metrics.items()}, batch_size=1)


def heading(trainer: L.Trainer, prefix: str) -> str:
    """How the line of an evaluation begins: `step 340, val: loss 1.2345`, without the step where nothing is trained."""
    step = f"step {trainer.global_step}, " if trainer.state.fn == "fit" else ""
    loss = trainer.callback_metrics.get(f"{prefix}/loss")
    return f"{step}{prefix}: loss {float('nan') if loss is None else float(loss):.4f}"
