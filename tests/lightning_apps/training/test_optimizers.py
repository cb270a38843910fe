"""Optimizers against references, checkpoints and whole runs."""

import json
import sys
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from lightning_apps import evaluate
from lightning_apps.callbacks.step_log import learning_rates
from lightning_apps.errors import ConfigError
from lightning_apps.run_files.metrics_csv import read_metrics
from lightning_apps.runs.build import build_module
from lightning_apps.runs.experiment_run import run_experiment
from lightning_apps.training import optimizers
from lightning_apps.training.muon import BatchedMuon
from lightning_apps.training.parameter_groups import hidden_matrices
from tests.asserts.rounding import assert_same_sum
from tests.tiny.plans import plan
from tests.tiny.tiny_qwen2 import tiny
from tests.tiny.tiny_runs import LOCATION, directory_of

pytestmark = pytest.mark.numeric

SETTINGS = {"lr": 0.01, "betas": [0.8, 0.9], "eps": 1e-8, "weight_decay": 0.1, "groups": [], "layer_decay": None}
BUILDERS = {
    "adamw": partial(optimizers.adamw, fused=True),
    "muon": partial(optimizers.muon, fused=True),
    "schedule_free": optimizers.schedule_free_adamw,
}


def small():
    return tiny(hidden_size=16, num_hidden_layers=2, intermediate_size=16)


def set_gradients(net, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator) if parameter.requires_grad else None


def equal(first, second):
    return all(a.equal(b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("name", BUILDERS)
def test_a_saved_optimizer_continues_bit_for_bit(name, tmp_path):
    def make(net):
        optimizer = BUILDERS[name](net, **{**SETTINGS, "layer_decay": 0.9})
        return optimizer, LambdaLR(optimizer, lambda step: 1 / (1 + step))

    def steps(net, optimizer, schedule, seeds):
        for seed in seeds:
            set_gradients(net, seed)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()

    whole, again = small(), small()
    optimizer, schedule = make(whole)
    steps(whole, optimizer, schedule, range(3))
    saved = {"net": whole.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
    torch.save(saved, tmp_path / "state")
    steps(whole, optimizer, schedule, range(3, 5))

    loaded = torch.load(tmp_path / "state", weights_only=True)
    again.load_state_dict(loaded["net"])
    other, other_schedule = make(again)
    other.load_state_dict(loaded["optimizer"])
    other_schedule.load_state_dict(loaded["schedule"])
    assert not equal(whole, again)
    steps(again, other, other_schedule, range(3, 5))
    assert equal(whole, again)
    assert [group["lr"] for group in other.param_groups] == [group["lr"] for group in optimizer.param_groups]


def test_muon_equals_muon_and_adamw_run_apart():
    together, apart = small(), small()
    optimizer = optimizers.muon(together, **SETTINGS, fused=False)
    schedule = LambdaLR(optimizer, lambda step: 1 / (1 + step))
    inside = hidden_matrices(apart)
    assert len(inside) == 2 * 7
    rest = [parameter for parameter in apart.parameters() if parameter not in inside]
    alone = [
        BatchedMuon(inside_in_order(apart, inside), lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(
            [
                {"params": [parameter for parameter in rest if parameter.ndim >= 2], "weight_decay": 0.1},
                {"params": [parameter for parameter in rest if parameter.ndim < 2], "weight_decay": 0.0},
            ],
            lr=0.01,
            betas=(0.8, 0.9),
            fused=False,
        ),
    ]
    schedules = [LambdaLR(single, lambda step: 1 / (1 + step)) for single in alone]
    for seed in range(3):
        set_gradients(together, seed)
        set_gradients(apart, seed)
        calls = []
        assert optimizer.step(lambda: calls.append(1) or 7) == 7  # noqa: B023
        assert calls == [1]
        for single in alone:
            single.step()
        for each in (schedule, *schedules):
            each.step()
        assert equal(together, apart)
    assert {group["name"] for group in optimizer.param_groups} == {"muon/matrices", "adamw/matrices", "adamw/vectors"}
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in together.parameters())


def test_muon_is_torchs_in_float32():
    """A reference in float64, and torch's own, which iterates in bfloat16."""
    torch.manual_seed(3)
    shapes = [(8, 24), (24, 8), (24, 8), (16, 16)]
    start = [torch.randn(shape) for shape in shapes]
    settings = {"lr": 0.02, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    ours, theirs = ([nn.Parameter(value.clone()) for value in start] for _ in range(2))
    optimizers = BatchedMuon(ours, **settings), torch.optim.Muon(theirs, **settings)
    expected, averages = [value.double() for value in start], [torch.zeros(shape).double() for shape in shapes]
    for _ in range(3):
        for number, shape in enumerate(shapes):
            gradient = torch.randn(shape)
            ours[number].grad, theirs[number].grad = gradient.clone(), gradient.clone()
            averages[number] = 0.95 * averages[number] + 0.05 * gradient.double()
            x = 0.05 * gradient.double() + 0.95 * averages[number]
            x = x.T / x.norm() if shape[0] > shape[1] else x / x.norm()
            for _ in range(5):
                a = x @ x.T
                x = 3.4445 * x - 4.775 * a @ x + 2.0315 * a @ a @ x
            x = x.T if shape[0] > shape[1] else x
            expected[number] = expected[number] * (1 - 0.02 * 0.1) - 0.02 * 0.2 * max(shape) ** 0.5 * x
        for optimizer in optimizers:
            optimizer.step()
    for number in range(len(shapes)):
        torch.testing.assert_close(ours[number].detach().double(), expected[number], rtol=1e-5, atol=1e-6)
        # an update has entries of about 0.004; bfloat16 keeps 8 bits through fifteen products
        torch.testing.assert_close(ours[number], theirs[number], rtol=0.0, atol=1e-3)
    assert optimizers[0].state_dict()["state"].keys() == optimizers[1].state_dict()["state"].keys()
    assert optimizers[0].state[ours[0]].keys() == optimizers[1].state[theirs[0]].keys()


def inside_in_order(net, chosen):
    return [parameter for parameter in net.parameters() if parameter in chosen]


def test_muon_needs_layers():
    with pytest.raises(ConfigError, match="no matrix lies in a numbered layer"):
        optimizers.muon(nn.Linear(2, 2), **SETTINGS, fused=False)


def test_muon_over_frozen_layers_is_adamw():
    net = small()
    for parameter in hidden_matrices(net):
        parameter.requires_grad_(False)
    optimizer = optimizers.muon(net, **SETTINGS, fused=False)
    assert {group["name"] for group in optimizer.param_groups} == {"adamw/matrices", "adamw/vectors"}
    assert [type(part) for part in optimizer.parts] == [torch.optim.AdamW]


def test_schedule_free_follows_the_recursion_of_the_paper():
    net = nn.Linear(3, 2, bias=False)
    optimizer = optimizers.schedule_free_adamw(net, **SETTINGS)
    factors = [0.25, 0.5, 1.0, 1.0, 1.0]
    schedule = LambdaLR(optimizer, lambda step: [*factors, 1.0][step])
    x = z = y = net.weight.detach().double().clone()
    second, weight_sum = torch.zeros_like(x), 0.0
    for number, factor in enumerate(factors, start=1):
        gradient = torch.randn(2, 3, dtype=torch.float64)
        net.weight.grad = gradient.float()
        optimizer.step()
        schedule.step()
        rate = 0.01 * factor
        second = 0.9 * second + 0.1 * gradient**2
        z = z - rate * (gradient / ((second / (1 - 0.9**number)).sqrt() + 1e-8) + 0.1 * y)
        weight_sum += rate**2
        share = rate**2 / weight_sum
        x = (1 - share) * x + share * z
        y = 0.2 * z + 0.8 * x
        assert_same_sum(net.weight.detach(), y.float(), terms=10 * number)  # about ten roundings a step
        optimizer.eval()
        assert_same_sum(net.weight.detach(), x.float(), terms=10 * number)
        with pytest.raises(RuntimeError, match="call train"):
            optimizer.step()
        optimizer.train()


def test_looking_at_the_average_changes_nothing_and_a_late_part_counts_its_own_steps():
    looked, plain, late = small(), small(), small()
    made = {net: optimizers.schedule_free_adamw(net, **SETTINGS) for net in (looked, plain, late)}
    frozen = late.model.embed_tokens.weight
    before = frozen.detach().clone()
    for seed in range(4):
        for net, optimizer in made.items():
            set_gradients(net, seed)
            if net is late and seed < 3:
                frozen.grad = None
            optimizer.step()
        made[looked].eval()
        made[looked].eval()
        made[looked].train()
        assert equal(looked, plain)
        assert frozen.equal(before) == (seed < 3)
    # its first step is Adam's first: lr times the sign of the gradient, and the decay
    expected = before - 0.01 * (frozen.grad.sign() + 0.1 * before)
    torch.testing.assert_close(frozen.detach(), expected, rtol=1e-5, atol=1e-6)


def test_a_parameter_without_gradient_does_not_move():
    for name, build in BUILDERS.items():
        net = small()
        optimizer = build(net, **SETTINGS)
        for part in (net.model.embed_tokens.weight, net.model.layers[0].mlp.up_proj.weight):
            before = part.detach().clone()
            set_gradients(net, 0)
            part.grad = None
            optimizer.step()
            assert part.equal(before), name


def last_checkpoint(directory):
    return torch.load(directory.checkpoint("last"), weights_only=True)


QUICK = [
    *LOCATION,
    "trainer.max_steps=4",
    "trainer.evaluate_every=2",
    "trainer.save_every=1",
    "callbacks=default",
]
RUNS = {
    "adamw": ["optimizer.layer_decay=0.8", "scheduler=one_cycle", "module.label_smoothing=0.1"],
    "muon": ["optimizer=muon", "hardware.gradient_checkpointing=true"],
    "schedule_free": ["optimizer=schedule_free", "optimizer.freeze=[lm_head]"],
    "unfreeze": ["optimizer.unfreeze=[{pattern:layers,at_step:3}]"],
    "plateau": ["callbacks.reduce_on_plateau={factor:0.5,patience:0,threshold:0.9}", "scheduler=constant"],
}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("step", [1, 2])
def test_a_resumed_run_ends_bit_for_bit_as_the_whole_one(name, step, composed):
    overrides = [*QUICK, *RUNS[name]]
    whole = composed(*overrides, name=f"{name}-whole")
    run_experiment(whole)
    broken = composed(*overrides, name=f"{name}-broken")
    source, target = directory_of(whole), directory_of(broken)
    target.checkpoints.mkdir(parents=True)
    start = source.checkpoints / f"step={step:08d}.ckpt"
    (target.checkpoints / "last.ckpt").write_bytes(start.read_bytes())
    broken["run"]["resume"] = "auto"
    run_experiment(broken)
    expected, ended = last_checkpoint(source), last_checkpoint(target)
    assert ended["global_step"] == expected["global_step"] == 4
    assert same(ended["state_dict"], expected["state_dict"])
    assert same(ended["optimizer_states"], expected["optimizer_states"])
    assert same(ended["lr_schedulers"], expected["lr_schedulers"])
    losses = [[row["train/loss"] for row in read_metrics(each.metrics)] for each in (source, target)]
    assert losses[1] == losses[0][-len(losses[1]) :]


def same(first, second):
    if isinstance(first, torch.Tensor):
        return first.equal(second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def test_a_part_moves_from_its_step_on_and_not_before(composed):
    config = composed(*QUICK, "optimizer.weight_decay=0.5", *RUNS["unfreeze"], name="unfreeze")
    summary = run_experiment(config)
    states = [
        torch.load(directory_of(config).checkpoints / f"step={step:08d}.ckpt", weights_only=True)["state_dict"]
        for step in (1, 2, 3, 4)
    ]
    layers = [name for name in states[0] if ".layers." in name]
    assert len(layers) == 12
    for name in layers:
        assert states[0][name].equal(states[1][name])
        assert states[1][name].equal(states[2][name])  # step 3 is the last without them
        assert not states[2][name].equal(states[3][name]), name
    assert not states[0]["net.model.embed_tokens.weight"].equal(states[1]["net.model.embed_tokens.weight"])
    assert summary["parameters"]["trainable"] == summary["parameters"]["total"]


def test_frozen_parts_stay_and_are_not_counted(composed):
    config = composed(*QUICK, "optimizer.freeze=[embed_tokens]", name="frozen")
    summary = run_experiment(config)
    states = [
        torch.load(directory_of(config).checkpoints / f"step={step:08d}.ckpt", weights_only=True)["state_dict"]
        for step in (1, 4)
    ]
    embeddings = states[0]["net.model.embed_tokens.weight"]
    assert embeddings.equal(states[1]["net.model.embed_tokens.weight"])
    assert summary["parameters"]["total"] - summary["parameters"]["trainable"] == embeddings.numel()


def test_schedule_free_evaluates_saves_and_exports_the_average(composed, monkeypatch):
    from safetensors.torch import load_file

    config = composed(*QUICK, *RUNS["schedule_free"][:1], name="average")
    run_experiment(config)
    directory = directory_of(config)
    saved = last_checkpoint(directory)
    averages = [state["x"] for state in saved["optimizer_states"][0]["state"].values()]
    weights = saved["state_dict"]
    assert sum(any(average.equal(weight) for weight in weights.values()) for average in averages) == len(averages)
    assert any(not state["z"].equal(state["x"]) for state in saved["optimizer_states"][0]["state"].values())
    best = torch.load(directory.checkpoint("best"), weights_only=True)["state_dict"]
    for name, tensor in load_file(directory.model / "model.safetensors").items():
        assert tensor.equal(best[f"net.{name}"])
    assert json.loads(directory.summary.read_text())["status"] == "completed"

    monkeypatch.setattr(sys, "argv", ["evaluate", f"run={directory.path}", "checkpoint=last"])
    evaluate.main()
    again = json.loads((directory.evaluations / "validation-last" / "metrics.json").read_text())["metrics"]
    assert again["val/loss"] == read_metrics(directory.metrics)[-1]["val/loss"]


def test_the_module_is_built_with_frozen_parts_and_recomputation(composed):
    class Data:
        net_arguments = {"vocab_size": 21, "pad_token_id": 0, "eos_token_id": 1}  # noqa: RUF012
        module_arguments = {}  # noqa: RUF012

    config = composed(*LOCATION, "optimizer.freeze=[layers.0.mlp]", "hardware.gradient_checkpointing=true")
    module = build_module(config, Data(), plan(max_steps=4))
    assert module.net.is_activation_checkpointing
    assert {name for name, parameter in module.named_parameters() if not parameter.requires_grad} == {
        f"net.model.layers.0.mlp.{part}_proj.weight" for part in ("gate", "up", "down")
    }


def test_rates_are_logged_by_group_where_they_differ():
    net = small()
    assert learning_rates(BUILDERS["adamw"](net, **SETTINGS)) == {"train/learning_rate": 0.01}
    rules = [{"pattern": "embed", "lr": 0.5}]
    assert learning_rates(BUILDERS["adamw"](net, **{**SETTINGS, "groups": rules})) == {
        "train/learning_rate": 0.5,
        "train/learning_rate/matrices": 0.01,
        "train/learning_rate/vectors": 0.01,
        "train/learning_rate/embed/matrices": 0.5,
    }


def test_label_smoothing_reaches_training_but_not_the_evaluation(composed):
    rows = {}
    for name, smoothing in (("plain", 0.0), ("smooth", 0.5)):
        overrides = [
            *QUICK,
            "optimizer.lr=0",
            "trainer.max_steps=1",
            "trainer.evaluate_every=1",
            f"module.label_smoothing={smoothing}",
        ]
        config = composed(*overrides, name=name)
        run_experiment(config)
        (rows[name],) = read_metrics(directory_of(config).metrics)
    assert rows["smooth"]["val/loss"] == rows["plain"]["val/loss"]
    assert rows["smooth"]["train/loss"] != pytest.approx(rows["plain"]["train/loss"], rel=1e-4)
