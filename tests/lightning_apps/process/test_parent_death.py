import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_apps.process.parent_death import PARENT_VARIABLE, stop_with_parent

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent died")
ROOT = Path(__file__).parents[3]

CHILD = """
import os, signal, time
from lightning_apps.process.parent_death import stop_with_parent
signal.signal(signal.SIGTERM, lambda *_: (print("told", flush=True), os._exit(0)))
stop_with_parent()
print("ready", flush=True)
time.sleep(600)
print("forgotten", flush=True)
"""
PARENT = f"""
import os, subprocess, sys, time
environment = {{**os.environ, {PARENT_VARIABLE!r}: str(os.getpid())}}
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}], env=environment)
time.sleep(600)
"""


def test_a_child_is_told_when_its_parent_is_killed():
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert parent.stdout.readline() == "ready\n"
    parent.kill()
    assert parent.stdout.read() == "told\n"  # ends when the child, who holds the pipe, ends
    parent.wait()


def test_a_parent_that_died_before_the_child_could_ask():
    environment = {**os.environ, PARENT_VARIABLE: "1"}
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert (done.returncode, done.stdout) == (128 + signal.SIGTERM, "")


def test_nothing_happens_outside_of_a_sweep(monkeypatch):
    monkeypatch.delenv(PARENT_VARIABLE, raising=False)
    stop_with_parent()
    assert PARENT_VARIABLE not in os.environ
