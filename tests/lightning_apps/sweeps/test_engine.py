"""The engine of a sweep with processes that only pretend to train."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lightning_apps.process.console import open_console
from lightning_apps.process.file_lock import is_locked
from lightning_apps.sweeps import engine as sweep_engine
from lightning_apps.sweeps.backends import local
from lightning_apps.sweeps.backends.backend import BackendError, Handle, Sign
from lightning_apps.sweeps.backends.local import LocalBackend, Place, lock_path
from lightning_apps.sweeps.engine import Engine, Queue, last_line
from lightning_apps.sweeps.state import read_state
from tests.asserts.patience import wait_until
from tests.fakes.fake_sweep import make

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _at_home(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sweep_engine, "POLL_S", 0.02)


def statuses(folder):
    return {job.name: job.status for job in read_state(folder).jobs}


def starts(folder, name):
    path = folder / "runs" / name / "starts"
    return path.read_text().splitlines() if path.exists() else []


def test_jobs_run_in_order_and_a_second_start_has_nothing_to_do(tmp_path, capsys):
    assert make(tmp_path, {"a": "ok", "b": "ok"}).run() == 0
    assert statuses(tmp_path) == {"a": "done", "b": "done"}
    out = capsys.readouterr().out.splitlines()
    assert [line.split(";")[0] for line in out] == [
        "[1/2] started  a",
        out[1].split(";")[0],
        "[2/2] started  b",
        out[3].split(";")[0],
    ]
    assert out[1].startswith("[1/2] done     a: val/loss 1.25, ")
    assert "1 of 2 done, about" in out[1]
    assert "left" not in out[3]
    record = read_state(tmp_path).job("a")
    assert (record.exit_code, record.attempts, record.wall_s, record.reason) == (0, 1, 0.5, "")
    assert record.started_at <= record.ended_at
    assert make(tmp_path, {"a": "ok", "b": "ok"}).run() == 0
    assert len(starts(tmp_path, "a")) == 1
    assert capsys.readouterr().out == ""


def test_the_runs_decide_what_is_done_and_not_the_state(tmp_path):
    make(tmp_path, {"a": "ok", "b": "ok"}).run()
    (tmp_path / "sweep.json").unlink()
    (tmp_path / "runs" / "b" / "summary.json").unlink()
    assert make(tmp_path, {"a": "ok", "b": "ok"}).run() == 0
    assert [len(starts(tmp_path, name)) for name in "ab"] == [1, 2]


def test_a_failure_does_not_stop_the_others_and_is_named(tmp_path, capsys):
    runner = make(tmp_path, {"a": "fail", "b": "ok", "c": "killed", "d": "no summary"})
    assert runner.run() == 1
    assert statuses(tmp_path) == {"a": "failed", "b": "done", "c": "failed", "d": "failed"}
    out = capsys.readouterr().out
    assert "FAILED   a (exit code 1): error: boom [31mred; log: " in out
    assert "\x1b" not in out
    closing = runner.closing_lines()
    assert "sweep ended: 1 of 4 jobs done" in closing
    assert "failed  a: error: boom" in closing
    assert "failed  c: killed by SIGKILL (out of memory?); no output" in closing
    assert "failed  d: ended without a summary of a completed run; goodbye" in closing
    assert "python -m x sweep=s sweep.retry_failed=true" in closing


def test_failed_jobs_are_left_alone_until_somebody_asks(tmp_path):
    assert make(tmp_path, {"a": "flaky"}).run() == 1
    assert make(tmp_path, {"a": "flaky"}).run() == 1
    assert len(starts(tmp_path, "a")) == 1
    assert read_state(tmp_path).job("a").reason.startswith("error: boom")
    assert make(tmp_path, {"a": "flaky"}, retry_failed=True).run() == 0
    assert statuses(tmp_path) == {"a": "done"}


def test_retries(tmp_path, capsys):
    assert make(tmp_path, {"a": "flaky", "b": "fail", "c": "wrong"}, retries=2).run() == 1
    assert statuses(tmp_path) == {"a": "done", "b": "failed", "c": "failed"}
    # a mistake in the configuration is one however often it is tried
    assert [len(starts(tmp_path, name)) for name in "abc"] == [2, 3, 1]
    assert "started  a, attempt 2" in capsys.readouterr().out


def test_stop_at_the_first_failure(tmp_path):
    runner = make(tmp_path, {"a": "fail", "b": "ok"}, on_failure="stop")
    assert runner.run() == 1
    assert statuses(tmp_path) == {"a": "failed", "b": "pending"}
    assert "stopped after a failure: 0 of 2 jobs done" in runner.closing_lines()
    assert "go on with" in runner.closing_lines()


def test_a_time_budget_is_no_failure(tmp_path):
    runner = make(tmp_path, {"a": "time is up", "b": "ok"})
    assert runner.run() == 0
    assert statuses(tmp_path) == {"a": "pending", "b": "done"}
    assert "interrupted  a: trainer.max_time" in runner.closing_lines()


def test_a_search_does_not_go_on_with_a_job_that_is_out_of_time(tmp_path):
    engine = make(tmp_path, {"a": "time is up", "b": "fail"})
    engine.state.search = {"objective": {"val/loss": "min"}}
    engine.run()
    closing = engine.closing_lines()
    assert "interrupted  a: trainer.max_time: 5 s are over" in closing
    assert "go on with" not in closing
    assert "try again with" in closing


def test_what_a_killed_engine_has_not_noted_is_read_from_the_run(tmp_path):
    engine = make(tmp_path, {"a": "time is up"})
    engine.run()
    (tmp_path / "sweep.json").unlink()
    assert make(tmp_path, {"a": "ok"}).state.job("a").reason == "trainer.max_time: 5 s are over"


def test_devices_and_threads_go_round(tmp_path):
    places = [Place("0,1", 3), Place("2,3", 3)]
    assert make(tmp_path, dict.fromkeys("abcd", "ok"), places=places).run() == 0
    seen = [starts(tmp_path, name)[0].split()[1:] for name in "abcd"]
    assert {tuple(entry) for entry in seen[:2]} == {("0,1", "3"), ("2,3", "3")}
    assert {tuple(entry) for entry in seen} == {("0,1", "3"), ("2,3", "3")}


def wait_for_orphans(folder):
    assert LocalBackend(folder, []).recover({"a": Handle(""), "b": Handle("")}) == {}


def when_ready(folder, names, act):
    """Call `act` in another thread once these jobs say that they are at work."""

    def wait():
        while not all((folder / "runs" / name / "ready").exists() for name in names):
            time.sleep(0.01)
        act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_is_passed_on_and_the_sweep_goes_on_later(signum, tmp_path, capsys):
    handlers = [signal.getsignal(number) for number in sweep_engine.STOP_SIGNALS]
    runner = make(tmp_path, {"a": "slow", "b": "slow", "c": "ok"}, parallel=2)
    when_ready(tmp_path, "ab", lambda: os.kill(os.getpid(), signum))
    assert runner.run() == 128 + signum
    assert statuses(tmp_path) == {"a": "pending", "b": "pending", "c": "pending"}
    assert starts(tmp_path, "c") == []
    assert f"{signum.name}: 2 running jobs save after their step" in capsys.readouterr().out
    assert f"stopped by {signum.name}: 0 of 3 jobs done" in runner.closing_lines()
    assert [signal.getsignal(number) for number in sweep_engine.STOP_SIGNALS] == handlers
    assert make(tmp_path, {"a": "ok", "b": "ok", "c": "ok"}).run() == 0


def test_a_source_that_looks_for_its_next_job_hears_a_signal(tmp_path):
    engine = make(tmp_path, {"a": "ok"})

    class Searching(Queue):
        def next(self):
            os.kill(os.getpid(), signal.SIGINT)
            wait_until(engine.is_closed)

    assert Engine.run(engine, Searching(engine.state.jobs)) == 128 + signal.SIGINT
    assert "stopped by SIGINT: 0 of 1 jobs done" in engine.closing_lines()
    assert "go on with" in engine.closing_lines()


def test_the_third_signal_kills(tmp_path):
    def thrice():
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)

    runner = make(tmp_path, {"a": "deaf"})
    when_ready(tmp_path, "a", thrice)
    assert runner.run() == 128 + signal.SIGTERM
    assert read_state(tmp_path).job("a").reason == "killed while stopping"
    assert statuses(tmp_path) == {"a": "pending"}


def test_a_signal_from_elsewhere_interrupts_one_job(tmp_path):
    runner = make(tmp_path, {"a": "slow", "b": "ok"})

    def kill_job():
        os.kill(int(starts(tmp_path, "a")[0].split()[0]), signal.SIGTERM)

    when_ready(tmp_path, "a", kill_job)
    assert runner.run() == 1
    assert statuses(tmp_path) == {"a": "pending", "b": "done"}
    assert "interrupted  a: stopped by SIGTERM" in runner.closing_lines()


RUNNER = """
import sys
from pathlib import Path
from tests.fakes.fake_sweep import make
from tests.asserts.patience import wait_until
make(Path(sys.argv[1]), {"a": sys.argv[2], "b": "ok"}).run()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent died")
def test_jobs_end_with_a_runner_that_is_killed(tmp_path):
    runner = subprocess.Popen([sys.executable, "-c", RUNNER, str(tmp_path), "slow"], stdout=subprocess.DEVNULL)
    wait_until((tmp_path / "runs" / "a" / "ready").exists)
    runner.kill()
    runner.wait()
    wait_for_orphans(tmp_path)
    assert json.loads((tmp_path / "runs" / "a" / "summary.json").read_text())["status"] == "stopped"
    assert statuses(tmp_path) == {"a": "running", "b": "pending"}  # nobody was left to write it
    assert make(tmp_path, {"a": "ok", "b": "ok"}).run() == 0
    assert len(starts(tmp_path, "a")) == 2


def test_a_job_that_outlived_its_runner_is_waited_for(tmp_path, monkeypatch):
    runner = subprocess.Popen([sys.executable, "-c", RUNNER, str(tmp_path), "deaf"], stdout=subprocess.DEVNULL)
    wait_until((tmp_path / "runs" / "a" / "ready").exists)
    runner.kill()
    runner.wait()
    job = int(starts(tmp_path, "a")[0].split()[0])
    assert is_locked(lock_path(tmp_path, "a"))
    open_console()
    said = []
    monkeypatch.setattr(local, "say", lambda text: (said.append(text), os.kill(job, signal.SIGKILL)))
    wait_for_orphans(tmp_path)
    assert said == [f"waiting for 1 jobs that an earlier start left running: a (process {job})"]
    assert not is_locked(lock_path(tmp_path, "a"))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody has told it to end")
def test_a_job_that_hangs_without_its_engine_is_killed(tmp_path, monkeypatch):
    """Stopped by SIGSTOP it hears no SIGTERM, and would hold its lock for ever."""
    engine = subprocess.Popen([sys.executable, "-c", RUNNER, str(tmp_path), "slow"], stdout=subprocess.DEVNULL)
    wait_until((tmp_path / "runs" / "a" / "ready").exists)
    os.kill(int(starts(tmp_path, "a")[0].split()[0]), signal.SIGSTOP)
    engine.kill()
    engine.wait()
    monkeypatch.setattr(local, "ORPHAN_GRACE_S", 0.5)
    wait_for_orphans(tmp_path)
    assert not is_locked(lock_path(tmp_path, "a"))
    assert make(tmp_path, {"a": "ok", "b": "ok"}).run() == 0


def test_the_line_that_says_why(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"error: of an earlier attempt\n")
    start = log.stat().st_size
    assert last_line(log, start) == "no output"
    with log.open("ab") as file:
        file.write(b"training 3 %\rtraining 4 %\nerror: the cause\n\xff noise after it\n\n")
    assert last_line(log, start) == "error: the cause"
    with log.open("ab") as file:
        file.write(b"x" * 100_000)
    assert last_line(log, start) == "x" * 500
    assert last_line(tmp_path / "nothing", 0) == "no output"


def test_a_job_that_hangs_is_ended_and_leaves_the_others_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_engine, "GRACE_S", 0.2)
    engine = make(tmp_path, {"a": "slow", "b": "deaf", "c": "ok"}, parallel=3, times=(5.0, None))
    assert engine.run() == 1
    assert statuses(tmp_path) == {"a": "failed", "b": "failed", "c": "done"}
    assert [read_state(tmp_path).job(name).exit_code for name in "ab"] == [128 + signal.SIGTERM, -signal.SIGKILL]
    assert "failed  b: sweep.job_time: 5 s are over; no output" in engine.closing_lines()


def test_no_job_starts_after_the_sweeps_time(tmp_path):
    engine = make(tmp_path, {"a": "ok", "b": "ok"}, times=(None, 0.01))
    time.sleep(0.02)
    assert engine.run() == 1
    assert statuses(tmp_path) == {"a": "pending", "b": "pending"}
    assert "sweep.max_time: 0 s are over: 0 of 2 jobs done" in engine.closing_lines()
    assert "go on with" in engine.closing_lines()


class Cluster(LocalBackend):
    """Tasks that wait in a queue, lose their place once, and outlive their engine."""

    def __init__(self, folder, refused=()):
        super().__init__(folder, [Place(None, None)])
        self.refused, self.lost, self.asked, self.kept = refused, set(), 0, {}

    def submit(self, task):
        if task.name in self.refused:
            raise BackendError("no partition of that name")
        handle = super().submit(task)
        return Handle(handle.key, f"node of {task.name}")

    def poll(self, handle):
        self.asked += 1
        if self.asked % 3:
            return Sign("queued")
        if handle.key in self.kept:
            return Sign("ended")  # nobody knows its exit code
        sign = super().poll(handle)
        if sign.phase == "ended" and len(self.lost) < 1:
            self.lost.add(handle.key)
            return Sign("ended", -9, note="node failed", again=True)
        return sign

    def recover(self, started):
        return {name: handle for name, handle in started.items() if handle.key in self.kept}


def test_a_place_that_was_lost_costs_no_attempt(tmp_path, capsys):
    assert make(tmp_path, {"a": "killed then ok", "b": "ok"}, backend=Cluster(tmp_path)).run() == 0
    assert statuses(tmp_path) == {"a": "done", "b": "done"}
    assert "stopped  a: node failed" in capsys.readouterr().out
    assert read_state(tmp_path).job("b").where == "node of b"


def test_what_a_back_end_refuses_is_told_and_the_others_run(tmp_path):
    engine = make(tmp_path, {"a": "ok", "b": "ok"}, backend=Cluster(tmp_path, refused=("a",)))
    assert engine.run() == 1
    assert statuses(tmp_path) == {"a": "failed", "b": "done"}
    assert "failed  a: no partition of that name" in engine.closing_lines()


def test_an_engine_comes_back_to_jobs_that_outlived_it(tmp_path):
    make(tmp_path, {"a": "ok"}).run()
    state = read_state(tmp_path)
    state.job("a").status, state.job("a").handle = "running", "77"
    state.write(tmp_path)
    cluster = Cluster(tmp_path)
    cluster.kept = {"77"}
    assert make(tmp_path, {"a": "ok"}, backend=cluster).run() == 0
    assert statuses(tmp_path) == {"a": "done"}
    assert len(starts(tmp_path, "a")) == 1
