"""The explanation of one document by all methods, and what is measured of it."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from datamodules.labelled.document_facts import Span
from lightning_apps.explanations.attribution import (
    HIGHER,
    Attribution,
    CachedEncoder,
    Chunks,
    Target,
    chunk_attention,
    class_target,
    higher_target,
    occlusion,
    random_scores,
)
from lightning_apps.explanations.deletion_curves import deletion_and_insertion, ranked_words
from lightning_apps.explanations.documents import Document
from lightning_apps.explanations.faithfulness import (
    CURVES,
    ERASER_SHARES,
    RANDOM,
    chunks_inside,
    curve_area,
    eraser_falls,
    evidence_scores,
    expected_random_evidence,
)
from lightning_apps.explanations.integrated_gradients import Completeness, integrated_gradients
from lightning_apps.explanations.sanity import Sanity, check_sanity
from lightning_apps.explanations.text_units import ReadWords, Spans, inside_spans, read_words

PREDICTED = "predicted"
NUM_TOP_WORDS = 20
NUM_TOP_SENTENCES = 5
RANDOM_DRAWS = 20
"""Random orders of sentences in the expected average precision of chance; they cost no pass of the model."""

ChunkText = Callable[[str], tuple[Tensor, Tensor, NDArray[np.int64], Sequence[int]]]
"""A text's chunks as in training: input ids and attention mask (chunks, length), and for every token its [start, end)
characters (chunks, length, 2), an empty span for special tokens; and the number of the section of each chunk."""


@dataclass(frozen=True)
class ExplainSettings:
    """How documents are explained; conf/command/explain.yaml has the values.

    Attributes:
        target: what scores are towards: `predicted`, `higher`, or a class.
        methods: names of the methods, in the order of the page.
        steps: points at first on the path of integrated gradients; an odd number from 3.
        tolerance: error of completeness, relative to the change of F, above which stretches of the path are halved.
        max_steps: points at most on the path.
        max_sentences: sentences of a document at most; in a longer one neighbouring ones count as one.
        unit: what is removed by rank in deletion curves: `sentence` or `word`.
        fractions: shares of the words at which curves are measured, rising from 0 to 1.
        seed: of the random order that methods are compared with.
    """

    target: str
    methods: Sequence[str]
    steps: int
    tolerance: float
    max_steps: int
    max_sentences: int
    unit: str
    fractions: Sequence[float]
    seed: int


@dataclass(frozen=True)
class Explanation:
    """One document, explained.

    Attributes:
        document: what was explained.
        prediction: class of the highest probability.
        probabilities: class -> its probability.
        target: what the scores are towards.
        words: those that the model read.
        chunk_spans: (chunks, 2) [start, end) characters of each chunk.
        chunk_weights: (chunks,) float64 weights of the pooling, which sum to one.
        attributions: method -> its scores.
        completeness: how well integrated gradients add up; None where that is not among the methods.
        curves: by method and `random`, `deletion` and `insertion` at the fractions; empty where not measured.
        evidence: by method and `random`, the measures that faithfulness.EVIDENCE names; None where no evidence is known
            or read.
        evidence_read: whether the model read any of the evidence; None where none is known.
        eraser: by method and `random`, comprehensiveness and sufficiency at each of faithfulness.ERASER_SHARES; empty
            where curves are.
        sanity: whether the methods explain the model at all; None where that was not checked.
    """

    document: Document
    prediction: str
    probabilities: dict[str, float]
    target: str
    words: ReadWords
    chunk_spans: Spans
    chunk_weights: NDArray[np.float64]
    attributions: dict[str, Attribution]
    completeness: Completeness | None
    curves: dict[str, dict[str, list[float]]]
    evidence: dict[str, dict[str, float]] | None
    evidence_read: bool | None
    eraser: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    sanity: Sanity | None = None

    @property
    def confidence(self) -> float:
        """Probability of the predicted class."""
        return self.probabilities[self.prediction]

    @property
    def wrong(self) -> bool:
        """Whether there is a label, and the prediction another class."""
        return self.document.label not in (None, self.prediction)

    @property
    def error(self) -> float | None:
        """One minus the probability of the label; None where there is no label."""
        return None if self.document.label is None else 1.0 - self.probabilities[self.document.label]

    def sentence_scores(self, method: str) -> NDArray[np.float64]:
        """(sentences,) mean score of the words of each."""
        lengths = np.bincount(self.words.sentence)
        return np.bincount(self.words.sentence, self.attributions[method].words) / lengths


def explain_document(
    document: Document,
    *,
    chunk_text: ChunkText,
    encoder: CachedEncoder,
    label_names: Sequence[str],
    settings: ExplainSettings,
    measure_curves: bool,
    check_seed: int | None = None,
) -> Explanation:
    """Explain one document.

    Args:
        document: what to explain, of any length.
        chunk_text: the run's chunking.
        encoder: the run's model.
        label_names: the classes in order.
        settings: methods and their settings.
        measure_curves: whether to measure deletion and insertion, comprehensiveness and sufficiency too.
        check_seed: of the parameters that check_sanity draws; None checks nothing. A check costs as much as scoring
            the document seven times more.
    """
    encoder.forget()
    input_ids, attention_mask, token_spans, sections = chunk_text(document.text)
    words, word_of_token = read_words(document.text, token_spans, max_sentences=settings.max_sentences)
    chunks = Chunks(input_ids, attention_mask, word_of_token, len(words.spans), sections)
    logits, weights = encoder.read(chunks)
    probabilities = logits[0].softmax(dim=-1)
    best = int(probabilities.argmax())
    target = target_of(settings.target, best, label_names)
    attributions, completeness = attribute(chunks, encoder, target, weights, words, settings)
    control = random_scores(chunks, words.sentence, settings.seed)
    scored = {**attributions, RANDOM: control}
    curves: dict[str, dict[str, list[float]]] = {}
    eraser: dict[str, dict[str, list[float]]] = {}
    if measure_curves and chunks.num_words:
        for method, found in scored.items():
            order = ranked_words(found.words, words.sentence, unit=settings.unit, seed=settings.seed)
            both = deletion_and_insertion(chunks, encoder, target, order, settings.fractions)
            curves[method] = dict(zip(CURVES, (values.tolist() for values in both), strict=True))
            eraser[method] = eraser_falls(
                *deletion_and_insertion(chunks, encoder, target, order, [0.0, *ERASER_SHARES])
            )
    evidence = evidence_read = None
    if document.evidence:
        inside = inside_spans(words.spans, document.evidence)
        evidence_read = bool(inside.any())
        if evidence_read:
            evidence = measure_evidence(chunks, words, attributions, document.evidence, settings.seed)

    def explained_again() -> dict[str, Attribution]:
        encoder.forget()
        _, weights = encoder.read(chunks)
        return attribute(chunks, encoder, target, weights, words, settings)[0]

    sanity = None
    if check_seed is not None and chunks.num_words:
        sanity = check_sanity(encoder.net, explained_again, attributions, seed=check_seed)
        encoder.forget()
    return Explanation(
        document=document,
        prediction=label_names[best],
        probabilities=dict(zip(label_names, probabilities.tolist(), strict=True)),
        target=target.name,
        words=words,
        chunk_spans=chunk_spans(token_spans),
        chunk_weights=weights.double().numpy(),
        attributions=attributions,
        completeness=completeness,
        curves=curves,
        evidence=evidence,
        evidence_read=evidence_read,
        eraser=eraser,
        sanity=sanity,
    )


def target_of(target: str, predicted: int, label_names: Sequence[str]) -> Target:
    """What `target` means for a document whose predicted class is known."""
    if target == HIGHER:
        return higher_target(len(label_names))
    number = predicted if target == PREDICTED else list(label_names).index(target)
    return class_target(number, label_names[number], len(label_names))


def attribute(
    chunks: Chunks, encoder: CachedEncoder, target: Target, weights: Tensor, words: ReadWords, settings: ExplainSettings
) -> tuple[dict[str, Attribution], Completeness | None]:
    """Scores by each of the methods, and how well integrated gradients add up; None without that method.

    `weights` (chunks,) are those of the pooling.
    """
    found: dict[str, Attribution] = {}
    completeness = None
    for method in settings.methods:
        if method == "chunk_attention":
            found[method] = chunk_attention(chunks, weights)
        elif method == "occlusion":
            found[method] = occlusion(chunks, encoder, target, words.sentence)
        else:
            found[method], completeness, _ = integrated_gradients(
                chunks, encoder, target, steps=settings.steps, tolerance=settings.tolerance,
                max_steps=settings.max_steps,
            )  # fmt: skip
    return found, completeness


def measure_evidence(
    chunks: Chunks, words: ReadWords, attributions: dict[str, Attribution], spans: Sequence[Span], seed: int
) -> dict[str, dict[str, float]]:
    """How well each method, and chance, find evidence: spans of characters, of which the model read a word or more.

    `seed` is that of the random orders that chance is averaged over.
    """
    held = [np.unique(row[row >= 0]) for row in chunks.word]
    by_word = inside_spans(words.spans, spans)
    by_chunk = chunks_inside(held, [np.flatnonzero(inside_spans(words.spans, [span])) for span in spans])
    found = {
        method: evidence_scores(scores.words, scores.chunks, words.sentence, by_word, by_chunk)
        for method, scores in attributions.items()
    }
    return found | {RANDOM: expected_random_evidence(words.sentence, by_word, by_chunk, draws=RANDOM_DRAWS, seed=seed)}


def chunk_spans(token_spans: Spans) -> Spans:
    """(chunks, 2) characters from the first to behind the last token of text in each; (0, 0) where there is none."""
    spans = []
    for row in token_spans:
        real = row[row[:, 1] > row[:, 0]]
        spans.append((int(real[:, 0].min()), int(real[:, 1].max())) if len(real) else (0, 0))
    return np.array(spans, dtype=np.int64).reshape(-1, 2)


def top_units(scores: NDArray[np.float64], count: int, *, sign: int = 1) -> list[int]:
    """Up to `count` indices of scores (n,) of that sign, the strongest first, the earlier first where equal."""
    order = np.argsort(-sign * scores, kind="stable")[:count]
    return [int(index) for index in order if sign * scores[index] > 0]


def record(explanation: Explanation, fractions: Sequence[float]) -> dict[str, Any]:
    """The line of explanations.jsonl: plain values."""
    text, words = explanation.document.text, explanation.words
    top_words, top_sentences = {}, {}
    sentence_spans = words.sentence_spans
    for method, found in explanation.attributions.items():
        top_words[method] = [
            {"word": text[slice(*words.spans[index])], "span": words.spans[index].tolist(), "score": found.words[index]}
            for index in top_units(found.words, NUM_TOP_WORDS)
        ]
        scores = explanation.sentence_scores(method)
        top_sentences[method] = [
            {"span": sentence_spans[index].tolist(), "score_per_word": scores[index]}
            for index in top_units(scores, NUM_TOP_SENTENCES)
        ]
    completeness = explanation.completeness
    return {
        "id": explanation.document.id,
        "label": explanation.document.label,
        "prediction": explanation.prediction,
        "probabilities": explanation.probabilities,
        "target": explanation.target,
        "num_words": words.num_words,
        "num_words_read": len(words.spans),
        "chunks": [
            {
                "span": explanation.chunk_spans[row].tolist(),
                "weight": explanation.chunk_weights[row],
                "scores": {method: found.chunks[row] for method, found in explanation.attributions.items()},
            }
            for row in range(len(explanation.chunk_spans))
        ],
        "top_words": top_words,
        "top_sentences": top_sentences,
        "completeness": None if completeness is None else {**asdict(completeness), "error": completeness.error},
        "evidence_spans": explanation.document.evidence,
        "evidence": explanation.evidence,
        "faithfulness": {
            method: {
                **curves,
                **{f"{curve}_area": curve_area(fractions, np.array(curves[curve])) for curve in CURVES},
                **explanation.eraser.get(method, {}),
            }
            for method, curves in explanation.curves.items()
        },
        "sanity": None if explanation.sanity is None else asdict(explanation.sanity),
    }


def completeness_sentence(explanations: Sequence[Explanation]) -> str:
    """How well integrated gradients added up, in one line."""
    found = [(entry.completeness, entry.document.id) for entry in explanations if entry.completeness is not None]
    if not found:
        return "integrated gradients: not computed"
    worst, where = max(found, key=lambda pair: pair[0].error)
    changes = np.median([abs(completeness.value - completeness.baseline) for completeness, _ in found])
    errors = np.median([completeness.error for completeness, _ in found])
    points = [completeness.points for completeness, _ in found]
    spread = f"{min(points)}" if min(points) == max(points) else f"{min(points)} to {max(points)}"
    return (
        f"completeness error of integrated gradients ({spread} points): median {errors:.2g}, largest {worst.error:.2g} "
        f"({where}, where F changes by {worst.value - worst.baseline:+.2g}); F changes by {changes:.2g} in the median"
    )
