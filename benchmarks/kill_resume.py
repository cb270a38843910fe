"""Kill a run with SIGKILL at random moments, resume it, and compare its ending with the run that was left alone.

    python -m benchmarks.kill_resume --kills 50

Real data (GeoNames cities), two micro-batches a window, dropout, a moving average of weights, evaluations and
checkpoints every few steps. Each trial is killed once at a moment drawn uniformly from the time between the first
logged step and the last checkpoint of the uninterrupted run, and then resumed by the same command with
run.resume=auto. Two
endings are the same if every tensor of the last checkpoint (weights, average, optimizer), every logged loss and norm,
and every answer in predictions.jsonl is the same, bit for bit.
"""

import argparse
import collections
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from lightning_apps.diagnostics.run_comparison import differences
from lightning_apps.run_files.directory import RunDirectory
from lightning_apps.run_files.metrics_csv import read_metrics

RUN = [
    "experiment=location", "hardware=cpu", "model.hidden_size=32", "model.num_hidden_layers=2",
    "model.intermediate_size=64", "model.attention_dropout=0.1", "data.min_population=1000000",
    "data.num_validation=32", "data.global_batch_size=32", "data.device_batch_size=20",
    "trainer.max_epochs=null", "trainer.max_steps=240", "trainer.evaluate_every=17", "trainer.save_every=5",
    "callbacks.checkpoints.keep=3", "callbacks.extra.picture=null",
]  # fmt: skip


def start(root: Path, name: str, *more: str) -> subprocess.Popen[bytes]:
    """Start the train command."""
    command = [sys.executable, "-m", "lightning_apps.train", *RUN, f"run.output_root={root}", f"run.name={name}", *more]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def wait_for_first_step(directory: RunDirectory, process: subprocess.Popen[bytes]) -> None:
    """Return once a row of metrics.csv is there."""
    while process.poll() is None:
        if directory.metrics.exists() and directory.metrics.read_bytes().count(b"\n") > 1:
            return
        time.sleep(0.001)


def ending(directory: RunDirectory) -> dict[str, Any]:
    """All that two runs must have in common."""
    state = torch.load(directory.checkpoint("last"), weights_only=True)
    rows = [
        {key: value for key, value in row.items() if key not in ("train/tokens_per_s", "train/mfu")}
        for row in read_metrics(directory.metrics)
    ]
    return {"state": state, "rows": rows, "predictions": directory.predictions.read_text()}


def main() -> None:
    """Run the trials."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("overrides", nargs="*", help="of all runs, such as callbacks.checkpoints.write=background")
    options = parser.parse_args()
    RUN.extend(options.overrides)
    moments = random.Random(options.seed)
    identical, killed_at, after_end, started = 0, collections.Counter[int](), 0, time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        whole = RunDirectory(root / "location" / "whole")
        process = start(root, "whole")
        wait_for_first_step(whole, process)
        began = time.time()
        process.wait()
        length_s = whole.checkpoint("last").stat().st_mtime - began
        expected = ending(whole)
        print(
            f"uninterrupted: {len(expected['rows'])} steps, {length_s:.1f} s from the first to the last checkpoint",
            flush=True,
        )
        for trial in range(options.kills):
            directory = RunDirectory(root / "location" / f"trial{trial}")
            process = start(root, directory.path.name)
            wait_for_first_step(directory, process)
            time.sleep(moments.uniform(0, length_s))
            process.send_signal(signal.SIGKILL)
            process.wait()
            after_end += process.returncode == 0
            rows = read_metrics(directory.metrics)
            killed_at[rows[-1]["step"] if rows else 0] += 1
            resumed = start(root, directory.path.name, "run.resume=auto")
            _, error = resumed.communicate()
            if resumed.returncode != 0:
                print(f"trial {trial}: resuming failed: {error.decode().strip().splitlines()[-1:]}", flush=True)
                continue
            found = differences(expected, ending(directory))
            identical += not found
            if found:
                print(f"trial {trial}, killed after step {rows[-1]['step']}: differs at {found[:5]}", flush=True)
            if trial % 10 == 9:
                print(f"{trial + 1} kills: {identical} identical endings", flush=True)
    steps = sorted(killed_at.elements())
    result = {
        "kills": options.kills,
        "identical_endings": identical,
        "already_over": after_end,
        "distinct_steps": len(killed_at),
        "first_and_last_step": [steps[0], steps[-1]],
        "wall_s": round(time.monotonic() - started),
    }
    print(json.dumps(result))
    sys.exit(identical != options.kills)


if __name__ == "__main__":
    main()
