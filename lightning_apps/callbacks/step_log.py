"""What every optimizer step leaves behind: loss, learning rate, norms, tokens, speed."""

import time
from typing import Any

import lightning as L
import torch
from torch.optim import Optimizer

from lightning_apps.run_files.metrics_csv import MetricsCSV
from lightning_apps.training.clipping import global_norm
from lightning_apps.training.optimizer_step import StepResult, takes_steps
from lightning_apps.training.plan import RunPlan
from models.flops import count_flops, measure_peak_flops


class StepLog(L.Callback):
    """Logs `train/*` values of every `log_every`-th step; between two of these nothing is read from the device.

    Values go to the loggers directly and before any checkpoint of the same step is written:
    Lightning logs them after its checkpoint hooks, so that a run killed in between would lose a row.

    Args:
        plan: the plan of the run.
        log_every: optimizer steps between two rows.
    """

    def __init__(self, plan: RunPlan, *, log_every: int) -> None:
        self.plan = plan
        self.log_every = log_every
        self.tokens_seen = 0
        self.target_tokens_seen = 0
        self.train_s = 0.0
        self.flops = 0.0
        self.mfu = 0.0  # since the row before the last
        self.completed_steps = 0
        self.earlier_wall_s = 0.0
        self._wall_start = time.perf_counter()
        self.tokens_per_s = 0.0
        self.last_loss = torch.tensor(float("nan"))
        self.grad_norm = torch.tensor(float("nan"))
        self.param_norm: tuple[int, float] | None = None  # step at which it was measured, value
        self._learning_rates: dict[str, float] = {}
        self._started_at = 0.0
        self._logged = (0, 0.0, 0.0)  # tokens, FLOPs and training seconds at the last row

    def state_dict(self) -> dict[str, Any]:
        """Counts over the whole run, resumed ones included."""
        return {
            "tokens_seen": self.tokens_seen,
            "target_tokens_seen": self.target_tokens_seen,
            "completed_steps": self.completed_steps,
            "train_s": self.train_s,
            "flops": self.flops,
            "wall_s": self.earlier_wall_s + time.perf_counter() - self._wall_start,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.tokens_seen = state_dict["tokens_seen"]
        self.target_tokens_seen = state_dict["target_tokens_seen"]
        # a checkpoint of the last step goes on without a step; older ones had steps to go
        self.completed_steps = state_dict.get("completed_steps", 0)
        self.train_s = state_dict["train_s"]
        self.earlier_wall_s = state_dict["wall_s"]
        self.flops = state_dict.get("flops", 0.0)
        self._logged = self._counts

    @property
    def _counts(self) -> tuple[int, float, float]:
        return self.tokens_seen, self.flops, self.train_s

    def _count_cost(self, module: L.LightningModule) -> None:
        self._num_trained, self._cost = num_trained(module), count_flops(takes_steps(module).net)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Drop the rows that an interrupted run wrote after its last checkpoint."""
        self.completed_steps = trainer.global_step
        self._count_cost(pl_module)
        for logger in trainer.loggers:
            if isinstance(logger, MetricsCSV):
                logger.start_after(trainer.global_step)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the watch: only the step itself counts as training time."""
        self._started_at = time.perf_counter()

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        """Keep the rates of this step; the schedule changes them before it ends."""
        self._learning_rates = learning_rates(optimizer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count tokens and log."""
        result: StepResult = outputs
        self.train_s += time.perf_counter() - self._started_at
        self.tokens_seen += result["num_tokens"]
        self.target_tokens_seen += result["num_targets"]
        if num_trained(pl_module) != self._num_trained:  # gradual unfreezing
            self._count_cost(pl_module)
        self.flops += self._cost.of_step(
            num_tokens=result["num_tokens"], num_targets=result["num_targets"], num_texts=result["num_texts"]
        )
        self.last_loss, self.grad_norm = result["loss"], result["grad_norm"]
        step = self.completed_steps = trainer.global_step
        if step % self.log_every and step != self.plan.total_steps:
            return
        tokens, flops, seconds = (now - before for now, before in zip(self._counts, self._logged, strict=True))
        self._logged = self._counts
        self.tokens_per_s, self.mfu = tokens / max(seconds, 1e-9), flops / max(seconds, 1e-9) / peak_flops(trainer)
        self.param_norm = (step, float(global_norm(parameter.detach() for parameter in pl_module.parameters())))
        values = {
            "train/loss": float(self.last_loss),
            **self._learning_rates,
            "train/grad_norm": float(self.grad_norm),
            "train/grad_norm_clipped": min(float(self.grad_norm), self.plan.clip_norm or float("inf")),
            "train/param_norm": self.param_norm[1],
            "train/epoch": self.plan.epoch(step),
            "train/tokens": float(self.tokens_seen),
            "train/tokens_per_s": self.tokens_per_s,
            "train/mfu": self.mfu,
            **{f"train/{name}": float(value) for name, value in takes_steps(pl_module).step_metrics().items()},
        }
        trainer.callback_metrics.update({key: torch.tensor(value) for key, value in values.items()})
        for logger in trainer.loggers:
            logger.log_metrics(values, step=step)


def num_trained(module: L.LightningModule) -> int:
    """Parameters, as tensors, that have a gradient."""
    return sum(parameter.requires_grad for parameter in module.parameters())


def peak_flops(trainer: L.Trainer) -> float:
    """FLOP/s that products of matrices reach on this run's devices together, in its precision; measured once."""
    precision = str(trainer.precision)
    dtype = torch.bfloat16 if "bf16" in precision else torch.float16 if precision == "16-mixed" else torch.float32
    return measure_peak_flops(trainer.strategy.root_device, dtype) * trainer.world_size


def learning_rates(optimizer: Optimizer) -> dict[str, float]:
    """What is logged: the highest rate, and where groups differ one more value for each group that has a name."""
    rates = {group.get("name"): group["lr"] for group in optimizer.param_groups}
    logged = {"train/learning_rate": max(group["lr"] for group in optimizer.param_groups)}
    if len(set(rates.values())) > 1:
        logged |= {f"train/learning_rate/{name}": rate for name, rate in rates.items() if name is not None}
    return logged
