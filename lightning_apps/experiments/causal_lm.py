"""What modules share that learn the target tokens of each sample."""

from typing import Annotated

from annotated_types import Ge, Lt
from torch import Tensor
from typing_extensions import Unpack

from datamodules.contract import Batch
from lightning_apps.experiments.experiment import Experiment, Parts
from models.language.causal_lm import target_loss


class CausalLMExperiment(Experiment):
    """Trains a causal language model; the loss of a step is the mean over its target tokens.

    Args:
        label_smoothing: share of each target that training spreads over the vocabulary.
        **parts: see Parts.
    """

    def __init__(self, *, label_smoothing: Annotated[float, Ge(0), Lt(1)], **parts: Unpack[Parts]) -> None:
        super().__init__(**parts)
        self.label_smoothing = label_smoothing

    def loss_sum(self, batch: Batch) -> tuple[Tensor, int]:
        """Loss summed over target tokens, and their number."""
        return target_loss(
            self.net,
            batch,
            shared_prefix_length=batch["shared_prefix_length"],
            # not in evaluations: val/loss stays a likelihood, comparable between runs that smooth differently
            label_smoothing=self.label_smoothing if self.training else 0.0,
        )
