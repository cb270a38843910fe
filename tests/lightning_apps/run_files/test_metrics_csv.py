import math

from lightning_apps.run_files.metrics_csv import MetricsCSV, read_metrics


def test_one_row_per_step_and_exact_values(tmp_path):
    log = MetricsCSV(tmp_path / "metrics.csv")
    log.start_after(0)
    log.log_metrics({"train/loss": 1 / 3}, 1)
    log.log_metrics({"train/loss": 0.1}, 2)
    log.log_metrics({"val/loss": 2.5}, 2)
    log.log_metrics({"train/loss": math.nan}, 3)
    rows = read_metrics(tmp_path / "metrics.csv")
    assert rows[:2] == [{"step": 1, "train/loss": 1 / 3}, {"step": 2, "train/loss": 0.1, "val/loss": 2.5}]
    assert math.isnan(rows[2]["train/loss"])
    assert (tmp_path / "metrics.csv").read_text().splitlines()[0] == "step,train/loss,val/loss"


def test_a_late_value_joins_its_row_once_the_columns_are_known(tmp_path):
    log = MetricsCSV(tmp_path / "metrics.csv")
    for step in (1, 2):
        log.log_metrics({"a": float(step)}, step)
        log.log_metrics({"b": -float(step)}, step)
    assert read_metrics(tmp_path / "metrics.csv") == [
        {"step": 1, "a": 1.0, "b": -1.0},
        {"step": 2, "a": 2.0, "b": -2.0},
    ]


def test_resuming_drops_the_rows_that_will_be_written_again(tmp_path):
    path = tmp_path / "metrics.csv"
    first = MetricsCSV(path)
    for step in range(1, 6):
        first.log_metrics({"a": float(step)}, step)
    again = MetricsCSV(path)
    again.start_after(3)
    again.log_metrics({"a": 40.0, "c": 1.0}, 4)
    assert read_metrics(path) == [{"step": step, "a": float(step)} for step in (1, 2, 3)] + [
        {"step": 4, "a": 40.0, "c": 1.0}
    ]


def test_a_fresh_run_starts_an_empty_file(tmp_path):
    path = tmp_path / "metrics.csv"
    MetricsCSV(path).log_metrics({"a": 1.0}, 1)
    MetricsCSV(path).start_after(0)
    assert read_metrics(path) == []
