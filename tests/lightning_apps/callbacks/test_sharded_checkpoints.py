"""Sharded checkpoints on real processes: the same state as one file, and going on from them anywhere."""

import json
import shutil

import pytest
import torch

from lightning_apps.diagnostics.run_comparison import differences
from lightning_apps.diagnostics.sample_log import sample_log_row
from lightning_apps.run_files.directory import RunDirectory
from lightning_apps.run_files.weights import read_checkpoint
from tests.fakes.ranks import largest_difference, run_on_ranks
from tests.tiny.tiny_runs import LOCATION

pytestmark = pytest.mark.slow

RUN = [*LOCATION[:-1], "model.num_hidden_layers=2", "data.global_batch_size=13", "data.device_batch_size=3",
       "data.num_validation=13", "trainer.max_steps=6", "trainer.evaluate_every=3", "trainer.save_every=2",
       "trainer.log_every=1", "callbacks.checkpoints.keep=2", "callbacks.extra.picture=null",
       "callbacks.checkpoints.monitor=val/loss", "callbacks.checkpoints.mode=max",
       "callbacks.weight_average={decay: 0.9}", "hardware.num_threads=1"]  # fmt: skip
SHARDED = ["hardware=cpu_fsdp", "callbacks.checkpoints.layout=sharded"]
WAYS = {
    "consolidated": ["hardware=cpu_fsdp"],
    "sharded": SHARDED,
    "beside": [*SHARDED, "callbacks.checkpoints.write=background"],
}
NAMES = ["best.ckpt", "last.ckpt", "step=00000004.ckpt", "step=00000006.ckpt"]


@pytest.fixture(scope="module")
def start(tmp_path_factory, cache_root):
    """Trains runs, each a name and its overrides, on so many processes; returns their directories."""
    root = tmp_path_factory.mktemp("sharded")

    def start(world, *runs):
        words = [
            [*RUN, *more, f"run.output_root={root}", f"run.cache_root={cache_root}", f"run.name={name}"]
            for name, more in runs
        ]
        run_on_ranks(world, words, root)
        return [RunDirectory(root / "location" / name) for name, _ in runs]

    return start


ONE_STEP = ["trainer.max_time='00:00:00'"]


@pytest.fixture(scope="module")
def two_ranks(start):
    return start(2, *WAYS.items(), ("staged", [*SHARDED, *ONE_STEP]))


def test_the_state_of_one_file(two_ranks):
    consolidated, sharded, beside, _ = two_ranks
    for run in (sharded, beside):
        assert sorted(path.name for path in run.checkpoints.iterdir()) == NAMES
        for name in NAMES:
            folder = run.checkpoints / name
            assert len([*folder.glob("shard-*.safetensors")]) == 2
            expected = torch.load(consolidated.checkpoints / name, weights_only=True)
            found = read_checkpoint(folder)
            assert differences(expected, found) == [], name
        log = run.log.read_text()
        assert "evaluated again: val/loss is the same" in log
        assert json.loads(run.summary.read_text())["best"]["step"] == 3
        written = sum(path.stat().st_size for path in (run.checkpoints / "last.ckpt").iterdir())
        assert written < 1.3 * (consolidated.checkpoints / "last.ckpt").stat().st_size  # no tensor twice


@pytest.fixture(scope="module")
def gone_on(two_ranks, start):
    """The staged run, a step each on two processes, one, as one file, and the rest on two; the sharded run once more.

    The latter from its periodic checkpoint of step 4, since the later ones are gone.
    """
    _, sharded, _, staged = two_ranks
    again = ["run.resume=auto"]
    kinds = [staged.checkpoint("last").is_dir()]
    start(1, ("staged", [*SHARDED, *ONE_STEP, *again, "hardware.devices=1"]))
    kinds.append(len([*staged.checkpoint("last").glob("shard-*")]) == 1)
    start(1, ("staged", ["hardware=cpu", *ONE_STEP, *again]))
    kinds.append(staged.checkpoint("last").is_file())
    assert kinds == [True] * 3
    cut = sharded.path.parent / "cut"
    shutil.copytree(sharded.path, cut)
    for name in ("last", "6"):
        shutil.rmtree(RunDirectory(cut).checkpoint(name))
    (cut / "summary.json").unlink()
    return start(2, ("staged", [*SHARDED, *again]), ("cut", [*SHARDED, *again]))


def test_a_run_goes_on_with_other_numbers_of_processes_and_layouts(two_ranks, gone_on):
    consolidated, staged = two_ranks[0], gone_on[0]
    assert largest_difference(consolidated.path, staged.path) < 1e-6
    for step in range(1, 7):
        rows = [sample_log_row(run.sample_log, step).tolist() for run in (consolidated, staged)]
        assert rows[0] == rows[1]
    assert sorted(path.name for path in staged.checkpoints.iterdir()) == NAMES


def test_resumed_at_the_same_number_of_processes_is_the_same_bit_for_bit(two_ranks, gone_on):
    expected, found = (read_checkpoint(run.checkpoint("last")) for run in (two_ranks[1], gone_on[1]))
    assert differences(expected, found) == []
