"""summary.png of `gsm8k`."""

from lightning_apps.experiments.gsm8k.picture import draw_gsm8k_summary
from lightning_apps.experiments.picture import PictureInputs, RunPicture


class Gsm8kPicture(RunPicture):
    """Losses, accuracies and the last answers."""

    def draw(self, inputs: PictureInputs) -> None:
        """Draw the picture of a run that answers questions."""
        draw_gsm8k_summary(
            inputs.path,
            rows=inputs.rows,
            predictions=inputs.predictions,
            title=inputs.title,
            best_step=inputs.best_step,
        )
