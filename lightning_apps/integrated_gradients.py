"""Integrated gradients of a whole document on its word embeddings, in the memory of a few chunks."""

from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np
import torch
from torch import Tensor

from lightning_apps.attribution import Array, Attribution, Chunks, Goal, Reader, used_length

SMALLEST_CHANGE = 0.01
"""Of F; where F changes less on the whole path, the tolerance is relative to this: there is little to share out."""


@dataclass(frozen=True)
class Completeness:
    """How well integrated gradients add up: `total` should be `value - baseline`.

    Attributes:
        value: F of the document.
        baseline: F of the document with every word absent.
        total: sum of the scores of all tokens.
        points: of the path at which a gradient was taken.
    """

    value: float
    baseline: float
    total: float
    points: int

    @property
    def error(self) -> float:
        """|total - (value - baseline)|, in units of F."""
        return abs(self.total - (self.value - self.baseline))


def integrated_gradients(
    chunks: Chunks, reader: Reader, goal: Goal, *, steps: int, tolerance: float, max_steps: int
) -> tuple[Attribution, Completeness, Array]:
    """Integrated gradients (Sundararajan, Taly and Yan, 2017), exact over the whole document.

    The path leads from the document with every word absent to the document, all chunks at the same time. Its integral
    is taken by Gauss-Legendre quadrature. How well that went is known on any stretch of the path, as the scores must
    add up to the change of F there; while the stretches are off by more than the tolerance in sum, the worst is halved.
    A model that changes its mind within a hundredth of the path would otherwise need thousands of points everywhere.

    The score of a word is the sum over its tokens in all chunks: where chunks overlap a word was read twice, and both
    readings contributed.

    Args:
        chunks: of the document.
        reader: of the model.
        goal: what F is.
        steps: points on a stretch.
        tolerance: of the error, relative to the change of F.
        max_steps: points at most, those of stretches that were halved included; at least `steps` are taken.

    Returns:
        Scores of words and chunks, how well they add up, and the scores of tokens (chunks, length).
    """
    path = _Path(chunks, reader, goal)
    baseline, value = path.value(0.0), path.value(1.0)
    limit = tolerance * max(abs(value - baseline), SMALLEST_CHANGE)
    stretches: list[tuple[float, float, float, float, float, Array]] = []

    def add(start: float, end: float, first: float, last: float) -> None:
        scores = path.scores(start, end, steps)
        error = abs(float(scores.sum()) - (last - first))
        heappush(stretches, (-error, start, end, first, last, scores))  # no two have the same start

    add(0.0, 1.0, baseline, value)
    points = steps
    while -sum(stretch[0] for stretch in stretches) > limit and points + 2 * steps <= max_steps:
        _, start, end, first, last, _ = heappop(stretches)
        middle = (start + end) / 2
        between = path.value(middle)
        add(start, middle, first, between)
        add(middle, end, between, last)
        points += 2 * steps
    tokens: Array = np.sum([stretch[-1] for stretch in stretches], axis=0)
    valid = chunks.word >= 0
    words = np.bincount(chunks.word[valid], tokens[valid], minlength=chunks.num_words).astype(np.float64)
    completeness = Completeness(value, baseline, float(tokens.sum()), points)
    return Attribution(words, tokens.sum(axis=1)), completeness, tokens


class _Path:
    """The straight line between the embeddings of the empty document, at 0, and of the document, at 1.

    The pooling ties the chunks together, so that a gradient takes two passes: all chunk vectors without a graph, and
    from them the gradient of F by chunk vector; then a vector-Jacobian product for each micro-batch of chunks. That is
    the gradient of the whole, in the memory of one micro-batch. A document that is one micro-batch needs one pass.
    """

    def __init__(self, chunks: Chunks, reader: Reader, goal: Goal) -> None:
        self.net, self.reader, self.chunks = reader.net, reader, chunks
        self.absent = chunks.without(np.ones(chunks.num_words, dtype=np.bool_), reader.absent_id)
        self.weights = goal.logit_weights.to(reader.device)
        self.count = torch.tensor([len(chunks.input_ids)], device=reader.device)
        self.embedding = self.net.get_input_embeddings()
        starts = range(0, len(chunks.input_ids), reader.micro_chunks)
        self.parts = [slice(start, start + reader.micro_chunks) for start in starts]

    def embedded(self, part: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Start and direction of the path (chunks, length, width), and the mask, of a micro-batch."""
        mask = self.chunks.attention_mask[part]
        length = used_length(mask)
        device = self.reader.device
        base = self.embedding(self.absent[part, :length].to(device))
        here = self.embedding(self.chunks.input_ids[part, :length].to(device))
        return base, here - base, mask[:, :length].to(device)

    def encoded(self, point: Tensor, mask: Tensor) -> Tensor:
        """Chunk vectors of embeddings (chunks, length, width)."""
        self.reader.num_encoded += len(point)
        vectors: Tensor = self.net.encode(attention_mask=mask, inputs_embeds=point)
        return vectors

    def function(self, vectors: Tensor) -> Tensor:
        """F of all chunk vectors."""
        logits, _ = self.net.classify(vectors, self.count)
        return (logits[0].float() * self.weights).sum()

    @torch.no_grad()
    def vectors(self, position: float) -> Tensor:
        """All chunk vectors at a position in [0, 1], without a graph."""
        found = []
        for part in self.parts:
            base, direction, mask = self.embedded(part)
            found.append(self.encoded(base + position * direction, mask))
        return torch.cat(found)

    @torch.no_grad()
    def value(self, position: float) -> float:
        """F at a position."""
        return float(self.function(self.vectors(position)))

    @torch.enable_grad()
    def scores(self, start: float, end: float, steps: int) -> Array:
        """(chunks, length) share of each token in the change of F from `start` to `end`."""
        total = np.zeros(self.chunks.word.shape)
        nodes, weights = np.polynomial.legendre.leggauss(steps)
        half = (end - start) / 2
        for node, weight in zip(start + half * (nodes + 1), half * weights, strict=True):
            gradient = None
            if len(self.parts) > 1:
                whole = self.vectors(node).requires_grad_()
                (gradient,) = torch.autograd.grad(self.function(whole), whole)
            for part in self.parts:
                base, direction, mask = self.embedded(part)
                point = (base + node * direction).requires_grad_()
                vectors = self.encoded(point, mask)
                if gradient is None:
                    (slope,) = torch.autograd.grad(self.function(vectors), point)
                else:
                    (slope,) = torch.autograd.grad(vectors, point, gradient[part])
                products = (slope.double() * direction.double()).sum(dim=-1).cpu().numpy()
                total[part, : products.shape[1]] += weight * products
        return total
