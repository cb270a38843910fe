"""Which of a run's processes this one is, before there is a Trainer to ask."""

import os
from collections.abc import Mapping
from typing import Any


def global_rank(devices: int = 1) -> int:
    """Number of this process among those of its run: 0 is the first.

    torchrun says it in RANK. srun says it in SLURM_PROCID, to which Lightning adds LOCAL_RANK in the processes that it
    starts itself (in an interactive allocation they inherit the first one's SLURM_PROCID). Without either, NODE_RANK
    and LOCAL_RANK together say it.

    Args:
        devices: processes on each node.
    """
    if (rank := _number("RANK")) is not None:
        return rank
    within_nodes = (_number("NODE_RANK") or 0) * devices + (_number("LOCAL_RANK") or 0)
    return max(_number("SLURM_PROCID") or 0, within_nodes)


def is_first_process(hardware: Mapping[str, Any]) -> bool:
    """Whether this process claims directories, writes and speaks; a run of one process has no other.

    The environment alone cannot tell: four runs that one srun starts side by side have four ranks and are all first.

    Args:
        hardware: the run's `hardware` settings.
    """
    devices, nodes = hardware["devices"], hardware.get("num_nodes", 1)
    return devices * nodes == 1 or global_rank(devices) == 0


def _number(variable: str) -> int | None:
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() else None
