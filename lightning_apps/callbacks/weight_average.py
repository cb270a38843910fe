"""Exponential moving average of the weights, evaluated and saved in place of the raw ones."""

from typing import Annotated, Any

from annotated_types import Gt, Lt
from lightning.pytorch.callbacks import WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn


class ExponentialWeightAverage(WeightAveraging):
    """average <- decay * average + (1 - decay) * weights after every optimizer step, from the first one on.

    Lightning's callback swaps the average in for evaluations and stores both in checkpoints; this one only updates all
    tensors in one fused operation, where Lightning's EMA goes through them one by one.

    Args:
        decay: share that the average keeps; 1 / (1 - decay) steps are remembered.
    """

    def __init__(self, *, decay: Annotated[float, Gt(0), Lt(1)]) -> None:
        options: dict[str, Any] = {"multi_avg_fn": get_ema_multi_avg_fn(decay)}
        super().__init__(**options)
