import math

import pytest
import torch

from models.language.causal_lm import target_loss
from models.language.modern import modern

pytestmark = pytest.mark.numeric


@pytest.fixture
def small(composed):
    chosen = composed("experiment=arxiv", "model=modern_small")["model"]
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128, "pad_vocab_to_multiple_of": 1}
    return {key: value for key, value in chosen.items() if key != "_target_"} | sizes


def build(small, **changes):
    torch.manual_seed(0)
    return modern(**{"vocab_size": 300, "pad_token_id": None, "eos_token_id": 0, **small, **changes})


def test_the_loss_is_that_of_transformers_forward_pass(small):
    net = build(small, zero_init_projections=False, init_scale=5.0)
    ids = torch.randint(0, 300, (3, 12))
    labels = ids.clone()
    labels[:, 0] = -100
    loss, count = target_loss(net, {"input_ids": ids, "labels": labels})
    assert count == 33
    assert loss.item() / count == pytest.approx(net(input_ids=ids, labels=ids).loss.item(), rel=1e-5)


def test_blocks_start_as_the_identity_and_learn(small):
    net = build(small)
    ids = torch.randint(0, 300, (2, 8))
    embedded = net.get_input_embeddings()(ids)
    normed = net.model.norm(net.model.norm(embedded))  # behind the embedding, and before the output projection
    torch.testing.assert_close(net.model(ids).last_hidden_state, normed)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    reached = set()
    for _ in range(3):
        optimizer.zero_grad()
        net(input_ids=ids, labels=ids).loss.backward()
        reached |= {name for name, entry in net.named_parameters() if bool(entry.grad.any())}
        optimizer.step()
    assert reached == {name for name, _ in net.named_parameters()}


def test_the_first_loss_is_nearly_that_of_guessing(small):
    ids = torch.randint(0, 300, (4, 32))
    assert build(small)(input_ids=ids, labels=ids).loss.item() == pytest.approx(math.log(300), rel=0.01)


def test_parameters_of_the_default_size(composed):
    chosen = composed("experiment=arxiv", "model=modern_small")["model"]
    settings = {key: value for key, value in chosen.items() if key != "_target_"}
    with torch.device("meta"):
        net = modern(vocab_size=4096, pad_token_id=None, eos_token_id=0, **settings)
    layer = 4 * 128 * 128 + 2 * 128 * 512  # attention and MLP, without biases; norms have no weights
    assert sum(entry.numel() for entry in net.parameters()) == 2 * 4096 * 128 + 6 * layer == 2_228_224
