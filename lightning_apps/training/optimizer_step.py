"""One optimizer step over one StepBatch: the loss is summed over targets and divided once.

Averaging the means of micro-batches weighs a token by the size of its micro-batch (transformers#34191,
Lightning#20350). Here the number of targets of the whole step, on all ranks, is known before the first backward pass,
so every micro-batch contributes sum / total and any split of the step gives the same gradient.
"""

import contextlib
import functools
import random
from typing import Any, Protocol, runtime_checkable

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel
from typing_extensions import TypedDict

from datamodules.contract import Batch, ExperimentData, StepBatch
from datamodules.sampling.order import hash_key
from lightning_apps.errors import GuardError
from lightning_apps.training.clipping import clip_gradients, gradients_of
from lightning_apps.training.plan import RunPlan
from lightning_apps.training.sharding import inside_forward
from models.kernels.packed_linear import cast_linears


class StepResult(TypedDict):
    """What came out of an optimizer step; Lightning hands it to callbacks as `outputs`.

    Attributes:
        loss: (weighted) mean over the targets of all ranks, a detached () tensor.
        grad_norm: global norm of the gradients before clipping, a () tensor.
        num_targets: on all ranks.
        num_tokens: fed to the model on all ranks, padding not counted.
        num_texts: that attend to themselves, on all ranks: samples, packed documents, chunks.
    """

    loss: Tensor
    grad_norm: Tensor
    num_targets: int
    num_tokens: int
    num_texts: int


NO_STEP = StepResult(
    loss=torch.tensor(torch.nan), grad_norm=torch.tensor(torch.nan), num_targets=0, num_tokens=0, num_texts=0
)
"""Before the first one."""


@runtime_checkable
class TakesSteps(Protocol):
    """What a step needs of a LightningModule, and callbacks may look at; every Experiment has it.

    Attributes:
        net: what is trained.
        plan: of the run.
        step_result: of the step under way, from before its weights move.
    """

    net: PreTrainedModel
    plan: RunPlan
    step_result: StepResult

    @property
    def vocab_size(self) -> int | None:
        """Token ids that the network can look up; None where it looks up none."""
        ...

    def loss_sum(self, batch: Batch) -> tuple[Tensor, Tensor | int]:
        """Loss of a batch summed over its targets, and their number or the sum of their weights."""
        ...

    def step_metrics(self) -> dict[str, Tensor | float]:
        """What a step logs beside its loss."""
        ...


def takes_steps(module: L.LightningModule) -> TakesSteps:
    """The module as callbacks may look at it.

    Raises:
        TypeError: it is another LightningModule.
    """
    if not isinstance(module, TakesSteps):
        raise TypeError(f"{type(module).__name__} is no Experiment (lightning_apps.experiments.experiment)")
    return module


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make every draw of one optimizer step (dropout, numpy, random) a pure function of (seed, step, rank).

    A resumed run then needs no saved generator, an extra evaluation changes nothing, and any step can be replayed.
    """
    key = hash_key(seed, step, rank)
    torch.manual_seed(key >> 1)
    np.random.seed(key & 0xFFFFFFFF)  # noqa: NPY002 (other people's code draws from it)
    random.seed(key)


def take_step(module: L.LightningModule, batch: StepBatch) -> StepResult:
    """Backward over all micro-batches, clipping, then one optimizer and schedule step.

    The result is the module's `step_result` from before the optimizer runs, when guards look at it, and is returned.

    Args:
        module: an Experiment.
        batch: of this rank.

    Raises:
        GuardError: the step has no target at all, or none that has a weight.
    """
    optimizer, schedule, trainer = module.optimizers(), module.lr_schedulers(), module.trainer
    assert not isinstance(optimizer, list)
    experiment = takes_steps(module)
    profile = trainer.profiler.profile  # type: ignore[attr-defined]
    num_targets, num_tokens, divisor = batch.num_targets, batch.num_tokens, batch.weight_sum
    num_texts = sum(texts_of(part) for part in batch.micro_batches)
    most_parts = len(batch.micro_batches)
    if trainer.world_size > 1:
        of_ranks = from_all_ranks([num_targets, num_tokens, num_texts, divisor, most_parts])
        sums = of_ranks.sum(dim=0).tolist()
        num_targets, num_tokens, num_texts, divisor = *map(int, sums[:3]), sums[3]
        most_parts = int(of_ranks[:, 4].max())
    check_targets(trainer.global_step + 1, batch, num_targets, divisor)
    total = torch.zeros((), device=module.device)
    # every rank takes part in each reduction of gradients: in one, or with weights in shards in one a micro-batch
    num_parts = max(most_parts if isinstance(experiment.net, FSDPModule) else len(batch.micro_batches), 1)
    with weights_cast_once(experiment.net) if num_parts > 1 else contextlib.nullcontext():
        for number in range(1, num_parts + 1):
            is_last = number >= len(batch.micro_batches)
            with profile("loss"):
                given = number <= len(batch.micro_batches)
                loss = loss_of(experiment, batch.micro_batches[number - 1]) if given else zero_loss(module)
            with profile("backward"), contextlib.nullcontext() if is_last else without_gradient_sync(trainer.strategy):
                # strategies average gradients over ranks; the factor turns that into a sum
                module.manual_backward(loss * (trainer.world_size / divisor))
            total += loss.detach()
    if trainer.world_size > 1:
        total = trainer.strategy.reduce(total, reduce_op="sum")
    # here and not in Lightning's hook before the optimizer step: the scale of float16 is a power of two, see there
    with profile("clip"):
        grad_norm = clip_gradients(
            gradients_of(optimizer.optimizer), experiment.plan.clip_norm, scale=loss_scale(trainer)
        )
    experiment.step_result = StepResult(
        loss=total / divisor, grad_norm=grad_norm, num_targets=num_targets, num_tokens=num_tokens, num_texts=num_texts
    )
    optimizer.step()
    with profile("optimizer"):
        optimizer.zero_grad()
        schedule.step()  # type: ignore[union-attr]
    return experiment.step_result


def weights_cast_once(net: PreTrainedModel) -> contextlib.AbstractContextManager[None]:
    """Let micro-batches share what autocast makes of weights, which nobody may change meanwhile.

    Not where shards are gathered in bfloat16 anyway, where activations are recomputed to save memory, and where a
    compiled net has its casts inside and would be compiled anew.
    """
    is_compiled = net.base_model._compiled_call_impl is not None
    if isinstance(net, FSDPModule) or net.is_activation_checkpointing or is_compiled:
        return contextlib.nullcontext()
    return cast_linears(net)


def texts_of(batch: Batch) -> int:
    """Texts of a micro-batch that attend to themselves only: its rows, or the documents packed into its row."""
    return len(batch["borders"]) - 1 if "borders" in batch else len(batch["input_ids"])


def loss_of(experiment: TakesSteps, batch: Batch) -> Tensor:
    """Summed loss of a micro-batch, a () tensor with a gradient."""
    return inside_forward(experiment.net, experiment.loss_sum, batch)[0]


def from_all_ranks(values: list[float]) -> Tensor:
    """(ranks, n) float64 on the CPU; exchanged between CPUs, so that no device is waited for."""
    own = torch.tensor(values, dtype=torch.float64)
    rows = [torch.empty_like(own) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(rows, own, group=cpu_group(torch.distributed.group.WORLD))
    return torch.stack(rows)


def all_ranks(holds: bool) -> bool:
    """Whether something holds on every rank; each waits for the answer of all."""
    return bool(from_all_ranks([float(holds)]).min())


@functools.cache
def cpu_group(world: Any) -> Any:
    """A process group over gloo: `world` itself where it is one, else (NCCL knows no CPU tensors) one beside it."""
    return world if torch.distributed.get_backend(world) == "gloo" else torch.distributed.new_group(backend="gloo")


def check_targets(step: int, batch: StepBatch, num_targets: int, divisor: float) -> None:
    """Whether there is something to learn from.

    Raises:
        GuardError: there is not.
    """
    if num_targets == 0:
        ids = ", ".join(map(str, batch.sample_ids.tolist()))
        raise GuardError(
            "no_targets",
            f"step {step}: every label is masked, there is nothing to learn from samples {ids}; look at the settings "
            "that truncate or mask them",
        )
    if divisor == 0:
        raise GuardError(
            "no_targets",
            f"step {step}: every sample has the weight 0, there is nothing to learn from; look at module.class_weights",
        )


def without_gradient_sync(strategy: Any) -> contextlib.AbstractContextManager[None]:
    """Accumulate gradients on each rank; the last micro-batch of a step reduces them once."""
    return strategy.block_backward_sync() if hasattr(strategy, "block_backward_sync") else contextlib.nullcontext()


def zero_loss(module: L.LightningModule) -> Tensor:
    """A () loss of zero that every trainable parameter takes part in, of a rank that has no sample.

    With weights in shards it is that of a sample, so that this rank makes the forward pass that the others make.
    """
    experiment = takes_steps(module)
    if isinstance(experiment.net, FSDPModule):
        data: ExperimentData = module.trainer.datamodule  # type: ignore[attr-defined]
        return 0.0 * loss_of(experiment, module.trainer.strategy.batch_to_device(data.largest_batch(1)))
    return torch.stack([parameter.sum() * 0.0 for parameter in module.parameters() if parameter.requires_grad]).sum()


def loss_scale(trainer: L.Trainer) -> Tensor | None:
    """Factor () of the gradients under float16; None where they are not scaled."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    # scaling a one reads nothing from the device, as get_scale() would
    return None if scaler is None else scaler.scale(torch.ones((), device=trainer.strategy.root_device))
