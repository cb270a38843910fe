"""summary.png of `location`."""

import numpy as np
from numpy.typing import NDArray

from datamodules.cities import load_cities
from lightning_apps.experiments.location.generation import location_references
from lightning_apps.experiments.location.picture import draw_location_summary
from lightning_apps.experiments.picture import PictureInputs, RunPicture
from lightning_apps.run_files.directory import RunDirectory

BACKGROUND_POPULATION = 15_000
"""The map is drawn by 34,000 places, however few the experiment uses: they show the coasts."""


class LocationPicture(RunPicture):
    """Losses, distances and the world map."""

    def __init__(self, *, run_directory: RunDirectory) -> None:
        super().__init__(run_directory=run_directory)
        self.references: dict[str, float] = {}
        self.background: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None

    def draw(self, inputs: PictureInputs) -> None:
        """Draw the picture of a run that places cities; what every evaluation shares is read once."""
        if self.background is None:
            self.references = location_references(inputs.data, "validation")
            places = load_cities(min_population=BACKGROUND_POPULATION)
            self.background = (places.longitude_deg, places.latitude_deg)
        draw_location_summary(
            inputs.path,
            rows=inputs.rows,
            predictions=inputs.predictions,
            background=self.background,
            references=self.references,
            title=inputs.title,
            best_step=inputs.best_step,
        )
