import numpy as np
from PIL import Image

from lightning_apps.experiments.classification_picture import answers, draw_classification_summary
from tests.drawing_warnings import drawing_warnings_fail

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
    twenty = [f"class {number}" for number in range(20)]
    draw(tmp_path / "twenty.png", metric_rows(), prediction_rows(twenty), twenty)


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
