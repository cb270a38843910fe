"""Where conf/ is, what its options are, and a composed configuration as plain values; nothing here imports torch."""

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

import lightning_apps.config.schema  # noqa: F401 (conf/config.yaml names it)
from lightning_apps.config.overrides import override_key
from lightning_apps.config.search_path import group_options
from lightning_apps.errors import ConfigError

PACKAGE = Path(__file__).resolve().parents[1]
# beside the package in a checkout, inside it where a wheel was installed
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved configuration as plain dicts and lists."""
    try:
        container = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        key = re.search(r"full_key: (\S+)", str(error))
        name = key[1] if key else str(error).rpartition(" ")[2]
        raise ConfigError(f"{name} is missing: give it on the command line, {name}=...") from error
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0]) from error
    assert isinstance(container, dict)
    return container  # type: ignore[return-value]


def asks_for_sweep() -> bool:
    """Whether the command line, or what it chooses, has to do with the group `sweep`."""
    hydra = HydraConfig.get()
    keys = [override_key(word) for word in hydra.overrides.task]
    return hydra.runtime.choices.get("sweep") not in (None, "grid") or any(key.split(".")[0] == "sweep" for key in keys)


def chosen(key: str, config: Mapping[str, Any]) -> str:
    """How the user chose a section of the configuration: `model=distilbert`, or by its `_target_` without Hydra."""
    choices = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
    return f"{key}={choices[key]}" if choices.get(key) else f"{key}._target_={config[key]['_target_']}"


def options(group: str) -> list[str]:
    """Options of a config group, those that the command line adds to conf/ included."""
    return group_options(CONF, group, sys.argv[1:])
