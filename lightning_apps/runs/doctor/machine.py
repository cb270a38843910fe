"""What doctor says of the machine: cores, memory, accelerators, disk, folders, object stores, loggers."""

import os
import shutil
import socket
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from datamodules.contract import ExperimentData
from datamodules.storage.errors import StorageError
from datamodules.storage.object_store import ObjectStore, TransferOptions, is_remote, split_url
from lightning_apps.errors import ConfigError
from lightning_apps.experiments.experiment import Experiment
from lightning_apps.run_files.directory import RunDirectory, check_start, check_writable
from lightning_apps.run_files.settings import flat_settings
from lightning_apps.run_files.side_logger import SideLogger
from lightning_apps.runs.banner import human_bytes
from lightning_apps.runs.build import available_accelerator, build_loggers
from lightning_apps.runs.doctor.finding import Finding, judged, said
from lightning_apps.runs.memory_estimate import available_memory_bytes
from lightning_apps.runs.precision import bf16_speed, cpu_has_bf16_units
from lightning_apps.runs.preflight import (
    check_accelerator,
    check_disk,
    check_load,
    check_memory,
    checkpoint_plan_bytes,
)
from lightning_apps.training.plan import RunPlan

Config = Mapping[str, Any]
PATIENCE_S = 3.0
"""Seconds that a server may take to accept a connection."""
PROBED = 1e10
"""Parameters times tokens of the longest sample up to which a forward pass measures memory: about two seconds."""
HOME_OUTPUTS = "run.output_root=$HOME/outputs"


def check_machine(config: Config, directory: RunDirectory, precision: str | None = None) -> list[Finding]:
    """What needs neither data nor model.

    Args:
        config: of the run, with a definite precision.
        directory: of the run.
        precision: what `precision=auto` chose and why; None where it chose nothing.
    """
    return [
        *([] if precision is None else [judged("machine", "precision=auto has a reason", precision)]),
        *hardware(config),
        *folders(config, directory),
        *object_stores(config),
        *loggers(config),
    ]


def hardware(config: Config) -> list[Finding]:
    """Cores, memory and accelerators, and what of them the run uses badly."""
    accelerator = available_accelerator(config["hardware"]["accelerator"])
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = available_memory_bytes("cpu")
    parts = [f"{cores} cores, load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else f"{cores} cores"]
    if memory is not None:
        parts.append(f"{human_bytes(memory.now)} of {human_bytes(memory.total)} memory free")
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    parts.append(", ".join(gpus) or "no GPU")
    parts.append(
        f"bf16 products at {bf16_speed():.1f} times the speed of float32 on the CPU"
        if cpu_has_bf16_units()
        else "the CPU has no units for bf16"
    )
    claim = f"the machine suits {accelerator} with precision={config['precision']['name']}"
    notices = [*check_accelerator(config), *check_load(config)]
    return [said("yellow", "machine", claim, notice) for notice in notices] or [
        judged("machine", claim, "; ".join(parts))
    ]


def folders(config: Config, directory: RunDirectory) -> list[Finding]:
    """Whether run directory and cache can be written, and no other run is in the way; nothing stays."""
    found = []
    claim = "the run directory can be written and is free"
    try:
        check_start(directory, config["run"])
        found.append(judged("machine", claim, str(directory.path)))
    except ConfigError as error:
        if directory.holds_a_run():
            name = f"run.name={directory.path.name}-2"
            found.append(said("yellow", "machine", claim, str(error), remedy=name))
        else:
            found.append(said("red", "machine", claim, str(error), remedy=HOME_OUTPUTS))
    root = Path(config["run"]["cache_root"])
    try:
        check_writable(root, "choose another run.cache_root")
        found.append(judged("machine", "the cache can be written", str(root)))
    except ConfigError as error:
        remedy = "run.cache_root=$HOME/.cache/lightning_apps"
        found.append(said("red", "machine", "the cache can be written", str(error), remedy=remedy))
    return found


def disk(config: Config, plan: RunPlan, module: Experiment, directory: RunDirectory) -> Finding:
    """Whether the plan of checkpoints fits on the disk."""
    claim = "the planned checkpoints fit on the disk"
    try:
        check_disk(config, plan, module, directory)
    except ConfigError as error:
        remedy = "callbacks.checkpoints.keep=1 trainer.save_every=never"
        return said("red", "machine", claim, str(error), remedy=remedy)
    one, kept = checkpoint_plan_bytes(config, plan, module)
    folder = directory.path.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    return judged("machine", claim, f"{human_bytes(kept)} ({human_bytes(one)} each) of {human_bytes(free)} free")


def memory(config: Config, module: Experiment, data: ExperimentData) -> Finding:
    """Whether a step fits into memory: measured on the longest samples, or for a large model what it keeps at least."""
    claim = "a step fits into memory"
    weights = [(entry.numel() * entry.element_size(), entry.requires_grad) for entry in module.net.parameters()]
    kept = sum(size * (4 if is_trained else 1) for size, is_trained in weights)
    available = available_memory_bytes(available_accelerator(config["hardware"]["accelerator"]))
    if available is None:
        return judged(
            "machine", claim, f"{human_bytes(kept)} for weights, gradients and Adam; nobody says what is free"
        )
    counted = f"{human_bytes(kept)} for weights, gradients and Adam; {human_bytes(available.now)} free"
    remedy = "data.device_batch_size=1 hardware.gradient_checkpointing=true"
    tokens = data.longest_sequence or data.tokens_per_sample
    if sum(size / 4 for size, _ in weights) * tokens > PROBED:
        counted += "; activations of so large a model are not measured here"
        return judged("machine", claim, counted, red=kept > available.total, yellow=kept > available.now, remedy=remedy)
    try:
        for notice in check_memory(config, module, data):
            return said("yellow", "machine", claim, notice, remedy=remedy)
    except ConfigError as error:
        return said("red", "machine", claim, str(error), remedy=remedy)
    return judged("machine", claim, f"{counted}; measured on the longest samples, with all that is kept for gradients")


# ---------------------------------------------------------------------- object stores


def object_stores(config: Config) -> list[Finding]:
    """Each s3:// address of the configuration: written, read and deleted where a run writes, else listed."""
    urls = {key: value for key, value in flat_settings(config).items() if isinstance(value, str) and is_remote(value)}
    return [try_store(key, url, writes=key in ("run.upload", "data.store")) for key, url in sorted(urls.items())]


def try_store(key: str, url: str, *, writes: bool) -> Finding:
    """Put an object of a random name, read it, delete it; or look for any object, where the run only reads."""
    claim = f"{key} can be {'written, read and deleted' if writes else 'read'}"
    try:
        bucket, prefix = split_url(url)
        options = TransferOptions.from_environment()
        quick = TransferOptions(patience_s=min(options.patience_s, 4 * PATIENCE_S), attempts=2)
        with ObjectStore(bucket, quick) as store:
            if not writes:
                count = len(store.listing(prefix))
                remedy = f"{key}=s3://{bucket}/<another prefix>"
                return judged("machine", claim, f"{url}: {count:,} objects", red=count == 0, remedy=remedy)
            name, content = "/".join(part for part in (prefix, f".doctor-{uuid.uuid4().hex}") if part), b"doctor"
            store.put(name, content)
            same = store.read(name) == content
            store.delete(name)
            gone = not store.listing(name)
    except StorageError as error:
        return said("red", "machine", claim, f"{url}: {error}", remedy=f"{key}=null" if writes else "")
    counted = f"{url}: an object of {len(content)} bytes came back {'the same' if same else 'CHANGED'}"
    return judged(
        "machine", claim, counted + (" and is deleted" if gone else ", and is still there"), red=not same,
        yellow=not gone, remedy=f"{key}=null",
    )  # fmt: skip


# ---------------------------------------------------------------------- loggers


def loggers(config: Config) -> list[Finding]:
    """Each logger beside metrics.csv: its server takes a connection, or it writes a value into a folder that goes."""
    names = list(config["logger"])
    if not names:
        return []
    with tempfile.TemporaryDirectory() as folder:
        directory = RunDirectory(Path(folder) / config["experiment"] / "doctor")
        try:
            built = build_loggers(config, directory)
        except ConfigError as error:
            return [said("red", "machine", "every logger can be made", str(error))]
        side = [entry for entry in built if isinstance(entry, SideLogger)]
        return [try_logger(name, config, entry.inner) for name, entry in zip(names, side, strict=True)]


def try_logger(name: str, config: Config, logger: Any) -> Finding:
    """Yellow where it cannot be reached: no logger ever stops a run."""
    claim, remedy = f"logger.{name} can be reached", f"~logger.{name}"
    url = server_of(name, config["logger"][name])
    if url is not None:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            socket.create_connection((parts.hostname or "", port), timeout=PATIENCE_S).close()
        except OSError as error:
            counted = f"{parts.scheme}://{parts.hostname}:{port} takes no connection ({error})"
            offline = "logger.wandb.offline=true" if name == "wandb" else remedy
            return judged("machine", claim, counted, yellow=True, remedy=offline)
        return judged("machine", claim, f"{parts.scheme}://{parts.hostname}:{port} takes connections")
    if not isinstance(logger, TensorBoardLogger | CSVLogger):
        return judged("machine", claim, f"{type(logger).__name__} is made; it names no server")
    try:
        logger.log_metrics({"doctor": 0.0}, 0)
        logger.finalize("success")
    except Exception as error:
        return judged("machine", claim, f"{type(error).__name__}: {error}", yellow=True, remedy=remedy)
    return judged("machine", claim, f"{type(logger).__name__} wrote a value")


def server_of(name: str, node: Mapping[str, Any]) -> str | None:
    """Address of the server that a logger sends to; None where it writes files."""
    if name == "wandb":
        silent = node.get("offline") or os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun")
        return None if silent else os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    given = [node.get("tracking_uri"), os.environ.get("MLFLOW_TRACKING_URI") if name == "mlflow" else None]
    return next((str(url) for url in given if url and str(url).startswith("http")), None)
