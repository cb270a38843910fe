"""Crash dumps: what a guard leaves behind, enough to look at the failure again.

A crash dump is a folder with `batch.pt` (what fed the step: token tensors and sample ids), `rng.pt` (the random states
in which it began), `config.yaml` and `crash_dump.json`, which says what happened. `torch.load(..., weights_only=True)`
reads both .pt files; other ranks than the first add `batch.rank1.pt` and so on.
"""

import json
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from lightning.fabric.utilities import move_data_to_device

from datamodules.contract import StepBatch
from datamodules.sampling.step_batches import step_batch
from lightning_apps.config.trusted_targets import check_targets
from lightning_apps.errors import ConfigError, first_line
from lightning_apps.run_files.atomic_files import write_json_atomically, write_text_atomically
from lightning_apps.run_files.directory import RunDirectory, read_config
from lightning_apps.training.optimizer_step import seed_step


@dataclass(frozen=True)
class CrashDump:
    """What crash_dump.json holds.

    Attributes:
        guard: which guard stopped the run.
        message: what it said.
        step: the optimizer step that failed; the weights are those after step - 1.
        rank: process that wrote it.
        sample_ids: samples of the step, this rank's share.
        run: directory of the run.
        checkpoint: newest checkpoint of the run, None before the first.
        grad_norms: gradient norms of the last steps, the failed one last; NaN and Inf are null.
        losses: mean losses of the last steps, the failed one last; NaN and Inf are null.
        replay: command that looks at the failure again.
    """

    guard: str
    message: str
    step: int
    rank: int
    sample_ids: list[int]
    run: str
    checkpoint: str | None
    grad_norms: list[float]
    losses: list[float]
    replay: str


def crash_dump_folder(crash_dumps: Path, step: int) -> Path:
    """Where the crash dump of an optimizer step goes."""
    return crash_dumps / f"step={step:08d}"


def rng_states(seed: int, step: int, rank: int) -> dict[str, Any]:
    """Random states of torch, numpy and random in which a step begins (`step` counts completed ones).

    They are a pure function of the arguments; the generators are left as they were.
    """
    saved = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    seed_step(seed, step, rank)
    name, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002
    version, words, next_gauss = random.getstate()
    states = {
        "torch": torch.get_rng_state(),
        "numpy": {
            "name": str(name), "keys": torch.tensor(np.asarray(keys, dtype=np.int64)), "position": int(position),
            "has_gauss": int(has_gauss), "gauss": float(gauss),
        },
        "python": {"version": version, "words": torch.tensor(words, dtype=torch.int64), "next_gauss": next_gauss},
        "seed_step": {"seed": seed, "completed_steps": step, "rank": rank},
    }  # fmt: skip
    torch.set_rng_state(saved[0])
    np.random.set_state(saved[1])  # noqa: NPY002
    random.setstate(saved[2])
    return states


def write_crash_dump(
    folder: Path, crash_dump: CrashDump, *, batch: StepBatch | None, config: Mapping[str, Any], seed: int
) -> None:
    """Write this rank's files of a crash dump over those of an earlier failure of the same step.

    Args:
        folder: of the crash dump, one for all ranks; made if need be.
        crash_dump: what crash_dump.json will hold.
        batch: what fed the step; its `micro_batches` and `sample_ids` are kept. None where it is not known.
        config: the run's configuration; rank 0 writes it.
        seed: the run's seed, from which the random states of the step follow.
    """
    folder.mkdir(parents=True, exist_ok=True)
    suffix = f".rank{crash_dump.rank}" if crash_dump.rank else ""
    file = folder / f"batch{suffix}.pt"
    file.unlink(missing_ok=True)
    if batch is not None:
        kept = {"micro_batches": batch.micro_batches, "sample_ids": torch.from_numpy(batch.sample_ids)}
        torch.save(move_data_to_device(kept, torch.device("cpu")), file)
    torch.save(rng_states(seed, crash_dump.step - 1, crash_dump.rank), folder / f"rng{suffix}.pt")
    if crash_dump.rank == 0:
        write_text_atomically(folder / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))
    write_json_atomically(folder / f"crash_dump{suffix}.json", asdict(crash_dump))


def read_crash_dump(path: str, *, trust: Any = ()) -> tuple[CrashDump, dict[str, Any], StepBatch | None]:
    """A crash dump, the configuration of its run, and what fed the step.

    Args:
        path: its folder.
        trust: what the configuration may name beside this program's own code, see check_targets.

    Raises:
        ConfigError: there is no crash dump at this path, or its configuration names code that nobody vouches for.
    """
    folder = Path(path)
    if not (folder / "crash_dump.json").is_file():
        raise ConfigError(
            f"crash_dump={path}: no crash dump is there (no crash_dump.json); they lie in <run>/crash_dumps/"
        )
    config = read_config(RunDirectory(folder))
    check_targets(config, folder / "config.yaml", trust)
    file = folder / "batch.pt"
    try:
        found = CrashDump(**json.loads((folder / "crash_dump.json").read_text(encoding="utf-8")))
        kept = torch.load(file, weights_only=True) if file.is_file() else None
        batch = None if kept is None else step_batch(kept["micro_batches"], kept["sample_ids"].numpy())
    except Exception as error:  # whatever a damaged file makes of json and torch.load
        raise ConfigError(f"crash_dump={path} is damaged ({first_line(error)}); choose another") from error
    return found, config, batch
