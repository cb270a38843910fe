"""Schedule-free AdamW: an average of the iterates takes the place of the learning rate's decay."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_apps.training.sharding import local, local_tensors


class ScheduleFreeAdamW(Optimizer):
    """AdamW with schedule-free averaging (Defazio et al. 2024, "The Road Less Scheduled", arXiv:2405.15682).

    Gradients are taken at y, the base optimizer moves z, and x, a weighted average of all z, is what is evaluated:

        y = (1 - beta1) z + beta1 x
        z <- z - lr (g / (sqrt(v) + eps) + weight_decay y)      v: bias-corrected second moment of g
        x <- (1 - c) x + c z                                    c = lr^2 / sum of lr^2 so far

    The bias correction divides v, as in Adam and in the authors' library; the paper moves it into lr. Warmup comes from
    the schedule, through lr.

    Between `train()` and `eval()` parameters hold y, otherwise x. The authors' library (schedulefree 1.4.1) keeps y and
    z only and rebuilds x from them, so each evaluation rounds the weights that training goes on with, and it counts
    steps per group, so a part that is unfrozen late starts with an uncorrected second moment. Here x is stored: y is
    always the same function of (x, z), looking at x changes nothing, and every parameter counts its own steps.

    Args:
        groups: parameter groups.
        lr: learning rate of groups without one.
        betas: weight of x in y; decay rate of the second moment.
        eps: added to the denominator.
        weight_decay: decoupled, at y, of groups without one.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.at_average = False

    @torch.no_grad()
    def eval(self) -> None:
        """Put the average x into the parameters."""
        self.at_average = True
        for parameter, average in self.averages().items():
            local(parameter).copy_(local(average))

    @torch.no_grad()
    def train(self) -> None:
        """Put y into the parameters, where the next gradient belongs."""
        self.at_average = False
        for group in self.param_groups:
            started = [parameter for parameter in group["params"] if parameter in self.state]
            self._move_to_y(started, group["betas"][0])

    def averages(self) -> dict[Tensor, Tensor]:
        """The x of every parameter that has made a step; the others are their own average."""
        return {parameter: state["x"] for parameter, state in self.state.items()}

    def _move_to_y(self, parameters: list[nn.Parameter], beta: float) -> None:
        weights = local_tensors(parameters)
        if weights:
            torch._foreach_copy_(weights, local_tensors(self.state[parameter]["x"] for parameter in parameters))
            torch._foreach_lerp_(
                weights, local_tensors(self.state[parameter]["z"] for parameter in parameters), 1 - beta
            )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of z and x, then y.

        Raises:
            RuntimeError: the parameters hold x, so their gradients were taken at the wrong place.
        """
        if self.at_average:
            raise RuntimeError("the parameters hold the average: call train() before the forward pass")
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            together: dict[tuple[int, float], list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"], state["weight_sum"] = 0, 0.0
                    state["x"], state["z"] = parameter.clone(), parameter.clone()
                    state["exp_avg_sq"] = torch.zeros_like(parameter)
                together[state["step"], state["weight_sum"]].append(parameter)
            for (step, weight_sum), parameters in together.items():
                self._step(parameters, group, step + 1, weight_sum)
        return loss

    def _step(self, parameters: list[nn.Parameter], group: dict[str, Any], step: int, weight_sum: float) -> None:
        """Step parameters that have made equally many steps before."""
        lr, (beta1, beta2) = group["lr"], group["betas"]
        states = [self.state[parameter] for parameter in parameters]
        x, z, second = (local_tensors(state[name] for state in states) for name in ("x", "z", "exp_avg_sq"))
        weights = local_tensors(parameters)
        gradients = local_tensors(parameter.grad for parameter in parameters if parameter.grad is not None)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, 1 - beta2)
        denominators = torch._foreach_div(second, 1 - beta2**step)
        torch._foreach_sqrt_(denominators)
        torch._foreach_add_(denominators, group["eps"])
        updates = torch._foreach_div(gradients, denominators)
        if group["weight_decay"]:
            torch._foreach_add_(updates, weights, alpha=group["weight_decay"])
        torch._foreach_add_(z, updates, alpha=-lr)
        weight_sum += lr**2
        if weight_sum:  # a learning rate of 0 moves nothing
            torch._foreach_lerp_(x, z, lr**2 / weight_sum)
        self._move_to_y(parameters, beta1)
        for state in states:
            state["step"], state["weight_sum"] = step, weight_sum
