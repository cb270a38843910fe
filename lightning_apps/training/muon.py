"""Muon for hidden matrices and AdamW for everything else, as one optimizer."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Muon, Optimizer

from lightning_apps.training.sharding import scattered


class BatchedMuon(Muon):
    """torch.optim.Muon for matrices of which many have one shape: those are orthogonalized together.

    On a CPU in float32, where torch iterates in bfloat16 whatever the processor makes of it: many small products of
    bfloat16 take up to a third of a step (LOG.md). Elsewhere in bfloat16, as torch's. Groups, settings and state are
    torch's own; learning rates are scaled as `adjust_lr_fn="match_rms_adamw"` does.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of all matrices that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            alike: dict[tuple[torch.device, torch.Size], list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[parameter.device, parameter.shape].append(parameter)
            for (_, shape), parameters in alike.items():
                updates = [self._momentum_update(parameter, group) for parameter in parameters]
                steps = orthogonalized(
                    torch.stack([whole(update) for update in updates]),
                    coefficients=group["ns_coefficients"], num_steps=group["ns_steps"], eps=group["eps"],
                )  # fmt: skip
                rate = 0.2 * max(shape) ** 0.5 * group["lr"]
                for parameter, step in zip(parameters, steps.to(parameters[0].dtype), strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(
                        scattered(step, parameter), alpha=-rate
                    )
        return loss

    def _momentum_update(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        assert parameter.grad is not None
        average = state["momentum_buffer"].lerp_(parameter.grad, 1 - group["momentum"])
        return parameter.grad.lerp(average, group["momentum"]) if group["nesterov"] else average


def orthogonalized(matrices: Tensor, *, coefficients: tuple[float, float, float], num_steps: int, eps: float) -> Tensor:
    """The nearest matrices whose singular values are all alike, about, by Newton and Schulz (Jordan et al. 2024).

    Args:
        matrices: (n, rows, columns).
        coefficients: of X, X X^T X and (X X^T)^2 X in each iteration.
        num_steps: iterations.
        eps: the least norm that a matrix is divided by.

    Returns:
        (n, rows, columns), float32 on a CPU and bfloat16 elsewhere; singular values between about 0.7 and 1.2.
    """
    a, b, c = coefficients
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.to(torch.float32 if matrices.device.type == "cpu" else torch.bfloat16)
    x = x.mT if is_tall else x
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=eps)
    for _ in range(num_steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor of which each process holds a shard."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class MuonWithAdamW(Optimizer):
    """Steps BatchedMuon and torch.optim.AdamW together, bit for bit as each would step alone.

    One object, because Lightning counts a step per optimizer and drives one schedule. Both work on the param_groups and
    the state of this object, so schedules, checkpoints and logs see everything in one place.

    Args:
        hidden: groups of 2-D parameters for Muon.
        others: groups for AdamW; either may be empty, not both.
        lr: learning rate of groups without one.
        betas: AdamW's decay rates of the first and second moment, each in [0, 1).
        eps: what AdamW adds to the denominator.
        weight_decay: decoupled, of groups without one.
        fused: whether AdamW steps all its parameters in one kernel.
    """

    def __init__(
        self,
        hidden: list[dict[str, Any]],
        others: list[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        fused: bool,
    ) -> None:
        # Moonshot's scaling gives Muon's updates the size of Adam's (Liu et al. 2025, arXiv:2502.16982), so that one
        # learning rate and one weight decay serve both
        self.parts: list[Optimizer] = []
        if hidden:
            self.parts.append(BatchedMuon(hidden, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"))
        if others:
            self.parts.append(AdamW(others, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=fused))
        self.sizes = [len(part.param_groups) for part in self.parts]
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Let the parts work on this object's groups and state."""
        groups = iter(self.param_groups)
        for part, size in zip(self.parts, self.sizes, strict=True):
            part.param_groups = [next(groups) for _ in range(size)]
            part.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state that state_dict gave."""
        super().load_state_dict(state_dict)  # replaces groups and state by new objects
        self._share()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss
