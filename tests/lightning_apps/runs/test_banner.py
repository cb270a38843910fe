"""What a run says at its end: headlines first, classes in a file, and nothing that is not there."""

import csv
from pathlib import Path

import pytest

from lightning_apps.run_files.metrics import is_interval_end
from lightning_apps.runs.banner import _first_and_last, result_lines, write_per_class

METRICS = {
    "val/accuracy": 0.8, "val/accuracy_high": 0.9, "val/accuracy_low": 0.7, "val/f1_macro": 0.75, "val/loss": 0.5,
    "val/auroc": 0.9, "val/f1/a": 0.7, "val/f1/b": 0.8, "val/recall/a": 0.25, "test/f1_macro": 0.5, "test/f1/a": 0.125,
}  # fmt: skip


@pytest.fixture
def summary(tmp_path):
    best = {"metric": "val/f1_macro", "step": 1200, "metrics": {"val/f1_macro": 0.76, "val/loss": 0.4, "val/f1/a": 0.5}}
    return {
        "directory": str(tmp_path / "lr=1,seed=2 x"), "status": "completed", "reason": "reached trainer.max_steps=9",
        "optimizer_steps": 9, "tokens_seen": 1000, "wall_s": 3.0, "metrics": METRICS, "best": best,
    }  # fmt: skip


def test_headlines_come_first_and_the_one_that_chose_is_marked(summary):
    lines = result_lines(summary)
    start = next(number for number, line in enumerate(lines) if "best by *, step 1,200" in line) + 1
    assert [line.split("  ")[0] for line in lines[start : start + 5]] == [
        "val/f1_macro", "val/loss", "val/accuracy", "val/auroc", "test/f1_macro",
    ]  # fmt: skip
    assert lines[start].endswith("0.76  *")
    assert lines[start + 2].split() == ["val/accuracy", "0.8"]  # the interval is that of the best, which has none
    assert lines[start + 4].split() == ["test/f1_macro", "0.5"]
    assert lines[start].index("0.76") == lines[start + 4].index("0.5")  # the test is of the best weights
    assert "0.8 (0.7 to 0.9)" in "\n".join(result_lines({**summary, "best": None}))
    assert lines[start + 5 :] == ["", f"files     {summary['directory']}"]  # no picture, no model, no checkpoint


def test_what_is_there_is_named_and_the_command_can_be_pasted(summary, tmp_path):
    path = tmp_path / "lr=1,seed=2 x"
    for name in ("summary.png", "model/config.json", "checkpoints/best.ckpt"):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).touch()
    write_per_class(path, summary)
    assert result_lines(summary)[-4:] == [
        f"picture   {path}/summary.png",
        f"classes   {path}/per_class.csv",
        f"model     {path}/model",
        f"evaluate  python -m lightning_apps.evaluate 'run={path}' split=validation checkpoint=best",
    ]
    with (path / "per_class.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["split", "class", "f1", "recall", "best_f1"],
            ["val", "a", "0.7", "0.25", "0.5"],
            ["val", "b", "0.8", "", ""],
            ["test", "a", "0.125", "", ""],
        ]


def test_the_last_screen_fits_and_has_the_headlines_of_each_split(summary, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path("outputs/rating/default")
    for name in ("summary.png", "report.html", "per_class.csv", "model/config.json", "checkpoints/best.ckpt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    names = ["loss", "accuracy", "f1_macro", "held_out_in_context_gain", *(f"other_{number}" for number in range(20))]
    values = {
        f"{split}/{name}{end}": 0.12345 for split in ("val", "test") for name in names for end in ("", "_low", "_high")
    }
    best = {**summary["best"], "metrics": values}
    long = {"directory": str(folder), "metrics": values, "best": best, "wall_s": 12345.0,
            "reason": "reached trainer.max_tokens=1,536,000, which takes precedence"}  # fmt: skip
    lines = result_lines({**summary, **long})
    assert sum(-(-max(len(line), 1) // 80) for line in lines) <= 23  # and the line that is typed next
    start = next(number for number, line in enumerate(lines) if "best by *" in line) + 1
    assert [line.split()[0] for line in lines[start : start + 10]] == [
        "val/f1_macro", "val/loss", "val/accuracy", "val/held_out_in_context_gain", "val/other_0", "val/other_1",
        "test/f1_macro", "test/loss", "test/accuracy", "...",
    ]  # fmt: skip
    assert lines[start + 9] == "... and 39 more in summary.json"
    assert max(map(len, lines[start : start + 9])) <= 80


def test_no_table_of_classes_where_there_are_none(summary, tmp_path):
    write_per_class(tmp_path, {**summary, "metrics": {"val/loss": 1.0}, "best": None})
    assert not (tmp_path / "per_class.csv").exists()
    assert "best" not in "\n".join(result_lines({**summary, "metrics": {"val/loss": 1.0}, "best": None}))


def test_the_end_of_no_interval_is_a_metric():
    assert is_interval_end("val/f1_low", ["val/f1", "val/f1_low", "val/f1_high"])
    assert not is_interval_end("val/f1_low", ["val/f1", "val/f1_low"])
    assert not is_interval_end("val/very_low", ["val/very_low"])


def test_one_evaluation_is_one():
    assert _first_and_last(frozenset({2})) == ", after step 2"
    assert _first_and_last(frozenset({1000, 2})) == ", after steps 2 to 1,000"
    assert _first_and_last(frozenset()) == ""


def test_a_run_without_a_valid_answer_says_so(summary):
    nan = float("nan")
    distances = {
        "val/haversine_km_median": nan, "val/haversine_km_median_low": 20015.0, "val/valid_ratio": 0.0,
        "val/haversine_km_median_high": 20015.0, "test/kappa": nan, "test/kappa_low": nan, "test/kappa_high": nan,
    }  # fmt: skip
    text = "\n".join(result_lines({**summary, "metrics": distances, "best": None}))
    (said,) = [line for line in text.splitlines() if "median" in line]
    assert said.split() == ["val/haversine_km_median", "no", "valid", "answer"]
    assert [line.split() for line in text.splitlines() if "kappa" in line] == [["test/kappa", "nan"]]
    assert "20,015" not in text
