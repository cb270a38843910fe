"""Experiment `imdb`: a pretrained encoder learns to classify texts."""

from typing import Any

from torch import Tensor

from lightning_apps.experiments.classification import ClassificationModule


class ImdbModule(ClassificationModule):
    """Trains a sequence classifier."""

    def logits(self, batch: dict[str, Any]) -> Tensor:
        """(n, classes) of a batch."""
        return self.net(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
