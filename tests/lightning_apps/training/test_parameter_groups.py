import time

import pytest
import torch
from torch import nn

from lightning_apps.errors import ConfigError
from lightning_apps.training.parameter_groups import (
    freeze_parameters,
    hidden_matrices,
    layer_depths,
    matching,
    parameter_groups,
    parameter_names,
    unfreezing_steps,
)
from tests.tiny.tiny_qwen2 import tiny

PLAIN = {"lr": 1.0, "weight_decay": 0.1, "groups": [], "layer_decay": None}


class Stacks(nn.Module):
    """Embeddings with a norm, two stacks of layers and a head, as a hierarchical classifier has them."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(5, 4)
        self.embedding_norm = nn.LayerNorm(4)
        self.encoder = nn.Module()
        self.encoder.layer = nn.ModuleList(nn.Linear(4, 4) for _ in range(12))
        self.document = nn.Module()
        self.document.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.classifier = nn.Linear(4, 3)


def named(net, parameters):
    names = {parameter: aliases[0] for parameter, aliases in parameter_names(net).items()}
    return {names[parameter] for parameter in parameters}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"groups": [{"pattern": "layers.1", "lr": 0.5}, {"pattern": "mlp", "weight_decay": 0.3}]},
        {"layer_decay": 0.5},
        {"layer_decay": 0.5, "groups": [{"pattern": "norm", "lr": 2.0}, {"pattern": "."}]},
    ],
)
def test_every_trainable_parameter_is_in_exactly_one_group(changes, tied):
    net = tiny(tie_word_embeddings=tied)
    net.model.norm.weight.requires_grad_(False)
    groups = parameter_groups(net, **{**PLAIN, **changes})
    grouped = [parameter for group in groups for parameter in group["params"]]
    trainable = [parameter for parameter in net.parameters() if parameter.requires_grad]
    assert len(grouped) == len(trainable)
    assert set(grouped) == set(trainable)
    assert len({group["name"] for group in groups}) == len(groups)


def test_matrices_decay_and_vectors_do_not_even_where_a_rule_says_so():
    net = tiny()
    rules = [{"pattern": "self_attn", "weight_decay": 0.7}]
    for group in parameter_groups(net, **{**PLAIN, "groups": rules}):
        for parameter in group["params"]:
            inside = "self_attn" in next(iter(named(net, [parameter])))
            assert group["weight_decay"] == (0.0 if parameter.ndim < 2 else 0.7 if inside else 0.1)
    assert "model.embed_tokens.weight" in named(net, parameter_groups(net, **PLAIN)[0]["params"])


def test_the_first_matching_rule_counts():
    net = tiny()
    rules = [{"pattern": "layers.1", "lr": 0.5}, {"pattern": "layers", "lr": 0.25, "weight_decay": 0.0}]
    groups = {group["name"]: group for group in parameter_groups(net, **{**PLAIN, "groups": rules})}
    assert {name: (group["lr"], group["weight_decay"]) for name, group in groups.items()} == {
        "matrices": (1.0, 0.1),
        "vectors": (1.0, 0.0),
        "layers.1/matrices": (0.5, 0.1),
        "layers.1/vectors": (0.5, 0.0),
        "layers/matrices": (0.25, 0.0),
        "layers/vectors": (0.25, 0.0),
    }
    assert all(".layers.1." in name for name in named(net, groups["layers.1/matrices"]["params"]))
    assert named(net, groups["vectors"]["params"]) == {"model.norm.weight"}


def test_layer_decay_by_hand():
    net = tiny(tie_word_embeddings=False)
    rules = [{"pattern": "layers.0.mlp", "lr": 8.0}]
    rates = {
        name: group["lr"]
        for group in parameter_groups(net, **{**PLAIN, "layer_decay": 0.5, "groups": rules})
        for name in named(net, group["params"])
    }
    assert rates["lm_head.weight"] == rates["model.norm.weight"] == 1.0
    assert rates["model.layers.1.mlp.up_proj.weight"] == rates["model.layers.1.input_layernorm.weight"] == 0.5
    assert rates["model.layers.0.self_attn.q_proj.bias"] == 0.25
    assert rates["model.layers.0.mlp.up_proj.weight"] == 2.0
    assert rates["model.embed_tokens.weight"] == 0.125
    assert set(rates.values()) == {1.0, 0.5, 0.25, 2.0, 0.125}


def test_depths_count_on_from_stack_to_stack():
    net = Stacks()
    depths, num_layers = layer_depths(net)
    by_name = {name: depths[parameter] for name, parameter in net.named_parameters() if name.endswith("weight")}
    assert num_layers == 14
    assert by_name["embeddings.weight"] == by_name["embedding_norm.weight"] == -1
    assert [by_name[f"encoder.layer.{index}.weight"] for index in (0, 11)] == [0, 11]
    assert [by_name[f"document.layers.{index}.weight"] for index in (0, 1)] == [12, 13]
    assert by_name["classifier.weight"] == 14
    with pytest.raises(ConfigError, match=r"layer_decay=0\.9: no parameter's name has a numbered layer.*weight"):
        parameter_groups(nn.Linear(2, 2), **{**PLAIN, "layer_decay": 0.9})


def test_hidden_matrices_are_inside_layers():
    net = Stacks()
    net.encoder.layer[0].positions = nn.Embedding(3, 4)
    names = named(net, hidden_matrices(net))
    assert names == {
        *(f"encoder.layer.{index}.weight" for index in range(12)),
        *(f"document.layers.{index}.weight" for index in range(2)),
    }


@pytest.mark.parametrize(
    ("pattern", "indices"),
    [("layer.1", [1]), ("layer.[0-3]", [0, 1, 2, 3]), ("layer.1[01]", [10, 11]), ("layer.0.weight", [0])],
)
def test_a_pattern_finds_whole_numbers_only(pattern, indices):
    net = Stacks()
    found = {name for name in named(net, matching("k", pattern, net)) if name.endswith("weight")}
    assert found == {f"encoder.layer.{index}.weight" for index in indices}


def test_a_tied_parameter_is_found_by_each_of_its_names():
    net = tiny()
    assert matching("k", "lm_head", net) == matching("k", "embed_tokens", net) == [net.model.embed_tokens.weight]


def test_wrong_patterns_are_refused_with_the_nearest_names():
    with pytest.raises(ConfigError, match=r"k='layrs\.1\.mlp' finds no parameter; the nearest.*model\.layers\.1\.mlp"):
        matching("k", "layrs.1.mlp", tiny())
    with pytest.raises(ConfigError, match=r"k='\(' is no regular expression"):
        matching("k", "(", tiny())


def test_freezing_is_exact_and_leaves_something():
    net = tiny()
    freeze_parameters(net, freeze=["embed", "layers.0"])
    frozen = {name for name, parameter in net.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in net.named_parameters() if "embed" in name or ".layers.0." in name}
    assert frozen
    with pytest.raises(ConfigError, match="leaves nothing to train"):
        freeze_parameters(net, freeze=["layers", "norm"])
    with pytest.raises(ConfigError, match="no parameter is trainable"):
        parameter_groups(net, **PLAIN)


def test_unfreezing_steps_by_hand():
    net = tiny()
    rules = [{"pattern": "layers.1", "at_step": 3}, {"pattern": "layers", "at_step": 0.5}]
    steps = unfreezing_steps(net, unfreeze=rules, total_steps=20)
    by_name = {name: steps.get(parameter) for name, parameter in net.named_parameters()}
    assert {by_name[name] for name in by_name if "layers.1." in name} == {3}
    assert {by_name[name] for name in by_name if "layers.0." in name} == {10}
    assert by_name["model.norm.weight"] is None
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_group_names_survive_a_checkpoint(tmp_path):
    optimizer = torch.optim.AdamW(parameter_groups(tiny(), **PLAIN))
    torch.save(optimizer.state_dict(), tmp_path / "state")
    groups = torch.load(tmp_path / "state", weights_only=True)["param_groups"]
    assert [group["name"] for group in groups] == ["matrices", "vectors"]


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        (r"(\w+\.?)+!", "finds no parameter"),  # minutes to years with re
        (r"([a-z]+)+$\d", "finds no parameter"),
        (r"(a|a|.)*(.*)*(.+)+[!?]$", "takes longer than 0 s to look for: it has repetitions inside of repetitions"),
    ],
)
def test_a_pattern_that_backtracks_without_end_is_refused_in_time(pattern, said, monkeypatch):
    monkeypatch.setattr("lightning_apps.training.parameter_groups.PATTERN_PATIENCE_S", 0.4)
    started = time.monotonic()
    with pytest.raises(ConfigError) as error:
        matching("k", pattern, nn.ModuleDict({"a" * 120: nn.Linear(1, 1)}))
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert time.monotonic() - started < 10
