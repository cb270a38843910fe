"""Train one experiment and export its best weights.

python -m lightning_apps.train experiment=location
python -m lightning_apps.train experiment=location model.hidden_size=64 precision=bf16_mixed
"""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from lightning_apps.config.checks import check_config
from lightning_apps.config.command_line import run_command
from lightning_apps.config.composition import CONF, asks_for_sweep, plain
from lightning_apps.config.overrides import run_name
from lightning_apps.errors import ConfigError
from lightning_apps.process.parent_death import stop_with_parent


def train(cfg: DictConfig) -> None:
    """Run one experiment, or a sweep of it, from a composed configuration."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    hydra = HydraConfig.get()
    multirun = hydra.mode is RunMode.MULTIRUN
    if multirun and hydra.runtime.choices["hydra/sweeper"] != "lightning_apps":
        # Lightning starts the further processes of a run with this process's arguments: each would run the whole sweep
        # (Lightning#11300)
        raise ConfigError("--multirun starts each job as a process of its own: leave hydra/sweeper away")
    if multirun or asks_for_sweep():
        from lightning_apps.sweeps.sweep import run_sweep

        run_sweep(cfg)
        return
    OmegaConf.update(cfg, "sweep", None)
    if cfg.run.name is None:
        OmegaConf.update(cfg, "run.name", run_name(list(hydra.overrides.task)))
    config = plain(cfg)
    from lightning_apps.process.allocator import keep_freed_memory

    keep_freed_memory()
    check_config(config)
    from lightning_apps.runs.experiment_run import run_experiment

    run_experiment(config)


vars(train)["takes_multirun"] = True  # hydra_plugins/lightning_apps_sweeper.py asks


def main() -> Any:
    """Entry point."""
    stop_with_parent()
    return run_command(train, config_path=CONF, config_name="config")


if __name__ == "__main__":
    main()
