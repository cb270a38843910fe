"""A lower learning rate where evaluations stop improving."""

from typing import Annotated, Any, Literal

import lightning as L
from annotated_types import Ge, Gt, Lt
from torch.optim.lr_scheduler import LambdaLR

from lightning_apps.callbacks.checkpoints import monitored_value
from lightning_apps.process.console import say


class ReduceOnPlateau(L.Callback):
    """Multiplies the peak learning rates after more than `patience` evaluations in a row without improvement.

    The rule is that of torch's ReduceLROnPlateau with a relative threshold. It scales the base rates of the run's
    schedule, so it goes with any of them, warmup included; they and the rates of the next step are part of the
    checkpoint that follows.

    Args:
        monitor: `val/` metric that is watched.
        mode: whether a smaller (`min`) or larger (`max`) value is better.
        factor: what the rates are multiplied with.
        patience: evaluations without improvement that are tolerated in a row.
        threshold: smallest relative change that counts as an improvement.
        min_factor: smallest share of the peak rates that reductions lead to.
    """

    def __init__(
        self,
        *,
        monitor: str,
        mode: Literal["min", "max"],
        factor: Annotated[float, Gt(0), Lt(1)],
        patience: Annotated[int, Ge(0)],
        threshold: Annotated[float, Ge(0)] = 1e-4,
        min_factor: Annotated[float, Ge(0)] = 0.0,
    ) -> None:
        self.monitor = monitor
        self.mode = mode
        self.factor = factor
        self.patience = patience
        self.threshold = threshold
        self.min_factor = min_factor
        self.best_value: float | None = None
        self.bad_evaluations = 0

    def state_dict(self) -> dict[str, Any]:
        """The best evaluation so far, and how many have passed since."""
        return {"best_value": self.best_value, "bad_evaluations": self.bad_evaluations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.best_value = state_dict["best_value"]
        self.bad_evaluations = state_dict["bad_evaluations"]

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare, count and reduce."""
        if trainer.state.fn != "fit":
            return
        # some metrics are known to the main process only
        value = monitored_value(trainer, self.monitor) if trainer.is_global_zero else 0.0
        if self._is_due(float(trainer.strategy.broadcast(value))):
            for entry in trainer.lr_scheduler_configs:
                assert isinstance(entry.scheduler, LambdaLR)
                scale_schedule(entry.scheduler, factor=self.factor, min_factor=self.min_factor)
            rates = {f"{group['lr']:.3g}" for optimizer in trainer.optimizers for group in optimizer.param_groups}
            say(
                f"  step {trainer.global_step}: {self.monitor} has not improved for {self.patience + 1} evaluations, "
                f"learning rate times {self.factor:g}, now {', '.join(sorted(rates))}"
            )

    def _is_due(self, value: float) -> bool:
        if self.best_value is None:
            better = value == value  # NaN is never best
        else:
            gain = self.best_value - value if self.mode == "min" else value - self.best_value
            better = gain > self.threshold * abs(self.best_value)
        if better:
            self.best_value, self.bad_evaluations = value, 0
        else:
            self.bad_evaluations += 1
        if self.bad_evaluations <= self.patience:
            return False
        self.bad_evaluations = 0
        return True


def scale_schedule(schedule: LambdaLR, *, factor: float, min_factor: float) -> None:
    """Scale the base rates of a schedule, and the rates of the next step, which it has set already."""
    for number, group in enumerate(schedule.optimizer.param_groups):
        base = max(schedule.base_lrs[number] * factor, group["initial_lr"] * min_factor)
        schedule.base_lrs[number] = base
        group["lr"] = base * schedule.lr_lambdas[number](schedule.last_epoch)
    schedule._last_lr = [group["lr"] for group in schedule.optimizer.param_groups]
