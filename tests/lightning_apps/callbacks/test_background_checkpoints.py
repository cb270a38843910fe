"""Checkpoints that are written beside training: the same files, whatever comes in between."""

import os
import signal
import subprocess
import sys
import threading
import time

import lightning as L
import pytest
import torch

from lightning_apps.config.composition import CONF
from lightning_apps.diagnostics.run_comparison import differences
from lightning_apps.run_files.checkpoint_files import AtomicCheckpointIO, newest_whole_checkpoint
from lightning_apps.run_files.directory import RunDirectory
from lightning_apps.run_files.metrics_csv import read_metrics
from lightning_apps.runs import experiment_run
from lightning_apps.runs.experiment_run import run_experiment
from tests.asserts.killed_runs import KillAt, Killed, assert_same, final_state
from tests.asserts.patience import PATIENCE_S, wait_until
from tests.tiny.tiny_runs import LOCATION, directory_of

RUN = [
    *LOCATION,
    "trainer.max_steps=8",
    "trainer.evaluate_every=4",
    "trainer.save_every=3",
    "callbacks.extra.picture=null",
    "callbacks.checkpoints.monitor=val/loss",
    "callbacks.checkpoints.mode=max",  # the first evaluation is best, so that best and last are different weights
]
BACKGROUND = "callbacks.checkpoints.write=background"


class Steps(L.Callback):
    """Knows how many steps are done, and lets others wait for one."""

    def __init__(self):
        self.done = 0
        self.more = threading.Condition()

    def on_train_batch_start(self, trainer, *args):
        with self.more:
            self.done = trainer.global_step
            self.more.notify_all()

    def wait_for(self, step):
        with self.more:
            assert self.more.wait_for(lambda: self.done >= step, PATIENCE_S), f"step {step} waits for this write"


def with_callbacks(monkeypatch, *more):
    build = experiment_run.build_callbacks
    monkeypatch.setattr(experiment_run, "build_callbacks", lambda *args: [*more, *build(*args)])


def held_up(monkeypatch, wait):
    """Let each write call `wait(step)` first; returns the steps whose write began and ended, in order."""
    save, seen = AtomicCheckpointIO.save_checkpoint, []

    def slow(self, checkpoint, path, storage_options=None):
        seen.append(("began", checkpoint["global_step"]))
        wait(checkpoint["global_step"])
        save(self, checkpoint, path, storage_options)
        seen.append(("ended", checkpoint["global_step"]))

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", slow)
    return seen


def test_the_files_of_the_foreground_while_training_goes_on(composed, monkeypatch):
    """Step 5 is trained while the checkpoint of step 4 is written, and that of step 6 waits for it."""
    before, beside = composed(*RUN, name="foreground"), composed(*RUN, BACKGROUND, name="background")
    run_experiment(before)
    steps = Steps()
    with_callbacks(monkeypatch, steps)
    seen = held_up(monkeypatch, lambda step: steps.wait_for({3: 3, 4: 5, 6: 7, 8: 7}[step]))
    run_experiment(beside)
    assert seen == [(word, step) for step in (3, 4, 6, 8) for word in ("began", "ended")]
    folders = [directory_of(config).checkpoints for config in (before, beside)]
    names = [sorted(path.name for path in folder.iterdir()) for folder in folders]
    assert names[0] == names[1] == ["best.ckpt", "last.ckpt", "step=00000003.ckpt", "step=00000006.ckpt"]
    for name in names[0]:
        first, second = (torch.load(folder / name, weights_only=True) for folder in folders)
        assert differences(first, second) == [], name
    assert_same(final_state(before)[0], final_state(beside)[0])
    assert repr(final_state(before)[1:]) == repr(final_state(beside)[1:])  # some are NaN


def test_an_exception_waits_for_the_write(composed, monkeypatch):
    """What is said of the run is said once its last checkpoint has a name."""
    config = composed(*RUN, BACKGROUND, name="failing")
    died = threading.Event()
    saved = []

    class Dies(KillAt):
        def _die(self, trainer, *args, **kwargs):
            if trainer.global_step >= self.step:
                died.set()
                raise Killed

    def look(*args):
        names = ("last", "best")
        saved.extend(torch.load(directory_of(config).checkpoint(n), weights_only=True)["global_step"] for n in names)
        return {}

    with_callbacks(monkeypatch, Dies("on_train_batch_start", 4))
    monkeypatch.setattr(experiment_run, "write_summary", look)
    held_up(monkeypatch, lambda step: step < 4 or (died.wait(PATIENCE_S) and time.sleep(0.5)))
    with pytest.raises(Killed):
        run_experiment(config)
    assert saved == [4, 4]


KILLED_WHILE_IT_WRITES = """
import sys, time
from pathlib import Path
import torch
from lightning_apps.run_files import checkpoint_files
save = torch.save
def save_half(checkpoint, file):
    save(checkpoint, file)
    if checkpoint["global_step"] == 6:
        file.truncate(file.tell() // 2)
        file.flush()
        time.sleep(3600)
checkpoint_files.torch.save = save_half
from lightning_apps.train import main
main()
"""


@pytest.mark.slow
def test_kill_9_during_a_write_leaves_the_checkpoint_before(composed, tmp_path, cache_root):
    whole = composed(*RUN, "trainer.log_every=1", name="whole")
    run_experiment(whole)
    script = tmp_path / "killed.py"
    script.write_text(KILLED_WHILE_IT_WRITES)
    where = [f"run.output_root={tmp_path / 'outputs'}", f"run.cache_root={cache_root}", "run.name=killed"]
    words = [*RUN, BACKGROUND, "trainer.log_every=1", *where]
    own = {**os.environ, "PYTHONPATH": str(CONF.parent)}
    process = subprocess.Popen([sys.executable, script, *words], env=own, stdout=subprocess.DEVNULL)
    directory = RunDirectory(tmp_path / "outputs" / "location" / "killed")

    def half_written_and_a_step_further():
        rows = read_metrics(directory.metrics) if directory.metrics.is_file() else []
        # step 8 may be trained before anybody looks: what waits for this write is its checkpoint
        return any(row["step"] > 6 for row in rows) and any(directory.checkpoints.glob(".*.part"))

    wait_until(half_written_and_a_step_further)
    process.send_signal(signal.SIGKILL)
    process.wait()
    reports = []
    last = newest_whole_checkpoint(directory.checkpoints, reports.append)
    assert (last, reports) == (directory.checkpoint("last"), [])
    assert torch.load(last, weights_only=True)["global_step"] == 4
    done = subprocess.run(
        [sys.executable, "-m", "lightning_apps.train", *words, "run.resume=auto"],
        env=own, stdout=subprocess.DEVNULL, timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 0
    names = ["best.ckpt", "last.ckpt", "step=00000003.ckpt", "step=00000006.ckpt"]
    assert sorted(path.name for path in directory.checkpoints.iterdir()) == names  # nothing half is left
    resumed = torch.load(directory.checkpoint("last"), weights_only=True)
    assert_same(resumed, final_state(whole)[0])
