"""`arxiv` against transformers' Trainer: same model, weights, windows, precision and batch, run in turn in one session.

    python -m benchmarks.arxiv                                     pythia_70m from scratch, three pairs of runs
    python -m benchmarks.arxiv --repeats 5 --steps 20 --model pythia_14m
    python -m benchmarks.arxiv --precision bf16_mixed              where the processor has units for it

Every run is a process of its own. A step's time is everything between its start and its end, guards and logging
included; the first steps, which touch memory for the first time, are left out. Tokens are those fed to the model.
The matrix peak is that of a product of 2048 x 2048 matrices at the same precision, the best of several, before and
after the runs; the work is 6 FLOP for each parameter that multiplies (all but the embedding) and each token.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks.rows import add_row

WARM_UP_STEPS = 3
BATCH = 32


def composed(options: argparse.Namespace) -> dict[str, Any]:
    """The experiment's configuration, both sides'."""
    from hydra import compose, initialize_config_dir

    from lightning_apps.config.checks import check_config
    from lightning_apps.config.composition import CONF, plain

    overrides = [
        "experiment=arxiv",
        f"model={options.model}",
        f"precision={options.precision}",
        "hardware=cpu",
        f"hardware.num_threads={options.threads or 'null'}",
        f"seed={options.seed}",
        "run.name=bench",
        f"data.path={options.data}",
        f"data.tokenizer={options.tokenizer}",
        "data.full_dataset=true",
        f"data.global_batch_size={BATCH}",
        "scheduler=constant",
        "scheduler.warmup_steps=0",
        "trainer.max_tokens=null",
        f"trainer.max_steps={options.steps}",
        "trainer.evaluate_every=never",
        "trainer.save_every=never",
    ]
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config = plain(compose("config", overrides=overrides))
    check_config(config)
    return config


def result(net: Any, losses: list[float], step_s: list[float], tokens_per_step: int) -> dict[str, Any]:
    """What a run hands to the process that started it."""
    embedding = net.get_input_embeddings().weight
    multiplying = sum(parameter.numel() for parameter in net.parameters() if parameter is not embedding)
    return {
        "losses": losses,
        "step_s": step_s,
        "tokens_per_step": tokens_per_step,
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "flop_per_token": 6 * multiplying,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def our_run(options: argparse.Namespace) -> dict[str, Any]:
    """Train with the project's module, callbacks and trainer in this process."""
    from lightning_apps.process.allocator import keep_freed_memory

    keep_freed_memory()  # as the command train does
    import lightning as L

    from lightning_apps.runs.build import (
        build_datamodule,
        build_module,
        build_plan,
        build_step_callbacks,
        build_trainer,
        quiet_libraries,
    )

    quiet_libraries()
    config = composed(options)
    data: Any = build_datamodule(config)
    plan = build_plan(config, data)
    module = build_module(config, data, plan)
    losses: list[float] = []
    step_s: list[float] = []

    class Begin(L.Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            self.started = time.perf_counter()

    class End(L.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *args: Any) -> None:
            step_s.append(time.perf_counter() - begin.started)
            losses.append(float(outputs["loss"]))

    begin = Begin()
    callbacks = [begin, *build_step_callbacks(config, plan, crash_dumps=None), End()]
    build_trainer(config, plan, callbacks=callbacks, loggers=[]).fit(module, data)
    return result(module.net, losses, step_s, BATCH * (data.sequence_length - 1))


def peer_run(options: argparse.Namespace) -> dict[str, Any]:
    """Train with transformers' Trainer in this process: our initial weights and our windows, the rest is its own."""
    import numpy as np
    import torch
    from torch.utils.data import SequentialSampler
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from datamodules.sampling.step_loader import StepSampler
    from lightning_apps.runs.build import build_datamodule, build_module, build_plan, quiet_libraries

    quiet_libraries()
    config = composed(options)
    if options.threads:
        torch.set_num_threads(options.threads)
    data: Any = build_datamodule(config)
    net: Any = build_module(config, data, build_plan(config, data)).net
    rows: list[dict[str, torch.Tensor]] = []
    sampler = StepSampler(
        num_samples=data.windows_per_epoch,
        global_batch_size=BATCH,
        num_steps=options.steps,
        seed=config["data"]["seed"],
    )
    for epoch, indices in sampler:
        batch = data.training_batch(np.full_like(indices, epoch), indices)
        rows += [{key: batch[key][row] for key in ("input_ids", "labels")} for row in range(len(indices))]
    losses: list[float] = []
    step_s: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            step_s.append(time.perf_counter() - self.started)

    class InOrder(Trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return SequentialSampler(rows)

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss: Any = super().compute_loss(*args, **kwargs)
            losses.append(float(loss.detach()))  # what the Trainer logs is rounded
            return loss

    optimizer = config["optimizer"]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=BATCH,
            max_steps=options.steps,
            learning_rate=optimizer["lr"],
            lr_scheduler_type="constant",
            adam_beta1=optimizer["betas"][0],
            adam_beta2=optimizer["betas"][1],
            adam_epsilon=optimizer["eps"],
            weight_decay=optimizer["weight_decay"],
            max_grad_norm=config["trainer"]["clip_norm"],
            bf16=options.precision == "bf16_mixed",
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
            seed=options.seed,
        )
        InOrder(model=net, args=arguments, train_dataset=rows, callbacks=[Clock()]).train()
    return result(net, losses, step_s, BATCH * (data.sequence_length - 1))


def matrix_peak(options: argparse.Namespace) -> dict[str, Any]:
    """GFLOP/s of the best of several products of 2048 x 2048 matrices."""
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    size = 2048 if options.precision == "fp32" else 1024
    dtype = torch.float32 if options.precision == "fp32" else torch.bfloat16
    left, right = (torch.randn(size, size).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(12):
        started = time.perf_counter()
        torch.mm(left, right)
        best = min(best, time.perf_counter() - started)
    return {"gflop_per_s": 2 * size**3 / best / 1e9}


SIDES = {"ours": our_run, "Trainer": peer_run, "peak": matrix_peak}


def in_a_process(side: str, arguments: list[str]) -> dict[str, Any]:
    """One of SIDES in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.arxiv", *arguments, "--side", side]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr[-2000:])
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def tokens_per_s(run: dict[str, Any]) -> float:
    """Of the median step after the warm-up."""
    speed: float = run["tokens_per_step"] / statistics.median(run["step_s"][WARM_UP_STEPS:])
    return speed


def main() -> None:
    """Run the comparison, or one part of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pythia_70m", help="an option of the group model")
    parser.add_argument("--data", default="../shared/data/arxiv", help="data.path")
    parser.add_argument("--tokenizer", default="../shared/tokenizers/pythia", help="data.tokenizer")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16_mixed"])
    parser.add_argument("--repeats", type=int, default=3, help="pairs of runs")
    parser.add_argument("--steps", type=int, default=12, help=f"of each run; the first {WARM_UP_STEPS} are not timed")
    parser.add_argument("--threads", type=int, help="of each process; torch's choice unless given")
    parser.add_argument("--seed", type=int, default=0, help="of weights and windows")
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.steps <= WARM_UP_STEPS:
        parser.error(f"--steps {options.steps}: more than {WARM_UP_STEPS} are needed")
    if options.side is not None:
        print(json.dumps(SIDES[options.side](options)))
        return
    compare(options, sys.argv[1:])


def compare(options: argparse.Namespace, arguments: list[str]) -> None:
    """Alternate both sides and print speed, memory, share of the peak and both loss curves."""
    peaks = [in_a_process("peak", arguments)["gflop_per_s"]]
    ratios, runs = [], {"ours": [], "Trainer": []}  # type: tuple[list[float], dict[str, list[dict[str, Any]]]]
    for repeat in range(options.repeats):
        # the second of a pair never finds the machine as the first did: they take turns at being first
        for side in ["ours", "Trainer"] if repeat % 2 == 0 else ["Trainer", "ours"]:
            runs[side].append(in_a_process(side, arguments))
        ours, peer = (runs[side][-1] for side in ("ours", "Trainer"))
        if repeat == 0:
            print(
                f"{options.model}, {options.precision}: {ours['parameters']:,} parameters, "
                f"{ours['flop_per_token'] / 1e6:.0f} MFLOP a token, {ours['tokens_per_step']:,} tokens a step",
                flush=True,
            )
        ratios.append(tokens_per_s(ours) / tokens_per_s(peer))
        for side, run in (("ours", ours), ("Trainer", peer)):
            timed = run["step_s"][WARM_UP_STEPS:]
            print(
                f"  pair {repeat + 1} {side:8} {tokens_per_s(run):6.0f} tokens/s; "
                f"step {statistics.median(timed):.2f} s ({min(timed):.2f} to {max(timed):.2f}); "
                f"peak memory {run['peak_bytes'] / 1e9:.2f} GB",
                flush=True,
            )
        print(f"  pair {repeat + 1} ratio {ratios[-1]:.2f}", flush=True)
    peaks.append(in_a_process("peak", arguments)["gflop_per_s"])
    print(f"matrix peak {peaks[0]:.0f} GFLOP/s before, {peaks[1]:.0f} after")
    for side in ("ours", "Trainer"):
        speeds = [tokens_per_s(run) for run in runs[side]]
        best = runs[side][0]["tokens_per_step"] / min(min(run["step_s"][WARM_UP_STEPS:]) for run in runs[side])
        flop = runs[side][0]["flop_per_token"]
        shares = [100 * speed * flop / max(peaks) / 1e9 for speed in (statistics.median(speeds), best)]
        print(
            f"{side:8} median {statistics.median(speeds):.0f} tokens/s ({min(speeds):.0f} to {max(speeds):.0f}), "
            f"{shares[0]:.0f} % of the peak; fastest step {best:.0f} tokens/s, {shares[1]:.0f} %; "
            f"peak memory {max(run['peak_bytes'] for run in runs[side]) / 1e9:.2f} GB"
        )
    print(f"ratio median {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    print("loss of each step, ours and Trainer, relative difference")
    ours, peer = (runs[side][0]["losses"] for side in ("ours", "Trainer"))
    for step, (left, right) in enumerate(zip(ours, peer, strict=True), start=1):
        print(f"  {step:3} {left:.6f} {right:.6f} {abs(left - right) / right:.1e}")
    add_row(
        f"arxiv, {options.model}, {options.precision}",
        peer="transformers' Trainer",
        unit="tokens/s",
        ours=[tokens_per_s(run) for run in runs["ours"]],
        theirs=[tokens_per_s(run) for run in runs["Trainer"]],
        memory_shares=[
            mine["peak_bytes"] / other["peak_bytes"] for mine, other in zip(runs["ours"], runs["Trainer"], strict=True)
        ],
        loss_difference=max(abs(left - right) / right for left, right in zip(ours, peer, strict=True)),
    )
    same = all(run["losses"] == runs[side][0]["losses"] for side in runs for run in runs[side])
    print(f"each side's curves of all repeats are {'the same to the last bit' if same else 'NOT the same'}")


if __name__ == "__main__":
    main()
