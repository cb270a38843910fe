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
from datamodules.text.tokenized_texts import open_ragged, save_ragged, tokenizer_threads

CHUNK = 1000
"""Chats tokenized together: enough to keep the cores busy, few enough to name the bad one soon."""


def write_chats(folder: Path, name: str, tokenizer: PreTrainedTokenizerBase, chats: Sequence[Chat]) -> int:
    """Tokenize chats and write their tokens, answers and messages; returns their number.

    Args:
        folder: where the files go.
        name: what the files are called, a split for one.
        tokenizer: whose chat template and tokens are used.
        chats: in the order of the rows.

    Raises:
        ValueError: a chat cannot be used, with its file and line.
    """
    encoded = list(encode_all(tokenizer, chats))
    save_ragged(folder / f"{name}.tokens", [np.array(chat.ids) for chat in encoded], np.int32)
    save_ragged(folder / f"{name}.answers", [np.array(chat.answers).reshape(-1) for chat in encoded], np.int64)
    write_jsonl(folder / f"{name}.jsonl", map(vars, chats))
    return len(encoded)


class ChatStore:
    """Chats that write_chats wrote.

    Args:
        folder: where the files are.
        name: what they are called.

    Attributes:
        tokens: int32 ids of each chat, memory-mapped.
        spans: start and stop, one behind the other, of each chat's answers.
        lengths: (n,) int64 tokens of each chat.
        first_answers: (n,) int64 tokens of each chat before its first answer.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.tokens = open_ragged(folder / f"{name}.tokens")
        self.spans = open_ragged(folder / f"{name}.answers")
        self.lengths = self.tokens.lengths
        self.first_answers: NDArray[np.int64] = self.spans.values[self.spans.ends - self.spans.lengths]
        with (folder / f"{name}.jsonl").open("rb") as file:
            self._lines = list(file)  # parsed when they are asked for

    def __len__(self) -> int:
        return len(self._lines)

    def ids(self, row: int) -> NDArray[np.int64]:
        """Tokens of a chat, (length,)."""
        return self.tokens[row].astype(np.int64)

    def answers(self, row: int) -> list[tuple[int, int]]:
        """[start, stop) of its answers."""
        return [(int(start), int(stop)) for start, stop in self.spans[row].reshape(-1, 2)]

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
