"""A byte-level BPE learned from the training documents: `data.tokenizer=bpe:4096`.

A small model spends most of its multiplications on the output projection over a large vocabulary. Losses of two
tokenizers compare by bits per byte.
"""

import re
from collections.abc import Iterable, Iterator

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

LEARNED = re.compile(r"bpe:(\d+)", re.ASCII)
"""The name of such a tokenizer, with the tokens that it has."""
END = "<|endoftext|>"
SMALLEST = 1 + 256
"""The end of a text, and one token for each byte: nothing is unknown."""
LEARNED_FROM = 100_000_000
"""Characters at most from which merges are learned; more move no merge that is frequent."""


def vocabulary_size(tokenizer: str) -> int | None:
    """How many tokens a tokenizer of this name learns; None where the name is that of a finished one.

    Raises:
        ValueError: so few that not every byte has one.
    """
    found = LEARNED.fullmatch(tokenizer)
    if found is None:
        return None
    size = int(found[1])
    if not SMALLEST <= size <= 1 << 20:
        raise ValueError(
            f"data.tokenizer={tokenizer}: choose {SMALLEST} (bytes and the end of a text) to {1 << 20} tokens, "
            "for example bpe:4096"
        )
    return size


def learn_bpe(texts: Iterable[str], *, size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE (Sennrich et al. 2016, over bytes as in GPT-2).

    Args:
        texts: read once, up to LEARNED_FROM characters.
        size: tokens, END among them as number 0; fewer where the texts have too few pairs to merge.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_first_characters(texts, LEARNED_FROM), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, clean_up_tokenization_spaces=False)


def _first_characters(texts: Iterable[str], limit: int) -> Iterator[str]:
    for text in texts:
        yield text[:limit]
        limit -= len(text)
        if limit <= 0:
            return
