"""Stopping early, for good: a run that has stopped and is resumed stays stopped."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason


class EarlyStopping(LightningEarlyStopping):
    """Lightning's, with its decision in the checkpoint.

    Lightning's keeps its counts and the reason there, but not that training is over: a run that is killed while it
    evaluates its best weights, or exports them, would train on when it is resumed, and end with other weights.

    Its arguments and the key of its state are those of Lightning's.

    Args:
        patience: evaluations without an improvement that are tolerated in a row.
        min_delta: smallest change of the metric that counts as an improvement.
        check_finite: whether a metric that is NaN or infinite ends training.
        stopping_threshold: a metric as good as this ends training at once; None for none.
        divergence_threshold: a metric worse than this ends training at once; None for none.
    """

    stopped = False

    def state_dict(self) -> dict[str, Any]:
        """Lightning's state, and whether training is over."""
        return {**super().state_dict(), "stopped": self.stopped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting, or not at all."""
        super().load_state_dict(state_dict)
        # a checkpoint without the decision has the reason for it
        self.stopped = state_dict.get("stopped", self.stopping_reason is not EarlyStoppingReason.NOT_STOPPED)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Decide; the checkpoint of this evaluation is written after it."""
        super().on_validation_end(trainer, pl_module)
        if not self._should_skip_check(trainer):
            self.stopped = self.stopped or trainer.should_stop

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """No step is done where the checkpoint says so."""
        trainer.should_stop = trainer.should_stop or self.stopped

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """As on_fit_start, for strategies that load a checkpoint after it."""
        trainer.should_stop = trainer.should_stop or self.stopped
