"""What a classifier's probabilities are worth: torchmetrics' definitions on whole splits, with intervals."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.functional import classification as functional

from lightning_apps.statistics.bootstrap import bootstrap_totals

CALIBRATION_BINS = 15
"""Of equal width (Guo et al. 2017)."""
PREDICTED = 0.5
"""Probability from which a label is given, where a sample bears any number of them."""


def probabilities_of(logits: Tensor, *, multi_label: bool) -> Tensor:
    """(n, classes) float64: softmax over classes, or a sigmoid for each."""
    return torch.sigmoid(logits.double()) if multi_label else torch.softmax(logits.double(), dim=-1)


def predicted_labels(probabilities: Tensor) -> Tensor:
    """The most probable class, (n,) int64; the first of several."""
    return probabilities.argmax(dim=-1)


def classification_metrics(
    probabilities: Tensor,
    targets: Tensor,
    label_names: Sequence[str],
    *,
    multi_label: bool = False,
    ordered: bool = False,
    score_weights: Sequence[float] | None = None,
) -> dict[str, float]:
    """Accuracy, precision, recall, F1, AUROC and calibration error, by the names under which they are logged.

    Those of single classes are `precision/<class>`, `recall/<class>` and `f1/<class>` (metric_names): a namespace of
    their own, so that a class called "macro" or "weighted" is a class and `f1_macro` stays the average.

    Macro averages count every class alike, over the classes that are there or were predicted; weighted ones count by
    frequency. AUROC is the mean over the classes that have samples with and without them, NaN where none has. Intervals
    (`*_low`, `*_high`) are 95 % percentile bootstraps over samples. With several labels `accuracy` is the share of
    samples of which every label is right, and `accuracy_per_label` that of labels.

    Args:
        probabilities: (n, classes), n at least 1.
        targets: (n,) int64 class numbers; with `multi_label` (n, classes) of 0 and 1.
        label_names: names of the classes.
        multi_label: whether a sample bears any number of labels.
        ordered: whether the classes are in an order; adds `kappa`, Cohen's with quadratic weights (Cohen 1968): 1 for
            answers that are right, 0 for chance, and a mistake counts by the square of its distance.
        score_weights: weight of each class, which need not add up to 1; adds `weighted_score`, their weighted mean F1,
            over the classes that are there or were predicted.
    """
    metrics = _multi_label(probabilities, targets) if multi_label else _multi_class(probabilities, targets)
    names = metric_names(label_names)
    for key in ("precision", "recall", "f1"):
        for name, value in zip(names, metrics.pop(key).tolist(), strict=True):
            metrics[f"{key}/{name}"] = value
    found: dict[str, float] = {key: float(value) for key, value in metrics.items()}
    outcomes = sample_outcomes(probabilities, targets, multi_label=multi_label)
    statistics = {"accuracy": _accuracy, "f1_macro": _f1_macro}
    if score_weights:
        weights = np.array(score_weights, dtype=np.float64)
        statistics["weighted_score"] = partial(_weighted_f1, weights=weights)
        found["weighted_score"] = float(_weighted_f1(outcomes.sum(axis=0, keepdims=True), len(outcomes), weights)[0])
    for key, statistic in statistics.items():
        found[f"{key}_low"], found[f"{key}_high"] = bootstrap_totals(outcomes, statistic)
    if ordered and not multi_label:
        predicted = predicted_labels(probabilities)
        found["kappa"] = float(
            functional.multiclass_cohen_kappa(predicted, targets, num_classes=len(label_names), weights="quadratic")
        )
        cells = torch.nn.functional.one_hot(targets * len(label_names) + predicted, len(label_names) ** 2)
        found["kappa_low"], found["kappa_high"] = bootstrap_totals(cells.double().numpy(), _quadratic_kappa)
    return found


def metric_names(label_names: Sequence[str]) -> list[str]:
    """Class names as parts of metric names: lower-case letters, digits and underscores, all different.

    Classes that differ in other characters only bear their number; underscores behind it tell them from a class that
    is called just that.
    """
    names = ["".join(char if char.isalnum() else "_" for char in name.lower()) or "_" for name in label_names]
    counts = Counter(names)
    taken = {name for name in names if counts[name] == 1}
    for number, name in enumerate(names):
        if counts[name] > 1:
            names[number] = f"{name}_{number}"
            while names[number] in taken:
                names[number] += "_"
            taken.add(names[number])
    return names


def _averages(stats: Any, preds: Tensor, targets: Tensor, options: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, function in stats.items():
        found[key] = function(preds, targets, average="none", **options)
        found[f"{key}_macro"] = function(preds, targets, average="macro", **options)
    found["f1_weighted"] = stats["f1"](preds, targets, average="weighted", **options)
    return found


def _multi_class(probabilities: Tensor, targets: Tensor) -> dict[str, Any]:
    options: dict[str, Any] = {"num_classes": probabilities.shape[1]}
    predicted = predicted_labels(probabilities)
    stats = {
        "precision": functional.multiclass_precision,
        "recall": functional.multiclass_recall,
        "f1": functional.multiclass_f1_score,
    }
    return {
        "accuracy": functional.multiclass_accuracy(predicted, targets, average="micro", **options),
        **_averages(stats, predicted, targets, options),
        "auroc": _mean_auroc(probabilities, torch.nn.functional.one_hot(targets, options["num_classes"])),
        "calibration_error": functional.multiclass_calibration_error(
            probabilities, targets, n_bins=CALIBRATION_BINS, **options
        ),
    }


def _multi_label(probabilities: Tensor, targets: Tensor) -> dict[str, Any]:
    targets = targets.long()
    options: dict[str, Any] = {"num_labels": probabilities.shape[1]}
    predicted = (probabilities >= PREDICTED).long()
    stats = {
        "precision": functional.multilabel_precision,
        "recall": functional.multilabel_recall,
        "f1": functional.multilabel_f1_score,
    }
    return {
        "accuracy": functional.multilabel_exact_match(predicted, targets, **options),
        "accuracy_per_label": functional.multilabel_accuracy(predicted, targets, average="micro", **options),
        **_averages(stats, predicted, targets, options),
        "auroc": _mean_auroc(probabilities, targets),
        "calibration_error": functional.binary_calibration_error(
            probabilities.flatten(), targets.flatten(), n_bins=CALIBRATION_BINS
        ),
    }


def _mean_auroc(probabilities: Tensor, targets: Tensor) -> float:
    """Of the classes that have both kinds of samples; torchmetrics counts the others as 0."""
    both = (targets.sum(0) > 0) & (targets.sum(0) < len(targets))
    if not both.any():
        return float("nan")
    values = [functional.binary_auroc(probabilities[:, k], targets[:, k]) for k in both.nonzero()[:, 0].tolist()]
    return float(torch.stack(values).mean())


def sample_outcomes(probabilities: Tensor, targets: Tensor, *, multi_label: bool = False) -> NDArray[np.float64]:
    """What each sample adds to the counts: (n, 1 + 3 * classes) of right, true positives, predicted, true."""
    num_classes = probabilities.shape[1]
    if multi_label:
        predicted, true = (probabilities >= PREDICTED).long(), targets.long()
    else:
        predicted = torch.nn.functional.one_hot(predicted_labels(probabilities), num_classes)
        true = torch.nn.functional.one_hot(targets, num_classes)
    right = (predicted == true).all(dim=1, keepdim=True)
    return torch.cat([right.long(), predicted * true, predicted, true], dim=1).double().numpy()


def _accuracy(totals: NDArray[np.float64], num_samples: int) -> NDArray[np.float64]:
    return totals[:, 0] / num_samples


def _f1_macro(totals: NDArray[np.float64], num_samples: int) -> NDArray[np.float64]:
    return _weighted_f1(totals, num_samples, np.ones((totals.shape[1] - 1) // 3))


def _weighted_f1(totals: NDArray[np.float64], num_samples: int, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    hits, predicted, true = np.split(totals[:, 1:], 3, axis=1)
    seen = predicted + true
    f1 = 2 * hits / np.maximum(seen, 1)
    total = ((seen > 0) * weights).sum(axis=1)
    return (f1 * weights).sum(axis=1) / np.where(total > 0, total, 1.0)


def _quadratic_kappa(totals: NDArray[np.float64], num_samples: int) -> NDArray[np.float64]:
    """Of confusion matrices (m, classes * classes); NaN where only one class was seen and said, as in torchmetrics."""
    size = round(totals.shape[1] ** 0.5)
    confusion = totals.reshape(-1, size, size)
    distance = np.subtract.outer(np.arange(size), np.arange(size)) ** 2
    observed = (confusion * distance).sum(axis=(1, 2))
    expected = np.einsum("mi,ij,mj->m", confusion.sum(axis=2), distance, confusion.sum(axis=1)) / num_samples
    with np.errstate(invalid="ignore", divide="ignore"):
        return 1 - observed / expected


def confusion_matrix(predicted: NDArray[np.int64], targets: NDArray[np.int64], num_classes: int) -> NDArray[np.int64]:
    """Counts (classes, classes): rows are true classes, columns predicted ones."""
    return (
        functional.multiclass_confusion_matrix(
            torch.from_numpy(predicted), torch.from_numpy(targets), num_classes=num_classes
        )
        .numpy()
        .astype(np.int64)
    )


def reliability(
    confidence: NDArray[np.float64], right: NDArray[np.bool_], num_bins: int = 10
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Mean confidence, share of right answers and number of answers, for each of `num_bins` bins of equal width.

    Bins without an answer hold NaN and 0.
    """
    bins = np.minimum((confidence * num_bins).astype(np.int64), num_bins - 1)
    counts = np.bincount(bins, minlength=num_bins)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(bins, weights=confidence, minlength=num_bins) / counts
        accuracy = np.bincount(bins, weights=right.astype(np.float64), minlength=num_bins) / counts
    return mean, accuracy, counts
