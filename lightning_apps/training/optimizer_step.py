"""One optimizer step over one window: the loss is summed over target tokens and divided once.

Averaging the means of micro-batches weighs a token by the size of its micro-batch (transformers#34191,
Lightning#20350). Here the number of targets of the whole window, on all ranks, is known before the first backward
pass, so every micro-batch contributes sum / total and any split of the window gives the same gradient.
"""

import contextlib
import random
from collections.abc import Callable
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from datamodules.sampling.order import hash_key
from lightning_apps.errors import GuardError

LossSum = Callable[[dict[str, Any]], tuple[Tensor, Tensor]]
"""Batch -> loss summed over its targets, number of targets or, where these are weighted, the sum of their weights."""


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make every draw of one optimizer step (dropout, numpy, random) a pure function of (seed, step, rank).

    A resumed run then needs no saved generator, an extra evaluation changes nothing, and any step can be replayed.
    """
    key = hash_key(seed, step, rank)
    torch.manual_seed(key >> 1)
    np.random.seed(key & 0xFFFFFFFF)  # noqa: NPY002 (other people's code draws from it)
    random.seed(key)


def without_gradient_sync(strategy: Any) -> contextlib.AbstractContextManager[None]:
    """Accumulate gradients on each rank; the last micro-batch of a window reduces them once."""
    return strategy.block_backward_sync() if hasattr(strategy, "block_backward_sync") else contextlib.nullcontext()


def zero_loss(module: L.LightningModule) -> Tensor:
    """A () loss of zero that every trainable parameter takes part in."""
    return torch.stack([parameter.sum() * 0.0 for parameter in module.parameters() if parameter.requires_grad]).sum()


def tokens_fed(batch: dict[str, Any]) -> int:
    """Tokens of a batch that the model sees: `num_tokens` where the batch states it, else those that are no padding."""
    return int(batch["num_tokens"]) if "num_tokens" in batch else int(batch["attention_mask"].sum())


def step_on_window(
    module: L.LightningModule,
    window: dict[str, Any],
    loss_sum: LossSum,
    count_targets: Callable[[dict[str, Any]], int],
    sum_weights: Callable[[dict[str, Any]], float] | None = None,
) -> dict[str, Any]:
    """Backward over all micro-batches, then one optimizer and schedule step.

    Args:
        module: with manual optimization.
        window: as WindowCollator builds it; the mean loss is added as `loss` before the optimizer runs.
        loss_sum: see LossSum.
        count_targets: targets of a batch, before any forward pass.
        sum_weights: sum of the weights of a batch's targets, where the loss weighs them; divides the loss in place of
            their number.

    Returns:
        `loss`, the (weighted) mean over the window's targets on all ranks (detached () tensor), `num_targets` and
        `num_tokens` (int, on all ranks, padding not counted).

    Raises:
        GuardError: the window has no target at all.
    """
    optimizer, schedule = module.optimizers(), module.lr_schedulers()
    assert not isinstance(optimizer, list)
    micro_batches = window["micro_batches"]
    num_targets = sum(count_targets(batch) for batch in micro_batches)
    num_tokens = sum(tokens_fed(batch) for batch in micro_batches)
    world_size = module.trainer.world_size
    if world_size > 1:
        counts = torch.tensor([num_targets, num_tokens], device=module.device)
        num_targets, num_tokens = module.trainer.strategy.reduce(counts, reduce_op="sum").tolist()
    if num_targets == 0:
        ids = ", ".join(map(str, window["sample_ids"].tolist()))
        raise GuardError(
            "no_targets",
            f"step {module.trainer.global_step + 1}: every label is masked, there is nothing to learn from samples "
            f"{ids}; look at the settings that truncate or mask them",
        )
    divisor = float(num_targets)
    if sum_weights is not None:
        divisor = sum(sum_weights(batch) for batch in micro_batches)
        if world_size > 1:
            divisor = float(
                module.trainer.strategy.reduce(torch.tensor(divisor, device=module.device), reduce_op="sum")
            )
    if divisor == 0:
        raise GuardError(
            "no_targets",
            f"step {module.trainer.global_step + 1}: every sample has the weight 0, there is nothing to learn from; "
            "look at module.class_weights",
        )
    total = torch.zeros((), device=module.device)
    # a rank without a sample still takes part in the reduction of gradients
    losses = (loss_sum(batch)[0] for batch in micro_batches) if micro_batches else iter([zero_loss(module)])
    for number, loss in enumerate(losses, start=1):
        is_last = number >= len(micro_batches)
        with contextlib.nullcontext() if is_last else without_gradient_sync(module.trainer.strategy):
            # strategies average gradients over ranks; the factor turns that into a sum
            module.manual_backward(loss * (world_size / divisor))
        total += loss.detach()
    if world_size > 1:
        total = module.trainer.strategy.reduce(total, reduce_op="sum")
    window["loss"] = total / divisor  # guards look at it before the weights move
    optimizer.step()
    optimizer.zero_grad()
    schedule.step()  # type: ignore[union-attr]
    return {"loss": window["loss"], "num_targets": num_targets, "num_tokens": num_tokens}
