"""`rating` against a plain training loop: same weights, documents, order, precision and machine, processes in turn.

    python -m benchmarks.rating --data FOLDER                    all comparisons
    python -m benchmarks.rating --data FOLDER --only defaults    one of them
    python -m benchmarks.rating --data synthetic --model tiny      seconds: whether it works

The plain loop pads every document to 20 chunks of 512 tokens and encodes 4 documents, 80 chunks, at once, with
transformers' gradient checkpointing and the dropouts as pretrained (0.1 on hidden states and attention weights). Its
weights, learning rates, schedule, class weights and clipping are ours, as are the documents of each step.

    identical    both with 4 documents in a step and in a forward pass, gradient checkpointing, these dropouts
    exact        the same without any dropout: losses of each step must agree
    attention    both without dropout on attention weights, which keeps attention off its fused kernel
    defaults     what conf/experiment/rating.yaml says against the plain loop with its dropouts
    no_dropout   our defaults against the plain loop without dropout on attention weights

Documents/s are those of training steps, without start-up, evaluation, checkpoints and the first steps; memory is the
most that a process held.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.rows import add_row

WARM_UP_STEPS = 1
BATCH = 4
NO_ATTENTION_DROPOUT = ["model.attention_dropout=0.0"]
SAME = [f"data.global_batch_size={BATCH}", f"data.device_batch_size={BATCH}", "hardware.gradient_checkpointing=true"]
COMPARISONS: dict[str, tuple[list[str], list[str]]] = {
    "identical": ([*SAME, "model.attention_dropout=0.1"], ["model.attention_dropout=0.1"]),
    "exact": (
        [*SAME, *NO_ATTENTION_DROPOUT, "model.hidden_dropout=0.0", "model.head_dropout=0.0"],
        [*NO_ATTENTION_DROPOUT, "model.hidden_dropout=0.0", "model.head_dropout=0.0"],
    ),
    "attention": ([*SAME, *NO_ATTENTION_DROPOUT], NO_ATTENTION_DROPOUT),
    "defaults": ([], ["model.attention_dropout=0.1"]),
    "no_dropout": ([], NO_ATTENTION_DROPOUT),
}
"""Overrides for us, and for the plain loop."""


def settings(options: argparse.Namespace) -> list[str]:
    """Overrides that both share."""
    model = [f"model=hierarchical_{options.model}", f"precision={options.precision}", "hardware=cpu"]
    if options.device != "cpu":
        model[-1] = f"hardware={options.device}"
    if options.data == "synthetic":
        small = ["data.chunk_size=32", "data.stride=16", "data.max_chunks=6"] if options.model == "tiny" else []
        return ["experiment=rating", *model, "data.dataset=synthetic", *small, f"run.cache_root={options.cache_root}"]
    return ["experiment=rating", *model, f"data.path={options.data}", f"run.cache_root={options.cache_root}"]


def our_run(options: argparse.Namespace, overrides: list[str], seed: int) -> dict[str, Any]:
    """Training steps of the project's command."""
    from lightning_apps.run_files.metrics_csv import read_metrics

    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "lightning_apps.train", *settings(options), *overrides, f"seed={seed}",
            f"trainer.max_steps={options.steps + WARM_UP_STEPS}", "trainer.evaluate_every=never",
            "callbacks=default", "data.max_evaluation_samples=8", f"run.output_root={folder}", "run.name=bench",
        ]  # fmt: skip
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        path = Path(folder) / "rating" / "bench"
        summary = json.loads((path / "summary.json").read_text())
        rows = read_metrics(path / "metrics.csv")
    tokens = [0.0, *(row["train/tokens"] for row in rows)]
    seconds = [
        (row["train/tokens"] - before) / row["train/tokens_per_s"] for row, before in zip(rows, tokens, strict=False)
    ]
    documents = summary["target_tokens_seen"] / len(rows) * options.steps
    return {
        "documents_per_s": documents / sum(seconds[WARM_UP_STEPS:]),
        "peak_bytes": summary["peak_memory_bytes"],
        "losses": [row["train/loss"] for row in rows],
    }


def plain_run(options: argparse.Namespace, overrides: list[str], seed: int) -> dict[str, Any]:
    """The plain loop, in this process."""
    import numpy as np
    import torch
    from hydra import compose, initialize_config_dir
    from torch import nn
    from transformers import AutoModel

    from datamodules.sampling.step_loader import StepSampler
    from lightning_apps.config.composition import CONF, plain
    from lightning_apps.runs.build import build_datamodule, build_module, build_plan, quiet_libraries

    quiet_libraries()
    words = [*settings(options), *overrides, *SAME, f"seed={seed}", "run.name=bench"]
    words.append(f"trainer.max_steps={options.steps + WARM_UP_STEPS}")
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config = plain(compose("config", overrides=words))
    data: Any = build_datamodule(config)
    plan = build_plan(config, data)
    ours: Any = build_module(config, data, plan)
    device = torch.device("cpu" if options.device == "cpu" else "cuda")

    class Plain(nn.Module):
        """What one would write down first."""

        def __init__(self, net: Any) -> None:
            super().__init__()
            self.encoder = AutoModel.from_config(net.config.encoder, attn_implementation="sdpa")
            self.encoder.pooler = None
            self.chunk_attention = net.chunk_attention
            self.norm, self.head = net.norm, net.head

        def forward(self, input_ids: Any, attention_mask: Any, is_chunk: Any) -> Any:
            documents, chunks, length = input_ids.shape
            hidden = self.encoder(input_ids.view(-1, length), attention_mask.view(-1, length)).last_hidden_state
            vectors = hidden[:, 0].view(documents, chunks, -1)
            scores = self.chunk_attention.score(torch.tanh(self.chunk_attention.project(vectors))).squeeze(-1)
            weights = torch.softmax(scores.masked_fill(~is_chunk, float("-inf")), dim=-1)
            return self.head(self.norm((weights[..., None] * vectors).sum(dim=1)))

    model = Plain(ours.net)
    model.encoder.load_state_dict(ours.net.encoder.state_dict())
    model.encoder.embeddings.requires_grad_(not config["model"]["freeze_embeddings"])
    weights, schedule = ours.class_weights.to(device), ours.schedule
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.encoder.parameters() if p.requires_grad], "lr": 2e-5},
        {"params": [*model.chunk_attention.parameters(), *model.norm.parameters()], "lr": 2e-5},
        {"params": list(model.head.parameters()), "lr": 4e-5},
    ]
    del ours
    model.to(device).train()
    model.encoder.activation_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), weight_decay=0.01)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    longest, width = data.chunking.max_chunks, data.chunking.chunk_size
    seconds, losses = [], []
    torch.manual_seed(seed)
    steps = options.steps + WARM_UP_STEPS
    sampler = StepSampler(num_samples=data.num_train_samples, global_batch_size=BATCH, num_steps=steps, seed=data.seed)
    for step in range(steps):
        started = time.perf_counter()
        _, indices = sampler.key(step)
        batch = data.training_batch(np.zeros_like(indices), indices)
        # every document is padded to the most chunks, every chunk to the most tokens
        ids = torch.full((len(indices), longest, width), data.tokenizer.pad_token_id)
        mask = torch.zeros((len(indices), longest, width), dtype=torch.int64)
        mask[:, :, 0] = 1  # padding chunks hold one token, or attention inside them would be over nothing
        start = 0
        for row, count in enumerate(batch["chunk_counts"]):
            chunks = slice(start, start + count)
            ids[row, :count, : batch["input_ids"].shape[1]] = batch["input_ids"][chunks]
            mask[row, :count, : batch["input_ids"].shape[1]] = batch["attention_mask"][chunks]
            start += count
        is_chunk = torch.arange(longest) < torch.tensor(batch["chunk_counts"])[:, None]
        with torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16_mixed"):
            logits = model(ids.to(device), mask.to(device), is_chunk.to(device))
            loss = nn.functional.cross_entropy(logits.float(), batch["labels"].to(device), weight=weights)
        loss.backward()
        nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        rates.step()
        losses.append(float(loss.detach()))
        seconds.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    return {
        "documents_per_s": BATCH * options.steps / sum(seconds[WARM_UP_STEPS:]),
        "peak_bytes": peak,
        "losses": losses,
    }


def plain_process(options: argparse.Namespace, name: str, seed: int) -> dict[str, Any]:
    """plain_run in a process of its own."""
    command = [
        sys.executable, "-m", "benchmarks.rating", "--plain", name, "--data", options.data, "--model", options.model,
        "--precision", options.precision, "--device", options.device, "--steps", str(options.steps),
        "--cache-root", options.cache_root, "--seed", str(seed),
    ]  # fmt: skip
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(options: argparse.Namespace, name: str) -> None:
    """One comparison, `repeats` pairs, each with another seed."""
    print(f"{name}, {options.precision}, {options.model}", flush=True)
    ratios, shares, speeds, differences = [], [], [], []
    for seed in range(options.repeats):
        ours = our_run(options, COMPARISONS[name][0], seed)
        peer = plain_process(options, name, seed)
        speeds.append((ours["documents_per_s"], peer["documents_per_s"]))
        ratios.append(ours["documents_per_s"] / peer["documents_per_s"])
        shares.append(ours["peak_bytes"] / peer["peak_bytes"])
        print(
            f"  seed {seed}: ours {ours['documents_per_s']:.3f}, plain {peer['documents_per_s']:.3f} documents/s, "
            f"ratio {ratios[-1]:.2f}; peak {ours['peak_bytes'] / 1e9:.2f} and {peer['peak_bytes'] / 1e9:.2f} GB, "
            f"share {shares[-1]:.2f}; mean loss {statistics.mean(ours['losses']):.4f} and "
            f"{statistics.mean(peer['losses']):.4f}",
            flush=True,
        )
        if name == "exact":
            pairs = list(zip(ours["losses"], peer["losses"], strict=True))
            differences += [abs(one - other) / other for one, other in pairs]
            print(
                f"  largest difference of a step's loss {max(abs(one - other) for one, other in pairs):.2g}", flush=True
            )
    print(
        f"  median ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}), "
        f"memory {statistics.median(shares):.2f}",
        flush=True,
    )
    mine, theirs = zip(*speeds, strict=True)
    add_row(
        f"rating, {options.model}, {name}, {options.precision}", peer="plain loop", unit="documents/s", ours=mine,
        theirs=theirs, memory_shares=shares, loss_difference=max(differences, default=None),
    )  # fmt: skip


def main() -> None:
    """Run the comparisons, or one plain run for them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with rated documents, or synthetic")
    parser.add_argument("--model", default="minilm", help="minilm, roberta or tiny")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16_mixed"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "gpu"])
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each run")
    parser.add_argument("--repeats", type=int, default=3, help="pairs of runs, each with another seed")
    parser.add_argument("--only", choices=list(COMPARISONS), nargs="*", help="some of the comparisons")
    parser.add_argument("--cache-root", default=".cache")
    parser.add_argument("--plain", choices=list(COMPARISONS), help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plain is not None:
        print(json.dumps(plain_run(options, COMPARISONS[options.plain][1], options.seed)))
        return
    # once, so that no run's memory holds the preparation
    prepare = [sys.executable, "-m", "lightning_apps.prepare", *settings(options)]
    subprocess.run(prepare, check=True, stdout=subprocess.DEVNULL, env=dict(os.environ))
    for name in options.only or COMPARISONS:
        compare(options, name)


if __name__ == "__main__":
    main()
