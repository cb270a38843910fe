"""Floating-point operations that a network's training step needs, from its parameters that multiply and its attention.

Only what the result depends on counts, so that a share of the machine's peak says how well a step was computed: no
look-up of an embedding, no padding, no gradient that nobody takes, no second forward pass of gradient checkpointing,
and the output projection or classifier where there is a target.
"""

import functools
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True)
class StepFlops:
    """What a token, a target and a pair of tokens cost, forward and backward together.

    Attributes:
        per_token: FLOPs of the matrices that every token passes.
        per_target: FLOPs of what stands on the network's body, an output projection or a classifier: what has a target
            passes it.
        per_pair: FLOPs of attention for a query and a key that it sees, over all layers.
        is_causal: whether a token sees itself and those before it, and not all of its text.
    """

    per_token: float
    per_target: float
    per_pair: float
    is_causal: bool

    def of_step(self, *, num_tokens: int, num_targets: int, num_texts: int) -> float:
        """FLOPs of a step.

        Args:
            num_tokens: fed to the network, padding not counted.
            num_targets: of the step.
            num_texts: that attend to themselves; they count as equally long, which is the least that attention costs.
        """
        length = num_tokens / max(num_texts, 1)
        seen = (length + 1) / 2 if self.is_causal else length
        return self.per_token * num_tokens + self.per_target * num_targets + self.per_pair * seen * num_tokens


def count_flops(net: PreTrainedModel) -> StepFlops:
    """What a training step of a network costs, by the weights that are trained now.

    A matrix of m x n costs 2mn FLOPs a token forward, as many again for the gradient of its input where something below
    it is trained, and as many for its own where it is trained itself (Kaplan et al. 2020, appendix B).
    Attention over heads of width d costs 4d a pair and head forward (scores and values), and 8d backward.

    Keys and values of the lowest trained layer count as if the queries stood below them, a hundredth too much at most.

    Args:
        net: with `requires_grad` as it is trained; layers in the order in which they compute, as transformers has them.
    """
    config, body = _text_config(net), set(net.base_model.modules())
    per_token = per_target = 0.0
    is_trained_below = False
    for module in net.modules():
        if isinstance(module, (nn.Linear, Conv1D)):
            weight: Tensor = module.weight
            times = 1 + is_trained_below + weight.requires_grad
            if module in body:
                per_token += 2.0 * weight.numel() * times
            else:
                per_target += 2.0 * weight.numel() * times
        is_trained_below |= any(parameter.requires_grad for parameter in module.parameters(recurse=False))
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_layer = 4.0 * width * config.num_attention_heads
    return StepFlops(
        per_token=per_token,
        per_target=per_target,
        per_pair=per_layer * (config.num_hidden_layers + 2 * _num_layers_with_gradient(net)),
        is_causal=net.can_generate(),
    )


def _text_config(net: PreTrainedModel) -> PreTrainedConfig:
    """Sizes of the body: a classifier of documents keeps them with its encoder."""
    body: Any = net.base_model
    config: PreTrainedConfig = body.config.get_text_config()
    return config


def _num_layers_with_gradient(net: PreTrainedModel) -> int:
    """Layers through whose attention gradients flow: the lowest that is trained, and those above it."""
    blocks = (module for module in net.modules() if isinstance(module, nn.ModuleList))
    layers = next(block for block in blocks if len(block) == _text_config(net).num_hidden_layers)
    parts: list[nn.Module] = [*layers]
    if any(weight.requires_grad for weight in net.get_input_embeddings().parameters()):
        return len(parts)
    trained = [any(weight.requires_grad for weight in part.parameters()) for part in parts]
    return len(parts) - trained.index(True) if True in trained else 0


@functools.cache
@torch.no_grad()
def measure_peak_flops(device: torch.device, dtype: torch.dtype, *, size: int | None = None, rounds: int = 4) -> float:
    """FLOP/s of a product of two (size, size) matrices, the best of some rounds: the most that a step can reach.

    Once in a process; draws from no generator that training draws from. A CPU gets matrices of 1024 unless told
    otherwise: those of 2048 are no faster there, and their 50 MB were the peak of a small network's memory.
    """
    size = size or (1024 if device.type == "cpu" else 2048)
    draws = torch.Generator(device).manual_seed(0)
    left, right = (torch.randn(size, size, device=device, generator=draws).to(dtype) for _ in range(2))
    result = left @ right
    took = []
    for _ in range(rounds + 1):  # the first warms up
        _wait_for(device)
        began = time.perf_counter()
        torch.mm(left, right, out=result)
        _wait_for(device)
        took.append(time.perf_counter() - began)
    return 2.0 * size**3 / min(took[1:])


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
