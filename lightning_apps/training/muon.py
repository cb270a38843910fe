"""Muon for hidden matrices and AdamW for everything else, as one optimizer."""

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import AdamW, Muon, Optimizer


class MuonWithAdamW(Optimizer):
    """Steps torch.optim.Muon and torch.optim.AdamW together, bit for bit as each would step alone.

    One object, because Lightning counts a step per optimizer and drives one schedule. Both work on the param_groups and
    the state of this object, so schedules, checkpoints and logs see everything in one place.

    Args:
        hidden: groups of 2-D parameters for Muon, at least one.
        others: groups for AdamW; may be empty.
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
        self.parts: list[Optimizer] = [Muon(hidden, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")]
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
