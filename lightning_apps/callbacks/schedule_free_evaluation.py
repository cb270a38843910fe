"""Evaluations and checkpoints of schedule-free training see the average of the iterates."""

from typing import Any

import lightning as L

from lightning_apps.training.optimizer_step import takes_steps
from lightning_apps.training.schedule_free import ScheduleFreeAdamW
from lightning_apps.training.sharding import weights_as_shards


class ScheduleFreeEvaluation(L.Callback):
    """Swaps the average in for evaluations, saves it as the model's weights, and leaves it in place at the end."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Go to where gradients are taken: a checkpoint holds the average."""
        put(trainer, pl_module, at_average=False)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Evaluate the average."""
        if trainer.state.fn == "fit":
            put(trainer, pl_module, at_average=True)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Go on training."""
        if trainer.state.fn == "fit":
            put(trainer, pl_module, at_average=False)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """What is exported is the average."""
        put(trainer, pl_module, at_average=True)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Store the average as the weights; with the optimizer's state it gives back the point of the gradients."""
        averages = optimizer_of(trainer).averages()
        for name, parameter in pl_module.named_parameters(remove_duplicate=False):
            if parameter in averages:
                checkpoint["state_dict"][name] = averages[parameter]


def put(trainer: L.Trainer, module: L.LightningModule, *, at_average: bool) -> None:
    """Let the parameters hold the average, or the point where gradients are taken."""
    optimizer = optimizer_of(trainer)
    with weights_as_shards(takes_steps(module).net):
        optimizer.eval() if at_average else optimizer.train()


def optimizer_of(trainer: L.Trainer) -> ScheduleFreeAdamW:
    """The trainer's optimizer."""
    (optimizer,) = trainer.optimizers
    assert isinstance(optimizer, ScheduleFreeAdamW)
    return optimizer
