"""summary.png of a run, redrawn after every evaluation; each experiment says how."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L

from datamodules.text.jsonl import read_rows
from lightning_apps.callbacks.after_evaluation import AfterEvaluation
from lightning_apps.process.side_products import side_product
from lightning_apps.run_files.directory import RunDirectory
from lightning_apps.run_files.metrics_csv import read_metrics


@dataclass(frozen=True)
class PictureInputs:
    """What a picture is drawn from.

    Attributes:
        path: where the picture goes.
        run: experiment and name of the run, `imdb / default`.
        step: optimizer steps done.
        best_step: evaluation to mark; None where there is none.
        rows: of metrics.csv.
        predictions: rows of predictions.jsonl; none where there is no such file.
        baselines: of baselines.json, by split; none where there is no such file.
        trainer: for what is in no file: the data module, other callbacks.
    """

    path: Path
    run: str
    step: int
    best_step: int | None
    rows: list[dict[str, Any]]
    predictions: list[dict[str, Any]]
    baselines: dict[str, Any]
    trainer: L.Trainer

    @property
    def title(self) -> str:
        """Above the picture."""
        return f"{self.run}: step {self.step}"

    @property
    def data(self) -> Any:
        """The experiment's data module."""
        return self.trainer.datamodule  # type: ignore[attr-defined]


class RunPicture(AfterEvaluation):
    """Reads the files of the run after each evaluation and hands them to `draw`; an experiment overrides that.

    Args:
        run_directory: whose files are read and whose summary.png is written.
    """

    reads_checkpoint = False

    def __init__(self, *, run_directory: RunDirectory) -> None:
        self.run_directory = run_directory

    def on_evaluation_saved(self, trainer: L.Trainer, pl_module: L.LightningModule, best_step: int | None) -> None:
        """Draw on the first rank."""
        if not trainer.is_global_zero:
            return
        files = self.run_directory
        with side_product(files.picture.name):
            inputs = PictureInputs(
                path=files.picture,
                run=f"{files.path.parent.name} / {files.path.name}",
                step=trainer.global_step,
                best_step=best_step,
                rows=read_metrics(files.metrics),
                predictions=read_rows(files.predictions) if files.predictions.is_file() else [],
                baselines=json.loads(files.baselines.read_text(encoding="utf-8")) if files.baselines.is_file() else {},
                trainer=trainer,
            )
            self.draw(inputs)

    def draw(self, inputs: PictureInputs) -> None:
        """Write `inputs.path`."""
        raise NotImplementedError
