"""Makes tests/data/papers: a corpus of three invented categories and a word-level tokenizer, a few KB.

Run it from the repository's root to write the same bytes again: python tests/data/make_papers.py
"""

import json
import random
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

FOLDER = Path(__file__).parent / "papers"
SHARED = ["we", "show", "that", "the", "of", "a", "in", "and", "this", "model", "for", "with", "is", "are", "on", "our"]
OWN = {
    "bio": ["cell", "gene", "protein", "growth", "membrane", "enzyme", "tissue", "virus"],
    "math": ["group", "ring", "field", "proof", "theorem", "lemma", "measure", "space"],
    "phys": ["quark", "photon", "plasma", "laser", "orbit", "mass", "spin", "decay"],
}
COUNTS = {"train": 12, "validation": 5, "test": 5}


def main() -> None:
    source = random.Random(0)
    FOLDER.mkdir(exist_ok=True)
    for split, count in COUNTS.items():
        rows = []
        for label, words in OWN.items():
            for number in range(count):
                # the last document of each category is too short for most windows
                length = 9 if number == count - 1 else source.randint(40, 75)
                text = " ".join(source.choice(words if source.random() < 0.4 else SHARED) for _ in range(length))
                rows.append({"id": f"{label}-{split}-{number}", "label": label, "text": text})
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (FOLDER / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    words = ["<|endoftext|>", "<unk>", *SHARED, *(word for own in OWN.values() for word in own)]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", unk_token="<unk>")
    fast.save_pretrained(FOLDER / "tokenizer")


if __name__ == "__main__":
    main()
