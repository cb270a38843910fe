"""The norm of all gradients together, and clipping by it."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from lightning_apps.training.sharding import local_tensors


def global_norm(tensors: Iterable[Tensor]) -> Tensor:
    """Euclidean norm of all tensors together, a () tensor; of whole tensors, where a rank holds shards of them."""
    given = list(tensors)
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(local_tensors(given))))
    if not given or not isinstance(given[0], DTensor):
        return norm
    squares = norm.float().square()
    torch.distributed.all_reduce(squares, group=given[0].device_mesh.get_group())
    return squares.sqrt()


def gradients_of(optimizer: Optimizer) -> list[Tensor]:
    """Gradients of all parameters that have one, in the optimizer's order."""
    return [
        parameter.grad
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.grad is not None
    ]


def clip_gradients(gradients: Sequence[Tensor], max_norm: float | None, *, scale: Tensor | None = None) -> Tensor:
    """Scale gradients in place so that their global norm is at most `max_norm`.

    Args:
        gradients: of all parameters together.
        max_norm: largest norm; None only measures.
        scale: () factor that the gradients still bear, of float16's loss scaling; a power of two, so that taking it out
            of the norm instead of out of every gradient changes no digit.

    Returns:
        The norm before clipping, a () float32 tensor; nothing is read from the device.
    """
    norm = global_norm(gradients)
    if scale is not None:
        norm = norm / scale
    if max_norm is not None:
        factor = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
        # a factor that is not finite would hide which gradient is bad from the guards
        factor = torch.where(torch.isfinite(norm), factor, 1.0)
        torch._foreach_mul_(local_tensors(gradients), factor)
    return norm
