"""The picture of gsm8k says its numbers, and degenerate runs get one too."""

import struct

import pytest
from matplotlib.figure import Figure

from lightning_apps.experiments.gsm8k.picture import draw_gsm8k_summary

EVALUATED = {
    "val/loss": 1.1, "val/accuracy_numeric": 0.25, "val/accuracy_numeric_low": 0.1, "val/accuracy_numeric_high": 0.5,
    "val/accuracy_lmeval_strict": 0.125, "val/accuracy_lmeval_flexible": 0.2, "val/no_answer_ratio": 0.0,
    "val/truncated_ratio": 0.5, "val/collapsed_ratio": 0.25,
}  # fmt: skip


@pytest.fixture
def drawn(monkeypatch):
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))[1])
    return figures


def rows(*evaluations):
    training = [{"step": step, "train/loss": 2 / step, "train/learning_rate": 1e-4} for step in range(1, 4)]
    return [{**row, **evaluation} for row, evaluation in zip(training, evaluations, strict=False)]


@pytest.mark.parametrize(
    ("evaluations", "predictions"),
    [
        ([], []),
        ([{}], []),
        ([{}, EVALUATED], [{"num_tokens": 0, "score": False}]),
        ([{**EVALUATED, "val/loss": float("nan")}], [{"num_tokens": 7, "score": True}] * 3),
    ],
)
def test_every_run_gets_a_picture(evaluations, predictions, tmp_path):
    path = tmp_path / "summary.png"
    draw_gsm8k_summary(path, rows=rows(*evaluations), predictions=predictions, title="t")
    assert struct.unpack(">II", path.read_bytes()[16:24]) == (1600, 1080)


def test_the_numbers_are_those_of_the_run(tmp_path, drawn):
    predictions = [{"num_tokens": 10 * number, "score": number % 3 == 0} for number in range(8)]
    draw_gsm8k_summary(
        tmp_path / "p.png", rows=rows({}, EVALUATED, EVALUATED), predictions=predictions, title="t", best_step=2
    )
    panels = {axes.get_title(loc="left"): axes for axes in drawn[0].axes}
    lengths = panels["Length of the answers, last evaluation"]
    assert [text.get_text() for text in lengths.get_legend().get_texts()] == ["right (3)", "wrong (5)"]
    accuracies = panels["Right answers, validation (band: 95 % of numeric)"]
    shown = {line.get_label(): line.get_ydata().tolist() for line in accuracies.lines}
    assert shown["numeric"] == [0.25, 0.25]
    assert shown["lmeval_strict"] == [0.125, 0.125]
    assert accuracies.get_ylim()[1] > 0.5
