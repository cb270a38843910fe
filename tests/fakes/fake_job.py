"""Stands for a train process in the tests of the sweep's runner: argv is a run directory and what to do."""

import json
import os
import signal
import sys
import time
from pathlib import Path

from lightning_apps.process.parent_death import stop_with_parent


def summary(directory: Path, status: str, reason: str, code: int) -> None:
    content = {"status": status, "reason": reason, "wall_s": 0.5, "metrics": {"val/loss": 1.25}, "best": None}
    (directory / "summary.json").write_text(json.dumps(content))
    sys.exit(code)


def main() -> None:
    stop_with_parent()
    directory, behaviour = Path(sys.argv[1]), sys.argv[2]
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "starts").open("a") as file:
        print(os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("OMP_NUM_THREADS"), file=file)
    first = (directory / "starts").read_text().count("\n") == 1
    if behaviour == "fail" or (behaviour == "flaky" and first):
        print("some noise\nerror: boom \x1b[31mred", file=sys.stderr)
        summary(directory, "failed", "RuntimeError: boom", 1)
    if behaviour == "wrong":
        print("error: optimizer.lr=-1: not negative", file=sys.stderr)
        sys.exit(2)
    if behaviour == "killed" or (behaviour == "killed then ok" and first):
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour == "no summary":
        print("goodbye")
        sys.exit(0)
    if behaviour == "time is up":
        summary(directory, "stopped", "trainer.max_time: 5 s are over", 0)
    if behaviour == "slow":
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(signum, lambda number, _: summary(directory, "stopped", "signal", 128 + number))
        (directory / "ready").touch()
        time.sleep(600)
    if behaviour == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        (directory / "ready").touch()
        time.sleep(600)
    time.sleep(0.05)
    summary(directory, "completed", "reached the end", 0)


if __name__ == "__main__":
    main()
