"""A sweep's folder and run directories with known numbers, without training."""

import json
from pathlib import Path

import numpy as np
import yaml

from lightning_apps.run_files.directory import RunDirectory
from lightning_apps.run_files.metrics_csv import MetricsCSV
from lightning_apps.sweeps.grid import expand, grid_axes
from lightning_apps.sweeps.state import JobRecord, SweepState

POSITIONS = 40


def loss_of(categories: int, tokens: float, seed: int) -> float:
    """L = E + A * D^-alpha with alpha 0.3, a bit higher for more categories, shifted a bit by the seed."""
    return (2.0 + 0.1 * categories + 1.5 * (tokens / 1e6) ** -0.3) * (1 + 0.002 * (seed - 1))


def write_run(directory: RunDirectory, *, values: dict, experiment: str, in_context: bool, evaluations: int) -> None:
    """A completed run with curve, summary and, where wanted, in-context losses."""
    directory.path.mkdir(parents=True)
    categories, seed = values.get("data.num_categories", 1) or 4, values.get("seed", 1)  # null is all four
    budget = values.get("trainer.max_tokens") or 4_000_000
    config = {
        "experiment": experiment, "seed": seed, "scheduler": {"warmup_steps": 0.1}, "trainer": {}, "run": {},
    }  # fmt: skip
    directory.config.write_text(yaml.safe_dump(config))
    log = MetricsCSV(directory.metrics)
    for step in range(1, evaluations + 1):
        tokens = float(budget * step / evaluations)
        log.log_metrics({"train/loss": loss_of(categories, tokens, seed), "train/tokens": tokens}, step)
        log.log_metrics({"val/loss": loss_of(categories, tokens, seed)}, step)
    final = loss_of(categories, budget, seed)
    metrics = {
        "val/loss": final,
        "val/perplexity": float(np.exp(final)),
        "val/bits_per_byte": final / np.log(2) / 4.2,
        "test/loss": final + 0.05,
        "test/held_out_loss": final + 0.4 - 0.05 * categories,
    }
    summary = {
        "experiment": experiment, "name": directory.path.name, "status": "completed", "reason": "reached the budget",
        "seed": seed, "git_commit": "0123456789abcdef0123456789abcdef01234567", "command": "train",
        "parameters": {"total": 1000, "trainable": 1000}, "optimizer_steps": evaluations,
        "planned_steps": evaluations, "tokens_seen": budget, "target_tokens_seen": budget, "wall_s": 10.0 + seed,
        "train_s": 9.0, "tokens_per_s": 100.0, "metrics": metrics,
        "best": {"metric": "val/loss", "mode": "min", "value": final, "step": evaluations, "metrics": metrics},
    }  # fmt: skip
    directory.summary.write_text(json.dumps(summary))
    if in_context:
        position = np.arange(1, POSITIONS + 1)
        chosen = final + 0.5 * np.exp(-position / 8) * (1 + 0.05 * seed)
        held_out = chosen + 0.4 - 0.05 * categories
        arrays = {"position": position, "categories": np.array(["a", "b"]), "category_chosen": np.array([True, False])}
        arrays |= {f"category_{part}": np.stack([chosen, held_out]) for part in ("mean", "low", "high")}
        for name, mean in (("chosen", chosen), ("held_out", held_out)):
            arrays |= {f"{name}_mean": mean, f"{name}_low": mean - 0.02, f"{name}_high": mean + 0.02}
        (directory.path / "in_context").mkdir()
        np.savez(directory.path / "in_context" / "test.npz", **arrays)


def write_sweep(
    root: Path, grid: dict, *, name: str = "study", experiment: str = "arxiv", in_context: bool = True,
    evaluations: int = 20, leave_out: tuple = (),
) -> Path:  # fmt: skip
    """A sweep in which every job is complete, but those whose names are left out."""
    folder = root / "sweeps" / name
    folder.mkdir(parents=True)
    records = []
    axes = grid_axes(grid)
    for job in expand(axes):
        directory = RunDirectory(root / experiment / f"{name}-{job.name}")
        records.append(
            JobRecord(
                name=job.name, values=dict(job.values), overrides=list(job.overrides), run_directory=str(directory.path)
            )
        )
        if job.name in leave_out:
            continue
        records[-1].status = "done"
        write_run(
            directory, values=dict(job.values), experiment=experiment, in_context=in_context, evaluations=evaluations
        )
    listed = {key: list(axis.values) for key, axis in axes.items()}
    command = f"python -m lightning_apps.train sweep={name}"
    SweepState(name, experiment, command, listed, {}, records).write(folder)
    return folder
