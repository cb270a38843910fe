"""A small corpus of three invented categories and its word-level tokenizer: what `verify` and the tests train on."""

import json
import random
from pathlib import Path

SHARED = ["we", "show", "that", "the", "of", "a", "in", "and", "this", "model", "for", "with", "is", "are", "on", "our"]
OWN = {
    "bio": ["cell", "gene", "protein", "growth", "membrane", "enzyme", "tissue", "virus"],
    "math": ["group", "ring", "field", "proof", "theorem", "lemma", "measure", "space"],
    "phys": ["quark", "photon", "plasma", "laser", "orbit", "mass", "spin", "decay"],
}
COUNTS = {"train": 12, "validation": 5, "test": 5}
"""Documents of a category in each split."""


def write_small_files(folder: Path) -> list[str]:
    """Write the corpus into a folder and its tokenizer into `tokenizer/` there; returns overrides that use them."""
    write_papers(folder)
    write_tokenizer(folder / "tokenizer")
    return [f"data.path={folder}", f"data.tokenizer={folder / 'tokenizer'}"]


def write_papers(folder: Path) -> None:
    """`train.jsonl`, `validation.jsonl` and `test.jsonl`, of `id`, `label` and `text`; the same bytes every time."""
    folder.mkdir(parents=True, exist_ok=True)
    source = random.Random(0)  # noqa: S311 (no secret)
    for split, count in COUNTS.items():
        rows = []
        for label, words in OWN.items():
            for number in range(count):
                # the last document of each category is too short for most token windows
                length = 9 if number == count - 1 else source.randint(40, 75)
                text = " ".join(source.choice(words if source.random() < 0.4 else SHARED) for _ in range(length))
                rows.append(json.dumps({"id": f"{label}-{split}-{number}", "label": label, "text": text}) + "\n")
        (folder / f"{split}.jsonl").write_text("".join(rows), encoding="utf-8")


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of the corpus's words, in Hugging Face layout."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = ["<|endoftext|>", "<unk>", *SHARED, *(word for own in OWN.values() for word in own)]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))  # noqa: S106 (no password)
    tokenizer.pre_tokenizer = WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|endoftext|>",  # noqa: S106
        unk_token="<unk>",  # noqa: S106
    )
    wrapped.save_pretrained(folder)
