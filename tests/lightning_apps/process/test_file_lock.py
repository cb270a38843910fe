"""A lock is held by one process, and by none that has ended."""

import json
import os
import platform
import subprocess
import sys

import pytest

from lightning_apps.process.file_lock import (
    has_died,
    is_locked,
    lock_owner,
    lock_soon,
    owner_text,
    sign_lock,
    this_process,
    try_lock,
)

HOLD = """
import os, sys, time
from pathlib import Path
from lightning_apps.process.file_lock import sign_lock, try_lock
lock = try_lock(Path(sys.argv[1]))
sign_lock(lock, {"pid": os.getpid()})
print("held", flush=True)
time.sleep(600)
"""


def test_a_lock_is_held_by_one_and_given_up_by_the_dead(tmp_path):
    path = tmp_path / "sweep.lock"
    assert not is_locked(path)
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    assert try_lock(path) is None
    assert lock_soon(path, patience_s=0.1) is None
    assert is_locked(path)
    assert lock_owner(path) == {"pid": holder.pid}
    holder.kill()
    holder.wait()
    assert not is_locked(path)
    assert try_lock(path) is not None


def test_a_lock_outlives_its_taker_in_the_process_that_inherited_it(tmp_path):
    path = tmp_path / "job.lock"
    lock = try_lock(path)
    job = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(lock,))
    os.close(lock)
    assert is_locked(path)
    job.communicate(b"\n")
    assert not is_locked(path)


def test_who_holds_a_lock_may_be_unknown(tmp_path):
    path = tmp_path / "sweep.lock"
    assert lock_owner(path) == {}
    path.write_text("{")
    assert lock_owner(path) == {}
    lock = try_lock(path)
    sign_lock(lock, {"pid": 1, "host": "a"})
    assert json.loads(path.read_text()) == {"pid": 1, "host": "a"}


def test_a_lock_file_that_is_a_link_is_not_written_through(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / ".lock").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic link"):
        try_lock(tmp_path / ".lock")
    assert victim.read_text() == "mine"


def test_what_is_said_of_the_owner(tmp_path):
    path = tmp_path / "a.lock"
    assert owner_text(path) == "process unknown on host unknown"
    lock = try_lock(path)
    sign_lock(lock, {"pid": 12, "host": "a", "since": "2026-11-25 10:00:00 UTC"})
    assert owner_text(path) == "process 12 on host a, since 2026-11-25 10:00:00 UTC"
    assert not has_died(path)  # another host: who knows
    sign_lock(lock, this_process())
    assert not has_died(path)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    sign_lock(lock, {"pid": ended.pid, "host": platform.node()})
    assert has_died(path)
