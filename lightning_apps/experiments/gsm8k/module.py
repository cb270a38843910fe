"""Experiment `gsm8k`: an instruct model learns to reason in steps."""

from torch import Tensor

from datamodules.contract import Batch
from datamodules.gsm8k import Gsm8kDataModule
from lightning_apps.experiments.causal_lm import CausalLMExperiment
from lightning_apps.experiments.experiment import Start
from lightning_apps.experiments.gsm8k.own_samples import add_own_samples
from models.language.causal_lm import target_states


class Gsm8kModule(CausalLMExperiment):
    """Trains a causal language model on the answers of chats."""

    @classmethod
    def complete_data(cls, data: Gsm8kDataModule, start: Start) -> None:
        """With `data.source=own_samples`, draw and add them."""
        if data.awaits_samples:
            add_own_samples(data, start)

    def target_logits(self, batch: Batch) -> Tensor:
        """Logits (targets, vocabulary) at the positions that are trained."""
        states, _ = target_states(self.net, batch, shared_prefix_length=batch["shared_prefix_length"])
        logits: Tensor = self.net.get_output_embeddings()(states)
        return logits
