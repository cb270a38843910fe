"""Every experiment against its peers, side by side: one table, and one JSON file with the machine's facts.

    make bench                          all of it, three pairs each: some hours on two cores
    make bench ARGS=--quick             small networks and few steps: about ten minutes
    python -m benchmarks --only arxiv   one of them

Each benchmark runs ours and the peer in processes of their own, in turn. The load of the machine stands beside each
row: on a busy one only ratios of many pairs say anything.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.rows import ROWS, add_row, commit, processor

EXPERIMENTS = ("location", "gsm8k", "imdb", "arxiv", "rating")
START_UP_PAIRS = 3


def commands(shared: Path, *, quick: bool) -> dict[str, list[list[str]]]:
    """Arguments of `python -m` for each benchmark."""
    data, tokenizers = shared / "data", shared / "tokenizers"
    arxiv = ["benchmarks.arxiv", "--data", str(data / "arxiv"), "--tokenizer", str(tokenizers / "pythia")]
    imdb = ["benchmarks.imdb", "--path", str(data / "reviews")]
    if quick:
        rating = ["benchmarks.rating", "--data", "synthetic", "--model", "tiny", "--steps", "6", "--repeats", "2"]
        return {
            "location": [["benchmarks.location", "--epochs", "4", "--peer-epochs", "10"]],
            "arxiv": [[*arxiv, "--model", "pythia_14m", "--repeats", "2", "--steps", "8"]],
            "gsm8k": [["benchmarks.gsm8k", "--model", "small", "--questions", "16", "--repeats", "2"]],
            "imdb": [[*imdb, "--only", "identical", "--steps", "3", "--repeats", "1"]],
            "rating": [[*rating, "--only", "exact", "defaults"]],
        }
    return {
        "location": [["benchmarks.location", "--repeats", "3"]],
        "arxiv": [[*arxiv, "--repeats", "3"]],
        "gsm8k": [["benchmarks.gsm8k", "--data", str(data / "gsm8k"), "--repeats", "3"]],
        "imdb": [[*imdb, "--repeats", "3"]],
        "rating": [["benchmarks.rating", "--data", str(data / "rated_documents"), "--repeats", "3"]],
    }


def start_up() -> None:
    """Seconds of `--help`, beside those of importing what every training needs."""
    libraries = ["-c", "import lightning, torch, torchmetrics, transformers"]
    took: dict[str, list[float]] = {"help": [], "libraries": []}
    for _ in range(START_UP_PAIRS):
        for name, words in (("help", ["-m", "lightning_apps.train", "--help"]), ("libraries", libraries)):
            began = time.perf_counter()
            subprocess.run([sys.executable, *words], check=True, capture_output=True)
            took[name].append(time.perf_counter() - began)
    add_row("start-up: --help", peer="importing libraries", unit="s", ours=took["help"], theirs=took["libraries"])
    took = {"first step": [], "libraries": []}
    with tempfile.TemporaryDirectory() as folder:
        words = ["trainer.fast_dev_run=1", "hardware=cpu", "callbacks.extra.picture=null", f"run.output_root={folder}"]
        for _ in range(START_UP_PAIRS):
            for name, line in (("first step", ["-m", "lightning_apps.train", *words]), ("libraries", libraries)):
                began = time.perf_counter()
                subprocess.run([sys.executable, *line], check=True, capture_output=True)
                took[name].append(time.perf_counter() - began)
    add_row(
        "start-up: location, one step, evaluated and exported",
        peer="importing libraries",
        unit="s",
        ours=took["first step"],
        theirs=took["libraries"],
    )


def facts() -> dict[str, Any]:
    """What figures depend on."""
    import torch

    from models.flops import measure_peak_flops

    cpu = torch.device("cpu")
    peaks = {
        str(dtype).removeprefix("torch."): round(measure_peak_flops(cpu, dtype, size=1024, rounds=5) / 1e9)
        for dtype in (torch.float32, torch.bfloat16)
    }
    return {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "commit": commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        "matrix_peak_gflops": peaks,
    }


def ratios(row: dict[str, Any]) -> list[float]:
    """How many times better ours was, for each pair."""
    pairs = zip(row["ours"], row["theirs"], strict=True)
    return [ours / theirs if "/s" in row["unit"] else theirs / ours for ours, theirs in pairs]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| work | peer | ours | peer's | times better | memory | losses differ by | load |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        better = ratios(row)
        spread = f" ({min(better):.2f} to {max(better):.2f})" if len(better) > 1 else ""
        memory = f"{statistics.median(row['memory_shares']):.2f}" if row["memory_shares"] else ""
        difference = "" if row["loss_difference"] is None else f"{row['loss_difference']:.1e}"
        ours, theirs = (f"{statistics.median(row[side]):.3g} {row['unit']}" for side in ("ours", "theirs"))
        lines.append(
            f"| {row['work']} | {row['peer']} | {ours} | {theirs} | {statistics.median(better):.2f}{spread} | "
            f"{memory} | {difference} | {row['load']} |"
        )
    return "\n".join(lines)


def load() -> str:
    """Programs that want the machine's cores, over the last minute."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""


def main() -> None:
    """Run them one by one; what one of them breaks leaves the others alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small networks, few steps")
    parser.add_argument("--only", nargs="+", choices=["start-up", *EXPERIMENTS], help="some of them")
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="folder with data/ and tokenizers/")
    parser.add_argument("--to", type=Path, default=Path("outputs/benchmarks.json"), help="where the JSON file goes")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "rows"
        os.environ[ROWS] = str(found)
        lines = commands(options.shared, quick=options.quick)
        for name in options.only or ["start-up", *EXPERIMENTS]:
            before = load()
            if name == "start-up":
                start_up()
            for words in lines.get(name, []):
                print(f"\n$ python -m {' '.join(words)}", flush=True)
                if subprocess.run([sys.executable, "-m", *words]).returncode != 0:
                    failed.append(name)
            new = (
                [json.loads(line) for line in found.read_text(encoding="utf-8").splitlines()] if found.exists() else []
            )
            rows += [{**row, "load": f"{before} to {load()}"} for row in new[len(rows) :]]
    options.to.parent.mkdir(parents=True, exist_ok=True)
    options.to.write_text(json.dumps({"machine": facts(), "rows": rows}, indent=1) + "\n", encoding="utf-8")
    print(f"\n{table(rows)}\n\n{options.to}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
