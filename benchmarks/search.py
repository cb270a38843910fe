"""Search against random search, at the same budget: `python -m benchmarks.search --trials 40 --places 2 --seeds 3`.

Trains the experiment `location` at a tiny size on the CPU, each search in a sweep of its own below --out, and prints a
row for each: the best objective after a quarter, half and all of the trials, the share of time that places were idle
while there was work, the trials that the pruner gave up and the time that it saved. A second start reads what is there.
"""

import argparse
import datetime
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_apps.run_files.directory import RunDirectory, whole_summary

TINY = [
    "experiment=location", "hardware=cpu", "model.num_hidden_layers=1", "model.num_attention_heads=2",
    "model.num_key_value_heads=2", "model.intermediate_size=32", "data.min_population=3000000",
    "data.num_validation=24", "data.global_batch_size=16", "callbacks.extra.picture=null", "trainer.evaluate_every=0.1",
]  # fmt: skip
SPACE = [
    "optimizer.lr=tag(log,interval(1e-5,1e-1))",
    "model.hidden_size=range(16,65,16)",
    "optimizer.weight_decay=interval(0,0.3)",
    "scheduler=constant,linear,cosine",
]
OBJECTIVE = "val/loss"


def search(name: str, sampler: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Run one search, or find it complete; returns what its sweep.json holds."""
    words = [
        "sweep.search=optuna", f"sweep.objective={OBJECTIVE}", f"sweep.sampler={sampler}", f"sweep.seed={seed}",
        f"sweep.trials={options.trials}", f"sweep.parallel={options.places}", f"sweep.name={name}",
        f"trainer.max_steps={options.steps}", f"run.output_root={options.out}",
    ]  # fmt: skip
    if sampler == "tpe":
        words.append(f"sweep.pruner={options.pruner}")
    subprocess.run([sys.executable, "-m", "lightning_apps.train", "--multirun", *TINY, *words, *SPACE], check=False)
    state: dict[str, Any] = json.loads((options.out / "sweeps" / name / "sweep.json").read_text(encoding="utf-8"))
    return state


def best_so_far(trials: Sequence[Mapping[str, Any]]) -> list[float]:
    """The lowest value up to each trial; infinite before the first that is complete."""
    best, found = [], float("inf")
    for trial in trials:
        if trial["state"] == "complete":
            found = min(found, trial["values"][0])
        best.append(found)
    return best


def idle_share(jobs: Sequence[Mapping[str, Any]], places: int) -> float:
    """Share of the places' time without a job, from the first start to the last: after it there is no work to give."""
    spans = [
        [datetime.datetime.fromisoformat(job[key]).timestamp() for key in ("started_at", "ended_at")] for job in jobs
    ]
    first, last = min(start for start, _ in spans), max(start for start, _ in spans)
    busy = sum(min(end, last) - start for start, end in spans)
    return 1 - busy / (places * (last - first)) if last > first else 0.0


def saved_s(jobs: Sequence[Mapping[str, Any]]) -> float:
    """Seconds that the steps of jobs would have taken which the pruner spared, at each job's own speed."""
    total = 0.0
    for job in jobs:
        summary = whole_summary(RunDirectory(Path(job["run_directory"])))
        if job["status"] == "pruned" and summary and summary["optimizer_steps"]:
            left = summary["planned_steps"] - summary["optimizer_steps"]
            total += summary["train_s"] / summary["optimizer_steps"] * left
    return total


def main() -> None:
    """Run every search and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--places", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--pruner", default="median", choices=["median", "hyperband", "null"])
    parser.add_argument("--out", type=Path, default=Path("outputs/search_benchmark"))
    options = parser.parse_args()
    rows = []
    for seed in range(options.seeds):
        for sampler in ("tpe", "random"):
            state = search(f"{sampler}-{seed}", sampler, seed, options)
            trials = [trial for _, trial in sorted(state["search"]["trials"].items(), key=lambda entry: int(entry[0]))]
            best = best_so_far(trials)
            jobs = [job for job in state["jobs"] if job["ended_at"]]
            rows.append(
                [
                    sampler, seed, *(f"{best[max(0, len(best) * part // 4 - 1)]:.4f}" for part in (1, 2, 4)),
                    f"{idle_share(jobs, options.places):.1%}", sum(trial["state"] == "pruned" for trial in trials),
                    f"{saved_s(jobs):.0f}", sum(trial["state"] == "fail" for trial in trials),
                ]
            )  # fmt: skip
    head = ["sampler", "seed", "best 1/4", "best 1/2", "best", "idle", "pruned", "saved s", "failed"]
    for row in [head, *rows]:
        print("  ".join(f"{cell!s:>9}" for cell in row))


if __name__ == "__main__":
    main()
