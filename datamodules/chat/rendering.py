"""Chats as tokens: rendered by the model's own template, with the spans that are trained.

Labels come from spans of the rendered text, never from token ids: a mask by "equals the pad id" removes the stop token
wherever a tokenizer pads with it (trl#976, #1623), and `return_assistant_tokens_mask` is all zeros for templates
without generation marks (transformers#34172).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from datamodules.text.plain_text import special_texts

Message = dict[str, str]
"""`role` (system, user, assistant) and `content`."""

SENTINEL = "\ue000answer\ue001"
"""Stands for an answer while its place in the template is looked for; private-use characters that no text holds."""


class ChatError(ValueError):
    """A chat that cannot be rendered, tokenized or trained; the message says why, the caller says which chat."""


@dataclass(frozen=True)
class EncodedChat:
    """A chat as tokens.

    Attributes:
        ids: tokens up to the last answer's stop token, included.
        answers: [start, stop) of each assistant turn: its text and its stop token, nothing of the template before it.
    """

    ids: list[int]
    answers: list[tuple[int, int]]

    @property
    def prompt_length(self) -> int:
        """Tokens before the last answer."""
        return self.answers[-1][0]


@dataclass(frozen=True)
class RenderedChat:
    """A chat as text, up to the last answer's stop token; `answers` are [start, stop) in characters."""

    text: str
    answers: list[tuple[int, int]]


def render_text(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], **options: Any) -> str:
    """The chat as the tokenizer's template writes it.

    Raises:
        ChatError: there is no template, or it refuses the chat.
    """
    if not tokenizer.chat_template:
        raise ChatError(
            "the tokenizer has no chat template: choose an instruct model, or give a Jinja file (data.chat_template=)"
        )
    try:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, **options)
    except (jinja2.TemplateError, TypeError, KeyError, IndexError) as error:
        roles = ", ".join(message["role"] for message in messages)
        raise ChatError(f"the chat template refuses a chat of {roles}: {error}") from error
    assert isinstance(text, str)
    return text


def render_chat(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> RenderedChat:
    """The chat as text with its answers' places.

    Each answer is found by rendering the chat again with another answer in its place: what both renderings share
    belongs to the template.

    Raises:
        ChatError: the template refuses the chat, or does not write its answers as they are.
    """
    if not messages or messages[-1]["role"] != "assistant":
        raise ChatError("the last message must be the assistant's: there is no answer to learn")
    whole = render_text(tokenizer, messages)
    specials = special_texts(tokenizer)
    answers = []
    for turn, message in enumerate(messages):
        if found := next((special for special in specials if special in message["content"]), None):
            # it would become that token: an answer that ends early, or a turn that somebody else wrote
            raise ChatError(f"message {turn + 1} holds {found!r}, the text of a special token; take it out of the data")
        if message["role"] != "assistant":
            continue
        if not message["content"].strip():
            raise ChatError(f"message {turn + 1}: the assistant's answer is empty")
        replaced = [*messages[:turn], {**message, "content": SENTINEL}, *messages[turn + 1 :]]
        before, after = _around_answer(tokenizer, replaced, turn)
        start, end = len(before), len(whole) - len(after)
        if not (whole.startswith(before) and whole.endswith(after) and start < end):
            raise ChatError(f"message {turn + 1}: the chat template rewrites its surroundings with the answer's text")
        answers.append((start, end + _stop_length(after, specials)))
    last_start, last_stop = answers[-1]
    text = whole[:last_stop]
    if not text.endswith(tuple(specials)):  # the template leaves the end open: the end-of-text token closes it
        if not isinstance(tokenizer.eos_token, str):
            raise ChatError("neither the chat template nor the tokenizer has a token that ends an answer")
        text += tokenizer.eos_token
        answers[-1] = (last_start, len(text))
    return RenderedChat(text, answers)


def _around_answer(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], turn: int) -> tuple[str, str]:
    rendered = render_text(tokenizer, messages)
    before, found, after = rendered.partition(SENTINEL)
    if not found or SENTINEL in after:
        raise ChatError(f"message {turn + 1}: the chat template does not write the assistant's answer exactly once")
    return before, after


def _stop_length(after: str, specials: Sequence[str]) -> int:
    """Characters of the stop token that follows an answer, blanks before it included; 0 where none does."""
    blanks = len(after) - len(after.lstrip())
    stop = next((text for text in specials if after.startswith(text, blanks)), None)
    return 0 if stop is None else blanks + len(stop)


def encode_chats(tokenizer: PreTrainedTokenizerBase, chats: Sequence[RenderedChat]) -> Iterator[EncodedChat]:
    """Tokens of rendered chats, and their answers as spans of tokens.

    The text up to each border is tokenized, and the borders are where one tokenization begins with the other (prefix
    difference). Where it does not, because characters on both sides of a border would merge, the rest is tokenized by
    itself: the prompt's ids always are those that the prompt has alone. `add_special_tokens=False`, since templates
    write their own BOS (OpenRLHF#393).

    Raises:
        ChatError: an answer has no token.
    """
    borders = [[border for answer in chat.answers for border in answer] for chat in chats]
    texts = [chat.text[:border] for chat, places in zip(chats, borders, strict=True) for border in places]
    tokenized = iter(_tokenize(tokenizer, texts))  # all at once: fast tokenizers share a batch over the cores
    for chat, places in zip(chats, borders, strict=True):
        ids, ends = _join(tokenizer, chat.text, places, [next(tokenized) for _ in places])
        answers = list(zip(ends[::2], ends[1::2], strict=True))
        if any(start >= stop for start, stop in answers):
            raise ChatError("an answer has no token")
        yield EncodedChat(ids, answers)


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Tokens that stand before the assistant's next answer: those that encode_chats gives to the same chat.

    That is more than `add_generation_prompt` gives where a template puts something between the turn's header and the
    answer (an empty `<think>` block): boilerplate that would otherwise be trained, and missing when asked.
    """
    chat = render_chat(tokenizer, [*messages, {"role": "assistant", "content": "answer"}])
    borders = [border for answer in chat.answers for border in answer][:-1]
    return _join(tokenizer, chat.text, borders, _tokenize(tokenizer, [chat.text[:border] for border in borders]))[0]


def _join(
    tokenizer: PreTrainedTokenizerBase, text: str, borders: Sequence[int], tokenized: Sequence[list[int]]
) -> tuple[list[int], list[int]]:
    """Tokens of text[:borders[-1]] and how many of them stand before each border; tokenized[i] is text[:borders[i]]."""
    ids: list[int] = []
    ends = []
    previous = 0
    for border, whole in zip(borders, tokenized, strict=True):
        ids = whole if whole[: len(ids)] == ids else ids + _tokenize(tokenizer, [text[previous:border]])[0]
        ends.append(len(ids))
        previous = border
    return ids, ends


def _tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    if not texts:
        return []
    encoded: Any = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False)
    ids: list[list[int]] = encoded["input_ids"]
    return ids
