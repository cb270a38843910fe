import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from models.kernels.attention import (
    NAME,
    DropoutAttention,
    first_position_only,
    keep_threshold,
    kept,
    use_fast_attention,
)

pytestmark = pytest.mark.numeric


def keys(n=2, heads=3, length=5, size=4, dtype=torch.float64):
    torch.manual_seed(0)
    return [torch.randn(n, heads, length, size, dtype=dtype, requires_grad=True) for _ in range(3)]


def plain(query, key, value, mask, scale, keep):
    scores = query @ key.transpose(-1, -2) * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return (torch.softmax(scores, -1) * keep) @ value


def masks_of(seed, n, heads, length, threshold):
    """What DropoutAttention drops where all heads of a row are one block."""
    rows = [kept(np.random.SFC64([seed, row]), (heads, length, length), threshold) for row in range(n)]
    return torch.stack(rows) * (65536 / threshold)


@pytest.mark.parametrize("masked", [False, True])
def test_it_is_dropout_on_softmax_weights(masked):
    query, key, value = keys()
    mask = torch.ones(2, 1, 5, 5, dtype=torch.bool)
    mask[0, :, :, 3:] = False
    mask = mask if masked else None
    keep = masks_of(7, 2, 3, 5, keep_threshold(0.25))
    assert 0 < (keep == 0).sum() < keep.numel()
    ours = DropoutAttention.apply(query, key, value, mask, 0.5, 0.25, 7)
    torch.testing.assert_close(ours, plain(query, key, value, mask, 0.5, keep))
    weight = torch.randn_like(ours)
    ours_grads = torch.autograd.grad((ours * weight).sum(), [query, key, value])
    grads = torch.autograd.grad((plain(query, key, value, mask, 0.5, keep) * weight).sum(), [query, key, value])
    for one, other in zip(ours_grads, grads, strict=True):
        torch.testing.assert_close(one, other)


def test_gradcheck():
    query, key, value = keys(n=1, heads=2, length=3, size=2)
    assert torch.autograd.gradcheck(
        lambda *given: DropoutAttention.apply(*given, None, 0.7, 0.4, 3), (query, key, value)
    )


def test_many_blocks_and_few_give_weights_of_the_same_size(monkeypatch):
    import models.kernels.attention

    query, key, value = keys()
    monkeypatch.setattr(models.kernels.attention, "_BLOCK_WEIGHTS", 1)  # a head at a time
    keep = torch.stack(
        [
            torch.cat(
                [kept(np.random.SFC64([7, 3 * row + head]), (1, 5, 5), keep_threshold(0.25)) for head in range(3)]
            )
            for row in range(2)
        ]
    ) * (65536 / keep_threshold(0.25))
    ours = DropoutAttention.apply(query, key, value, None, 0.5, 0.25, 7)
    torch.testing.assert_close(ours, plain(query, key, value, None, 0.5, keep))


def test_the_share_that_is_kept():
    drawn = kept(np.random.SFC64(1), (10, 500, 200), keep_threshold(0.1))
    assert float(drawn.double().mean()) == pytest.approx(0.9, abs=5 * (0.09 / 1e6) ** 0.5)
    assert abs(keep_threshold(0.1) / 65536 - 0.9) < 1 / 131072


NETS = {
    "bert": lambda: BertForSequenceClassification(
        BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    ),
    "roberta": lambda: RobertaForSequenceClassification(
        RobertaConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=20,
        )
    ),
    "distilbert": lambda: DistilBertForSequenceClassification(
        DistilBertConfig(vocab_size=50, dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=20)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("fast", [False, True])
def test_the_first_position_alone_gives_the_same_logits_and_gradients(name, fast):
    torch.manual_seed(0)
    net = NETS[name]().eval()  # without dropout, gradients and all
    ids, mask = torch.randint(5, 50, (3, 9)), torch.ones(3, 9, dtype=torch.int64)
    mask[0, 6:] = 0

    def run():
        net.zero_grad()
        logits = net(input_ids=ids, attention_mask=mask).logits
        (logits * torch.arange(1.0, 7.0).view(3, 2)).sum().backward()
        return logits.detach(), {key: entry.grad for key, entry in net.named_parameters()}

    logits, grads = run()
    rows = []
    last = next(part for part in net.modules() if isinstance(part, torch.nn.ModuleList))[-1]
    last.register_forward_hook(lambda _, args, output: rows.append(output[0] if isinstance(output, tuple) else output))
    if fast:
        use_fast_attention(net)
        assert net.config._attn_implementation == NAME
    first_position_only(net)
    fewer, fewer_grads = run()
    assert rows[0].shape[1] == 1  # the work is really left out
    torch.testing.assert_close(fewer, logits)
    for key, grad in grads.items():
        torch.testing.assert_close(fewer_grads[key], grad if grad is not None else None, msg=key)


def test_training_with_dropout_uses_it_and_depends_on_torchs_seed_alone():
    net = NETS["bert"]()
    net.config.attention_probs_dropout_prob = 0.3
    use_fast_attention(net)
    first_position_only(net)
    net.train()
    ids = torch.randint(5, 50, (3, 9))

    def logits(seed):
        torch.manual_seed(seed)
        return net(input_ids=ids, attention_mask=torch.ones_like(ids)).logits

    assert logits(1).equal(logits(1))
    assert not logits(1).equal(logits(2))


def test_the_saved_model_says_nothing_of_it(tmp_path):
    net = NETS["bert"]()
    use_fast_attention(net)
    net.save_pretrained(tmp_path)
    assert NAME not in (tmp_path / "config.json").read_text()


def test_a_mask_of_its_own_for_each_query():
    query, key, value = keys()
    mask = torch.ones(5, 5, dtype=torch.bool).tril().expand(2, 3, 5, 5)
    keep = masks_of(7, 2, 3, 5, keep_threshold(0.25))
    ours = DropoutAttention.apply(query, key, value, mask, 0.5, 0.25, 7)
    torch.testing.assert_close(ours, plain(query, key, value, mask, 0.5, keep))


def test_activation_checkpointing_drops_the_same_weights_again():
    torch.manual_seed(0)
    net = NETS["bert"]()
    use_fast_attention(net)
    first_position_only(net)
    net.train()
    ids = torch.randint(5, 50, (3, 9))

    def grads():
        torch.manual_seed(1)
        net.zero_grad()
        net(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.square().sum().backward()
        return [entry.grad.clone() for entry in net.parameters()]

    plain_grads = grads()
    net.activation_checkpointing_enable({"use_reentrant": False})
    for one, other in zip(plain_grads, grads(), strict=True):
        torch.testing.assert_close(one, other)


def test_bf16_autocast():
    torch.manual_seed(0)
    net = NETS["bert"]()
    use_fast_attention(net)
    net.train()
    ids = torch.randint(5, 50, (3, 9))

    def loss():
        torch.manual_seed(1)
        return net(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float().square().sum()

    full = loss()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = loss()
    mixed.backward()
    assert float(mixed.detach()) == pytest.approx(float(full.detach()), rel=0.05)
    assert all(torch.isfinite(entry.grad).all() for entry in net.parameters())
