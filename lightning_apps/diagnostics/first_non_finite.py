"""Where NaN or Inf first appears: in which parameter, gradient or module, and for which samples."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from datamodules.contract import StepBatch
from datamodules.sampling.step_batches import micro_batch_ids

LossSum = Callable[[dict[str, Any]], tuple[Tensor, Tensor | int]]
MAX_NAMED_SAMPLES = 8


@dataclass(frozen=True)
class NonFinite:
    """A finding in words (`NaN in the output of net.model.layers.3.mlp`) and the samples it concerns."""

    where: str
    sample_ids: list[int]

    def __str__(self) -> str:
        named = ", ".join(map(str, self.sample_ids[:MAX_NAMED_SAMPLES]))
        more = (
            f" and {len(self.sample_ids) - MAX_NAMED_SAMPLES} more" if len(self.sample_ids) > MAX_NAMED_SAMPLES else ""
        )
        return self.where + (f" for samples {named}{more}" if named else "")


def non_finite_kind(values: Tensor) -> str | None:
    """`NaN`, `Inf`, or None where every value is finite; of a sharded tensor all ranks ask together."""
    if isinstance(values, DTensor):
        values = values.full_tensor()
    if not values.is_floating_point() or bool(torch.isfinite(values).all()):
        return None
    return "NaN" if bool(torch.isnan(values).any()) else "Inf"


def bad_parameter(module: nn.Module) -> str | None:
    """The first parameter that holds NaN or Inf, in words."""
    for name, parameter in module.named_parameters():
        if kind := non_finite_kind(parameter.detach()):
            whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
            count = int((~torch.isfinite(whole)).sum())
            return f"{kind} in parameter {name} ({count:,} of {parameter.numel():,} values)"
    return None


def bad_gradient(module: nn.Module) -> str | None:
    """The gradient with NaN or Inf that is nearest to the loss, where a backward pass meets the fault first."""
    gradients = [(name, parameter.grad) for name, parameter in module.named_parameters() if parameter.grad is not None]
    bad = [(name, kind) for name, gradient in gradients if (kind := non_finite_kind(gradient))]
    if not bad:
        return None
    name, kind = bad[-1]
    return f"{kind} in the gradient of {name} ({len(bad)} of {len(gradients)} gradients are not finite)"


class _Found(Exception):  # noqa: N818 (ends the forward pass; nothing failed)
    def __init__(self, where: str, values: Tensor) -> None:
        self.where = where
        self.values = values


@torch.no_grad()
def trace_step(module: nn.Module, loss_sum: LossSum, step: StepBatch) -> tuple[NonFinite | None, float]:
    """Run the forward passes of a step again and stop at the first value that is not finite.

    A module is named when its output is bad and what went into it was not; where bad values reach a module from code
    between modules, the module around that code is named. Masks may hold -Inf and are not looked at.

    Args:
        module: owns the network; in the mode (training or evaluation), precision and random state of the step.
        loss_sum: batch -> loss summed over its targets, number of targets (or sum of their weights).
        step: what feeds it, on the module's device.

    Returns:
        The finding, None where everything is finite, and the mean loss over this rank's targets (NaN with a finding).
    """
    running: list[str] = []

    def enter(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
            given = [*args, *(value for key, value in kwargs.items() if "mask" not in key)]
            for values in _tensors(given):
                if kind := non_finite_kind(values):
                    where = f"inside {running[-1]}, before {name}" if running else f"in the input of {name}"
                    raise _Found(f"{kind} {where}", values)
            running.append(name)

        return hook

    def leave(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: object, output: object) -> None:
            running.pop()
            for values in _tensors(output):
                if kind := non_finite_kind(values):
                    raise _Found(f"{kind} in the output of {name}", values)

        return hook

    total, targets = 0.0, 0.0
    with ExitStack() as handles:
        for name, part in module.named_modules():
            if name:
                handles.callback(part.register_forward_pre_hook(enter(name), with_kwargs=True).remove)
                handles.callback(part.register_forward_hook(leave(name)).remove)
        for batch, ids in zip(step.micro_batches, micro_batch_ids(step), strict=True):
            running.clear()
            try:
                loss, count = loss_sum(batch)
            except _Found as found:
                rows_are_samples = len(batch.get("input_ids", ids)) == len(ids)  # and not chunks of samples
                bad = _bad_samples(found.values, ids) if rows_are_samples else ids
                return NonFinite(found.where, bad), float("nan")
            if kind := non_finite_kind(loss):
                return NonFinite(f"{kind} in the loss, every module's output being finite", ids), float("nan")
            total += float(loss)
            targets += float(count)
    return None, total / targets if targets else 0.0


def _tensors(value: object) -> Iterator[Tensor]:
    """All tensors in a nest of mappings, lists and tuples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from _tensors(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _tensors(entry)


def _bad_samples(values: Tensor, ids: list[int]) -> list[int]:
    """The samples whose rows are bad; all of the micro-batch where rows are not samples."""
    if values.ndim < 2 or len(values) != len(ids):
        return ids
    bad = (~torch.isfinite(values)).flatten(1).any(1).tolist()
    return [sample for sample, is_bad in zip(ids, bad, strict=True) if is_bad]
