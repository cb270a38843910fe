"""Tokenized chats on disk: flat arrays that are mapped, and the messages beside them."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from datamodules.chat.files import Chat
from datamodules.chat.rendering import ChatError, EncodedChat, encode_chats, render_chat
from datamodules.text.jsonl import write_jsonl
from datamodules.text.tokenized_texts import tokenizer_threads

CHUNK = 1000
"""Chats tokenized together: enough to keep the cores busy, few enough to name the bad one soon."""


def write_chats(folder: Path, name: str, tokenizer: PreTrainedTokenizerBase, chats: Sequence[Chat]) -> int:
    """Tokenize chats and write `<name>.tokens.npy`, `.ends.npy`, `.answers.npy` and `.jsonl`; returns their number.

    Args:
        folder: where the files go.
        name: what the files are called, a split for one.
        tokenizer: whose chat template and tokens are used.
        chats: in the order of the rows.

    Raises:
        ValueError: a chat cannot be used, with its file and line.
    """
    encoded = list(encode_all(tokenizer, chats))
    np.save(folder / f"{name}.tokens.npy", np.concatenate([np.array(chat.ids, np.int32) for chat in encoded]))
    np.save(folder / f"{name}.ends.npy", np.cumsum([len(chat.ids) for chat in encoded], dtype=np.int64))
    answers = [[row, *span] for row, chat in enumerate(encoded) for span in chat.answers]
    np.save(folder / f"{name}.answers.npy", np.array(answers, dtype=np.int64))
    write_jsonl(folder / f"{name}.jsonl", map(vars, chats))
    return len(encoded)


class ChatStore:
    """Chats that write_chats wrote.

    Args:
        folder: where the files are.
        name: what they are called.

    Attributes:
        tokens: (total,) int32 ids of all chats, end to end, memory-mapped.
        starts: (n,) int64 place in `tokens` where each chat begins.
        ends: (n,) int64 place in `tokens` behind each chat.
        lengths: (n,) int64 tokens of each chat.
        first_answers: (n,) int64 tokens of each chat before its first answer.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.tokens: NDArray[np.int32] = np.load(folder / f"{name}.tokens.npy", mmap_mode="r")
        self.ends: NDArray[np.int64] = np.load(folder / f"{name}.ends.npy")
        self.starts = np.concatenate([np.zeros(1, np.int64), self.ends[:-1]])
        self.lengths = self.ends - self.starts
        spans = np.load(folder / f"{name}.answers.npy")  # (answers, 3): row, start, stop
        self._spans = spans[:, 1:]
        self._span_starts = np.searchsorted(spans[:, 0], np.arange(len(self.ends) + 1))
        self.first_answers: NDArray[np.int64] = self._spans[self._span_starts[:-1], 0]
        with (folder / f"{name}.jsonl").open("rb") as file:
            self._lines = list(file)  # parsed when they are asked for

    def __len__(self) -> int:
        return len(self.ends)

    def ids(self, row: int) -> NDArray[np.int64]:
        """Tokens of a chat, (length,)."""
        return self.tokens[self.starts[row] : self.ends[row]].astype(np.int64)

    def answers(self, row: int) -> list[tuple[int, int]]:
        """[start, stop) of its answers."""
        first, last = self._span_starts[row : row + 2]
        return [(int(start), int(stop)) for start, stop in self._spans[first:last]]

    def chat(self, row: int) -> Chat:
        """Its messages and gold answer."""
        return Chat(**json.loads(self._lines[row]))


def encode_all(tokenizer: PreTrainedTokenizerBase, chats: Sequence[Chat]) -> Iterator[EncodedChat]:
    """Tokens of chats, in parallel over the cores.

    Raises:
        ValueError: a chat cannot be used, with its file and line.
    """
    with tokenizer_threads():
        for start in range(0, len(chats), CHUNK):
            chunk = chats[start : start + CHUNK]
            rendered = []
            for chat in chunk:
                try:
                    rendered.append(render_chat(tokenizer, chat.messages))
                except ChatError as error:
                    raise ValueError(f"{chat.origin}: {error}") from error
            encoded = encode_chats(tokenizer, rendered)
            for chat in chunk:
                try:
                    yield next(encoded)
                except ChatError as error:
                    raise ValueError(f"{chat.origin}: {error}") from error
