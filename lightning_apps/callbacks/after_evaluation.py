"""What follows an evaluation once its checkpoint is safe."""

import lightning as L


class AfterEvaluation(L.Callback):
    """A callback whose work follows the checkpoint of each evaluation of a fit.

    Lightning calls the callback that saves last, whatever the order of the list, so that work in `on_validation_end`
    would come before the checkpoint: RunCheckpoints calls these, each as a side product, when it has saved.

    Attributes:
        reads_checkpoint: false where the work reads no checkpoint file, and need not wait for one that is written
            beside training.
    """

    reads_checkpoint = True

    def on_evaluation_saved(self, trainer: L.Trainer, pl_module: L.LightningModule, best_step: int | None) -> None:
        """Do the work; called on every rank.

        Args:
            trainer: of the run; the evaluation's row is in metrics.csv.
            pl_module: its module.
            best_step: step of the best evaluation so far, this one included; None where there is none.
        """
        raise NotImplementedError
