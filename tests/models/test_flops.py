"""FLOPs of a step against torch's own count of what was multiplied."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from models.flops import StepFlops, count_flops, measure_peak_flops
from tests.tiny.tiny_qwen2 import tiny

pytestmark = pytest.mark.numeric

ROWS, LENGTH = 3, 12


def counted(net, **labels) -> int:
    """FLOPs of a forward and a backward pass over (ROWS, LENGTH) tokens, as they were dispatched."""
    ids = torch.randint(2, 20, (ROWS, LENGTH))
    with FlopCounterMode(display=False) as counter:
        net(input_ids=ids, **labels).logits.sum().backward()
    return counter.get_total_flops()


def bert(**sizes):
    config = BertConfig(
        vocab_size=21, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        attn_implementation="eager", **sizes,
    )  # fmt: skip
    return BertForSequenceClassification(config)


def expected(net, *, head_rows: int) -> float:
    """What count_flops says, all pairs counted: eager attention computes them all."""
    flops = count_flops(net)
    per_pair = StepFlops(0, 0, flops.per_pair, False).of_step(num_tokens=ROWS * LENGTH, num_targets=0, num_texts=ROWS)
    rest = StepFlops(flops.per_token, flops.per_target, 0, False)
    return per_pair + rest.of_step(num_tokens=ROWS * LENGTH, num_targets=head_rows, num_texts=ROWS)


@pytest.mark.parametrize("make", [lambda: tiny(), lambda: tiny(tie_word_embeddings=False)], ids=["tied", "untied"])
def test_a_decoder_is_counted_to_the_last_flop(make):
    net = make()
    net.set_attn_implementation("eager")  # computes every pair, where causal attention needs the half of them
    assert counted(net) == expected(net, head_rows=ROWS * LENGTH)


def test_a_projection_of_transformers_own_is_counted():
    config = GPT2Config(vocab_size=21, n_embd=32, n_layer=2, n_head=4, n_positions=LENGTH, attn_implementation="eager")
    net = GPT2LMHeadModel(config)
    assert counted(net) == expected(net, head_rows=ROWS * LENGTH)


@pytest.mark.parametrize("frozen", [(), ("bert.embeddings",), ("bert.embeddings", "bert.encoder.layer.0")])
def test_an_encoder_and_its_frozen_layers(frozen):
    net = bert()
    for name in frozen:
        net.get_submodule(name).requires_grad_(False)
    too_much = 6 * net.bert.pooler.dense.weight.numel() * (ROWS * LENGTH - ROWS)  # it sees one position of each text
    if frozen:  # keys and values of the first trained layer have no gradient of their input
        too_much += 2 * (2 * 32 * 32 * ROWS * LENGTH)
    assert counted(net) == expected(net, head_rows=ROWS) - too_much


def test_adapters_let_gradients_through_frozen_weights():
    net = get_peft_model(tiny(), LoraConfig(r=2, target_modules=["q_proj", "k_proj", "v_proj"])).base_model.model
    net.set_attn_implementation("eager")
    # inputs of keys and values of the first layer, as above: frozen matrices and their adapters of rank 2
    too_much = 2 * (2 * 32 * (16 + 2) * ROWS * LENGTH)
    assert counted(net) == expected(net, head_rows=ROWS * LENGTH) - too_much


def test_a_causal_token_sees_half_of_the_pairs():
    net = tiny()
    flops = count_flops(net)
    assert flops.is_causal
    assert flops.per_pair == 12 * 2 * 32  # 12 of Kaplan et al.: layers times width
    assert StepFlops(0, 0, 1, True).of_step(num_tokens=8, num_targets=0, num_texts=2) == 2 * (1 + 2 + 3 + 4)
    assert StepFlops(0, 0, 1, False).of_step(num_tokens=8, num_targets=0, num_texts=2) == 2 * 16


def test_an_embedding_multiplies_nothing_unless_it_projects():
    tied, untied = count_flops(tiny()), count_flops(tiny(tie_word_embeddings=False))
    assert tied == untied
    assert tied.per_target == 6 * 21 * 32


def test_the_peak_is_a_speed():
    assert measure_peak_flops(torch.device("cpu"), torch.float32, size=64, rounds=1) > 1e6


def test_the_peak_of_a_cpu_takes_little_memory(monkeypatch):
    shapes = []
    monkeypatch.setattr(torch, "mm", lambda left, right, out: shapes.append((left.shape, right.shape, out.shape)))
    measure_peak_flops(torch.device("cpu"), torch.float32, rounds=2)
    assert shapes == 3 * [3 * ((1024, 1024),)]  # 4 MB each, where those of 2048 took 50 MB together
