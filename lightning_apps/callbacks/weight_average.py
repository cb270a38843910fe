"""Exponential moving average of the weights, evaluated and saved in place of the raw ones."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn


class ExponentialWeightAverage(WeightAveraging):
    """average <- decay * average + (1 - decay) * weights after every optimizer step, from the first one on.

    Lightning's callback swaps the average in for evaluations and stores both in checkpoints; this one only updates all
    tensors in one fused operation, where Lightning's EMA goes through them one by one.

    Args:
        decay: share that the average keeps; 1 / (1 - decay) steps are remembered.
    """

    def __init__(self, *, decay: float) -> None:
        options: dict[str, Any] = {"multi_avg_fn": get_ema_multi_avg_fn(decay)}
        super().__init__(**options)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the average in the module and step aside: later evaluations are of whatever weights it then holds."""
        super().on_train_end(trainer, pl_module)
        self._average_model = None
