"""The board of recipes: how good a model is after so many seconds, each line tested against the one before.

    make board                                     measure what docs/board.json lacks, then write docs/board.md
    python -m benchmarks.board --budgets 60 300    seconds of training, on one core each
    python -m benchmarks.board --budgets 300 --recipes "ours, pythia_14m" "+ lr 1.2e-2, cosine"
    python -m benchmarks.board --page              only write docs/board.md from docs/board.json

`arxiv`: bits per byte of the validation windows (lower is better). A recipe's tokens are what its steps get through in
the budget, by the processor's clock over some steps in a process of its own: a machine that does other work as well
does not shorten a run. The learning rate goes by the whole plan, so that each budget is a run of its own. The first
line is transformers' Trainer with the same network, tokenizer, windows and learning rate, and its own step.

`location`: seconds of training to a validation median of 254 km, at the first of some forty evaluations that is there
(lower is better), by the processor's clock on one thread; evaluations are left out. The Trainer has its own recipe.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

from scipy import stats

from benchmarks.location import FAST, TARGET_KM, first_below, our_run, peer_process
from benchmarks.rows import commit, processor

RESULTS, PAGE = Path("docs/board.json"), Path("docs/board.md")
PYTHIA = "../shared/tokenizers/pythia"
BPE, MODERN = "data.tokenizer=bpe:4096", "model=modern_small"
RECIPES: dict[str, list[str]] = {
    "Trainer, pythia_14m": [],
    "ours, pythia_14m": [],
    "+ a vocabulary of 4,096": [BPE],
    "+ modern_small": [BPE, MODERN],
    "+ lr 4e-3": [BPE, MODERN, "optimizer.lr=4e-3"],
    "+ Muon": [BPE, MODERN, "optimizer=muon", "optimizer.lr=4e-3", "scheduler=linear"],
    "+ lr 1.2e-2, cosine": [BPE, MODERN, "optimizer=muon", "optimizer.lr=1.2e-2"],
}  # fmt: skip
"""Name of the line -> overrides of `experiment=arxiv`; `+` builds on the line before."""
TRAINER = "Trainer, pythia_14m"
BATCH = 32
PROBE_STEPS, PROBE_WARM_UP = 10, 3
LOCATION_TRAINER = "Trainer, AdamW, 40 epochs"
LOCATION: dict[str, list[str]] = {
    LOCATION_TRAINER: [],
    "ours, AdamW, 40 epochs": [
        "optimizer=adamw", "optimizer.lr=2e-3", "scheduler=linear", "trainer.max_epochs=40"
    ],
    "Muon, 12 epochs": ["optimizer=muon", "optimizer.lr=5e-3", "scheduler=cosine", "trainer.max_epochs=12"],
    "made for speed": [
        "optimizer=muon", "optimizer.lr=5e-3", "scheduler=cosine", "data.global_batch_size=32", "trainer.max_steps=116",
        "callbacks.weight_average=null",
    ],
    "... by a modern network of 3 layers": [*FAST, "trainer.max_steps=60"],
}  # fmt: skip
"""Name of the line -> overrides of `experiment=location`, each complete in itself."""
EVALUATIONS = 40
"""Of a run of `location`: a fortieth of its length is how late one can be."""


def overrides(recipe: str, *, seed: int, steps: int, data: str) -> list[str]:
    """The configuration of one run."""
    return [
        "experiment=arxiv", f"data.path={data}", "data.full_dataset=true", f"data.tokenizer={PYTHIA}",
        f"data.global_batch_size={BATCH}", "hardware=cpu", "hardware.num_threads=1", "precision=fp32",
        "trainer.max_tokens=null", f"trainer.max_steps={steps}", f"trainer.evaluate_every={steps}",
        "trainer.save_every=never", "trainer.limit_test_batches=1", f"seed={seed}", "run.name=board",
        *RECIPES[recipe],
    ]  # fmt: skip


def speed(recipe: str, data: str) -> float:
    """Seconds of the processor that a step takes on one core: the median after some steps."""
    made = build_run(overrides(recipe, seed=0, steps=PROBE_STEPS, data=data))
    took: list[float] = []
    (train_trainer if recipe == TRAINER else train_ours)(made, took)
    return statistics.median(took[PROBE_WARM_UP:])


def trainer_result(seed: int, steps: int, data: str) -> float:
    """Bits per byte of the validation windows after transformers' Trainer has trained."""
    import torch

    from models.language.causal_lm import token_losses

    made = build_run(overrides(TRAINER, seed=seed, steps=steps, data=data))
    train_trainer(made, [])
    datamodule, net = made[1], made[3].net.eval()
    nats = num_bytes = 0.0
    indices = datamodule.evaluated("validation")
    for start in range(0, len(indices), BATCH):
        batch = datamodule.batch("validation", indices[start : start + BATCH])
        nats += float(token_losses(net, batch).nansum(dtype=torch.float64))
        num_bytes += float(batch["num_bytes"].sum())
    return nats / math.log(2) / num_bytes


def our_result(recipe: str, seed: int, steps: int, data: str) -> float:
    """Bits per byte of the validation windows after a run of the command."""
    with tempfile.TemporaryDirectory() as folder:
        words = [*overrides(recipe, seed=seed, steps=steps, data=data), f"run.output_root={folder}"]
        command = [sys.executable, "-m", "lightning_apps.train", *words]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        summary = json.loads((Path(folder) / "arxiv" / "board" / "summary.json").read_text(encoding="utf-8"))
    return float(summary["metrics"]["val/bits_per_byte"])


def build_run(words: list[str]) -> tuple[dict[str, Any], Any, Any, Any]:
    """Configuration, data, plan and module."""
    import torch
    from hydra import compose, initialize_config_dir

    from lightning_apps.config.composition import CONF, plain
    from lightning_apps.runs.build import build_datamodule, build_module, build_plan, quiet_libraries

    torch.set_num_threads(1)
    quiet_libraries()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config = plain(compose("config", overrides=words))
    datamodule: Any = build_datamodule(config)
    plan = build_plan(config, datamodule)
    return config, datamodule, plan, build_module(config, datamodule, plan)


def train_ours(made: tuple[dict[str, Any], Any, Any, Any], took: list[float]) -> None:
    """Train with the project's own step; `took` gets the processor seconds of each."""
    import lightning as L

    from lightning_apps.process.allocator import keep_freed_memory
    from lightning_apps.runs.build import build_step_callbacks, build_trainer

    keep_freed_memory()  # as the command train does
    config, datamodule, plan, module = made

    class Clock(L.Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            self.started = time.process_time()

        def on_train_batch_end(self, *args: Any) -> None:
            took.append(time.process_time() - self.started)

    callbacks = [*build_step_callbacks(config, plan, crash_dumps=None), Clock()]
    build_trainer(config, plan, callbacks=callbacks, loggers=[]).fit(module, datamodule)


def train_trainer(made: tuple[dict[str, Any], Any, Any, Any], took: list[float]) -> None:
    """Train with transformers' Trainer; `took` gets the processor seconds of each step."""
    import numpy as np
    import torch
    from torch.utils.data import Dataset, SequentialSampler
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from datamodules.sampling.step_loader import StepSampler

    config, datamodule, plan, module = made
    steps = plan.total_steps
    sampler = StepSampler(
        num_samples=datamodule.windows_per_epoch, global_batch_size=BATCH, num_steps=steps, seed=config["data"]["seed"]
    )
    order = [(epoch, index) for epoch, indices in sampler for index in indices]

    class Windows(Dataset):
        def __len__(self) -> int:
            return len(order)

        def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
            epoch, index = order[row]
            batch = datamodule.training_batch(np.array([epoch]), np.array([index]))
            return {key: batch[key][0] for key in ("input_ids", "labels")}

    class Clock(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.started = time.process_time()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            took.append(time.process_time() - self.started)

    class InOrder(Trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return SequentialSampler(Windows())

    optimizer = config["optimizer"]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=BATCH,
            max_steps=steps,
            learning_rate=optimizer["lr"],
            lr_scheduler_type="linear",
            warmup_steps=plan.warmup_steps,
            adam_beta1=optimizer["betas"][0],
            adam_beta2=optimizer["betas"][1],
            adam_epsilon=optimizer["eps"],
            weight_decay=optimizer["weight_decay"],
            max_grad_norm=config["trainer"]["clip_norm"],
            logging_steps=50,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
            seed=config["seed"],
        )
        InOrder(model=module.net, args=arguments, train_dataset=Windows(), callbacks=[Clock()]).train()


def in_a_process(*words: object) -> float:
    """The number that this file prints for these arguments."""
    command = [sys.executable, "-m", "benchmarks.board", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr[-3000:])
    return float(done.stdout.splitlines()[-1])


def measure(
    results: dict[str, Any],
    *,
    recipes: Sequence[str],
    budgets: Sequence[int],
    seeds: int,
    data: str,
    save: Callable[[], None],
) -> None:
    """Add what `results` lacks, two runs at a time."""
    version = commit()  # what is saved meanwhile would make it "dirty"
    for recipe in recipes:
        line = results["arxiv"].setdefault(recipe, {"overrides": RECIPES[recipe], "budgets": {}})
        wanted = [
            (budget, seed)
            for budget in budgets
            for seed in range(seeds)
            if str(seed) not in line["budgets"].get(str(budget), {}).get("bits_per_byte", {})
        ]
        if not wanted:
            continue
        if line.get("machine") == processor():  # all budgets of a line by one measurement
            step_s = line["step_s"]
        else:
            step_s = round(in_a_process("--speed", recipe, "--data", data), 4)
        line |= {"commit": version, "date": date.today().isoformat(), "step_s": step_s, "machine": processor()}

        def run(job: tuple[int, int], recipe: str = recipe, step_s: float = step_s) -> tuple[int, int, int, float]:
            budget, seed = job
            steps = max(round(budget / step_s), 10)
            return budget, seed, steps, in_a_process("--run", recipe, "--seed", seed, "--steps", steps, "--data", data)

        with ThreadPoolExecutor(2) as pool:
            for budget, seed, steps, bits in pool.map(run, wanted):
                of_budget = line["budgets"].setdefault(str(budget), {"steps": steps, "bits_per_byte": {}})
                of_budget["bits_per_byte"][str(seed)] = round(bits, 5)
                print(f"{recipe}, {budget} s, seed {seed}: {steps} steps, {bits:.4f} bits per byte", flush=True)
                save()


def location_result(recipe: str, seed: int) -> dict[str, float | None]:
    """Seconds to the target (None: never there) and of the whole run, and the last median in km."""
    if recipe == LOCATION_TRAINER:
        run = peer_process(40, EVALUATIONS, seed, clock="cpu")
    else:
        words = [f"trainer.evaluate_every={1 / EVALUATIONS:.4f}", "trainer.save_every=never", "hardware.num_threads=1"]
        run = our_run(*words, *LOCATION[recipe], seed=seed, clock="cpu")
    reached = first_below(run, TARGET_KM)
    return {
        "reached_s": round(reached["train_s"], 2) if reached else None,
        "train_s": round(run["train_s"], 2),
        "last_km": round(run["points"][-1]["median_km"], 1),
    }


def measure_location(results: dict[str, Any], *, seeds: int, save: Callable[[], None]) -> None:
    """Add what `results` lacks, one run at a time."""
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes to come
    version = commit()  # what is saved meanwhile would make it "dirty"
    for recipe, words in LOCATION.items():
        line = results["location"].setdefault(recipe, {"overrides": words, "seeds": {}})
        for seed in range(seeds):
            if str(seed) in line["seeds"]:
                continue
            line["seeds"][str(seed)] = found = location_result(recipe, seed)
            line |= {"commit": version, "date": date.today().isoformat(), "machine": processor()}
            print(f"{recipe}, seed {seed}: {found}", flush=True)
            save()


def page(results: dict[str, Any]) -> str:
    """docs/board.md."""
    budgets = sorted({int(budget) for line in results["arxiv"].values() for budget in line["budgets"]})
    lines = [
        "# The board",
        "",
        "## `arxiv`: bits per byte after so many seconds",
        "",
        "How good a model is after so many seconds of one core: bits per byte of `arxiv`'s validation windows, lower",
        "is better; mean over seeds with its 95 % t interval, in brackets Welch's p-value against the line before",
        "that was given as long.",
        "Written by `make board` from `docs/board.json`, which has every seed; the recipes stand in",
        "`benchmarks/board.py`. The first line is transformers' Trainer. A recipe is a list of overrides of",
        "`python -m lightning_apps.train experiment=arxiv`.",
        "",
        "| recipe | overrides | s a step | " + " | ".join(f"{budget} s" for budget in budgets) + " | commit, date |",
        "| --- | --- | --- | " + " | ".join("---" for _ in budgets) + " | --- |",
    ]
    before: dict[str, list[float]] = {}
    for recipe, line in results["arxiv"].items():
        cells = []
        for budget in map(str, budgets):
            values = list(line["budgets"].get(budget, {}).get("bits_per_byte", {}).values())
            cells.append(cell(values, before.get(budget, [])))
            before[budget] = values or before.get(budget, [])
        words = " ".join(f"`{word}`" for word in line["overrides"]) or "its own"
        if recipe != TRAINER and not line["overrides"]:
            words = "none"
        lines.append(
            f"| {recipe} | {words} | {line['step_s']:.3g} | {' | '.join(cells)} | {line['commit']}, {line['date']} |"
        )
    machines = sorted({line["machine"] for lines_of in results.values() for line in lines_of.values()})
    lines += location_table(results["location"])
    lines += ["", f"Measured on one core each of: {', '.join(machines)}.", ""]
    return "\n".join(lines)


def location_table(results: dict[str, Any]) -> list[str]:
    """What docs/board.md says of `location`."""
    lines = [
        "",
        f"## `location`: seconds of one core to a validation median of {TARGET_KM:.0f} km",
        "",
        f"Seconds of the processor, training alone, at the first of {EVALUATIONS} evaluations that is there; lower is",
        "better; intervals and tests as above. The next columns say what the whole run takes, and where it ends.",
        "The overrides are those of `python -m lightning_apps.train experiment=location`.",
        "",
        "| recipe | overrides | s to the target | s of the whole run | km at its end | commit, date |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    before: list[float] = []
    for recipe, line in results.items():
        runs = line["seeds"].values()
        reached = [run["reached_s"] for run in runs if run["reached_s"] is not None]
        whole = len(reached) == len(runs)
        first = cell(reached, before, 1) if whole else f"{len(reached)} of {len(runs)} seeds are there"
        before = reached if whole else []
        rest = [cell([run[name] for run in runs], [], digits) for name, digits in (("train_s", 1), ("last_km", 0))]
        words = " ".join(f"`{word}`" for word in line["overrides"]) or "its own"
        lines.append(f"| {recipe} | {words} | {first} | {' | '.join(rest)} | {line['commit']}, {line['date']} |")
    return lines


def cell(values: list[float], before: list[float], digits: int = 3) -> str:
    """Mean, 95 % t interval, and the p-value of Welch's test against the line before."""
    if not values:
        return ""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.{digits}f}"
    half = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    text = f"{mean:.{digits}f} ({mean - half:.{digits}f} to {mean + half:.{digits}f})"
    if len(before) < 2:
        return text
    p = float(stats.ttest_ind(values, before, equal_var=False).pvalue)
    return f"{text} [p {'< 0.001' if p < 0.001 else f'= {p:.2g}'}]"


def main() -> None:
    """Measure and write the page, or one measurement for it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budgets", type=int, nargs="+", default=[60], help="seconds of one core")
    parser.add_argument("--recipes", choices=list(RECIPES), nargs="+", default=list(RECIPES), help="of arxiv")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", default="../shared/data/arxiv", help="data.path")
    parser.add_argument("--page", action="store_true", help="only write the page")
    parser.add_argument("--speed", help=argparse.SUPPRESS)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.speed is not None:
        print(speed(options.speed, options.data))
        return
    if options.run == TRAINER:
        print(trainer_result(options.seed, options.steps, options.data))
        return
    if options.run is not None:
        print(our_result(options.run, options.seed, options.steps, options.data))
        return
    results: dict[str, Any] = {"arxiv": {}, "location": {}}
    if RESULTS.is_file():
        results |= json.loads(RESULTS.read_text(encoding="utf-8"))

    def save() -> None:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        PAGE.write_text(page(results), encoding="utf-8")

    if not options.page:
        measure_location(results, seeds=options.seeds, save=save)
        measure(
            results, recipes=options.recipes, budgets=options.budgets, seeds=options.seeds, data=options.data, save=save
        )
    save()


if __name__ == "__main__":
    main()
