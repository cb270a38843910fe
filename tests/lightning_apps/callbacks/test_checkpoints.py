"""Which evaluation is best, and what becomes of checkpoints on file systems that can do less."""

from types import SimpleNamespace

import pytest
import torch

from lightning_apps.callbacks.checkpoints import RunCheckpoints
from lightning_apps.process.safe_stop import SafeStop


def best_step(evaluations, *, monitor="val/metric", mode="min", tmp_path):
    """Step that is chosen among evaluations, given as metrics of the steps 1, 2, ..."""
    checkpoints = RunCheckpoints(
        plan=None, folder=tmp_path, monitor=monitor, mode=mode, keep=None, loss_ratio=None, stop=SafeStop(None)
    )
    for step, metrics in enumerate(evaluations, start=1):
        measured = {name: torch.tensor(value) for name, value in metrics.items()}
        trainer = SimpleNamespace(callback_metrics=measured, global_step=step)
        now = checkpoints.best_step_now(trainer)
        checkpoints._is_best(trainer)
        assert now == (checkpoints.best_step or None)  # the pictures of a step show it before it is saved
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
