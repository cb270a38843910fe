"""One run of one experiment: claim the directory, build, fit, evaluate the best again, export, sum up."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml

from lightning_apps.atomic_files import write_text_atomically
from lightning_apps.banner import result_lines, start_banner
from lightning_apps.build import (
    available_accelerator,
    build_callbacks,
    build_datamodule,
    build_loggers,
    build_module,
    build_plan,
    build_trainer,
    quiet_libraries,
)
from lightning_apps.callbacks.checkpoints import RunCheckpoints
from lightning_apps.console import open_console, say
from lightning_apps.errors import ConfigError
from lightning_apps.run_directory import RunDirectory, check_start, clear, locate_run
from lightning_apps.summary import Outcome, read_summary, write_summary

Config = Mapping[str, Any]


def run_experiment(config: Config) -> dict[str, Any]:
    """Train as the configuration says and return what summary.json holds.

    Raises:
        ConfigError: the configuration or data is wrong, or the run directory is taken; nothing has been written then.
    """
    quiet_libraries()
    available_accelerator(config["hardware"]["accelerator"])  # before data is prepared
    started = time.perf_counter()
    directory = locate_run(config["run"], config["experiment"])
    check_start(directory, config["run"])
    checkpoint = resume_point(directory, config)
    if checkpoint is not None and (summary := read_summary(directory)) and summary["status"] == "completed":
        open_console()
        say("\n".join([f"{directory.path} is complete; run.overwrite=true trains it anew.", *result_lines(summary)]))
        return summary

    datamodule = build_datamodule(config)
    plan = build_plan(config, datamodule)
    module = build_module(config, datamodule, plan)
    callbacks = build_callbacks(config, directory, plan)
    trainer = build_trainer(config, plan, callbacks=callbacks, loggers=[])
    claim(directory, config, is_main=trainer.is_global_zero)
    open_console(directory.log, main_process=trainer.is_global_zero)
    trainer.loggers = build_loggers(config, directory)
    say(start_banner(config, plan, module, trainer, directory, checkpoint))

    status, reason = "failed", ""
    try:
        trainer.fit(module, datamodule, ckpt_path=checkpoint, weights_only=True)
        stopped_early = trainer.global_step < plan.total_steps
        status = "completed"
        reason = f"early stopping at step {trainer.global_step}" if stopped_early else f"reached {plan.budget}"
        if plan.evaluation_steps:
            evaluate_best(trainer, module, datamodule, callbacks)
        if trainer.is_global_zero:
            export_model(module, datamodule, directory)
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise
    finally:
        outcome = Outcome(status=status, reason=reason, wall_s=time.perf_counter() - started)
        summary = write_summary(config, directory, plan, module, trainer, callbacks, outcome)
    say("\n".join(result_lines(summary)))
    return summary


def resume_point(directory: RunDirectory, config: Config) -> Path | None:
    """Checkpoint to continue from; None starts afresh.

    Raises:
        ConfigError: run.resume names no checkpoint, or the run was made with other settings.
    """
    wanted = config["run"]["resume"]
    if wanted is None:
        return None
    if wanted != "auto":
        return directory.checkpoint(wanted)
    last = directory.checkpoints / "last.ckpt"
    if directory.config.is_file():
        refuse_other_settings(directory, config)
    return last if last.is_file() else None


def refuse_other_settings(directory: RunDirectory, config: Config) -> None:
    """Continuing under other settings would be another experiment; where it runs and what it logs may change.

    Raises:
        ConfigError: naming the first settings that differ.
    """
    before = yaml.safe_load(directory.config.read_text(encoding="utf-8"))
    free = ("run", "logger", "hardware", "callbacks.guards", "data.num_workers", "data.pin_memory", "data.cache_root")
    then, now = _flat(before), _flat(config)
    different = [
        f"{key}: {then.get(key)!r} then, {now.get(key)!r} now"
        for key in sorted(then.keys() | now.keys())
        if then.get(key) != now.get(key) and not any(key == name or key.startswith(f"{name}.") for name in free)
    ]
    if different:
        raise ConfigError(
            f"run.resume=auto: {directory.path} was started with other settings ({'; '.join(different[:3])}); "
            "restore them, or choose another run.name"
        )


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, Mapping):
        return {prefix: node}
    leaves: dict[str, Any] = {}
    for key, value in node.items():
        leaves |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return leaves


def claim(directory: RunDirectory, config: Config, *, is_main: bool) -> None:
    """Make the run directory, cleared where overwriting was asked for, and write config.yaml."""
    if not is_main:
        return
    if config["run"]["overwrite"]:
        clear(directory, Path(config["run"]["output_root"]))
    directory.checkpoints.mkdir(parents=True, exist_ok=True)
    write_text_atomically(directory.config, yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))


def evaluate_best(trainer: L.Trainer, module: L.LightningModule, datamodule: Any, callbacks: list[L.Callback]) -> None:
    """Load the best weights; evaluate them on the test split if there is one."""
    checkpoints = next(callback for callback in callbacks if isinstance(callback, RunCheckpoints))
    if not checkpoints.best_path.is_file():
        return
    state = torch.load(checkpoints.best_path, map_location="cpu", weights_only=True)
    module.load_state_dict(state["state_dict"])
    if datamodule.has_test_split:
        trainer.test(module, datamodule, verbose=False)


def export_model(module: L.LightningModule, datamodule: Any, directory: RunDirectory) -> None:
    """Write weights and tokenizer in Hugging Face layout."""
    module.net.save_pretrained(directory.model)  # type: ignore[operator, union-attr]
    datamodule.tokenizer.save_pretrained(directory.model)
