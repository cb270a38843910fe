import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from lightning_apps.run_files.directory import RunDirectory
from lightning_apps.run_files.metrics_csv import MetricsCSV
from lightning_apps.verify import Proof, largest_difference, line, loss_difference, own_claim
from tests.asserts.patience import PATIENCE_S
from tests.tiny.tiny_runs import LOCATION


def run_with(tmp_path, name, **values):
    directory = RunDirectory(tmp_path / name)
    directory.path.mkdir()
    log = MetricsCSV(directory.metrics)
    for step, loss in enumerate(values["losses"], start=1):
        log.log_metrics({"train/loss": loss, "train/tokens_per_s": hash(name) % 1000 + 0.5}, step)
    return directory


def test_outcomes():
    assert Proof("c", 0.0, 0.0, "").outcome == "proved"
    assert Proof("c", 1e-9, 0.0, "").outcome == "FAILED"
    assert Proof("c", float("inf"), 1e9, "").outcome == "FAILED"
    assert Proof("c", None, 0.0, "").outcome == "skipped"
    assert line(Proof("claim", 1e-9, 0.0, "reason")).startswith("FAILED   claim")


def test_largest_difference():
    one = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0])}
    assert largest_difference(one, {"a": torch.tensor([1.0, 2.5]), "b": torch.tensor([3.0])}) == 0.5
    assert largest_difference(one, one) == 0.0
    assert largest_difference(one, {"a": one["a"]}) == float("inf")
    assert largest_difference(one, {**one, "b": torch.tensor([float("nan")])}) == float("inf")


def test_loss_difference(tmp_path):
    whole = run_with(tmp_path, "whole", losses=[2.0, 1.0])
    assert loss_difference(whole, run_with(tmp_path, "same", losses=[2.0, 1.0])) == 0.0
    assert loss_difference(whole, run_with(tmp_path, "near", losses=[2.0, 1.001])) == pytest.approx(0.001)
    assert loss_difference(whole, run_with(tmp_path, "shorter", losses=[2.0])) == float("inf")
    nothing = run_with(tmp_path, "nothing", losses=[1e-9, 0.0])
    assert loss_difference(nothing, run_with(tmp_path, "rounded", losses=[3e-9, 0.0])) == pytest.approx(2e-7)


def test_claims_of_an_experiment_are_held_against_its_bits(tmp_path):
    def train(name, *words):
        """What a run leaves, its weights given by the seed."""
        run = run_with(tmp_path, name, losses=[2.0, 1.0])
        run.checkpoints.mkdir()
        torch.save({"state_dict": {"w": torch.tensor([float(words[-1][-1])])}}, run.checkpoints / "last.ckpt")
        return run

    bench = SimpleNamespace(train=train)
    same = own_claim(bench, "one thing = the same", [["seed=1"], ["data.x=2", "seed=1"]])
    assert (same.claim, same.difference, same.outcome) == ("one thing = the same", 0.0, "proved")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one-thing-the-same-0", "one-thing-the-same-1"]
    other = own_claim(bench, "one = two", [["seed=1"], ["seed=2"]])
    assert (other.difference, other.tolerance, other.outcome) == (1.0, 0.0, "FAILED")


@pytest.mark.slow
def test_the_command_proves_every_claim(tmp_path, cache_root):
    done = subprocess.run(
        [sys.executable, "-m", "lightning_apps.verify", f"run.output_root={tmp_path}", f"run.cache_root={cache_root}"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    table = json.loads((tmp_path / "location" / "verify.json").read_text())
    assert len(table) == 11
    assert {row["outcome"] for row in table} <= {"proved", "skipped"}
    assert sum(row["outcome"] == "proved" for row in table) >= 9


@pytest.mark.slow
def test_two_processes_share_the_work(tmp_path, cache_root):
    """Thirteen cities on two ranks, micro-batches of three: uneven shares everywhere, and one run directory."""
    where = [f"run.output_root={tmp_path}", f"run.cache_root={cache_root}", "data.num_validation=13"]
    run = [*LOCATION[:-1], *where, "data.device_batch_size=3", "trainer.max_steps=15", "callbacks.extra.picture=null"]
    for hardware in ("cpu", "cpu_ddp"):
        command = [sys.executable, "-m", "lightning_apps.train", *run, f"hardware={hardware}", f"run.name={hardware}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
        assert done.returncode == 0, done.stderr
    one, two = (RunDirectory(tmp_path / "location" / name) for name in ("cpu", "cpu_ddp"))
    assert loss_difference(one, two) < 1e-5
    assert one.predictions.read_text() == two.predictions.read_text()
    summaries = [json.loads(run.summary.read_text()) for run in (one, two)]
    for key in ("tokens_seen", "target_tokens_seen", "optimizer_steps"):
        assert summaries[0][key] == summaries[1][key]
