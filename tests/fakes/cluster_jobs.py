"""Jobs of a cluster that only pretend to train: they wait, answer signals, and end with a code."""

import sys
import time
from pathlib import Path

from lightning_apps.sweeps.backends.backend import Handle, Sign, Task

JOB = """
import signal, sys, time
def end(number, _):
    print("signal", number, flush=True)
    sys.exit(128 + number)
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, end)
print("started", flush=True)
time.sleep(float(sys.argv[1]))
sys.exit(int(sys.argv[2]))
"""


def task(folder: Path, name: str, seconds: float = 0.0, code: int = 0, **changes) -> Task:
    command = [sys.executable, "-c", JOB, str(seconds), str(code)]
    return Task(
        name=name, command=command, log=folder / f"{name}.log", **{"accelerator": "cpu", "devices": 1, **changes}
    )


def wait(backend, handle: Handle, phase: str) -> Sign:
    until = time.monotonic() + 120
    while (sign := backend.poll(handle)).phase != phase:
        assert time.monotonic() < until, sign
        time.sleep(0.05)
    return sign
