"""summary.png of classification experiments."""

from lightning_apps.experiments.classification_picture import draw_classification_summary
from lightning_apps.experiments.picture import PictureInputs, RunPicture


class ClassificationPicture(RunPicture):
    """Losses, scores, confusions and reliability."""

    def draw(self, inputs: PictureInputs) -> None:
        """Draw the picture of a classifier."""
        draw_classification_summary(
            inputs.path,
            rows=inputs.rows,
            predictions=inputs.predictions,
            label_names=inputs.data.label_names,
            references=inputs.baselines.get("validation", {}),
            title=inputs.title,
            best_step=inputs.best_step,
        )
