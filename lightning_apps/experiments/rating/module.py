"""Experiment `rating`: a hierarchical classifier learns to rate long documents."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Lt
from torch import Tensor
from typing_extensions import Unpack

from datamodules.contract import Batch
from lightning_apps.errors import ConfigError
from lightning_apps.experiments.classification import ClassificationExperiment
from lightning_apps.experiments.experiment import Parts
from models.encoders.classifier import weighted_cross_entropy
from models.from_data import FromData

ClassWeights = Literal["inverse_frequency", "effective_number"]


class RatingModule(ClassificationExperiment):
    """Trains a HierarchicalClassifier; the loss of a step is the weighted mean over its documents.

    `val/loss` is the mean cross-entropy without weights, smoothing or focus: a likelihood, comparable between runs.

    Args:
        class_counts: training documents of each class in an epoch.
        class_weights: how much a document of each class counts, see weights_of_classes; None weighs all alike.
        effective_number_beta: between all alike (0) and the inverse frequency (near 1), see weights_of_classes.
        label_smoothing: share of each target that training spreads over the classes.
        focal_gamma: by this power of what is missing to certainty a document counts (Lin et al. 2017); 0 for none.
        **parts: see Parts.
    """

    def __init__(
        self,
        *,
        class_counts: FromData[list[int]],
        class_weights: ClassWeights | list[float] | None,
        effective_number_beta: Annotated[float, Ge(0), Lt(1)],
        label_smoothing: Annotated[float, Ge(0), Lt(1)],
        focal_gamma: Annotated[float, Ge(0)],
        **parts: Unpack[Parts],
    ) -> None:
        super().__init__(label_smoothing=label_smoothing, **parts)
        self.focal_gamma = focal_gamma
        weights = torch.tensor(
            weights_of_classes(class_counts, class_weights, beta=effective_number_beta), dtype=torch.float32
        )
        self.weigh = ClassWeightSum(weights)
        self.class_weights: Tensor
        self.register_buffer("class_weights", weights.clone(), persistent=False)

    def logits(self, batch: Batch) -> Tensor:
        """(n, classes) of a batch."""
        return self.net(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            chunk_counts=batch["chunk_counts"],
            chunk_lengths=batch["chunk_lengths"],
            chunk_sections=batch.get("chunk_sections"),
        ).logits

    def loss_sum(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Weighted loss summed over documents, and the sum of their weights."""
        labels = batch["labels"]
        loss = weighted_cross_entropy(
            self.logits(batch),
            labels,
            self.class_weights,
            label_smoothing=self.label_smoothing,
            focal_gamma=self.focal_gamma,
        )
        return loss, self.class_weights[labels].sum()

    def target_logits(self, batch: Batch) -> Tensor:
        """What verify compares between a flat batch and its documents alone."""
        return self.logits(batch)


@dataclass(frozen=True)
class ClassWeightSum:
    """Sum of the weights of a batch's documents, on the CPU.

    Attributes:
        weights: (classes,) float32.
    """

    weights: Tensor

    def __call__(self, batch: Batch) -> float:
        """Sum of the weights of the batch's labels."""
        return float(self.weights[batch["labels"]].sum())


def weights_of_classes(counts: list[int], scheme: ClassWeights | list[float] | None, *, beta: float) -> list[float]:
    """Weight of each class in the loss.

    Args:
        counts: training samples of each class; a class without any gets the weight 0, and is not counted below.
        scheme: `inverse_frequency`: total / (classes * count). `effective_number`: proportional to
            (1 - beta) / (1 - beta ** count) (Cui et al. 2019, "Class-balanced loss based on effective number of
            samples"), scaled so that they add up to the number of classes; between all alike (beta 0) and the inverse
            frequency (beta near 1). A list gives them. None: all 1.
        beta: see effective_number.

    Raises:
        ConfigError: a list of another length, or a value out of range.
    """
    if isinstance(scheme, list):
        if len(scheme) != len(counts) or min(scheme) < 0 or not any(scheme):
            raise ConfigError(
                f"module.class_weights={scheme}: give {len(counts)} weights, one for each class in the order of "
                "data.label_names, none negative and not all 0"
            )
        return [float(weight) for weight in scheme]
    if scheme is None:
        return [1.0] * len(counts)
    present = [count for count in counts if count]
    if scheme == "inverse_frequency":
        return [sum(present) / (len(present) * count) if count else 0.0 for count in counts]
    if not 0 <= beta < 1:
        raise ConfigError(f"module.effective_number_beta={beta}: must be at least 0 and below 1")
    raw = [(1 - beta) / (1 - beta**count) if count else 0.0 for count in counts]
    return [weight * len(present) / sum(raw) for weight in raw]
