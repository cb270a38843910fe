"""Settings of the optimizer that types allow and training does not; nothing here imports torch."""

from collections.abc import Mapping
from typing import Any

from lightning_apps.errors import ConfigError, did_you_mean

SCHEDULE_FREE = "lightning_apps.training.optimizers.schedule_free_adamw"
RULE_KEYS = {"groups": ("pattern", "lr", "weight_decay"), "unfreeze": ("pattern", "at_step")}


def is_schedule_free(config: Mapping[str, Any]) -> bool:
    """Whether the run's optimizer averages its iterates."""
    return bool(config["optimizer"]["_target_"] == SCHEDULE_FREE)


def check_optimizer(config: Mapping[str, Any]) -> None:
    """Reject numbers out of range, unknown keys in rules, and groups that do not go with the optimizer.

    Raises:
        ConfigError: with the key, what is allowed and the remedy.
    """
    optimizer = config["optimizer"]
    _check_numbers("optimizer", optimizer)
    for beta in optimizer.get("betas", []):
        if not 0 <= beta < 1:
            raise ConfigError(f"optimizer.betas={optimizer['betas']}: each must be at least 0 and below 1")
    if len(optimizer.get("betas", [0, 0])) != 2:
        raise ConfigError(f"optimizer.betas={optimizer['betas']}: give two, such as [0.9, 0.999]")
    layer_decay = optimizer.get("layer_decay")
    if layer_decay is not None and not 0 < layer_decay <= 1:
        raise ConfigError(f"optimizer.layer_decay={layer_decay}: must be above 0 and at most 1, or null")
    for name, allowed in RULE_KEYS.items():
        for number, rule in enumerate(optimizer.get(name, [])):
            key = f"optimizer.{name}[{number}]"
            for unknown in rule.keys() - set(allowed):
                raise ConfigError(
                    f"{key}.{unknown} does not exist{did_you_mean(unknown, list(allowed))}; "
                    f"allowed: {', '.join(allowed)}"
                )
            _check_numbers(key, rule)
    devices = config["hardware"]["devices"]
    if optimizer.get("unfreeze") and devices > 1:
        # DDP decides once, when it wraps the model, whose gradients it adds up
        raise ConfigError(
            f"optimizer.unfreeze works on one device; set hardware.devices=1 (it is {devices}) or use optimizer.freeze"
        )
    if is_schedule_free(config):
        _check_schedule_free(config)


def _check_numbers(key: str, node: Mapping[str, Any]) -> None:
    for name in ("lr", "weight_decay", "eps"):
        value = node.get(name, 0.0)
        if not 0 <= value < float("inf"):
            raise ConfigError(f"{key}.{name}={value}: must be a number that is not negative")


def _check_schedule_free(config: Mapping[str, Any]) -> None:
    schedule = config["scheduler"]["_target_"].rpartition(".")[2]
    if schedule != "constant":
        raise ConfigError(
            f"scheduler={schedule} lowers the learning rate, whose place the average of optimizer=schedule_free takes; "
            "choose scheduler=constant"
        )
    if config["callbacks"]["weight_average"] is not None:
        raise ConfigError(
            "callbacks.weight_average: optimizer=schedule_free evaluates an average of its own; "
            "set callbacks.weight_average=null"
        )
    if config["precision"]["name"] == "bf16_true":
        raise ConfigError(
            "precision=bf16_true: the average of optimizer=schedule_free changes by less than bfloat16 can tell apart; "
            "choose precision=bf16_mixed"
        )
