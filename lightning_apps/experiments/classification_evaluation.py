"""Evaluation of classifiers: metrics over whole splits, baselines beside them, predictions.jsonl."""

import json
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import lightning as L
import numpy as np
import torch
from annotated_types import Ge
from numpy.typing import NDArray
from torch import Tensor

from datamodules.contract import SPLITS, Indices, LabelledData, Split
from datamodules.storage.cache import fingerprint, prepared_folder
from lightning_apps.experiments.baselines import BASELINES_VERSION, linear_probabilities, majority_probabilities
from lightning_apps.experiments.classification_metrics import (
    PREDICTED,
    classification_metrics,
    predicted_labels,
    probabilities_of,
)
from lightning_apps.experiments.evaluation import Evaluation, heading, log_metrics
from lightning_apps.process.console import say
from lightning_apps.process.side_products import side_product
from lightning_apps.run_files.atomic_files import write_json_atomically
from lightning_apps.run_files.directory import RunDirectory
from lightning_apps.statistics.bootstrap import bootstrap_interval

SHOWN_CHARACTERS = 500
"""Of each text, in predictions.jsonl; `index` finds the whole one."""
LINEAR = "TF-IDF + LR"
HEADLINES = ("accuracy", "f1_macro", "weighted_score", "kappa")
"""Metrics with intervals, as far as they are measured."""


class ClassificationEvaluation(Evaluation):
    """Collects the logits of each evaluation, logs metrics, and writes what the model said.

    The data are LabelledData; the module's evaluation step returns `logits` and `sample_ids`.

    Args:
        run_directory: whose predictions.jsonl and baselines.json are written.
        baselines: whether the majority class and a linear model are measured on the same splits.
        num_examples: answers to print, the most confident wrong ones.
        score_weights: weight of each class in `weighted_score`, a mean F1; None measures none.
    """

    needs = LabelledData

    def __init__(
        self,
        *,
        run_directory: RunDirectory,
        baselines: bool,
        num_examples: Annotated[int, Ge(0)],
        score_weights: list[Annotated[float, Ge(0)]] | None = None,
    ) -> None:
        super().__init__(run_directory=run_directory)
        self.score_weights = score_weights
        self.baselines = baselines
        self.num_examples = num_examples
        self.references: dict[str, dict[str, dict[str, float]]] = {}
        self.linear_right: dict[str, NDArray[np.bool_]] = {}
        self._outputs: list[tuple[Tensor, Tensor]] = []

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin with nothing; before the first evaluation, measure what it will be compared with."""
        self._outputs = []
        self._measure_baselines(trainer, trainer.datamodule.evaluation_split)  # type: ignore[attr-defined]

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin the test with nothing, and measure what it will be compared with."""
        self._outputs = []
        self._measure_baselines(trainer, "test")

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the logits of a batch."""
        self._outputs.append((outputs["sample_ids"].cpu(), outputs["logits"].float().cpu()))

    on_test_batch_end = on_validation_batch_end

    def evaluate(self, trainer: L.Trainer, pl_module: Any, data: Any, split: Split, prefix: str) -> None:
        """Measure the logits of a split."""
        looked_at = data.evaluated(split)
        targets = torch.from_numpy(np.ascontiguousarray(data.labels(split)[looked_at]))
        logits = gather_by_id(self._outputs, looked_at, trainer.world_size)
        self._outputs = []
        if not torch.isfinite(logits).all():
            # the loss says so too, and guards look at the weights; metrics of such logits would be inventions
            bad = int((~torch.isfinite(logits)).any(1).sum())
            say(f"warning: {prefix}: {bad} of {len(logits)} samples have logits that are NaN or Inf")
            logits = torch.nan_to_num(logits)
        probabilities = probabilities_of(logits, multi_label=data.multi_label)
        metrics = classification_metrics(probabilities, targets, data.label_names, **self._options(data))
        log_metrics(pl_module, prefix, metrics)
        if trainer.is_global_zero:
            texts, names = data.texts(split), data.ids(split)
            rows = prediction_rows(
                [texts[index] for index in looked_at.tolist()],
                probabilities,
                targets,
                data.label_names,
                data.multi_label,
            )
            for row, index in zip(rows, looked_at.tolist(), strict=True):
                row["index"] = index
            if names is not None:
                rows = [{"index": row["index"], "id": names[row["index"]], **row} for row in rows]
            self.write_predictions(rows)
            self._report(trainer, split, prefix, metrics, rows)

    def evaluation_metrics(self, data: Any) -> set[str]:
        """Names of what an evaluation logs, without the split: those of one made-up answer for each class."""
        answers = torch.eye(len(data.label_names), dtype=torch.float64)
        targets = answers.long() if data.multi_label else torch.arange(len(answers))
        return set(classification_metrics(answers, targets, data.label_names, **self._options(data)))

    def _options(self, data: Any) -> dict[str, Any]:
        """What classification_metrics must know beside the answers."""
        return {
            "multi_label": data.multi_label,
            "ordered": data.ordered,
            "score_weights": self.score_weights,
        }

    def _report(
        self, trainer: L.Trainer, split: str, prefix: str, metrics: Mapping[str, float], rows: list[dict[str, Any]]
    ) -> None:
        beside = "".join(f"; {name} {found['accuracy']:.3f}" for name, found in self.references.get(split, {}).items())
        if split in self.linear_right:
            beside += ahead(rows, self.linear_right[split])
        say(
            f"{heading(trainer, prefix)}, "
            + ", ".join(
                f"{name.replace('_', ' ')} {metrics[name]:.3f} (95 % {metrics[f'{name}_low']:.3f} to "
                f"{metrics[f'{name}_high']:.3f})"
                for name in HEADLINES
                if name in metrics
            )
            + beside
        )
        answers = {json.dumps(row["output"]) for row in rows}
        if len(answers) == 1 and len(rows) > 1 and trainer.global_step > 0:
            say(
                f"    every answer is {answers.pop()}: the model tells no classes apart (yet); if this stays, lower "
                "optimizer.lr or train longer"
            )
        wrong = sorted((row for row in rows if row["output"] != row["target"]), key=lambda row: -row["confidence"])
        for row in wrong[: self.num_examples]:
            text = " ".join(row["input"].split())
            said = f"{row['output']} ({row['confidence']:.0%}), truth {row['target']}"
            say(f"    {text[:70]}{'…' if len(text) > 70 else ''}   {said}")

    def _measure_baselines(self, trainer: L.Trainer, split: str) -> None:
        if not self.baselines or split in ("train", *self.references) or not trainer.is_global_zero:
            return  # on the texts that it was fitted to, a linear model says nothing
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self.references[split] = {}  # what fails is not tried again at each evaluation
        with side_product(self.run_directory.baselines.name):
            answers, targets = baseline_answers(data, split), torch.from_numpy(np.array(data.labels(split)))
            self.references[split] = {
                name: classification_metrics(probabilities, targets, data.label_names, **self._options(data))
                for name, probabilities in answers.items()
            }
            self.linear_right[split] = right_answers(answers[LINEAR], targets, data.multi_label).numpy()
            write_json_atomically(self.run_directory.baselines, self.references)
        for name, found in self.references[split].items():
            say(
                f"baseline on {split}: {name}: "
                + ", ".join(
                    f"{key.replace('_', ' ')} {found[key]:.3f} (95 % {found[f'{key}_low']:.3f} to "
                    f"{found[f'{key}_high']:.3f})"
                    for key in HEADLINES
                    if key in found
                )
            )


def gather_by_id(outputs: list[tuple[Tensor, Tensor]], indices: Indices, world_size: int) -> Tensor:
    """All ranks' logits (n, classes), in the order of the samples `indices` (n,), which is ascending."""
    if world_size > 1:
        shares: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(world_size)]
        torch.distributed.all_gather_object(shares, outputs)
        outputs = [pair for share in shares for pair in share]
    ids = torch.cat([ids for ids, _ in outputs])
    order = ids.argsort()
    assert ids[order].tolist() == indices.tolist(), "an evaluation visits every sample once"
    return torch.cat([logits for _, logits in outputs])[order]


def baseline_answers(data: Any, split: str) -> dict[str, Tensor]:
    """Probabilities (n, classes), float64, of `majority class` and LINEAR for all samples of a split.

    Both are fitted on the training split; the linear model is kept in the cache.
    """
    train_labels = data.labels("train")
    num_classes = len(data.label_names)
    majority = majority_probabilities(train_labels, data.num_samples(split), num_classes)
    texts = {name: data.texts(name) for name in SPLITS if data.num_samples(name)}
    settings = {
        "version": BASELINES_VERSION,
        "texts": {name: fingerprint({"texts": entries}) for name, entries in texts.items()},
        "labels": fingerprint({"labels": train_labels.tolist()}),
        "classes": num_classes,
    }

    def write(folder: Path) -> dict[str, Any]:  # one fit, the long part, answers for all splits
        found = linear_probabilities(texts["train"], train_labels, list(chain(*texts.values())), num_classes)
        ends = np.cumsum([len(entries) for entries in texts.values()])[:-1]
        for name, probabilities in zip(texts, np.split(found, ends), strict=True):
            np.save(folder / f"{name}.npy", probabilities)
        return {}

    linear = np.load(prepared_folder(data.cache_root, "baselines", settings, write) / f"{split}.npy")
    return {"majority class": torch.from_numpy(majority), LINEAR: torch.from_numpy(linear)}


def right_answers(probabilities: Tensor, targets: Tensor, multi_label: bool) -> Tensor:
    """Which samples are answered right, with several labels: in all of them; (n,) bool.

    Args:
        probabilities: (n, classes).
        targets: (n,) int64 class numbers; with `multi_label` (n, classes) of 0 and 1.
        multi_label: whether a sample bears any number of labels.
    """
    if multi_label:
        return ((probabilities >= PREDICTED) == targets.bool()).all(dim=1)
    return predicted_labels(probabilities) == targets


def ahead(rows: list[dict[str, Any]], linear_right: NDArray[np.bool_]) -> str:
    """How far the model is ahead of the linear one in accuracy, with the interval of the same texts.

    Args:
        rows: of predictions.jsonl.
        linear_right: (samples of the split,) whether the linear model is right, by `index`.
    """
    right = np.array([row["output"] == row["target"] for row in rows], dtype=np.float64)
    difference = right - linear_right[[row["index"] for row in rows]]
    low, high = bootstrap_interval(difference, np.mean)
    return f", the model {difference.mean():+.3f} (paired 95 % {low:+.3f} to {high:+.3f})"


def prediction_rows(
    texts: list[str], probabilities: Tensor, targets: Tensor, label_names: list[str], multi_label: bool
) -> list[dict[str, Any]]:
    """What predictions.jsonl says of each sample.

    `target` and `output` are names, lists of names where a sample bears several labels. `score` is the probability
    that the model gave to the truth (with several labels: the mean over labels), `confidence` the one that it gave to
    its own answer.

    Args:
        texts: (n,) texts of the samples, in order.
        probabilities: (n, classes) float32.
        targets: (n,) int64 class numbers; with `multi_label` (n, classes) of 0 and 1.
        label_names: the classes in order.
        multi_label: whether a sample bears any number of labels.
    """
    rows = []
    for index, text in enumerate(texts):
        row = probabilities[index]
        if multi_label:
            answer = row >= PREDICTED
            true = targets[index] == 1
            confidence = float(torch.where(answer, row, 1 - row).mean())
            score = float(torch.where(true, row, 1 - row).mean())
            output: str | list[str] = [name for name, said in zip(label_names, answer.tolist(), strict=True) if said]
            target: str | list[str] = [name for name, said in zip(label_names, true.tolist(), strict=True) if said]
        else:
            said = int(predicted_labels(row))
            confidence, score = float(row[said]), float(row[targets[index]])
            output, target = label_names[said], label_names[int(targets[index])]
        rows.append(
            {
                "index": index,
                "input": text[:SHOWN_CHARACTERS],
                "target": target,
                "output": output,
                "score": round(score, 6),
                "confidence": round(confidence, 6),
                "probabilities": [round(value, 6) for value in row.tolist()],
            }
        )
    return rows
