"""Prepare an experiment's data, train nothing.

python -m lightning_apps.prepare experiment=arxiv
"""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from lightning_apps.config.checks import check_config
from lightning_apps.config.command_line import run_command
from lightning_apps.config.composition import CONF, plain


def prepare(cfg: DictConfig) -> None:
    """Write the data of an experiment into its cache, or fetch it prepared; what is there is left as it is.

    Raises:
        ConfigError: the configuration or the data is wrong.
    """
    if cfg.run.name is None:  # a run's name is made from the overrides; nothing runs here
        OmegaConf.update(cfg, "run.name", "prepare")
    config = plain(cfg)
    check_config(config)

    from datamodules.contract import DescribesPreparation
    from lightning_apps.process.console import open_console, say
    from lightning_apps.runs.build import build_datamodule, quiet_libraries
    from lightning_apps.runs.precision import settle_precision

    quiet_libraries()
    open_console()
    config, _ = settle_precision(config)  # where the network draws samples, it does so in the precision of the run
    datamodule = build_datamodule(config)
    lines = datamodule.preparation_lines() if isinstance(datamodule, DescribesPreparation) else []
    say("\n".join(["prepared", *lines]))


def main() -> Any:
    """Entry point."""
    return run_command(prepare, config_path=CONF, config_name="config")


if __name__ == "__main__":
    main()
