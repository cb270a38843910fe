"""Find the fastest micro-batch that fits into memory; the global batch, and so the training, stays the same."""

from collections.abc import Callable
from time import perf_counter
from typing import Any

import lightning as L
import torch
from torch.distributed.tensor import DTensor

from datamodules.contract import ExperimentData
from lightning_apps.errors import ConfigError
from lightning_apps.process.console import say
from lightning_apps.training.optimizer_step import all_ranks, takes_steps, without_gradient_sync
from lightning_apps.training.sharding import whole_weights

KEPT = 3
"""Times the weights that are trained: gradients of earlier micro-batches and Adam's two moments."""


class FindDeviceBatchSize(L.Callback):
    """Before training, tries forward and backward passes of ever smaller micro-batches until one fits, then times them.

    Halves are tried as long as a step gets faster by them: what fits into a processor's cache may beat what fits into
    memory. The size is stored in checkpoints: a resumed run splits its steps as the first start did, so that float sums
    keep their order and the run its bits.
    """

    def __init__(self) -> None:
        self.found: int | None = None

    def state_dict(self) -> dict[str, Any]:
        """The size in use."""
        return {"found": self.found}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the size of the first start."""
        self.found = state_dict["found"]

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Search, and tell the data module."""
        data: ExperimentData = trainer.datamodule  # type: ignore[attr-defined]
        share = -(-data.global_batch_size // trainer.world_size)
        if self.found is None:
            agree = all_ranks if trainer.world_size > 1 else bool
            largest = largest_that_fits(lambda size: self.attempt_beside_state(trainer, pl_module, size), share, agree)
            self.found = fastest(lambda size: self.step_seconds(trainer, pl_module, size), largest)
            fits = "" if self.found == largest else f", faster than the {largest} that fit"
            say(
                f"device_batch_size {self.found}: {-(-share // self.found)} micro-batch(es) a step on each device{fits}"
            )
        data.device_batch_size = min(self.found, share)  # the run may go on with more devices

    def attempt(self, trainer: L.Trainer, pl_module: Any, size: int) -> None:
        """Forward and backward of one micro-batch of the largest samples; no gradient is left.

        With whole weights, anew each time since a backward pass leaves shards: a rank that runs out of memory leaves no
        other one waiting.
        """
        data: ExperimentData = trainer.datamodule  # type: ignore[attr-defined]
        # samples of unequal lengths: what must fit is the worst of them
        batch = trainer.strategy.batch_to_device(data.largest_batch(size))
        with whole_weights(takes_steps(pl_module).net):
            try:
                with trainer.precision_plugin.train_step_context(), without_gradient_sync(trainer.strategy):
                    loss, _ = pl_module.loss_sum(batch)
                    loss.backward()
            finally:
                pl_module.zero_grad(set_to_none=True)

    def attempt_beside_state(self, trainer: L.Trainer, pl_module: Any, size: int) -> None:
        """As `attempt`, beside as much memory as later steps keep, of which nothing is there before the first."""
        weights = [weight for weight in takes_steps(pl_module).net.parameters() if weight.requires_grad]
        shards = [weight.to_local() if isinstance(weight, DTensor) else weight for weight in weights]
        kept = [torch.empty(KEPT * shard.nbytes, dtype=torch.uint8, device=shard.device) for shard in shards]
        self.attempt(trainer, pl_module, size)
        del kept

    def step_seconds(self, trainer: L.Trainer, pl_module: Any, size: int) -> float:
        """What a step of the device's share takes in micro-batches of this size; of several ranks the slowest counts.

        By the shorter of two passes, behind one that warms up.
        """
        data: ExperimentData = trainer.datamodule  # type: ignore[attr-defined]
        took = []
        for _ in range(3):
            began = perf_counter()
            self.attempt(trainer, pl_module, size)
            if pl_module.device.type != "cpu":
                torch.accelerator.synchronize()
            took.append(perf_counter() - began)
        num_micro_batches = -(-data.global_batch_size // (trainer.world_size * size))
        mine = torch.tensor(num_micro_batches * min(took[1:]), device=pl_module.device)
        return float(trainer.strategy.reduce(mine, reduce_op="max"))


def fastest(step_seconds: Callable[[int], float], largest: int) -> int:
    """The first of largest, largest / 2, largest / 4, ... (rounded up) whose half is not faster by a twentieth.

    Args:
        step_seconds: what a step takes with this size.
        largest: size to begin with.
    """
    size, seconds = largest, step_seconds(largest) if largest > 1 else 0.0
    while size > 1:
        half = -(-size // 2)
        seconds_of_half = step_seconds(half)
        if seconds_of_half > 0.95 * seconds:
            break
        size, seconds = half, seconds_of_half
    return size


def largest_that_fits(attempt: Callable[[int], None], largest: int, agree: Callable[[bool], bool] = bool) -> int:
    """The first of largest, largest / 2, largest / 4, ... (rounded up) that `attempt` survives.

    Args:
        attempt: tries a size.
        largest: size to begin with.
        agree: from what happened here to whether the size fits; several ranks take the one that fits on each.

    Raises:
        ConfigError: not even one sample fits.
        Exception: whatever else the attempt raises.
    """
    size = largest
    while True:
        fits = True
        try:
            attempt(size)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            fits = False
        if agree(fits):
            return size
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if size == 1:
            raise ConfigError(
                "not even one sample fits into memory: choose a smaller model or shorter samples, or "
                "hardware.gradient_checkpointing=true"
            )
        size = -(-size // 2)


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
