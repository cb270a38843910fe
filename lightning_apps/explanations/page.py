"""The page of explanations: documents with highlighted words, a map of each, and the same in plain sentences.

The text of a document stands on the page once, however many methods there are: neighbouring words whose levels are the
same by every method share one element, whose class names hold all levels, and CSS shows those of the chosen method.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from lightning_apps.explanations.explanation import Explanation, top_units
from lightning_apps.explanations.style import LETTERS
from lightning_apps.explanations.text_units import inside_spans
from lightning_apps.reports.html_page import table

METHOD_NAMES = {
    "chunk_attention": "chunk attention",
    "integrated_gradients": "integrated gradients",
    "occlusion": "occlusion",
}
LEVELS = (0.3, 0.55, 0.8)
"""Shares of a document's strongest score (of the 99.5th percentile, so that one word hides no others) from which a
word has level 1, 2, 3."""
MAP_CELLS = 100
READ_SENTENCES = 3
WORTH_READING = 0.1
"""Of a document's strongest sentence: weaker ones are in no reading."""
SHOWN_CHARACTERS = 240
"""Of a sentence in a reading."""
UNSHOWABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff\u202a-\u202e\u2066-\u2069]")
LONG_WORD = re.compile(r"(\S{200})\S+")


@dataclass(frozen=True)
class PageLimits:
    """What keeps the page usable.

    Attributes:
        words: most words of one document that are shown; the others stay out, and the page says so.
        megabytes: most highlighted text on the page; documents behind that keep map, reading and chunks.
    """

    words: int
    megabytes: float


def shown(text: str) -> str:
    """Text for the page: escaped; what HTML cannot hold, or would turn other text around, becomes U+FFFD."""
    return escape(UNSHOWABLE.sub("\ufffd", LONG_WORD.sub("\\1…", text)))


def document_section(explanations: Sequence[Explanation], limits: PageLimits) -> str:
    """Choice of the method, legend, controls, and an article for each document."""
    methods = list(explanations[0].attributions) if explanations else []
    labels = list(dict.fromkeys(name for entry in explanations for name in entry.probabilities))
    labelled = any(entry.document.label is not None for entry in explanations)
    parts = [method_choice(methods), legend(), controls(labels, labelled=labelled), '<div id="documents">']
    left = int(limits.megabytes * 1e6)
    for place, entry in enumerate(explanations):
        text = highlighted_text(entry, limits.words)
        if (size := len(text.encode())) > left:
            text = (
                f'<p class="muted">The text is not shown: the page holds {limits.megabytes:g} MB of highlighted text '
                "and those are used up; explain this document on its own with ids=[...].</p>"
            )
        else:
            left -= size
        parts.append(article(place, entry, text))
    return "\n".join([*parts, "</div>"])


def method_choice(methods: Sequence[str]) -> str:
    """Radio buttons; which one is on decides, by CSS, whose highlights show."""
    buttons = "".join(
        f'<label><input type="radio" class="pick" name="method" id="m{letter}" value="{escape(method)}"'
        f"{' checked' if letter == LETTERS[0] else ''}> {escape(METHOD_NAMES.get(method, method))}</label> "
        for letter, method in zip(LETTERS, methods, strict=False)
    )
    return f'<div class="choice"><fieldset><legend>Show scores by</legend>{buttons}</fieldset></div>'


def legend() -> str:
    """What the marks mean."""
    strengths = ((1, "weak"), (2, "clear"), (3, "strong"))
    samples = [
        "".join(f'<span class="l{sign}{level}">{word}</span>' for level, word in strengths)
        for sign in "pn"
    ]  # fmt: skip
    return (
        f'<p class="key"><strong>Speaks for</strong> the target: {samples[0]} (blue, straight line); '
        f"<strong>against</strong>: {samples[1]} (orange, wavy line). In the map, bars up speak for and bars down "
        'against, from the first word read to the last. <b class="e">[</b> <b class="e">]</b> enclose known evidence, '
        "a dark strip under the map. A number in a box: here a chunk begins.</p>"
    )


def controls(labels: Sequence[str], *, labelled: bool) -> str:
    """Sorting and filters; hidden until the script is there to serve them."""
    orders = [("order", "as in the data"), *([("error", "most wrong first")] if labelled else []),
              ("confident", "most confident first"), ("unsure", "least confident first")]  # fmt: skip
    sort = "".join(f'<option value="{value}">{name}</option>' for value, name in orders)
    label = "".join(f'<option value="{shown(name)}">{shown(name)}</option>' for name in labels)
    kind = "label" if labelled else "verdict"
    hidden = "" if labelled else " hidden"
    return (
        f'<div id="controls" hidden><label>Sort <select id="sort">{sort}</select></label> '
        f'<label>{kind.capitalize()} <select id="label"><option value="">any</option>{label}</select></label> '
        f'<label{hidden}><input type="checkbox" id="wrong"> wrong verdicts only</label> '
        '<output id="count" aria-live="polite"></output></div>'
    )


def article(place: int, entry: Explanation, text: str) -> str:
    """One document: verdict, map, readings, chunks, text."""
    document = entry.document
    wrong = document.label is not None and document.label != entry.prediction
    data = {
        "place": str(place),
        "label": document.label if document.label is not None else entry.prediction,
        "wrong": str(int(wrong)),
        "confidence": f"{entry.confidence:.6f}",
        "error": f"{entry.error if entry.error is not None else -1:.6f}",
    }
    attributes = " ".join(f'data-{key}="{shown(value)}"' for key, value in data.items())
    share = len(entry.words.spans) / entry.words.num_words if entry.words.num_words else 1.0
    read = "all of them read" if share == 1 else f"{len(entry.words.spans):,} of them ({share:.0%}) read by the model"
    others = " · ".join(f"{shown(name)} {value:.2f}" for name, value in entry.probabilities.items())
    label = "" if document.label is None else f", labelled <strong>{shown(document.label)}</strong>"
    return "\n".join(
        [
            f'<article id="d{place}" {attributes}>',
            f"<h3>{shown(document.id)}</h3>",
            f'<p class="verdict">Verdict <strong>{shown(entry.prediction)}</strong> ({entry.confidence:.2f}){label}'
            f"{' <span class=wrong>wrong</span>' if wrong else ''}</p>",
            f'<p class="muted">{others} · {entry.words.num_words:,} words, {read}</p>',
            document_map(entry),
            *(reading(letter, entry, method) for letter, method in zip(LETTERS, entry.attributions, strict=False)),
            f"<details><summary>Chunks ({len(entry.chunk_spans)})</summary>{chunk_table(entry)}</details>",
            f"<details><summary>Text</summary>{text}</details>",
            "</article>",
        ]
    )


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


def document_map(entry: Explanation) -> str:
    """Scores along the document in up to MAP_CELLS cells of as many words each, and where known evidence is."""
    number = len(entry.words.spans)
    if not number:
        return ""
    cells = min(MAP_CELLS, number)
    cell = np.arange(number) * cells // number
    sizes = np.bincount(cell)
    rows = np.stack(
        [levels(np.bincount(cell, display_scores(entry, method)[0]) / sizes) for method in entry.attributions], axis=1
    )
    bars = "".join(f'<i class="{names}"></i>' if (names := class_names(row)) else "<i></i>" for row in rows.tolist())
    parts = [f'<div class="map" aria-hidden="true">{bars}</div>']
    if entry.document.evidence:
        inside = np.bincount(cell, inside_spans(entry.words.spans, entry.document.evidence)) / sizes
        strip = "".join('<i class="e"></i>' if share >= 0.5 else "<i></i>" for share in inside)
        parts.append(f'<div class="map evidence" aria-hidden="true">{strip}</div>')
    return "".join(parts)


def reading(letter: str, entry: Explanation, method: str) -> str:
    """The explanation by one method in sentences."""
    if method == "chunk_attention":
        return _reading_of_chunks(letter, entry, method)
    scores = entry.sentence_scores(method)
    heard = np.where(np.abs(scores) >= WORTH_READING * np.abs(scores).max(initial=0.0), scores, 0.0)
    parts = [f'<div class="reading only-{letter}">']
    name = METHOD_NAMES.get(method, method)
    for sign, words in ((1, _rests_on(entry)), (-1, "Against it")):
        items = [
            f"<li>“{_excerpt(entry, index)}” <span class=muted>({scores[index]:+.2g} a word)</span></li>"
            for index in top_units(heard, READ_SENTENCES, sign=sign)
        ]
        if items:
            parts.append(f"<h4>{words}, by {escape(name)}:</h4><ul>{''.join(items)}</ul>")
    if len(parts) == 1:
        parts.append(f"<p>By {escape(name)} no sentence speaks for or against the verdict.</p>")
    return "".join([*parts, "</div>"])


def _rests_on(entry: Explanation) -> str:
    verdict = f"The verdict {shown(entry.prediction)} ({entry.confidence:.2f})"
    return f"{verdict} rests on" if entry.target == entry.prediction else f"{verdict}; for {shown(entry.target)} speaks"


def _reading_of_chunks(letter: str, entry: Explanation, method: str) -> str:
    scores = entry.attributions[method].chunks
    items = [
        f"<li>chunk {index + 1} of {len(scores)}, characters {entry.chunk_spans[index][0]:,} to "
        f"{entry.chunk_spans[index][1]:,}: {scores[index]:.0%} of the attention, “"
        f"{_cut(entry.document.text[slice(*entry.chunk_spans[index])])}”</li>"
        for index in top_units(scores, READ_SENTENCES)
    ]
    even = f"{1 / len(scores):.0%}" if len(scores) else "0%"
    return (
        f'<div class="reading only-{letter}"><h4>Looking for its verdict {shown(entry.prediction)} '
        f"({entry.confidence:.2f}) the model weighs most (an even share is {even}):</h4><ul>{''.join(items)}</ul></div>"
    )


def _excerpt(entry: Explanation, sentence: int) -> str:
    start, end = entry.words.sentence_spans[sentence]
    return _cut(entry.document.text[start:end])


def _cut(text: str) -> str:
    words = " ".join(text[: 2 * SHOWN_CHARACTERS].split())
    return shown(words if len(words) <= SHOWN_CHARACTERS else words[: SHOWN_CHARACTERS - 1].rstrip() + "…")


def chunk_table(entry: Explanation) -> str:
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
    names = [METHOD_NAMES.get(method, method) for method in methods]
    return table(
        f"Chunks of {UNSHOWABLE.sub('', entry.document.id)}", ["chunk", "characters", "attention", *names], rows
    )


def highlighted_text(entry: Explanation, max_words: int) -> str:
    """The words that the model read, with their levels by all methods; what it did not read is a gap."""
    words = entry.words
    number = min(len(words.spans), max_words)
    if not number:
        return '<p class="muted">There are no words.</p>'
    text, spans = entry.document.text, words.spans[:number]
    rows = np.stack([levels(display_scores(entry, method)[0])[:number] for method in entry.attributions], axis=1)
    evidence = entry.document.evidence or []
    inside = inside_spans(spans, evidence)
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
    parts = []
    for first, behind in zip(starts.tolist(), [*starts[1:].tolist(), number], strict=True):
        if first:
            parts.append(_between(between[first - 1], gap=bool(gap[first]), evidence_ends=turns[first] < 0))
        parts += [f"<sup>{chunk}</sup>" for chunk in chunk_at.get(first, [])]
        if turns[first] > 0:
            parts.append('<b class="e">[</b>')
        run = shown(text[spans[first, 0] : spans[behind - 1, 1]])
        names = class_names(rows[first].tolist())
        parts.append(f'<span class="{names}">{run}</span>' if names else run)
    if inside[-1]:
        parts.append('<b class="e">]</b>')
    if number < len(words.spans):
        parts.append(
            f'<span class="gap">… {len(words.spans) - number:,} more words that were read are not shown.</span>'
        )
    unread = words.num_words - len(words.spans)
    note = f'<p class="muted">{unread:,} words that the model did not read are left out.</p>' if unread else ""
    name = f"Text of {entry.document.id}"
    return f'{note}<div class="words" role="region" tabindex="0" aria-label="{shown(name)}">{"".join(parts)}</div>'


def _between(white: str, *, gap: bool, evidence_ends: bool) -> str:
    """What stands between two words: white space as it is, or a note where text was not read."""
    close = '<b class="e">]</b>' if evidence_ends else ""
    if gap:
        return f'{close}<span class="gap">… {len(white.split()):,} words not read …</span>'
    return close + shown(white if len(white) <= 40 else white[:40])
