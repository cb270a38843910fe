"""From the vectors of a document's chunks to one vector: learned attention, learned counts, or averages and maxima.

All take a table of chunks, (documents, longest, hidden), and a mask that is True where a document has such a chunk; all
return one vector for each document and what each chunk weighed in it, which sums to one over a document.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from transformers import initialization

DocumentPooling = Literal["additive", "multi_head", "sum", "mean", "max"]


class AdditivePooling(nn.Module):
    """softmax(v tanh(W h + b)) over chunks (Yang et al. 2016, "Hierarchical attention networks", section 2.2).

    Args:
        hidden_size: width of a chunk's vector.
        attention_size: rows of W, and the length of v.
    """

    def __init__(self, hidden_size: int, attention_size: int) -> None:
        super().__init__()
        self.project = nn.Linear(hidden_size, attention_size)
        self.score = nn.Linear(attention_size, 1, bias=False)

    def forward(self, table: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(documents, longest, hidden), (documents, longest) -> (documents, hidden), (documents, longest)."""
        scores = self.score(torch.tanh(self.project(table))).squeeze(-1)  # (documents, longest)
        weights = torch.softmax(scores.float().masked_fill(~mask, float("-inf")), dim=-1)
        return torch.einsum("dc,dch->dh", weights.to(table.dtype), table), weights


class MultiHeadPooling(nn.Module):
    """A learned query for each head over keys and values of chunks (Vaswani et al. 2017; Lee et al. 2019, "PMA").

    Args:
        hidden_size: width of a chunk's vector.
        num_heads: heads, a divisor of `hidden_size`.

    Raises:
        ValueError: the width is no multiple of the number of heads.
    """

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        if hidden_size % num_heads:
            raise ValueError(f"model.attention_heads={num_heads}: the width {hidden_size} is no multiple of it")
        self.num_heads = num_heads
        self.query = nn.Parameter(torch.empty(num_heads, hidden_size // num_heads))
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size)

    def reset_query(self) -> None:
        """Draw the queries anew."""
        initialization.normal_(self.query, std=self.query.shape[1] ** -0.5)

    def forward(self, table: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Pool (documents, longest, hidden) by a mask (documents, longest); the weights are the mean over heads."""
        # (documents, longest, heads, hidden / heads) each
        keys, values = (part(table).unflatten(-1, (self.num_heads, -1)) for part in (self.key, self.value))
        scores = torch.einsum("nk,dcnk->dnc", self.query.to(keys.dtype), keys) * self.query.shape[1] ** -0.5
        # (documents, heads, longest)
        weights = torch.softmax(scores.float().masked_fill(~mask[:, None], float("-inf")), dim=-1)
        pooled = torch.einsum("dnc,dcnk->dnk", weights.to(values.dtype), values).flatten(1)  # (documents, hidden)
        return self.output(pooled), weights.mean(dim=1)


class SumPooling(nn.Module):
    """sum over chunks of sigmoid(W norm(h) + b): how many chunks show each of some learned features (soft counts).

    Attention gives a share, and one bad part of eight cannot be told from one of two by it; a count can. It is the sum
    of Zaheer et al. 2017, "Deep sets", theorem 2, with bounded terms, so that no single chunk outweighs the others.

    Args:
        hidden_size: width of a chunk's vector.
        num_features: features that are counted.
    """

    def __init__(self, hidden_size: int, num_features: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.project = nn.Linear(hidden_size, num_features)

    def forward(self, table: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The counts (documents, features) over a table's chunks, and the share of all that each chunk gave."""
        shown = torch.sigmoid(self.project(self.norm(table))) * mask[..., None]  # (documents, longest, features)
        given = shown.float().sum(dim=-1)
        return shown.sum(dim=1), given / given.sum(dim=1, keepdim=True)


class MeanPooling(nn.Module):
    """Every chunk alike."""

    def forward(self, table: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The mean (documents, hidden) of a table's chunks, and 1 / chunks as the weight of each of a document."""
        weights = mask.float() / mask.sum(dim=1, keepdim=True)
        return torch.einsum("dc,dch->dh", weights.to(table.dtype), table), weights


class MaxPooling(nn.Module):
    """The largest value of each feature; a chunk weighs as much as the share of features that it gave."""

    def forward(self, table: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The maxima (documents, hidden) over a table's chunks, and the share of features that each chunk gave."""
        pooled, winners = table.masked_fill(~mask[..., None], float("-inf")).max(dim=1)  # (documents, hidden) each
        counts = nn.functional.one_hot(winners, mask.shape[1]).sum(dim=1)  # (documents, longest)
        return pooled, counts.float() / winners.shape[1]


def document_pooling(
    kind: DocumentPooling, hidden_size: int, *, attention_size: int, attention_heads: int
) -> nn.Module:
    """The pooling of that name.

    Args:
        kind: `additive` or `multi_head` attention, `sum`, `mean` or `max`.
        hidden_size: width of a chunk's vector.
        attention_size: width of `additive` attention, features that `sum` counts; the others do not read it.
        attention_heads: heads of `multi_head` attention; the others do not read it.
    """
    if kind == "additive":
        return AdditivePooling(hidden_size, attention_size)
    if kind == "multi_head":
        return MultiHeadPooling(hidden_size, attention_heads)
    if kind == "sum":
        return SumPooling(hidden_size, attention_size)
    return MeanPooling() if kind == "mean" else MaxPooling()
