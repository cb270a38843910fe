"""Linear layers whose weights are cast once under autocast, and for decoding on a CPU laid out for oneDNN.

`nn.functional.linear` lays the weight out anew in every call; for the few rows of a decoding step that costs more than
the product. Measured on two AVX2 cores, 16 rows of 576 features: 462 microseconds for 1,536 outputs against 307, and
19.8 ms for a vocabulary of 49,152 against 9.7. Lightning's autocast keeps no cast weights, and torch's own keeps none
where no gradient is wanted: each token would cast all of them. There, on one thread with AVX512_BF16: 51 ms for that
vocabulary, of which the cast takes 38, against 17 ms.
"""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

MOST_BYTES = 4 << 30
"""Weights above this are left as they are: their second copy would not fit everywhere."""


@contextlib.contextmanager
def packed_linears(net: nn.Module, rows: int) -> Iterator[None]:
    """Let the linear layers of a model multiply by copies of their weights: cast as autocast would, packed on a CPU.

    To be used without gradients, and while nobody changes the weights or autocast. A cast alone keeps the bits of the
    products; a layout may round a few of them the other way. Layers that would gain nothing stay as they are.

    Args:
        net: the model whose linear layers change while the context lasts.
        rows: rows of the inputs to expect, which the layout is chosen for; other numbers work as well.
    """
    layers = {
        module: dtype
        for module in _plain_linears(net)
        if (dtype := _product_dtype(module)) != module.weight.dtype or _can_be_laid_out(module, dtype, rows)
    }
    if sum(dtype.itemsize * layer.weight.numel() for layer, dtype in layers.items()) > MOST_BYTES:
        layers = {}
    try:
        for layer, dtype in layers.items():
            is_packed = _can_be_laid_out(layer, dtype, rows)
            weight = layer.weight.detach().to(dtype)
            if is_packed:
                weight = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
            bias = None if layer.bias is None else layer.bias.detach().to(dtype)
            layer.forward = partial(_linear, layer, weight, bias, is_packed)  # type: ignore[method-assign]
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def _linear(layer: nn.Linear, weight: Tensor, bias: Tensor | None, is_packed: bool, inputs: Tensor) -> Tensor:
    inputs = inputs.to(weight.dtype)
    if not is_packed:
        return nn.functional.linear(inputs, weight, bias)
    if weight.dtype == torch.float32 and inputs.numel() == inputs.shape[-1]:
        return nn.functional.linear(inputs, layer.weight, layer.bias)  # a product with a vector: packed, it is slower
    operators: Any = torch.ops.mkldnn
    product: Tensor = operators._linear_pointwise(inputs, weight, bias, "none", [], "")
    return product


@contextlib.contextmanager
def cast_linears(net: nn.Module) -> Iterator[None]:
    """Let the linear layers of a model cast their weights for autocast once and not in each call; bits stay the same.

    Autocast's own cache shares the cast in the graph as well: of a weight that is used twice in a graph, gradients are
    then added in bfloat16. Here each use casts its own gradient, as without a cache.

    Args:
        net: the model whose linear layers change while the context lasts, and whose weights do not.
    """
    layers = [module for module in _plain_linears(net) if _product_dtype(module) != module.weight.dtype]
    try:
        for layer in layers:
            layer.forward = partial(_cast_linear, layer, {})  # type: ignore[method-assign]
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def _cast_linear(layer: nn.Linear, casts: dict[str, Tensor], inputs: Tensor) -> Tensor:
    dtype = _product_dtype(layer)
    if dtype == layer.weight.dtype:  # where a model turns autocast off for a moment
        return nn.functional.linear(inputs, layer.weight, layer.bias)
    given = dict(layer.named_parameters())
    if not casts:
        with torch.inference_mode(mode=False), torch.no_grad():
            casts |= {name: parameter.to(dtype) for name, parameter in given.items()}
    used = {name: _Cast.apply(parameter, casts[name]) for name, parameter in given.items()}
    return nn.functional.linear(inputs, used["weight"], used.get("bias"))


class _Cast(torch.autograd.Function):
    """A parameter's cast that is there already, with the gradient of a cast."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, cast: Tensor) -> Tensor:
        ctx.dtype = parameter.dtype
        return cast

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0].to(ctx.dtype), None


def _plain_linears(net: nn.Module) -> list[nn.Linear]:
    """Layers whose forward pass nobody has changed; what wraps one, as adapters do, computes more.

    Nor their weight: that of a weight norm, or of a pruned layer, is computed from other parameters.
    """
    linears = (module for module in net.modules() if type(module) is nn.Linear)
    return [layer for layer in linears if "forward" not in layer.__dict__ and "weight" in layer._parameters]


def _product_dtype(layer: nn.Linear) -> torch.dtype:
    """In what the layer multiplies: what autocast says, which leaves float64 alone, or what its weights are in."""
    device = layer.weight.device.type
    if layer.weight.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return layer.weight.dtype
    return torch.get_autocast_dtype(device)


def _can_be_laid_out(layer: nn.Linear, dtype: torch.dtype, rows: int) -> bool:
    if layer.weight.device.type != "cpu" or not _has_operators():
        return False
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32 and rows > 1


def _has_operators() -> bool:
    # the compiler's own operators: not part of the public interface, so they are looked for
    names = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in names)
