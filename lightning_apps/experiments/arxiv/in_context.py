"""In-context loss after every evaluation: curves by position and tables by category, with intervals, on disk."""

from typing import Annotated, Any

import lightning as L
import numpy as np
import torch
from annotated_types import Ge

from datamodules.arxiv import ArxivDataModule
from datamodules.contract import Split
from lightning_apps.callbacks.after_evaluation import AfterEvaluation
from lightning_apps.callbacks.gather import gather_in_order
from lightning_apps.experiments.arxiv.in_context_loss import GroupLoss, WindowLosses, measure, save_in_context
from lightning_apps.experiments.arxiv.in_context_picture import draw_in_context
from lightning_apps.experiments.arxiv.module import names_of_groups
from lightning_apps.experiments.evaluation import Evaluation, log_metrics
from lightning_apps.process.console import say
from lightning_apps.process.side_products import side_product
from lightning_apps.run_files.directory import RunDirectory


class InContextLoss(Evaluation, AfterEvaluation):
    """Collects the losses of evaluation windows and writes `in_context/<split>.npz`, `.csv`, `.png` and a table.

    Logs `in_context_gain` (loss over the first tenth of the positions minus the last tenth, in nats), the intervals
    `loss_low` and `loss_high`, and the same of the held-out categories. Intervals resample documents.

    Args:
        run_directory: whose `in_context/` is written.
        num_resamples: bootstrap resamples behind each interval.
    """

    needs = ArxivDataModule

    reads_checkpoint = False

    def __init__(self, *, run_directory: RunDirectory, num_resamples: Annotated[int, Ge(1)]) -> None:
        super().__init__(run_directory=run_directory)
        self.num_resamples = num_resamples
        self.last: tuple[WindowLosses, dict[str, GroupLoss]] | None = None
        self._losses: list[torch.Tensor] = []

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the losses of a batch."""
        self._losses.append(outputs["losses"].float().cpu())

    on_test_batch_end = on_validation_batch_end

    def evaluation_metrics(self, data: ArxivDataModule) -> set[str]:
        """Names of what an evaluation logs, without the split."""
        names = ["loss_low", "loss_high", "perplexity_low", "perplexity_high", "in_context_gain"]
        return names_of_groups(data, names)

    def evaluate(self, trainer: L.Trainer, pl_module: Any, data: Any, split: Split, prefix: str) -> None:
        """Measure the losses of a split."""
        evaluated = data.evaluation_set(split)
        rows = list(torch.cat(self._losses).numpy()) if self._losses else []
        self._losses = []
        chosen = data.evaluated(split)
        losses = np.stack(gather_in_order(rows, len(chosen), trainer.world_size))
        windows = WindowLosses(
            losses=losses,
            category=evaluated.windows.categories[chosen],
            document=evaluated.windows.rows[chosen],
            num_bytes=evaluated.windows.num_bytes[chosen],
            categories=evaluated.ranges.categories,
            num_chosen=evaluated.num_chosen,
        )
        measured = measure(windows, num_resamples=self.num_resamples)
        self.last = windows, measured
        for name in [name for name in ("chosen", "held_out") if name in measured]:
            before = "" if name == "chosen" else "held_out_"
            group = measured[name]
            values = {
                "loss_low": group.loss[1],
                "loss_high": group.loss[2],
                "perplexity_low": group.perplexity[1],
                "perplexity_high": group.perplexity[2],
                "in_context_gain": group.gain[0],
            }
            log_metrics(pl_module, prefix, {f"{before}{key}": value for key, value in values.items()})
        if not trainer.is_global_zero:
            return
        if trainer.state.fn == "fit":
            say(f"step {trainer.global_step:,}, {prefix}: {loss_line(measured)}")
            return  # files follow the checkpoint
        self._write(split, windows, measured, split)
        if trainer.state.fn == "test":
            say("\n".join(table_lines(split, windows, measured)))
        else:
            say(f"{prefix}: {loss_line(measured)}")

    def on_evaluation_saved(self, trainer: L.Trainer, pl_module: L.LightningModule, best_step: int | None) -> None:
        """Write the files of an evaluation while training."""
        if trainer.is_global_zero and self.last is not None:
            split = trainer.datamodule.evaluation_split  # type: ignore[attr-defined]
            self._write(split, *self.last, f"step {trainer.global_step:,}")

    def _write(self, split: str, windows: WindowLosses, measured: dict[str, GroupLoss], when: str) -> None:
        with side_product(f"in_context/{split}"):
            folder = self.run_directory.in_context
            save_in_context(folder, split, windows, measured)
            title = f"{split} loss by position, {self.run_directory.path.name}, {when}"
            draw_in_context(folder / f"{split}.png", windows=windows, measured=measured, title=title)


def loss_line(measured: dict[str, GroupLoss]) -> str:
    """Losses of both groups with their intervals."""
    parts = []
    for name, words in (("chosen", "loss"), ("held_out", "held-out categories")):
        if name in measured:
            value, low, high = measured[name].loss
            parts.append(f"{words} {value:.4f} (95 % {low:.4f} to {high:.4f})")
    return ", ".join(parts)


def table_lines(split: str, windows: WindowLosses, measured: dict[str, GroupLoss]) -> list[str]:
    """Perplexity of every category with its interval, chosen ones first."""
    width = max(map(len, measured))
    lines = [f"{split}, 95 % intervals over documents:"]
    for name, group in measured.items():
        value, low, high = group.perplexity
        state = (
            ""
            if name in ("chosen", "held_out")
            else " trained"
            if windows.categories.index(name) < windows.num_chosen
            else " held out"
        )
        lines.append(
            f"  {name:{width}}  perplexity {value:,.1f} ({low:,.1f} to {high:,.1f}), "
            f"{group.bits_per_byte:.3f} bits a byte, {group.num_windows:,} windows of {group.num_documents:,} documents"
            f"{state}"
        )
    return lines
