"""Weights in shards over all ranks (FSDP2): who holds what, and when a network has its whole weights.

Between steps and inside a step a rank holds its shard of every parameter, a DTensor, and gathers one block at a time.
Evaluations, exports and searches for a fault make unequal numbers of forward passes on each rank; there the network
holds its whole weights (`whole_weights`), and nothing it computes waits for another rank.
"""

import contextlib
import re
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only

Result = TypeVar("Result")

BLOCK = re.compile(r"(?:.*\.)?(?:layers?|blocks?|h)\.\d+")
"""Names of transformer blocks: `model.layers.3`, `encoder.layer.3`, `transformer.h.3`."""
_whole: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()  # sharded networks that hold their whole weights just now


def blocks_of(net: nn.Module) -> list[nn.Module]:
    """The transformer blocks of a network, those inside of another block left out."""
    found: dict[str, nn.Module] = {}
    for name, part in net.named_modules():
        if BLOCK.fullmatch(name) and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = part
    return list(found.values())


def shard(net: nn.Module, mesh: DeviceMesh, *, block_dtype: torch.dtype | None) -> None:
    """Put the weights of a network in shards, one group for each transformer block and one for all around them.

    Embeddings and output projection are in one group, so that they may be tied. A network that is sharded stays so.

    Args:
        net: with whole weights, the same on all ranks.
        mesh: one dimension, of all ranks.
        block_dtype: in which blocks travel and compute; None for that of their weights. Gradients add up in float32.
    """
    if isinstance(net, FSDPModule):
        return
    # autocast casts what goes into a layer, as on one device
    around = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    inside = MixedPrecisionPolicy(param_dtype=block_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in blocks_of(net):
        fully_shard(block, mesh=mesh, mp_policy=inside)
    fully_shard(net, mesh=mesh, mp_policy=around)
    net.call_inside = _call  # type: ignore[assignment]
    register_fsdp_forward_method(net, "call_inside")
    inside_forward(net, lambda: None)  # FSDP2 takes for the root whatever runs first


def _call(function: Callable[..., Result], *arguments: Any) -> Result:
    return function(*arguments)


def inside_forward(net: nn.Module, function: Callable[..., Result], *arguments: Any) -> Result:
    """`function(*arguments)`, in which parts of a sharded network may be called and weights around its blocks read.

    FSDP2 gathers those weights for `net(...)`; a loss that calls the decoder and the output projection itself, as ours
    do, is as good as a forward pass here. On all ranks equally often, and each calls the same blocks in the same order.
    """
    if not isinstance(net, FSDPModule):
        return function(*arguments)
    return net.call_inside(function, *arguments)  # type: ignore[operator]


def groups_of(net: nn.Module) -> list[FSDPModule]:
    """The shard groups of a network; none where it is not sharded."""
    return [part for part in net.modules() if isinstance(part, FSDPModule)] if isinstance(net, FSDPModule) else []


def gather_weights(net: nn.Module) -> None:
    """Let a sharded network hold its whole weights; what changes them then is lost. Called on all ranks."""
    with torch.inference_mode(mode=False):  # the buffers are used again in training
        for group in groups_of(net):
            group.set_reshard_after_forward(False, recurse=False)
            group.unshard()
    if isinstance(net, FSDPModule):
        _whole.add(net)


def drop_weights(net: nn.Module) -> None:
    """Let a sharded network hold its shards alone again."""
    for group in groups_of(net):
        group.set_reshard_after_forward(group is not net, recurse=False)
        group.reshard()
    _whole.discard(net)


@contextlib.contextmanager
def whole_weights(net: nn.Module) -> Iterator[None]:
    """Inside of it, a sharded network computes without other ranks; its parameters are plain tensors, to be read."""
    if not isinstance(net, FSDPModule) or net in _whole:
        yield
        return
    gather_weights(net)
    try:
        yield
    finally:
        drop_weights(net)


@contextlib.contextmanager
def weights_as_shards(net: nn.Module) -> Iterator[None]:
    """Inside of it, parameters of a sharded network are its shards, to be changed or saved, in an evaluation too."""
    if not isinstance(net, FSDPModule) or net not in _whole:
        yield
        return
    drop_weights(net)
    try:
        yield
    finally:
        gather_weights(net)


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor; for work that treats all elements alike."""
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


def local_tensors(tensors: Iterable[Tensor]) -> list[Tensor]:
    """What this rank holds of each."""
    return [local(tensor) for tensor in tensors]


def gathered(value: Any, *, keep: bool) -> Any:
    """A nest of containers whose shards are put together on the CPU, tensor by tensor; called on all ranks.

    Args:
        value: the same structure on all ranks.
        keep: whether this rank wants the result; else an empty tensor stands for each that was sharded.
    """
    done: dict[int, Tensor] = {}  # a tied weight has two names, and stays one tensor

    def whole(shard: DTensor) -> Tensor:
        if id(shard) not in done:
            full = shard.full_tensor().detach()
            done[id(shard)] = full.cpu() if keep else torch.empty(0)
        return done[id(shard)]

    return tree_map_only(DTensor, whole, value)


def scattered(value: Tensor, like: Tensor) -> Tensor:
    """A tensor as `like` is held: this rank's shard of it, where that is one. All ranks have the whole of it."""
    if not isinstance(like, DTensor) or isinstance(value, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
