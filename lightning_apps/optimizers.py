"""Optimizers and the parameter groups they work on."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


def parameter_groups(module: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups of the trainable parameters: matrices with weight decay; norms, biases and other vectors without.

    Decaying a norm's gain or a bias pulls the function, not its complexity, toward zero.

    Raises:
        ValueError: nothing is trainable.
    """
    trainable = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError("no parameter is trainable: unfreeze some part of the model")
    matrices = [parameter for _, parameter in trainable if parameter.ndim >= 2]
    vectors = [parameter for _, parameter in trainable if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def adamw(
    module: nn.Module, *, lr: float, betas: list[float], eps: float, weight_decay: float, fused: bool
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019) over parameter_groups.

    Args:
        module: whose trainable parameters are optimized.
        lr: peak learning rate.
        betas: decay rates of the first and second moment.
        eps: added to the denominator.
        weight_decay: decoupled, on matrices only.
        fused: one kernel for all parameters; not with a gradient scaler, whose unscaled gradients clipping needs.
    """
    first, second = betas
    groups = parameter_groups(module, weight_decay=weight_decay)
    return torch.optim.AdamW(groups, lr=lr, betas=(first, second), eps=eps, fused=fused)


def global_norm(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """Euclidean norm of all tensors together, a () tensor."""
    norms = torch._foreach_norm(list(tensors))
    return torch.linalg.vector_norm(torch.stack(norms))
