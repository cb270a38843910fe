"""Attention with dropout on a CPU, for encoders, a few heads at a time.

With dropout on the attention weights `scaled_dot_product_attention` leaves its fused CPU kernel: it draws a random
float for every weight on one thread, and writes and reads the whole (n, heads, T, T) array about ten times. Here the
same function is computed for so few heads at a time that their weights stay in the core's cache, with 16 random bits
for each weight, and the backward pass computes the weights again instead of keeping them (Dao et al. 2022,
"FlashAttention"). Measurements are in LOG.md.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "sdpa_cpu_dropout"
_BLOCK_WEIGHTS = 1 << 18  # attention weights at a time: 1 MB, the second-level cache of a core
_LEVELS = 1 << 16


def keep_threshold(dropout: float) -> int:
    """Of 65,536 equally likely values, how many keep a weight; the share is off by less than 1 / 131,072."""
    return _LEVELS - round(dropout * _LEVELS)


def kept(generator: np.random.SFC64, shape: tuple[int, ...], threshold: int) -> Tensor:
    """Independent draws, True with probability threshold / 65,536, as a bool tensor."""
    size = int(np.prod(shape))
    words: NDArray[np.uint64] = generator.random_raw(-(-size // 4))
    return torch.from_numpy(words.view(np.uint16)[:size] < threshold).view(shape)


class DropoutAttention(torch.autograd.Function):
    """softmax(q k^T * scale + mask), dropped out, times v."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scale: float,
        dropout: float,
        seed: int,
    ) -> Tensor:
        """(n, heads, T, d) query; key and value (n, heads, S, d); mask broadcasts to (n, heads, T, S) -> like query.

        A mask of bool is True where a key is seen, one of floats is added. `seed` decides what is dropped.
        """
        mask = _additive(mask, query.dtype)
        output = torch.empty_like(query)
        threshold = keep_threshold(dropout)
        rescale = _LEVELS / threshold
        for block, (row, heads) in enumerate(_blocks(query, key)):
            weights = _weights(query[row, heads], key[row, heads], _mask_of(mask, row, heads), scale)
            weights = weights * kept(np.random.SFC64([seed, block]), weights.shape, threshold)
            torch.bmm(weights, value[row, heads] * rescale, out=output[row, heads])
        ctx.save_for_backward(query, key, value, mask, output)
        ctx.scale, ctx.threshold, ctx.seed = scale, threshold, seed
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of query (n, heads, T, d), key and value (n, heads, S, d); None for what is no tensor to learn."""
        query, key, value, mask, output = ctx.saved_tensors
        rescale = _LEVELS / ctx.threshold
        grad_query, grad_key, grad_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        grad_output = grads[0].contiguous()
        # sum over keys of weight * its gradient; dropout cancels out of it
        deltas = (grad_output * output).sum(dim=-1, keepdim=True)  # (n, heads, T, 1)
        for block, (row, heads) in enumerate(_blocks(query, key)):
            # (heads of the block, T or S, d) each
            q, k, v, g = query[row, heads], key[row, heads], value[row, heads], grad_output[row, heads] * rescale
            weights = _weights(q, k, _mask_of(mask, row, heads), ctx.scale)  # (heads of the block, T, S)
            keep = kept(np.random.SFC64([ctx.seed, block]), weights.shape, ctx.threshold).to(weights.dtype)
            torch.bmm((weights * keep).transpose(1, 2), g, out=grad_value[row, heads])
            grad_weights = torch.bmm(g, v.transpose(1, 2)).mul_(keep).sub_(deltas[row, heads]).mul_(weights)
            grad_scores = grad_weights.mul_(ctx.scale)
            torch.bmm(grad_scores, k, out=grad_query[row, heads])
            torch.bmm(grad_scores.transpose(1, 2), q, out=grad_key[row, heads])
        return grad_query, grad_key, grad_value, None, None, None, None


def _blocks(query: Tensor, key: Tensor) -> list[tuple[int, slice]]:
    """Rows of the batch, and so many heads at a time as keep the weights in the cache."""
    num_rows, num_heads, length, _ = query.shape
    size = max(1, _BLOCK_WEIGHTS // (length * key.shape[2]))
    return [(row, slice(head, head + size)) for row in range(num_rows) for head in range(0, num_heads, size)]


def _additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A mask to be added, one row for all queries where they see the same keys: that costs no pass over a full one."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    if mask.shape[2] > 1 and bool((mask == mask[:, :, :1]).all()):
        mask = mask[:, :, :1]
    return torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, float("-inf"))


def _mask_of(mask: Tensor | None, row: int, heads: slice) -> Tensor | None:
    if mask is None:
        return None
    mask = mask[row if mask.shape[0] > 1 else 0]
    return mask[heads] if mask.shape[0] > 1 else mask


def _weights(query: Tensor, key: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Softmax over keys in float32, (heads, T, S), in the type of the query."""
    scores = torch.bmm(query * scale, key.transpose(1, 2))
    if mask is not None:
        scores.add_(mask)
    if scores.dtype in (torch.float16, torch.bfloat16):
        return torch.softmax(scores.float(), dim=-1).to(scores.dtype)
    return torch.softmax(scores, dim=-1)


@torch.compiler.disable
def dropout_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, scale: float, dropout: float
) -> Tensor:
    """DropoutAttention with a seed from torch's generator, so that seeding torch decides what is dropped.

    Args:
        query: (n, heads, T, d) floating point, on the CPU.
        key: (n, heads, S, d).
        value: (n, heads, S, d).
        mask: broadcasts to (n, heads, T, S): True where a key is seen, or floats that are added; None sees all.
        scale: what the scores are multiplied by.
        dropout: share of the weights that is dropped, in (0, 1).

    Returns:
        (n, heads, T, d).
    """
    seed = int(torch.randint(2**62, ()))
    output: Tensor = DropoutAttention.apply(query, key, value, mask, scale, dropout, seed)
    return output


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """SDPA as transformers calls it, but for dropout on a CPU; (n, heads, T, d) -> (n, T, heads, d).

    Where only the first position counts (see first_position_only) the others come out as copies of it.

    Args:
        module: the attention layer.
        query: (n, heads, T, d) floating point.
        key: (n, heads, S, d).
        value: (n, heads, S, d).
        attention_mask: broadcasts to (n, heads, T, S): True where a key is seen, or floats that are added; None sees
            all.
        dropout: on attention weights, in [0, 1).
        scaling: what the scores are multiplied by; None for 1 / sqrt(d).
        **kwargs: what transformers hands to every implementation; passed on to `sdpa`.

    Returns:
        (n, T, heads, d), and no weights.
    """
    length = query.shape[2]
    if getattr(module, "first_query_only", False):
        query = query[:, :, :1]
        if attention_mask is not None and attention_mask.shape[2] > 1:
            attention_mask = attention_mask[:, :, :1]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if query.device.type == "cpu" and dropout > 0:
        output = dropout_attention(query, key, value, attention_mask, scale=scale, dropout=dropout).transpose(1, 2)
    else:
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    return output.expand(-1, length, -1, -1), None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def use_fast_attention(net: PreTrainedModel) -> None:
    """Let an encoder attend through `attention`; architectures that bring attention of their own are left alone."""
    if net.config._attn_implementation == "sdpa":
        net.set_attn_implementation(NAME)


FIRST_POSITION_PARTS = {
    "Bert": "attention.output",
    "Camembert": "attention.output",
    "DistilBert": "sa_layer_norm",
    "Electra": "attention.output",
    "Roberta": "attention.output",
    "XLMRoberta": "attention.output",
}
"""Architectures whose classifier looks at the first position only, and the first part behind attention of their
layers."""


def architecture(net: PreTrainedModel) -> str:
    """Such as `Bert`, whichever head is on it."""
    return type(net).__name__.removesuffix("ForSequenceClassification").removesuffix("Model")


def first_position_only(net: PreTrainedModel) -> None:
    """Let the last layer compute the first position only: same result there, less work.

    Does something to classifiers whose head looks at no other position, and to such encoders without a head, whose
    caller then must not look at another one.

    Of the last layer's twelve d x d products nine, and its attention for all queries but one, are for positions that
    nobody reads: an eighth of the work of six layers. Hidden states behind the last layer then are (n, 1, d).
    """
    part_name = FIRST_POSITION_PARTS.get(architecture(net))
    if part_name is None:
        return
    layers: Any = next(part for part in net.modules() if isinstance(part, torch.nn.ModuleList))
    last = layers[-1]
    last.get_submodule(part_name).register_forward_pre_hook(
        lambda _, args: tuple(states[:, :1] for states in args), prepend=True
    )
    if net.config._attn_implementation == NAME:
        for part in last.attention.modules():
            part.first_query_only = True
