"""Long documents with ratings, as chunks that an encoder can take."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, Lt
from numpy.typing import NDArray
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase
from typing_extensions import Unpack

from datamodules.classification import StoredTexts, TextOptions
from datamodules.contract import Batch, Indices, Split
from datamodules.labelled.document_facts import EXTRA, DocumentFacts, Span, write_document_facts
from datamodules.labelled.synthetic_documents import synthetic_documents
from datamodules.labelled.texts import LabelledTexts
from datamodules.sampling.balanced_order import BalancedOrder
from datamodules.text.chunking import Choose, Chunker, Chunking, Sections, tokenize_documents
from datamodules.text.tokenized_texts import RaggedArray, open_ragged, padded, save_ragged


@dataclass(frozen=True)
class Document:
    """One document of a split.

    Attributes:
        id: its name in the data, or its split and number.
        text: all of it.
        label: its class number.
        evidence_spans: characters [start, end) that its label rests on; None where the data do not say.
    """

    id: str
    text: str
    label: int
    evidence_spans: list[Span] | None


class RatingDataModule(StoredTexts):
    """Batches of the chunks of documents, and the documents' classes.

    A batch holds `input_ids` and `attention_mask` (chunks, T) int64, the chunks of all its documents behind one another
    and in reading order, padded on the right to the longest of them; the numbers `chunk_counts` (n,) of each document's
    chunks and `chunk_lengths` (chunks,) of their tokens, which stay on the CPU; `labels` (n,) int64 class numbers. With
    sections it also holds `chunk_sections` (chunks,), the number of each chunk's section in its document, on the CPU.

    Args:
        ordered: whether the classes have an order, so that a mistake can be small or large.
        id_column: field that names a document; None for `id`, where there is one.
        group_column: field of the source of a document, those of one source stay in one split; None for `group`, where
            there is one.
        evidence_spans_column: field of the evidence, a list of [start, end) in characters; None for `evidence_spans`,
            where there is one.
        chunk_size: tokens of a chunk, special ones included.
        stride: tokens from the start of one chunk to that of the next, fewer than a chunk holds.
        max_chunks: most chunks of a document that are read.
        choose: which chunks of a longer document are read: the first, evenly spread ones, or the last.
        sections: whether a document is one text, or blank lines part it and no chunk spans two parts.
        test_share: of the training split, held out for a test where the source has none; 0 holds none out.
        sampling: `all` meets each document once in an epoch, `balanced` each class equally often (BalancedOrder).
        **options: see TextOptions and Loading; documents with like numbers of tokens share a micro-batch.
    """

    cache_name = "rating"
    preparation_version = 3
    length_key = "data.chunk_size"

    def __init__(
        self,
        *,
        ordered: bool,
        id_column: str | None,
        group_column: str | None,
        evidence_spans_column: str | None,
        chunk_size: Annotated[int, Ge(1)],
        stride: Annotated[int, Ge(1)],
        max_chunks: Annotated[int, Ge(1)],
        choose: Choose,
        test_share: Annotated[float, Ge(0), Lt(1)],
        sampling: Literal["all", "balanced"],
        sections: Sections = "whole",  # configurations of older runs have none
        **options: Unpack[TextOptions],
    ) -> None:
        columns = dict(zip(EXTRA, (id_column, group_column, evidence_spans_column), strict=True))
        super().__init__(synthetic=synthetic_documents, extra_columns=columns, test_share=test_share, **options)
        self.ordered = ordered
        self.chunking = Chunking(chunk_size, stride, max_chunks, choose, sections)
        self.sampling = sampling

    @staticmethod
    def check(settings: Mapping[str, Any]) -> None:
        """Whether chunks leave no text out, and ordered classes are given in order.

        Raises:
            ValueError: they do, or are not.
        """
        if settings["ordered"] and settings["label_names"] is None:
            raise ValueError(
                "data.ordered=true needs the order of the classes, data.label_names=[lowest,...,highest]; without an "
                "order set data.ordered=false"
            )
        if settings["stride"] >= settings["chunk_size"]:
            raise ValueError(
                f"data.stride={settings['stride']}: chunks of data.chunk_size={settings['chunk_size']} tokens, special "
                "ones included, would leave text between them out; choose a smaller stride"
            )

    def tokenize(
        self, folder: Path, splits: dict[str, LabelledTexts], texts: list[str], tokenizer: PreTrainedTokenizerBase
    ) -> Iterator[NDArray[np.int64]]:
        """Token ids of each whole text, without special ones: chunks are cut when batches are made."""
        write_document_facts(folder, splits)
        Chunker(tokenizer, self.chunking)  # wrong settings are found before the long part
        documents = zip(texts, tokenize_documents(texts, tokenizer), strict=True)
        starts: list[NDArray[np.int64]] = []
        for text, document in tqdm(documents, total=len(texts), desc="tokenizing", unit="document", disable=None):
            starts.append(document.section_starts(text))
            yield document.ids
        save_ragged(folder / "section_starts", starts, np.int64)

    def setup(self, stage: str | None = None) -> None:
        """Open the cache and cut the splits; see StoredTexts."""
        super().setup(stage)
        if self.sampling == "balanced":
            self.draw = BalancedOrder(self.labels("train"), seed=self.seed)

    def open_tokens(self, folder: Path) -> NDArray[np.int64]:
        """Tokens of all chunks of each document that are read, (rows,)."""
        self.chunker = Chunker(self.tokenizer, self.chunking)
        self.facts = DocumentFacts(folder)
        self.section_starts: RaggedArray = open_ragged(folder / "section_starts")
        ranges = [
            self.chunker.ranges(length, self.section_starts[row])
            for row, length in enumerate(self.tokens.lengths.tolist())
        ]
        self.chunk_counts = np.array([len(chunks) for chunks in ranges], dtype=np.int64)
        self.covered = np.array([_union(chunks) for chunks in ranges], dtype=np.int64)
        special = len(self.chunker.before) + len(self.chunker.after)
        return np.array([sum(b - a + special for a, b in chunks) for chunks in ranges], dtype=np.int64)

    def groups(self) -> NDArray[np.int64]:
        """Number of the group of each document; see StoredTexts."""
        return self.facts.groups

    def describe(self) -> dict[str, str]:
        """Lines for the banner of a run: sizes, class balance, chunks, and how much of the documents is not read."""
        rows = self.rows["train"]
        tokens, counts = self.tokens.lengths[rows], self.chunk_counts[rows]
        unread = 1 - self.covered[rows].sum() / max(int(tokens.sum()), 1)
        cut = float((self.covered[rows] < tokens).mean())
        chunking = self.chunking
        loses = (
            f"; {cut:.0%} are longer than {chunking.max_chunks} chunks, of which data.choose={chunking.choose} keeps "
            f"so many: {unread:.0%} of all tokens are never read"
            if cut
            else ""
        )
        number = int(np.median(self.section_starts.lengths[rows]))
        parts = f", in {number} sections" if chunking.sections != "whole" else ""
        if chunking.sections == "whole" and number > 1:
            loses += f"; blank lines part the median document into {number} sections (data.sections=blank_lines)"
        return {
            **self.store.describe(),
            "chunks": f"{int(np.median(counts))} of {chunking.chunk_size} tokens in the median training document of "
            f"{int(np.median(tokens)):,} tokens{parts}, {int(counts.sum()):,} in all{loses}",
        }

    @property
    def class_counts(self) -> list[int]:
        """Training documents of each class in an epoch, as `sampling` draws them."""
        if not isinstance(self.draw, BalancedOrder):
            return super().class_counts
        return [self.draw.counts.get(number, 0) for number in range(len(self.label_names))]

    def document(self, split: Split, index: int) -> Document:
        """One document of a split, with all that is known of it."""
        row = int(self.rows[split][index])
        return Document(
            id=self.facts.id(row),
            text=self.store.texts.text(row),
            label=int(self.store.labels[row]),
            evidence_spans=self.facts.evidence(row),
        )

    def ids(self, split: Split) -> list[str]:
        """Names of the documents of a split."""
        return [self.facts.id(row) for row in self.rows[split].tolist()]

    # ------------------------------------------------------------------ batches

    def _chunks(self, row: int) -> tuple[list[NDArray[np.int64]], list[int]]:
        """Token ids and section of each chunk of a document."""
        tokens, starts = self.tokens[row], self.section_starts[row]
        ranges = self.chunker.ranges(len(tokens), starts)
        chunks = [self.chunker.with_special_tokens(tokens[start:stop].astype(np.int64)) for start, stop in ranges]
        return chunks, self.chunker.sections(ranges, starts)

    def split_chunks(self, split: Split) -> Iterator[NDArray[np.int64]]:
        """Token ids of every chunk of a split, those of a document behind one another."""
        for row in self.rows[split].tolist():
            yield from self._chunks(row)[0]

    def rows_batch(self, rows: Indices) -> Batch:
        """Documents of some rows of the store."""
        return {
            **self._batch([self._chunks(row) for row in rows.tolist()], self.tokenizer),
            "labels": torch.from_numpy(self.store.labels[rows]),
        }

    def _batch(
        self, documents: list[tuple[list[NDArray[np.int64]], list[int]]], tokenizer: PreTrainedTokenizerBase
    ) -> Batch:
        batch = chunk_batch([chunks for chunks, _ in documents], tokenizer.pad_token_id)
        if self.chunking.sections != "whole":
            batch["chunk_sections"] = [number for _, sections in documents for number in sections]
        return batch

    @property
    def length_limit(self) -> str:
        """What a document may be at most."""
        return f"{self.chunking.max_chunks:,} chunks of {self.chunking.chunk_size:,} tokens"

    def num_cut(self, texts: list[str], batch: Batch, tokenizer: PreTrainedTokenizerBase) -> int:
        """How many documents of a batch are longer; only those with as many chunks as are kept can be."""
        most = self.chunking.max_chunks
        whole = [text for text, count in zip(texts, batch["chunk_counts"], strict=True) if count == most]
        chunker = Chunker(tokenizer, replace(self.chunking, max_chunks=most + 1))
        return sum(len(chunker.chunk(text).input_ids) > most for text in whole)

    def text_batch(self, texts: list[str], tokenizer: PreTrainedTokenizerBase) -> Batch:
        """What the network takes for documents that are in no split; needs no prepared data.

        A blank text is one chunk of special tokens.
        """
        chunker = Chunker(tokenizer, self.chunking)
        chunked = [chunker.chunk(text) for text in texts]
        return self._batch([(text.input_ids, text.sections) for text in chunked], tokenizer)

    @property
    def longest_sequence(self) -> int:
        """Tokens of the longest chunk of any split, special ones included."""
        longest = min(self.chunker.room, int(self.tokens.lengths.max()))
        return longest + len(self.chunker.before) + len(self.chunker.after)

    def memory_probe(self) -> tuple[Batch, Batch, int]:
        """Batches of one and of two of the largest chunks, and how many the largest training document has."""
        row = int(self.rows["train"][self.longest_train_samples(1)[0]])
        largest = max(self._chunks(row)[0], key=len)
        label = torch.from_numpy(self.store.labels[row : row + 1])
        pad = self.tokenizer.pad_token_id
        one, two = ({**chunk_batch([[largest] * count], pad), "labels": label} for count in (1, 2))
        return one, two, int(self.chunk_counts[row])

    def packed_and_single(self, count: int) -> tuple[Batch, list[Batch]]:
        """The first documents of validation in one flat batch, and each alone."""
        rows = self.rows["validation"][:count]
        return self.rows_batch(rows), [self.rows_batch(rows[number : number + 1]) for number in range(len(rows))]


def chunk_batch(documents: list[list[NDArray[np.int64]]], pad_token_id: int) -> Batch:
    """`input_ids`, `attention_mask`, `chunk_counts` and `chunk_lengths` of documents given as lists of chunks."""
    flat = [chunk for chunks in documents for chunk in chunks]
    return {
        **padded(flat, pad_token_id),
        "chunk_counts": [len(chunks) for chunks in documents],
        "chunk_lengths": [len(chunk) for chunk in flat],
    }


def _union(ranges: list[tuple[int, int]]) -> int:
    """Tokens that are in at least one of some ranges, which are in order."""
    covered, end = 0, 0
    for start, stop in ranges:
        covered += stop - max(start, end)
        end = stop
    return covered
