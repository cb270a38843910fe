"""How cost grows: processor seconds of a step as one quantity doubles, start-up by documents, memory by batch size.

    python -m benchmarks.growth                            all tables, some eight minutes of one core
    python -m benchmarks.growth --only width depth         some of them
    python -m benchmarks.growth --only width --with optimizer=muon
    python -m benchmarks.growth --only memory --figure docs/growth.png

`experiment=arxiv` with pythia_14m and a vocabulary of 2,048 learned from the papers, AdamW, one thread. Each size is a
process of its own. The exponent is the slope of log seconds over log size by least squares, with its 95 % interval;
beside it that of the last doubling, for what does not grow flattens the first ones. Memory is what the process takes
beyond what it held before there was a model, against what `plan` counts (its probe, which corrects that, left out).
"""

import argparse
import ctypes
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.board import build_run, train_ours
from benchmarks.rows import commit, processor
from lightning_apps.statistics.t_interval import slope_interval

FACTORS = (1, 2, 4, 8)
STEPS, WARM_UP = 10, 3
LAYERS, WIDTH, BATCH, VOCABULARY = 6, 128, 8, 2048
STEP_AXES = {
    "batch": ("samples of 100 tokens", lambda factor: factor * BATCH, "data.global_batch_size={}"),
    "length": ("tokens of each of 8 samples", lambda factor: factor * 32, "data.sequence_length={}"),
    "vocabulary": ("rows of the vocabulary", lambda factor: factor * VOCABULARY, "model.pad_vocab_to_multiple_of={}"),
    "width": ("parameters that multiply, by width", lambda factor: factor * 64, "model.hidden_size={}"),
    "depth": ("parameters that multiply, by layers", lambda factor: factor * 2, "model.num_hidden_layers={}"),
}
"""Name -> what grows, its size at a factor, and the setting; an input's length is one less than the setting."""
MEMORY_SIZES = (1, 2, 4, 8, 16, 32)


def words(data: Path, scratch: Path, *more: str) -> list[str]:
    """Overrides of a run of a few steps."""
    return [
        "experiment=arxiv", f"data.path={data}", "data.full_dataset=true", f"data.tokenizer=bpe:{VOCABULARY}",
        f"data.global_batch_size={BATCH}", "data.preparation_workers=1", "hardware=cpu", "hardware.num_threads=1",
        "trainer.max_tokens=null", f"trainer.max_steps={STEPS}", "trainer.evaluate_every=never",
        "trainer.save_every=never", "precision=fp32", "run.name=growth", f"run.output_root={scratch / 'runs'}",
        f"run.cache_root={scratch / 'cache'}", *more,
    ]  # fmt: skip


def step(axis: str, line: list[str]) -> dict[str, float]:
    """Size and median seconds of a step."""
    run = build_run(line)
    took: list[float] = []
    train_ours(run, took)
    config, datamodule, _, module = run
    looked_up = module.net.get_input_embeddings().weight.numel()  # not tied here
    size = {
        "batch": datamodule.global_batch_size,
        "length": config["data"]["sequence_length"] - 1,
        "vocabulary": module.net.config.vocab_size,
    }.get(axis, sum(parameter.numel() for parameter in module.net.parameters()) - looked_up)
    return {"size": size, "s": statistics.median(took[WARM_UP:])}


def first_step(line: list[str]) -> dict[str, float]:
    """Documents, and seconds from the start of the process until the first step is done."""
    run = build_run(line)
    train_ours(run, [])
    return {"s": time.process_time()}


def memory(line: list[str]) -> dict[str, float]:
    """Bytes beyond what the process held before there was a model: as `plan` counts, and at the peak of some steps."""
    from lightning_apps.process.allocator import keep_freed_memory
    from lightning_apps.runs.forecast import DeviceMemory, Setting
    from lightning_apps.runs.probe import forget_peak, resident_bytes

    keep_freed_memory()
    config, datamodule, plan, module = build_run(line)
    size = datamodule.global_batch_size
    estimate = DeviceMemory(config, plan, datamodule, module, 0).parts(Setting(size, False, "one device", 1))
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what the estimate took; libraries that it loaded stay
    before = resident_bytes() - sum(parameter.nbytes for parameter in module.parameters())
    forget_peak()
    train_ours((config, datamodule, plan, module), [])
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"size": size, "plan": sum(estimate.values()), "run": peak - before}


def child(*arguments: str) -> dict[str, float]:
    """What a function of this file says, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.growth", "--child", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(arguments)}: {done.stderr.strip()[-2000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def row(name: str, sizes: list[float], seconds: list[float]) -> str:
    """A line of the table: sizes, seconds, exponent with its interval, exponent of the last doubling."""
    points = [(math.log(size), math.log(value)) for size, value in zip(sizes, seconds, strict=True)]
    slope = slope_interval({0: points})
    assert slope is not None
    assert slope.has_interval
    (x1, y1), (x2, y2) = points[-2:]
    shown = [", ".join(f"{value:{form}}" for value in values) for values, form in ((sizes, ",.0f"), (seconds, ".3g"))]
    fit = f"{slope.value:.2f} ({slope.low:.2f} to {slope.high:.2f})"
    return f"| {name} | {' | '.join(shown)} | {fit} | {(y2 - y1) / (x2 - x1):.2f} |"


def documents(data: Path, scratch: Path, more: list[str]) -> list[str]:
    """Rows of `prepare` and of the first step after it, with the papers once, twice, four and eight times."""
    sizes: list[float] = []
    prepare: list[float] = []
    first: list[float] = []
    for factor in FACTORS:
        folder = scratch / f"papers-{factor}"
        folder.mkdir()
        for split in ("train", "validation", "test"):
            text = (data / f"{split}.jsonl").read_bytes()
            (folder / f"{split}.jsonl").write_bytes(text * (factor if split == "train" else 1))
            if split == "train":
                sizes.append(factor * text.count(b"\n"))
        line = words(folder, scratch, *more, "trainer.max_steps=1")
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "lightning_apps.prepare", *line], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        prepare.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        first.append(child("first_step", *line)["s"])
    names = "documents: `prepare`, libraries included", "documents: start to first step, prepared"
    return [row(name, sizes, values) for name, values in zip(names, (prepare, first), strict=True)]


def draw(points: list[dict[str, float]], path: Path) -> None:
    """Peak memory over batch size, plan and run."""
    from lightning_apps.figures.curves import BLACK, ORANGE, add_axes_px, draw_title, png_figure

    with png_figure(path, 800, 450) as figure:
        axes = add_axes_px(figure, 90, 70, 670, 310)
        for name, colour, marker in (("run", BLACK, "o"), ("plan", ORANGE, "s")):
            sizes, values = [point["size"] for point in points], [point[name] / 1e6 for point in points]
            axes.plot(sizes, values, color=colour, marker=marker, label=name)
        axes.set_xscale("log", base=2)
        axes.set_xticks([point["size"] for point in points], [f"{point['size']:.0f}" for point in points])
        axes.set(xlabel="samples of 100 tokens in a step", ylabel="MB beyond the process", ylim=(0, None))
        axes.grid(axis="y")
        axes.legend()
        draw_title(figure, "Peak memory of a training step: what plan counts, and what runs take")


def main() -> None:
    """Measure and print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*STEP_AXES, "documents", "memory"]
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="what grows")
    parser.add_argument("--with", nargs="+", default=[], dest="more", help="further overrides of every run")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/arxiv"), help="folder of the papers")
    parser.add_argument("--figure", type=Path, help="where to draw memory over batch size, as PNG")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes to come
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        papers = options.data.resolve()
        if options.only != ["memory"]:
            print(f"{commit()}, {processor()}, one thread, load {os.getloadavg()[0]:.1f}\n")
            print(
                "| what grows | sizes | s | exponent (95 %) | of the last doubling |\n| --- | --- | --- | --- | --- |"
            )
        for axis in options.only:
            if axis in STEP_AXES:
                what, size_at, setting = STEP_AXES[axis]
                found = []
                for factor in FACTORS:
                    size = size_at(factor)
                    more = [setting.format(size + 1 if axis == "length" else size), *options.more]
                    if axis == "width":
                        more.append(f"model.intermediate_size={4 * size}")
                    found.append(child("step", axis, *words(papers, scratch, *more)))
                print(row(what, [point["size"] for point in found], [point["s"] for point in found]), flush=True)
            elif axis == "documents":
                print("\n".join(documents(papers, scratch, options.more)), flush=True)
        if "memory" in options.only:
            points = []
            print("\n| samples | MB, plan | MB, run | off |\n| --- | --- | --- | --- |")
            for size in MEMORY_SIZES:
                line = words(papers, scratch, f"data.global_batch_size={size}", *options.more)
                points.append(point := child("memory", *line))
                off = point["plan"] / point["run"] - 1
                print(f"| {size} | {point['plan'] / 1e6:.0f} | {point['run'] / 1e6:.0f} | {off:+.0%} |", flush=True)
            if options.figure:
                draw(points, options.figure)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        functions: dict[str, Any] = {"step": step, "first_step": first_step, "memory": memory}
        named, *rest = sys.argv[2:]
        print(json.dumps(functions[named](rest[0], rest[1:]) if named == "step" else functions[named](rest)))
    else:
        main()
