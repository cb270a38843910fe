"""What modules that classify share: optimizer, loss of a window, evaluation."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import lightning as L
from annotated_types import Ge, Lt
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric
from transformers import PreTrainedModel

from lightning_apps.training.optimizer_step import step_on_window
from lightning_apps.training.plan import RunPlan
from lightning_apps.training.schedules import Schedule
from models.encoders.classifier import classification_loss


class ClassificationModule(L.LightningModule):
    """Trains a classifier; the loss of a step is the mean over the samples of its window.

    Args:
        build_net: makes the network.
        build_optimizer: makes the optimizer of a module.
        schedule: learning-rate factor after so many optimizer steps.
        plan: the plan of the run.
        label_smoothing: of the training loss.
    """

    def __init__(
        self,
        *,
        build_net: Callable[[], PreTrainedModel],
        build_optimizer: Callable[[nn.Module], Optimizer],
        schedule: Schedule,
        plan: RunPlan,
        label_smoothing: Annotated[float, Ge(0), Lt(1)],
    ) -> None:
        super().__init__()
        self.automatic_optimization = False  # step_on_window says why
        self.net = build_net()
        self.build_optimizer = build_optimizer
        self.schedule = schedule
        self.plan = plan
        self.label_smoothing = label_smoothing
        self.evaluation_loss = MeanMetric()

    def configure_optimizers(self) -> Any:
        """One optimizer and its schedule, stepped once per window."""
        optimizer = self.build_optimizer(self.net)
        return {"optimizer": optimizer, "lr_scheduler": LambdaLR(optimizer, self.schedule)}

    def logits(self, batch: dict[str, Any]) -> Tensor:
        """(n, classes) of a batch."""
        raise NotImplementedError

    def loss_sum(self, batch: dict[str, Any], *, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        """Loss summed over samples, and their number."""
        loss = classification_loss(self.logits(batch), batch["labels"], label_smoothing=label_smoothing)
        return loss, loss.new_tensor(len(batch["labels"]))

    def training_step(self, window: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """One optimizer step."""
        loss_sum = partial(self.loss_sum, label_smoothing=self.label_smoothing)
        return step_on_window(self, window, loss_sum, count_samples)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Add one batch to the mean loss of the split, on all ranks; the logits go to ClassificationEvaluation."""
        logits = self.logits(batch)
        # without smoothing: val/loss stays a likelihood, comparable between runs that smooth differently
        self.evaluation_loss.update(classification_loss(logits, batch["labels"]) / len(logits), weight=len(logits))
        self.log(f"{self.split_prefix}/loss", self.evaluation_loss, on_step=False, on_epoch=True, batch_size=1)
        return {"logits": logits, "sample_ids": batch["sample_ids"]}

    test_step = validation_step

    @property
    def split_prefix(self) -> str:
        """First part of metric names: `test` while testing, else `val`."""
        return "test" if self.trainer.testing else "val"


def count_samples(batch: dict[str, Any]) -> int:
    """Targets of a batch: one for each sample."""
    return len(batch["labels"])
