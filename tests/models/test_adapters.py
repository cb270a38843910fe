"""Adapters: they start as nothing, learn alone, and merge into the weights without changing an answer."""

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, Qwen2ForCausalLM

from datamodules.sampling.packing import packed_batch
from models.adapters import add_adapters, has_adapters, merged_copy, save_adapters
from models.encoders.classifier import pretrained_classifier
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


def bert(name="BertForSequenceClassification", **changes):
    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes = {**sizes, "intermediate_size": 24, "pad_token_id": 0, "max_position_embeddings": 20}
    return getattr(transformers, name)(transformers.BertConfig(**sizes, **changes)).eval()


@pytest.mark.parametrize("base", ["BertForSequenceClassification", "BertModel", "BertForMaskedLM"])
@pytest.mark.parametrize("dora", [False, True])
def test_saved_adapters_of_a_classifier_bring_its_head(base, dora, tmp_path):
    """Also where the base knows other classes, has no head, or no pooler."""
    from peft import PeftModel

    bert(base).save_pretrained(tmp_path / "base")
    names = ["a", "b", "c"]
    net = pretrained_classifier(
        vocab_size=32, pad_token_id=0, label_names=names, multi_label=False, pretrained=str(tmp_path / "base"),
        revision=None, hidden_dropout=0.0, attention_dropout=0.0, classifier_dropout=0.0, replace_head=True,
        lora={**LORA, "dora": dora},
    )  # fmt: skip
    assert not any("modules_to_save" in name or "original_module" in name for name in net.state_dict())
    ids = torch.arange(1, 13).view(2, 6)
    optimizer = torch.optim.AdamW([entry for entry in net.parameters() if entry.requires_grad], lr=1e-2)
    before = net(ids).logits.detach()
    for _ in range(3):
        torch.nn.functional.cross_entropy(net(ids).logits, torch.tensor([0, 2])).backward()
        optimizer.step()
        optimizer.zero_grad()
    expected = net(ids).logits.detach()
    assert (expected - before).abs().max() > 0.05
    save_adapters(net, tmp_path / "adapter", base="a/base")
    torch.manual_seed(5)  # of what the base lacks
    plain = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "base", id2label=dict(enumerate(names)), ignore_mismatched_sizes=True
    )
    wrapped = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    assert type(wrapped).__name__ == "PeftModelForSequenceClassification"
    assert_same_sum(wrapped(ids).logits, expected, terms=ADDITIONS)
    assert_same_sum(merged_copy(net).eval()(ids).logits, expected, terms=ADDITIONS)
    assert torch.equal(wrapped.base_model.model.classifier.weight, net.classifier.weight)


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
