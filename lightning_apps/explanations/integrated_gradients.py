"""Integrated gradients of a whole document on its word embeddings, in the memory of a few chunks."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from lightning_apps.explanations.attribution import Array, Attribution, CachedEncoder, Chunks, Target, used_length

SMALLEST_CHANGE = 0.01
"""Of F; where F changes less on the whole path, the tolerance is relative to this: there is little to share out."""


@dataclass(frozen=True)
class Completeness:
    """How well integrated gradients add up: `total` should be `value - baseline`.

    Attributes:
        value: F of the document.
        baseline: F of the document with every word absent.
        total: sum of the scores of all tokens.
        points: how many points of the path a gradient was taken at.
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
    chunks: Chunks, encoder: CachedEncoder, target: Target, *, steps: int, tolerance: float, max_steps: int
) -> tuple[Attribution, Completeness, Array]:
    """Integrated gradients (Sundararajan, Taly and Yan, 2017), exact over the whole document.

    The path leads from the document with every word absent to the document, all chunks at the same time. Its integral
    is taken by Simpson's rule on stretches of the path. How well that went is known on any stretch, as the scores must
    add up to the change of F there; while the stretches are off by more than the tolerance in sum, the worst is halved.
    A halved stretch keeps its three points and takes two more. Models change their mind within a few hundredths of the
    path: points spread evenly, or rules of higher order that share no points, take several times as many.

    The score of a word is the sum over its tokens in all chunks: where chunks overlap a word was read twice, and both
    readings contributed.

    Args:
        chunks: the document as the model reads it.
        encoder: the model that reads it.
        target: what F is.
        steps: points at first, spread evenly from end to end; an odd number from 3.
        tolerance: largest error, relative to the change of F.
        max_steps: points at most, those at first included; they are taken in any case.

    Returns:
        Scores of words and chunks, how well they add up, and the scores of tokens (chunks, length).
    """
    path = _Path(chunks, encoder, target)
    grid = [path.point(position) for position in np.linspace(0.0, 1.0, steps).tolist()]
    stretches = [_Stretch(*grid[place : place + 3]) for place in range(0, steps - 1, 2)]
    value, baseline = grid[-1].value, grid[0].value
    limit = tolerance * max(abs(value - baseline), SMALLEST_CHANGE)
    # n stretches share their ends, so that they have 2 n + 1 points
    while sum(stretch.error for stretch in stretches) > limit and 2 * len(stretches) + 3 <= max_steps:
        worst = max(stretches, key=lambda stretch: stretch.error)
        stretches.remove(worst)
        for first, last in ((worst.start, worst.middle), (worst.middle, worst.end)):
            stretches.append(_Stretch(first, path.point((first.position + last.position) / 2), last))
    tokens: Array = np.sum([stretch.scores for stretch in stretches], axis=0)
    valid = chunks.word >= 0
    words = np.bincount(chunks.word[valid], tokens[valid], minlength=chunks.num_words).astype(np.float64)
    completeness = Completeness(value, baseline, float(tokens.sum()), 2 * len(stretches) + 1)
    return Attribution(words, tokens.sum(axis=1)), completeness, tokens


@dataclass(frozen=True, eq=False)
class _Point:
    """Of the path: position in [0, 1], F there, and its slope by token (chunks, length), which sum to dF/dposition."""

    position: float
    value: float
    slope: Array


@dataclass(frozen=True, eq=False)
class _Stretch:
    """Of the path, with Simpson's rule on it."""

    start: _Point
    middle: _Point
    end: _Point

    @cached_property
    def scores(self) -> Array:
        """(chunks, length) share of each token in the change of F."""
        sixth = (self.end.position - self.start.position) / 6
        return sixth * (self.start.slope + 4 * self.middle.slope + self.end.slope)

    @cached_property
    def error(self) -> float:
        """By which the scores miss the change of F."""
        return abs(float(self.scores.sum()) - (self.end.value - self.start.value))


class _Path:
    """The straight line between the embeddings of the empty document, at 0, and of the document, at 1.

    The pooling ties the chunks together, so that a gradient takes two passes: all chunk vectors without a graph, and
    from them the gradient of F by chunk vector; then a vector-Jacobian product for each micro-batch of chunks. That is
    the gradient of the whole, in the memory of one micro-batch. A document that is one micro-batch needs one pass.
    """

    def __init__(self, chunks: Chunks, encoder: CachedEncoder, target: Target) -> None:
        self.net, self.encoder, self.chunks = encoder.net, encoder, chunks
        self.absent = chunks.without(np.ones(chunks.num_words, dtype=np.bool_), encoder.absent_id)
        self.weights = target.logit_weights.to(encoder.device)
        self.embedding = self.net.get_input_embeddings()
        starts = range(0, len(chunks.input_ids), encoder.micro_chunks)
        self.parts = [slice(start, start + encoder.micro_chunks) for start in starts]

    def embedded(self, part: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Start and direction of the path (chunks, length, width), and the mask, of a micro-batch."""
        mask = self.chunks.attention_mask[part]
        length = used_length(mask)
        device = self.encoder.device
        base = self.embedding(self.absent[part, :length].to(device))
        here = self.embedding(self.chunks.input_ids[part, :length].to(device))
        return base, here - base, mask[:, :length].to(device)

    def encoded(self, point: Tensor, mask: Tensor) -> Tensor:
        """Chunk vectors of embeddings (chunks, length, width)."""
        self.encoder.num_encoded += len(point)
        vectors: Tensor = self.net.encode(attention_mask=mask, inputs_embeds=point)
        return vectors

    def function(self, vectors: Tensor) -> Tensor:
        """F of all chunk vectors."""
        logits, _ = self.net.classify(vectors, [len(vectors)], self.chunks.sections)
        return (logits[0].float() * self.weights).sum()

    @torch.no_grad()
    def vectors(self, position: float) -> Tensor:
        """All chunk vectors at a position in [0, 1], without a graph."""
        found = []
        for part in self.parts:
            base, direction, mask = self.embedded(part)
            found.append(self.encoded(base + position * direction, mask))
        return torch.cat(found)

    @torch.enable_grad()
    def point(self, position: float) -> _Point:
        """F at a position, and how each token moves it there."""
        slopes = np.zeros(self.chunks.word.shape)
        gradient = None
        if len(self.parts) > 1:
            whole = self.vectors(position).requires_grad_()
            value = self.function(whole)
            (gradient,) = torch.autograd.grad(value, whole)
        for part in self.parts:
            base, direction, mask = self.embedded(part)
            place = (base + position * direction).requires_grad_()
            vectors = self.encoded(place, mask)
            if gradient is None:
                value = self.function(vectors)
                (slope,) = torch.autograd.grad(value, place)
            else:
                (slope,) = torch.autograd.grad(vectors, place, gradient[part])
            products = (slope.double() * direction.double()).sum(dim=-1).cpu().numpy()
            slopes[part, : products.shape[1]] = products
        return _Point(position, value.item(), slopes)
