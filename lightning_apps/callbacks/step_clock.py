"""One clock for the run: every step has its own random state, and evaluations fall on planned steps."""

from typing import Any

import lightning as L

from lightning_apps.training.optimizer_step import seed_step
from lightning_apps.training.plan import RunPlan


class StepClock(L.Callback):
    """Seeds each optimizer step and starts an evaluation after each planned one.

    Lightning evaluates at multiples of one interval; a plan may name any steps (every tenth of 95, the last one
    always), so the interval is set anew after each step: to the current batch count where an evaluation is due, and
    to one that does not divide it where none is.
    """

    def __init__(self, plan: RunPlan, seed: int) -> None:
        self.plan = plan
        self.seed = seed

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Give the step its own random state."""
        seed_step(self.seed, trainer.global_step, trainer.global_rank)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Decide whether an evaluation follows."""
        completed = batch_idx + 1
        trainer.val_check_batch = completed if trainer.global_step in self.plan.evaluation_steps else completed + 1

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log evaluations at the number of completed steps; Lightning would log them one step early."""
        if trainer.state.fn == "fit":
            pl_module.log("step", float(trainer.global_step), rank_zero_only=True)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the test at the run's last step."""
        pl_module.log("step", float(trainer.global_step), rank_zero_only=True)
