"""`python -m lightning_apps.train experiment=location`: compose, build, fit, export."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from lightning_apps.command_line import run_command
from lightning_apps.config import CONF, check_config, plain, run_name


def train(cfg: DictConfig) -> None:
    """Run one experiment from a composed configuration."""
    from hydra.core.hydra_config import HydraConfig

    if cfg.run.name is None:
        OmegaConf.update(cfg, "run.name", run_name(list(HydraConfig.get().overrides.task)))
    config = plain(cfg)
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
