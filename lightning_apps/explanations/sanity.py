"""Whether a method explains the model at all: parameter randomization, and invariance to a shift of the input.

Both ask the same question of a method without looking at what it says. What explains a trained model must change when
the model forgets what it learned (Adebayo et al. 2018, "Sanity Checks for Saliency Maps"); and it must not change when
the model is written in another way that computes the same (Kindermans et al. 2019, "The (Un)reliability of Saliency
Methods").
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import nn

from lightning_apps.explanations.attribution import Attribution
from lightning_apps.explanations.faithfulness import known, tied
from models.encoders.hierarchical import HierarchicalClassifier

LAYER_GROUPS = 3
"""Stages that the layers of an encoder are, at most: a stage costs as much as explaining the document again."""
FEWEST_SCORES = 4
"""Distinct scores; with fewer, as in a document of one chunk, ranks say nothing."""
SURVIVES = 0.5
"""Rank correlation with a model of which nothing is left: from here on the scores do not rest on what was learned."""
SHIFTED = 0.01
"""Change of a score under the shift, as a share of the largest; rounding stays below."""

Scores = dict[str, Attribution]
Explain = Callable[[], Scores]
"""Scores of one document by method, by the model as its parameters are now."""


@dataclass(frozen=True)
class Sanity:
    """The two checks on one document.

    Attributes:
        stages: names of the stages of the cascade.
        signed: method -> (stages,) Spearman correlation of its word scores with those of the trained model, one for
            each stage of the cascade; NaN where ranks say nothing.
        absolute: the same of the scores' magnitudes.
        shift: method -> largest change of a word's score under the shift, as a share of the largest score; None where
            the encoder allows no shift.
    """

    stages: list[str]
    signed: dict[str, list[float]]
    absolute: dict[str, list[float]]
    shift: dict[str, float] | None


def cascade(net: HierarchicalClassifier) -> list[tuple[str, list[nn.Parameter]]]:
    """Parts of the model from the head downwards: what to call each, and its parameters; all of them in the end."""
    layers = list(net.layers)
    groups = np.array_split(np.arange(len(layers)), min(LAYER_GROUPS, len(layers)))[::-1]
    in_layers = {parameter for layer in layers for parameter in layer.parameters()}
    rest = [parameter for parameter in net.encoder.parameters() if parameter not in in_layers]
    return [
        ("head", list(net.head.parameters())),
        ("pooling", [*net.norm.parameters(), *net.chunk_attention.parameters()]),
        *(
            (
                f"layers {group[0] + 1}-{group[-1] + 1}" if len(group) > 1 else f"layer {group[0] + 1}",
                [parameter for index in group for parameter in layers[index].parameters()],
            )
            for group in groups
        ),
        ("embeddings", rest),
    ]


@torch.no_grad()
def redraw(parameters: Sequence[nn.Parameter], source: torch.Generator) -> None:
    """Draw every tensor anew from a normal distribution of its own mean and standard deviation.

    The paper initializes anew. Keeping the scale keeps the model as far from saturation as it was, for any
    architecture, so that an explanation changes because of what was learned and not of how large the weights are.
    """
    for parameter in parameters:
        drawn = torch.randn(parameter.shape, generator=source)
        spread, mean = torch.std_mean(parameter.float().cpu(), correction=0)
        parameter.copy_(mean + spread * drawn)


@contextmanager
def restored(net: nn.Module) -> Iterator[None]:
    """Whatever is done to the parameters inside, they are bit for bit the same behind."""
    saved = [(parameter, parameter.detach().clone()) for parameter in net.parameters()]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in saved:
                parameter.copy_(value)


def rank_correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Spearman's, of scores (n,) each, ties by their mean rank; NaN where one has fewer than FEWEST_SCORES values."""
    first, second = tied(first), tied(second)
    if min(len(np.unique(first)), len(np.unique(second))) < FEWEST_SCORES:
        return float("nan")
    return float(np.corrcoef(rankdata(first), rankdata(second))[0, 1])


def check_sanity(net: HierarchicalClassifier, explain: Explain, trained: Scores, *, seed: int) -> Sanity:
    """Both checks on one document; the model is as before in the end.

    The cascade goes on from stage to stage, so that at its last one nothing is left of what was learned.

    Args:
        net: the trained model, whose parameters are changed meanwhile.
        explain: computes the scores of the document again; nothing that it remembers may outlive a change.
        trained: what it says of the trained model.
        seed: of the parameters that are drawn, and of the shift.
    """
    source = torch.Generator().manual_seed(seed)
    signed: dict[str, list[float]] = {method: [] for method in trained}
    absolute: dict[str, list[float]] = {method: [] for method in trained}
    stages = cascade(net)
    with restored(net):
        for _, parameters in stages:
            redraw(parameters, source)
            for method, found in explain().items():
                words = trained[method].words
                signed[method].append(rank_correlation(words, found.words))
                absolute[method].append(rank_correlation(np.abs(words), np.abs(found.words)))
    shift = None
    with restored(net):
        if shift_embeddings(net, source):
            shift = {method: change(trained[method].words, found.words) for method, found in explain().items()}
    return Sanity([name for name, _ in stages], signed, absolute, shift)


@torch.no_grad()
def shift_embeddings(net: HierarchicalClassifier, source: torch.Generator) -> bool:
    """Add one vector to every word's embedding and take it off every position's: the same model, written differently.

    BERT, RoBERTa and their like normalize the sum of word and position, which stays as it is, so that nothing behind
    it needs to change. Encoders that add no positions (rotary ones) have nothing to take the vector off: a norm behind
    the embeddings takes off only the mean of its features.

    Returns:
        Whether it was possible.
    """
    words = net.get_input_embeddings()
    assert isinstance(words, nn.Embedding)
    positions = [
        part for name, part in net.embeddings.named_modules()
        if name.rpartition(".")[2] == "position_embeddings" and isinstance(part, nn.Embedding)
    ]  # fmt: skip
    if len(positions) != 1 or positions[0].weight.shape[1] != words.weight.shape[1]:
        return False
    weight = positions[0].weight
    drawn = torch.randn(weight.shape[1], generator=source).to(weight.device, weight.dtype)
    vector = words.weight.std() * drawn
    words.weight.add_(vector)
    weight.sub_(vector)
    return True


def change(before: NDArray[np.float64], after: NDArray[np.float64]) -> float:
    """Largest difference of two (n,) scores, as a share of the largest before."""
    scale = float(np.abs(before).max(initial=0.0))
    return float(np.abs(after - before).max(initial=0.0)) / scale if scale > 0 else 0.0


def summarise_sanity(documents: Sequence[Sanity]) -> dict[str, Any]:
    """Both checks over documents.

    Returns:
        `num_documents`, `stages`, and by method under `methods`: `signed` and `absolute`, a mean with its interval for
        each stage; `survives`, whether at the last stage `scores` or only their `magnitudes` correlate by SURVIVES or
        more (the lower end of the interval, where there is one), or None; `shift`, None where no encoder allows one;
        `shifted`, whether the shift changes it by more than SHIFTED.
    """
    methods: dict[str, Any] = {}
    for method in documents[0].signed if documents else ():
        signed, absolute = (
            [known(column) for column in zip(*(getattr(entry, kind)[method] for entry in documents), strict=True)]
            for kind in ("signed", "absolute")
        )
        shifts = [entry.shift[method] for entry in documents if entry.shift is not None]
        methods[method] = {
            "signed": signed,
            "absolute": absolute,
            "survives": "scores" if survives(signed[-1]) else "magnitudes" if survives(absolute[-1]) else None,
            "shift": known(shifts) if shifts else None,
            "shifted": bool(shifts) and max(shifts) > SHIFTED,
        }
    return {
        "num_documents": len(documents),
        "stages": documents[0].stages if documents else [],
        "methods": methods,
    }


def survives(correlation: dict[str, float]) -> bool:
    """Whether a mean with its interval, of the last stage, is too high for a method that explains the model."""
    low = correlation["low"]
    return (correlation["value"] if math.isnan(low) else low) >= SURVIVES
