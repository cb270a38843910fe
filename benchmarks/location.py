"""`location` against transformers' Trainer: same model, data and machine, run in turn in one session.

    python -m benchmarks.location                  speed at identical settings, then time to a median of 254 km
    python -m benchmarks.location --repeats 3      each pair three times, with spread

Every run is a process of its own. Times are training times: evaluations, start-up and imports are left out for both.
The Trainer gets its own recipe (AdamW 1e-3, batch 128, linear schedule, 40 epochs); ours is the experiment's recipe
made for speed: modern_small with three layers, Muon at 3e-2, batch 32, cosine, 1.8 epochs, the weights themselves and
no average.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from benchmarks.rows import add_row

TARGET_KM = 254.0
CPU = ["hardware=cpu", "precision=fp32"]
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
FAST = [
    "model=modern_small", "model.num_hidden_layers=3", "optimizer=muon", "optimizer.lr=3e-2", "scheduler=cosine",
    "data.global_batch_size=32", "callbacks.weight_average=null",
]  # fmt: skip


def peer_run(epochs: float, num_evaluations: int, seed: int, now: Callable[[], float]) -> dict[str, Any]:
    """Train with transformers' Trainer in this process; steps, seconds by `now` and the evaluations' medians."""
    import numpy as np
    import torch
    from torch.utils.data import Dataset
    from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

    from datamodules.location import IGNORED
    from lightning_apps.experiments.location.great_circle import answer_distances_km, location_metrics
    from lightning_apps.runs.build import quiet_libraries
    from models.decoding.generation import generate_greedy

    quiet_libraries()
    config, data = location_data(blend_cities=1)
    set_seed(seed)
    model = {key: value for key, value in config["model"].items() if key != "_target_"}
    from models.language.causal_lm import qwen2

    net = qwen2(**data.net_arguments, **model)
    rows = data.rows["train"]

    class Sentences(Dataset):
        def __len__(self) -> int:
            return len(rows)

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            ids = torch.from_numpy(data.tokens[rows[index]].astype(np.int64))
            labels = ids.clone()
            labels[: data.prompt_length] = IGNORED
            return {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}

    steps_per_epoch = -(-len(rows) // 128)
    total_steps = round(steps_per_epoch * epochs)
    evaluate_at = {round(total_steps * part / num_evaluations) for part in range(1, num_evaluations + 1)}
    points: list[dict[str, float]] = []
    clock = {"start": 0.0, "paused": 0.0}

    class Evaluate(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            clock["start"] = now()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step not in evaluate_at:
                return
            began = now()
            elapsed_s = began - clock["start"] - clock["paused"]
            answers = generate_greedy(
                net, list(data.prompts("validation")), max_new_tokens=10, batch_size=128, pad_token_id=0, eos_token_id=1
            )
            distances = answer_distances_km(data.tokenizer.batch_decode(answers), *data.coordinates("validation"))
            median = location_metrics(distances)["haversine_km_median_penalized"]
            points.append({"step": state.global_step, "train_s": elapsed_s, "median_km": median})
            clock["paused"] += now() - began

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=128,
            learning_rate=1e-3,
            lr_scheduler_type="linear",
            warmup_steps=round(0.05 * total_steps),
            max_steps=total_steps,
            logging_steps=50,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            seed=seed,
        )
        Trainer(model=net, args=arguments, train_dataset=Sentences(), callbacks=[Evaluate()]).train()
    return {"steps": total_steps, "train_s": points[-1]["train_s"], "points": points}


def location_data(*, blend_cities: int) -> tuple[dict[str, Any], Any]:
    """Configuration and data of the experiment."""
    from hydra import compose, initialize_config_dir

    from lightning_apps.config.composition import CONF, plain
    from lightning_apps.runs.build import build_datamodule

    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config = plain(compose("config", overrides=[*CPU, "run.name=bench", f"data.blend_cities={blend_cities}"]))
    return config, build_datamodule(config)


def our_run(*overrides: str, seed: int, clock: str = "wall") -> dict[str, Any]:
    """Train with the project's command in a process of its own; steps, seconds and the evaluations' medians."""
    with tempfile.TemporaryDirectory() as folder:
        return child(
            "--clock", clock, "--ours", *CPU, f"seed={seed}", *overrides,
            "callbacks.extra.picture=null", f"run.output_root={folder}", "run.name=bench",
        )  # fmt: skip


def train_and_watch(words: list[str], now: Callable[[], float]) -> dict[str, Any]:
    """Run the command train; all of `Trainer.fit` counts but the evaluations and the checkpoints that follow them."""
    import lightning as L

    from lightning_apps.train import main

    points: list[dict[str, float]] = []
    clock = {"start": 0.0, "paused": 0.0, "evaluation": 0.0}

    class First(L.Callback):
        def on_train_start(self, *args: Any) -> None:
            clock["start"] = now()

        def on_validation_start(self, *args: Any) -> None:
            clock["evaluation"] = now()

    class Last(L.Callback):
        def on_validation_end(self, trainer: L.Trainer, *args: Any) -> None:
            elapsed_s = clock["evaluation"] - clock["start"] - clock["paused"]
            median = float(trainer.callback_metrics["val/haversine_km_median_penalized"])
            points.append({"step": trainer.global_step, "train_s": elapsed_s, "median_km": median})
            clock["paused"] += now() - clock["evaluation"]

    fit: Any = L.Trainer.fit

    def watched(trainer: Any, *arguments: Any, **options: Any) -> None:
        callbacks = trainer.callbacks
        trainer.callbacks = [First(), *callbacks, Last()]  # Lightning has put its checkpoints last by now
        fit(trainer, *arguments, **options)
        trainer.callbacks = callbacks

    vars_of_trainer: Any = L.Trainer
    vars_of_trainer.fit = watched
    sys.argv = ["train", *words]
    main()
    return {"steps": points[-1]["step"], "train_s": points[-1]["train_s"], "points": points}


def peer_process(epochs: float, num_evaluations: int, seed: int, *, clock: str = "wall") -> dict[str, Any]:
    """peer_run in a process of its own."""
    return child("--clock", clock, "--peer", epochs, "--evaluations", num_evaluations, "--seed", seed)


def child(*words: object) -> dict[str, Any]:
    """What this file prints last for these arguments, in a process of its own.

    Raises:
        RuntimeError: it failed; with what it said last.
    """
    command = [sys.executable, "-m", "benchmarks.location", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def first_below(run: dict[str, Any], km: float) -> dict[str, float] | None:
    """The first evaluation at or under a median of `km`."""
    return next((point for point in run["points"] if point["median_km"] <= km), None)


def main() -> None:
    """Run the comparison, or one peer run for it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1, help="pairs of runs, each with another seed")
    parser.add_argument("--epochs", type=float, default=1.8, help="length of our run to the target")
    parser.add_argument("--peer-epochs", type=float, default=40, help="length of the Trainer's run to the target")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: seconds of the processor")
    parser.add_argument("--peer", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--ours", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--evaluations", type=int, default=10, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer is not None:
        print(json.dumps(peer_run(options.peer, options.evaluations, options.seed, CLOCKS[options.clock])))
        return
    if options.ours is not None:
        print(json.dumps(train_and_watch(options.ours, CLOCKS[options.clock])))
        return

    identical = [
        "data.global_batch_size=128",
        "data.blend_cities=1",
        "optimizer=adamw",
        "optimizer.lr=1e-3",
        "scheduler=linear",
        "trainer.max_epochs=5",
        "callbacks.weight_average=null",
    ]
    print("speed at identical settings (batch 128, AdamW, 45 steps), steps/s", flush=True)
    ratios: list[float] = []
    pairs: list[list[float]] = []
    for seed in range(options.repeats):
        ours = our_run(
            *identical, "trainer.evaluate_every=45", "trainer.save_every=never", seed=seed, clock=options.clock
        )
        peer = peer_process(5, 1, seed, clock=options.clock)
        speeds = [run["steps"] / run["train_s"] for run in (ours, peer)]
        pairs.append(speeds)
        ratios.append(speeds[0] / speeds[1])
        print(f"  seed {seed}: ours {speeds[0]:.2f}, Trainer {speeds[1]:.2f}, ratio {ratios[-1]:.2f}", flush=True)
    print(f"  median ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})", flush=True)
    mine, theirs = zip(*pairs, strict=True)
    add_row("location, identical, fp32", peer="transformers' Trainer", unit="steps/s", ours=mine, theirs=theirs)

    print(f"training seconds to a validation median of {TARGET_KM:.0f} km", flush=True)
    shares: list[float] = []
    pairs = []
    for seed in range(options.repeats):
        ours = our_run(
            *FAST, f"trainer.max_epochs={options.epochs}", "trainer.save_every=never", seed=seed, clock=options.clock
        )
        peer = peer_process(options.peer_epochs, 10, seed, clock=options.clock)
        for name, run in (("ours", ours), ("Trainer", peer)):
            reached, last, best = (
                first_below(run, TARGET_KM),
                run["points"][-1],
                min(p["median_km"] for p in run["points"]),
            )
            first = f"at {reached['train_s']:.1f} s" if reached else "never"
            print(
                f"  seed {seed} {name:8} reached {first}; whole run {run['train_s']:.1f} s, "
                f"final {last['median_km']:.0f} km, best {best:.0f} km",
                flush=True,
            )
        reached_ours, reached_peer = first_below(ours, TARGET_KM), first_below(peer, TARGET_KM)
        if reached_ours and reached_peer:
            pairs.append([reached_ours["train_s"], reached_peer["train_s"]])
            shares.append(reached_ours["train_s"] / reached_peer["train_s"])
            whole = ours["train_s"] / peer["train_s"]
            print(f"  seed {seed} ours / Trainer: {shares[-1]:.2f} to the target, {whole:.2f} whole runs", flush=True)
    if shares:
        print(f"  median {statistics.median(shares):.2f} ({min(shares):.2f} to {max(shares):.2f})")
        mine, theirs = zip(*pairs, strict=True)
        work = f"location, to a median of {TARGET_KM:.0f} km"
        add_row(work, peer="transformers' Trainer", unit="s", ours=mine, theirs=theirs)


if __name__ == "__main__":
    main()
