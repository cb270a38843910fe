"""What a run will need before it is started: length, memory by part, disk and time, from counts and a probe."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from datamodules.contract import ExperimentData
from lightning_apps.config.kind_checks import check_needs
from lightning_apps.errors import ConfigError
from lightning_apps.experiments.experiment import Experiment
from lightning_apps.runs.banner import checkpoint_plan_bytes
from lightning_apps.runs.build import available_accelerator, build_datamodule, build_module, build_plan, build_trainer
from lightning_apps.runs.memory_estimate import AvailableMemory, activation_memory, available_memory_bytes, state_bytes
from lightning_apps.runs.precision import settle_precision
from lightning_apps.runs.preflight import check_head_size, check_positions, check_score_weights
from lightning_apps.runs.probe import Probe, resident_bytes, take_probe
from lightning_apps.training.plan import RunPlan
from lightning_apps.training.sharding import blocks_of
from models.language.causal_lm import recompute_activations

Config = Mapping[str, Any]
SHARE_IN_USE = 0.9
"""Of the free memory that a run may plan to fill, as in preflight."""
SHARDS = (2, 4, 8)
"""Devices to try where one is too small."""
CURVE_POINTS = 40


@dataclass(frozen=True)
class Setting:
    """What decides how much memory a device needs."""

    device_batch_size: int
    gradient_checkpointing: bool
    strategy: str  # one device | ddp | fsdp
    devices: int


@dataclass(frozen=True)
class Forecast:
    """What is known of a run before it starts; bytes, seconds, optimizer steps.

    Attributes:
        precision: of the run; where `precision=auto` chose it, with the reason.
        epochs: passes over the training data.
        learning_rate: by the name of a moment (`start`, `warmup`, `half`, `end`), of the group with the highest rate.
        curve: that rate at CURVE_POINTS steps, evenly spread.
        checkpoint_bytes: of one.
        disk_bytes: of all that are kept at once.
        memory: for each setting of devices, bytes of one device by part.
        available: free memory of this machine's device; None where nobody says, or that device is not here.
        setting: as it was asked for.
        fits: whether that fits into the free memory; None where nobody knows what is free.
        first_that_fits: the first setting that does: smaller micro-batches, gradient checkpointing, then shards; None
            where none does, or nobody knows.
        probe: None where `no_probe` says why there is none.
        flops_per_step: of all devices together.
        hours: on the devices that were asked for, without the test at the end; None without a probe.
    """

    plan: RunPlan
    precision: str
    epochs: float
    learning_rate: dict[str, float]
    curve: list[float]
    checkpoint_bytes: int
    disk_bytes: int
    memory: dict[str, dict[str, int]]
    available: AvailableMemory | None
    setting: Setting
    fits: bool | None
    first_that_fits: Setting | None
    probe: Probe | None
    no_probe: str | None
    flops_per_step: float | None
    hours: float | None


class DeviceMemory:
    """Bytes by part that one device needs under a setting: the state exactly, activations as autograd keeps them.

    Args:
        config: of the run, on one device that is here.
        plan: of the run.
        datamodule: prepared.
        module: made for the run; its weights take the type that they are trained in.
        process: bytes of the process before there was a network, where those count.
    """

    def __init__(
        self, config: Config, plan: RunPlan, datamodule: ExperimentData, module: Experiment, process: int
    ) -> None:
        self.precision = build_trainer(config, plan, callbacks=[], loggers=[]).precision_plugin
        self.precision.convert_module(module)  # in place
        self.module = module
        self.datamodule = datamodule
        self.global_batch_size = datamodule.global_batch_size
        self.outside = {"process": process} if process else {}
        self.state = state_bytes(self.module)
        if config["callbacks"].get("weight_average"):
            self.state["average"] = self.state["weights"]
        net = self.module.net
        self.blocks = [sum(weight.nbytes for weight in block.parameters()) for block in blocks_of(net)]
        self.activations = {bool(config["hardware"]["gradient_checkpointing"]): self._measured()}
        self.other = 0  # what a probe showed beyond this estimate

    def _measured(self) -> tuple[float, float]:
        """Bytes of activations whatever the micro-batch, and those of each sample."""
        try:
            with self.precision.forward_context():
                return activation_memory(self.module, *self.datamodule.memory_probe())
        except (IndexError, RuntimeError, ValueError) as error:  # training goes on until the guards name the sample
            raise ConfigError(f"the longest samples cannot be computed: {str(error).splitlines()[0]}") from error

    def recompute_activations(self) -> bool:
        """Let layers compute their activations twice; returns whether the network can."""
        try:
            recompute_activations(self.module.net)
        except ValueError:
            return False
        self.activations[True] = self._measured()
        return True

    def parts(self, setting: Setting) -> dict[str, int]:
        """Bytes of one device by part; `exchange` is what talking to the others needs."""
        fixed, each = self.activations[setting.gradient_checkpointing]
        size = min(setting.device_batch_size, -(-self.global_batch_size // setting.devices))
        parts = dict(self.state)
        if setting.strategy == "fsdp":
            parts = {name: -(-whole // setting.devices) for name, whole in self.state.items()}
            around, largest = self.state["weights"] - sum(self.blocks), max(self.blocks, default=0)
            # whole weights of what is around the blocks, of a block and the one that is fetched meanwhile; whole
            # gradients of one of them
            parts["exchange"] = around + min(2, len(self.blocks)) * largest + max(around, largest)
        elif setting.strategy == "ddp":
            parts["exchange"] = self.state["gradients"]  # buckets, in which they add up
        return {**parts, "activations": round(fixed + each * size), "other": self.other, **self.outside}

    def correct(self, setting: Setting, peak_bytes: int) -> None:
        """Let the parts of a setting add up to what was measured."""
        parts = self.parts(setting)
        self.other = max(peak_bytes - sum(parts.values()), 0)
        beyond = max(sum(parts.values()) - peak_bytes, 0)  # autograd kept less at once than was thought
        scale = max(1 - beyond / max(parts["activations"], 1), 0)
        fixed, each = self.activations[setting.gradient_checkpointing]
        self.activations[setting.gradient_checkpointing] = (scale * fixed, scale * each)

    def fits(self, setting: Setting, available: AvailableMemory) -> bool:
        """Whether the setting fits into what is free; processes on the CPUs of a machine share that."""
        needed = sum(self.parts(setting).values()) * (setting.devices if available.shared else 1)
        return needed - sum(self.outside.values()) <= SHARE_IN_USE * available.now


def make_forecast(config: Config) -> Forecast:
    """Prepare the data, build the run on one device, count, and take a few steps in a folder that is removed.

    Raises:
        ConfigError: the run cannot work.
    """
    check_needs(config)
    hardware = config["hardware"]
    accelerator, no_probe = _accelerator(hardware["accelerator"])
    config, chosen = settle_precision(config)
    datamodule = build_datamodule(config)
    plan = build_plan(config, datamodule)
    process = resident_bytes() if accelerator == "cpu" and no_probe is None else 0
    module = build_module(config, datamodule, plan)
    check_positions(module.net, datamodule)
    check_head_size(module.net, datamodule)
    check_score_weights(config, datamodule)
    peak_rate = max(group["lr"] for group in module.build_optimizer(module.net).param_groups)

    def rate(step: int) -> float:
        return peak_rate * module.schedule(step)

    world = hardware["devices"] * hardware.get("num_nodes", 1)
    share = -(-datamodule.global_batch_size // world)
    strategy = "fsdp" if hardware["strategy"] == "fsdp2" else "ddp" if world > 1 else "one device"
    asked = Setting(datamodule.device_batch_size or share, hardware["gradient_checkpointing"], strategy, world)
    alone = _on_one_device(config, accelerator)
    memory = DeviceMemory(alone, plan, datamodule, module, process)
    checkpoint, disk = checkpoint_plan_bytes(config, plan, module)  # of the type that the weights have by now
    available = available_memory_bytes(accelerator) if no_probe is None else None
    probe = None
    if no_probe is None:
        tried = replace(asked, strategy="one device", devices=1)
        probed = _first([tried], memory, available) if available else tried
        if probed is None:
            no_probe = "not even one sample fits into the free memory"
        else:
            probe, no_probe = _probe(alone, datamodule, module, probed, share)
        if probe is not None and probed is not None:
            memory.correct(probed, probe.peak_bytes)
    last = plan.total_steps - 1
    # processes on the CPUs of one machine share its cores
    speedup = hardware.get("num_nodes", 1) if accelerator == "cpu" else world
    first = _first_that_fits(asked, memory, available) if available else None
    return Forecast(
        plan=plan,
        precision=chosen or config["precision"]["name"],
        epochs=plan.epoch(plan.total_steps),
        learning_rate={
            "start": rate(0), "warmup": rate(plan.warmup_steps), "half": rate(plan.total_steps // 2), "end": rate(last)
        },
        curve=[rate(round(last * point / (CURVE_POINTS - 1))) for point in range(CURVE_POINTS)],
        checkpoint_bytes=checkpoint,
        disk_bytes=disk,
        memory={
            title: memory.parts(setting) for title, setting in _settings(asked).items()
        },
        available=available,
        setting=asked,
        fits=memory.fits(asked, available) if available else None,
        first_that_fits=first,
        probe=probe,
        no_probe=no_probe,
        flops_per_step=probe.flops_per_token * plan.total_tokens / plan.total_steps if probe else None,
        hours=probe.seconds(plan, speedup) / 3600 if probe else None,
    )  # fmt: skip


def _accelerator(wanted: str) -> tuple[str, str | None]:
    """What to count on, and why there is no probe; a device that is not here is counted on the CPU."""
    try:
        return available_accelerator(wanted), None
    except ConfigError:
        return "cpu", f"there is no {wanted} here; memory is that of the same steps on a CPU"


def _on_one_device(config: Config, accelerator: str) -> dict[str, Any]:
    """The configuration of a run on one device that is here."""
    one = {
        "accelerator": accelerator,
        "devices": 1,
        "num_nodes": 1,
        "strategy": "auto",
        "find_device_batch_size": False,
    }
    precision = config["precision"]
    if accelerator == "cpu" and precision["name"] == "fp16_mixed":  # CPUs have none; as many bytes
        precision = {**precision, "name": "bf16_mixed", "lightning": "bf16-mixed"}
    return {**config, "hardware": {**config["hardware"], **one}, "precision": precision}


def _probe(
    config: Config, datamodule: ExperimentData, module: Experiment, setting: Setting, share: int
) -> tuple[Probe | None, str | None]:
    """The probe, or why there is none; the data module is as before."""
    before = datamodule.device_batch_size, datamodule.global_batch_size, datamodule.limits
    datamodule.device_batch_size = min(setting.device_batch_size, share)
    try:
        return take_probe(config, datamodule, module, share=share), None
    except Exception as error:
        return None, f"it failed with {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    finally:
        datamodule.device_batch_size, datamodule.global_batch_size, datamodule.limits = before


def _settings(asked: Setting) -> dict[str, Setting]:
    """One device, and several as copies and in shards; what was asked for is among them."""
    found = {"one device": replace(asked, strategy="one device", devices=1)}
    for strategy in ("ddp", "fsdp"):
        for devices in sorted({2, 8, asked.devices} - {1}):
            found[f"{strategy} x {devices}"] = replace(asked, strategy=strategy, devices=devices)
    return found


def _first_that_fits(asked: Setting, memory: DeviceMemory, available: AvailableMemory) -> Setting | None:
    """As it was asked for, with smaller micro-batches, with activations that are computed twice, with more shards."""
    first = _first([asked], memory, available)
    if first is not None or not (asked.gradient_checkpointing or memory.recompute_activations()):
        return first
    thrifty = replace(asked, gradient_checkpointing=True)
    sharded = [replace(thrifty, strategy="fsdp", devices=devices) for devices in SHARDS if devices > asked.devices]
    return _first([thrifty, *sharded], memory, available)


def _first(settings: list[Setting], memory: DeviceMemory, available: AvailableMemory) -> Setting | None:
    """The first that fits, each with its micro-batch, half of it, a quarter, down to one sample."""
    for setting in settings:
        size = setting.device_batch_size
        while True:
            smaller = replace(setting, device_batch_size=size)
            if memory.fits(smaller, available):
                return smaller
            if size == 1:
                break
            size = -(-size // 2)
    return None
