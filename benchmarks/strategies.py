"""Several processes against one: losses, metrics and seconds a step of each experiment; what happens when one dies.

    python -m benchmarks.strategies losses --ranks 2 4      # a table: run, strategy, processes, difference, s a step
    python -m benchmarks.strategies deaths --times 5        # a table: who was ended and how, s until all are gone, bits

On CPUs, over gloo. A death is one of: a further process killed, the first process killed, SIGTERM to the first process,
Ctrl-C to all; then the run is resumed, and its end is compared with that of a run that nobody stopped.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from lightning_apps.diagnostics.run_comparison import differences
from lightning_apps.experiments.gsm8k.small_files import write_small_files
from lightning_apps.run_files.metrics_csv import read_metrics
from tests.fakes.ranks import largest_difference, run_on_ranks
from tests.tiny.tiny_runs import ARXIV, IMDB, LOCATION, RATING

COMMON = ["callbacks.extra.picture=null", "hardware.num_threads=1", "trainer.log_every=1"]
SMALL = {
    "location": [*LOCATION[:-1], "model.num_hidden_layers=2", "data.global_batch_size=16", "trainer.max_steps=20"],
    "gsm8k": [
        "experiment=gsm8k", "{gsm8k}", "data.num_validation=6", "data.max_length=160", "data.global_batch_size=8",
        "trainer.max_epochs=null", "trainer.max_steps=10", "trainer.evaluate_every=10", "optimizer.lr=1e-3",
        "callbacks.extra.generation.num_samples=4", "callbacks.extra.generation.max_new_tokens=8",
        "data.max_test_samples=4",
    ],
    "arxiv": [*ARXIV[:-1], "trainer.max_tokens=2720"],
    "imdb": [*IMDB[:-1], "data.global_batch_size=8", "data.device_batch_size=2", "trainer.max_steps=20",
             "model.hidden_dropout=0", "model.classifier_dropout=0"],
    "rating": [*(word for word in RATING if word != "hardware=cpu"), "data.device_batch_size=2",
               "data.global_batch_size=8", "trainer.max_steps=10", "trainer.max_epochs=null"],
}  # fmt: skip
HEADLINES = {
    "location": "val/valid_ratio", "gsm8k": "val/accuracy_numeric", "arxiv": "val/perplexity", "imdb": "val/accuracy",
    "rating": "val/f1_macro",
}  # fmt: skip


def train_all(root: Path, hardware: str, ranks: int, gsm8k: Sequence[str]) -> dict[str, Path]:
    """Train each experiment; its run directory."""
    runs, found = [], {}
    for name, words in SMALL.items():
        folder = f"{hardware}-{ranks}"
        where = [f"run.output_root={root}", f"run.cache_root={root / 'cache'}", f"run.name={folder}"]
        given = [other for word in words for other in (gsm8k if word == "{gsm8k}" else [word])]
        devices = [] if ranks == 1 else [f"hardware.devices={ranks}"]
        runs.append([*given, *COMMON, f"hardware={hardware}", *devices, *where])
        found[name] = root / name / folder
    run_on_ranks(ranks, runs, root)
    return found


def seconds_a_step(run: Path) -> float:
    """Median over steps but the first."""
    summary = json.loads((run / "summary.json").read_text())
    return float(summary["train_s"]) / summary["optimizer_steps"]


def compare_losses(root: Path, ranks: Sequence[int]) -> None:
    """Print the table of losses."""
    gsm8k = write_small_files(root / "gsm8k-files")
    one = train_all(root, "cpu", 1, gsm8k)
    print("| run | strategy | processes | largest relative difference | final metric (one process) | s a step |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, run in one.items():
        print(f"| {name} | - | 1 | | {final(run, name)} | {seconds_a_step(run):.4f} |")
    for hardware in ("cpu_ddp", "cpu_fsdp"):
        for count in ranks:
            for name, run in train_all(root, hardware, count, gsm8k).items():
                worst = largest_difference(one[name], run)
                metrics = f"{final(run, name)} ({final(one[name], name)})"
                step_s = seconds_a_step(run)
                print(f"| {name} | {hardware} | {count} | {worst:.1e} | {metrics} | {step_s:.4f} |", flush=True)


def final(run: Path, name: str) -> str:
    """The headline metric at the end."""
    value = json.loads((run / "summary.json").read_text())["metrics"][HEADLINES[name]]
    return f"{HEADLINES[name]} {value:.6g}" if value is not None else "-"


DEATHS = ("a further process killed", "the first process killed", "SIGTERM to the first", "Ctrl-C to all")


def processes_of(group: int) -> list[int]:
    """Processes of a group that still run; zombies count."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group:
            found.append(int(path.parent.name))
    return found


def start(root: Path, name: str, hardware: str, *words: str) -> subprocess.Popen[bytes]:
    """A run in a process group of its own."""
    where = [f"run.output_root={root}", f"run.cache_root={root / 'cache'}", f"run.name={name}"]
    steps = ["trainer.max_steps=400", "trainer.evaluate_every=100", "trainer.save_every=20"]
    command = [sys.executable, "-m", "lightning_apps.train", *SMALL["location"][:-1], *steps, *COMMON]
    with (root / f"{name}.txt").open("ab") as output:
        return subprocess.Popen(
            [*command, f"hardware={hardware}", *where, *words], stdout=output, stderr=output, start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip


def steps_of(run: Path) -> int:
    """Completed steps that are logged."""
    path = run / "metrics.csv"
    return max((int(row["step"]) for row in read_metrics(path)), default=0) if path.exists() else 0


def die(root: Path, hardware: str, death: str, number: int, whole: Path) -> str:
    """One row of the table of deaths."""
    name = f"{hardware}-{DEATHS.index(death)}-{number}"
    process, run = start(root, name, hardware), root / "location" / name
    while steps_of(run) < 45 + 17 * number and process.poll() is None:
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    began = time.monotonic()
    if death == DEATHS[0]:
        os.kill(int(children[-1]), signal.SIGKILL)
    elif death == DEATHS[1]:
        process.kill()
    elif death == DEATHS[2]:
        process.terminate()
    else:
        os.killpg(process.pid, signal.SIGINT)
    code = process.wait()
    while processes_of(process.pid):
        time.sleep(0.05)
    gone_s, stopped_at = time.monotonic() - began, steps_of(run)
    assert start(root, name, hardware, "run.resume=auto").wait() == 0, (root / f"{name}.txt").read_text()[-2000:]
    first, second = (torch.load(path / "checkpoints" / "last.ckpt", weights_only=True) for path in (whole, run))
    same = "yes" if not differences(first, second) else "NO"
    return f"| {hardware} | {death} | {stopped_at} | {code} | {gone_s:.1f} | {same} |"


def compare_deaths(root: Path, times: int, hardware: Sequence[str]) -> None:
    """Print the table of deaths."""
    print("| strategy | what | at step | exit code | s until all are gone | resumed to the same bits |")
    print("| --- | --- | --- | --- | --- | --- |")
    for strategy in hardware:
        assert start(root, f"whole-{strategy}", strategy).wait() == 0, (root / f"whole-{strategy}.txt").read_text()
    for number in range(times):
        for death in DEATHS:
            strategy = hardware[number % len(hardware)]
            print(die(root, strategy, death, number, root / "location" / f"whole-{strategy}"), flush=True)


def main() -> None:
    """Print one of the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=["losses", "deaths"])
    parser.add_argument("--ranks", type=int, nargs="+", default=[2])
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--hardware", nargs="+", default=["cpu_ddp", "cpu_fsdp"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.table == "losses":
            compare_losses(Path(folder), options.ranks)
        else:
            compare_deaths(Path(folder), options.times, options.hardware)


if __name__ == "__main__":
    main()
