"""The checks of a whole configuration, across its groups; binding.py has those of a single node, schema.py the types.

Nothing here imports torch: most mistakes are answered in about a second.
"""

import re
from collections.abc import Mapping
from typing import Any

from datamodules.storage.errors import StorageError
from datamodules.storage.object_store import split_url
from lightning_apps.config.binding import OPTIONAL_CALLBACKS, PROGRAM_KEYS, bind, bind_callback
from lightning_apps.config.composition import options
from lightning_apps.config.optimizer_checks import check_optimizer
from lightning_apps.errors import ConfigError, did_you_mean
from lightning_apps.process.safe_stop import max_time_seconds


def check_config(config: Mapping[str, Any]) -> None:
    """Reject what groups can only get wrong together, and every argument that its target would refuse.

    Raises:
        ConfigError: with the key, what is allowed and the remedy.
    """
    for key in ("model", "data", "optimizer", "scheduler", "module"):
        if not isinstance(config[key], Mapping):
            raise ConfigError(f"{key}={config[key]!r}: choose an option of the group, {key}=<{'|'.join(options(key))}>")
        bind(key, config[key])
    for name, function in PROGRAM_KEYS["optimizer"].items():
        if name in config["optimizer"]:
            path = f"lightning_apps.training.parameter_groups.{function}"
            bind("optimizer", {"_target_": path, name: config["optimizer"][name]})
    for name in OPTIONAL_CALLBACKS:
        bind_callback(config, name)
    for group, nodes in (("callbacks.extra", config["callbacks"]["extra"]), ("logger", config["logger"])):
        for name, node in nodes.items():
            if node is not None:
                bind(f"{group}.{name}", node)
    _check_run_name(config["run"]["name"])
    _check_upload(config["run"]["upload"])
    _check_numbers(config)
    _check_guards(config["callbacks"]["guards"])
    _check_model(config["model"])
    _check_data(config["data"], config["hardware"])
    _check_devices(config)
    check_optimizer(config)


def _check_run_name(name: str | None) -> None:
    if name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._=,+@\[\]-]*", name):
        raise ConfigError(f"run.name={name!r}: use letters, digits and . _ = , + - (no slashes), starting with one")


def _check_upload(url: str | None) -> None:
    if url is not None:
        try:
            split_url(url)
        except StorageError as error:
            raise ConfigError(f"run.upload: {error}") from error


def _check_numbers(config: Mapping[str, Any]) -> None:
    max_time_seconds(config["trainer"]["max_time"])
    trainer, checkpoints = config["trainer"], config["callbacks"]["checkpoints"]
    if trainer["log_every"] < 1:
        raise ConfigError(f"trainer.log_every={trainer['log_every']}: must be at least 1")
    if trainer["clip_norm"] is not None and trainer["clip_norm"] <= 0:
        raise ConfigError(f"trainer.clip_norm={trainer['clip_norm']}: must be positive, or null for no clipping")
    if checkpoints["mode"] not in ("min", "max"):
        raise ConfigError(f"callbacks.checkpoints.mode={checkpoints['mode']!r}: allowed are min, max")
    if not checkpoints["monitor"].startswith("val/"):
        raise ConfigError(
            f"callbacks.checkpoints.monitor={checkpoints['monitor']!r}: selection looks at val/ metrics only"
        )
    if checkpoints["keep"] is not None and checkpoints["keep"] < 1:
        raise ConfigError(f"callbacks.checkpoints.keep={checkpoints['keep']}: must be at least 1, or null for all")
    ratio = checkpoints["loss_ratio"]
    if ratio is not None and not 0 < ratio < 1:
        raise ConfigError(f"callbacks.checkpoints.loss_ratio={ratio}: must lie between 0 and 1, both excluded, or null")
    average = config["callbacks"]["weight_average"]
    if average is not None and not 0 < average["decay"] < 1:
        raise ConfigError(f"callbacks.weight_average.decay={average['decay']}: must lie between 0 and 1, both excluded")
    plateau = config["callbacks"]["reduce_on_plateau"]
    if plateau is not None:
        if not 0 < plateau["factor"] < 1:
            raise ConfigError(
                f"callbacks.reduce_on_plateau.factor={plateau['factor']}: must lie between 0 and 1, both excluded"
            )
        for name in ("patience", "threshold", "min_factor"):
            if plateau.get(name, 0) < 0:
                raise ConfigError(f"callbacks.reduce_on_plateau.{name}={plateau[name]}: must not be negative")
    if not 0 <= config["module"].get("label_smoothing", 0.0) < 1:
        raise ConfigError(
            f"module.label_smoothing={config['module']['label_smoothing']}: must be at least 0 and below 1"
        )
    if not 0 <= config["seed"] < 2**32:
        raise ConfigError(f"seed={config['seed']}: must lie between 0 and 2**32 - 1")


GUARD_ACTIONS = {
    "non_finite": ("stop", "skip", "off"),
    "token_ids": ("stop", "off"),
    "loss_spike": ("stop", "skip", "warn", "off"),
    "collapsed_generator": ("stop", "warn", "off"),
}
"""What each guard of callbacks.guards may do."""


def _check_guards(guards: Mapping[str, Any]) -> None:
    for name, allowed in GUARD_ACTIONS.items():
        if guards[name] not in allowed:
            hint = '; in a YAML file off must be quoted, "off"' if guards[name] == "False" else ""
            raise ConfigError(
                f"callbacks.guards.{name}={guards[name]!r}{did_you_mean(guards[name], list(allowed))}: "
                f"allowed are {', '.join(allowed)}{hint}"
            )
    if guards["loss_spike_sigmas"] <= 0:
        raise ConfigError(f"callbacks.guards.loss_spike_sigmas={guards['loss_spike_sigmas']}: must be positive")
    if not 0 <= guards["collapsed_after"] <= 1:
        raise ConfigError(
            f"callbacks.guards.collapsed_after={guards['collapsed_after']}: a share of the run, between 0 and 1"
        )


def _check_model(model: Mapping[str, Any]) -> None:
    width, heads, key_heads = (
        model.get("hidden_size"),
        model.get("num_attention_heads"),
        model.get("num_key_value_heads"),
    )
    for name, value in model.items():
        if name.startswith("num_") or name.endswith("_size"):  # noqa: SIM102
            if isinstance(value, int) and value < 1:
                raise ConfigError(f"model.{name}={value}: must be at least 1")
    if width and heads and width % heads:
        raise ConfigError(f"model.hidden_size={width} is not a multiple of model.num_attention_heads={heads}")
    if width and heads and (width // heads) % 2:
        raise ConfigError(
            f"model.hidden_size={width} / model.num_attention_heads={heads} = {width // heads}: "
            "rotary positions need an even head size"
        )
    if heads and key_heads and heads % key_heads:
        raise ConfigError(
            f"model.num_attention_heads={heads} is not a multiple of model.num_key_value_heads={key_heads}"
        )


def _check_data(data: Mapping[str, Any], hardware: Mapping[str, Any]) -> None:
    for name in (
        "global_batch_size", "device_batch_size", "evaluation_batch_size", "max_train_samples",
        "max_evaluation_samples", "max_length", "chunk_size", "stride", "max_chunks",
    ):  # fmt: skip
        value = data.get(name)
        if value is not None and value < 1:
            raise ConfigError(f"data.{name}={value}: must be at least 1")
    for name in ("num_validation", "num_test", "blend_cities"):
        lowest = 0 if name == "num_test" else 1
        if data.get(name) is not None and data[name] < lowest:
            raise ConfigError(f"data.{name}={data[name]}: must be at least {lowest}")
    if data.get("validation_share") is not None and not 0 < data["validation_share"] < 1:
        raise ConfigError(f"data.validation_share={data['validation_share']}: must lie between 0 and 1, both excluded")
    if data.get("test_share") is not None and not 0 <= data["test_share"] < 1:
        raise ConfigError(f"data.test_share={data['test_share']}: must be at least 0 (none) and below 1")
    if data.get("stride") and data.get("chunk_size") and data["stride"] >= data["chunk_size"]:
        raise ConfigError(
            f"data.stride={data['stride']}: chunks of data.chunk_size={data['chunk_size']} tokens, special ones "
            "included, would leave text between them out; choose a smaller stride"
        )
    whole, per_device, devices = data["global_batch_size"], data.get("device_batch_size"), hardware["devices"]
    if per_device is not None and per_device > -(-whole // devices):
        raise ConfigError(
            f"data.device_batch_size={per_device} is more than a device's share of "
            f"data.global_batch_size={whole} on {devices} device(s)"
        )


def _check_devices(config: Mapping[str, Any]) -> None:
    precision, accelerator = config["precision"]["name"], config["hardware"]["accelerator"]
    if config["hardware"]["devices"] < 1:
        raise ConfigError(f"hardware.devices={config['hardware']['devices']}: must be at least 1")
    if accelerator == "cpu" and precision == "fp16_mixed":
        raise ConfigError("precision=fp16_mixed needs a GPU; on a CPU choose precision=fp32 or bf16_mixed")
    if accelerator == "mps" and config["hardware"]["devices"] > 1:
        raise ConfigError(f"hardware.devices={config['hardware']['devices']}: with hardware=mps there is one device")
    if accelerator == "mps" and precision == "bf16_true":
        raise ConfigError("precision=bf16_true is not supported with hardware=mps; choose fp32 or fp16_mixed")
