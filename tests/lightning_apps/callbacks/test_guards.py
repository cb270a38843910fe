"""Every guard is made to see what it is there for, and to stay silent on a normal run."""

import json
import math
import shlex
import sys
from types import SimpleNamespace

import lightning as L
import pytest
import torch

from datamodules.location import LocationDataModule
from lightning_apps import replay as replay_command
from lightning_apps.callbacks.guards import LOSSES_NEEDED, Guards, describe_spike
from lightning_apps.callbacks.step_log import StepLog
from lightning_apps.config.checks import check_config
from lightning_apps.errors import ConfigError, GuardError
from lightning_apps.experiments.location.module import LocationModule
from lightning_apps.experiments.repeated_answers import is_collapsed
from lightning_apps.run_files.metrics_csv import read_metrics
from lightning_apps.runs import experiment_run
from lightning_apps.runs.experiment_run import run_experiment
from tests.tiny.tiny_runs import LOCATION, directory_of

QUIET = [*LOCATION, "callbacks=default", "trainer.evaluate_every=never"]
TWO_LAYERS = [*QUIET, "model.num_hidden_layers=2", "trainer.max_steps=5", "trainer.save_every=2"]


class AtStep(L.Callback):
    """Calls an action with the module at the start of one step (1 is the first)."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step + 1 == self.step:
            self.action(pl_module)


@pytest.fixture
def plant(monkeypatch):
    """plant(callback): the callback runs before all others of the next run."""

    def add(*synthetic):
        build = experiment_run.build_callbacks
        monkeypatch.setattr(experiment_run, "build_callbacks", lambda *args: [*synthetic, *build(*args)])

    return add


def put_nan(name):
    def action(module):
        with torch.no_grad():
            module.get_parameter(name).view(-1)[3] = float("nan")

    return action


def stopped(config):
    with pytest.raises(GuardError) as caught:
        run_experiment(config)
    assert len(str(caught.value).splitlines()) == 1
    summary = json.loads(directory_of(config).summary.read_text())
    assert summary["status"] == "failed"
    assert str(caught.value).split(";")[0] in summary["reason"]
    assert "failed: GuardError: " in (directory_of(config).path / "report.html").read_text()
    return caught.value


@pytest.mark.parametrize("layer", [0, 1])
def test_a_nan_weight_is_named_by_module_and_parameter(composed, plant, layer):
    name = f"net.model.layers.{layer}.mlp.up_proj"
    plant(AtStep(3, put_nan(f"{name}.weight")))
    error = stopped(composed(*TWO_LAYERS, name="nan"))
    assert f"step 3: NaN in the output of {name} for samples" in str(error)
    assert f"NaN in parameter {name}.weight (1 of 256 values)" in str(error)
    assert error.crash_dump.name == "step=00000003"


def test_values_that_turn_bad_between_modules_are_placed_there(composed):
    config = composed(*TWO_LAYERS, "optimizer.lr=1e30", name="huge")  # attention scores overflow in step 2
    assert "inside net.model.layers.0.self_attn, before net.model.layers.0.self_attn.o_proj" in str(stopped(config))


def test_an_infinite_gradient_is_named_though_clipping_would_spread_it(composed, plant):
    def action(module):
        weight = module.get_parameter("net.model.layers.0.self_attn.q_proj.weight")
        weight.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor(1), float("inf")))

    plant(AtStep(2, action))
    error = stopped(composed(*TWO_LAYERS, name="inf"))
    assert "step 2: Inf in the gradient of net.model.layers.0.self_attn.q_proj.weight (1 of " in str(error)


def test_a_weight_that_a_finite_step_made_infinite_reaches_no_checkpoint(composed, plant):
    class Break(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 4:
                put_nan("net.model.norm.weight")(pl_module)

    plant(Break())
    config = composed(*TWO_LAYERS, "trainer.log_every=3", name="late")  # step 4 is saved but not logged
    assert "step 4: NaN in parameter net.model.norm.weight" in str(stopped(config))
    saved = directory_of(config).checkpoints
    assert sorted(path.name for path in saved.iterdir()) == ["last.ckpt", "step=00000002.ckpt"]


@pytest.mark.parametrize(("column", "token"), [("input_ids", 99), ("labels", 40), ("labels", -7)])
def test_a_foreign_token_is_named_with_its_sample(composed, monkeypatch, column, token):
    build = LocationDataModule.training_batch

    def spoil(self, epochs, indices):
        batch = build(self, epochs, indices)
        if 17 in indices.tolist():
            batch[column][indices.tolist().index(17), 15] = token
        return batch

    monkeypatch.setattr(LocationDataModule, "training_batch", spoil)
    error = stopped(composed(*QUIET, "trainer.max_epochs=1", "data.device_batch_size=3", name="token"))
    assert f"token id {token} at position 15 of sample 17 ({column}) is outside the vocabulary of 21 (0 to 20)" in str(
        error
    )


def test_masked_targets_are_named_by_their_samples(composed, monkeypatch):
    build = LocationDataModule.training_batch

    def mask(self, epochs, indices):
        batch = build(self, epochs, indices)
        if self.trainer is not None and self.trainer.global_step == 2:
            batch["labels"][:] = -100
        return batch

    monkeypatch.setattr(LocationDataModule, "training_batch", mask)
    config = composed(*TWO_LAYERS, name="masked")
    error = stopped(config)
    crash_dump = json.loads((error.crash_dump / "crash_dump.json").read_text())
    assert crash_dump["guard"] == "no_targets"
    assert ", ".join(map(str, crash_dump["sample_ids"])) in str(error)


def test_nothing_trainable_is_refused():
    module = SimpleNamespace(parameters=lambda: [torch.nn.Parameter(torch.zeros(1), requires_grad=False)])
    with pytest.raises(ConfigError, match="nothing is trainable"):
        Guards.setup(None, None, module, "fit")


# ---------------------------------------------------------------------------------------------------- skipping


def spoil_loss(monkeypatch, step, factor):
    loss_sum = LocationModule.loss_sum

    def spoiled(self, batch, **options):
        loss, count = loss_sum(self, batch, **options)
        return (loss * factor if self.training and self.trainer.global_step + 1 == step else loss), count

    monkeypatch.setattr(LocationModule, "loss_sum", spoiled)


@pytest.mark.parametrize("precision", ["fp32", "bf16_mixed"])
def test_a_skipped_step_is_counted_and_leaves_the_weights_bit_identical(composed, monkeypatch, plant, precision):
    weights = {}

    def keep(step):
        return AtStep(step, lambda module: weights.update({step: [p.detach().clone() for p in module.parameters()]}))

    plant(keep(3), keep(4), keep(5))
    spoil_loss(monkeypatch, 3, float("nan"))
    config = composed(*TWO_LAYERS, "callbacks.guards.non_finite=skip", f"precision={precision}", name="skip")
    assert run_experiment(config)["status"] == "completed"
    assert all(before.equal(after) for before, after in zip(weights[3], weights[4], strict=True))
    assert not all(before.equal(after) for before, after in zip(weights[4], weights[5], strict=True))
    rows = read_metrics(directory_of(config).metrics)
    assert {row["step"]: row["train/skipped_steps"] for row in rows if "train/skipped_steps" in row} == {3: 1.0}
    assert math.isnan(rows[2]["train/loss"])
    state = torch.load(directory_of(config).checkpoint("last"), weights_only=True)["callbacks"]["Guards"]
    assert state["skipped_steps"] == 1
    assert "NaN in the loss" in directory_of(config).log.read_text()


def test_skipping_cannot_mend_a_broken_weight(composed, plant):
    plant(AtStep(2, put_nan("net.model.norm.weight")))
    error = stopped(composed(*TWO_LAYERS, "callbacks.guards.non_finite=skip", name="broken"))
    assert "NaN in parameter net.model.norm.weight" in str(error)


def test_off_lets_nan_pass(composed, monkeypatch):
    spoil_loss(monkeypatch, 3, float("nan"))
    config = composed(*TWO_LAYERS, "callbacks.guards.non_finite=off", name="off")
    assert run_experiment(config)["status"] == "completed"


# ---------------------------------------------------------------------------------------------------- loss spikes

SPIKES = [*QUIET, "trainer.max_steps=40", "trainer.save_every=10", "callbacks.guards.loss_spike=stop"]


def test_a_loss_spike_stops_at_its_step_and_a_normal_run_has_none(composed, monkeypatch):
    assert run_experiment(composed(*SPIKES, name="normal"))["status"] == "completed"
    spoil_loss(monkeypatch, 33, 6.0)
    error = stopped(composed(*SPIKES, name="spike"))
    assert "step 33: the loss jumped to" in str(error)
    assert error.guard == "loss_spike"
    assert len(json.loads((error.crash_dump / "crash_dump.json").read_text())["losses"]) == 33


def test_spikes_are_found_after_a_resume_too(composed, monkeypatch):
    """The history comes from the checkpoint: 12 own losses after step 20 would be too few to judge step 33."""
    config = composed(*SPIKES, "trainer.save_every=20", name="resumed")
    with monkeypatch.context() as patch:
        spoil_loss(patch, 31, 6.0)
        assert "step 31" in str(stopped(config))
    spoil_loss(monkeypatch, 33, 6.0)
    assert LOSSES_NEEDED > 33 - 20
    assert "step 33" in str(stopped({**config, "run": {**config["run"], "resume": "auto"}}))


@pytest.mark.parametrize(("action", "outcome"), [("warn", "warning: step 33"), ("skip", "skipped (1 so far)")])
def test_a_spike_can_be_passed_over(composed, monkeypatch, action, outcome):
    spoil_loss(monkeypatch, 33, 6.0)
    config = composed(*SPIKES, f"callbacks.guards.loss_spike={action}", name="pass")
    assert run_experiment(config)["status"] == "completed"
    assert directory_of(config).log.read_text().count(outcome) == 1


def test_a_spike_needs_both_a_doubled_loss_and_many_deviations():
    steady = [1.0 + 0.001 * (step % 5) for step in range(50)]
    noisy = [1.0 + 0.3 * (step % 5) for step in range(50)]
    assert describe_spike(1.5, steady, 20.0) is None
    assert describe_spike(2.5, steady, 20.0) is not None
    assert describe_spike(4.0, noisy, 20.0) is None
    assert describe_spike(99.0, steady[: LOSSES_NEEDED - 1], 20.0) is None
    assert describe_spike(0.01, [0.0] * 40, 20.0) is None  # grpo without an advantage
    assert describe_spike(0.5, [*steady, -1e-9], 20.0) is None


# ---------------------------------------------------------------------------------------------------- generation


def test_answers_of_one_token_repeated_are_counted():
    answers = [torch.tensor(answer) for answer in ([5] * 10, [5, 5, 5, 6], [5, 5], [], [7, 7, 7, 7])]
    assert [is_collapsed(answer) for answer in answers] == [True, False, False, False, True]


def collapse_guard(action):
    plan = SimpleNamespace(total_steps=100, save_steps=(), evaluation_steps=())
    return Guards(
        plan=plan, step_log=StepLog(plan, log_every=1), crash_dumps=None, config={}, non_finite="stop",
        token_ids="stop", loss_spike="off", loss_spike_sigmas=20.0, collapsed_generator=action, collapsed_after=0.5,
    )  # fmt: skip


def evaluate_collapse(guard, step, ratio):
    metrics = {"val/collapsed_ratio": torch.tensor(ratio)}
    guard.on_validation_end(
        SimpleNamespace(global_step=step, callback_metrics=metrics, state=SimpleNamespace(fn="fit")), None
    )


def test_a_collapsed_generator_counts_late_or_after_it_has_spoken():
    guard = collapse_guard("stop")
    for step, ratio in ((10, 1.0), (20, 0.4), (30, 1.0), (40, 0.0), (45, 0.0)):  # how normal runs begin
        evaluate_collapse(guard, step, ratio)
    with pytest.raises(GuardError, match="step 48: the generator collapsed"):
        evaluate_collapse(guard, 48, 1.0)
    fresh = collapse_guard("stop")
    evaluate_collapse(fresh, 49, 1.0)
    evaluate_collapse(fresh, 60, 0.99)
    with pytest.raises(GuardError, match="step 61"):
        evaluate_collapse(fresh, 61, 1.0)
    evaluate_collapse(collapse_guard("warn"), 90, 1.0)
    evaluate_collapse(collapse_guard("off"), 90, 1.0)


def test_the_location_evaluation_reports_collapse_to_the_guard(composed, monkeypatch):
    from lightning_apps.experiments.location import generation as location_generation

    monkeypatch.setattr(
        location_generation, "generate_greedy", lambda net, prompts, **_: [torch.full((10,), 7) for _ in prompts]
    )
    tiny = [*LOCATION, "callbacks.extra.picture=null", "trainer.max_steps=6", "trainer.evaluate_every=2"]
    config = composed(*tiny, "callbacks.guards.collapsed_generator=stop", name="collapse")
    error = stopped(config)
    assert "step 4: the generator collapsed" in str(error)
    assert read_metrics(directory_of(config).metrics)[1]["val/collapsed_ratio"] == 1.0


# ---------------------------------------------------------------------------------------------------- crash dumps


def test_a_crash_dump_loads_without_pickle_and_its_replay_command_finds_the_same(composed, monkeypatch, capsys):
    config = composed(*TWO_LAYERS, "optimizer.lr=1e30", name="dump")
    error = stopped(config)
    batch = torch.load(error.crash_dump / "batch.pt", weights_only=True)
    rng = torch.load(error.crash_dump / "rng.pt", weights_only=True)
    crash_dump = json.loads((error.crash_dump / "crash_dump.json").read_text())
    assert batch["sample_ids"].tolist() == crash_dump["sample_ids"]
    assert batch["micro_batches"][0]["input_ids"].shape == (8, 22)
    assert rng["torch"].dtype == torch.uint8
    assert crash_dump["step"] == len(crash_dump["grad_norms"]) == 2
    assert crash_dump["replay"] in str(error)

    words = shlex.split(crash_dump["replay"])
    assert words[:3] == ["python", "-m", "lightning_apps.replay"]
    monkeypatch.setattr(sys, "argv", words[2:])
    capsys.readouterr()
    replay_command.main()
    said = capsys.readouterr().out
    assert "batch under fresh weights: every value is finite" in said
    assert said.count("NaN inside net.model.layers.0.self_attn, before net.model.layers.0.self_attn.o_proj") == 2
    assert "the data give the crash dump's batch again" in said


def test_a_crash_dump_replay_names_what_is_bad_in_the_checkpoint(composed, monkeypatch, capsys, plant):
    plant(AtStep(4, put_nan("net.model.norm.weight")))
    config = composed(*TWO_LAYERS, "callbacks.weight_average={decay: 0.5}", name="rotten")
    error = stopped(config)
    path = directory_of(config).checkpoint("last")
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["current_model_state"]["net.model.layers.1.mlp.down_proj.weight"][0, 0] = float("inf")
    torch.save(checkpoint, path)
    monkeypatch.setattr(sys, "argv", ["replay", f"crash_dump={error.crash_dump}"])
    replay_command.main()
    assert "in the output of net.model.layers.1.mlp.down_proj" in capsys.readouterr().out


def test_settings_of_the_guards_are_checked(composed):
    with pytest.raises(ConfigError, match=r"non_finite='halt'.*allowed are stop, skip, off"):
        check_config(composed("callbacks.guards.non_finite=halt"))
    with pytest.raises(ConfigError, match="must be quoted"):
        check_config(composed("callbacks.guards.non_finite=false"))
    with pytest.raises(ConfigError, match="collapsed_after"):
        check_config(composed("callbacks.guards.collapsed_after=2"))
