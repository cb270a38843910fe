"""Chats from files and from Hugging Face: every row becomes messages, or a clear error with its file and line."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.chat.rendering import Message
from datamodules.text.hub_access import load_hub_dataset
from datamodules.text.jsonl import line_place, read_jsonl, whole_characters
from datamodules.text.split_names import SPLIT_FILES, refuse_unread

ROLES = ("system", "user", "assistant")
ANNOTATION = re.compile(r"<<[^<>]*>>")
"""GSM8K's calculator annotations: `48/2 = <<48/2=24>>24`."""
FINAL_ANSWER = re.compile(r"####\s*(\S.*?)\s*$")


@dataclass(frozen=True)
class Chat:
    """One row of a data set.

    Attributes:
        messages: the last one is the assistant's.
        gold: final answer to grade against, the text behind `####`; None where the row has none.
        origin: file and line, for messages.
    """

    messages: list[Message]
    gold: str | None
    origin: str


def split_files(folder: Path) -> dict[str, Path]:
    """`train` and, where they are there, `validation` and `test`: the jsonl files of a data folder.

    Raises:
        ValueError: there is no such folder, it has no train.jsonl, or a split under a name that is not read.
    """
    if not folder.is_dir():
        what = "this is a file" if folder.is_file() else "there is no such folder"
        raise ValueError(
            f"data.path={folder}: {what}; name a folder that holds train.jsonl and, where there are such, "
            "validation.jsonl and test.jsonl"
        )
    if not (folder / "train.jsonl").is_file():
        there = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
        raise ValueError(f"data.path={folder}: there is no train.jsonl in it (but {there})")
    files = {name: path for name in SPLIT_FILES if (path := folder / f"{name}.jsonl").is_file()}
    refuse_unread(folder, (path.name for path in folder.iterdir()), files, (".jsonl",))
    return files


def chat_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place, in words, and object of each line that is not blank.

    Raises:
        ValueError: a line is no JSON object in UTF-8, or the file has no row.
    """
    is_empty = True
    for number, row in read_jsonl(path):
        is_empty = False
        yield line_place(str(path), number), row
    if is_empty:
        raise ValueError(f"{path}: the file has no row")


def hub_rows(name: str, config: str) -> dict[str, Iterator[tuple[str, Any]]]:
    """Splits of a Hugging Face data set as (origin, row).

    Raises:
        ValueError: it is neither cached nor can be fetched.
    """
    loaded = load_hub_dataset(
        name,
        name=config,
        said=f"the data set {name} ({config})",
        remedy="go online, or name a folder with train.jsonl and test.jsonl: data.path=<folder>",
    )

    def rows(split: str) -> Iterator[tuple[str, Any]]:
        for number, row in enumerate(loaded[split], start=1):
            yield f"{name}/{split}, row {number:,}", row

    return {split: rows(split) for split in loaded}


def to_chat(origin: str, row: Any, *, system_prompt: str | None, calculator_annotations: bool) -> Chat:
    """Messages of one row: its `messages`, or its `question` and `answer` as a chat of two.

    Args:
        origin: file and line.
        row: what a line of jsonl holds.
        system_prompt: put before chats that have no system turn; None puts nothing.
        calculator_annotations: whether GSM8K's `<<48/2=24>>` stay in answers.

    Raises:
        ValueError: a field is missing, is no text, or is empty.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f"{origin}: expected an object with question and answer, or messages; found {_kind(row)}")
    if "messages" in row:
        messages = _messages(origin, row["messages"])
    else:
        messages = [
            {"role": role, "content": _text(origin, row, field)}
            for role, field in (("user", "question"), ("assistant", "answer"))
        ]
    if not calculator_annotations:
        messages = [
            {**message, "content": _without_annotations(origin, message["content"])}
            if message["role"] == "assistant"
            else message
            for message in messages
        ]
    if system_prompt is not None and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system_prompt}, *messages]
    last_line = messages[-1]["content"].strip().splitlines()[-1]
    gold = FINAL_ANSWER.search(last_line)
    return Chat(messages, gold[1] if gold else None, origin)


def _without_annotations(origin: str, answer: str) -> str:
    left = ANNOTATION.sub("", answer)
    if not left.strip():
        raise ValueError(
            f"{origin}: the answer {answer!r} is empty without its annotations; write it out, or keep them: "
            "data.calculator_annotations=true"
        )
    return left


def _messages(origin: str, value: Any) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{origin}: messages must be a list of role and content, found {_kind(value)}")
    messages = []
    for number, message in enumerate(value, start=1):
        where = f"{origin}: message {number}"
        if not isinstance(message, Mapping):
            raise ValueError(f"{where} must be an object with role and content, found {_kind(message)}")
        role = message.get("role")
        if role not in ROLES:
            raise ValueError(f"{where}: role is {role!r}; allowed are {', '.join(ROLES)}")
        messages.append({"role": role, "content": _text(where, message, "content")})
    if messages[-1]["role"] != "assistant":
        raise ValueError(f"{origin}: the last message must be the assistant's, it is the {messages[-1]['role']}'s")
    return messages


def _text(where: str, row: Mapping[str, Any], field: str) -> str:
    if field not in row:
        has = ", ".join(map(str, row)) or "nothing"
        raise ValueError(f"{where}: field {field!r} is missing (it has {has})")
    value = row[field]
    if not isinstance(value, str):
        raise ValueError(f"{where}: {field} must be a text, found {_kind(value)}")
    if not value.strip():
        raise ValueError(f"{where}: {field} is empty")
    return whole_characters(value)


def _kind(value: Any) -> str:
    names = {
        type(None): "null",
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
    }
    if isinstance(value, list) and not value:
        return "an empty list"
    return names.get(type(value), "an object")
