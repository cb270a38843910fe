"""The LightningModule of every experiment: a network, its optimizer and schedule, the loss of a batch, one step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric
from transformers import PreTrainedModel
from typing_extensions import TypedDict, Unpack  # pydantic refuses typing's before Python 3.12

from datamodules.contract import Batch, StepBatch, Weigh
from lightning_apps.training.optimizer_step import NO_STEP, StepResult, take_step
from lightning_apps.training.plan import RunPlan
from lightning_apps.training.schedules import Schedule
from lightning_apps.training.sharding import gathered, shard


class Parts(TypedDict):
    """What the program hands to every module.

    Attributes:
        build_net: makes the network.
        build_optimizer: makes the optimizer of a module.
        schedule: learning-rate factor after so many optimizer steps.
        plan: of the run.
    """

    build_net: Callable[[], PreTrainedModel]
    build_optimizer: Callable[[nn.Module], Optimizer]
    schedule: Schedule
    plan: RunPlan


@dataclass(frozen=True)
class Start:
    """The network that a run starts from, for data that need it.

    Attributes:
        build_net: makes it, on the CPU.
        to_device: moves it to where the run computes.
        autocast: what products of matrices are in an evaluation; None for the weights' own.
    """

    build_net: Callable[[], PreTrainedModel]
    to_device: Callable[[PreTrainedModel], PreTrainedModel]
    autocast: torch.dtype | None


class Experiment(L.LightningModule):
    """Trains a network on StepBatches; a subclass says what the loss of a batch is.

    Args:
        **parts: see Parts.

    Attributes:
        step_result: of the optimizer step under way, from before its weights move; guards look at it then.
        weigh: sum of the weights of a batch's targets; None where the loss counts all alike.
        inner_steps: optimizer steps in a row that the same samples feed.
    """

    weigh: Weigh | None = None
    inner_steps: int = 1
    step_result: StepResult = NO_STEP

    def __init__(self, **parts: Unpack[Parts]) -> None:
        super().__init__()
        self.automatic_optimization = False  # take_step says why
        self.build_net = parts["build_net"]
        self.net = self.build_net().train()  # from_pretrained gives it without dropout, and Lightning keeps that
        self.build_optimizer = parts["build_optimizer"]
        self.schedule = parts["schedule"]
        self.plan = parts["plan"]
        self.evaluation_loss = MeanMetric()

    @classmethod
    def select_data(cls, data: Any) -> None:
        """Leave out training samples that the module can do nothing with: none, unless a subclass does.

        Args:
            data: the experiment's data module, set up.

        Raises:
            ValueError: none is left.
        """

    @classmethod
    def complete_data(cls, data: Any, start: Start) -> None:
        """Add to data that are set up what only a network can: nothing, unless a subclass does.

        Args:
            data: the experiment's data module.
            start: the network that the run starts from.
        """

    def loss_sum(self, batch: Batch) -> tuple[Tensor, Tensor | int]:
        """Loss of a batch summed over its targets, a () tensor, and their number or the sum of their weights.

        Where training smooths labels or weighs targets and evaluation does not, `self.training` tells which it is.
        """
        raise NotImplementedError

    def configure_model(self) -> None:
        """Put the weights in shards, where the strategy has a mesh; Lightning asks before each fit and evaluation."""
        if self.device_mesh is not None:
            block_dtype = torch.bfloat16 if self.trainer.precision == "bf16-mixed" else None
            shard(self.net, self.device_mesh["data_parallel"], block_dtype=block_dtype)

    def whole_net(self, *, keep: bool) -> PreTrainedModel:
        """The network with whole weights: itself, or where it is in shards a new one on the CPU; called on all ranks.

        Args:
            keep: whether this rank wants it; else the network as it is.
        """
        if self.device_mesh is None:
            return self.net
        state = gathered(self.net.state_dict(keep_vars=True), keep=keep)
        if not keep:
            return self.net
        whole = self.build_net()
        whole.load_state_dict(state)
        return whole

    def configure_optimizers(self) -> Any:
        """One optimizer and its schedule, stepped once per StepBatch."""
        optimizer = self.build_optimizer(self.net)
        return {"optimizer": optimizer, "lr_scheduler": LambdaLR(optimizer, self.schedule)}

    def training_step(self, batch: StepBatch, batch_idx: int) -> StepResult:
        """One optimizer step."""
        return take_step(self, batch)

    def validation_step(self, batch: Batch, batch_idx: int) -> Any:
        """Add one batch to the mean loss over all targets of the split, on all ranks."""
        loss, count = self.loss_sum(batch)
        self.log_loss(loss, count)

    def test_step(self, batch: Batch, batch_idx: int) -> Any:
        """The same on the test split."""
        return self.validation_step(batch, batch_idx)

    def step_metrics(self) -> dict[str, Tensor | float]:
        """What a step logs as `train/*` beside its loss; asked at logged steps only, on all ranks."""
        return {}

    def evaluation_metrics(self, data: Any) -> set[str]:
        """Names, without the split, of what this module logs in an evaluation; callbacks may log more."""
        return {"loss"}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out the configuration: config.yaml has it, and runs of other names may hold the same bits."""
        for key in (self.CHECKPOINT_HYPER_PARAMS_KEY, self.CHECKPOINT_HYPER_PARAMS_NAME):
            checkpoint.pop(key, None)

    def log_loss(self, loss: Tensor, count: Tensor | int) -> None:
        """Add a summed loss to `val/loss` or `test/loss`; a batch whose samples were cut before any target has none."""
        if count:
            self.evaluation_loss.update(loss / count, weight=count)
        self.log(f"{self.split_prefix}/loss", self.evaluation_loss, on_step=False, on_epoch=True, batch_size=1)

    @property
    def split_prefix(self) -> str:
        """First part of metric names: `test` while testing, else `val`."""
        return "test" if self.trainer.testing else "val"

    @property
    def vocab_size(self) -> int | None:
        """Token ids that the network can look up; None where it looks up none."""
        embedding = self.net.get_input_embeddings()
        return embedding.num_embeddings if isinstance(embedding, nn.Embedding) else None
