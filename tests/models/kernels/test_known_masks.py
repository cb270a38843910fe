"""What is known of a mask changes nothing but the look at it."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    ModernBertConfig,
    ModernBertModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    masking_utils,
)

from models.kernels.attention import use_fast_attention
from models.kernels.known_masks import padding_mask
from models.language.causal_lm import hidden_states, recompute_activations

pytestmark = pytest.mark.numeric

SMALL = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
ENCODERS = {
    "bert": lambda: BertModel(BertConfig(**SMALL)),
    "distilbert": lambda: DistilBertModel(DistilBertConfig(vocab_size=9, dim=8, n_layers=2, n_heads=2, hidden_dim=8)),
    # slides, and must not get a mask that says otherwise
    "modernbert": lambda: ModernBertModel(ModernBertConfig(**SMALL, local_attention=2, pad_token_id=0)),
}


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("lengths", [(5, 5), (5, 3)])
def test_an_encoder_answers_the_same_bits(name, lengths):
    net = ENCODERS[name]().eval()
    use_fast_attention(net)
    mask = (torch.arange(5) < torch.tensor(lengths)[:, None]).long()
    ids = torch.arange(10).view(2, 5) % 9
    known = padding_mask(net, mask, lengths[1] < 5)
    assert (known is None) == (lengths[1] == 5)
    found = net(input_ids=ids, attention_mask=known).last_hidden_state
    assert found.equal(net(input_ids=ids, attention_mask=mask).last_hidden_state)
    assert padding_mask(net, mask, None) is mask


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("kind", [(Qwen2Config, Qwen2ForCausalLM), (GPTNeoXConfig, GPTNeoXForCausalLM)])
def test_a_decoder_answers_the_same_bits_and_nobody_looks_at_its_positions(kind, recomputed, monkeypatch, caplog):
    config, model = kind
    net = model(config(**SMALL, num_key_value_heads=2) if config is Qwen2Config else config(**SMALL)).train()
    if recomputed:
        recompute_activations(net)
    ids = torch.arange(10).view(2, 5) % 9
    expected = net.base_model(input_ids=ids, use_cache=False).last_hidden_state
    expected.sum().backward()
    gradients = [parameter.grad for parameter in net.parameters()]
    net.zero_grad()
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", None)  # a call would raise
    found = hidden_states(net, ids)
    found.sum().backward()
    assert found.equal(expected)
    for ours, theirs in zip((parameter.grad for parameter in net.parameters()), gradients, strict=True):
        assert (ours is None and theirs is None) or ours.equal(theirs)
    assert not caplog.records
