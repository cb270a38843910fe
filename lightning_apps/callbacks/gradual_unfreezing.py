"""Parts of the model that start to learn later than the rest."""

from typing import Any

import lightning as L
from torch import nn

from lightning_apps.training.parameter_groups import UnfreezeRule, unfreezing_steps
from lightning_apps.training.plan import RunPlan


class GradualUnfreezing(L.Callback):
    """Sets `requires_grad` before every step, as a function of the number of completed optimizer steps alone.

    Resuming therefore needs no state. The parameters are in the optimizer from the start; without a gradient it leaves
    them as they are, weight decay included (Howard and Ruder 2018 unfreeze per epoch; here it is per step).

    Args:
        plan: the plan of the run.
        unfreeze: what starts to learn when.
    """

    def __init__(self, *, plan: RunPlan, unfreeze: list[UnfreezeRule]) -> None:
        self.plan = plan
        self.unfreeze = unfreeze
        self._steps: dict[nn.Parameter, int] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Find the parameters; the optimizer has its groups by now."""
        self._steps = unfreezing_steps(
            pl_module.net,  # type: ignore[arg-type]
            unfreeze=self.unfreeze,
            total_steps=self.plan.total_steps,
        )

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Freeze what is not yet due."""
        for parameter, step in self._steps.items():
            parameter.requires_grad_(trainer.global_step >= step)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the module as it was: a run that stopped early would otherwise look frozen in its summary."""
        for parameter in self._steps:
            parameter.requires_grad_(True)
