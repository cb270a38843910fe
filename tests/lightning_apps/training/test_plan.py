from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_apps.errors import ConfigError
from lightning_apps.training.plan import cadence_steps, fraction_or_steps
from lightning_apps.training.schedules import constant, cosine, linear, one_cycle, warmup_stable_decay
from tests.tiny.plans import plan


def test_epochs_become_steps():
    made = plan(max_epochs=40)
    assert (made.steps_per_epoch, made.total_steps, made.warmup_steps) == (17, 680, 34)
    assert sorted(made.evaluation_steps) == list(range(68, 681, 68))
    assert made.save_steps == frozenset()
    assert made.total_tokens == 40 * 1055 * 22
    assert made.budget == "trainer.max_epochs=40"


def test_a_batch_that_feeds_several_steps_makes_an_epoch_longer():
    made = plan(max_epochs=2, inner_steps=2)
    once = plan(max_epochs=2)
    assert (made.steps_per_epoch, made.total_steps) == (2 * once.steps_per_epoch, 2 * once.total_steps)
    assert made.total_tokens == 2 * once.total_tokens
    assert made.epoch(made.total_steps) == once.epoch(once.total_steps) == 2


def test_tokens_go_before_steps_and_those_before_epochs():
    assert plan(max_epochs=3, max_steps=5).total_steps == 5
    made = plan(max_epochs=3, max_steps=5, max_tokens=2 * 1055 * 22)
    assert made.total_steps == 34
    assert made.budget == "trainer.max_tokens=46,420, which takes precedence"
    assert plan(max_epochs=0.5).total_steps == 8


def test_the_last_step_is_always_evaluated_unless_never():
    assert sorted(plan(max_steps=10, evaluate_every=4).evaluation_steps) == [4, 8, 10]
    assert sorted(plan(max_steps=10, evaluate_every=50).evaluation_steps) == [10]
    assert plan(max_steps=10, evaluate_every="never").evaluation_steps == frozenset()
    assert sorted(plan(max_steps=40, evaluate_every="epoch").evaluation_steps) == [17, 34, 40]
    assert sorted(plan(max_steps=10, save_every=4).save_steps) == [4, 8]


@given(st.integers(1, 5000), st.integers(2, 50))
def test_a_fraction_of_one_nth_is_due_n_times(total_steps, parts):
    due = sorted(cadence_steps("k", 1 / parts, total_steps=total_steps, epoch_steps=1))
    assert len(due) == min(parts, total_steps) or total_steps < parts
    assert due[-1] == total_steps
    assert due[0] >= 1
    if total_steps >= 2 * parts:
        gaps = [after - before for before, after in pairwise(due)]
        assert max(gaps, default=0) - min(gaps, default=0) <= 1


@pytest.mark.parametrize(
    ("key", "call"),
    [
        ("trainer.max_steps=0", lambda: plan(max_steps=0)),
        ("trainer.max_epochs=-1", lambda: plan(max_epochs=-1)),
        ("trainer.max_steps, trainer.max_epochs or trainer.max_tokens", lambda: plan()),
        ("trainer.evaluate_every='often'", lambda: plan(max_steps=5, evaluate_every="often")),
        ("trainer.evaluate_every=2.5", lambda: plan(max_steps=5, evaluate_every=2.5)),
        ("trainer.evaluate_every=0", lambda: plan(max_steps=5, evaluate_every=0)),
        ("scheduler.warmup_steps=500: that is 500 of 5", lambda: plan(max_steps=5, warmup=500)),
        ("scheduler.warmup_steps=-1", lambda: plan(max_steps=5, warmup=-1)),
    ],
)
def test_impossible_plans_are_refused(key, call):
    with pytest.raises(ConfigError) as error:
        call()
    assert key in str(error.value)


def test_fractions_and_steps():
    assert fraction_or_steps("k", 0.1, 95) == 10
    assert fraction_or_steps("k", 0.001, 95) == 1
    assert fraction_or_steps("k", 0, 95) == 0
    assert fraction_or_steps("k", 1, 95) == 1
    assert fraction_or_steps("k", 7.0, 95) == 7


def test_schedules_by_hand():
    line = linear(warmup_steps=2, total_steps=12, floor=0.0)
    assert [line(step) for step in (0, 1, 2, 7, 12)] == [0.5, 1.0, 1.0, 0.5, 0.0]
    assert linear(warmup_steps=0, total_steps=10, floor=0.2)(10) == pytest.approx(0.2)
    wave = cosine(warmup_steps=0, total_steps=10, floor=0.1)
    assert [wave(0), wave(5), wave(10)] == pytest.approx([1.0, 0.55, 0.1])
    decay = warmup_stable_decay(warmup_steps=2, total_steps=10, floor=0.0, decay_share=0.4)
    assert [decay(step) for step in (0, 1, 5, 6, 8, 10)] == pytest.approx([0.5, 1, 1, 1, 0.5, 0])
    assert [constant(warmup_steps=4, total_steps=9)(step) for step in (0, 3, 8)] == [0.25, 1.0, 1.0]


def test_one_cycle_by_hand():
    cycle = one_cycle(warmup_steps=4, total_steps=12, initial_division=5.0, final_division=4.0)
    # a fifth, half way up, the peak, half way down, a quarter of a fifth
    assert [cycle(step) for step in (0, 2, 4, 8, 12, 13)] == pytest.approx([0.2, 0.6, 1.0, 0.525, 0.05, 0.05])
    assert cycle(1) == pytest.approx(0.2 + 0.8 * (1 - 2**-0.5) / 2)
    assert one_cycle(warmup_steps=0, total_steps=2, initial_division=5.0, final_division=4.0)(0) == 1.0


def test_one_cycle_is_that_of_torch():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    # torch reaches its peak and its end one step early: at 0.4 * 10 - 1 and 10 - 1
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=10, pct_start=0.4)
    ours = one_cycle(warmup_steps=3, total_steps=9, initial_division=25.0, final_division=1e4)
    for step in range(10):
        assert ours(step) == pytest.approx(theirs.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        theirs.step() if step < 9 else None
