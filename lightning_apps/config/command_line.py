"""From the command line to a composed configuration, with one clear line for every mistake.

Exit codes: 0 done, 1 failed, 2 the configuration or data is wrong, 128 + signal when stopped.
"""

import dataclasses
import difflib
import functools
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from lightning_apps.config.help_page import help_page
from lightning_apps.config.overrides import override_key, quote_value
from lightning_apps.config.schema import RootConfig
from lightning_apps.config.search_path import config_dir_of_completion, group_options, is_group, search_path_override
from lightning_apps.config.shell_completion import completion_of_all
from lightning_apps.errors import ConfigError, did_you_mean
from lightning_apps.process import interrupts
from lightning_apps.process.console import log_file_only
from lightning_apps.process.streams import steady_streams

LIGHTNING_KEYS = {
    "accelerator": "hardware.accelerator, which hardware= chooses,",
    "accumulate_grad_batches": "data.device_batch_size (data.global_batch_size stays what it is)",
    "callbacks": "callbacks=, with more in callbacks.extra,",
    "check_val_every_n_epoch": "trainer.evaluate_every",
    "default_root_dir": "run.output_root",
    "deterministic": "hardware.deterministic",
    "devices": "hardware.devices",
    "gradient_clip_algorithm": "trainer.clip_norm (by norm)",
    "gradient_clip_val": "trainer.clip_norm",
    "log_every_n_steps": "trainer.log_every",
    "logger": "logger=",
    "num_nodes": "hardware.num_nodes",
    "precision": "precision=",
    "strategy": "hardware.strategy, which hardware= chooses,",
    "val_check_interval": "trainer.evaluate_every",
}
"""What arguments of Lightning's Trainer that people type after `trainer.` are called here."""
NEEDED_GROUPS = {
    field.name
    for field in dataclasses.fields(RootConfig)
    if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
}
"""Keys that a configuration is not whole without; Hydra would leave their group away, and the run could not begin."""


def run_command(task: Callable[[DictConfig], Any], *, config_path: Path, config_name: str) -> None:
    """Compose the configuration from sys.argv, run the task, and exit with the house's codes."""
    steady_streams()
    show_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    multirun = any(argument in ("--multirun", "-m") for argument in sys.argv[1:])
    quoted = [quote_value(argument, multirun=multirun) for argument in sys.argv[1:]]
    sys.argv[1:] = [*config_dir_of_completion(sys.argv[1:]), *quoted]
    print(completion_of_all(quoted), end="")
    experiments = sorted({argument for argument in sys.argv[1:] if argument.startswith("experiment=")})
    if len(experiments) > 1:
        _fail(2, f"{' '.join(experiments)}: give one experiment; to run several, --multirun experiment=a,b", False)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing and exiting with 1

    @functools.wraps(task)
    def report_failures(cfg: DictConfig) -> Any:
        if not show_traceback:
            os.environ.pop("HYDRA_FULL_ERROR", None)  # what the task starts must not take it for the user's wish
        try:
            return task(cfg)
        except ConfigError as error:
            _fail(2, str(error), show_traceback)
        except MissingMandatoryValue as error:
            _fail(2, explain(error, config_path, config_name, sys.argv[1:]), show_traceback)
        except KeyboardInterrupt:
            _fail(interrupts.EXIT_CODE, interrupts.MESSAGE, show_traceback)
        except Exception as error:
            log_file_only(traceback.format_exc())
            _fail(1, f"{type(error).__name__}: {error}", show_traceback)
        finally:
            os.environ["HYDRA_FULL_ERROR"] = "1"

    try:
        if {"--help", "-h"} & set(sys.argv[1:]):
            docstring = sys.modules[task.__module__].__doc__ or ""
            print(help_page(config_path, config_name, sys.argv[1:], docstring))
            sys.exit(0)
        with interrupts.caught():
            hydra.main(version_base="1.3", config_path=str(config_path), config_name=config_name)(report_failures)()
    except KeyboardInterrupt:
        _fail(interrupts.EXIT_CODE, interrupts.MESSAGE, show_traceback)
    except Exception as error:  # the task's own are reported above; composing fails with more than Hydra's
        if show_traceback:
            raise
        GlobalHydra.instance().clear()
        _fail(2, explain(error, config_path, config_name, sys.argv[1:]), show_traceback)
    finally:
        if not show_traceback:
            os.environ.pop("HYDRA_FULL_ERROR", None)


def _fail(code: int, message: str, show_traceback: bool) -> None:
    if show_traceback:
        raise
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def explain(error: Exception, config_path: Path, config_name: str, words: Sequence[str]) -> str:
    """One line for a composition error: the key, what is allowed, the nearest match.

    Args:
        error: what Hydra or OmegaConf raised.
        config_path: folder of the configuration, conf/ or conf/command.
        config_name: of its primary file.
        words: of the command line, or of the overrides that were composed.
    """
    said = _explanation(error, config_path, config_name, words)
    # values are quoted, whatever they hold
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in said)


def _explanation(error: Exception, config_path: Path, config_name: str, words: Sequence[str]) -> str:
    text = str(error)
    if text.startswith("Config group override must be"):
        given = [argument.partition("=")[0] for argument in words if argument.endswith("=null")]
        group = next((name for name in given if is_group(config_path, name, words)), "group")
        known = group_options(config_path, group, words)
        leave = f"; to leave the group away write ~{group}" if group not in NEEDED_GROUPS else ""
        return f"{group}=null: name one of the options of {group}: {', '.join(known) or 'there are none'}{leave}"
    if isinstance(error, TypeError):  # Hydra joins the name of a group with what is no option's name
        for argument in words:
            group, _, value = argument.partition("=")
            if value.startswith(("[", "{")) and (known := group_options(config_path, group, words)):
                return f"{argument}: name one of the options of {group}: {', '.join(known)}"
    cause = str(error.__cause__ or "")
    if match := re.search(r"Could not find '([^']+)'", text):
        group, _, option = match[1].rpartition("/")
        known = group_options(config_path, group, words)
        if known:
            return (
                f"{group}={option}: there is no such option{did_you_mean(option, known)}; allowed: {', '.join(known)}"
            )
    if match := re.search(r"Could not (?:override|delete) '([^']+)'", text):
        key = match[1].split("@")[0]
        if is_group(config_path, key, words):  # that only some experiments choose from
            return f"{key}: this experiment has no choice of {key}; leave the word away, or choose another experiment"
        return _unknown_key(key, config_path, config_name, words)
    if match := re.search(r"Key '([^']+)' (?:is not in struct|not in '\w+')", text + cause):
        full = re.search(r"full_key: (\S+)", text + cause)
        return _unknown_key(full[1] if full else match[1], config_path, config_name, words)
    if match := re.search(r"field '([^']+)' is not Optional", cause):
        return _needed(match[1], config_path, config_name, words)
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


def lightning_hint(key: str) -> str | None:
    """What an argument of Lightning's Trainer is called here; None for any other key."""
    group, _, name = key.partition(".")
    if group != "trainer" or name not in LIGHTNING_KEYS:
        return None
    return f"{key} does not exist; what Lightning calls {name} is {LIGHTNING_KEYS[name]} here"


def _needed(key: str, config_path: Path, config_name: str, words: Sequence[str]) -> str:
    """Message for an override that takes away what a run needs."""
    cfg = _composed(config_path, config_name, words)
    held = OmegaConf.select(cfg, key) if cfg is not None else None
    if not OmegaConf.is_dict(held):
        return f"{key} cannot be null; give it a value"
    if not held:
        return f"{key} cannot be null; leave the word away, it holds nothing here"
    value = "null" if key == "callbacks.extra" else "<value>"
    return f"{key} cannot be null; set what it holds ({', '.join(map(str, held))}): {key}.{next(iter(held))}={value}"


def _composed(config_path: Path, config_name: str, words: Sequence[str]) -> Any:
    """The configuration with the groups that the words choose and no value of theirs; None where they do not go."""
    try:
        with hydra.initialize_config_dir(version_base="1.3", config_dir=str(config_path)):
            groups = [word for word in words if _chooses_group(word, config_path, words)]
            return hydra.compose(config_name, overrides=[*search_path_override(words), *groups])
    except Exception:
        return None


def _unknown_key(key: str, config_path: Path, config_name: str, words: Sequence[str]) -> str:
    """Message for an override that names no key, with the keys that stand beside it."""
    if hint := lightning_hint(key):
        return hint
    cfg = _composed(config_path, config_name, words)
    if cfg is None:
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
    return f"{key} does not exist{_nearest(key, cfg) or did_you_mean(last, known)}{beside}"


def _nearest(key: str, cfg: DictConfig) -> str:
    """` (did you mean trainer.max_steps?)` for `max_steps` and `max_step`; empty where a near key stands beside."""
    parent, _, name = key.rpartition(".")
    places: dict[str, list[str]] = {}
    for place in _keys(OmegaConf.to_container(cfg)):
        places.setdefault(place.rpartition(".")[2], []).append(place)
    near = [name] if name in places else [] if parent in cfg else difflib.get_close_matches(name, places, 1, 0.8)
    return f" (did you mean {' or '.join(places[near[0]][:3])}?)" if near else ""


def _keys(node: Any, above: str = "") -> Iterator[str]:
    """Every key of a nested mapping in full."""
    for name, value in node.items() if isinstance(node, dict) else ():
        yield f"{above}{name}"
        yield from _keys(value, f"{above}{name}.")


def _chooses_group(argument: str, config_path: Path, words: Sequence[str]) -> bool:
    name = override_key(argument)
    return "=" in argument and "." not in name and is_group(config_path, name, words)
