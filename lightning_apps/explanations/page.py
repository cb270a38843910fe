"""The documents of the page of explanations: highlighted words, a map of each, and the same in plain sentences.

The text of a document stands on the page once, however many methods there are: neighbouring words whose levels are the
same by every method share one element, whose class names hold all levels, and CSS shows those of the chosen method.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from lightning_apps.explanations.explanation import Explanation, top_units
from lightning_apps.explanations.faithfulness import METHOD_NAMES
from lightning_apps.explanations.text_units import inside_spans
from lightning_apps.reports.page import Table, render

LETTERS = "abcdefgh"
"""Class names of methods are one letter, their levels `p1` to `p3` for and `n1` to `n3` against: pages stay small."""
LEVELS = (0.3, 0.55, 0.8)
"""Shares of a document's strongest score (of the 99.5th percentile, so that one word hides no others) from which a
word has level 1, 2, 3."""
MAP_CELLS = 100
READ_SENTENCES = 3
WORTH_READING = 0.1
"""Of a document's strongest sentence: weaker ones are in no reading."""
SHOWN_CHARACTERS = 240
"""Of a sentence in a reading."""
LONG_WORD = re.compile(r"(\S{200})\S+")
Reading = tuple[str, list[tuple[str, list[tuple[str, str, str]]]]]
"""Letter of the method, and headings over what stands before a quotation, the quotation, and what stands behind."""


def shorter(text: str) -> str:
    """The text, no word of it longer than 200 characters."""
    return LONG_WORD.sub("\\1…", text)


def documents(explanations: Sequence[Explanation], *, words: int, megabytes: float) -> dict[str, Any]:
    """What documents.html is filled with.

    Args:
        explanations: in the order of the page.
        words: most words of one document that are shown; the others stay out, and the page says so.
        megabytes: most highlighted text on the page; documents behind that keep map, reading and chunks.
    """
    methods = list(explanations[0].attributions) if explanations else []
    left = int(megabytes * 1e6)
    entries = []
    for entry in explanations:
        text = highlighted_text(entry, words)
        size = len(text.encode())
        fits = size <= left
        left -= size if fits else 0
        number, read = entry.words.num_words, len(entry.words.spans)
        share = "all of them" if read == number else f"{read:,} of them ({read / number:.0%})"
        bars, strip = document_map(entry)
        entries.append(
            {
                "entry": entry,
                "name": shorter(entry.document.id),
                "num_words": f"{number:,} words, {share} read{'' if read == number else ' by the model'}",
                "bars": bars,
                "strip": strip,
                "readings": [reading(letter, entry, method) for letter, method in zip(LETTERS, methods, strict=False)],
                "chunks": chunk_table(entry),
                "text": text if fits else None,
            }
        )
    return {
        "documents": entries,
        "methods": [(letter, name, METHOD_NAMES[name]) for letter, name in zip(LETTERS, methods, strict=False)],
        "labels": list(dict.fromkeys(name for entry in explanations for name in entry.probabilities)),
        "labelled": any(entry.document.label is not None for entry in explanations),
        "megabytes": f"{megabytes:g}",
    }


def levels(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """(n,) from -3 to 3: sign and strength of scores (n,), relative to the strongest."""
    size = np.abs(scores)
    scale = float(np.quantile(size, 0.995, method="higher")) if len(size) else 0.0
    if scale == 0.0:
        return np.zeros(len(scores), dtype=np.int64)
    return np.sign(scores).astype(np.int64) * np.digitize(size / scale, LEVELS)


def display_scores(entry: Explanation, method: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scores of words and chunks as they are shown: attention above or below an even share.

    Attention is never negative and sums to one; what it says is where it departs from even. Where no chunk departs by a
    tenth of an even share, nothing is shown: the strongest of next to nothing would look like something.
    """
    found = entry.attributions[method]
    if method != "chunk_attention":
        return found.words, found.chunks
    even = 1 / max(len(found.chunks), 1)
    if np.abs(found.chunks - even).max(initial=0.0) < 0.1 * even:
        return np.zeros_like(found.words), np.zeros_like(found.chunks)
    return found.words - even, found.chunks - even


def class_names(level_rows: Sequence[int]) -> str:
    """Class names of one element: a letter, sign and level for every method that has a level here."""
    return " ".join(
        f"{letter}{'p' if level > 0 else 'n'}{abs(level)}"
        for letter, level in zip(LETTERS, level_rows, strict=False)
        if level
    )


def document_map(entry: Explanation) -> tuple[list[str], list[bool]]:
    """Up to MAP_CELLS cells of as many words each: the class names of their scores, and which are known evidence."""
    number = len(entry.words.spans)
    if not number:
        return [], []
    cells = min(MAP_CELLS, number)
    cell = np.arange(number) * cells // number
    sizes = np.bincount(cell)
    rows = np.stack(
        [levels(np.bincount(cell, display_scores(entry, method)[0]) / sizes) for method in entry.attributions], axis=1
    )
    bars = [class_names(row) for row in rows.tolist()]
    if not entry.document.evidence:
        return bars, []
    inside = np.bincount(cell, inside_spans(entry.words.spans, entry.document.evidence)) / sizes
    return bars, (inside >= 0.5).tolist()


def reading(letter: str, entry: Explanation, method: str) -> Reading:
    """The explanation by one method in sentences."""
    verdict = f"{entry.prediction} ({entry.confidence:.2f})"
    text, name = entry.document.text, METHOD_NAMES[method]
    if method == "chunk_attention":
        scores = entry.attributions[method].chunks
        even = f"{1 / len(scores):.0%}" if len(scores) else "0%"
        chunks = [
            (
                f"chunk {index + 1} of {len(scores)}, characters {start:,} to {end:,}: {scores[index]:.0%} of the "
                "attention, ",
                excerpt(text[start:end]),
                "",
            )
            for index in top_units(scores, READ_SENTENCES)
            for start, end in [entry.chunk_spans[index].tolist()]
        ]
        heading = f"Looking for its verdict {verdict} the model weighs most (an even share is {even})"
        return letter, [(heading, chunks)]
    scores = entry.sentence_scores(method)
    heard = np.where(np.abs(scores) >= WORTH_READING * np.abs(scores).max(initial=0.0), scores, 0.0)
    rests = "rests on" if entry.target == entry.prediction else f"; for {entry.target} speaks"
    parts = []
    for sign, words in ((1, f"The verdict {verdict}{'' if rests[0] == ';' else ' '}{rests}"), (-1, "Against it")):
        spans = [(index, entry.words.sentence_spans[index]) for index in top_units(heard, READ_SENTENCES, sign=sign)]
        items = [("", excerpt(text[slice(*span)]), f"({scores[index]:+.2g} a word)") for index, span in spans]
        if items:
            parts.append((f"{words}, by {name}", items))
    return letter, parts or [(f"By {name} no sentence speaks for or against the verdict", [])]


def excerpt(text: str) -> str:
    """The beginning of a sentence in one line."""
    words = " ".join(text[: 2 * SHOWN_CHARACTERS].split())
    return shorter(words if len(words) <= SHOWN_CHARACTERS else words[: SHOWN_CHARACTERS - 1].rstrip() + "…")


def chunk_table(entry: Explanation) -> Table:
    """Weight and scores of every chunk."""
    methods = [method for method in entry.attributions if method != "chunk_attention"]
    rows = [
        [
            str(row + 1),
            f"{start:,}–{end:,}",
            f"{entry.chunk_weights[row]:.3f}",
            *(f"{entry.attributions[method].chunks[row]:+.3g}" for method in methods),
        ]
        for row, (start, end) in enumerate(entry.chunk_spans.tolist())
    ]
    names = [METHOD_NAMES[method] for method in methods]
    return Table(f"Chunks of {shorter(entry.document.id)}", ["chunk", "characters", "attention", *names], rows)


def highlighted_text(entry: Explanation, max_words: int) -> Markup:
    """The words that the model read, with their levels by all methods; what it did not read is a gap."""
    words = entry.words
    number = min(len(words.spans), max_words)
    if not number:
        return render("words.html", pieces=[])
    text, spans = entry.document.text, words.spans[:number]
    rows = np.stack([levels(display_scores(entry, method)[0])[:number] for method in entry.attributions], axis=1)
    inside = inside_spans(spans, entry.document.evidence or [])
    chunk_at: dict[int, list[int]] = {}
    for chunk, (start, _) in enumerate(entry.chunk_spans.tolist()):
        # the word in which a chunk begins; chunks may begin within a word
        chunk_at.setdefault(int(np.searchsorted(spans[:, 1], start, side="right")), []).append(chunk + 1)
    between = [text[end:start] for end, start in zip(spans[:-1, 1], spans[1:, 0], strict=True)]
    gap = np.array([False, *(bool(piece.strip()) for piece in between)])
    turns = np.diff(inside.astype(np.int64), prepend=0)
    changes = np.append(True, (rows[1:] != rows[:-1]).any(axis=1)) | gap | (turns != 0)
    changes[[word for word in chunk_at if word < number]] = True
    starts = np.flatnonzero(changes)
    pieces: list[tuple[str, str]] = []  # class names (or what words.html knows), text
    for first, behind in zip(starts.tolist(), [*starts[1:].tolist(), number], strict=True):
        if turns[first] < 0:
            pieces.append(("evidence", "]"))
        if gap[first]:
            pieces.append(("gap", f"… {len(between[first - 1].split()):,} words not read …"))
        elif first:
            pieces.append(("", between[first - 1][:40]))
        pieces += [("chunk", str(chunk)) for chunk in chunk_at.get(first, [])]
        if turns[first] > 0:
            pieces.append(("evidence", "["))
        run = shorter(text[spans[first, 0] : spans[behind - 1, 1]])
        pieces.append((class_names(rows[first].tolist()), run))
    if inside[-1]:
        pieces.append(("evidence", "]"))
    if number < len(words.spans):
        pieces.append(("gap", f"… {len(words.spans) - number:,} more words that were read are not shown."))
    unread = words.num_words - len(words.spans)
    name = shorter(entry.document.id)
    return render("words.html", pieces=pieces, unread=f"{unread:,}" if unread else "", name=name)
