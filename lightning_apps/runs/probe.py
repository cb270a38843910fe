"""A few real steps and evaluations of a run on this machine, in a folder that is removed: how fast, how much memory."""

import contextlib
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping

from datamodules.contract import ExperimentData
from lightning_apps.callbacks.device_batch_size import FindDeviceBatchSize
from lightning_apps.callbacks.progress import RunProgress
from lightning_apps.callbacks.step_log import StepLog, peak_flops
from lightning_apps.experiments.experiment import Experiment
from lightning_apps.process.safe_stop import SafeStop, StopRun
from lightning_apps.run_files.directory import RunDirectory
from lightning_apps.run_files.metrics_csv import MetricsCSV
from lightning_apps.runs.build import build_callbacks, build_trainer, callback_of
from lightning_apps.runs.summary import peak_memory_bytes
from lightning_apps.training.plan import RunPlan

PROBE_S, PROBE_STEPS = 8.0, 60
"""The probe ends when it has timed steps for so long, or so many of them."""
EVALUATION_BATCHES = 2
"""Of each evaluation of the probe."""


@dataclass(frozen=True)
class Probe:
    """What a few optimizer steps on one device showed.

    Attributes:
        steps: that were timed.
        tokens_per_s: of one device, waiting for data included.
        flops_per_token: forward and backward.
        mfu: share of the measured peak.
        evaluation_s: of one whole evaluation, by the batches that were measured; None without evaluations.
        save_s: of what follows an evaluation: picture, checkpoint.
        first_s: what the first step and evaluation take beyond later ones: baselines, fonts, kernels' first calls.
        peak_bytes: of the device's memory, on a CPU of this process.
    """

    steps: int
    tokens_per_s: float
    flops_per_token: float
    mfu: float
    evaluation_s: float | None
    save_s: float
    first_s: float
    peak_bytes: int

    def seconds(self, plan: RunPlan, speedup: int) -> float:
        """Of a whole run, without the test at its end.

        Args:
            plan: of the run.
            speedup: devices that share its steps and evaluations; their exchange is not counted.
        """
        evaluations = len(plan.evaluation_steps)
        shared = plan.total_tokens / self.tokens_per_s + evaluations * (self.evaluation_s or 0.0)
        return shared / speedup + evaluations * self.save_s + self.first_s


class _Watch(L.Callback):
    """Times steps and evaluations, tries the largest micro-batch once, ends the probe; stands first of all.

    Args:
        size: samples of the largest micro-batch.
        warm_up: steps that are not timed: those that an evaluation follows.
    """

    def __init__(self, size: int, warm_up: int) -> None:
        self.size, self.warm_up = size, warm_up
        self.started: list[float] = []  # of each step
        self.tokens: list[int] = []
        self.evaluations: list[tuple[float, float]] = []  # start and end of each
        self.ended = 0.0
        self.attempt_s = 0.0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.started.append(time.perf_counter())

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.tokens.append(outputs["num_tokens"])
        self.ended = time.perf_counter()
        if len(self.tokens) == 1:  # beside the optimizer's state, which is there by now
            FindDeviceBatchSize().attempt(trainer, pl_module, self.size)
            self.attempt_s = time.perf_counter() - self.ended
        timed = len(self.tokens) > self.warm_up
        if timed and (self.ended - self.started[self.warm_up] > PROBE_S or len(self.tokens) >= PROBE_STEPS):
            raise StopRun("enough was seen")

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.evaluations.append((time.perf_counter(), 0.0))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.evaluations[-1] = (self.evaluations[-1][0], time.perf_counter())


def take_probe(config: Mapping[str, Any], datamodule: ExperimentData, module: Experiment, *, share: int) -> Probe:
    """Train some steps as the run would, with an evaluation after each of the first two; nothing is kept.

    Args:
        config: of a run on one device.
        datamodule: prepared; its global batch and limits are changed.
        module: made for the run, trained by this.
        share: samples of a step that one device gets.
    """
    datamodule.global_batch_size = share
    split = datamodule.evaluation_split
    evaluates = bool(module.plan.evaluation_steps)
    num_batches = len(datamodule.val_dataloader()) if evaluates else 0
    measured = min(EVALUATION_BATCHES, num_batches)
    datamodule.limits = replace(
        datamodule.limits, batches={**(datamodule.limits.batches or {}), **({split: measured} if evaluates else {})}
    )
    warm_up = 2 if evaluates else 1
    plan = replace(
        module.plan,
        total_steps=PROBE_STEPS + 1,  # never the last one, which is evaluated
        evaluation_steps=frozenset({1, 2} if evaluates else ()),
        save_steps=frozenset(),
    )
    watch = _Watch(min(datamodule.device_batch_size or share, share), warm_up)
    with tempfile.TemporaryDirectory() as folder:
        directory = RunDirectory(Path(folder))
        directory.checkpoints.mkdir()
        built = build_callbacks(config, directory, plan, SafeStop(None))
        callbacks = [watch, *(callback for callback in built if not isinstance(callback, RunProgress | EarlyStopping))]
        trainer = build_trainer(config, plan, callbacks=callbacks, loggers=[MetricsCSV(directory.metrics)])
        forget_peak()
        begun = time.perf_counter()
        with contextlib.suppress(StopRun):
            trainer.fit(module, datamodule)
        log, peak = callback_of(callbacks, StepLog), peak_memory_bytes(trainer)
    steps, seconds = len(watch.tokens) - warm_up, watch.ended - watch.started[warm_up]
    tokens_per_s = sum(watch.tokens[warm_up:]) / seconds
    flops_per_token = log.flops / log.tokens_seen
    evaluation_s, measured_s, save_s = None, 0.0, 0.0
    if evaluates:
        start, end = watch.evaluations[1]
        measured_s, save_s = end - start, watch.started[2] - end
        evaluation_s = measured_s * num_batches / measured
    usual_s = seconds / steps + measured_s + save_s
    return Probe(
        steps=steps,
        tokens_per_s=tokens_per_s,
        flops_per_token=flops_per_token,
        mfu=flops_per_token * tokens_per_s / peak_flops(trainer),
        evaluation_s=evaluation_s,
        save_s=save_s,
        first_s=max(watch.started[1] - begun - watch.attempt_s - usual_s, 0.0),
        peak_bytes=peak,
    )


def resident_bytes() -> int:
    """Memory of this process now; 0 where Linux does not say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").split("\n"):
            if line.startswith("VmRSS:"):
                return 1024 * int(line.split()[1])
    return 0


def forget_peak() -> None:
    """Let the peak of this process begin anew; preparing data may have had a higher one."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
