"""The checks of a whole configuration, across its groups; binding.py has those of a single node, schema.py the types.

Nothing here imports torch: most mistakes are answered in about a second.
"""

import re
from collections.abc import Mapping
from typing import Any

from datamodules.storage.errors import StorageError
from datamodules.storage.object_store import split_url
from lightning_apps.config.binding import OPTIONAL_CALLBACKS, PROGRAM_KEYS, bind, bind_callback
from lightning_apps.config.command_line import lightning_hint
from lightning_apps.config.composition import options
from lightning_apps.config.hardware_checks import check_hardware
from lightning_apps.config.kind_checks import check_kinds
from lightning_apps.config.optimizer_checks import check_optimizer
from lightning_apps.config.schema import Natural, RootConfig
from lightning_apps.config.value_checks import check_fields, checked_value
from lightning_apps.errors import ConfigError
from lightning_apps.process.safe_stop import max_time_seconds


def check_config(config: Mapping[str, Any]) -> None:
    """Reject what groups can only get wrong together, and every argument that its target would refuse.

    What needs no import of a target comes first: the targets bring torch, which takes seconds.

    Raises:
        ConfigError: with the key, what is allowed and the remedy.
    """
    _check_sections(config)
    _check_run_name(config["run"]["name"])
    _check_upload(config["run"]["upload"])
    max_time_seconds(config["trainer"]["max_time"])
    check_fields("", config, RootConfig, unknown=lightning_hint)
    _check_callbacks(config["callbacks"])
    check_hardware(config["hardware"], config["precision"])
    _check_layout(config["callbacks"]["checkpoints"], config["hardware"])
    check_kinds(config)
    for key in BOUND:
        bind(key, config[key])
    for name, function in PROGRAM_KEYS["optimizer"].items():
        if name in config["optimizer"]:
            path = f"lightning_apps.training.parameter_groups.{function}"
            bind("optimizer", {"_target_": path, name: config["optimizer"][name]})
    for name in OPTIONAL_CALLBACKS:
        bind_callback(config, name)
    for group, nodes in (("callbacks.extra", config["callbacks"]["extra"]), ("logger", config["logger"])):
        for name, node in nodes.items():
            if node:
                bind(f"{group}.{name}", node)
    _check_shares(config["data"], config["hardware"])
    check_optimizer(config)


BOUND = ("model", "data", "optimizer", "scheduler", "module")
"""Sections that name a target."""


def _check_sections(config: Mapping[str, Any]) -> None:
    """Every section is there and has keys; what can be switched off has keys or is off."""
    for key in (*BOUND, "precision", "hardware", "trainer", "callbacks", "logger", "run"):
        if key not in config:
            raise ConfigError(f"{key} is missing: a run needs it; leave ~{key} away")
        if not isinstance(config[key], Mapping):
            remedy = f"choose an option of the group, {key}=<{'|'.join(known)}>" if (known := options(key)) else ""
            raise ConfigError(f"{key}={config[key]!r}: {remedy or 'it has keys of its own, leave it to experiment='}")
    for group, nodes in (("callbacks.extra", config["callbacks"]["extra"]), ("logger", config["logger"])):
        for name, node in nodes.items():
            if node and not isinstance(node, Mapping):
                raise ConfigError(f"{group}.{name}={node!r}: give its settings, or null or false to switch it off")


def _check_run_name(name: str | None) -> None:
    if name is None:
        return
    if len(name) > LONGEST_NAME:
        raise ConfigError(
            f"run.name={name[:20]}...: {len(name)} characters; at most {LONGEST_NAME} make the name of a folder"
        )
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._=,+@\[\]-]*", name):
        raise ConfigError(f"run.name={name!r}: use letters, digits and . _ = , + - (no slashes), starting with one")


LONGEST_NAME = 200
"""File systems allow 255 bytes; partial files and crash dumps add to a name."""


def _check_upload(url: str | None) -> None:
    if url is not None:
        try:
            split_url(url)
        except StorageError as error:
            raise ConfigError(f"run.upload: {error}") from error


def _check_callbacks(callbacks: Mapping[str, Any]) -> None:
    monitor, stopping = callbacks["checkpoints"]["monitor"], callbacks["early_stopping"]
    if not monitor.startswith("val/"):
        raise ConfigError(f"callbacks.checkpoints.monitor={monitor!r}: selection looks at val/ metrics only")
    if isinstance(stopping, Mapping) and "patience" in stopping:  # Lightning's own argument, which has no range
        checked_value("callbacks.early_stopping.patience", stopping["patience"], Natural)


def _check_layout(checkpoints: Mapping[str, Any], hardware: Mapping[str, Any]) -> None:
    if checkpoints.get("layout") == "sharded" and hardware["strategy"] != "fsdp2":
        raise ConfigError(
            f"callbacks.checkpoints.layout=sharded: hardware.strategy={hardware['strategy']} holds no shards; choose "
            "hardware=fsdp or cpu_fsdp, or leave it consolidated, which goes on from sharded checkpoints too"
        )


def _check_shares(data: Mapping[str, Any], hardware: Mapping[str, Any]) -> None:
    """A micro-batch is no more than a device's share of a step."""
    whole, per_device = data["global_batch_size"], data.get("device_batch_size")
    devices = hardware["devices"] * hardware.get("num_nodes", 1)
    if per_device is not None and per_device > -(-whole // devices):
        raise ConfigError(
            f"data.device_batch_size={per_device} is more than a device's share of "
            f"data.global_batch_size={whole} on {devices} device(s)"
        )
