"""Attention over packed documents, registered with transformers as the implementation `packed`.

Each document is attended to by itself, so nothing is computed and thrown away: on a GPU in half precision by torch's
variable-length flash attention, elsewhere by one causal SDPA call for each document. Calls without documents are those
of `sdpa`.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

PACKED = "packed"
SUPPORTED = ("llama", "mistral", "qwen2", "qwen3")
"""Architectures whose every layer is plain causal attention over rotary positions, and that the tests go through."""


@dataclass(frozen=True)
class Documents:
    """What lies in a packed row: a prefix that all documents continue, then their remainders.

    Attributes:
        prefix_length: keys in front that every document sees, 0 without a prefix.
        prefix_is_asked: whether the prefix is among the queries too (its keys may come from a cache).
        lengths: tokens of each document behind the prefix.
    """

    prefix_length: int
    prefix_is_asked: bool
    lengths: Sequence[int]


class SlotAttention(Protocol):
    """A cache that attends by itself, as that of continuous batching does."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, documents: Documents | None, scaling: float | None
    ) -> Tensor:
        """Attention (n, T, heads, d) of a query (n, heads, T, d) to all that the cache holds by now."""


def supports_packed_attention(net: PreTrainedModel) -> bool:
    """Whether `packed` attention computes what the model means: a known architecture without sliding windows."""
    config = net.config
    slides = getattr(config, "use_sliding_window", getattr(config, "sliding_window", None))
    return config.model_type in SUPPORTED and not slides


def use_packed_attention(net: PreTrainedModel) -> None:
    """Let a model attend with `packed` attention."""
    net.set_attn_implementation(PACKED)


def attends_packed(net: PreTrainedModel) -> bool:
    """Whether use_packed_attention was called."""
    return bool(net.config._attn_implementation == PACKED)


def no_mask(states: Tensor) -> Tensor:
    """Passed as `attention_mask` beside documents: models hand a 4-D mask on without making one of T x T."""
    return states.new_empty((1, 1, 0, 0), dtype=torch.bool)


def document_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    documents: Documents | None = None,
    slots: SlotAttention | None = None,
    **other: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it.

    Args:
        module: the attention layer.
        query: (n, heads, T, d) floating point.
        key: (n, key heads, T, d), in the type of the query; key heads divide heads.
        value: (n, key heads, T, d), in the type of the query.
        attention_mask: as `sdpa` takes it; not looked at beside documents or slots.
        scaling: what the scores are multiplied by; None for 1 / sqrt(d).
        dropout: on attention weights, in [0, 1).
        documents: what lies in the row; n is 1 then.
        slots: the cache of continuous batching, which attends by itself; None outside decoding.
        other: what transformers hands to every implementation; passed on to `sdpa`.

    Returns:
        (n, T, heads, d), and no weights.
    """
    if slots is not None:
        layer: Any = module.layer_idx  # an int; Module.__getattr__ is typed as a tensor or a module
        return slots.attend(layer, query, key, value, documents, scaling), None
    if documents is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **other
        )
    return attend_by_document(query, key, value, documents, scaling=scaling, dropout=dropout), None


@torch.compiler.disable  # lengths differ from row to row: traced, every one of them would be compiled anew
def attend_by_document(
    query: Tensor, key: Tensor, value: Tensor, documents: Documents, *, scaling: float | None, dropout: float = 0.0
) -> Tensor:
    """Causal attention of each document to the prefix and itself.

    Args:
        query: (1, heads, T, d), T the documents' lengths, and the prefix before them where it is asked.
        key: (1, key heads, P + documents' lengths, d).
        value: (1, key heads, P + documents' lengths, d).
        documents: the prefix's length P, whether it is asked, and the documents' lengths.
        scaling: what the scores are multiplied by; None for 1 / sqrt(d).
        dropout: on attention weights, in [0, 1).

    Returns:
        (1, T, heads, d).
    """
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16) and dropout == 0.0:
        return _varlen(query, key, value, documents, scaling)
    prefix, lengths = documents.prefix_length, list(documents.lengths)
    key_prefix, *keys = key.split([prefix, *lengths], dim=2)
    value_prefix, *values = value.split([prefix, *lengths], dim=2)
    asked = [prefix, *lengths] if documents.prefix_is_asked else lengths
    queries = list(query.split(asked, dim=2))
    answers = []
    if documents.prefix_is_asked:
        first = queries.pop(0)
        if prefix:
            answers.append(_causal(first, key_prefix, value_prefix, None, scaling, dropout))
    # row i of a document sees the prefix and its own first i + 1 tokens; one mask serves all, cut to size
    mask = None
    if prefix:
        longest = max(lengths)
        mask = torch.ones(longest, prefix + longest, dtype=torch.bool, device=query.device).tril(prefix)
    for part, own_keys, own_values in zip(queries, keys, values, strict=True):
        if mask is None:
            answers.append(_causal(part, own_keys, own_values, None, scaling, dropout))
            continue
        length = part.shape[2]
        seen_keys, seen_values = (
            torch.cat([key_prefix, own_keys], dim=2),
            torch.cat([value_prefix, own_values], dim=2),
        )
        answers.append(_causal(part, seen_keys, seen_values, mask[:length, : prefix + length], scaling, dropout))
    return torch.cat(answers, dim=2).transpose(1, 2)  # (1, T, heads, d)


def _causal(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None, dropout: float
) -> Tensor:
    """SDPA of one document, (1, heads, T, d); query heads that share a key head are its batch, so no key is copied."""
    heads, key_heads = query.shape[1], key.shape[1]
    grouped = query.reshape(key_heads, heads // key_heads, *query.shape[2:])  # (key heads, group, T, d)
    keys, values = (part[0].unsqueeze(1).expand(-1, heads // key_heads, -1, -1) for part in (key, value))
    answer = nn.functional.scaled_dot_product_attention(
        grouped, keys, values, attn_mask=mask, is_causal=mask is None, dropout_p=dropout, scale=scaling
    )
    return answer.reshape(1, heads, *answer.shape[2:])


def _varlen(query: Tensor, key: Tensor, value: Tensor, documents: Documents, scaling: float | None) -> Tensor:
    """attend_by_document by torch's variable-length flash attention.

    Each document's keys begin with a copy of the prefix.
    """
    from torch.nn.attention.varlen import varlen_attn

    prefix, lengths = documents.prefix_length, list(documents.lengths)
    device = query.device
    asked = [prefix, *lengths] if documents.prefix_is_asked and prefix else lengths
    starts = torch.tensor([prefix, *lengths], device=device).cumsum(0)
    if prefix:
        own = [torch.arange(int(start), int(start) + length) for start, length in zip(starts, lengths, strict=False)]
        head = torch.arange(prefix)
        pieces = [part for rest in own for part in (head, rest)]
        order = torch.cat([head, *pieces] if len(asked) > len(lengths) else pieces).to(device)
        key, value = key[:, :, order], value[:, :, order]
        seen = [prefix] * (len(asked) > len(lengths)) + [prefix + length for length in lengths]
    else:
        seen = lengths
    grouped: dict[str, Any] = {"enable_gqa": True} if query.shape[1] != key.shape[1] else {}
    if grouped and "enable_gqa" not in inspect.signature(varlen_attn).parameters:  # torch 2.11: equal heads alone
        key, value = (part.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for part in (key, value))
        grouped = {}
    ends_q, ends_k = (torch.tensor([0, *sizes], device=device).cumsum(0, dtype=torch.int32) for sizes in (asked, seen))
    answer = varlen_attn(
        query[0].transpose(0, 1).contiguous(),
        key[0].transpose(0, 1).contiguous(),
        value[0].transpose(0, 1).contiguous(),
        ends_q,
        ends_k,
        max(asked),
        max(seen),
        window_size=(-1, 0),
        scale=scaling,
        **grouped,
    )
    assert isinstance(answer, Tensor)
    return answer[None]  # (1, T, heads, d)


AttentionInterface.register(PACKED, document_attention)
AttentionMaskInterface.register(PACKED, sdpa_mask)
