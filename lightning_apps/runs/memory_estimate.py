"""How much memory a training step needs, measured by what autograd keeps, and how much there is."""

import copy
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_apps.experiments.experiment import Experiment

TRANSIENT = 1.5
"""Peak over what autograd keeps: gradients of activations, and buffers inside kernels. On a CPU, MiniLM with 8
texts of 512 tokens grew by 1,205 and 1,275 MB beyond its weights in two runs; the estimate is 1,190."""


@dataclass(frozen=True)
class AvailableMemory:
    """Bytes that are free `now` and there in `total`; `shared` where all processes of a run draw on them."""

    now: int
    total: int
    shared: bool


def state_bytes(module: Experiment) -> dict[str, int]:
    """Bytes of `weights`, `gradients` and `optimizer` (what it keeps of each weight, counters left out).

    The optimizer itself is asked, whichever it is: it steps a copy of the network whose weights have shapes and no
    memory.
    """
    parameters = list(module.net.parameters())
    shapes: dict[int, Any] = {
        id(weight): nn.Parameter(torch.empty_like(weight, device="meta"), requires_grad=weight.requires_grad)
        for weight in parameters
    }
    optimizer = module.build_optimizer(copy.deepcopy(module.net, shapes))
    for group in optimizer.param_groups:
        if "fused" in group:
            group["fused"] = False  # that kernel exists on real devices only
        for weight in group["params"]:
            weight.grad = torch.empty_like(weight)
    optimizer.step()
    kept = [
        value
        for weight, state in optimizer.state.items()
        for value in state.values()
        if isinstance(value, torch.Tensor) and value.shape == weight.shape
    ]
    return {
        "weights": _bytes(parameters),
        "gradients": _bytes([weight for weight in parameters if weight.requires_grad]),
        "optimizer": _bytes(kept),
    }


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def checkpoint_bytes(module: Experiment, *, has_average: bool) -> int:
    """Bytes of tensors in one checkpoint; the file has some hundred more for each tensor.

    Args:
        module: with weights of the type that they are trained in.
        has_average: whether the average of the weights is kept beside them.
    """
    parts = state_bytes(module)
    return parts["weights"] * (1 + has_average) + parts["optimizer"]


def step_memory(module: Any, one: dict[str, Any], two: dict[str, Any], units: int = 1) -> tuple[int, int]:
    """Bytes that a step needs whatever the micro-batch, and those for each of the largest samples in it.

    Weights, gradients and two moments of Adam are counted beside what `activation_memory` measures.
    """
    fixed, each = activation_memory(module, one, two, units)
    state = sum(
        parameter.numel() * parameter.element_size() * (4 if parameter.requires_grad else 1)
        for parameter in module.parameters()
    )
    return state + fixed, each


def activation_memory(module: Any, one: dict[str, Any], two: dict[str, Any], units: int = 1) -> tuple[int, int]:
    """Bytes of activations whatever the micro-batch, and those for each of the largest samples in it.

    Two forward passes give the slope. Nothing of the module changes.

    Args:
        module: with `loss_sum(batch)`.
        one: batch of one unit, a sample or the part of one that memory is proportional to.
        two: batch of two.
        units: of the largest sample.
    """
    first, second = saved_bytes(module, one), saved_bytes(module, two)
    unit = int(TRANSIENT * max(second - first, 0))
    return max(int(TRANSIENT * first) - unit, 0), units * unit


def saved_bytes(module: Any, batch: dict[str, Any]) -> int:
    """Bytes that autograd keeps for the backward pass of one batch, each storage once, parameters left out."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    kept: dict[int, tuple[torch.Tensor, int]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.detach()  # a node of the graph that holds its own output is never freed
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = (tensor, storage.nbytes())  # held, so that no address is used twice
        return tensor

    device = next(module.parameters()).device
    batch = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
    was_training = module.training
    module.train()
    try:
        with torch.random.fork_rng(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = module.loss_sum(batch)[0]
        del loss
        return sum(size for _, size in kept.values())
    finally:
        module.train(was_training)


def available_memory_bytes(accelerator: str) -> AvailableMemory | None:
    """Memory of the accelerator; None where nobody says."""
    if accelerator == "gpu":
        free, total = torch.cuda.mem_get_info()
        return AvailableMemory(free, total, shared=False)
    if accelerator == "mps":
        total = torch.mps.recommended_max_memory()
        return AvailableMemory(total - torch.mps.driver_allocated_memory(), total, shared=False)
    if not sys.platform.startswith("linux"):
        return None
    found = {}
    for line in Path("/proc/meminfo").read_text(encoding="ascii").strip().split("\n"):
        name, _, value = line.partition(":")
        found[name] = 1024 * int(value.split()[0])
    now, total = found["MemAvailable"], found["MemTotal"]
    group = Path("/sys/fs/cgroup")  # a container's limit, where it has one of its own
    try:
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        used = int((group / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):  # no such file, or "max"
        return AvailableMemory(now, total, shared=True)
    return AvailableMemory(min(now, limit - used), min(total, limit), shared=True)
