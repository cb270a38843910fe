"""What the table of a sweep shows of its jobs."""

from pathlib import Path

import pytest
from rich.console import Console

from lightning_apps.run_files.directory import RunDirectory
from lightning_apps.sweeps import table as sweep_table
from lightning_apps.sweeps.state import JobRecord
from lightning_apps.sweeps.table import JobTable, Progress, live_table, no_view


def record_of(folder, name, status, **changes):
    return JobRecord(
        name, {}, [], str(folder / "runs" / name), status=status, attempts=int(status != "pending"), **changes
    )


def write_run(folder, name, rows, *, steps=None):
    directory = RunDirectory(folder / "runs" / name)
    directory.path.mkdir(parents=True, exist_ok=True)
    directory.metrics.write_text("step,train/loss,val/loss\n" + "".join(f"{row}\n" for row in rows))
    log = folder / "logs" / f"{name}.log"
    log.parent.mkdir(exist_ok=True)
    log.write_text(
        "" if steps is None else f"      length  {steps:,} optimizer steps of 8 samples (trainer.max_steps)\n"
    )


def shown(table, records, *, height=40):
    console = Console(width=100, height=height, force_terminal=False)
    with console.capture() as capture:
        console.print(table.render(records, height))
    return [line.split() for line in capture.get().splitlines()]


def test_a_line_a_job(tmp_path):
    write_run(tmp_path, "a", ["1,3.0,", "2,2.5,2.25", "3,2.4,"], steps=1200)
    write_run(tmp_path, "b", [])
    records = [
        record_of(tmp_path, name, status) for name, status in zip("abc", ("running", "failed", "pending"), strict=True)
    ]
    assert shown(JobTable(tmp_path, "val/f1"), records) == [
        ["job", "state", "step", "metric", "time", "left"],
        ["a", "running", "3/1,200", "val/loss", "2.25"],
        ["b", "failed", "0"],
        ["c", "waits"],
    ]


def test_time_left_follows_the_steps_since_the_first_look(tmp_path, monkeypatch):
    now = 100.0
    monkeypatch.setattr(sweep_table.time, "monotonic", lambda: now)
    write_run(tmp_path, "a", ["10,3.0,"], steps=110)
    progress = Progress(record_of(tmp_path, "a", "running"), tmp_path / "logs" / "a.log", "val/loss")
    progress.look()
    assert progress.left() == ""
    write_run(tmp_path, "a", ["10,3.0,", "30,2.0,1.5"], steps=110)
    now = 140.0
    progress.look()
    assert (progress.step, progress.value, progress.left()) == (30, ("val/loss", 1.5), "3 min")  # 2 s a step, 80 to go


def test_where_jobs_are_many_those_that_run_are_shown(tmp_path):
    records = [record_of(tmp_path, f"d{number}", "done", ended_at=f"2026-01-{number:02}") for number in range(1, 20)]
    records += [
        record_of(tmp_path, "r", "running"),
        *(record_of(tmp_path, f"p{number}", "pending") for number in range(9)),
    ]
    lines = shown(JobTable(tmp_path, "val/loss"), records, height=12)
    assert [line[0] for line in lines] == ["job", "d17", "d18", "d19", "r", "and"]
    assert lines[-1] == ["and", "25", "more"]


def test_without_a_terminal_there_are_lines(tmp_path):
    with live_table(tmp_path, "val/loss") as show:
        assert show is no_view


@pytest.mark.parametrize("name", ["runs", "logs"])
def test_files_that_cannot_be_read_say_nothing(name, tmp_path):
    (tmp_path / name).write_text("a file")
    progress = Progress(record_of(tmp_path, "a", "running"), Path(tmp_path, "logs", "a.log"), "val/loss")
    progress.look()
    assert (progress.step, progress.total, progress.value, progress.left()) == (0, None, None, "")
