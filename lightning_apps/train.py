"""`python -m lightning_apps.train experiment=location`: compose, build, fit, export."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from lightning_apps.command_line import run_command
from lightning_apps.config import CONF, check_config, plain, run_name
from lightning_apps.errors import ConfigError


def train(cfg: DictConfig) -> None:
    """Run one experiment from a composed configuration."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    if cfg.run.name is None:
        OmegaConf.update(cfg, "run.name", run_name(list(HydraConfig.get().overrides.task)))
    config = plain(cfg)
    if HydraConfig.get().mode is RunMode.MULTIRUN and config["hardware"]["devices"] > 1:
        # Lightning starts the further processes with this process's arguments: each would run the whole sweep
        # (Lightning#11300)
        raise ConfigError(
            f"--multirun with hardware.devices={config['hardware']['devices']}: start each job by itself, "
            "without --multirun, or use one device"
        )
    from lightning_apps.allocator import keep_freed_memory

    keep_freed_memory()
    check_config(config)
    from lightning_apps.experiment_run import run_experiment

    run_experiment(config)


def main() -> Any:
    """Entry point."""
    return run_command(train, config_path=CONF, config_name="config")


if __name__ == "__main__":
    main()
