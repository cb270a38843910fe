"""summary.png of classification experiments, redrawn after every evaluation."""

import json

import lightning as L

from lightning_apps.callbacks.checkpoints import RunCheckpoints
from lightning_apps.experiments.classification_picture import draw_classification_summary
from lightning_apps.run_files.directory import RunDirectory
from lightning_apps.run_files.metrics_csv import read_metrics


class ClassificationPicture(L.Callback):
    """Draws losses, scores, confusions and reliability from the files of the run."""

    def __init__(self, *, run_directory: RunDirectory) -> None:
        self.run_directory = run_directory

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw; the evaluation's row, predictions and baselines are on disk by now."""
        if trainer.state.fn != "fit" or not trainer.is_global_zero:
            return
        files = self.run_directory
        lines = files.predictions.read_text(encoding="utf-8").splitlines() if files.predictions.is_file() else []
        baselines = json.loads(files.baselines.read_text(encoding="utf-8")) if files.baselines.is_file() else {}
        checkpoints = next(entry for entry in trainer.callbacks if isinstance(entry, RunCheckpoints))  # type: ignore[attr-defined]
        draw_classification_summary(
            files.picture,
            rows=read_metrics(files.metrics),
            predictions=[json.loads(line) for line in lines],
            label_names=trainer.datamodule.label_names,  # type: ignore[attr-defined]
            references=baselines.get("validation", {}),
            title=f"{files.path.parent.name} / {files.path.name}: step {trainer.global_step}",
            best_step=checkpoints.best_step_now(trainer),
        )
