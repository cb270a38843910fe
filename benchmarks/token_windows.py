"""Sampling windows from a token store: tokens a second on one core, and what a very large store costs to open.

    python -m benchmarks.token_windows

The large store is a sparse file: 10 million documents, 100 GB of tokens, of which nothing is on the disk but an index.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from datamodules.corpus.token_store import INDEX_ROW, SPLITS, SPLITS_FILE, open_store, remember_verified, write_index
from datamodules.corpus.token_windows import document_ranges, random_windows, read_windows

CATEGORIES = [f"category {number:02d}" for number in range(11)]
LENGTH = 101


def write_sparse_store(folder: Path, *, num_documents: int, num_tokens: int) -> None:
    """A store whose tokens are a hole in a file, with documents of random length and category."""
    source = np.random.default_rng(0)
    rows = np.zeros(num_documents, dtype=INDEX_ROW)
    mean = num_tokens // num_documents
    rows["length"] = source.integers(mean // 2, mean * 3 // 2, num_documents)
    lengths = rows["length"].astype(np.int64)
    rows["offset"] = np.cumsum(lengths) - lengths
    rows["document"] = np.arange(num_documents)
    rows["num_bytes"] = rows["length"] * 4
    rows["category"] = source.integers(0, len(CATEGORIES), num_documents)
    rows["split"] = source.choice(3, size=num_documents, p=[0.98, 0.01, 0.01])
    groups = write_index(folder / "index.bin", rows)
    total = int(lengths.sum())
    with (folder / "tokens.bin").open("wb") as file:
        file.truncate(2 * total)
    table = {
        split: {"rows": dict(zip(CATEGORIES, ranges.tolist(), strict=True))}
        for split, ranges in zip(SPLITS, groups, strict=True)
    }
    (folder / SPLITS_FILE).write_text(json.dumps(table), encoding="utf-8")
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": ""}
        for name in ("tokens.bin", "index.bin", SPLITS_FILE)
    }
    facts = {
        "dtype": "uint16", "vocab_size": 50_277, "max_token_id": 50_276, "num_tokens": total,
        "num_documents": num_documents, "categories": CATEGORIES, "files": files,
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps({"settings": {}, "facts": facts}), encoding="utf-8")
    remember_verified(folder, files)  # every byte of it is a zero


def resident_bytes() -> int:
    """Memory of this process, mapped pages of files included."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_and_sample(folder: Path, *, num_windows: int) -> dict[str, float]:
    """Open a store in this fresh process, choose categories, read windows: new ones, then the same again."""
    before = resident_bytes()
    start = time.perf_counter()
    store = open_store(folder)
    ranges = document_ranges(store, "train", store.categories[:5], length=LENGTH)
    opened = time.perf_counter()
    found = {"open_s": opened - start, "memory_before": before / 1e6, "memory_open": resident_bytes() / 1e6}
    _, starts = random_windows(ranges, np.zeros(32, dtype=np.int64), np.arange(32), seed=1)
    read_windows(store, starts, LENGTH)
    found["first_batch_s"] = time.perf_counter() - opened
    speeds: dict[str, list[float]] = {"new": [], "again": []}
    for repeat in range(7):
        indices = np.arange(repeat * num_windows, (repeat + 1) * num_windows)
        for results in speeds.values():
            began = time.perf_counter()
            for batch in range(0, num_windows, 512):
                part = indices[batch : batch + 512]
                _, starts = random_windows(ranges, np.zeros_like(part), part, seed=1)
                read_windows(store, starts, LENGTH)
            results.append(num_windows * LENGTH / (time.perf_counter() - began) / 1e6)
    found["memory_after"] = resident_bytes() / 1e6
    for which, results in speeds.items():
        found |= {f"{which}_low": min(results), f"{which}_high": max(results)}
        found[f"{which}_median"] = statistics.median(results)
    return found


def main() -> None:
    """Write both stores, open each in a process of its own on one core, print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--open", type=Path, help="measure this store (used for the processes of the benchmark)")
    parser.add_argument("--windows", type=int, default=20_000)
    options = parser.parse_args()
    if options.open is not None:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        print(json.dumps(open_and_sample(options.open, num_windows=options.windows)))
        return
    with tempfile.TemporaryDirectory() as root:
        for name, num_documents, num_tokens in (
            ("small", 10_000, 10_000_000),
            ("large", 10_000_000, 50_000_000_000),
        ):
            folder = Path(root) / name
            folder.mkdir()
            write_sparse_store(folder, num_documents=num_documents, num_tokens=num_tokens)
            command = [sys.executable, "-m", "benchmarks.token_windows", "--open", str(folder)]
            command += ["--windows", str(options.windows)]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            size = (folder / "tokens.bin").stat().st_size
            speeds = ", ".join(
                f"{words} {found[f'{key}_median']:,.1f} ({found[f'{key}_low']:,.1f} to {found[f'{key}_high']:,.1f})"
                for key, words in (("new", "read for the first time"), ("again", "read again"))
            )
            print(
                f"{name}: {num_documents:,} documents, {size / 1e9:,.3g} GB; open {found['open_s']:.3f} s, first batch "
                f"{1000 * found['first_batch_s']:.1f} ms\n  memory: {found['memory_before']:,.0f} MB before opening, "
                f"{found['memory_open']:,.0f} MB after, {found['memory_after']:,.0f} MB after sampling\n"
                f"  one core, windows of {LENGTH}, million tokens/s: {speeds}",
                flush=True,
            )


if __name__ == "__main__":
    main()
