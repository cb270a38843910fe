from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from lightning_apps.experiments.classification_picture import (
    answers,
    confusion_place,
    draw_classification_summary,
    draw_confusion,
    ordinal,
)
from lightning_apps.figures.curves import add_axes_px, png_figure
from tests.asserts.drawing_warnings import drawing_warnings_fail

NAMES = ["negative", "positive"]
REFERENCES = {"majority class": {"accuracy": 0.5}, "TF-IDF + LR": {"accuracy": 0.86}}


def metric_rows(evaluations=8, steps=160):
    rng = np.random.default_rng(0)
    rows = []
    for step in range(1, steps + 1):
        row = {"step": step, "train/loss": 0.7 * np.exp(-step / 60) + 0.1 + 0.05 * rng.random()}
        row["train/learning_rate"] = 5e-5 * min(step / 8, (steps - step + 1) / steps)
        if step % (steps // evaluations) == 0:
            score = 0.9 - 0.35 * np.exp(-step / 40)
            row |= {"val/loss": 0.7 * np.exp(-step / 60) + 0.22}
            for name, value in (("accuracy", score), ("f1_macro", score - 0.01)):
                row |= {f"val/{name}": value, f"val/{name}_low": value - 0.04, f"val/{name}_high": value + 0.035}
        rows.append(row)
    return rows


def prediction_rows(names=NAMES, n=300):
    rng = np.random.default_rng(1)
    rows = []
    for _ in range(n):
        probabilities = rng.dirichlet(np.full(len(names), 0.35))
        said = int(probabilities.argmax())
        right = rng.random() < 0.5 + 0.45 * probabilities[said]
        target = said if right else (said + 1) % len(names)
        rows.append(
            {"target": names[target], "output": names[said], "confidence": probabilities[said],
             "probabilities": probabilities.tolist()}
        )  # fmt: skip
    return rows


def draw(path, rows, predictions, names=NAMES, references=REFERENCES):
    draw_classification_summary(
        path, rows=rows, predictions=predictions, label_names=names, references=references, title="imdb / a $x$",
        best_step=140,
    )  # fmt: skip
    with Image.open(path) as picture:
        assert picture.size == (1600, 1160)
        return np.asarray(picture.convert("RGB")).astype(int)


@drawing_warnings_fail
def test_it_draws_what_it_is_given(tmp_path):
    full = draw(tmp_path / "full.png", metric_rows(), prediction_rows())
    empty = draw(tmp_path / "empty.png", [], [], references={})
    assert (full != empty).any()
    three = ["General", "Teen", "A very long name of a class $"]
    draw(tmp_path / "three.png", metric_rows(1), prediction_rows(three), three)
    nothing = [
        {key: np.nan if key.startswith("val/") else value for key, value in row.items()} for row in metric_rows()
    ]
    draw(tmp_path / "nan.png", nothing, prediction_rows(), references={"majority class": {"accuracy": np.nan}})


@pytest.mark.parametrize(
    ("num_classes", "named"), [(2, 2), (3, 3), (12, 12), (13, 13), (20, 20), (29, 29), (30, 15), (100, 25), (1000, 29)]
)
def test_the_axes_of_a_confusion_matrix_bear_names_as_far_as_they_fit(tmp_path, num_classes, named):
    """No fractions of a class, and nothing over the edge of the picture or over another name."""
    names = [f"quite.a.long.name.of.class.{number:03}" for number in range(num_classes)]
    with png_figure(tmp_path / "matrix.png", 1600, 1160) as figure:
        place = confusion_place(num_classes)
        axes = add_axes_px(figure, *place)
        draw_confusion(figure, axes, prediction_rows(names), names)
        figure.canvas.draw()
        for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
            assert len(labels) == named
            assert all(label.get_text().startswith("quite.a") for label in labels)
        boxes = [label.get_window_extent() for label in axes.get_yticklabels()]
        boxes.append(axes.xaxis.label.get_window_extent())
        assert min(box.x0 for box in boxes) > 0
        assert min(box.y0 for box in boxes) > 0
        heights = sorted(box.y0 for box in boxes[:-1])
        assert all(upper - lower > 9 for lower, upper in pairwise(heights))


def test_ordinals():
    assert [ordinal(number) for number in (2, 3, 4, 11, 22, 33, 112)] == [
        "2nd", "3rd", "4th", "11th", "22nd", "33rd", "112th",
    ]  # fmt: skip


@drawing_warnings_fail
def test_several_labels(tmp_path):
    rows = [
        {"target": ["sun"], "output": ["sun", "rain"], "probabilities": [0.9, 0.6], "confidence": 0.75},
        {"target": [], "output": [], "probabilities": [0.2, 0.1], "confidence": 0.85},
    ]
    draw(tmp_path / "labels.png", metric_rows(), rows, ["sun", "rain"])
    confidence, right = answers(rows, ["sun", "rain"])
    assert confidence.tolist() == [0.9, 0.6, 0.8, 0.9]
    assert right.tolist() == [True, False, True, True]
