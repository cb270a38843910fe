"""summary.png of `arxiv`."""

from lightning_apps.experiments.arxiv.in_context import InContextLoss
from lightning_apps.experiments.arxiv.picture import draw_arxiv_summary
from lightning_apps.experiments.picture import PictureInputs, RunPicture


class ArxivPicture(RunPicture):
    """Losses, in-context curves and categories; draws nothing without the callback `in_context`, which measures."""

    def draw(self, inputs: PictureInputs) -> None:
        """Draw the picture of a language model."""
        callbacks = inputs.trainer.callbacks  # type: ignore[attr-defined]
        for measured in [entry.last for entry in callbacks if isinstance(entry, InContextLoss) and entry.last]:
            draw_arxiv_summary(
                inputs.path,
                rows=inputs.rows,
                windows=measured[0],
                measured=measured[1],
                title=f"{inputs.run}: step {inputs.step:,}",
                best_step=inputs.best_step,
            )
