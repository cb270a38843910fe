"""Linear layers with packed weights."""

import contextlib

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from models.kernels import packed_linear
from models.kernels.packed_linear import cast_linears, packed_linears

pytestmark = [
    pytest.mark.numeric,
    pytest.mark.skipif(not packed_linear._has_operators(), reason="this torch comes without oneDNN"),
]

ONE_ROUNDING = {"rtol": 2**-7, "atol": 2**-12}
"""Of bfloat16: sums of float32 in another order may end on the other side of a tie."""


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


class Casts(TorchDispatchMode):
    """Shapes of what is cast from float32."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._to_copy.default and args[0].dtype == torch.float32:
            self.shapes.append(tuple(args[0].shape))
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("rows", [1, 4, 16])
@pytest.mark.parametrize("is_laid_out", [True, False])
@torch.no_grad()
def test_autocast_casts_weights_once(rows, is_laid_out, monkeypatch):
    if not is_laid_out:  # as on a GPU, and on a processor that oneDNN has no bfloat16 for
        monkeypatch.setattr(packed_linear, "_can_be_laid_out", lambda *_: False)
    net, inputs = network(), torch.randn(rows, 24)
    weights = [(40,), (7, 40), (40, 24)]
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        with Casts() as before:
            expected = net(inputs), net(inputs[:1])
        assert sorted(shape for shape in before.shapes if shape in weights) == sorted(2 * weights)
        with Casts() as once, packed_linears(net, rows):
            found = net(inputs), net(inputs[:1])
        assert sorted(shape for shape in once.shapes if shape in weights) == sorted(weights)
    assert [product.dtype for product in found] == [torch.bfloat16] * 2
    torch.testing.assert_close(found, expected, **(ONE_ROUNDING if is_laid_out else {"rtol": 0, "atol": 0}))
    assert all("forward" not in module.__dict__ for module in net)


@torch.inference_mode()
def test_bfloat16_weights():
    net, inputs = network().bfloat16(), torch.randn(16, 24).bfloat16()
    expected = net(inputs)
    with packed_linears(net, 16):
        assert "forward" in net[0].__dict__ or not torch.ops.mkldnn._is_mkldnn_bf16_supported()
        torch.testing.assert_close(net(inputs), expected, **ONE_ROUNDING)


@pytest.mark.parametrize("reason", ["one row", "too large", "float16", "float64"])
def test_what_would_not_gain_is_left_alone(reason, monkeypatch):
    net = network()
    if reason == "too large":
        monkeypatch.setattr(packed_linear, "MOST_BYTES", 100)
    if reason.startswith("float"):
        net.to(getattr(torch, reason))
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=reason == "float64"),  # which it leaves alone
        packed_linears(net, 1 if reason == "one row" else 4),
    ):
        assert all("forward" not in module.__dict__ for module in net)


def test_shared_casts_leave_gradients_to_the_bit():
    """Two uses in a graph: each casts its own gradient, as without sharing; added in bfloat16 they would differ."""
    net, inputs, found = network(), torch.randn(2, 5, 24), {}
    net[0].bias.requires_grad_(False)
    for sharing in (contextlib.nullcontext(), cast_linears(net)):
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False), sharing, Casts() as casts:
            for _ in range(2):
                (net(inputs[0]).float().exp().sum() + net(inputs[1]).float().exp().sum()).backward()
            with torch.autocast("cpu", enabled=False):
                assert net[0](inputs[0]).dtype == torch.float32
        weights = [shape for shape in casts.shapes if shape in [(40,), (7, 40), (40, 24)]]
        found[len(weights)] = [parameter.grad for parameter in net.parameters()]
        net.zero_grad()
        assert all("forward" not in module.__dict__ for module in net)
    each, shared = found[12], found[3]
    assert each[1] is shared[1] is None
    assert all(torch.equal(a, b) for a, b in zip(each, shared, strict=True) if a is not None)


def test_layers_whose_weight_is_computed_are_left_alone():
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    pruned = nn.utils.prune.identity(nn.Linear(4, 4), "weight")
    net = nn.Sequential(nn.Linear(4, 4), normed, pruned)
    with torch.autocast("cpu", torch.bfloat16), cast_linears(net):
        net(torch.ones(1, 4)).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
