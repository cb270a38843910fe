"""What a run will do, derived once from its settings: every count is of optimizer steps, never of batches."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightning_apps.errors import ConfigError

Cadence = int | float | str
"""Steps, a fraction of the run below 1, `epoch`, or `never`."""


@dataclass(frozen=True)
class RunPlan:
    """The plan of a run.

    Attributes:
        total_steps: optimizer steps of the whole run.
        steps_per_epoch: optimizer steps in one pass over the training data.
        warmup_steps: steps before the schedule reaches its peak.
        evaluation_steps: steps after which the model is evaluated; the last step always is one, unless `never`.
        save_steps: steps after which a periodic checkpoint is kept.
        total_tokens: tokens fed to the model over the run, padding not counted.
        budget: which setting decided the length, in words.
        clip_norm: largest global gradient norm; None leaves gradients alone.
    """

    total_steps: int
    steps_per_epoch: int
    warmup_steps: int
    evaluation_steps: frozenset[int]
    save_steps: frozenset[int]
    total_tokens: int
    budget: str
    clip_norm: float | None = None

    def epoch(self, step: int) -> float:
        """Passes over the data after so many optimizer steps."""
        return step / self.steps_per_epoch


def fraction_or_steps(key: str, value: float, total_steps: int) -> int:
    """A count of optimizer steps; a value between 0 and 1 (exclusive) is a fraction of the run, rounded, at least 1.

    Raises:
        ConfigError: the value is negative, or neither whole nor below 1.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or (value > 1 and value % 1):
        raise ConfigError(f"{key}={value!r}: give whole optimizer steps, or a fraction of the run between 0 and 1")
    return max(1, round(value * total_steps)) if 0 < value < 1 else int(value)


def cadence_steps(key: str, cadence: Cadence, *, total_steps: int, epoch_steps: int) -> frozenset[int]:
    """The steps at which something is due.

    Fractions are spread over the run (0.1 of 95 steps is due at 10, 19, 28, ...), so that ten parts are ten events
    and the last one falls on the last step.

    Args:
        key: dotted key of the setting, for the message.
        cadence: optimizer steps, a fraction of the run below 1, `epoch`, or `never`.
        total_steps: optimizer steps of the whole run.
        epoch_steps: optimizer steps of one pass over the data.

    Raises:
        ConfigError: the cadence is none of the forms that Cadence names.
    """
    if cadence == "never":
        return frozenset()
    if cadence == "epoch":
        return frozenset([*range(epoch_steps, total_steps + 1, epoch_steps), total_steps])
    if isinstance(cadence, str):
        raise ConfigError(f"{key}={cadence!r}: allowed are optimizer steps, a fraction below 1, epoch, never")
    if 0 < cadence < 1:
        parts = math.floor(1 / cadence + 1e-9)
        due = {max(1, math.floor(part * cadence * total_steps + 0.5)) for part in range(1, parts + 1)}
        return frozenset({step for step in due if step <= total_steps} | {total_steps})
    steps = fraction_or_steps(key, cadence, total_steps)
    if steps < 1:
        raise ConfigError(f"{key}={cadence!r}: must be at least 1; write never to switch it off")
    return frozenset(range(steps, total_steps + 1, steps))


def plan_run(
    *,
    num_train_samples: int,
    tokens_per_sample: float,
    global_batch_size: int,
    trainer: Mapping[str, Any],
    warmup: float,
    epoch_steps: int | None = None,
    inner_steps: int = 1,
) -> RunPlan:
    """Derive the plan of a run.

    Args:
        num_train_samples: samples in one epoch.
        tokens_per_sample: mean tokens that one sample feeds to the model.
        global_batch_size: samples in one optimizer step over all devices.
        trainer: the `trainer` settings: `max_tokens` goes before `max_steps`, that before `max_epochs`;
            `evaluate_every` and `save_every` are cadences.
        warmup: steps, or a fraction of the run.
        epoch_steps: batches after which an epoch ends (`limit_train_batches`, `overfit_batches`); None for all samples.
        inner_steps: optimizer steps in a row that a batch feeds.

    Raises:
        ConfigError: no budget is given, one is not positive, or the warmup is longer than the run.
    """
    if epoch_steps is None:
        epoch_steps = math.ceil(num_train_samples / global_batch_size)
    # what an epoch feeds: each of its samples as often as their batch is used
    num_train_samples = inner_steps * min(num_train_samples, epoch_steps * global_batch_size)
    epoch_steps *= inner_steps
    max_tokens, max_steps, max_epochs = trainer["max_tokens"], trainer["max_steps"], trainer["max_epochs"]
    for key, value in (("max_tokens", max_tokens), ("max_steps", max_steps), ("max_epochs", max_epochs)):
        if value is not None and value <= 0:
            raise ConfigError(f"trainer.{key}={value}: must be positive, or null")
    if max_tokens is not None:
        tokens_per_epoch = num_train_samples * tokens_per_sample
        total_steps = max(1, round(max_tokens / tokens_per_epoch * epoch_steps))
        budget = f"trainer.max_tokens={max_tokens:,}" + (
            ", which takes precedence" if max_steps is not None or max_epochs is not None else ""
        )
    elif max_steps is not None:
        total_steps, budget = max_steps, f"trainer.max_steps={max_steps:,}"
    elif max_epochs is not None:
        total_steps, budget = max(1, round(max_epochs * epoch_steps)), f"trainer.max_epochs={max_epochs:g}"
    else:
        raise ConfigError("give the run a length: trainer.max_steps, trainer.max_epochs or trainer.max_tokens")
    warmup_steps = fraction_or_steps("scheduler.warmup_steps", warmup, total_steps)
    if warmup_steps >= total_steps and warmup_steps > 1:
        raise ConfigError(
            f"scheduler.warmup_steps={warmup}: that is {warmup_steps} of {total_steps} optimizer steps; "
            "the warmup must be shorter than the run"
        )
    evaluations = cadence_steps(
        "trainer.evaluate_every", trainer["evaluate_every"], total_steps=total_steps, epoch_steps=epoch_steps
    )
    whole_epochs, rest = divmod(total_steps, epoch_steps)
    last_samples = min(rest * global_batch_size, num_train_samples)
    return RunPlan(
        total_steps=total_steps,
        steps_per_epoch=epoch_steps,
        warmup_steps=min(warmup_steps, total_steps - 1),
        evaluation_steps=evaluations if trainer["evaluate_every"] == "never" else evaluations | {total_steps},
        save_steps=cadence_steps(
            "trainer.save_every", trainer["save_every"], total_steps=total_steps, epoch_steps=epoch_steps
        ),
        total_tokens=round((whole_epochs * num_train_samples + last_samples) * tokens_per_sample),
        budget=budget,
        clip_norm=trainer["clip_norm"],
    )
