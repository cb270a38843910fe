"""`imdb` against transformers' Trainer: same weights, texts, precision and machine, processes run in turn.

    python -m benchmarks.imdb --path FOLDER                     speed and memory, identical settings and defaults
    python -m benchmarks.imdb --path FOLDER --accuracy          what attention dropout is worth, three seeds

Identical settings: MiniLM, 512 tokens, 16 texts in a step, dropouts 0.1 as pretrained, AdamW 5e-5, linear schedule,
clipping at 1. Defaults: what each does when it is told the model and the data only; the Trainer then takes 8 texts in a
step and the dropouts of the pretrained model, we take conf/experiment/imdb.yaml. Documents/s are those of training
steps, without start-up, evaluation, checkpoints and the first two steps; memory is the most that a process held.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.rows import add_row

WARM_UP_STEPS = 2
COMMON = ["experiment=imdb", "model=minilm", "hardware=cpu"]
IDENTICAL = ["model.attention_dropout=0.1", "data.global_batch_size=16"]


def our_run(options: argparse.Namespace, *overrides: str, seed: int) -> dict[str, float]:
    """Training steps of the project's command; documents/s and peak bytes."""
    from lightning_apps.run_files.metrics_csv import read_metrics

    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "lightning_apps.train", *COMMON, f"data.path={options.path}", f"seed={seed}",
            f"precision={options.precision}", *overrides, f"trainer.max_steps={options.steps + WARM_UP_STEPS}",
            "trainer.evaluate_every=never", "callbacks=default", "data.max_evaluation_samples=8",
            f"run.output_root={folder}", "run.name=bench",
        ]  # fmt: skip
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        path = Path(folder) / "imdb" / "bench"
        summary = json.loads((path / "summary.json").read_text())
        rows = read_metrics(path / "metrics.csv")
        batch = 16  # conf/data/imdb.yaml, and IDENTICAL
    seconds = [
        (row["train/tokens"] - before) / row["train/tokens_per_s"]
        for row, before in zip(rows, [0.0, *(row["train/tokens"] for row in rows)], strict=False)
    ]
    documents_per_s = batch * options.steps / sum(seconds[WARM_UP_STEPS:])
    return {"documents_per_s": documents_per_s, "peak_bytes": summary["peak_memory_bytes"]}


def peer_run(options: argparse.Namespace, *, batch_size: int | None, seed: int) -> dict[str, float]:
    """Training steps of the Trainer in this process; `batch_size` None takes its default."""
    import torch
    from hydra import compose, initialize_config_dir
    from torch.utils.data import Dataset
    from transformers import (
        AutoModelForSequenceClassification,
        DataCollatorWithPadding,
        Trainer,
        TrainerCallback,
        TrainingArguments,
        set_seed,
    )

    from lightning_apps.config.composition import CONF, plain
    from lightning_apps.config.package_folder import in_package
    from lightning_apps.runs.build import build_datamodule

    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config = plain(compose("config", overrides=[*COMMON, f"data.path={options.path}", "run.name=bench"]))
    data: Any = build_datamodule(config)
    rows = data.rows["train"]
    set_seed(seed)
    folder = in_package("model.pretrained", config["model"]["pretrained"])
    net = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2, dtype=torch.float32)

    class Texts(Dataset):
        def __len__(self) -> int:
            return len(rows)

        def __getitem__(self, index: int) -> dict[str, Any]:
            ids = data.tokens[rows[index]].tolist()
            return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": int(data.store.labels[rows[index]])}

    seconds: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            seconds.append(time.perf_counter() - self.started)

    given: dict[str, Any] = {} if batch_size is None else {"per_device_train_batch_size": batch_size}
    with tempfile.TemporaryDirectory() as output:
        arguments = TrainingArguments(
            output_dir=output,
            max_steps=options.steps + WARM_UP_STEPS,
            bf16=options.precision == "bf16_mixed",
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            seed=seed,
            **given,
        )
        collate = DataCollatorWithPadding(data.tokenizer)
        Trainer(model=net, args=arguments, train_dataset=Texts(), data_collator=collate, callbacks=[Clock()]).train()
    timed = seconds[WARM_UP_STEPS:]
    documents = arguments.per_device_train_batch_size * len(timed)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"documents_per_s": documents / sum(timed), "peak_bytes": peak}


def peer_process(options: argparse.Namespace, *, batch_size: int | None, seed: int) -> dict[str, float]:
    """peer_run in a process of its own."""
    command = [
        sys.executable, "-m", "benchmarks.imdb", "--peer", str(batch_size or 0), "--path", options.path, "--precision",
        options.precision, "--steps", str(options.steps), "--seed", str(seed),
    ]  # fmt: skip
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(options: argparse.Namespace, title: str, overrides: list[str], batch_size: int | None) -> None:
    """One comparison, `repeats` pairs, each with another seed."""
    print(title, flush=True)
    ratios, shares, speeds = [], [], []
    for seed in range(options.repeats):
        ours = our_run(options, *overrides, seed=seed)
        peer = peer_process(options, batch_size=batch_size, seed=seed)
        speeds.append((ours["documents_per_s"], peer["documents_per_s"]))
        ratios.append(ours["documents_per_s"] / peer["documents_per_s"])
        shares.append(ours["peak_bytes"] / peer["peak_bytes"])
        print(
            f"  seed {seed}: ours {ours['documents_per_s']:.2f}, Trainer {peer['documents_per_s']:.2f} documents/s, "
            f"ratio {ratios[-1]:.2f}; peak {ours['peak_bytes'] / 1e9:.2f} and {peer['peak_bytes'] / 1e9:.2f} GB, "
            f"share {shares[-1]:.2f}",
            flush=True,
        )
    print(
        f"  median ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}), "
        f"memory {statistics.median(shares):.2f}",
        flush=True,
    )
    mine, theirs = zip(*speeds, strict=True)
    add_row(
        f"imdb, {title}", peer="transformers' Trainer", unit="documents/s", ours=mine, theirs=theirs,
        memory_shares=shares,
    )  # fmt: skip


def accuracy(options: argparse.Namespace) -> None:
    """Whole runs without and with attention dropout: final and best accuracy on validation and test."""
    for dropout in (0.0, 0.1):
        for seed in range(options.repeats):
            with tempfile.TemporaryDirectory() as folder:
                command = [
                    sys.executable, "-m", "lightning_apps.train", *COMMON, f"data.path={options.path}", f"seed={seed}",
                    f"precision={options.precision}", f"model.attention_dropout={dropout}",
                    f"trainer.max_epochs={options.epochs}", f"run.output_root={folder}", "run.name=bench",
                ]  # fmt: skip
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                summary = json.loads((Path(folder) / "imdb" / "bench" / "summary.json").read_text())
            metrics = summary["metrics"]
            said = ", ".join(
                f"{name} {metrics[f'{name}/accuracy']:.3f} [{metrics[f'{name}/accuracy_low']:.3f}, "
                f"{metrics[f'{name}/accuracy_high']:.3f}]"
                for name in ("val", "test")
            )
            best = summary["best"]["metrics"]["val/accuracy"]
            print(f"attention dropout {dropout}, seed {seed}: {said}; best val {best:.3f}", flush=True)


def main() -> None:
    """Run the comparisons, or one peer run for them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", required=True, help="folder with train, validation and test texts")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16_mixed"])
    parser.add_argument("--steps", type=int, default=6, help="timed steps of each run")
    parser.add_argument("--repeats", type=int, default=3, help="pairs of runs, each with another seed")
    parser.add_argument("--only", choices=["identical", "defaults"], help="one of the two comparisons")
    parser.add_argument("--accuracy", action="store_true", help="compare attention dropout 0 and 0.1 in whole runs")
    parser.add_argument("--epochs", type=float, default=3, help="length of those runs")
    parser.add_argument("--peer", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer is not None:
        print(json.dumps(peer_run(options, batch_size=options.peer or None, seed=options.seed)))
        return
    if options.accuracy:
        accuracy(options)
        return
    if options.only != "defaults":
        compare(options, f"identical settings, {options.precision}", IDENTICAL, 16)
    if options.only != "identical":
        compare(options, f"defaults against defaults, {options.precision}", [], None)


if __name__ == "__main__":
    main()
