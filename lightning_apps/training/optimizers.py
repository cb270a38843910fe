"""Optimizers, each a function of a module and plain settings."""

from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import nn

from lightning_apps.errors import ConfigError
from lightning_apps.training.muon import MuonWithAdamW
from lightning_apps.training.parameter_groups import GroupRule, hidden_matrices, parameter_groups
from lightning_apps.training.schedule_free import ScheduleFreeAdamW

NotNegative = Annotated[float, Ge(0)]
Beta = Annotated[float, Ge(0), Lt(1)]
LayerDecay = Annotated[float, Gt(0), Le(1)]


def adamw(
    module: nn.Module,
    *,
    lr: NotNegative,
    betas: list[Beta],
    eps: NotNegative,
    weight_decay: NotNegative,
    groups: list[GroupRule],
    layer_decay: LayerDecay | None,
    fused: bool,
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019) over parameter_groups.

    Args:
        module: whose trainable parameters are optimized.
        lr: peak learning rate.
        betas: decay rates of the first and second moment.
        eps: added to the denominator.
        weight_decay: decoupled, on matrices only, at least 0; a rule of `groups` may give another one.
        groups: rules with a learning rate or weight decay of their own; the first that finds a parameter counts.
        layer_decay: factor of the learning rate from one layer to the one before it; None for none.
        fused: one kernel for all parameters; not with a gradient scaler, whose unscaled gradients clipping needs.
    """
    first, second = betas
    made = parameter_groups(module, lr=lr, weight_decay=weight_decay, groups=groups, layer_decay=layer_decay)
    return torch.optim.AdamW(made, lr=lr, betas=(first, second), eps=eps, fused=fused)


def muon(
    module: nn.Module,
    *,
    lr: NotNegative,
    betas: list[Beta],
    eps: NotNegative,
    weight_decay: NotNegative,
    groups: list[GroupRule],
    layer_decay: LayerDecay | None,
    fused: bool,
) -> torch.optim.Optimizer:
    """Muon (Jordan et al. 2024) for the matrices inside the layers; AdamW for embeddings, heads, norms and biases.

    Args:
        module: whose trainable parameters are optimized.
        lr: peak learning rate of both; what suits AdamW suits Muon.
        betas: AdamW's decay rates of the first and second moment; Muon keeps torch's momentum.
        eps: what AdamW adds to the denominator; Muon keeps torch's.
        weight_decay: decoupled, on matrices only, at least 0; a rule of `groups` may give another one.
        groups: rules with a learning rate or weight decay of their own; the first that finds a parameter counts.
        layer_decay: factor of the learning rate from one layer to the one before it; None for none.
        fused: one kernel for all parameters of AdamW; not with a gradient scaler, whose unscaled gradients clipping
            needs.

    Raises:
        ConfigError: no matrix lies in a numbered layer. Where all that do are frozen, AdamW has the rest.
    """
    first, second = betas
    matrices = hidden_matrices(module)
    if not matrices:
        raise ConfigError(
            "optimizer=muon: no matrix lies in a numbered layer (layers.3., layer.3., h.3., block.3.), and Muon is for "
            "those; choose optimizer=adamw"
        )
    hidden: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    for group in parameter_groups(module, lr=lr, weight_decay=weight_decay, groups=groups, layer_decay=layer_decay):
        for side, part, is_hidden in ((hidden, "muon", True), (others, "adamw", False)):
            chosen = [parameter for parameter in group["params"] if (parameter in matrices) is is_hidden]
            if chosen:
                side.append({**group, "params": chosen, "name": f"{part}/{group['name']}"})
    return MuonWithAdamW(hidden, others, lr=lr, betas=(first, second), eps=eps, weight_decay=weight_decay, fused=fused)


def schedule_free_adamw(
    module: nn.Module,
    *,
    lr: NotNegative,
    betas: list[Beta],
    eps: NotNegative,
    weight_decay: NotNegative,
    groups: list[GroupRule],
    layer_decay: LayerDecay | None,
) -> torch.optim.Optimizer:
    """Schedule-free AdamW (Defazio et al. 2024); goes with the schedule `constant`, whose warmup it needs.

    Args:
        module: whose trainable parameters are optimized.
        lr: learning rate; one to ten times that of AdamW.
        betas: share of the average in the point where gradients are taken; decay rate of the second moment.
        eps: added to the denominator.
        weight_decay: decoupled, on matrices only, at least 0; a rule of `groups` may give another one.
        groups: rules with a learning rate or weight decay of their own; the first that finds a parameter counts.
        layer_decay: factor of the learning rate from one layer to the one before it; None for none.
    """
    first, second = betas
    made = parameter_groups(module, lr=lr, weight_decay=weight_decay, groups=groups, layer_decay=layer_decay)
    return ScheduleFreeAdamW(made, lr=lr, betas=(first, second), eps=eps, weight_decay=weight_decay)
