"""The same command twice, and what a scheduler or a launcher makes of one."""

import json
import os
import platform
import signal
import subprocess
import sys

import pytest

from lightning_apps.errors import ConfigError
from lightning_apps.process.file_lock import sign_lock, this_process, try_lock
from lightning_apps.run_files.directory import RunDirectory
from lightning_apps.runs import run_lock
from lightning_apps.runs.experiment_run import run_experiment
from lightning_apps.runs.run_lock import RunLock
from tests.asserts.killed_runs import resumed
from tests.tiny.tiny_runs import LOCATION, directory_of

RUN = [*LOCATION, "trainer.max_steps=2", "callbacks.extra.picture=null"]
HOLD = """
import sys
from pathlib import Path
from lightning_apps.process.file_lock import sign_lock, this_process, try_lock
lock = try_lock(Path(sys.argv[1]))
sign_lock(lock, this_process())
print("held", flush=True)
input()
"""


@pytest.fixture
def holder_of():
    """holder_of(path) -> a process that holds the lock file."""
    holders = []

    def start(path):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        holders.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in holders:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("key", ["resume", "overwrite"])
def test_a_living_run_is_neither_continued_nor_replaced(key, composed, holder_of):
    config = composed(*RUN, name="taken")
    run_experiment(config)
    directory = directory_of(config)
    again = {**config, "run": {**config["run"], key: {"resume": "auto", "overwrite": True}[key]}}
    before = {path: path.stat().st_mtime_ns for path in directory.path.rglob("*")}
    holder = holder_of(directory.lock)
    with pytest.raises(ConfigError, match=f"is in use by process {holder.pid} on host {platform.node()}, since 20"):
        run_experiment(again)
    assert {path: path.stat().st_mtime_ns for path in directory.path.rglob("*") if path != directory.lock} == {
        path: time for path, time in before.items() if path != directory.lock
    }
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert run_experiment(again)["status"] == "completed"  # a stale lock file is none
    assert run_experiment(resumed(config))["status"] == "completed"  # it was released


def test_of_two_that_start_a_run_at_once_one_goes_on(composed, holder_of):
    config = composed(*RUN, name="race")
    directory = directory_of(config)
    directory.path.mkdir(parents=True)
    holder_of(directory.lock)  # the other has claimed and not yet written
    with pytest.raises(ConfigError, match=r"race is in use by process \d+ on host"):
        run_experiment(config)


def test_a_run_that_another_made_meanwhile_is_not_trained_over(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    lock = RunLock(directory, is_first=True)
    directory.path.mkdir()
    directory.config.write_text("experiment: location\n")
    with pytest.raises(ConfigError, match=r"has made a run in .* meanwhile"):
        lock.take_for_a_new_run()
    assert try_lock(directory.lock) is not None


def test_what_a_killed_run_leaves_behind_is_waited_for(tmp_path, monkeypatch):
    """Its loader processes inherit the lock, and live for seconds after it."""
    directory = RunDirectory(tmp_path)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    lock = try_lock(directory.lock)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1)"], pass_fds=(lock,))
    sign_lock(lock, {**this_process(), "pid": ended.pid})
    os.close(lock)
    taken = RunLock(directory, is_first=True)
    taken.take()
    assert json.loads(directory.lock.read_text())["pid"] == os.getpid()
    taken.release()
    child.wait()
    lock = try_lock(directory.lock)
    sign_lock(lock, {**this_process(), "pid": ended.pid})
    monkeypatch.setattr(run_lock, "PATIENCE_S", 0.2)
    with pytest.raises(ConfigError, match="is in use by process"):
        RunLock(directory, is_first=True).take()


def test_one_process_of_torchrun_is_no_further_process(composed, monkeypatch):
    config = composed(*RUN, name="torchrun")
    run_experiment(config)
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="holds another run"):
        run_experiment(config)


def test_a_further_process_needs_no_lock(tmp_path, holder_of):
    directory = RunDirectory(tmp_path)
    holder_of(directory.lock)
    RunLock(directory, is_first=False).take()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / ".lock").symlink_to(tmp_path / "victim")
    with pytest.raises(ConfigError, match=r"\.lock cannot be written: .*choose another run\.output_root"):
        RunLock(RunDirectory(tmp_path), is_first=True).take()
    assert not (tmp_path / "victim").exists()
