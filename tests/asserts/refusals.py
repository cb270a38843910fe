"""What a command line that trains would be answered before any data are read, without running the command."""

from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue

from lightning_apps.config.checks import check_config
from lightning_apps.config.command_line import explain
from lightning_apps.config.composition import CONF, plain
from lightning_apps.config.overrides import quote_value
from lightning_apps.errors import ConfigError


def refusal(words: Sequence[str]) -> str | None:
    """The line that says what is wrong, without `error: `; None where the command would begin to train."""
    quoted = [quote_value(word) for word in words]
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            cfg = compose("config", overrides=quoted)
    except Exception as error:
        return explain(error, CONF, "config", quoted)
    try:
        if cfg.run.name is None:
            OmegaConf.update(cfg, "run.name", "refusal")
        check_config(plain(cfg))
    except ConfigError as error:
        return str(error)
    except MissingMandatoryValue as error:
        return explain(error, CONF, "config", quoted)
    return None
