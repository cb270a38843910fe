"""An optimizer step done again: from the newest checkpoint before it, without touching the run directory.

Every step begins in a random state that depends on the seed and its number alone, and its samples are a pure function
of the same two, so training forward from any earlier checkpoint gives the same digits on the same machine.
"""

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities import move_data_to_device

from datamodules.contract import ExperimentData, StepBatch
from lightning_apps.callbacks.sample_log import planned_ids, step_sampler
from lightning_apps.callbacks.step_log import StepLog
from lightning_apps.diagnostics.crash_dump import CrashDump
from lightning_apps.diagnostics.first_non_finite import trace_step
from lightning_apps.diagnostics.sample_log import SampleLogError, sample_log_row
from lightning_apps.errors import ConfigError, GuardError, first_line
from lightning_apps.process.console import say
from lightning_apps.run_files.directory import RunDirectory, whole_summary
from lightning_apps.run_files.metrics_csv import read_metrics
from lightning_apps.run_files.weights import damage, read_checkpoint, steps_behind
from lightning_apps.runs.build import (
    build_datamodule,
    build_module,
    build_plan,
    build_step_callbacks,
    build_trainer,
    callback_of,
)
from lightning_apps.runs.same_data import build_data_of_run
from lightning_apps.training.optimizer_step import seed_step

Config = Mapping[str, Any]
COMPARED = ("train/loss", "train/grad_norm")


class ReplayMismatchError(RuntimeError):
    """What was recorded and what came out are not the same."""


@dataclass(frozen=True)
class ReplayedStep:
    """One step, done again.

    Attributes:
        step: its number, 1 is the first.
        start: checkpoint that training went on from; None for freshly drawn weights.
        start_step: optimizer steps that `start` had behind it.
        batch: what fed the step, on the CPU; None where none began.
        planned: sample ids (n,) that the order gives to the step, over all ranks.
        values: `train/loss` and `train/grad_norm`, empty where a guard stopped the step.
        failure: the guard that stopped it.
    """

    step: int
    start: Path | None
    start_step: int
    batch: StepBatch | None
    planned: list[int]
    values: dict[str, float]
    failure: GuardError | None


class _LastBatch(L.Callback):
    """Keeps the batch of the last step, and which samples the order gives to it."""

    def __init__(self) -> None:
        self.batch: StepBatch | None = None
        self.planned: list[int] = []

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.batch = batch
        if trainer.global_step + 1 == trainer.max_steps:
            self.planned = planned_ids(step_sampler(trainer), trainer.max_steps).tolist()


def checkpoint_before(directory: RunDirectory, step: int) -> tuple[Path | None, int]:
    """The newest checkpoint that has at most `step` optimizer steps behind it, and how many; (None, 0) without one."""
    candidates = []
    for path in directory.checkpoints.glob("*.ckpt"):
        try:
            completed = steps_behind(path)
        except Exception as error:  # whatever half a file makes of torch.load
            say(f"{path.name} cannot be read and is left out: {first_line(error)}")
            continue
        if 0 < completed <= step:
            candidates.append((completed, path))
    for completed, path in sorted(candidates, reverse=True):
        if (problem := damage(path)) is None:
            return path, completed
        say(f"{path.name} is damaged and left out: {problem}")
    return None, 0


def replay_step(config: Config, directory: RunDirectory, datamodule: Any, step: int) -> ReplayedStep:
    """Train from the newest checkpoint before `step` up to it; only files of the run are read.

    Raises:
        ConfigError: the run has no such step.
    """
    plan = build_plan(config, datamodule)
    if not 1 <= step <= plan.total_steps:
        raise ConfigError(f"step={step}: the run has the steps 1 to {plan.total_steps}")
    start, start_step = checkpoint_before(directory, step - 1)
    module = build_module(config, datamodule, plan)  # its schedule knows the whole run
    # evaluations change nothing in training: every step has its own random state
    short = replace(plan, total_steps=step, evaluation_steps=frozenset(), save_steps=frozenset())
    last = _LastBatch()
    callbacks = [last, *build_step_callbacks(config, short, crash_dumps=None)]
    trainer = build_trainer(config, short, callbacks=callbacks, loggers=[])
    failure = None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*callbacks used to create the checkpoint.*")  # those that write
            trainer.fit(module, datamodule, ckpt_path=start, weights_only=True)
    except GuardError as error:
        failure = error
    log = callback_of(callbacks, StepLog)
    reached = trainer.global_step == step
    values = {"train/loss": float(log.last_loss), "train/grad_norm": float(log.grad_norm)} if reached else {}
    batch = None if last.batch is None else move_data_to_device(last.batch, torch.device("cpu"))
    return ReplayedStep(step, start, start_step, batch, last.planned, values, failure)


def replay_recorded_step(config: dict[str, Any], directory: RunDirectory, step: int, *, num_texts: int) -> ReplayedStep:
    """Do a step again and compare its samples with the sample log, its loss and gradient norm with metrics.csv.

    Raises:
        ConfigError: the run has no such step.
        ReplayMismatchError: something differs, or the sample log was changed.
    """
    datamodule = build_data_of_run(config, directory)  # other data are a cause of other values
    replayed = replay_step(config, directory, datamodule, step)
    say(f"step {step} of {directory.path}, {_origin(replayed)}")
    say("\n".join(_batch_lines(replayed.batch, datamodule, num_texts)))
    problems = [*_compare_samples(replayed, directory), *_compare_values(replayed, directory)]
    if problems:
        cause = _other_threads(whole_summary(directory) or {}, torch.get_num_threads())
        raise ReplayMismatchError(f"step {step} differs from its record: {'; '.join([*problems, *cause])}")
    return replayed


def _other_threads(summary: Mapping[str, Any], here: int) -> list[str]:
    """Another number of CPU threads than in the run, as the likely cause of a difference in the last digits."""
    then = summary.get("num_threads")
    if then is None or then == here:
        return []
    return [
        f"the run computed with {then} CPU threads and this replay with {here}, which changes the last digits: "
        f"start it with OMP_NUM_THREADS={then}"
    ]


def _origin(replayed: ReplayedStep) -> str:
    if replayed.start is None:
        return f"trained from freshly drawn weights, {replayed.step - replayed.start_step} step(s)"
    return f"trained from {replayed.start.name}, {replayed.step - replayed.start_step} step(s)"


def _batch_lines(step: StepBatch | None, datamodule: ExperimentData, num_texts: int) -> Iterator[str]:
    if step is None:
        return
    yield f"samples   {' '.join(map(str, step.sample_ids.tolist()))}"
    tokenizer = datamodule.tokenizer
    if tokenizer is None:
        return
    for batch in step.micro_batches:
        for tokens in batch.get("input_ids", [])[:num_texts]:
            yield f"    {tokenizer.decode(tokens)}"
            num_texts -= 1


def _compare_samples(replayed: ReplayedStep, directory: RunDirectory) -> Iterator[str]:
    if replayed.failure is not None:
        return  # the sample log holds completed steps
    if not directory.sample_log.is_file():
        say("sample log this run has none")
        return
    try:
        recorded = sample_log_row(directory.sample_log, replayed.step)
    except SampleLogError as error:
        say(f"sample log {error}")
        yield str(error)
        return
    if recorded is None:
        say("sample log did not record this step")
    elif recorded.tolist() == replayed.planned:
        say(f"sample log the same {len(recorded)} samples in the same order")
    else:
        say(f"sample log {' '.join(map(str, recorded.tolist()))}")
        yield "the sample log names other samples"


def _compare_values(replayed: ReplayedStep, directory: RunDirectory) -> Iterator[str]:
    rows = read_metrics(directory.metrics) if directory.metrics.is_file() else []
    logged = next((row for row in rows if row["step"] == replayed.step), {})
    if replayed.failure is not None:
        say(f"guard     {replayed.failure}")
        if "train/loss" in logged:
            yield f"the run completed the step, the replay was stopped ({replayed.failure})"
        return
    for name in COMPARED:
        value = replayed.values[name]
        if name not in logged:
            say(f"{name}  replayed {value!r}; metrics.csv has no value for this step (trainer.log_every)")
            continue
        equal = value == logged[name] or (value != value and logged[name] != logged[name])
        verdict = "equal" if equal else "DIFFERENT"
        say(f"{name}  logged {logged[name]!r}, replayed {value!r}, difference {value - logged[name]:.3g}: {verdict}")
        if not equal:
            yield f"{name} was logged as {logged[name]!r} and came out as {value!r}"


def replay_crash_dump(config: Config, crash_dump: CrashDump, batch: StepBatch | None, *, num_texts: int) -> list[str]:
    """Look for the first non-finite value of a crash dump's batch under the last good weights, then under earlier ones.

    First with the weights of the newest checkpoint as they are, then after training forward to the failed step.

    Returns:
        What each of the two looks found.
    """
    datamodule = build_datamodule(config)
    say(f"{crash_dump.guard} in step {crash_dump.step} of {crash_dump.run}: {crash_dump.message}")
    found = []
    if batch is not None:
        say("\n".join(_batch_lines(batch, datamodule, num_texts)))
        found.append(
            f"batch under {crash_dump.checkpoint or 'fresh weights'}: " + _look(config, datamodule, crash_dump, batch)
        )
        say(found[-1])
    replayed = replay_step(config, RunDirectory(Path(crash_dump.run)), datamodule, crash_dump.step)
    outcome = (
        f"{replayed.failure}" if replayed.failure else f"no guard stops it, loss {replayed.values['train/loss']!r}"
    )
    found.append(f"step {crash_dump.step} again, {_origin(replayed)}: {outcome}")
    say(found[-1])
    if batch is not None and crash_dump.rank == 0:
        same = replayed.step == crash_dump.step and _same_tokens(replayed.batch, batch)
        say(
            "the data give the crash dump's batch again"
            if same
            else "the data now give another batch than the crash dump's"
        )
    return found


def _look(config: Config, datamodule: Any, crash_dump: CrashDump, batch: StepBatch) -> str:
    plan = build_plan(config, datamodule)
    module: Any = build_module(config, datamodule, plan)
    if crash_dump.checkpoint is not None and Path(crash_dump.checkpoint).is_file():
        checkpoint = read_checkpoint(Path(crash_dump.checkpoint))
        # with a weight average, state_dict holds the average and the weights in training stand beside it
        module.load_state_dict(checkpoint.get("current_model_state", checkpoint["state_dict"]))
    trainer = build_trainer(config, plan, callbacks=[], loggers=[], evaluation_only=True)
    device = trainer.strategy.root_device
    module = trainer.precision_plugin.convert_module(module).to(device).train()
    seed_step(config["seed"], crash_dump.step - 1, crash_dump.rank)
    with trainer.precision_plugin.forward_context():
        finding, loss = trace_step(module, module.loss_sum, move_data_to_device(batch, device))
    return f"{finding}" if finding else f"every value is finite, loss {loss!r}"


def _same_tokens(one: StepBatch | None, other: StepBatch) -> bool:
    if one is None or one.sample_ids.tolist() != other.sample_ids.tolist():
        return False
    pairs = zip(one.micro_batches, other.micro_batches, strict=False)
    return all(a[name].equal(b[name]) for a, b in pairs for name in ("input_ids", "labels") if name in a and name in b)
