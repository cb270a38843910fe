"""Exponential moving average of the weights, evaluated and saved in place of the raw ones."""

from itertools import chain
from typing import Annotated, Any

import lightning as L
import torch
from annotated_types import Gt, Lt
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils._foreach_utils import _group_tensors_by_device_and_dtype

from lightning_apps.training.optimizer_step import takes_steps
from lightning_apps.training.sharding import local_tensors, scattered, weights_as_shards


class ExponentialWeightAverage(L.Callback):
    """average <- decay * average + (1 - decay) * weights after every optimizer step; the first one begins it.

    The arithmetic is that of torch.optim.swa_utils. Lightning's callback copies the whole module to hold the average,
    which a sharded one refuses, asks the device twice in each step how many updates there have been, and goes through
    the tensors one by one; here a tensor stands for each, held as the module holds it, and all are moved at once. What
    a checkpoint holds is the same: the average in `state_dict`, the raw weights in `current_model_state`.

    Args:
        decay: share that the average keeps; 1 / (1 - decay) steps are remembered.
    """

    def __init__(self, *, decay: Annotated[float, Gt(0), Lt(1)]) -> None:
        self.move: Any = get_ema_multi_avg_fn(decay)
        self.average: list[Tensor] = []  # of the module's tensors, in their order
        self.num_updates = 0
        self._latest_step = 0
        self._saved: dict[str, Tensor] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The step of the last update."""
        return {"latest_update_step": self._latest_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self._latest_step = state_dict["latest_update_step"]

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Train on from the raw weights; an average that is not there begins with them."""
        self._saved = checkpoint["state_dict"]
        if "current_model_state" in checkpoint:
            trainer.strategy.load_model_state_dict({"state_dict": checkpoint["current_model_state"]})
            self.num_updates = int(checkpoint["averaging_state"]["n_averaged"])

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Make the average, on the device that holds the weights."""
        self.average = [tensor.detach().clone() for tensor in tensors_of(pl_module)]
        if self._saved is not None:
            for name, average in self._by_name(pl_module).items():
                if name in self._saved:
                    average.copy_(scattered(self._saved[name], average))
            self._saved = None

    def _by_name(self, module: L.LightningModule) -> dict[str, Tensor]:
        """The average of each tensor under all of its names."""
        of = dict(zip(map(id, tensors_of(module)), self.average, strict=True))
        named = chain(module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False))
        return {name: of[id(tensor)] for name, tensor in named}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the average."""
        if trainer.global_step > self._latest_step:
            update_average(self.average, tensors_of(pl_module), self.move if self.num_updates else None)
            self.num_updates += 1
            self._latest_step = trainer.global_step

    @torch.no_grad()
    def _swap(self, module: L.LightningModule) -> None:
        with weights_as_shards(takes_steps(module).net):
            held = local_tensors(tensors_of(module))
            for average, current in zip(local_tensors(self.average), held, strict=True):
                kept = average.clone()
                average.copy_(current)
                current.copy_(kept)

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Evaluate the average."""
        if self.average:
            self._swap(pl_module)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Go on training with the raw weights."""
        if self.average:
            self._swap(pl_module)

    @torch.no_grad()
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """What training leaves is the average."""
        for current, average in zip(tensors_of(pl_module), self.average, strict=True):
            current.copy_(average)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Store the average as the weights, and the raw weights beside it."""
        raw, averages = checkpoint["state_dict"], self._by_name(pl_module)
        checkpoint["current_model_state"] = raw
        checkpoint["state_dict"] = {name: averages.get(name, value) for name, value in raw.items()}
        checkpoint["averaging_state"] = {"n_averaged": torch.tensor(self.num_updates)}


def tensors_of(module: torch.nn.Module) -> list[Tensor]:
    """Parameters and buffers, each once."""
    return [*module.parameters(), *module.buffers()]


@torch.no_grad()
def update_average(average: list[Tensor], current: list[Tensor], move: Any) -> None:
    """One update: by `move`, a function of torch.optim.swa_utils; where that is None by a copy, the first one."""
    old, new = local_tensors(average), local_tensors(current)
    if move is None:
        for to, source in zip(old, new, strict=True):
            to.copy_(source)
        return
    for (olds, news), _ in _group_tensors_by_device_and_dtype([[*old], [*new]]).values():
        move(olds, news, None)
