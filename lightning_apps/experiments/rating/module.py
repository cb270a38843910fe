"""Experiment `rating`: a hierarchical classifier learns to rate long documents."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Lt
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from lightning_apps.errors import ConfigError
from lightning_apps.experiments.classification import ClassificationModule, count_samples
from lightning_apps.training.optimizer_step import step_on_window
from lightning_apps.training.plan import RunPlan
from lightning_apps.training.schedules import Schedule
from models.encoders.classifier import weighted_cross_entropy
from models.from_data import FromData

ClassWeights = Literal["inverse_frequency", "effective_number"]


class RatingModule(ClassificationModule):
    """Trains a HierarchicalClassifier; the loss of a step is the weighted mean over the documents of its window.

    `val/loss` is the mean cross-entropy without weights, smoothing or focus: a likelihood, comparable between runs.

    Args:
        build_net: makes the network.
        build_optimizer: makes the optimizer of a module.
        schedule: learning-rate factor after so many optimizer steps.
        plan: the plan of the run.
        class_counts: documents of each class in an epoch.
        class_weights: see class_weights; None weighs all alike.
        effective_number_beta: see class_weights.
        label_smoothing: see weighted_cross_entropy, as the next.
        focal_gamma: likewise.
    """

    def __init__(
        self,
        *,
        build_net: Callable[[], PreTrainedModel],
        build_optimizer: Callable[[nn.Module], Optimizer],
        schedule: Schedule,
        plan: RunPlan,
        class_counts: FromData[list[int]],
        class_weights: ClassWeights | list[float] | None,
        effective_number_beta: Annotated[float, Ge(0), Lt(1)],
        label_smoothing: Annotated[float, Ge(0), Lt(1)],
        focal_gamma: Annotated[float, Ge(0)],
    ) -> None:
        super().__init__(
            build_net=build_net,
            build_optimizer=build_optimizer,
            schedule=schedule,
            plan=plan,
            label_smoothing=label_smoothing,
        )
        if focal_gamma < 0:
            raise ConfigError(f"module.focal_gamma={focal_gamma}: must be at least 0; 0 is the ordinary loss")
        self.focal_gamma = focal_gamma
        weights = weights_of_classes(class_counts, class_weights, beta=effective_number_beta)
        self.class_weights: Tensor
        self.register_buffer("class_weights", torch.tensor(weights, dtype=torch.float32), persistent=False)

    def logits(self, batch: dict[str, Any]) -> Tensor:
        """(n, classes) of a batch."""
        return self.net(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], chunk_counts=batch["chunk_counts"]
        ).logits

    def loss_sum(self, batch: dict[str, Any], *, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        """Weighted loss summed over documents, and the sum of their weights."""
        labels = batch["labels"]
        loss = weighted_cross_entropy(
            self.logits(batch),
            labels,
            self.class_weights,
            label_smoothing=label_smoothing,
            focal_gamma=self.focal_gamma,
        )
        return loss, self.class_weights[labels].sum()

    def training_step(self, window: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """One optimizer step."""
        loss_sum = partial(self.loss_sum, label_smoothing=self.label_smoothing)
        return step_on_window(self, window, loss_sum, count_samples, self.sum_weights)

    def sum_weights(self, batch: dict[str, Any]) -> float:
        """Sum of the weights of a batch's documents."""
        return float(self.class_weights[batch["labels"]].sum())

    def target_logits(self, batch: dict[str, Any]) -> Tensor:
        """What verify compares between a flat batch and its documents alone."""
        return self.logits(batch)


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
