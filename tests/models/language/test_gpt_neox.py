import pytest
import torch

from models.kernels.linear_cross_entropy import linear_cross_entropy
from models.language.gpt_neox import gpt_neox
from tests.asserts.rounding import assert_same_sum

pytestmark = pytest.mark.numeric

PARAMETERS = {
    "pythia_14m": 14_067_712,
    "pythia_31m": 30_494_720,
    "pythia_70m": 70_426_624,
    "pythia_160m": 162_322_944,
    "pythia_410m": 405_334_016,
}
"""As published for the Pythia suite."""


def settings(composed, name):
    return {key: value for key, value in composed(f"model={name}")["model"].items() if key != "_target_"}


def build(settings, **changes):
    torch.manual_seed(0)
    return gpt_neox(**{"vocab_size": 50277, "pad_token_id": None, "eos_token_id": 0, **settings, **changes})


@pytest.mark.parametrize("name", PARAMETERS)
def test_sizes_are_those_of_the_pythia_suite(composed, name):
    with torch.device("meta"):
        net = build(settings(composed, name))
    assert sum(parameter.numel() for parameter in net.parameters()) == PARAMETERS[name]
    assert net.config.vocab_size == 50304
    assert net.config.max_position_embeddings == 2048
    assert net.gpt_neox.layers[0].attention.rotary_ndims == net.gpt_neox.layers[0].attention.head_size // 4
    assert net.config.use_parallel_residual
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float32}


@pytest.fixture
def small(composed):
    return settings(composed, "pythia_14m") | {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128}


@pytest.mark.parametrize(("tokens", "rows"), [(128, 128), (129, 256), (50277, 50304)])
def test_the_vocabulary_is_rounded_up(small, tokens, rows):
    with torch.device("meta"):
        net = build(small, vocab_size=tokens)
    assert net.get_input_embeddings().num_embeddings == net.get_output_embeddings().out_features == rows


def test_standard_deviations_of_the_initial_weights(small):
    def deviations(**changes):
        net = build(small, vocab_size=1024, **changes)
        parts = (net.gpt_neox.embed_in, net.lm_head, net.gpt_neox.layers[1].mlp.dense_h_to_4h)
        return [part.weight.detach().std().item() for part in parts]

    assert deviations() == pytest.approx([0.02, 0.02, 0.02], rel=0.02)
    assert deviations(initializer_range=0.05, init_scale=2.0) == pytest.approx([0.1, 0.1, 0.1], rel=0.02)
    assert deviations(embedding_std=0.7) == pytest.approx([0.7, 0.02, 0.02], rel=0.02)
    assert deviations(embedding_std=0.7, init_scale=2.0) == pytest.approx([1.4, 0.04, 0.04], rel=0.02)


def test_one_seed_gives_the_same_weights_and_another_others(small):
    first, again = (build(small, vocab_size=128).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    torch.manual_seed(1)
    other = gpt_neox(vocab_size=128, pad_token_id=None, eos_token_id=0, **small)
    assert not torch.equal(first["lm_head.weight"], other.lm_head.weight)


def test_the_fused_loss_is_that_of_the_model(small):
    net = build(small, vocab_size=300)
    ids = torch.randint(0, 300, (3, 12))
    expected = net(input_ids=ids, labels=ids).loss
    states = net.base_model(ids).last_hidden_state[:, :-1].flatten(0, 1)
    loss = linear_cross_entropy(states, net.lm_head.weight, ids[:, 1:].flatten(), chunk_size=7)
    assert_same_sum(loss / 33, expected, terms=33 * 300)  # tokens, and classes of the softmax
