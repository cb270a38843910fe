"""What tests of resuming share: a run that dies at a hook, the same run resumed, and the state that it ends in."""

import lightning as L
import pytest
import torch

from lightning_apps.diagnostics.run_comparison import differences
from lightning_apps.run_files.metrics_csv import read_metrics
from lightning_apps.runs import experiment_run
from lightning_apps.runs.experiment_run import run_experiment
from tests.tiny.tiny_runs import directory_of

TIMED = (
    "train/mfu",
    "train/tokens_per_s",
)


class Killed(BaseException):
    """Stands for kill -9: nothing after it runs in the dying process's callbacks."""


class KillAt(L.Callback):
    def __init__(self, hook, step):
        self.step = step
        setattr(self, hook, self._die)

    def _die(self, trainer, *args, **kwargs):
        if trainer.global_step >= self.step:
            raise Killed


def killed(monkeypatch, config, hook, step):
    """Run until the hook is reached at the step, with the callback before (`*_start`) or after all others."""
    build = experiment_run.build_callbacks

    def with_killer(*args):
        callbacks = build(*args)
        return [KillAt(hook, step), *callbacks] if hook.endswith("start") else [*callbacks, KillAt(hook, step)]

    with monkeypatch.context() as patch:
        patch.setattr(experiment_run, "build_callbacks", with_killer)
        patch.setattr(experiment_run, "write_summary", lambda *args: {})
        with pytest.raises(Killed):
            run_experiment(config)


def resumed(config):
    return {**config, "run": {**config["run"], "resume": "auto"}}


def final_state(config):
    directory = directory_of(config)
    state = torch.load(directory.checkpoint("last"), weights_only=True)
    rows = [{key: value for key, value in row.items() if key not in TIMED} for row in read_metrics(directory.metrics)]
    return state, rows, directory.predictions.read_text()


def assert_same(first, second):
    """Equal structure and bits; clocks differ."""
    assert differences(first, second) == []
