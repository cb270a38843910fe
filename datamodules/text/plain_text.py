"""Raw text never becomes special tokens: `[SEP]` in a review and `<|endoftext|>` in a paper are characters."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from transformers import BatchEncoding, PreTrainedTokenizerBase


def special_texts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Texts of the special tokens, the longest first."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    texts = {str(token.content) for token in added if token.special} | set(tokenizer.all_special_tokens)
    return sorted(texts - {""}, key=lambda text: (-len(text), text))


def tokenize_plain(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, **options: Any) -> BatchEncoding:
    """Tokens of raw texts, no special one among them but the one for what is unknown.

    Args:
        texts: n texts.
        tokenizer: a fast one uses every core.
        options: further ones of the tokenizer's call.

    Raises:
        ValueError: a text holds the text of a special token, which this tokenizer cannot read as other characters.
    """
    encoded = tokenizer(
        list(texts),
        add_special_tokens=False,
        split_special_tokens=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
        **options,
    )
    # vocabularies of SentencePiece hold `<s>` as a piece like any other
    kept = {
        text: number
        for text in special_texts(tokenizer)
        if (number := tokenizer.convert_tokens_to_ids(text)) != tokenizer.unk_token_id
    }
    for row, text in enumerate(texts):
        for special in [special for special in kept if special in text]:
            if kept[special] in encoded["input_ids"][row]:
                place = text.index(special)
                around = " ".join(text[max(0, place - 30) : place + 40].split())
                raise ValueError(
                    f"a text holds {special!r} (...{around}...), which data.tokenizer can only read as the special "
                    "token; take it out of the data"
                )
    return encoded


def count_special_texts(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """How many of the texts hold the text of each special token, of those that any holds."""
    specials = special_texts(tokenizer)
    counts = Counter(special for text in texts for special in specials if special in text)
    return {special: counts[special] for special in specials if special in counts}


def describe_special_texts(counts: dict[str, int], unit: str) -> str:
    """What count_special_texts found in words; empty where it found nothing."""
    held = ", ".join(f"{special!r} in {count:,}" for special, count in counts.items())
    return held and f"{unit} hold texts of special tokens ({held}); they are read as plain text, never as those tokens"
