import math

import pytest

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


def test_a_file_that_is_there_is_never_emptied_by_logging(tmp_path):
    path = tmp_path / "metrics.csv"
    first = MetricsCSV(path)
    for step in (1, 2):
        first.log_metrics({"a": float(step)}, step)
    again = MetricsCSV(path)  # a run that is resumed after its last step: no step starts, the test is logged
    again.log_metrics({"test/loss": 3.0}, 2)
    assert read_metrics(path) == [{"step": 1, "a": 1.0}, {"step": 2, "a": 2.0, "test/loss": 3.0}]
    again.log_metrics({"test/loss": 4.0}, 2)
    assert read_metrics(path) == [{"step": 1, "a": 1.0}, {"step": 2, "a": 2.0, "test/loss": 4.0}]


def test_names_with_commas_quotes_and_half_a_surrogate_pair(tmp_path):
    log = MetricsCSV(tmp_path / "metrics.csv")
    names = ["val/f1/Physics, applied", r"lr/\d{1,2}", 'a "b"', "two\nlines"]
    log.log_metrics(dict.fromkeys(names, 0.5), 1)
    log.log_metrics({"\ud800": 1.0}, 1)
    log.log_metrics(dict.fromkeys(names, 0.25), 2)
    assert read_metrics(log.path) == [
        {"step": 1, **dict.fromkeys(names, 0.5), "\\ud800": 1.0},
        {"step": 2, **dict.fromkeys(names, 0.25)},
    ]


@pytest.mark.parametrize(
    "torn", ["2,0.69e", "2,0.69", "2,0.69e\n", "2", "2,0.1,0.2,0.3\n", ",0.5\n", "\0\0\0\0", "\0\0\n", "x,1\n"]
)
def test_a_torn_row_is_passed_over_and_the_file_goes_on(torn, tmp_path):
    path = tmp_path / "metrics.csv"
    MetricsCSV(path).log_metrics({"a": 1.0}, 1)
    with path.open("a") as file:
        file.write(torn)
    assert read_metrics(path) == [{"step": 1, "a": 1.0}]
    log = MetricsCSV(path)
    log.start_after(5)
    log.log_metrics({"a": 2.0}, 2)
    assert path.read_text() == "step,a\n1,1.0\n2,2.0\n"


@pytest.mark.parametrize("content", [b"", b"\0" * 40, b"\0\0\n\0\n", b"\xff\xfe\n"])
def test_a_file_without_a_header_begins_anew(content, tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    assert read_metrics(path) == []
    MetricsCSV(path).log_metrics({"a": 1.0}, 1)
    assert path.read_text() == "step,a\n1,1.0\n"
