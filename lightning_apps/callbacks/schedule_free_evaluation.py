"""Evaluations and checkpoints of schedule-free training see the average of the iterates."""

from typing import Any

import lightning as L

from lightning_apps.training.schedule_free import ScheduleFreeAdamW


class ScheduleFreeEvaluation(L.Callback):
    """Swaps the average in for evaluations, saves it as the model's weights, and leaves it in place at the end."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Go to where gradients are taken: a checkpoint holds the average."""
        optimizer_of(trainer).train()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Evaluate the average."""
        if trainer.state.fn == "fit":
            optimizer_of(trainer).eval()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Go on training."""
        if trainer.state.fn == "fit":
            optimizer_of(trainer).train()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """What is exported is the average."""
        optimizer_of(trainer).eval()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Store the average as the weights; with the optimizer's state it gives back the point of the gradients."""
        averages = optimizer_of(trainer).averages()
        for name, parameter in pl_module.named_parameters(remove_duplicate=False):
            if parameter in averages:
                checkpoint["state_dict"][name] = averages[parameter]


def optimizer_of(trainer: L.Trainer) -> ScheduleFreeAdamW:
    """The trainer's optimizer."""
    (optimizer,) = trainer.optimizers
    assert isinstance(optimizer, ScheduleFreeAdamW)
    return optimizer
