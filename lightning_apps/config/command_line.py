"""From the command line to a composed configuration, with one clear line for every mistake.

Exit codes: 0 done, 1 failed, 2 the configuration or data is wrong, 128 + signal when stopped.
"""

import functools
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lightning_apps.config.checks import did_you_mean
from lightning_apps.errors import ConfigError
from lightning_apps.process.console import log_file_only
from lightning_apps.process.streams import steady_streams


def run_command(task: Callable[[DictConfig], Any], *, config_path: Path, config_name: str) -> None:
    """Compose the configuration from sys.argv, run the task, and exit with the house's codes."""
    steady_streams()
    show_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    sys.argv[1:] = map(quote_value, sys.argv[1:])
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing and exiting with 1

    @functools.wraps(task)
    def report_failures(cfg: DictConfig) -> Any:
        try:
            return task(cfg)
        except ConfigError as error:
            _fail(2, str(error), show_traceback)
        except KeyboardInterrupt:
            _fail(130, "stopped by Ctrl-C", show_traceback)
        except Exception as error:
            log_file_only(traceback.format_exc())
            _fail(1, f"{type(error).__name__}: {error}", show_traceback)

    try:
        hydra.main(version_base="1.3", config_path=str(config_path), config_name=config_name)(report_failures)()
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        GlobalHydra.instance().clear()
        _fail(2, explain(error, config_path, config_name), show_traceback)
    finally:
        if not show_traceback:
            os.environ.pop("HYDRA_FULL_ERROR", None)


def quote_value(argument: str) -> str:
    """`run=outputs/location/seed=1` -> `run="outputs/location/seed=1"`: paths of runs and checkpoints hold `=`.

    Hydra's grammar has no use for an equals sign in a value that is not quoted, so nothing else is meant by it.
    """
    key, _, value = argument.partition("=")
    if argument.startswith("-") or "=" not in value or any(sign in value for sign in "\"'[]{}()$"):
        return argument
    return f'{key}="{value}"'


def _fail(code: int, message: str, show_traceback: bool) -> None:
    if show_traceback:
        raise
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def explain(error: Exception, config_path: Path, config_name: str) -> str:
    """One line for a composition error: the key, what is allowed, the nearest match."""
    text = str(error)
    if text.startswith("Config group override must be"):
        given = [argument.partition("=")[0] for argument in sys.argv[1:] if argument.endswith("=null")]
        group = next((name for name in given if (config_path / name).is_dir()), "group")
        return f"{group}=null: name one of the options of {group}; to leave a group away write ~{group}"
    cause = str(error.__cause__ or "")
    if match := re.search(r"Could not find '([^']+)'", text):
        group, _, option = match[1].rpartition("/")
        known = sorted(path.stem for path in (config_path / group).glob("*.yaml"))
        if known:
            return (
                f"{group}={option}: there is no such option{did_you_mean(option, known)}; allowed: {', '.join(known)}"
            )
    if match := re.search(r"Could not override '([^']+)'", text):
        return _unknown_key(match[1].split("@")[0], config_path, config_name)
    if match := re.search(r"Key '([^']+)' (?:is not in struct|not in '\w+')", text + cause):
        full = re.search(r"full_key: (\S+)", text + cause)
        return _unknown_key(full[1] if full else match[1], config_path, config_name)
    if "could not be converted" in text + cause or "is not a valid" in text + cause or "Unsupported" in text + cause:
        source = cause if "full_key" in cause else text
        key = re.search(r"full_key: (\S+)", source)
        override = re.search(r"merging override ([^:\n]+)", text) if key is None else None
        where = key[1] if key else (override[1] if override else "")
        line = source.splitlines()[0].removeprefix("Error merging override ").strip()
        return f"{where}: {line}" if where and where not in line else line
    if match := re.search(r"Missing mandatory value: (\S+)", text):
        return f"{match[1]} is missing: give it on the command line, {match[1]}=<value>"
    first, *others = [line.strip() for line in (text or type(error).__name__).splitlines() if line.strip()]
    return " ".join([first, *others[:1]])


def _unknown_key(key: str, config_path: Path, config_name: str) -> str:
    """Message for an override that names no key, with the keys that stand beside it."""
    try:
        with hydra.initialize_config_dir(version_base="1.3", config_dir=str(config_path)):
            groups = [argument for argument in sys.argv[1:] if _chooses_group(argument, config_path)]
            cfg: Any = hydra.compose(config_name, overrides=groups)
    except Exception:
        return f"{key} does not exist; see --cfg job for the keys that do"
    parent: Any = cfg
    prefix: list[str] = []
    *parents, last = key.split(".")
    for part in parents:
        if not OmegaConf.is_dict(parent) or part not in parent:
            last = part
            break
        parent = parent._get_node(part)
        prefix.append(part)
    known = [str(name) for name in parent] if OmegaConf.is_dict(parent) else []
    if last in known:
        return f"{key}: its value brings keys that are not there; add each with +{key}.<name>=<value>"
    if OmegaConf.is_dict(parent) and not known:
        return f"{key} does not exist; add it with +{key}=<value>"
    where = ".".join(prefix)
    beside = f"; {where or 'the root'} has: {', '.join(known)}" if known else "; it has no keys of its own"
    return f"{key} does not exist{did_you_mean(last, known)}{beside}"


def _chooses_group(argument: str, config_path: Path) -> bool:
    name = argument.split("=")[0].lstrip("+~")
    return "=" in argument and "." not in name and (config_path / name).is_dir()
