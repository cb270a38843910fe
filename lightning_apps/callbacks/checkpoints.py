"""Checkpoints of a run: best, last and periodic, three policies over one atomic write."""

import shutil
import zlib
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.types import STEP_OUTPUT

from lightning_apps.callbacks.after_evaluation import AfterEvaluation
from lightning_apps.callbacks.checkpoint_writer import CheckpointWriter, Files
from lightning_apps.errors import CheckpointWriteError, ConfigError
from lightning_apps.process.console import say
from lightning_apps.process.safe_stop import SafeStop
from lightning_apps.process.side_products import side_product
from lightning_apps.run_files.checkpoint_files import periodic_checkpoints, remove
from lightning_apps.training.optimizer_step import all_ranks, from_all_ranks
from lightning_apps.training.plan import RunPlan

TOLERATED_FAILED_WRITES = 3
"""So many checkpoints in a row may fail before the run stops: a full disk is often emptied in time."""


@dataclass(frozen=True)
class _Save:
    """A checkpoint whose write has begun.

    Attributes:
        step: optimizer steps behind it.
        names: of the checkpoint.
        best_before: state of RunCheckpoints from before the evaluation of this step; taken back if the write fails.
        write: its end, and the OSError of one that failed.
    """

    step: int
    names: list[str]
    best_before: dict[str, Any]
    write: "Future[Files]"


class RunCheckpoints(Checkpoint):
    """Keeps `best.ckpt`, `last.ckpt`, `step=00000120.ckpt` and, where asked for, `loss=3.2087.ckpt` files.

    Best is decided at the end of an evaluation only, by one metric; where that is the same, by the lower `val/loss`;
    where both are, the newest is best. Last and periodic checkpoints of a step that is also evaluated wait for that
    evaluation, so that a checkpoint never separates a step from its evaluation. All that are due at one step are one
    file with several names, written once.

    Lightning's ModelCheckpoint saves before the evaluation of the same step (Lightning#14431), and three of them
    would write three files.

    A write may go on beside training, from a copy of the state. Whatever looks at a checkpoint or at what is best waits
    for it: the next save, a stop, the end of the fit. What a write does to others (what is best, failures in a row, old
    checkpoints that go) is done on the main thread, and on all ranks together.

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
        write: foreground: training waits for the write; background: for a copy of the state alone.
        layout: consolidated: one file, written by the first rank; sharded: a folder into which each rank writes what it
            holds.
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
        write: Literal["foreground", "background"] = "foreground",
        layout: Literal["consolidated", "sharded"] = "consolidated",
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
        self._writer = CheckpointWriter(folder, in_background=write == "background", in_shards=layout == "sharded")
        self._begun: _Save | None = None

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

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look for the best evaluation anew where its weights are not here: the checkpoint is that of another run."""
        if self.best_value is None or on_all_ranks(trainer, self.best_path.exists()):
            return
        say(f"{self.best_path} of step {self.best_step:,} is not here; the best evaluation is looked for anew")
        self.best_value, self.best_step, self.best_metrics = None, 0, {}

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
        if stage != "fit":
            return
        if trainer.is_global_zero:
            self._writer.clean()
        if trainer.world_size == 1:
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
        """There is no step to wait for any more; the best weights are read next."""
        self.stop.in_training = False
        self._settle(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """There is no step to wait for any more; other ranks may be gone, and are not asked."""
        self.stop.in_training = False
        save, error = self._begun, self.wait()
        if save is not None and error is not None:
            self.load_state_dict(save.best_before)
            self._say_failure(save.step, error)
        self._begun = None

    def wait(self) -> BaseException | None:
        """Return once no write is under way here; what went wrong with the last one, where nobody has asked yet."""
        return None if self._begun is None else self._begun.write.exception()

    @property
    def is_writing(self) -> bool:
        """Whether a checkpoint of an earlier step does not have its name yet."""
        return self._begun is not None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stop after an evaluation, which has saved."""
        self._settle(trainer, wait=False)
        if code := self._stop_code(trainer):
            self._settle(trainer)
            if self._saved_step == trainer.global_step:
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
            self._settle(trainer)
            if self._saved_step != step:
                self._save(trainer, ["last.ckpt"])
                self._settle(trainer)
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
        self._settle(trainer)  # else what is compared with is not yet known to be saved
        names = ["last.ckpt", *self._periodic(trainer.global_step)]
        best_before = self.state_dict()
        if self._is_best(trainer):
            names.append("best.ckpt")
        names += self._spaced(trainer)
        self._save(trainer, names, best_before)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, AfterEvaluation):
                if callback.reads_checkpoint:
                    self._settle(trainer)
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

    def _save(self, trainer: L.Trainer, names: list[str], best_before: dict[str, Any] | None = None) -> None:
        """Begin a checkpoint under these names; where nothing is trained beside its write, wait for the end."""
        self._settle(trainer)
        with trainer.profiler.profile("save_checkpoint"):  # type: ignore[attr-defined]
            write = self._writer.begin(trainer, names)
        self._begun = _Save(trainer.global_step, names, best_before or self.state_dict(), write)
        if not self._writer.in_background or trainer.global_step >= self.plan.total_steps:
            self._settle(trainer)

    def _settle(self, trainer: L.Trainer, *, wait: bool = True) -> None:
        """What follows a write: all ranks learn whether there is a checkpoint; called on each of them.

        Args:
            trainer: of the run.
            wait: for a write that is under way; else it stays so.
        """
        save = self._begun
        if save is None:
            return
        if not wait and not on_all_ranks(trainer, save.write.done()):
            return
        with trainer.profiler.profile("save_checkpoint"):  # type: ignore[attr-defined]
            error = save.write.exception()
            self._begun = None
            if error is not None and not isinstance(error, OSError):
                raise error
            written = on_all_ranks(trainer, error is None)
            if written:
                error = self._writer.finish(trainer, save.write.result(), save.names)
                written = on_all_ranks(trainer, error is None)
        if not written:
            if trainer.is_global_zero:
                self._writer.clean()
            self.load_state_dict(save.best_before)  # best.ckpt still is the earlier one
            self._count_failure(save.step, error)
            return
        self.failed_writes = 0
        self._saved_step = save.step
        if self.keep is not None and trainer.is_global_zero:
            for old in periodic_checkpoints(self.folder)[: -self.keep or None]:
                remove(old)

    def _say_failure(self, step: int, error: BaseException | None) -> str:
        reason = "another process could not" if error is None else getattr(error, "strerror", None) or str(error)
        free = shutil.disk_usage(self.folder).free
        say(
            f"checkpoint of step {step} could not be written: {reason} "
            f"({free / 1e6:,.0f} MB free in {self.folder}); the previous one is kept"
        )
        return reason

    def _count_failure(self, step: int, error: OSError | None) -> None:
        self.failed_writes += 1
        reason = self._say_failure(step, error)
        if self.failed_writes >= TOLERATED_FAILED_WRITES or step >= self.plan.total_steps:
            raise CheckpointWriteError(
                f"{self.failed_writes} checkpoint(s) in a row could not be written: {reason}; "
                f"free some space for {self.folder}, then continue with run.resume=auto"
            ) from error


def on_all_ranks(trainer: L.Trainer, holds: bool) -> bool:
    """Whether something holds on every rank; each waits for the answer of all."""
    return holds if trainer.world_size == 1 else all_ranks(holds)


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
