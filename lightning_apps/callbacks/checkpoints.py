"""Checkpoints of a run: best, last and periodic, three policies over one atomic write."""

import contextlib
import os
import secrets
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities.types import STEP_OUTPUT

from datamodules.storage.atomic_files import fsync_folder, open_new, written_aside
from lightning_apps.callbacks.after_evaluation import AfterEvaluation
from lightning_apps.errors import CheckpointWriteError, ConfigError
from lightning_apps.process.console import say
from lightning_apps.process.safe_stop import SafeStop
from lightning_apps.process.side_products import side_product
from lightning_apps.run_files.metrics_csv import MetricsCSV
from lightning_apps.run_files.weights import damage
from lightning_apps.training.optimizer_step import all_ranks, from_all_ranks, takes_steps
from lightning_apps.training.plan import RunPlan
from lightning_apps.training.sharding import weights_as_shards

TOLERATED_FAILED_WRITES = 3
"""So many checkpoints in a row may fail before the run stops: a full disk is often emptied in time."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint aside, flushes it to the disk, and renames it: it is there whole or not at all."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint, or leave what was there.

        Args:
            checkpoint: what torch.save can write.
            path: of a local file; its folder is made if need be.
            storage_options: of Lightning's signature; nothing here reads them.
        """
        with written_aside(Path(path)) as file:
            # torch's writer turns a full disk into a RuntimeError about its archive; a file object keeps the errno
            torch.save(checkpoint, file)


def second_name(source: Path, aside: Path) -> None:
    """Make `aside` the same file as `source`, or a copy of it where the file system has no hard links.

    exFAT, SMB, FUSE and drive mounts answer with EPERM, ENOTSUP, ENOSYS and others; what really is wrong with a disk,
    copying meets as well.
    """
    try:
        aside.hardlink_to(source)
    except OSError:
        with contextlib.suppress(OSError):
            aside.unlink()  # some mounts leave an empty file
        with source.open("rb") as whole, os.fdopen(open_new(aside), "wb") as copy:
            shutil.copyfileobj(whole, copy, 1 << 20)
            copy.flush()
            os.fsync(copy.fileno())


def name_atomically(written: Path, targets: Sequence[Path]) -> None:
    """Give a file its names, replacing what had them: first all are made aside, then each takes its name, in order.

    What can fail, a full disk above all, fails before the first of them is replaced.

    Args:
        written: the file; it is renamed to the last of the names.
        targets: in the same folder.
    """
    *others, last = targets
    asides = [target.with_name(f".{target.name}.{secrets.token_hex(8)}.part") for target in others]
    try:
        for aside in asides:
            second_name(written, aside)
        for aside, target in zip(asides, others, strict=True):
            aside.replace(target)
        written.replace(last)
    except BaseException:
        for aside in (*asides, written):
            with contextlib.suppress(OSError):
                aside.unlink()
        raise
    fsync_folder(last.parent)


def newest_whole_checkpoint(folder: Path, report: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that is not damaged: last, then periodic ones from the newest, then best.

    Args:
        folder: the run's checkpoints.
        report: told of each damaged file that is passed over.
    """
    for path in (folder / "last.ckpt", *reversed(periodic_checkpoints(folder)), folder / "best.ckpt"):
        if not path.is_file():
            continue
        reason = damage(path)
        if reason is None:
            return path
        report(f"{path} is damaged ({reason}); trying the one before")
    return None


class RunCheckpoints(Checkpoint):
    """Keeps `best.ckpt`, `last.ckpt`, `step=00000120.ckpt` and, where asked for, `loss=3.2087.ckpt` files.

    Best is decided at the end of an evaluation only, by one metric; where that is the same, by the lower `val/loss`;
    where both are, the newest is best. Last and periodic checkpoints of a step that is also evaluated wait for that
    evaluation, so that a checkpoint never separates a step from its evaluation. All that are due at one step are one
    file with several names, written once.

    Lightning's ModelCheckpoint saves before the evaluation of the same step (Lightning#14431), and three of them
    would write three files.

    Args:
        plan: the plan of the run.
        folder: where the checkpoints go.
        monitor: `val/` metric that decides what is best.
        mode: whether a smaller (`min`) or larger (`max`) value is better.
        keep: number of periodic checkpoints to keep, the newest; None keeps all.
        loss_ratio: keep a checkpoint whenever `val/loss` has fallen to this share of its value at the one before, so
            that checkpoints are spaced evenly in the logarithm of the loss; None keeps none of these.
        stop: when asked, the run ends here, saved; an evaluation that is due comes first, since a resumed run would
            not repeat the step before it.
    """

    def __init__(
        self,
        *,
        plan: RunPlan,
        folder: Path,
        monitor: str,
        mode: Literal["min", "max"],
        keep: int | None,
        loss_ratio: float | None,
        stop: SafeStop,
    ) -> None:
        self.plan = plan
        self.folder = folder
        self.monitor = monitor
        self.mode = mode
        self.keep = keep
        self.loss_ratio = loss_ratio
        self.spaced_loss: float | None = None  # of the last checkpoint that loss_ratio asked for
        self.best_value: float | None = None
        self.best_step = 0
        self.best_metrics: dict[str, float] = {}
        self.stop = stop
        self.failed_writes = 0
        self._saved_step = -1

    def state_dict(self) -> dict[str, Any]:
        """The best evaluation so far, and the loss of the last spaced checkpoint."""
        return {
            "best_value": self.best_value,
            "best_step": self.best_step,
            "best_metrics": self.best_metrics,
            "spaced_loss": self.spaced_loss,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on comparing with the best evaluation."""
        self.best_value = state_dict["best_value"]
        self.best_step = state_dict["best_step"]
        self.best_metrics = state_dict["best_metrics"]
        self.spaced_loss = state_dict.get("spaced_loss")  # absent before there was loss_ratio

    @property
    def best_path(self) -> Path:
        """Weights of the best evaluation."""
        return self.folder / "best.ckpt"

    @property
    def last_path(self) -> Path:
        """The newest complete state."""
        return self.folder / "last.ckpt"

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Whether all processes see one folder, and go on from the same checkpoint of it.

        Raises:
            ConfigError: one of them does not.
        """
        if stage != "fit" or trainer.world_size == 1:
            return
        start = zlib.crc32(str(trainer.ckpt_path and Path(trainer.ckpt_path).name).encode())
        seen = from_all_ranks([float(self.folder.is_dir()), float(start)])
        for rank in range(trainer.world_size):
            if not seen[rank, 0]:
                raise ConfigError(
                    f"{self.folder} is not seen by process {rank} of this run; give all machines the same folder as "
                    "run.output_root, on a file system that they share"
                )
        if seen[:, 1].min() != seen[:, 1].max():
            raise ConfigError(
                f"the processes of this run would go on from different checkpoints of {self.folder}; see that all "
                "machines share run.output_root, or name one with run.resume=<file>"
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """From here on a signal waits for the end of the step."""
        self.stop.install()
        self.stop.in_training = True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """There is no step to wait for any more."""
        self.stop.in_training = False

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """There is no step to wait for any more."""
        self.stop.in_training = False

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stop after an evaluation, which has saved."""
        if (code := self._stop_code(trainer)) and self._saved_step == trainer.global_step:
            self.stop.raise_stop(code)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Save what is due and is not about to be evaluated."""
        step = trainer.global_step
        evaluated = step in self.plan.evaluation_steps
        if (step in self.plan.save_steps or step == self.plan.total_steps) and not evaluated:
            self._save(trainer, ["last.ckpt", *self._periodic(step)])
        if step < self.plan.total_steps and not evaluated and (code := self._stop_code(trainer)):
            if self._saved_step != step:
                self._save(trainer, ["last.ckpt"])
            self.stop.raise_stop(code)

    def _stop_code(self, trainer: L.Trainer) -> int:
        """Why the run is to stop, 0 if it is not; a signal may have reached one rank only."""
        if trainer.world_size == 1:
            return self.stop.code
        code = torch.tensor(self.stop.code, device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(code, reduce_op="max"))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare with the best evaluation and save; then whatever follows an evaluation."""
        if trainer.state.fn != "fit":
            return
        step = trainer.global_step
        names = ["last.ckpt", *self._periodic(step)]
        best_before = self.state_dict()
        if self._is_best(trainer):
            names.append("best.ckpt")
        names += self._spaced(trainer)
        if not self._save(trainer, names):
            self.load_state_dict(best_before)  # best.ckpt still is the earlier one
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, AfterEvaluation):
                with side_product(type(callback).__name__):
                    callback.on_evaluation_saved(trainer, pl_module, self.best_step or None)

    def _periodic(self, step: int) -> list[str]:
        return [f"step={step:08d}.ckpt"] if step in self.plan.save_steps else []

    def _spaced(self, trainer: L.Trainer) -> list[str]:
        if self.loss_ratio is None:
            return []
        loss = monitored_value(trainer, "val/loss")
        if self.spaced_loss is not None and not loss <= self.loss_ratio * self.spaced_loss:
            return []
        self.spaced_loss = loss
        return [f"loss={loss:.4f}.ckpt"] if loss == loss else []

    def _beats(self, trainer: L.Trainer) -> bool:
        value = monitored_value(trainer, self.monitor)
        if value != value:  # NaN is never best
            return False
        if self.best_value is None:
            return True
        if value == self.best_value:
            # a metric that counts answers stands still while a model learns to answer at all; its loss does not
            return not _loss(trainer.callback_metrics) > _loss(self.best_metrics)
        return value < self.best_value if self.mode == "min" else value > self.best_value

    def _is_best(self, trainer: L.Trainer) -> bool:
        metrics = {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("val/")}
        if not self._beats(trainer):
            return False
        self.best_value, self.best_step = monitored_value(trainer, self.monitor), trainer.global_step
        self.best_metrics = metrics
        return True

    def _save(self, trainer: L.Trainer, names: list[str]) -> bool:
        """Write a checkpoint under these names; all ranks know whether the first one could."""
        error = None
        try:
            self._write(trainer, names)
        except OSError as failure:
            error = failure
        written = error is None if trainer.world_size == 1 else all_ranks(error is None)
        if not written:
            self._handle_failed_write(trainer, error)
            return False
        self.failed_writes = 0
        self._saved_step = trainer.global_step
        if self.keep is not None and trainer.is_global_zero:
            for old in periodic_checkpoints(self.folder)[: -self.keep or None]:
                with contextlib.suppress(FileNotFoundError):
                    old.unlink()
        return True

    def _write(self, trainer: L.Trainer, names: list[str]) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, MetricsCSV):
                logger.save()  # else a power cut keeps the checkpoint and loses the rows that it builds on
        written = self.folder / ".new.part"
        with weights_as_shards(takes_steps(trainer.lightning_module).net):  # an evaluation holds whole weights
            checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
            # not by Trainer.save_checkpoint, where the other ranks wait for a first one that has met a full disk
            trainer.strategy.save_checkpoint(checkpoint, written)
        if trainer.is_global_zero:
            # last.ckpt at last: it knows which step best.ckpt is of
            name_atomically(written, [self.folder / name for name in reversed(names)])

    def _handle_failed_write(self, trainer: L.Trainer, error: OSError | None) -> None:
        self.failed_writes += 1
        free = shutil.disk_usage(self.folder).free
        reason = "the first process could not" if error is None else error.strerror or error
        say(
            f"checkpoint of step {trainer.global_step} could not be written: {reason} "
            f"({free / 1e6:,.0f} MB free in {self.folder}); the previous one is kept"
        )
        if self.failed_writes >= TOLERATED_FAILED_WRITES or trainer.global_step >= self.plan.total_steps:
            raise CheckpointWriteError(
                f"{self.failed_writes} checkpoint(s) in a row could not be written: {reason}; "
                f"free some space for {self.folder}, then continue with run.resume=auto"
            ) from error


def _loss(metrics: Mapping[str, Any]) -> float:
    """`val/loss`; where it is not measured, or no number, infinity."""
    loss = float(metrics.get("val/loss", float("inf")))
    return loss if loss == loss else float("inf")


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
