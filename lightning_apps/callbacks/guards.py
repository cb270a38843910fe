"""Guards: what must never pass unnoticed stops the run before the weights move, names the culprit, leaves a dump."""

import math
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.optim import Optimizer

from datamodules.contract import StepBatch
from datamodules.sampling.step_batches import micro_batch_ids, token_columns
from lightning_apps.callbacks.checkpoints import RunCheckpoints
from lightning_apps.callbacks.step_log import StepLog
from lightning_apps.diagnostics.crash_dump import CrashDump, crash_dump_folder, write_crash_dump
from lightning_apps.diagnostics.first_non_finite import bad_gradient, bad_parameter, trace_step
from lightning_apps.errors import ConfigError, GuardError
from lightning_apps.process.console import say
from lightning_apps.training.optimizer_step import TakesSteps, seed_step, takes_steps
from lightning_apps.training.plan import RunPlan
from lightning_apps.training.sharding import whole_weights

GRAD_NORMS_KEPT = 50
LOSSES_KEPT = 100
LOSSES_NEEDED = 20  # a median of fewer says little about what is usual
ROBUST_SIGMA = 1.4826  # MAD of a normal distribution * 1.4826 = its standard deviation
OVERFLOWS_ALLOWED = 25  # in a row, under float16: 25 halvings take the scale from 2**16 below 2**-8
SKIPS_ALLOWED = 20  # in a row: what does not pass in twenty steps will not pass by waiting


class Guards(L.Callback):
    """Watches every step at the price of two comparisons; looks closer only when they fail.

    The norm of a step's gradients is finite only if every gradient is, and gradients are finite, as a rule, only
    if loss, logits and weights are. So the step is checked by its loss and that norm, before the optimizer runs; the
    search that names module, parameter or sample (forward passes again, with hooks) runs after a failure. Weights are
    checked by the parameter norm that StepLog logs, and before each checkpoint.

    A skipped step leaves the weights bit-identical: its gradients are removed, not zeroed, since AdamW moves weights
    by momentum and decay even where the gradient is zero.

    Args:
        plan: the plan of the run.
        step_log: says what the parameter norm was when it was last logged; runs before this callback.
        crash_dumps: folder of the crash dumps; None writes none.
        config: the run's configuration, for the crash dump.
        non_finite: `stop`, `skip` or `off`.
        token_ids: `stop` or `off`.
        loss_spike: `stop`, `skip`, `warn` or `off`.
        loss_spike_sigmas: a spike lies so many robust deviations above the median of the last losses, and is at least
            twice that median: either alone happens in sound runs.
        collapsed_generator: `stop`, `warn` or `off`; looks at `val/collapsed_ratio` where an evaluation logs it.
        collapsed_after: share of the run before which a model that never spoke may repeat one token.
    """

    def __init__(
        self,
        *,
        plan: RunPlan,
        step_log: StepLog,
        crash_dumps: Path | None,
        config: Mapping[str, Any],
        non_finite: str,
        token_ids: str,
        loss_spike: str,
        loss_spike_sigmas: float,
        collapsed_generator: str,
        collapsed_after: float,
    ) -> None:
        self.plan = plan
        self.step_log = step_log
        self.crash_dumps = crash_dumps
        self.config = config
        self.non_finite = non_finite
        self.token_ids = token_ids
        self.loss_spike = loss_spike
        self.loss_spike_sigmas = loss_spike_sigmas
        self.collapsed_generator = collapsed_generator
        self.collapsed_after = collapsed_after
        self.losses: deque[float] = deque(maxlen=LOSSES_KEPT)
        self.grad_norms: deque[float] = deque(maxlen=GRAD_NORMS_KEPT)
        self.skipped_steps = 0
        self._skips_in_a_row = 0
        self._overflows_in_a_row = 0
        self._spoken_evaluations = 0  # in a row, with most answers sound
        self._logged_skips = 0
        self._step = 0  # the one that is running, 1 is the first
        self._batch: StepBatch | None = None
        self._module: TakesSteps
        self._loss: float | None = None  # of a step that has not passed

    def state_dict(self) -> dict[str, Any]:
        """What the next decisions depend on."""
        return {
            "losses": list(self.losses),
            "grad_norms": list(self.grad_norms),
            "skipped_steps": self.skipped_steps,
            "skips_in_a_row": self._skips_in_a_row,
            "overflows_in_a_row": self._overflows_in_a_row,
            "spoken_evaluations": self._spoken_evaluations,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on as if there had been no interruption."""
        self.losses.extend(state_dict["losses"])
        self.grad_norms.extend(state_dict["grad_norms"])
        self.skipped_steps = self._logged_skips = state_dict["skipped_steps"]
        self._skips_in_a_row = state_dict["skips_in_a_row"]
        self._overflows_in_a_row = state_dict["overflows_in_a_row"]
        self._spoken_evaluations = state_dict["spoken_evaluations"]

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse to train nothing.

        Raises:
            ConfigError: no parameter is trainable.
        """
        if stage == "fit" and not any(parameter.requires_grad for parameter in pl_module.parameters()):
            raise ConfigError("nothing is trainable: every parameter is frozen; unfreeze some part of the model")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Know the module by its steps."""
        self._module = takes_steps(pl_module)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Check token ids before anything is looked up with them.

        Raises:
            GuardError: one lies outside the vocabulary.
        """
        self._batch, self._step, self._loss = batch, trainer.global_step + 1, None
        vocab_size, token_range = self._module.vocab_size, batch.token_range
        if self.token_ids == "off" or vocab_size is None or token_range is None:  # noqa: S105 (no password)
            return
        if token_range[0] < 0 or token_range[1] >= vocab_size:
            raise GuardError("token_ids", f"step {self._step}: {foreign_token(batch, vocab_size)}")

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        """Check the step while the weights are still those that it began with.

        Raises:
            GuardError: a guard that is set to `stop` found something.
        """
        result = self._module.step_result
        # the one time that a step reads the device
        loss, grad_norm = torch.stack([result["loss"], result["grad_norm"].to(result["loss"].dtype)]).tolist()
        self._loss = loss
        self.grad_norms.append(grad_norm)
        if not math.isfinite(loss + grad_norm):
            self._on_non_finite(trainer, pl_module, optimizer, loss)
            return
        self._skips_in_a_row = self._overflows_in_a_row = 0
        if self.loss_spike != "off" and (spike := describe_spike(loss, list(self.losses), self.loss_spike_sigmas)):
            assert self._batch is not None
            ids = ", ".join(map(str, self._batch.sample_ids.tolist()))
            message = f"step {self._step}: {spike}; samples {ids}"
            if self.loss_spike == "stop":
                raise GuardError("loss_spike", f"{message}; lower optimizer.lr or callbacks.guards.loss_spike=skip")
            if self.loss_spike == "skip":
                self._skip(optimizer, message)
            else:
                say(f"warning: {message}")
        self.losses.append(loss)
        self._loss = None

    def _on_non_finite(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer, loss: float
    ) -> None:
        if self.non_finite == "off":
            return
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None and math.isfinite(loss) and self._overflows_in_a_row < OVERFLOWS_ALLOWED:
            self._overflows_in_a_row += 1  # the scaler skips the step and halves its scale: float16's everyday life
            return
        broken_weight = bad_parameter(pl_module)
        message = f"step {self._step}: {self._culprit(trainer, pl_module, broken_weight)}"
        if self.non_finite == "skip" and broken_weight is None and self._skips_in_a_row < SKIPS_ALLOWED:
            self._skip(optimizer, message)
            return
        if broken_weight is not None:
            remedy = "go back to an earlier checkpoint with run.resume=<file>"
        elif self.non_finite == "skip":
            remedy = f"{SKIPS_ALLOWED} steps in a row were skipped before it; lower optimizer.lr"
        else:
            remedy = "lower optimizer.lr, or pass over such steps with callbacks.guards.non_finite=skip"
        raise GuardError("non_finite", f"{message}; {remedy}")

    def _culprit(self, trainer: L.Trainer, pl_module: L.LightningModule, broken_weight: str | None) -> str:
        """Names the first bad module by running the step's batch again, else the bad gradient."""
        assert self._batch is not None
        seed_step(self.config["seed"], trainer.global_step, trainer.global_rank)  # the same dropout again
        with whole_weights(self._module.net):  # the search ends where it finds something, on each rank elsewhere
            finding, _ = trace_step(pl_module, self._module.loss_sum, self._batch)
        if finding is not None:
            return f"{finding}" + (f"; {broken_weight}" if broken_weight else "")
        if found := broken_weight or bad_gradient(pl_module):
            return f"{found}, the forward pass being finite"
        return "loss or gradient norm is not finite, though every value here is (another rank, or their sum overflowed)"

    def _skip(self, optimizer: Optimizer, message: str) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        self.skipped_steps += 1
        self._skips_in_a_row += 1
        say(f"warning: {message}; the step was skipped ({self.skipped_steps} so far)")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log skipped steps, and check the weights before a checkpoint can keep them.

        Raises:
            GuardError: the step made a weight NaN or Inf.
        """
        step = trainer.global_step
        if self.skipped_steps > self._logged_skips:
            self._logged_skips = self.skipped_steps
            for logger in trainer.loggers:
                logger.log_metrics({"train/skipped_steps": float(self.skipped_steps)}, step=step)
        if self.non_finite == "off":
            return
        measured = self.step_log.param_norm
        if measured is not None and measured[0] == step:
            suspicious = not math.isfinite(measured[1])
        else:
            suspicious = step in self.plan.save_steps or step in self.plan.evaluation_steps
        if suspicious and (found := bad_parameter(pl_module)):
            raise GuardError(
                "non_finite", f"step {step}: {found} after a step with finite gradients; lower optimizer.lr"
            )

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look for a generator that only repeats itself.

        Raises:
            GuardError: every answer is one token repeated, and `collapsed_generator` is `stop`.
        """
        ratio = trainer.callback_metrics.get("val/collapsed_ratio")
        if trainer.state.fn != "fit" or self.collapsed_generator == "off" or ratio is None:
            return
        step, spoken = trainer.global_step, self._spoken_evaluations
        self._spoken_evaluations = spoken + 1 if float(ratio) < 0.5 else 0
        # untrained models repeat themselves too: it counts late, or where the model has spoken before
        if float(ratio) < 1 or (spoken < 2 and step < self.collapsed_after * self.plan.total_steps):
            return
        message = f"step {step}: the generator collapsed, every answer of the evaluation is one token repeated"
        if self.collapsed_generator == "stop":
            raise GuardError("collapsed_generator", f"{message}; lower optimizer.lr, and see predictions.jsonl")
        say(f"warning: {message}; see predictions.jsonl")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leave a crash dump for whatever guard stopped the run; its weights are not yet changed by the step."""
        if not isinstance(exception, GuardError) or self.crash_dumps is None:
            return
        folder = crash_dump_folder(self.crash_dumps, self._step)
        savers = [entry for entry in trainer.callbacks if isinstance(entry, RunCheckpoints)]  # type: ignore[attr-defined]
        for saver in savers:
            saver.wait()
        checkpoints = [saver.last_path for saver in savers]
        crash_dump = CrashDump(
            guard=exception.guard,
            message=str(exception),
            step=self._step,
            rank=trainer.global_rank,
            sample_ids=[] if self._batch is None else self._batch.sample_ids.tolist(),
            run=str(self.crash_dumps.parent),
            checkpoint=next((str(path) for path in checkpoints if path.exists()), None),
            grad_norms=list(self.grad_norms),
            losses=[*self.losses, *([] if self._loss is None else [self._loss])],
            replay=f"python -m lightning_apps.replay crash_dump={folder}",
        )
        try:
            write_crash_dump(folder, crash_dump, batch=self._batch, config=self.config, seed=self.config["seed"])
        except OSError as error:  # a full disk must not hide what happened
            say(f"warning: no crash dump could be written to {folder}: {error}")
            return
        exception.crash_dump = folder


def foreign_token(step: StepBatch, vocab_size: int) -> str:
    """Names the first token outside the vocabulary: id, sample, position."""
    for batch, ids in zip(step.micro_batches, micro_batch_ids(step), strict=True):
        for name, column in token_columns(batch):
            bad = ((column < 0) | (column >= vocab_size)).nonzero()
            if not len(bad):
                continue
            row, *position = bad[0].tolist()
            sample = f"sample {ids[row]}" if len(ids) == len(column) else f"row {row} of samples {ids}"
            where = position[0] if len(position) == 1 else position
            token = int(column[tuple(bad[0])])
            return (
                f"token id {token} at position {where} of {sample} ({name}) is outside the vocabulary of {vocab_size} "
                f"(0 to {vocab_size - 1}); the data were tokenized with another tokenizer, or the model is too small"
            )
    raise AssertionError("token_range and the batch disagree")


def describe_spike(loss: float, earlier: list[float], sigmas: float) -> str | None:
    """Says how a loss stands out from the earlier ones; None where it does not, or where they are too few.

    Nor where one was 0 or less: that is no cross-entropy, but a loss that moves about 0, as of grpo.

    Median and MAD instead of mean and standard deviation, which the spike itself and the steep start would move.
    """
    if len(earlier) < LOSSES_NEEDED or min(earlier) <= 0:
        return None
    median = _median(earlier)
    if loss <= 2 * abs(median):  # nearly always so; the deviation is not needed then
        return None
    deviation = max(ROBUST_SIGMA * _median([abs(value - median) for value in earlier]), 1e-3 * abs(median), 1e-12)
    score = (loss - median) / deviation
    if score <= sigmas:
        return None
    return f"the loss jumped to {loss:.4g}, {score:,.0f} robust deviations above {median:.4g}, the median of late"


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]
