"""Every strategy that Lightning knows keeps the laws of a run or is refused; processes are those that were started."""

import pytest
from lightning.pytorch.strategies import StrategyRegistry

from lightning_apps.config.hardware_checks import STRATEGIES, check_hardware, check_strategy
from lightning_apps.errors import ConfigError

TWO = {"accelerator": "cpu", "devices": 2, "num_nodes": 1, "strategy": "ddp", "compile": False}
FP32 = {"name": "fp32", "lightning": "32-true"}


@pytest.mark.parametrize("name", StrategyRegistry.available_strategies())
def test_nothing_that_lightning_knows_passes_unchecked(name):
    if name in STRATEGIES:
        check_strategy(name)
        return
    with pytest.raises(ConfigError, match=rf"^hardware\.strategy={name}: ") as refused:
        check_strategy(name)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, None),
        ({"TORCHELASTIC_RUN_ID": "a", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}, None),
        ({"TORCHELASTIC_RUN_ID": "a", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}, "torchrun started 4 processes"),
        ({"TORCHELASTIC_RUN_ID": "a", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}, "1 on each node"),
        ({"SLURM_NTASKS": "2"}, None),
        ({"SLURM_NTASKS": "1"}, None),  # sbatch without srun: Lightning starts the other one
        ({"SLURM_NTASKS": "8"}, "SLURM has 8 tasks"),
        ({"SLURM_NTASKS": "8", "SLURM_JOB_NAME": "bash"}, None),  # an interactive allocation
    ],
)
def test_as_many_processes_as_were_started(environment, message, monkeypatch):
    for name in ("TORCHELASTIC_RUN_ID", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_NTASKS", "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    check_hardware({**TWO, "devices": 1}, FP32)  # four runs that one srun starts side by side
    if message is None:
        check_hardware(TWO, FP32)
        return
    with pytest.raises(ConfigError, match=message):
        check_hardware(TWO, FP32)
