"""Twenty steps of each experiment, and a digest of every loss, gradient norm and weight that came out.

    python -m benchmarks.loss_digests > before.json   # ... change the code ...
    python -m benchmarks.loss_digests > after.json
    diff before.json after.json

The test of a change that claims to change nothing: on the same machine and number of threads, with the same libraries,
the two files are equal. `only=name` arguments pick runs; `--from CHECKOUT` trains with the code of another checkout.
"""

import argparse
import csv
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
SHORT = (
    "trainer.max_tokens=null", "trainer.max_epochs=null", "trainer.max_steps=20", "trainer.evaluate_every=10",
    "callbacks.extra.picture=null", "hardware=cpu", "precision=fp32",
)  # fmt: skip
MINILM = ("model=minilm", f"data.path={SHARED / 'reviews'}", "data.max_length=64")
RATED = ("model=hierarchical_minilm", f"data.path={SHARED / 'rated_documents'}", "data.max_chunks=2")
SMOLLM = (
    "model=smollm2_135m", f"data.path={SHARED / 'gsm8k'}", "callbacks.extra.generation=null", "data.num_validation=4",
    "data.max_test_samples=4",
)  # fmt: skip
RUNS: dict[str, tuple[str, ...]] = {
    "location": ("experiment=location",),
    "location, micro-batches, dropout": (
        "experiment=location", "data.device_batch_size=24", "model.attention_dropout=0.1",
    ),
    "location, two processes": ("experiment=location", "hardware=cpu_ddp"),
    "location, bf16_mixed": ("experiment=location", "precision=bf16_mixed", "trainer.max_steps=5"),
    "location, bf16_mixed, micro-batches, dropout": (
        "experiment=location", "precision=bf16_mixed", "trainer.max_steps=3", "trainer.evaluate_every=2",
        "data.device_batch_size=40", "model.attention_dropout=0.1", "callbacks.extra.generation.num_samples=16",
    ),
    "location, muon": ("experiment=location", "optimizer=muon", "module.label_smoothing=0.1"),
    "location, schedule_free": (
        "experiment=location", "optimizer=schedule_free", "callbacks.weight_average=null", "data.loss_mask=none",
    ),
    "gsm8k, packed": ("experiment=gsm8k", *SMOLLM, "data.global_batch_size=2", "data.max_length=256"),
    "gsm8k, length_grouped, lora": (
        "experiment=gsm8k", *SMOLLM, "data.global_batch_size=4", "data.max_length=128", "model.lora.rank=4",
        "data.batching=length_grouped", "data.device_batch_size=2",
    ),
    "arxiv": (
        "experiment=arxiv", f"data.path={SHARED / 'arxiv'}", "data.tokenizer={tokenizers}/pythia",
        "data.num_categories=3", "data.global_batch_size=8", "data.device_batch_size=4",
        "data.evaluation_windows_per_category=4", "data.test_windows_per_category=4",
    ),
    "imdb": ("experiment=imdb", *MINILM, "data.max_evaluation_samples=16"),
    "rating": (
        "experiment=rating", *RATED, "data.global_batch_size=4", "data.chunk_size=128", "data.stride=126",
        "data.max_evaluation_samples=6", "data.max_train_samples=60", "module.focal_gamma=1.0",
    ),
    "rating, frozen encoder": (
        "experiment=rating", *RATED, "data.global_batch_size=8", "data.max_train_samples=24", "data.chunk_size=64",
        "data.stride=62", "data.max_evaluation_samples=6", "model.freeze_layers=6", "optimizer.lr=1e-3",
        "optimizer.groups=[]",
    ),
}  # fmt: skip
COMPARED = ("train/loss", "train/grad_norm", "train/learning_rate", "train/param_norm", "train/tokens", "val/loss")


def digests(checkout: Path, name: str, overrides: Sequence[str]) -> dict[str, str]:
    """Train and digest one run."""
    overrides = [word.replace("{tokenizers}", str(SHARED.parent / "tokenizers")) for word in overrides]
    given = {word.partition("=")[0] for word in overrides}
    short = [word for word in SHORT if word.partition("=")[0] not in given]
    with tempfile.TemporaryDirectory() as folder:
        where = [f"run.output_root={folder}", "run.name=digest", f"run.cache_root={folder}/cache"]
        command = [sys.executable, "-m", "lightning_apps.train", *short, *overrides, *where]
        done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, env={**os.environ})
        if done.returncode:
            raise SystemExit(f"{name}: {done.stderr.strip().splitlines()[-1]}")
        (run,) = Path(folder).glob("*/digest")
        with (run / "metrics.csv").open(newline="") as file:
            rows = [{key: row[key] for key in ("step", *COMPARED) if row.get(key)} for row in csv.DictReader(file)]
        state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True, map_location="cpu")["state_dict"]
    weights = hashlib.sha256()
    for key, tensor in state.items():
        if key.startswith("net."):  # metrics and buffers may move; what is trained may not
            weights.update(key.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return {
        "last loss": next(row["train/loss"] for row in reversed(rows) if "train/loss" in row),
        "steps": str(sum("train/loss" in row for row in rows)),
        "losses": hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16],
        "weights": weights.hexdigest()[:16],
    }


def main() -> None:
    """Train, and print one json object of all runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="runs whose names contain one of these; default: all")
    parser.add_argument("--from", dest="checkout", type=Path, default=Path.cwd(), help="checkout whose code trains")
    options = parser.parse_args()
    found = {}
    for name, overrides in RUNS.items():
        if not options.names or any(wanted in name for wanted in options.names):
            found[name] = digests(options.checkout, name, overrides)
            print(f"{name}: {found[name]}", file=sys.stderr, flush=True)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
