"""Adapters: they start as nothing, learn alone, and merge into the weights without changing an answer."""

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2ForCausalLM

from datamodules.sampling.packing import packed_batch
from models.adapters import add_adapters, has_adapters, merged_copy, save_adapters
from models.kernels.packed_attention import use_packed_attention
from models.language.causal_lm import target_loss
from tests.asserts.rounding import assert_same_sum
from tests.tiny.packed_documents import ADDITIONS, documents, target_logits, tiny

pytestmark = pytest.mark.numeric

LORA = {"rank": 4, "alpha": 8.0, "dropout": 0.0, "target_modules": "all-linear", "dora": False}


def trained(**changes):
    """A net whose adapters have learned something."""
    net = tiny()
    torch.manual_seed(1)
    add_adapters(net, {**LORA, **changes})
    optimizer = torch.optim.AdamW([entry for entry in net.parameters() if entry.requires_grad], lr=1e-2)
    for _ in range(3):
        loss, _ = target_loss(net, packed_batch(documents(9, 14, 6)))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return net


@pytest.mark.parametrize("dora", [False, True])
def test_adapters_start_as_nothing_and_learn_alone(dora):
    plain, net = tiny(), tiny()
    add_adapters(net, {**LORA, "dora": dora})
    batch = packed_batch(documents(9, 14, 6))
    assert_same_sum(target_logits(net, batch), target_logits(plain, batch), terms=ADDITIONS)
    assert isinstance(net, Qwen2ForCausalLM)
    assert has_adapters(net)
    assert not has_adapters(plain)
    learning = [name for name, entry in net.named_parameters() if entry.requires_grad]
    assert learning
    assert all("lora_" in name for name in learning)
    assert not any("lm_head" in name or "embed" in name for name in learning)


@pytest.mark.parametrize("changes", [{}, {"dora": True}, {"target_modules": ["q_proj", "v_proj"]}])
def test_merging_changes_no_logit(changes):
    net = trained(**changes)
    batch = packed_batch(documents(9, 14, 6))
    expected = target_logits(net, batch)
    assert (expected - target_logits(tiny(), batch)).abs().max() > 0.05
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    merged = merged_copy(net)
    assert_same_sum(target_logits(merged, batch), expected, terms=ADDITIONS)
    assert merged.state_dict().keys() == tiny().state_dict().keys()
    assert not has_adapters(merged)
    assert all(tensor.equal(net.state_dict()[name]) for name, tensor in before.items())  # the net itself is untouched
    assert has_adapters(net)


@pytest.mark.parametrize("dora", [False, True])
def test_saved_adapters_and_merged_weights_are_read_by_peft_and_transformers(dora, tmp_path):
    from peft import PeftModel

    net = trained(dora=dora)
    batch = packed_batch(documents(9, 14, 6))
    expected = target_logits(net, batch)
    save_adapters(net, tmp_path / "adapter", base="a/base")
    wrapped = PeftModel.from_pretrained(tiny(), tmp_path / "adapter")
    assert_same_sum(target_logits(wrapped.get_base_model(), batch), expected, terms=ADDITIONS)
    merged_copy(net).save_pretrained(tmp_path / "merged")
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    use_packed_attention(read)
    assert_same_sum(target_logits(read, batch), expected, terms=ADDITIONS)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rank": -1}, "rank=-1 must be at least 0"),
        ({"alpha": 0.0}, "alpha=0.0 positive"),
        ({"dropout": 1.0}, "dropout=1.0 at least 0 and below 1"),
        ({"target_modules": ["nothing"]}, "nothing"),
    ],
)
def test_settings_out_of_range_are_named(changes, expected):
    with pytest.raises(ValueError, match=expected):
        add_adapters(tiny(), {**LORA, **changes})
