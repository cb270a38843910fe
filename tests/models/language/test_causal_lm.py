import pytest
import torch

from models.language import causal_lm
from models.language.causal_lm import (
    hidden_states,
    projected_losses,
    qwen2,
    recompute_activations,
    target_loss,
    token_losses,
)
from tests.asserts.rounding import assert_same_sum
from tests.tiny.tiny_qwen2 import SIZES, tiny

pytestmark = pytest.mark.numeric

ADDITIONS = SIZES["num_hidden_layers"] * 7 * SIZES["intermediate_size"]
"""Behind a logit: seven products a layer, one after the other, of at most so many terms."""
TERMS = 5 * 14 * ADDITIONS
"""Behind the loss and an entry of a gradient, which are sums over the tokens of the batch."""


def assert_same_loss_and_gradients(losses, gradients):
    """Of two ways to the same step: the loss, and the gradient of each parameter by its name."""
    assert_same_sum(losses[1], losses[0], terms=TERMS)
    assert gradients[1].keys() == gradients[0].keys()
    for name, expected in gradients[0].items():
        assert_same_sum(gradients[1][name], expected, terms=TERMS, msg=name)


@pytest.fixture
def batch():
    torch.manual_seed(1)
    ids = torch.randint(2, 21, (5, 14))
    ids[:, :4] = ids[0, :4]
    labels = ids.clone()
    labels[:, :8] = -100
    labels[2, 9:11] = -100
    return {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}


def test_loss_is_that_of_transformers_times_the_targets(batch):
    net = tiny()
    reference = net(**batch).loss
    loss, targets = target_loss(net, batch)
    assert targets == 5 * 6 - 2
    assert_same_sum(loss / targets, reference, terms=TERMS)


@pytest.mark.parametrize("prefix", [1, 4])
def test_shared_prefix_changes_neither_loss_nor_gradient(batch, prefix):
    losses, gradients = [], []
    for length in (0, prefix):
        net = tiny()
        loss, targets = target_loss(net, batch, shared_prefix_length=length)
        (loss / targets).backward()
        losses.append(loss.detach())
        gradients.append({name: parameter.grad for name, parameter in net.named_parameters()})
    assert_same_loss_and_gradients(losses, gradients)


def test_states_after_the_prefix_have_their_positions(batch):
    net = tiny().eval()
    whole = hidden_states(net, batch["input_ids"])
    after = hidden_states(net, batch["input_ids"], shared_prefix_length=4)
    assert_same_sum(after, whole[:, 4:], terms=ADDITIONS)


def test_init_scale_scales_the_initial_weights():
    deviations = [tiny(init_scale=scale).model.layers[0].mlp.up_proj.weight.detach().std() for scale in (1.0, 2.0)]
    assert deviations[0] == pytest.approx(0.02, rel=0.1)
    assert deviations[1] / deviations[0] == pytest.approx(2.0, rel=1e-3)


def test_default_model_has_about_1_6_million_parameters(composed):
    model = {key: value for key, value in composed()["model"].items() if key != "_target_"}
    net = qwen2(vocab_size=21, pad_token_id=0, eos_token_id=1, **model)
    assert 1.5e6 < sum(parameter.numel() for parameter in net.parameters()) < 1.7e6
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float32}
    assert net.lm_head.weight is net.model.embed_tokens.weight


def test_all_masked_labels_give_a_zero_sum():
    net = tiny()
    ids = torch.randint(2, 21, (2, 6))
    loss, targets = target_loss(net, {"input_ids": ids, "labels": torch.full_like(ids, -100)})
    assert (loss.item(), targets) == (0.0, 0)


@pytest.mark.parametrize("prefix", [0, 4])
def test_recomputed_activations_change_neither_loss_nor_gradient(batch, prefix):
    losses, gradients = [], []
    for recomputed in (False, True):
        net = tiny().train()
        if recomputed:
            recompute_activations(net)
        loss, targets = target_loss(net, batch, shared_prefix_length=prefix)
        (loss / targets).backward()
        losses.append(loss.detach())
        gradients.append({name: parameter.grad for name, parameter in net.named_parameters()})
    assert_same_loss_and_gradients(losses, gradients)


def test_recomputing_runs_each_layer_twice_in_training_and_only_there(batch):
    net = tiny()
    recompute_activations(net)
    calls = []
    for layer in net.model.layers:
        layer.input_layernorm.register_forward_hook(lambda *_: calls.append(1))
    loss, _ = target_loss(net.train(), batch, shared_prefix_length=4)
    loss.backward()
    assert len(calls) == 2 * 2
    calls.clear()
    with torch.no_grad():
        target_loss(net.eval(), batch, shared_prefix_length=4)
    assert len(calls) == 2 * 2  # prefix and rest, by way of the cache


def test_a_network_without_recomputation_says_so():
    with pytest.raises(ValueError, match="Linear offers no activation checkpointing"):
        recompute_activations(torch.nn.Linear(2, 2))


def test_label_smoothing_by_hand(batch):
    net = tiny()
    share = 0.3
    smoothed, targets = target_loss(net, batch, label_smoothing=share)
    logits = net(batch["input_ids"]).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    logs = logits[labels != -100].log_softmax(-1)
    exact = -logs.gather(1, labels[labels != -100][:, None]).sum()
    even = -logs.mean(-1).sum()
    assert_same_sum(smoothed, (1 - share) * exact + share * even, terms=TERMS)
    assert targets == len(logs)


def wrapped(net):
    """The output projection with something around it, as an adapter has."""
    net.lm_head = torch.nn.Sequential(net.lm_head)
    net.get_output_embeddings = lambda: net.lm_head


def hooked(net):
    net.lm_head.register_forward_hook(lambda module, args, output: None)


@pytest.mark.parametrize("change", [lambda net: None, wrapped, hooked])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_many_logits_in_chunks_change_neither_loss_nor_gradient(batch, monkeypatch, change, smoothing):
    losses, gradients = [], []
    for few in (causal_lm.FEW_LOGITS, 0):
        monkeypatch.setattr(causal_lm, "FEW_LOGITS", few)
        monkeypatch.setattr(causal_lm, "CHUNK_BYTES", 4 * 21 * 5)
        net = tiny()
        change(net)
        loss, targets = target_loss(net, batch, label_smoothing=smoothing)
        (loss / targets).backward()
        losses.append(loss.detach())
        gradients.append({name: parameter.grad for name, parameter in net.named_parameters()})
    assert_same_loss_and_gradients(losses, gradients)


def test_a_plain_head_with_many_logits_takes_the_fused_loss(batch, monkeypatch):
    monkeypatch.setattr(causal_lm, "FEW_LOGITS", 0)
    loss, _ = target_loss(tiny(), batch)
    assert type(loss.grad_fn).__name__ == "_LinearCrossEntropyBackward"
    net = tiny()
    seen = []
    net.lm_head.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    target_loss(net, batch)
    assert seen == [28]  # hooks see the output of the projection, in one chunk here


@pytest.mark.parametrize("few", [1 << 22, 0])
def test_token_losses_are_those_of_the_logits(batch, monkeypatch, few):
    monkeypatch.setattr(causal_lm, "FEW_LOGITS", few)
    net = tiny().eval()
    losses = token_losses(net, batch)
    logits = net(batch["input_ids"]).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    assert losses.shape == (5, 13)
    assert losses.isnan().equal(labels == -100)
    assert_same_sum(losses[labels != -100], expected[labels.flatten() != -100], terms=ADDITIONS)
    total, _ = target_loss(net, batch)
    assert_same_sum(losses.nansum(), total.detach(), terms=TERMS)


@pytest.mark.parametrize("few", [1 << 22, 0])
def test_a_model_that_changes_its_logits_is_refused(few, monkeypatch):
    monkeypatch.setattr(causal_lm, "FEW_LOGITS", few)
    net = tiny()
    net.config.final_logit_softcapping = 30.0
    with pytest.raises(ValueError, match="Qwen2ForCausalLM changes its logits by final_logit_softcapping"):
        projected_losses(net, torch.ones(1, 32), torch.tensor([0]))
