"""Strategies by name, and whether the processes that are there are those that were asked for; no import of torch."""

import os
from collections.abc import Mapping
from typing import Any

from lightning_apps.errors import ConfigError, did_you_mean

STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true", "fsdp2")
"""Those that keep what holds for one process."""
_COPIES = (
    "its processes are copies inside of this one, and take weights, metrics and the right to write files (one writer a "
    "file) with them when they end; hardware=ddp starts whole processes"
)
_XLA = "it needs a TPU, on which none of the laws of a run was ever shown; choose hardware=gpu, ddp or fsdp"
REFUSED = {
    "ddp_spawn": _COPIES,
    "ddp_fork": _COPIES,
    "ddp_notebook": _COPIES,
    "deepspeed": "DeepSpeed clips and steps by itself: loss and norm are not those of one process (exact loss), and its"
    " checkpoints are read by itself only; hardware=fsdp shards weights, gradients and optimizer",
    "fsdp": "FSDP1 makes flat pieces of the parameters, whose norms are not those of the parameters (whole norms); "
    "hardware=fsdp or cpu_fsdp is FSDP2, hardware.strategy=fsdp2",
    "single_device": "that is what one device has without being asked; leave hardware.strategy=auto",
    "xla": _XLA,
    "single_xla": _XLA,
    "single_tpu": _XLA,
}
"""What else Lightning knows, by the beginning of its name: which law it breaks, and what to use."""


def check_strategy(name: str) -> None:
    """Refuse a strategy that does not keep the laws of a run.

    Raises:
        ConfigError: saying which law, and what to use.
    """
    if name in STRATEGIES:
        return
    family = max((known for known in REFUSED if name == known or name.startswith(f"{known}_")), key=len, default=None)
    if family is not None:
        raise ConfigError(f"hardware.strategy={name}: {REFUSED[family]}")
    raise ConfigError(
        f"hardware.strategy={name!r}{did_you_mean(name, list(STRATEGIES))}: allowed are {', '.join(STRATEGIES)}"
    )


def check_hardware(hardware: Mapping[str, Any], precision: Mapping[str, Any]) -> None:
    """Refuse what does not go together, and a number of processes that is not the one that was started.

    Raises:
        ConfigError: naming the keys.
    """
    check_strategy(hardware["strategy"])
    devices, nodes = hardware["devices"], hardware.get("num_nodes", 1)
    accelerator = hardware["accelerator"]
    if accelerator == "cpu" and precision["name"] == "fp16_mixed":
        raise ConfigError("precision=fp16_mixed needs a GPU; on a CPU choose precision=fp32 or bf16_mixed")
    if accelerator == "mps" and devices * nodes > 1:
        raise ConfigError(f"hardware.devices={devices}: with hardware=mps there is one device")
    if accelerator == "mps" and precision["name"] == "bf16_true":
        raise ConfigError("precision=bf16_true is not supported with hardware=mps; choose fp32 or fp16_mixed")
    if hardware["strategy"] == "fsdp2":
        if accelerator == "mps":
            raise ConfigError("hardware.strategy=fsdp2: hardware=mps has one device and nothing to shard over")
        if precision["lightning"] not in ("auto", "32-true", "bf16-mixed", "bf16-true"):
            raise ConfigError(
                f"precision={precision['name']}: with hardware.strategy=fsdp2 choose fp32, bf16_mixed or bf16_true"
            )
        if hardware["compile"]:
            raise ConfigError(
                "hardware.compile=true: not with hardware.strategy=fsdp2, whose blocks gather their weights in "
                "between; set it to false, or choose hardware=ddp"
            )
    if devices * nodes > 1:
        _check_processes(devices, nodes)


def _check_processes(devices: int, nodes: int) -> None:
    """A launcher has started as many processes as the run is to have; else some would wait for ever."""
    environment = os.environ
    wanted = f"hardware.devices={devices} x hardware.num_nodes={nodes}"
    if "TORCHELASTIC_RUN_ID" in environment:
        found, local = environment.get("WORLD_SIZE"), environment.get("LOCAL_WORLD_SIZE")
        if (found, local) != (str(devices * nodes), str(devices)):
            raise ConfigError(
                f"torchrun started {found} processes, {local} on each node, and {wanted} asks for {devices * nodes}; "
                f"give torchrun --nnodes={nodes} --nproc-per-node={devices}"
            )
    elif "SLURM_NTASKS" in environment and environment.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        found = environment["SLURM_NTASKS"]
        if found not in (str(devices * nodes), "1") or (found == "1" and nodes > 1):
            raise ConfigError(
                f"SLURM has {found} tasks, and {wanted} asks for {devices * nodes}; start it with "
                f"srun --nodes={nodes} --ntasks-per-node={devices}"
            )
