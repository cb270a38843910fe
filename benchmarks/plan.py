"""What `plan` forecasts against what runs then measure: peak memory of the process, and time of Trainer.fit.

    python -m benchmarks.plan                 thirteen runs on a CPU, ten minutes on two cores
    python -m benchmarks.plan --only lora     those whose name has the word
    OMP_NUM_THREADS=1 python -m benchmarks.plan --clock cpu     where other programs disturb: seconds of the processor

Memory is that of a whole process, as summary.json has it, so that small runs are mostly Python and libraries; the last
column leaves what there was before the model out of both, where the forecast can be wrong. Runs need no network.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L

from lightning_apps.experiments.arxiv.small_files import write_small_files

WIDE = "experiment=location model.hidden_size=384 model.intermediate_size=1536 data.global_batch_size=256 \
trainer.max_steps=12 trainer.evaluate_every=6 trainer.save_every=never callbacks.weight_average=null"
IMDB = "experiment=imdb model=minilm data.dataset=synthetic trainer.max_epochs=6 trainer.evaluate_every=0.25"
FIT = "seconds-of-fit"
CASES = {
    "location": "experiment=location trainer.max_steps=100",
    "location muon": "experiment=location trainer.max_steps=100 optimizer=muon",
    "location schedule_free": "experiment=location trainer.max_steps=100 optimizer=schedule_free \
callbacks.weight_average=null",
    "wide": WIDE,
    "wide micro-batches of 64": f"{WIDE} data.device_batch_size=64",
    "wide checkpointing": f"{WIDE} hardware.gradient_checkpointing=true",
    "wide bf16_mixed": f"{WIDE} precision=bf16_mixed",
    "wide bf16_true": f"{WIDE} precision=bf16_true",
    "imdb": IMDB,
    "imdb frozen": f"{IMDB} optimizer.freeze=['embeddings','layer.[0-3]']",
    "imdb lora": f"{IMDB} model.lora.rank=8 optimizer.lr=1e-3",
    "rating": "experiment=rating model=hierarchical_tiny data.dataset=synthetic data.chunk_size=32 data.stride=16 \
trainer.max_epochs=2",
    "arxiv": "experiment=arxiv data.sequence_length=33 data.full_dataset=true data.global_batch_size=64 \
trainer.max_tokens=300000",
}


def call(command: str, words: list[str], clock: str) -> str:
    """Output of a command of the project, in a process of its own.

    Raises:
        RuntimeError: it failed; with what it said last.
    """
    line = [sys.executable, "-m", "benchmarks.plan", "--child", command, clock, *words]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip().splitlines()[-1:]}")
    return done.stdout


def child(command: str, clock: str, *words: str) -> None:
    """Run a command, and print how long `Trainer.fit` took."""
    if clock == "cpu":
        time.perf_counter = time.process_time
    fit: Any = L.Trainer.fit

    def timed_fit(*arguments: Any, **options: Any) -> None:
        start = time.perf_counter()
        try:
            fit(*arguments, **options)
        finally:
            print(f"{FIT} {time.perf_counter() - start}", flush=True)

    vars_of_trainer: Any = L.Trainer
    vars_of_trainer.fit = timed_fit
    sys.argv = [command, *words]
    importlib.import_module(f"lightning_apps.{command}").main()


def main() -> None:
    """Plan, run, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="part of the names of the runs")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: seconds of the processor")
    options = parser.parse_args()
    print(f"{'':26}{'memory, MB':>22}{'':8}{'seconds':>16}{'':8}{'load':>5}{'beyond process':>16}")
    print(f"{'':26}{'plan':>11}{'run':>11}{'':8}{'plan':>8}{'run':>8}")
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        small = write_small_files(root / "papers")
        for case, text in CASES.items():
            if options.only not in case:
                continue
            words = [*text.split(), "hardware=cpu", f"run.cache_root={root / 'cache'}", "run.name=run"]
            words += [f"run.output_root={root / case}", *(small if "arxiv" in case else [])]
            call("prepare", words, options.clock)
            forecast = json.loads(call("plan", [*words, "format=json"], options.clock).strip().splitlines()[-1])
            trained = call("train", words, options.clock)
            (folder,) = (root / case).glob("*/run")
            measured = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["peak_memory_bytes"]
            parts = forecast["memory"]["one device"]
            planned, process = sum(parts.values()), parts["process"]
            plan_s = 3600 * forecast["hours"]
            (run_s,) = (float(line.split()[1]) for line in trained.splitlines() if line.startswith(FIT))
            print(
                f"{case:26}{planned / 1e6:11,.0f}{measured / 1e6:11,.0f}{planned / measured - 1:+8.1%}"
                f"{plan_s:8.1f}{run_s:8.1f}{plan_s / run_s - 1:+8.0%}{os.getloadavg()[0]:5.1f}"
                f"{(planned - process) / (measured - process) - 1:+16.1%}",
                flush=True,
            )


if __name__ == "__main__":
    child(*sys.argv[2:]) if sys.argv[1:2] == ["--child"] else main()
