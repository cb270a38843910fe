"""What modules that classify share."""

from typing import Annotated

from annotated_types import Ge, Lt
from torch import Tensor
from typing_extensions import Unpack

from datamodules.contract import Batch
from lightning_apps.experiments.experiment import Experiment, Parts
from models.encoders.classifier import classification_loss
from models.kernels.known_masks import padding_mask


class ClassificationExperiment(Experiment):
    """Trains a classifier; the loss of a step is the mean over its samples.

    Args:
        label_smoothing: share of each target that training spreads over the classes.
        **parts: see Parts.
    """

    def __init__(self, *, label_smoothing: Annotated[float, Ge(0), Lt(1)], **parts: Unpack[Parts]) -> None:
        super().__init__(**parts)
        self.label_smoothing = label_smoothing

    def logits(self, batch: Batch) -> Tensor:
        """(n, classes) of a batch."""
        mask = padding_mask(self.net, batch["attention_mask"], batch.get("is_padded"))
        return self.net(input_ids=batch["input_ids"], attention_mask=mask).logits

    def loss_sum(self, batch: Batch) -> tuple[Tensor, Tensor | int]:
        """Loss summed over samples, and their number."""
        loss = classification_loss(self.logits(batch), batch["labels"], label_smoothing=self.label_smoothing)
        return loss, len(batch["labels"])

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Add one batch to the mean loss of the split, on all ranks; the logits go to ClassificationEvaluation.

        Without smoothing or weights: `val/loss` stays a likelihood, comparable between runs that train differently.
        """
        logits = self.logits(batch)
        self.log_loss(classification_loss(logits, batch["labels"]), len(logits))
        return {"logits": logits, "sample_ids": batch["sample_ids"]}
