"""Experiment `arxiv`: a causal LM from scratch on windows of papers from K categories."""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torchmetrics import MeanMetric, SumMetric
from typing_extensions import Unpack

from datamodules.contract import Batch
from lightning_apps.experiments.experiment import Experiment, Parts
from models.language.causal_lm import target_loss, token_losses


class ArxivModule(Experiment):
    """Trains a causal language model on random token windows and evaluates it on sequential ones.

    Logs `loss` (nats a target token), `perplexity` and `bits_per_byte` of the chosen categories, and where others are
    held out `held_out_loss`, `held_out_perplexity` and `held_out_bits_per_byte`.

    Args:
        **parts: see Parts.
    """

    def __init__(self, **parts: Unpack[Parts]) -> None:
        super().__init__(**parts)
        self.measured = nn.ModuleDict({"chosen": _Sums(), "held_out": _Sums()})

    def loss_sum(self, batch: Batch) -> tuple[Tensor, int]:
        """Loss summed over target tokens, and their number."""
        return target_loss(self.net, batch)

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Loss of every target token of a batch of windows, added to the sums of its group.

        Returns:
            `losses` (n, T) float32, in nats; T = sequence_length - 1.
        """
        losses = token_losses(self.net, batch)
        for name, rows in (("chosen", ~batch["held_out"]), ("held_out", batch["held_out"])):
            if rows.any():
                self.measured[name].update(losses[rows], batch["num_bytes"][rows])  # type: ignore[operator]
        return {"losses": losses}

    def evaluation_metrics(self, data: Any) -> set[str]:
        """Loss, perplexity and bits per byte of each group."""
        return names_of_groups(data, ["loss", "perplexity", "bits_per_byte"])

    def on_validation_epoch_end(self) -> None:
        """Log each group's loss, perplexity and bits per byte."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        split = "test" if self.trainer.testing else data.evaluation_split
        evaluated = data.evaluation_set(split)
        categories = evaluated.windows.categories[data.evaluated(split)]
        groups = ["chosen"] + (["held_out"] if (categories >= evaluated.num_chosen).any() else [])
        for name in groups:
            before = "" if name == "chosen" else "held_out_"
            values = self.measured[name].compute()  # type: ignore[operator]
            self.log_dict({f"{self.split_prefix}/{before}{key}": value for key, value in values.items()}, batch_size=1)
            self.measured[name].reset()  # type: ignore[operator]

    on_test_epoch_end = on_validation_epoch_end


def names_of_groups(data: Any, names: Sequence[str]) -> set[str]:
    """The names, and with `held_out_` before them where the data evaluate held-out categories."""
    evaluated = data.evaluation_set("validation")
    categories = evaluated.windows.categories[data.evaluated("validation")]
    groups = ["", "held_out_"] if (categories >= evaluated.num_chosen).any() else [""]
    return {f"{before}{name}" for before in groups for name in names}


class _Sums(nn.Module):
    """Mean loss over target tokens and the bytes behind them, over all ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.loss = MeanMetric()
        self.targets = SumMetric()
        self.num_bytes = SumMetric()

    def update(self, losses: Tensor, num_bytes: Tensor) -> None:
        """Add windows: losses (n, T), bytes of text (n,)."""
        self.loss.update(losses.mean(), weight=losses.numel())
        self.targets.update(losses.numel())
        self.num_bytes.update(num_bytes.sum())

    def compute(self) -> dict[str, Tensor]:
        """Nats a token, their exponential, and bits a byte of text, so that tokenizers compare."""
        loss = self.loss.compute()
        bits = loss / math.log(2)
        return {
            "loss": loss,
            "perplexity": loss.exp(),
            "bits_per_byte": bits * self.targets.compute() / self.num_bytes.compute(),
        }

    def reset(self) -> None:
        """Start over."""
        for metric in (self.loss, self.targets, self.num_bytes):
            metric.reset()
