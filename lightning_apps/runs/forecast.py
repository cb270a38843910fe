"""What a run will need before it is started: memory by part, time and disk, from exact counts and a few real steps."""

import contextlib
import math
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L

from datamodules.contract import ExperimentData
from lightning_apps.callbacks.device_batch_size import FindDeviceBatchSize
from lightning_apps.callbacks.progress import RunProgress
from lightning_apps.callbacks.step_log import StepLog, peak_flops
from lightning_apps.config.kind_checks import check_needs
from lightning_apps.experiments.experiment import Experiment
from lightning_apps.process.safe_stop import SafeStop
from lightning_apps.run_files.directory import RunDirectory
from lightning_apps.run_files.metrics_csv import MetricsCSV
from lightning_apps.runs.banner import checkpoint_plan_bytes
from lightning_apps.runs.build import (
    available_accelerator,
    build_callbacks,
    build_datamodule,
    build_module,
    build_plan,
    build_trainer,
    callback_of,
)
from lightning_apps.runs.memory_estimate import AvailableMemory, activation_memory, available_memory_bytes, state_bytes
from lightning_apps.runs.preflight import check_head_size, check_positions, check_score_weights
from lightning_apps.runs.summary import peak_memory_bytes
from lightning_apps.training.plan import RunPlan
from lightning_apps.training.sharding import blocks_of
from models.language.causal_lm import recompute_activations

Config = Mapping[str, Any]
PROBE_S, PROBE_STEPS = 8.0, 60
"""The probe ends when it has measured steps for so long, or so many of them."""
PROBE_EVALUATION_BATCHES = 2
SHARE_IN_USE = 0.9
"""Of the free memory that a run may plan to fill, as in preflight."""
DEVICES = (2, 4, 8)
GIB = 1 << 30


@dataclass(frozen=True)
class Probe:
    """What a few real optimizer steps on one device showed.

    Attributes:
        steps: that were timed.
        tokens_per_s: of one device, waiting for data included.
        flops_per_token: forward and backward.
        mfu: share of the measured peak.
        evaluation_s: of one whole evaluation, by the batches that were measured; None without evaluations.
        save_s: of what follows an evaluation: checkpoint, picture.
        first_s: what only the first evaluation does, such as baselines.
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


@dataclass(frozen=True)
class Setting:
    """What decides how much memory a device needs."""

    device_batch_size: int
    gradient_checkpointing: bool
    strategy: str
    devices: int


@dataclass(frozen=True)
class Forecast:
    """What is known of a run before it starts; bytes, seconds, optimizer steps.

    Attributes:
        learning_rate: by name of a moment (`start`, `warmup`, `half`, `end`), of the group with the highest rate.
        curve: the rate at 40 steps, evenly spread.
        memory: for each setting of devices, bytes of one device by part.
        available: free memory of this machine's device; None where nobody says.
        setting: as it was asked for.
        fits: whether that fits into the free memory.
        first_that_fits: the first setting that does: smaller micro-batches, gradient checkpointing, then shards; None
            where none does.
        hours: on the devices that were asked for, their exchange of gradients not counted; None without a probe.
    """

    plan: RunPlan
    epochs: float
    learning_rate: dict[str, float]
    curve: list[float]
    checkpoint_bytes: int
    disk_bytes: int
    memory: dict[str, dict[str, int]]
    available: AvailableMemory | None
    setting: Setting
    fits: bool
    first_that_fits: Setting | None
    probe: Probe | None
    flops_per_step: float | None
    hours: float | None


class _Watch(L.Callback):
    """Times steps and evaluations, tries the largest micro-batch once, ends the probe; stands first of all."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.started: list[float] = []  # of each step
        self.tokens: list[int] = []
        self.ended = 0.0
        self.evaluations: list[tuple[float, float]] = []  # start and end of each
        self.step_ended: list[float] = []

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.started.append(time.perf_counter())

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.tokens.append(outputs["num_tokens"])
        if len(self.tokens) == 1:  # beside the optimizer's state, which is there by now
            FindDeviceBatchSize()._attempt(trainer, pl_module, self.size)
        self.ended = time.perf_counter()
        self.step_ended.append(self.ended)
        if len(self.tokens) > 2 and self.ended - self.started[2] > PROBE_S:
            trainer.should_stop = True

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.evaluations.append((time.perf_counter(), 0.0))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.evaluations[-1] = (self.evaluations[-1][0], time.perf_counter())


def make_forecast(config: Config) -> Forecast:
    """Prepare the data, build the run on one device, take a few steps in a folder that is removed, and count.

    Raises:
        ConfigError: the run cannot work.
    """
    accelerator = available_accelerator(config["hardware"]["accelerator"])
    check_needs(config)
    datamodule = build_datamodule(config)
    plan = build_plan(config, datamodule)
    available = available_memory_bytes(accelerator)
    process = _resident_bytes() if accelerator == "cpu" else 0
    module = build_module(config, datamodule, plan)
    check_positions(module.net, datamodule)
    check_head_size(module.net, datamodule)
    check_score_weights(config, datamodule)

    hardware = config["hardware"]
    world = hardware["devices"] * hardware.get("num_nodes", 1)
    share = -(-datamodule.global_batch_size // world)
    asked = Setting(
        datamodule.device_batch_size or share,
        hardware["gradient_checkpointing"],
        "fsdp" if hardware["strategy"] == "fsdp2" else "ddp" if world > 1 else "one device",
        world,
    )
    alone = {**config, "hardware": {**hardware, "devices": 1, "num_nodes": 1, "strategy": "auto"}}
    trainer = build_trainer(alone, plan, callbacks=[], loggers=[])
    module = trainer.precision_plugin.convert_module(module)  # type: ignore[assignment]
    state = state_bytes(module)
    if config["callbacks"].get("weight_average"):
        state["weight average"] = state["weights"]

    def measure() -> tuple[int, int]:
        with trainer.precision_plugin.forward_context():
            return activation_memory(module, *datamodule.memory_probe())

    # by whether layers keep their insides
    activations = {asked.gradient_checkpointing: measure()}
    unseen = {"rest": 0}  # what the probe shows beyond the estimate

    def of_device(setting: Setting) -> dict[str, int]:
        fixed, each = activations[setting.gradient_checkpointing]
        size = min(setting.device_batch_size, -(-datamodule.global_batch_size // setting.devices))
        parts = _split(state, module, setting) | {"activations": fixed + each * size} | unseen
        return parts | ({"process": process} if process else {})

    def fits(setting: Setting) -> bool:
        if available is None:
            return True
        needed = sum(of_device(setting).values()) - process
        return needed * (setting.devices if available.shared else 1) <= SHARE_IN_USE * available.now

    probed = next((one for one in _smaller(replace(asked, strategy="one device", devices=1)) if fits(one)), None)
    probe = None
    if probed is not None:
        datamodule.device_batch_size = probed.device_batch_size
        try:
            probe = take_probe(alone, datamodule, module, share=share)
        finally:
            datamodule.device_batch_size = config["data"].get("device_batch_size")
            datamodule.global_batch_size = config["data"]["global_batch_size"]
        unseen["rest"] = max(probe.peak_bytes - sum(of_device(probed).values()), 0)
        over = sum(of_device(probed).values()) - probe.peak_bytes
        fixed, each = activations[probed.gradient_checkpointing]
        if over > 0 and (estimated := fixed + each * probed.device_batch_size) > 0:  # kept less than was thought
            shrink = max(estimated - over, 0) / estimated
            activations[probed.gradient_checkpointing] = (int(fixed * shrink), int(each * shrink))
    first = next((one for one in _smaller(asked) if fits(one)), None)
    if first is None and not asked.gradient_checkpointing:
        with contextlib.suppress(ValueError):  # the network offers none
            recompute_activations(module.net)
            activations[True] = measure()
    if first is None and True in activations:
        thrifty = replace(asked, gradient_checkpointing=True)
        sharded = [replace(thrifty, strategy="fsdp", devices=devices) for devices in DEVICES if devices > world]
        first = next((one for start in (thrifty, *sharded) for one in _smaller(start) if fits(one)), None)

    one, kept = checkpoint_plan_bytes(config, plan, module)
    rate = config["optimizer"]["lr"]
    last = plan.total_steps - 1
    moments = {"start": 0, "warmup": plan.warmup_steps, "half": plan.total_steps // 2, "end": last}
    settings = [replace(asked, strategy="one device", devices=1)] + [
        replace(asked, strategy=strategy, devices=devices) for strategy in ("ddp", "fsdp") for devices in DEVICES
    ]
    # processes on the CPUs of one machine share its cores
    speedup = world if accelerator != "cpu" else hardware.get("num_nodes", 1)
    return Forecast(
        plan=plan,
        epochs=plan.epoch(plan.total_steps),
        learning_rate={name: rate * module.schedule(step) for name, step in moments.items()},
        curve=[rate * module.schedule(round(last * point / 39)) for point in range(40)],
        checkpoint_bytes=one,
        disk_bytes=kept,
        memory={_title(setting): of_device(setting) for setting in settings},
        available=available,
        setting=asked,
        fits=fits(asked),
        first_that_fits=first,
        probe=probe,
        flops_per_step=probe and probe.flops_per_token * plan.total_tokens / plan.total_steps,
        hours=probe and _seconds(plan, probe) / 3600 / speedup,
    )


def take_probe(config: Config, datamodule: ExperimentData, module: Experiment, *, share: int) -> Probe:
    """Train some steps as the run would, with an evaluation after each of the first two; nothing is kept.

    Args:
        config: of a run on one device.
        datamodule: prepared; its batch sizes and limits are changed.
        module: made for the run, trained by this.
        share: samples of a step that one device gets.
    """
    datamodule.global_batch_size = share
    size = min(datamodule.device_batch_size or share, share)
    whole = datamodule.val_dataloader()
    plan = replace(
        module.plan,
        total_steps=PROBE_STEPS,
        evaluation_steps=frozenset({1, 2} if module.plan.evaluation_steps else ()),
        save_steps=frozenset(),
    )
    limits = datamodule.limits
    watch = _Watch(size)
    with tempfile.TemporaryDirectory() as folder:
        directory = RunDirectory(Path(folder))
        directory.checkpoints.mkdir()
        built = build_callbacks(config, directory, plan, SafeStop(None))
        callbacks = [watch, *(callback for callback in built if not isinstance(callback, RunProgress))]
        trainer = build_trainer(config, plan, callbacks=callbacks, loggers=[MetricsCSV(directory.metrics)])
        few = min(PROBE_EVALUATION_BATCHES, len(whole))
        datamodule.limits = replace(limits, batches={**(limits.batches or {}), "validation": few})
        _forget_peak()
        try:
            trainer.fit(module, datamodule)
        finally:
            datamodule.limits = limits
        log = callback_of(callbacks, StepLog)
        peak = peak_memory_bytes(trainer)
    first = min(2, len(watch.tokens) - 1)  # those before it are followed by evaluations, and warm up
    seconds = max(watch.ended - watch.started[first], 1e-9)
    tokens_per_s = sum(watch.tokens[first:]) / seconds
    flops_per_token = log.flops / max(log.tokens_seen, 1)
    evaluation_s, save_s, first_s = None, 0.0, 0.0
    if len(watch.evaluations) > 1:
        (start, end), (again, ended) = watch.evaluations[:2]  # an early end is followed by one more
        few_s = ended - again
        evaluation_s, first_s = few_s * len(whole) / few, max(end - start - few_s, 0.0)
        save_s = watch.started[2] - ended
    return Probe(
        steps=len(watch.tokens) - first,
        tokens_per_s=tokens_per_s,
        flops_per_token=flops_per_token,
        mfu=flops_per_token * tokens_per_s / peak_flops(trainer),
        evaluation_s=evaluation_s,
        save_s=save_s,
        first_s=first_s,
        peak_bytes=peak,
    )


def _seconds(plan: RunPlan, probe: Probe) -> float:
    evaluations = len(plan.evaluation_steps) * ((probe.evaluation_s or 0.0) + probe.save_s)
    return plan.total_tokens / probe.tokens_per_s + evaluations + probe.first_s


def _split(state: Mapping[str, int], module: Experiment, setting: Setting) -> dict[str, int]:
    """Parts of one device that do not depend on the batch, and `exchange`: what talking to the other devices needs."""
    if setting.strategy == "one device":
        return dict(state)
    if setting.strategy == "ddp":  # buckets, in which gradients are added up
        return {**state, "exchange": state["gradients"]}
    blocks = [sum(weight.numel() * weight.element_size() for weight in part.parameters()) for part in blocks_of(module.net)]
    around, largest = state["weights"] - sum(blocks), max(blocks, default=0)
    # whole weights of what is around the blocks, of a block and the one that is fetched meanwhile; whole gradients of
    # one of them
    shards = {name: math.ceil(size / setting.devices) for name, size in state.items()}
    return shards | {"exchange": around + min(2, len(blocks)) * largest + max(around, largest)}


def _smaller(setting: Setting) -> list[Setting]:
    """The setting with its micro-batch, half of it, a quarter, down to one sample."""
    sizes = [setting.device_batch_size]
    while sizes[-1] > 1:
        sizes.append(-(-sizes[-1] // 2))
    return [replace(setting, device_batch_size=size) for size in sizes]


def _title(setting: Setting) -> str:
    return setting.strategy if setting.devices == 1 else f"{setting.strategy} x {setting.devices}"


def _resident_bytes() -> int:
    """Memory of this process now; 0 where Linux does not say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmRSS:"):
                return 1024 * int(line.split()[1])
    return 0


def _forget_peak() -> None:
    """Let the peak of this process begin anew; preparing data may have had a higher one."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
