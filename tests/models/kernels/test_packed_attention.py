"""The call of torch's variable-length attention, in the versions of it that the dependency range allows."""

import inspect
import itertools

import pytest
import torch
from torch.nn.attention import varlen

from models.kernels.packed_attention import Documents, _varlen, attend_by_document

pytestmark = pytest.mark.numeric


def attend(query, key, value, cu_seq_q, cu_seq_k, window_size, scale):
    """What torch's kernel computes, on the CPU; it needs a GPU. Causal from the end, as its window (-1, 0) means."""
    assert window_size == (-1, 0)
    answers = []
    for (start, stop), (first, last) in zip(itertools.pairwise(cu_seq_q), itertools.pairwise(cu_seq_k), strict=True):
        asked, keys, values = query[start:stop], key[first:last], value[first:last]
        group = asked.shape[1] // keys.shape[1]
        keys, values = (part.repeat_interleave(group, dim=1) for part in (keys, values))
        scores = torch.einsum("qhd,khd->hqk", asked, keys) * (scale or asked.shape[-1] ** -0.5)
        seen = torch.ones(scores.shape[1:], dtype=torch.bool).tril(len(keys) - len(asked))
        answers.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), values))
    return torch.cat(answers)


def as_in_2_11(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)
):
    assert query.shape[1] == key.shape[1] == value.shape[1]
    return attend(query, key, value, cu_seq_q, cu_seq_k, window_size, scale)


def as_in_2_13(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k,
    *, return_aux=None, scale=None, window_size=(-1, -1), enable_gqa=False,
):  # fmt: skip
    assert enable_gqa == (query.shape[1] != key.shape[1])
    return attend(query, key, value, cu_seq_q, cu_seq_k, window_size, scale)


@pytest.mark.parametrize("kernel", [as_in_2_11, as_in_2_13])
@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize("prefix", [0, 3])
def test_heads_may_share_keys_in_every_version(kernel, key_heads, prefix, monkeypatch):
    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    documents = Documents(prefix_length=prefix, prefix_is_asked=False, lengths=[4, 1, 2])
    draw = torch.Generator().manual_seed(0)
    query = torch.randn(1, 4, 7, 8, generator=draw, dtype=torch.float64)
    key, value = torch.randn(2, 1, key_heads, prefix + 7, 8, generator=draw, dtype=torch.float64)
    expected = attend_by_document(query, key, value, documents, scaling=None)
    # sums of at most 8 terms of order one in float64
    torch.testing.assert_close(_varlen(query, key, value, documents, None), expected, rtol=0, atol=1e-14)


def test_the_installed_torch_takes_what_is_given():
    taken = inspect.signature(varlen.varlen_attn).parameters
    assert {"window_size", "scale"} <= set(taken)
