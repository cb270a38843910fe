"""Which evaluation is best, and what becomes of checkpoints on file systems that can do less."""

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lightning_apps.callbacks.checkpoints import RunCheckpoints
from lightning_apps.errors import ConfigError
from lightning_apps.process.safe_stop import SafeStop
from lightning_apps.runs.experiment_run import run_experiment
from tests.tiny.tiny_runs import LOCATION, directory_of


def best_step(evaluations, *, monitor="val/metric", mode="min", tmp_path):
    """Step that is chosen among evaluations, given as metrics of the steps 1, 2, ..."""
    checkpoints = RunCheckpoints(
        plan=None, folder=tmp_path, monitor=monitor, mode=mode, keep=None, loss_ratio=None, stop=SafeStop(None)
    )
    for step, metrics in enumerate(evaluations, start=1):
        measured = {name: torch.tensor(value) for name, value in metrics.items()}
        checkpoints._is_best(SimpleNamespace(callback_metrics=measured, global_step=step))
    return checkpoints.best_step


@pytest.mark.parametrize(
    ("values", "losses", "best"),
    [
        ([20015.0] * 3, [3.0, 2.5, 2.8], 2),  # equal: the lower loss
        ([20015.0] * 3, [3.0, 2.5, 2.5], 3),  # both equal: the newest
        ([20015.0, 20014.0, 20015.0], [3.0, 9.0, 1.0], 2),  # the metric counts first
        ([1.0, 1.0, 1.0], [float("nan"), 2.5, float("nan")], 2),
        ([1.0, 1.0], [float("nan"), float("nan")], 2),
        ([float("nan"), float("nan")], [3.0, 2.0], 0),  # NaN is never best
        ([1.0, float("nan")], [3.0, 2.0], 1),
        ([1.0, 1.0], [None, None], 2),  # no loss is measured
        ([1.0, 1.0], [2.0, None], 1),
    ],
)
@pytest.mark.parametrize("mode", ["min", "max"])
def test_ties_go_to_the_lower_loss_then_to_the_newest(values, losses, best, mode, tmp_path):
    sign = 1 if mode == "min" else -1
    evaluations = [
        {"val/metric": sign * value, **({} if loss is None else {"val/loss": loss})}
        for value, loss in zip(values, losses, strict=True)
    ]
    assert best_step(evaluations, mode=mode, tmp_path=tmp_path) == best


def test_equal_losses_that_are_monitored_themselves(tmp_path):
    assert best_step([{"val/loss": 2.0}] * 3, monitor="val/loss", tmp_path=tmp_path) == 3


def refuse_links(monkeypatch, number, *, leaves_a_file=False):
    def refuse(self, target):
        if leaves_a_file:
            self.write_bytes(b"")
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "hardlink_to", refuse)


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.EXDEV, errno.EMLINK, errno.ENOSYS])
def test_where_there_are_no_hard_links_checkpoints_are_copied(number, composed, monkeypatch):
    refuse_links(monkeypatch, number, leaves_a_file=number == errno.ENOTSUP)
    config = composed(*LOCATION, "trainer.max_steps=4", "trainer.evaluate_every=2", "trainer.save_every=2",
                      "callbacks.extra.picture=null", name="copied")  # fmt: skip
    assert run_experiment(config)["status"] == "completed"
    folder = directory_of(config).checkpoints
    names = ["best.ckpt", "last.ckpt", "step=00000002.ckpt", "step=00000004.ckpt"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert (folder / "last.ckpt").read_bytes() == (folder / "step=00000004.ckpt").read_bytes()
    assert all(path.stat().st_nlink == 1 for path in folder.iterdir())


def test_the_best_of_another_run_is_not_waited_for(composed, capsys):
    """Its weights are not here: the run that goes on from its checkpoint looks for a best one of its own."""
    words = [*LOCATION, "trainer.evaluate_every=2", "trainer.save_every=never", "callbacks.extra.picture=null"]
    first = composed(*words, "trainer.max_steps=2", name="first")
    run_experiment(first)
    start = directory_of(first).checkpoint("last")
    content = torch.load(start, weights_only=True)
    (state,) = [state for state in content["callbacks"].values() if "best_value" in state]
    state["best_value"] = -1e9 if first["callbacks"]["checkpoints"]["mode"] == "min" else 1e9  # never reached again
    torch.save(content, start)
    second = composed(*words, "trainer.max_steps=4", f"run.resume={start}", name="second")
    summary = run_experiment(second)
    assert summary["status"] == "completed"
    assert summary["best"]["step"] == 4
    assert "best.ckpt of step 2 is not here; the best evaluation is looked for anew" in capsys.readouterr().out
    assert (directory_of(second).model / "config.json").is_file()


def test_a_checkpoint_of_another_model_is_one_line_and_nothing_is_written(composed):
    words = [*LOCATION, "trainer.max_steps=1", "callbacks.extra.picture=null"]
    first = composed(*words, name="first")
    run_experiment(first)
    start = directory_of(first).checkpoint("last")
    wider = composed(*words, "model.hidden_size=64", f"run.resume={start}", name="wider")
    with pytest.raises(ConfigError, match=r"run\.resume=.*last\.ckpt: the checkpoint is of another model \(net\."):
        run_experiment(wider)
    assert not directory_of(wider).path.exists()
    torch.save({"global_step": 1}, start)
    with pytest.raises(ConfigError, match=r"last\.ckpt is no checkpoint of a run \(state_dict is not in it\)"):
        run_experiment(wider)


def test_exported_weights_can_be_read_by_whoever_reads_the_rest(composed):
    config = composed(*LOCATION, "trainer.max_steps=1", "callbacks.extra.picture=null", name="shared")
    run_experiment(config)
    modes = {path.name: path.stat().st_mode for path in directory_of(config).model.iterdir()}
    assert modes["model.safetensors"] == modes["config.json"]
