"""Linear layers with packed weights."""

import pytest
import torch
from torch import nn

from models.kernels import packed_linear
from models.kernels.packed_linear import packed_linears

pytestmark = [
    pytest.mark.numeric,
    pytest.mark.skipif(not packed_linear._has_operators(), reason="this torch comes without oneDNN"),
]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 40), nn.GELU(), nn.Linear(40, 7, bias=False))


@pytest.mark.parametrize("shape", [(16, 24), (1, 24), (1, 5, 24), (3, 2, 24)])
@torch.inference_mode()
def test_products_stay_the_same(shape):
    net, inputs = network(), torch.randn(shape)
    expected = net(inputs)
    with packed_linears(net, 16):
        assert "forward" in net[0].__dict__
        torch.testing.assert_close(net(inputs), expected, rtol=1e-5, atol=1e-6)
    assert "forward" not in net[0].__dict__
    torch.testing.assert_close(net(inputs), expected, rtol=0, atol=0)


@torch.inference_mode()
def test_weights_that_change_are_packed_again():
    net, inputs = network(), torch.randn(4, 24)
    with packed_linears(net, 4):
        before = net(inputs)
    net[2].weight.mul_(2.0)
    with packed_linears(net, 4):
        torch.testing.assert_close(net(inputs), before * 2)


def test_layers_are_put_back_after_an_error():
    net = network()
    with pytest.raises(KeyError), packed_linears(net, 4):
        raise KeyError
    assert all("forward" not in module.__dict__ for module in net)


@pytest.mark.parametrize("reason", ["one row", "too large", "autocast", "bfloat16"])
def test_what_would_not_gain_is_left_alone(reason, monkeypatch):
    net = network()
    if reason == "too large":
        monkeypatch.setattr(packed_linear, "MOST_BYTES", 100)
    if reason == "bfloat16":
        net.to(torch.bfloat16)
    with (
        torch.autocast("cpu", enabled=reason == "autocast"),
        packed_linears(net, 1 if reason == "one row" else 4),
    ):
        assert all("forward" not in module.__dict__ for module in net)
