"""The progress bar: loss, tokens per second, share of the peak, time left."""

import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.utilities.types import STEP_OUTPUT

from lightning_apps.callbacks.step_log import StepLog
from lightning_apps.process.console import SECONDS_BETWEEN_LINES, ProgressCount, say
from lightning_apps.process.side_products import side_product

BAR = "the progress bar"
"""Its name where it fails: a terminal or a pipe may be closed while the run goes on."""
BAR_FORMAT = "{desc} {n_fmt}/{total_fmt}, {remaining} left{postfix} {percentage:3.0f}% |{bar}|"
"""What tells most comes first: a narrow terminal cuts the end."""


class RunProgress(TQDMProgressBar):
    """One bar over the optimizer steps of the run, and one over the test; evaluations are announced by their result.

    Where the output is no terminal (a log file, a pipe), a line every fifteen seconds takes the bar's place.

    Args:
        step_log: whose last loss and speed stand behind the bar.
    """

    def __init__(self, step_log: StepLog) -> None:
        super().__init__(refresh_rate=1)
        self.step_log = step_log
        self.is_terminal = sys.stderr.isatty()
        self._start = self._last_line = time.perf_counter()
        self._start_step = 0
        self._tested: ProgressCount | None = None

    def init_train_tqdm(self) -> Tqdm:
        """A bar whose unit is the optimizer step."""
        if not self.is_terminal:
            return Tqdm(disable=True)
        bar = super().init_train_tqdm()
        bar.unit = "step"
        bar.bar_format = BAR_FORMAT
        return bar

    def init_validation_tqdm(self) -> Tqdm:
        """No bar."""
        return Tqdm(disable=True)

    init_test_tqdm = init_validation_tqdm

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count from here; a run that goes on starts no Lightning epoch, and what is left is told by its own speed."""
        with side_product(BAR):
            super().on_train_start(trainer, pl_module)
            self._name_bar(trainer)
        self._start = self._last_line = time.perf_counter()
        self._start_step = trainer.global_step

    def on_train_epoch_start(self, trainer: L.Trainer, *args: object) -> None:
        """The whole run is one Lightning epoch, so the bar is not named after it."""
        with side_product(BAR):
            super().on_train_epoch_start(trainer, *args)
            self._name_bar(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the last values."""
        with side_product(BAR):
            super().on_train_epoch_end(trainer, pl_module)

    def on_train_end(self, *args: Any) -> None:
        """Close the bar."""
        with side_product(BAR):
            super().on_train_end(*args)

    def _name_bar(self, trainer: L.Trainer) -> None:
        bar = self.train_progress_bar
        bar.reset(trainer.max_steps)
        bar.initial = bar.n = trainer.global_step
        bar.set_description("training")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar, or say a line now and then."""
        with side_product(BAR):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        now = time.perf_counter()
        if self.is_terminal or now - self._last_line < SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        step = trainer.global_step
        left_s = (now - self._start) / (step - self._start_step) * (trainer.max_steps - step)
        say(
            f"step {step:,}/{trainer.max_steps:,}: loss {float(self.step_log.last_loss):.3f}, "
            f"{self.step_log.tokens_per_s:,.0f} tokens/s, {left_s:,.0f} s left"
        )

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The test may take longer than the training."""
        with side_product(BAR):
            super().on_test_start(trainer, pl_module)
            batches = sum(int(count) for count in trainer.num_test_batches)
            self._tested = ProgressCount(batches, name="testing", units="batches")

    def on_test_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """Count it."""
        with side_product(BAR):
            super().on_test_batch_end(trainer, *args, **kwargs)
            if self._tested is not None:
                self._tested.add()
                if self._tested.done == self._tested.total:  # ahead of what asks for answers, which counts on its own
                    self._tested.close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Take the bar away: what is said next would stand behind a bar that is over."""
        bar = self._train_progress_bar
        if bar is not None:
            bar.leave = False
            bar.close()
        if self._tested is not None:
            self._tested.close()

    def get_metrics(
        self, trainer: L.Trainer, pl_module: L.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """What stands behind the bar."""
        log = self.step_log
        loss, speed, share = f"{float(log.last_loss):.3f}", f"{log.tokens_per_s:,.0f}", f"{log.mfu:.0%}"
        return {"loss": loss, "tokens/s": speed, "of peak": share}
