"""summary.json: the outcome of a run, in one place for people and programs."""

import importlib.metadata
import platform
import resource
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch

from lightning_apps.callbacks.checkpoints import RunCheckpoints
from lightning_apps.callbacks.step_log import StepLog, peak_flops
from lightning_apps.run_files.atomic_files import write_json_atomically
from lightning_apps.run_files.directory import RunDirectory
from lightning_apps.run_files.metrics_csv import read_metrics
from lightning_apps.runs.banner import parameters_by_part, write_per_class
from lightning_apps.runs.build import callback_of
from lightning_apps.training.plan import RunPlan

PACKAGES = ("torch", "lightning", "transformers", "torchmetrics", "hydra-core", "omegaconf", "numpy")


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `completed`, `stopped` or `failed`, why, and the signal that stopped it."""

    status: str
    reason: str
    signum: int | None = None


def write_summary(
    config: Mapping[str, Any],
    directory: RunDirectory,
    plan: RunPlan,
    module: L.LightningModule,
    trainer: L.Trainer,
    callbacks: list[L.Callback],
    outcome: Outcome,
    wall_s: float,
) -> dict[str, Any]:
    """Collect and write the summary; returns it."""
    log, checkpoints = callback_of(callbacks, StepLog), callback_of(callbacks, RunCheckpoints)
    parameters = list(module.parameters())
    num_parameters = sum(parameter.numel() for parameter in parameters)
    tokens_per_s = log.tokens_seen / log.train_s if log.train_s else None
    is_tested = outcome.status == "completed"  # what was measured of a test that was stopped is no result
    tested = {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("test/")}
    summary = {
        "experiment": config["experiment"],
        "name": config["run"]["name"],
        "directory": str(directory.path),
        "status": outcome.status,
        "reason": outcome.reason,
        "seed": config["seed"],
        "git_commit": git_commit(),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
        "command": shlex.join([Path(sys.executable).name, "-m", "lightning_apps.train", *sys.argv[1:]]),
        "parameters": {
            "total": num_parameters,
            "trainable": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
            "parts": parameters_by_part(module),
        },
        "optimizer_steps": log.completed_steps,
        "planned_steps": plan.total_steps,
        "tokens_seen": log.tokens_seen,
        "target_tokens_seen": log.target_tokens_seen,
        "wall_s": wall_s + log.earlier_wall_s,
        "train_s": log.train_s,
        "tokens_per_s": tokens_per_s,
        "mfu": log.flops / log.train_s / peak_flops(trainer) if log.flops else None,
        "num_threads": torch.get_num_threads(),  # sums of floats depend on how they are split
        "peak_memory_bytes": peak_memory_bytes(trainer),
        "best": {
            "metric": checkpoints.monitor,
            "mode": checkpoints.mode,
            "value": checkpoints.best_value,
            "step": checkpoints.best_step,
            "path": "checkpoints/best.ckpt",
            "metrics": checkpoints.best_metrics,
        }
        if checkpoints.best_value is not None
        else None,
        "metrics": {**final_metrics(directory), **(tested if is_tested else {})},
    }
    if trainer.is_global_zero and directory.path.is_dir():
        write_json_atomically(directory.summary, summary)
        write_per_class(directory.path, summary)
    return summary


def final_metrics(directory: RunDirectory) -> dict[str, float]:
    """The last logged value of every `val/` and `test/` metric."""
    if not directory.metrics.is_file():
        return {}
    final: dict[str, float] = {}
    for row in read_metrics(directory.metrics):
        final |= {key: value for key, value in row.items() if key.startswith(("val/", "test/"))}
    return final


def peak_memory_bytes(trainer: L.Trainer) -> int:
    """Most memory held: by torch on a GPU, else by this process."""
    if trainer.strategy.root_device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def git_commit() -> str | None:
    """Commit of the code, with `-dirty` where tracked files differ from it; None outside a repository."""
    here = Path(__file__).parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],  # noqa: S607
            cwd=here, capture_output=True, text=True, check=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip() or None
