"""The benchmark's plain loop is the same training: where nothing is dropped out, so are the losses."""

import subprocess
import sys
from argparse import Namespace

import pytest

from benchmarks import rating
from lightning_apps.run_files.metrics_csv import read_metrics
from lightning_apps.runs.experiment_run import run_experiment
from tests.tiny.tiny_runs import directory_of


def test_the_plain_loop_trains_as_we_do(composed, cache_root):
    options = Namespace(
        data="synthetic", model="tiny", precision="fp32", device="cpu", steps=2, cache_root=str(cache_root)
    )
    ours, plain = rating.COMPARISONS["exact"]
    peer = rating.plain_run(options, plain, seed=0)
    quiet = ["trainer.max_steps=3", "trainer.evaluate_every=never", "callbacks=default", "seed=0"]
    config = composed(*rating.settings(options), *ours, *quiet, name="bench")
    run_experiment(config)
    losses = [row["train/loss"] for row in read_metrics(directory_of(config).metrics)]
    assert peer["losses"] == pytest.approx(losses, rel=1e-5)
    assert len(peer["losses"]) == 3
    assert peer["documents_per_s"] > 0
    assert peer["peak_bytes"] > 1e8


@pytest.mark.slow
def test_the_command(cache_root):
    command = [sys.executable, "-m", "benchmarks.rating", "--data", "synthetic", "--model", "tiny", "--steps", "1",
               "--repeats", "1", "--cache-root", str(cache_root), "--only", "exact"]  # fmt: skip
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    assert "largest difference of a step's loss" in done.stdout
    assert "median ratio" in done.stdout
