"""What doctor says of a configuration that train accepts: what differs from the defaults, and what is odd."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from datamodules.contract import ExperimentData
from lightning_apps.run_files.settings import flat_settings, is_free
from lightning_apps.runs.doctor.finding import Finding, judged, said
from lightning_apps.runs.preflight import check_learning_rate
from lightning_apps.training.plan import RunPlan

Config = Mapping[str, Any]

RATES_FROM_SCRATCH = {"adamw": (1e-5, 1e-2), "muon": (1e-4, 1e-1), "schedule_free_adamw": (1e-4, 5e-2)}
"""Peak learning rates that train transformers of random weights, by optimizer; those of pretrained ones are in
preflight."""
LONG_WARMUP = 0.5
MANY_EPOCHS = 200
NUM_SHOWN = 12


def check_settings(
    config: Config, defaults: Config, plan: RunPlan, net: nn.Module, datamodule: ExperimentData
) -> list[Finding]:
    """All checks of this file.

    Args:
        config: the configuration.
        defaults: that of the experiment without any override.
        plan: of the run.
        net: the network.
        datamodule: set up.
    """
    return [
        differences(config, defaults),
        learning_rate(config, net),
        warmup(config, plan),
        evaluations(config, plan),
        patience(config, plan),
        batch_size(config, datamodule),
        repeats(plan),
    ]


def differences(config: Config, defaults: Config) -> Finding:
    """Settings that differ from the experiment's defaults; green, since they are meant."""
    now, usual = flat_settings(config), flat_settings(defaults)
    found = [
        f"{key}={now.get(key)} (default {usual.get(key)})"
        for key in sorted(now.keys() | usual.keys())
        if now.get(key) != usual.get(key) and not is_free(key)
    ]
    more = f" and {len(found) - NUM_SHOWN} more" if len(found) > NUM_SHOWN else ""
    return judged("settings", "what differs from the defaults is meant", ", ".join(found[:NUM_SHOWN]) + more or "none")


def learning_rate(config: Config, net: nn.Module) -> Finding:
    """Whether the peak rate is one that such a model is usually trained with; the model's checks prove it."""
    claim, rate = "the learning rate is a usual one", config["optimizer"]["lr"]
    for notice in check_learning_rate(config, net):
        return said("yellow", "settings", claim, notice)
    kind = config["optimizer"]["_target_"].rpartition(".")[2]
    if config["model"].get("pretrained") is not None or kind not in RATES_FROM_SCRATCH:
        return judged("settings", claim, f"optimizer.lr={rate:g}")
    lowest, highest = RATES_FROM_SCRATCH[kind]
    middle = 1e-3 if kind == "adamw" else (lowest * highest) ** 0.5
    return judged(
        "settings",
        claim,
        f"optimizer.lr={rate:g}; {kind} from random weights: {lowest:g} to {highest:g}",
        yellow=not lowest <= rate <= highest,
        remedy=f"optimizer.lr={middle:.1g}",
    )


def warmup(config: Config, plan: RunPlan) -> Finding:
    """Whether most of the run is at the rate that was asked for; a warmup longer than the run is refused before."""
    share = plan.warmup_steps / plan.total_steps
    return judged(
        "settings",
        "the warmup is a small part of the run",
        f"{plan.warmup_steps:,} of {plan.total_steps:,} optimizer steps",
        yellow=share > LONG_WARMUP,
        remedy="scheduler.warmup_steps=0.1",
    )


def evaluations(config: Config, plan: RunPlan) -> Finding:
    """Whether there is an evaluation before the end: without one nothing chooses the best weights."""
    early = [step for step in plan.evaluation_steps if step < plan.total_steps]
    first = f", the first after step {min(plan.evaluation_steps):,}" if plan.evaluation_steps else ""
    return judged(
        "settings",
        "the run is evaluated on the way",
        f"{len(plan.evaluation_steps):,} evaluations in {plan.total_steps:,} optimizer steps{first}",
        yellow=not early and plan.total_steps > 1,
        remedy="trainer.evaluate_every=0.1 trainer.limit_val_batches=null",
    )


def patience(config: Config, plan: RunPlan) -> Finding:
    """Whether what waits for some evaluations without progress can ever act."""
    settings = config["callbacks"]
    waits = {
        name: settings[name]["patience"]
        for name in ("early_stopping", "reduce_on_plateau")
        if settings[name] and "patience" in settings[name]
    }
    never = [name for name, count in waits.items() if count >= len(plan.evaluation_steps)]
    return judged(
        "settings",
        "what waits for evaluations can act",
        ", ".join(f"{name} waits for {count}" for name, count in waits.items()) or "nothing waits",
        yellow=bool(never),
        remedy=" ".join(f"callbacks.{name}.patience={max(1, len(plan.evaluation_steps) // 4)}" for name in never),
    )


def batch_size(config: Config, datamodule: ExperimentData) -> Finding:
    """Whether a step holds no more samples than there are."""
    size, count = config["data"]["global_batch_size"], datamodule.num_train_samples
    return judged(
        "settings",
        "a step holds fewer samples than there are",
        f"data.global_batch_size={size:,} of {count:,} training samples",
        yellow=size > count,
        remedy=f"data.global_batch_size={max(1, count // 8)}",
    )


def repeats(plan: RunPlan) -> Finding:
    """Whether the data are not repeated hundreds of times."""
    epochs = plan.epoch(plan.total_steps)
    return judged(
        "settings",
        "the data are not repeated without end",
        f"{epochs:.3g} epochs of {plan.steps_per_epoch:,} steps ({plan.budget})",
        yellow=epochs > MANY_EPOCHS,
        remedy="trainer.max_tokens=null trainer.max_steps=null trainer.max_epochs=10",
    )
