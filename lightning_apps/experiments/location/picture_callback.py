"""summary.png of `location`, redrawn after every evaluation."""

import json

import lightning as L
import numpy as np
from numpy.typing import NDArray

from datamodules.cities import load_cities
from lightning_apps.callbacks.checkpoints import RunCheckpoints
from lightning_apps.experiments.location.generation import location_references
from lightning_apps.experiments.location.picture import draw_location_summary
from lightning_apps.run_files.directory import RunDirectory
from lightning_apps.run_files.metrics_csv import read_metrics

BACKGROUND_POPULATION = 15_000
"""The map is drawn by 34,000 places, however few the experiment uses: they show the coasts."""


class LocationPicture(L.Callback):
    """Draws losses, distances and the world map from the files of the run."""

    def __init__(self, *, run_directory: RunDirectory) -> None:
        self.run_directory = run_directory
        self.references: dict[str, float] = {}
        self.background: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw; the evaluation's row and predictions are on disk by now."""
        if trainer.state.fn != "fit" or not trainer.is_global_zero:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not self.references:
            self.references = location_references(data, "validation")
            places = load_cities(min_population=BACKGROUND_POPULATION)
            self.background = (places.longitude_deg, places.latitude_deg)
        assert self.background is not None
        lines = self.run_directory.predictions.read_text(encoding="utf-8").splitlines()
        checkpoints = next(entry for entry in trainer.callbacks if isinstance(entry, RunCheckpoints))  # type: ignore[attr-defined]
        draw_location_summary(
            self.run_directory.picture,
            rows=read_metrics(self.run_directory.metrics),
            predictions=[json.loads(line) for line in lines],
            background=self.background,
            references=self.references,
            title=f"location / {self.run_directory.path.name}: step {trainer.global_step}",
            best_step=checkpoints.best_step_now(trainer),
        )
