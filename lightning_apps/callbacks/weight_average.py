"""Exponential moving average of the weights, evaluated and saved in place of the raw ones."""

from itertools import chain
from typing import Annotated, Any

import lightning as L
import torch
from annotated_types import Gt, Lt
from lightning.pytorch.callbacks import WeightAveraging
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._foreach_utils import _group_tensors_by_device_and_dtype


class ExponentialWeightAverage(WeightAveraging):
    """average <- decay * average + (1 - decay) * weights after every optimizer step, from the first one on.

    Lightning's callback swaps the average in for evaluations and stores both in checkpoints; this one only updates all
    tensors in one fused operation, where Lightning's EMA goes through them one by one.

    Args:
        decay: share that the average keeps; 1 / (1 - decay) steps are remembered.
    """

    def __init__(self, *, decay: Annotated[float, Gt(0), Lt(1)]) -> None:
        self.move = get_ema_multi_avg_fn(decay)
        options: dict[str, Any] = {"multi_avg_fn": self.move}
        super().__init__(**options)
        self._has_begun: bool | None = None  # read from the average at the first step of this process

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the average; torch's update asks the device twice in each step how many there have been."""
        average = self._average_model
        if trainer.global_step <= self._latest_update_step or average is None:
            return
        if self._has_begun is None:
            self._has_begun = bool(average.n_averaged > 0)
        update_average(average, pl_module, self.move if self._has_begun else None)
        self._has_begun = True
        self._latest_update_step = trainer.global_step


@torch.no_grad()
def update_average(average: AveragedModel, model: torch.nn.Module, move: Any) -> None:
    """One update of an average: by `move`, or where that is None by a copy, the first one."""
    old = [tensor.detach() for tensor in chain(average.module.parameters(), average.module.buffers())]
    new = [tensor.detach() for tensor in chain(model.parameters(), model.buffers())]
    if move is None:
        for to, source in zip(old, new, strict=True):
            to.copy_(source)
    else:
        for (olds, news), _ in _group_tensors_by_device_and_dtype([[*old], [*new]]).values():
            move(olds, news, None)
    average.n_averaged += 1
