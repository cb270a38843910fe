"""A run that is killed and resumed ends as the run that was never killed, bit for bit."""

import pytest
import torch

from lightning_apps.diagnostics.run_comparison import differences
from lightning_apps.runs import experiment_run
from lightning_apps.runs.experiment_run import run_experiment
from tests.asserts.killed_runs import Killed, assert_same, final_state, killed, resumed
from tests.tiny.tiny_runs import LOCATION

pytestmark = pytest.mark.numeric

# 14 steps an epoch: steps 15 and later are in the second one
RUN = [
    *LOCATION,
    "trainer.max_steps=32",
    "trainer.evaluate_every=8",
    "trainer.save_every=5",
    "data.device_batch_size=3",
    "model.attention_dropout=0.3",
    "callbacks.extra.picture=null",
    "callbacks.checkpoints.monitor=val/loss",
    "callbacks.checkpoints.mode=max",  # the first evaluation is best, so that best and last are different weights
]


@pytest.mark.parametrize(
    ("other", "found"),
    [
        ({"a": [torch.tensor([1.0, 2.0]), float("nan")], "wall_s": 9.0}, []),
        ({"a": [torch.tensor([1.0, 2.1]), float("nan")], "wall_s": 1.0}, ["/a/0"]),
        ({"a": [torch.tensor([1.0, 2.0]), 0.5], "wall_s": 1.0}, ["/a/1"]),
        ({"a": (torch.tensor([1.0, 2.0]), float("nan")), "wall_s": 1.0}, ["/a: list and tuple"]),
        ({"a": [torch.tensor([1.0, 2.0])], "wall_s": 1.0}, ["/a: 2 and 1 entries"]),
        ({"b": 1}, [": other keys"]),
    ],
)
def test_differences_are_found_where_they_are(other, found):
    assert differences({"a": [torch.tensor([1.0, 2.0]), float("nan")], "wall_s": 1.0}, other) == found


@pytest.fixture(scope="module")
def uninterrupted():
    return {}


@pytest.mark.parametrize(
    ("hook", "step"),
    [
        ("on_train_batch_start", 3),  # before the first checkpoint: starts afresh
        ("on_train_batch_end", 5),  # right after a periodic checkpoint
        ("on_train_batch_end", 7),  # between checkpoints
        ("on_validation_start", 8),  # step done, evaluation not
        ("on_validation_end", 8),  # evaluation done and saved
        ("on_train_batch_start", 14),  # at the epoch's end
        ("on_before_optimizer_step", 17),  # epoch 2, gradients of a step accumulated, update not made
        ("on_train_batch_end", 25),  # epoch 2
        ("on_validation_end", 32),  # the last evaluation, before it is saved
        ("on_train_end", 32),  # all is saved; best not yet evaluated again
    ],
)
def test_resumed_equals_uninterrupted(hook, step, composed, monkeypatch, capsys, uninterrupted):
    if not uninterrupted:
        whole = composed(*RUN, name="whole")
        run_experiment(whole)
        uninterrupted["state"] = final_state(whole)
    config = composed(*RUN, name="killed")
    killed(monkeypatch, config, hook, step)
    summary = run_experiment(resumed(config))
    assert summary["status"] == "completed"
    assert "WARNING" not in capsys.readouterr().out
    state, rows, predictions = final_state(config)
    expected_state, expected_rows, expected_predictions = uninterrupted["state"]
    assert predictions == expected_predictions
    for row, expected in zip(rows, expected_rows, strict=True):
        assert repr(sorted(row.items())) == repr(sorted(expected.items()))
    assert_same(state, expected_state)
    assert summary["tokens_seen"] == (2 * 110 + 4 * 8) * 22  # two epochs of 110 cities and four more steps


def test_a_run_that_ends_after_its_last_step_loses_nothing(composed, monkeypatch, uninterrupted):
    """Lightning then has no step to do, and calls none of the hooks of training."""
    short = [*RUN, "trainer.max_steps=4", "trainer.evaluate_every=2", "data.num_test=8"]
    whole, config = composed(*short, name="short"), composed(*short, name="late")
    expected = run_experiment(whole)

    def die(*args, **kwargs):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(experiment_run, "finish", die)
        patch.setattr(experiment_run, "write_summary", lambda *args: {})
        with pytest.raises(Killed):
            run_experiment(config)
    summary = run_experiment(resumed(config))
    assert (summary["status"], summary["optimizer_steps"], expected["optimizer_steps"]) == ("completed", 4, 4)
    assert repr(summary["metrics"]) == repr(expected["metrics"])  # some are NaN
    assert {key.partition("/")[0] for key in summary["metrics"]} == {"val", "test"}
    assert repr(final_state(config)[1]) == repr(final_state(whole)[1])
    assert summary["tokens_seen"] == expected["tokens_seen"]
