"""Lightning's strategies for several processes, held to the laws of one, and which of them `hardware` chooses."""

import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.plugins.environments import ClusterEnvironment, LightningEnvironment, SLURMEnvironment
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, ParallelStrategy, Strategy
from torch import Tensor
from torch.optim import Optimizer

from lightning_apps.training.launching import RankError, RankLauncher, rendezvous
from lightning_apps.training.optimizer_step import cpu_group
from lightning_apps.training.sharding import drop_weights, gather_weights, gathered, scattered

DEFAULT_TIMEOUT_S = 1800.0


class RankedStrategy(ParallelStrategy):
    """What strategies of several processes share: how they start, meet and end."""

    num_nodes: int
    num_processes: int
    _timeout: timedelta | None

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        if self.num_nodes * self.num_processes > 1:
            self._launcher = RankLauncher(self.cluster_environment, self.num_processes, self.num_nodes)

    def setup_environment(self) -> None:
        """Meet the other ranks, and see that all compute in one precision, which each may have chosen by itself.

        Raises:
            RankError: they do not.
        """
        assert self._timeout is not None
        with rendezvous(self._timeout.total_seconds()):
            super().setup_environment()
        precisions = [""] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(
            precisions, str(self.precision_plugin.precision), group=cpu_group(torch.distributed.group.WORLD)
        )
        if len(set(precisions)) > 1:
            raise RankError(
                f"the processes of this run chose {' and '.join(sorted(set(precisions)))}: their machines differ; "
                "give all of them one precision, such as precision=fp32"
            )


class ReplicatedStrategy(RankedStrategy, DDPStrategy):
    """DDP: whole weights in every process; see lightning.pytorch.strategies.DDPStrategy for the arguments."""


class ShardedStrategy(RankedStrategy, ModelParallelStrategy):
    """Weights, gradients and optimizer state in shards over all ranks.

    Lightning's own numbers the optimizer's state by the order of the module's parameters, not of the optimizer's, and
    restores after `on_fit_start`: its files are read by itself only. Here a checkpoint holds what one process would
    write, parameters in the optimizer's order, and is restored when any other strategy restores.

    Args:
        timeout: after which a rank that waits for others gives up.
    """

    def __init__(self, timeout: timedelta) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, timeout=timeout)

    def setup_environment(self) -> None:
        """Every rank has its own data."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    @property
    def net(self) -> Any:
        """The network in shards."""
        assert self.lightning_module is not None
        return self.lightning_module.net

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """Before it, as under other strategies; the weights are in shards by then."""
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Through load_optimizer_state_dict."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """This rank's shards; save_checkpoint puts them together, with those that callbacks add."""
        assert self.lightning_module is not None
        return self.lightning_module.state_dict(keep_vars=True)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """This rank's shards, numbered as the optimizer's own state."""
        return (optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer).state_dict()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """Put whole tensors together on the first rank, which writes one file."""
        Strategy.save_checkpoint(self, gathered(checkpoint, keep=self.is_global_zero), filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """What any strategy's run has written."""
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only=True)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Each rank takes its shard of every weight."""
        assert self.lightning_module is not None
        held = self.lightning_module.state_dict()
        given = checkpoint["state_dict"]
        shards = {name: scattered(value, held[name]) if name in held else value for name, value in given.items()}
        self.lightning_module.load_state_dict(shards, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Each rank takes its shard of every moment."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            shards = {number: _like(parameters[number], values) for number, values in state["state"].items()}
            optimizer.load_state_dict({**state, "state": shards})

    def on_validation_start(self) -> None:
        """From here on no rank waits for another one: they make unequal numbers of forward passes."""
        gather_weights(self.net)

    def on_validation_end(self) -> None:
        """Back to shards."""
        drop_weights(self.net)

    on_test_start, on_test_end = on_validation_start, on_validation_end


def _like(parameter: Tensor, values: Mapping[str, Any]) -> dict[str, Any]:
    """State of a parameter, its tensors as the parameter is held; counts of steps have no shape."""
    return {
        name: scattered(value, parameter) if isinstance(value, Tensor) and value.shape == parameter.shape else value
        for name, value in values.items()
    }


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
