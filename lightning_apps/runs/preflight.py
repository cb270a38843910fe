"""What can be known to go wrong before the first step: errors where the run cannot work, notices where it may.

Errors (ConfigError, exit code 2, nothing written): sequences beyond the model's positions, a head of another size than
the classes, a micro-batch that needs more memory than the machine has, a disk too small for the planned checkpoints.
Notices (said once, the run goes on): an implausible learning rate, a CPU in use while a GPU idles, bf16 that is slower
than float32, the limits of MPS, memory that will be short, and what the data module has to say.
"""

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import lightning as L
import torch
from torch import nn
from transformers import PreTrainedModel

from datamodules.contract import ExperimentData, LabelledData, NeedsData, missing_members
from lightning_apps.config.kind_checks import unmet_need
from lightning_apps.errors import ConfigError, did_you_mean
from lightning_apps.experiments.experiment import Experiment
from lightning_apps.run_files.directory import RunDirectory
from lightning_apps.runs.banner import checkpoint_plan_bytes, human_bytes
from lightning_apps.runs.build import available_accelerator
from lightning_apps.runs.memory_estimate import available_memory_bytes, step_memory
from lightning_apps.runs.precision import bf16_speed, cpu_has_bf16_units
from lightning_apps.training.parameter_groups import layer_depths
from lightning_apps.training.plan import RunPlan

Config = Mapping[str, Any]

USUAL_RATES = {"all weights": (1e-6, 3e-4), "adapters": (1e-5, 3e-3)}
"""Learning rates of AdamW for pretrained weights outside of which fine-tuning rarely works."""


def check_before_start(
    config: Config, plan: RunPlan, module: Experiment, datamodule: ExperimentData, directory: RunDirectory
) -> list[str]:
    """Look ahead; nothing is written.

    Returns:
        Notices, one line each.

    Raises:
        ConfigError: the run cannot work.
    """
    net = module.net
    check_positions(net, datamodule)
    check_head_size(net, datamodule)
    check_score_weights(config, datamodule)
    check_disk(config, plan, module, directory)
    notices = list(datamodule.notices)
    notices += check_learning_rate(config, net)
    notices += check_accelerator(config)
    notices += check_memory(config, module, datamodule)
    notices += check_load(config)
    return notices


def check_callbacks(callbacks: Sequence[L.Callback], datamodule: ExperimentData) -> None:
    """Refuse callbacks whose `needs` (a protocol of datamodules/contract.py, or a class) the data do not have.

    Raises:
        ConfigError: naming what is missing.
    """
    for callback in callbacks:
        if isinstance(callback, NeedsData) and (missing := missing_members(datamodule, callback.needs)):
            raise ConfigError(unmet_need(type(callback).__name__, callback.needs, type(datamodule), missing))


@runtime_checkable
class NamesMetrics(Protocol):
    """What knows before an evaluation which metrics it will log."""

    def evaluation_metrics(self, data: Any) -> set[str]:
        """Names, without the split."""
        ...


def check_monitor(
    config: Config, plan: RunPlan, module: Experiment, callbacks: Sequence[L.Callback], data: Any
) -> None:
    """Refuse to select by a metric that no evaluation will measure; without this the first one ends the run.

    A module or callback of the user's own may log what it likes: then nothing is known, and nothing refused.

    Raises:
        ConfigError: the metric is none of those.
    """
    parts: list[Any] = [module, *callbacks]
    ours = ("lightning_apps.", "lightning.")
    if not plan.evaluation_steps or not all(type(part).__module__.startswith(ours) for part in parts):
        return
    names = {
        f"val/{name}" for part in parts if isinstance(part, NamesMetrics) for name in part.evaluation_metrics(data)
    }
    monitor = config["callbacks"]["checkpoints"]["monitor"]
    if monitor not in names:
        shown = sorted(name for name in names if not name.endswith(("_low", "_high")))
        raise ConfigError(
            f"callbacks.checkpoints.monitor={monitor}{did_you_mean(monitor, shown)}: no evaluation measures it; there "
            f"are {', '.join(shown)}"
        )


def usable_positions(net: nn.Module) -> int | None:
    """Longest sequence that learned absolute positions allow; None where there are none.

    RoBERTa counts positions from behind its padding index: of 514 rows, 512 are usable.
    """
    for name, part in net.named_modules():
        if isinstance(part, nn.Embedding) and "position" in name.rpartition(".")[2]:
            skipped = 0 if part.padding_idx is None else part.padding_idx + 1
            return part.num_embeddings - skipped
    return None


def within_positions(data: Mapping[str, Any], net: nn.Module) -> dict[str, Any]:
    """Data settings that make no sequence longer than a trained model has positions."""
    positions = usable_positions(net)
    lengths = {key: data[key] for key in ("max_length", "chunk_size") if key in data}
    return {**data, **({} if positions is None else {key: min(size, positions) for key, size in lengths.items()})}


def check_positions(net: nn.Module, datamodule: ExperimentData) -> None:
    """Refuse sequences longer than the model has positions.

    Raises:
        ConfigError: one is.
    """
    positions, longest = usable_positions(net), datamodule.longest_sequence
    if positions is not None and longest is not None and longest > positions:
        raise ConfigError(
            f"the longest sequence has {longest:,} tokens, the model positions for {positions:,}; cut texts with "
            f"{datamodule.length_key}={positions}, or choose another model"
        )


def check_head_size(net: PreTrainedModel, datamodule: ExperimentData) -> None:
    """Refuse a head of another size than there are classes.

    Raises:
        ConfigError: it is.
    """
    if not isinstance(datamodule, LabelledData):
        return
    names, size = datamodule.label_names, net.config.num_labels
    if size != len(names):
        raise ConfigError(
            f"the head of the model has {size} outputs, the data {len(names)} classes ({', '.join(names[:8])}); make "
            "the model with the data's label_names"
        )


def check_score_weights(config: Config, datamodule: ExperimentData) -> None:
    """Refuse a score that does not weigh the classes of the data.

    Raises:
        ConfigError: there are more or fewer weights than classes, or a weight is negative.
    """
    names = datamodule.label_names if isinstance(datamodule, LabelledData) else None
    for name, node in config["callbacks"]["extra"].items():
        weights = (node or {}).get("score_weights")
        if not weights or names is None:
            continue
        if len(weights) != len(names) or min(weights) < 0 or not any(weights):
            raise ConfigError(
                f"callbacks.extra.{name}.score_weights={weights}: give {len(names)} weights, one for each of "
                f"{', '.join(names[:8])}, none negative and not all 0; null leaves val/weighted_score out"
            )


def check_disk(config: Config, plan: RunPlan, module: Experiment, directory: RunDirectory) -> None:
    """Refuse a plan of checkpoints that does not fit on the disk.

    A checkpoint is written aside before it replaces another, so one more than are kept must fit, beside the exported
    weights.

    Raises:
        ConfigError: it does not.
    """
    folder = directory.path.absolute()
    while not folder.exists():
        folder = folder.parent
    one, kept = checkpoint_plan_bytes(config, plan, module)
    there = sum(path.stat().st_size for path in _files_in(directory))
    disk = shutil.disk_usage(folder)
    if disk.free == 0 and _takes_a_file(folder):
        return  # a mount (FUSE, a drive in the cloud) that does not say what it has
    free = disk.free + there
    needed = kept + one + sum(4 * parameter.numel() for parameter in module.parameters())
    if needed > free:
        raise ConfigError(
            f"the planned checkpoints need {human_bytes(needed)} ({human_bytes(one)} each), {human_bytes(free)} are "
            f"free in {folder}; keep fewer (callbacks.checkpoints.keep=1, trainer.save_every=never), or write to "
            "another disk with run.output_root=..."
        )


def _takes_a_file(folder: Path) -> bool:
    """Whether a file of 1 MiB can be written, where no space is said to be free."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(1 << 20))
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        return False
    return True


def _files_in(directory: RunDirectory) -> list[Path]:
    """Checkpoints and exported weights of an earlier start, each once however many names it has."""
    checkpoints = [*directory.checkpoints.glob("*.ckpt"), *directory.checkpoints.glob("*.ckpt/*")]
    paths = [*(path for path in checkpoints if path.is_file()), *directory.model.glob("*.safetensors")]
    return list({path.stat().st_ino: path for path in paths}.values())


def check_learning_rate(config: Config, net: nn.Module) -> list[str]:
    """Whether the rate of pretrained weights is one that fine-tuning works with."""
    if config["model"].get("pretrained") is None or not config["optimizer"]["_target_"].endswith("adamw"):
        return []
    depths, num_layers = layer_depths(net)
    if num_layers and not any(entry.requires_grad and depth < num_layers for entry, depth in depths.items()):
        return []  # only the head learns
    what = "adapters" if (config["model"].get("lora") or {}).get("rank") else "all weights"
    lowest, highest = USUAL_RATES[what]
    rate = config["optimizer"]["lr"]
    if rate > highest:
        return [
            f"optimizer.lr={rate:g} is high for fine-tuning ({what}: {lowest:g} to {highest:g}): what was learned in "
            "pretraining may be lost in the first steps; try optimizer.lr=5e-5"
        ]
    if rate < lowest:
        return [
            f"optimizer.lr={rate:g} is low for fine-tuning ({what}: {lowest:g} to {highest:g}): the run may end before "
            "anything is learned; try optimizer.lr=5e-5"
        ]
    return []


def check_accelerator(config: Config) -> list[str]:
    """What the chosen hardware cannot do, or leaves unused."""
    hardware, precision = config["hardware"], config["precision"]["name"]
    accelerator = available_accelerator(hardware["accelerator"])
    notices = []
    if accelerator == "cpu" and torch.cuda.is_available():
        notices.append(f"{torch.cuda.get_device_name()} idles while the CPU trains; hardware=gpu uses it")
    elif accelerator == "cpu" and torch.backends.mps.is_available():
        notices.append("Apple's GPU idles while the CPU trains; hardware=mps uses it")
    if accelerator == "cpu" and precision.startswith("bf16") and not cpu_has_bf16_units():
        notices.append(
            f"precision={precision}: this CPU has no units for bf16 and emulates it, up to a hundred times slower; "
            "precision=fp32 is faster here"
        )
    elif accelerator == "cpu" and precision.startswith("bf16") and (share := bf16_speed()) < 0.8:
        notices.append(
            f"precision={precision}: this CPU has units for bf16, and multiplies it at {share:.1f} times the speed of "
            "float32 (measured); precision=fp32 is faster here"
        )
    if accelerator == "gpu" and precision == "fp32" and torch.cuda.is_bf16_supported(including_emulation=False):
        notices.append(
            f"precision=fp32: {torch.cuda.get_device_name()} multiplies bf16 many times faster; precision=bf16_mixed "
            "keeps weights and optimizer in float32"
        )
    if accelerator == "mps":
        if "PYTORCH_ENABLE_MPS_FALLBACK" not in os.environ:
            notices.append(
                "hardware=mps: an operation that MPS lacks ends the run; PYTORCH_ENABLE_MPS_FALLBACK=1 in the "
                "environment computes it on the CPU instead"
            )
        if hardware["num_workers"] > 0 and hardware["pin_memory"]:
            notices.append("hardware=mps: pin_memory has no effect there; set hardware.pin_memory=false")
    return notices


def check_memory(config: Config, module: Experiment, datamodule: ExperimentData) -> list[str]:
    """Compare what a step needs, measured on the longest samples, with what the machine has.

    Raises:
        ConfigError: it needs more than there is.
    """
    if config["hardware"]["find_device_batch_size"]:
        return []
    available = available_memory_bytes(available_accelerator(config["hardware"]["accelerator"]))
    if available is None:
        return []
    devices = config["hardware"]["devices"]
    size = datamodule.device_batch_size or -(-datamodule.global_batch_size // devices)
    try:
        one, two, units = datamodule.memory_probe()
        fixed, each = step_memory(module, one, two, units)
    except (IndexError, RuntimeError, ValueError):  # a sample is bad: the guards name it when its step comes
        return []
    processes = devices if available.shared else 1  # those on CPUs share the machine's memory
    needed = processes * (fixed + each * size)
    if needed <= 0.9 * available.now:
        return []
    room = int((0.9 * available.now / processes - fixed) // max(each, 1))
    remedy = (
        f"data.device_batch_size={room} needs {human_bytes(processes * (fixed + each * room))} and trains the same"
        if room >= 1
        else "choose a smaller model or shorter sequences (data.max_length)"
    )
    if not config["hardware"]["gradient_checkpointing"]:
        remedy += "; hardware.gradient_checkpointing=true needs less memory for more time"
    message = (
        f"a step needs about {human_bytes(needed)} (measured on the longest samples: {human_bytes(each)} for each of "
        f"{size} in a micro-batch, {human_bytes(fixed)} for weights, gradients and optimizer"
        + (f"; {processes} processes" if processes > 1 else "")
        + f"), {human_bytes(available.now)} of {human_bytes(available.total)} are free: {remedy}"
    )
    if needed > available.total:
        raise ConfigError(message)
    return [message]


def check_load(config: Config) -> list[str]:
    """Whether other programs want more cores than there are: threads that wait for each other then waste most of it."""
    hardware = config["hardware"]
    accelerator = available_accelerator(hardware["accelerator"])
    if accelerator != "cpu" or hardware["num_threads"] is not None or not hasattr(os, "getloadavg"):
        return []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    load = os.getloadavg()[0]
    if round(load) <= cores or torch.get_num_threads() == 1:
        return []
    return [
        f"this machine is busy ({load:.0f} programs want its {cores} cores): {torch.get_num_threads()} threads that "
        "wait for each other make a step slower than one; try hardware.num_threads=1"
    ]
