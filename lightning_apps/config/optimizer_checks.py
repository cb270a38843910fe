"""Settings of the optimizer that types allow and training does not; nothing here imports torch."""

from collections.abc import Mapping
from typing import Any

from lightning_apps.errors import ConfigError

SCHEDULE_FREE = "lightning_apps.training.optimizers.schedule_free_adamw"


def is_schedule_free(config: Mapping[str, Any]) -> bool:
    """Whether the run's optimizer averages its iterates."""
    return bool(config["optimizer"]["_target_"] == SCHEDULE_FREE)


def check_optimizer(config: Mapping[str, Any]) -> None:
    """Reject what the types of the optimizer's arguments cannot say, and groups that do not go with it.

    Raises:
        ConfigError: with the key, what is allowed and the remedy.
    """
    optimizer = config["optimizer"]
    if len(optimizer.get("betas", [0, 0])) != 2:
        raise ConfigError(f"optimizer.betas={optimizer['betas']}: give two, such as [0.9, 0.999]")
    if is_schedule_free(config):
        _check_schedule_free(config)


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
