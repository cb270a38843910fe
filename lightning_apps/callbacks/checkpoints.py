"""Checkpoints of a run: best, last and periodic, three policies over one atomic write."""

import contextlib
import os
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from lightning_apps.errors import ConfigError
from lightning_apps.plan import RunPlan


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint aside, flushes it to the disk, and renames it: it is there whole or not at all."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write `checkpoint` to a local `path`."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_name(f".{target.name}.part")
        with aside.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(target)
        fsync_folder(target.parent)


def fsync_folder(folder: Path) -> None:
    """Make renames inside a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def link_atomically(source: Path, target: Path) -> None:
    """Give a file a second name in one step, replacing what had that name."""
    aside = target.with_name(f".{target.name}.part")
    aside.unlink(missing_ok=True)
    aside.hardlink_to(source)
    aside.replace(target)
    fsync_folder(target.parent)


class RunCheckpoints(Checkpoint):
    """Keeps `best.ckpt`, `last.ckpt` and `step=00000120.ckpt` files.

    Best is decided at the end of an evaluation only, by one metric. Last and periodic checkpoints of a step that is
    also evaluated wait for that evaluation, so that a checkpoint never separates a step from its evaluation. All that
    are due at one step are one file with several names, written once.

    Lightning's ModelCheckpoint saves before the evaluation of the same step (Lightning#14431), and three of them
    would write three files.

    Args:
        plan: the clock of the run.
        folder: where the checkpoints go.
        monitor: `val/` metric that decides what is best.
        mode: whether a smaller (`min`) or larger (`max`) value is better.
        keep: number of periodic checkpoints to keep, the newest; None keeps all.
    """

    def __init__(
        self, *, plan: RunPlan, folder: Path, monitor: str, mode: Literal["min", "max"], keep: int | None
    ) -> None:
        self.plan = plan
        self.folder = folder
        self.monitor = monitor
        self.mode = mode
        self.keep = keep
        self.best_value: float | None = None
        self.best_step = 0
        self.best_metrics: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        """The best evaluation so far."""
        return {"best_value": self.best_value, "best_step": self.best_step, "best_metrics": self.best_metrics}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on comparing with the best evaluation."""
        self.best_value = state_dict["best_value"]
        self.best_step = state_dict["best_step"]
        self.best_metrics = state_dict["best_metrics"]

    @property
    def best_path(self) -> Path:
        """Weights of the best evaluation."""
        return self.folder / "best.ckpt"

    @property
    def last_path(self) -> Path:
        """The newest complete state."""
        return self.folder / "last.ckpt"

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save what is due and is not about to be evaluated."""
        step = trainer.global_step
        evaluated = step in self.plan.evaluation_steps
        if (step in self.plan.save_steps or step == self.plan.total_steps) and not evaluated:
            self._save(trainer, ["last.ckpt", *self._periodic(step)])

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare with the best evaluation and save."""
        if trainer.state.fn != "fit":
            return
        step = trainer.global_step
        names = ["last.ckpt", *self._periodic(step)]
        if self._is_best(trainer):
            names.append("best.ckpt")
        self._save(trainer, names)

    def _periodic(self, step: int) -> list[str]:
        return [f"step={step:08d}.ckpt"] if step in self.plan.save_steps else []

    def _is_best(self, trainer: L.Trainer) -> bool:
        metrics = {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("val/")}
        value = monitored_value(trainer, self.monitor)
        better = self.best_value is None or (value < self.best_value if self.mode == "min" else value > self.best_value)
        if better and value == value:  # NaN is never best
            self.best_value, self.best_step, self.best_metrics = value, trainer.global_step, metrics
            return True
        return False

    def _save(self, trainer: L.Trainer, names: list[str]) -> None:
        first, *others = [self.folder / name for name in reversed(names)]
        trainer.save_checkpoint(first)
        if not trainer.is_global_zero:
            return
        for other in others:
            link_atomically(first, other)
        if self.keep is not None:
            for old in periodic_checkpoints(self.folder)[: -self.keep or None]:
                with contextlib.suppress(FileNotFoundError):
                    old.unlink()


def monitored_value(trainer: L.Trainer, monitor: str) -> float:
    """The metric that selects, as the last evaluation measured it.

    Raises:
        ConfigError: there is no such metric.
    """
    if monitor not in trainer.callback_metrics:
        measured = sorted(key for key in trainer.callback_metrics if key.startswith("val/"))
        raise ConfigError(
            f"callbacks.checkpoints.monitor={monitor!r} is not measured here; choose one of {', '.join(measured)}"
        )
    return float(trainer.callback_metrics[monitor])


def periodic_checkpoints(folder: Path) -> list[Path]:
    """Periodic checkpoints of a run, oldest first."""
    return sorted(folder.glob("step=*.ckpt"))
