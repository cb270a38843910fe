"""summary.png of `location`, redrawn after every evaluation."""

import json

import lightning as L

from lightning_apps.callbacks.checkpoints import RunCheckpoints
from lightning_apps.callbacks.location_generation import location_references
from lightning_apps.metrics_csv import read_metrics
from lightning_apps.plots.location import draw_location_summary
from lightning_apps.run_directory import RunDirectory


class LocationPicture(L.Callback):
    """Draws losses, distances and the world map from the files of the run."""

    def __init__(self, *, run_directory: RunDirectory) -> None:
        self.run_directory = run_directory
        self.references: dict[str, float] = {}

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw; the evaluation's row and predictions are on disk by now."""
        if trainer.state.fn != "fit" or not trainer.is_global_zero:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not self.references:
            self.references = location_references(data, "validation")
        lines = self.run_directory.predictions.read_text(encoding="utf-8").splitlines()
        checkpoints = next(entry for entry in trainer.callbacks if isinstance(entry, RunCheckpoints))  # type: ignore[attr-defined]
        draw_location_summary(
            self.run_directory.picture,
            rows=read_metrics(self.run_directory.metrics),
            predictions=[json.loads(line) for line in lines],
            background=(data.cities["longitude_deg"], data.cities["latitude_deg"]),
            references=self.references,
            title=f"location / {self.run_directory.path.name}: step {trainer.global_step}",
            best_step=checkpoints.best_step or None,
        )
