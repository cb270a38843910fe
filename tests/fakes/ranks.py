"""Runs on several processes: started once, they train one configuration after another, as torchrun would have them.

    python -m tests.fakes.ranks runs.json    # by run_on_ranks, in each process

Importing and meeting takes longer than a tiny run; so tests and benchmarks/strategies.py share one start.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

from lightning_apps.config.checks import check_config
from lightning_apps.config.composition import CONF, plain
from lightning_apps.run_files.metrics_csv import read_metrics
from tests.asserts.patience import PATIENCE_S

COMPARED = ("train/loss", "train/grad_norm", "train/param_norm", "val/loss")


def configuration(overrides: Sequence[str]) -> dict[str, Any]:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return plain(compose("config", overrides=["precision=fp32", *overrides]))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start_ranks(
    world: int, command: list[str], nodes: int = 1, **environment: str | int
) -> list[subprocess.Popen[str]]:
    """The processes of one run, with the environment that torchrun gives them."""
    port, local = str(free_port()), world // nodes
    processes = []
    for rank in range(world):
        own = {
            "RANK": rank, "LOCAL_RANK": rank % local, "GROUP_RANK": rank // local, "WORLD_SIZE": world,
            "LOCAL_WORLD_SIZE": local, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test",
            "OMP_NUM_THREADS": 1, "WANDB_MODE": "offline", **environment,
        }  # fmt: skip
        env = {**os.environ, **{name: str(value) for name, value in own.items()}}
        processes.append(
            subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    return processes


def run_on_ranks(world: int, runs: list[list[str]], folder: Path) -> list[str]:
    """Train each list of overrides on `world` processes; raises with what they said where one fails."""
    settings = Path(folder) / f"runs-{world}-{time.monotonic_ns()}.json"
    settings.write_text(json.dumps(runs))
    processes = start_ranks(world, [sys.executable, "-m", "tests.fakes.ranks", str(settings)])
    said = [process.communicate(timeout=PATIENCE_S)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * world, "\n".join(said)
    return said


def losses(directory: Path) -> dict[int, dict[str, float]]:
    """step -> the values that do not depend on time."""
    found: dict[int, dict[str, float]] = {}
    for row in read_metrics(Path(directory) / "metrics.csv"):
        found.setdefault(int(row["step"]), {}).update({key: row[key] for key in COMPARED if key in row})
    return found


def largest_difference(one: Path, other: Path) -> float:
    """Between two runs, relative, over all rows; they have the same ones."""
    first, second = losses(one), losses(other)
    assert {step: sorted(row) for step, row in first.items()} == {step: sorted(row) for step, row in second.items()}
    pairs = [(first[step][key], second[step][key]) for step in first for key in first[step]]
    return max(abs(a - b) / max(abs(a), 1e-12) for a, b in pairs)


def main() -> None:
    import torch

    from lightning_apps.runs.experiment_run import run_experiment

    torch.set_num_threads(1)
    for overrides in json.loads(Path(sys.argv[1]).read_text()):
        config = configuration(overrides)
        check_config(config)
        run_experiment(config)


if __name__ == "__main__":
    main()
