"""What is known of documents beside text and label: their names, their groups, and where their evidence stands."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.labelled.grouped_split import group_numbers
from datamodules.labelled.texts import LabelledTexts
from datamodules.text.tokenized_texts import RaggedArray, open_ragged, save_ragged, text_bytes

Span = tuple[int, int]
EXTRA = ("id", "group", "evidence_spans")
"""Fields that are read where they are there."""


def evidence_spans(value: Any, text: str, where: str) -> list[Span] | None:
    """Spans [start, end) of characters; a field of text (csv) holds them as JSON.

    Raises:
        ValueError: it is something else, or a span lies outside the text.
    """
    try:
        value = json.loads(value) if isinstance(value, str) and value.strip() else value
    except ValueError as error:
        raise ValueError(f"{where}: evidence spans are no JSON ({error})") from error
    except RecursionError as error:
        raise ValueError(f"{where}: evidence spans nest too deep to be read; mend or take the field out") from error
    if value is None or value == "":
        return None
    spans = []
    for span in value if isinstance(value, list) else [value]:
        whole = isinstance(span, list) and len(span) == 2 and all(type(end) is int for end in span)
        if not whole or not 0 <= span[0] < span[1] <= len(text):
            raise ValueError(
                f"{where}: the evidence span {str(span)[:40]} is not [start, end) within the {len(text):,} characters "
                "of the text; mend it, or take the field out"
            )
        spans.append((span[0], span[1]))
    return spans


def write_document_facts(folder: Path, splits: Mapping[str, LabelledTexts]) -> None:
    """Write ids, groups and evidence of all splits, behind one another.

    Raises:
        ValueError: evidence is wrong, naming its place.
    """
    ids: list[str] = []
    groups: list[str | None] = []
    spans: list[NDArray[np.int64]] = []
    known: list[bool] = []
    for name, split in splits.items():
        columns = [split.extra.get(field, [None] * len(split.texts)) for field in EXTRA]
        for row, (identity, group, evidence) in enumerate(zip(*columns, strict=True)):
            ids.append(f"{name}-{row}" if identity is None else str(identity))
            groups.append(None if group is None or group == "" else str(group))
            found = evidence_spans(evidence, split.texts[row], split.place(row))
            known.append(found is not None)
            spans.append(np.array(found or [], dtype=np.int64).reshape(-1))
    save_ragged(folder / "ids", text_bytes(ids), np.uint8)
    np.save(folder / "groups.npy", group_numbers(groups))
    save_ragged(folder / "evidence", spans, np.int64)
    np.save(folder / "evidence_known.npy", np.array(known, dtype=np.bool_))


class DocumentFacts:
    """What write_document_facts wrote, by row.

    Args:
        folder: that write_document_facts filled.

    Attributes:
        groups: (n,) int64 numbers of groups; a document without one is a group of its own.
    """

    def __init__(self, folder: Path) -> None:
        self._ids: RaggedArray = open_ragged(folder / "ids")
        self._evidence: RaggedArray = open_ragged(folder / "evidence")
        self._evidence_known: NDArray[np.bool_] = np.load(folder / "evidence_known.npy")
        self.groups: NDArray[np.int64] = np.load(folder / "groups.npy")

    def id(self, row: int) -> str:
        """Name of a document: that of the data, or its split and number."""
        return self._ids.text(row)

    def evidence(self, row: int) -> list[Span] | None:
        """Spans of characters [start, end); None where nothing is said of this document."""
        if not self._evidence_known[row]:
            return None
        return [(int(start), int(end)) for start, end in self._evidence[row].reshape(-1, 2)]
