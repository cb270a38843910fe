from types import SimpleNamespace

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from lightning_apps.callbacks.reduce_on_plateau import ReduceOnPlateau
from lightning_apps.errors import ConfigError
from lightning_apps.training.schedules import linear

SETTINGS = {"monitor": "val/loss", "mode": "min", "factor": 0.5, "patience": 1, "threshold": 0.1, "min_factor": 0.25}


def made(schedule=lambda step: 1.0):
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 0.1)]
    optimizer = torch.optim.AdamW(groups)
    trainer = SimpleNamespace(
        state=SimpleNamespace(fn="fit"),
        is_global_zero=True,
        global_step=0,
        callback_metrics={},
        strategy=SimpleNamespace(broadcast=lambda value: value),
        optimizers=[optimizer],
        lr_scheduler_configs=[SimpleNamespace(scheduler=LambdaLR(optimizer, schedule))],
    )
    return trainer, optimizer


def evaluate(callback, trainer, values):
    rates = []
    for value in values:
        trainer.callback_metrics = {"val/loss": torch.tensor(value)}
        callback.on_validation_end(trainer, None)
        rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])
    return rates


def test_rates_by_hand():
    trainer, _ = made()
    # 1 -> 0.95 is less than a tenth better; the second such evaluation in a row is one more than patience allows
    rates = evaluate(
        ReduceOnPlateau(**SETTINGS), trainer, [1.0, 0.95, 0.91, 0.8, 0.79, float("nan"), 0.9, 0.9, 0.9, 0.9]
    )
    assert [first for first, _ in rates] == [1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25, 0.25]
    assert [second for _, second in rates] == pytest.approx([0.1 * first for first, _ in rates], rel=1e-12)


def test_a_larger_value_can_be_better_and_signs_do_not_matter():
    trainer, _ = made()
    callback = ReduceOnPlateau(**{**SETTINGS, "mode": "max", "patience": 0})
    rates = evaluate(callback, trainer, [-1.0, -0.8, -0.75, -0.5, -0.5])
    assert [first for first, _ in rates] == [1, 1, 0.5, 0.5, 0.25]


def test_it_scales_any_schedule_from_the_next_step_on():
    schedule = linear(warmup_steps=0, total_steps=10, floor=0.0)
    trainer, optimizer = made(schedule)
    line = trainer.lr_scheduler_configs[0].scheduler
    for _ in range(4):
        optimizer.step()
        line.step()
    evaluate(ReduceOnPlateau(**{**SETTINGS, "patience": 0}), trainer, [1.0, 1.0])
    assert optimizer.param_groups[0]["lr"] == 0.5 * schedule(4) == line.get_last_lr()[0]
    optimizer.step()
    line.step()
    assert optimizer.param_groups[0]["lr"] == 0.5 * schedule(5)
    assert line.state_dict()["base_lrs"] == [0.5, 0.05]


def test_a_resumed_callback_goes_on_counting():
    trainer, _ = made()
    callback, again = ReduceOnPlateau(**SETTINGS), ReduceOnPlateau(**SETTINGS)
    evaluate(callback, trainer, [1.0, 1.0])
    again.load_state_dict(callback.state_dict())
    assert evaluate(again, trainer, [1.0])[0][0] == 0.5


def test_it_acts_while_training_only_and_names_a_missing_metric():
    trainer, _ = made()
    callback = ReduceOnPlateau(**{**SETTINGS, "patience": 0})
    trainer.state.fn = "validate"
    assert evaluate(callback, trainer, [1.0, 1.0, 1.0])[-1][0] == 1.0
    trainer.state.fn = "fit"
    trainer.callback_metrics = {"val/accuracy": torch.tensor(1.0)}
    with pytest.raises(ConfigError, match=r"val/loss.*choose one of val/accuracy"):
        callback.on_validation_end(trainer, None)
