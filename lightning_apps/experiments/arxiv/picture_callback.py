"""summary.png of `arxiv`, redrawn after every evaluation."""

import lightning as L

from lightning_apps.callbacks.checkpoints import RunCheckpoints
from lightning_apps.experiments.arxiv.in_context import InContextLoss
from lightning_apps.experiments.arxiv.picture import draw_arxiv_summary
from lightning_apps.run_files.directory import RunDirectory
from lightning_apps.run_files.metrics_csv import read_metrics


class ArxivPicture(L.Callback):
    """Draws losses, in-context curves and categories; needs the callback `in_context`."""

    def __init__(self, *, run_directory: RunDirectory) -> None:
        self.run_directory = run_directory

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw; the evaluation's row is on disk by now."""
        if trainer.state.fn != "fit" or not trainer.is_global_zero:
            return
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        measured = next((entry.last for entry in callbacks if isinstance(entry, InContextLoss)), None)
        checkpoints = next(entry for entry in callbacks if isinstance(entry, RunCheckpoints))
        if measured is not None:
            draw_arxiv_summary(
                self.run_directory.picture,
                rows=read_metrics(self.run_directory.metrics),
                windows=measured[0],
                measured=measured[1],
                title=f"arxiv / {self.run_directory.path.name}: step {trainer.global_step:,}",
                best_step=checkpoints.best_step_now(trainer),
            )
