"""From `hardware` to the strategy that Lightning drives."""

import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from lightning.pytorch.plugins.environments import ClusterEnvironment, LightningEnvironment, SLURMEnvironment
from lightning.pytorch.strategies import Strategy

from lightning_apps.training.strategies import ReplicatedStrategy, ShardedStrategy

DEFAULT_TIMEOUT_S = 1800.0


def build_strategy(config: Mapping[str, Any]) -> Strategy | str:
    """The strategy that `hardware.strategy` names; config/hardware_checks.py says which there are."""
    hardware = config["hardware"]
    name = hardware["strategy"]
    timeout = timedelta(seconds=hardware.get("timeout_s", DEFAULT_TIMEOUT_S))
    if name == "fsdp2":
        return ShardedStrategy(timeout)
    if name == "auto" and hardware["devices"] * hardware.get("num_nodes", 1) == 1:
        return "auto"
    # DDP decides once whose gradients it adds up, unless it may look for those that a step leaves out
    changes = bool(config["optimizer"].get("unfreeze")) or name == "ddp_find_unused_parameters_true"
    return ReplicatedStrategy(timeout=timeout, find_unused_parameters=changes)


def cluster_environment(hardware: Mapping[str, Any]) -> list[ClusterEnvironment]:
    """What starts the processes, where Lightning would take it for something else.

    In a SLURM job of a single task, Lightning believes that srun has started all processes, and waits for those that
    nobody starts.
    """
    processes = hardware["devices"] * hardware.get("num_nodes", 1)
    by_slurm = SLURMEnvironment.detect() and "TORCHELASTIC_RUN_ID" not in os.environ
    return [LightningEnvironment()] if processes > 1 and by_slurm and os.environ.get("SLURM_NTASKS") == "1" else []
