"""Output projection and cross-entropy in one, without ever holding all logits.

The logits of N tokens over V classes are by far the largest tensor of a language model's step, and autograd keeps them
more than once: logits, log-probabilities, their gradient. Here rows are taken in chunks, and what the backward pass
needs, the gradients of states and weight, is computed while a chunk's logits are there (as Liger-Kernel does on GPUs,
Hsu et al. 2024, arXiv:2410.10989).
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_BYTES = 1 << 27
"""Largest buffer of logits. Smaller chunks read the weight and add to its gradient more often: 3,200 tokens, 512
features, 50,304 classes, two cores: 122 GFLOP/s with chunks of 128 rows, 134 with 256, 146 with 640, 149 with 1,600."""
SOFTMAX_BYTES = 1 << 26
"""Most float32 values that exist beside a chunk of bfloat16 logits: their softmax is taken piece by piece."""


def linear_cross_entropy(
    states: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    label_smoothing: float = 0.0,
    chunk_size: int | None = None,
    reduction: Literal["sum", "none"] = "sum",
) -> Tensor:
    """`cross_entropy(linear(states, weight, bias), labels)`, never holding more than a chunk of the logits.

    Under autocast to bfloat16, and with such parameters, matrix products are bfloat16; the softmax, the loss and the
    sum of the weight's gradient over chunks are float32. Where the rest of the network is float16, products are
    float32. Gradients are computed in the forward pass, and only those that are wanted: neither under
    `torch.no_grad()`, nor that of a frozen weight. The result can be differentiated once.

    Args:
        states: (N, d) floating point, contiguous or not; N may be 0.
        weight: (V, d), an output projection; it may be the input embedding as well.
        labels: (N,) int64 in [0, V). Ignored positions are the caller's to drop, and so are their states.
        bias: (V,) of the projection.
        label_smoothing: share of each target that is spread over all V classes (Szegedy et al. 2016).
        chunk_size: rows of a chunk; None chooses what fits into CHUNK_BYTES.
        reduction: `sum`, or `none` for one loss per row, which has no gradient.

    Returns:
        The sum, a () tensor, or (N,) losses; float32, or float64 where the states are.

    Raises:
        ValueError: shapes do not fit together; a label lies outside [0, V) (on a CPU; other devices report it
            themselves, later); `chunk_size` is not positive; `reduction` is unknown, or `none` while a gradient is
            wanted.
    """
    size, width = weight.shape
    if states.ndim != 2 or states.shape[1] != width or labels.shape != states.shape[:1]:
        raise ValueError(
            f"states {tuple(states.shape)}, weight {tuple(weight.shape)} and labels {tuple(labels.shape)} do not fit: "
            "(N, d), (V, d) and (N,) are wanted"
        )
    if reduction not in ("sum", "none"):
        raise ValueError(f"reduction={reduction!r}: allowed are 'sum' and 'none'")
    if labels.device.type == "cpu" and len(labels) > 0:
        low, high = (int(value) for value in torch.aminmax(labels))
        if low < 0 or high >= size:
            raise ValueError(f"label {low if low < 0 else high} lies outside the {size} classes")
    wanted = tuple(
        torch.is_grad_enabled() and tensor is not None and tensor.requires_grad for tensor in (states, weight, bias)
    )
    if reduction == "none" and any(wanted):
        raise ValueError("reduction='none' has no gradient: call it under torch.no_grad()")
    device = states.device.type
    dtype = states.dtype
    if torch.is_autocast_enabled(device) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
    if dtype == torch.float16:  # loses probabilities below 6e-8; a loss scale multiplies gradients when it is too late
        dtype = torch.float32
    if chunk_size is None:
        chunk_size = max(CHUNK_BYTES // (size * dtype.itemsize), 1)
    if chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size}: at least 1 is needed")
    num_chunks = max(math.ceil(len(states) / chunk_size), 1)
    rows_per_chunk = math.ceil(len(states) / num_chunks)  # chunks of one size, not a small one left over
    losses, loss_sum = _LinearCrossEntropy.apply(
        states, weight, bias, labels, label_smoothing, rows_per_chunk, dtype, wanted
    )
    return loss_sum if reduction == "sum" else losses


class _LinearCrossEntropy(torch.autograd.Function):
    """Losses (N,) and their sum (); only the sum has gradients, which the forward pass has computed already."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        label_smoothing: float,
        rows_per_chunk: int,
        dtype: torch.dtype,
        wanted: tuple[bool, bool, bool],
    ) -> tuple[Tensor, Tensor]:
        # products with `out` are not autocast: operands are cast here, once, and not in each chunk
        with torch.autocast(states.device.type, enabled=False):
            losses, *gradients = _losses_and_gradients(
                states, weight, bias, labels, label_smoothing, rows_per_chunk, dtype, wanted
            )
        ctx.gradients = gradients
        ctx.mark_non_differentiable(losses)
        return losses, losses.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("linear_cross_entropy can be differentiated once: its gradients were scaled in place")
        # handed over, not kept: autograd then takes them as .grad without a copy
        gradients, ctx.gradients = ctx.gradients, None
        for gradient in gradients:
            if gradient is not None:
                gradient.mul_(grad_loss)
        return (*gradients, None, None, None, None, None)


def _losses_and_gradients(
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    label_smoothing: float,
    rows_per_chunk: int,
    dtype: torch.dtype,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Losses (N,) and the gradients of their sum; None for those that are not wanted."""
    num_rows, size = len(states), len(weight)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    factor = weight.to(dtype)
    grad_states = torch.empty_like(states, memory_format=torch.contiguous_format) if wanted[0] else None
    grad_weight = torch.zeros_like(weight, dtype=exact) if wanted[1] else None
    grad_bias = torch.zeros_like(bias, dtype=exact) if bias is not None and wanted[2] else None
    losses = states.new_empty(num_rows, dtype=exact)
    buffer = states.new_empty(rows_per_chunk, size, dtype=dtype)
    rows_per_piece = max(SOFTMAX_BYTES // (size * exact.itemsize), 1)
    for start in range(0, num_rows, max(rows_per_chunk, 1)):
        chunk = slice(start, min(start + rows_per_chunk, num_rows))
        rows = states[chunk].to(dtype)  # (R, d)
        logits = buffer[: len(rows)]  # (R, V)
        if bias is None:
            torch.mm(rows, factor.t(), out=logits)
        else:
            torch.addmm(bias.to(dtype), rows, factor.t(), out=logits)
        for first in range(0, len(rows), rows_per_piece):
            piece = slice(first, first + rows_per_piece)
            losses[chunk][piece] = _losses_then_gradient(
                logits[piece], labels[chunk][piece], label_smoothing, exact, any(wanted)
            )
        if not any(wanted):
            continue
        gradient = logits
        if grad_states is not None:
            grad_states[chunk] = torch.mm(gradient, factor)  # (R, d)
        if grad_weight is not None and dtype == exact:
            grad_weight.addmm_(gradient.t(), rows)  # (V, d)
        elif grad_weight is not None:
            grad_weight += torch.mm(gradient.t(), rows)
        if grad_bias is not None:
            grad_bias += gradient.sum(0, dtype=exact)
    if grad_weight is not None:
        grad_weight = grad_weight.to(weight.dtype)
    if bias is not None and grad_bias is not None:
        grad_bias = grad_bias.to(bias.dtype)
    return losses, grad_states, grad_weight, grad_bias


def _losses_then_gradient(
    logits: Tensor, labels: Tensor, label_smoothing: float, exact: torch.dtype, differentiate: bool
) -> Tensor:
    """Losses (n,) of n rows, whose logits (n, V) become the gradient with respect to them."""
    values = logits.to(exact)  # the logits themselves where they are exact
    at = labels[:, None]  # (n, 1)
    score = (1 - label_smoothing) * values.gather(1, at)  # (n, 1)
    if label_smoothing:
        score += label_smoothing * values.mean(1, keepdim=True)
    highest = values.amax(1, keepdim=True)
    total = values.sub_(highest).exp_().sum(1, keepdim=True)
    if differentiate:
        values.div_(total)
        # not scatter_add_, which is not deterministic on every device
        values.scatter_(1, at, values.gather(1, at) - (1 - label_smoothing))
        if label_smoothing:
            values.sub_(label_smoothing / values.shape[1])
        if values is not logits:
            logits.copy_(values)
    return (highest - score + total.log()).squeeze(1)
