"""Made-up texts whose class is told by one word: a data set without files or network, for tests and `verify`."""

import random

from datamodules.labelled.texts import LabelledTexts

TELLING = {
    "negative": ("dull", "clumsy", "tedious"),
    "positive": ("brilliant", "moving", "delightful"),
}
_SIZES = {"train": 110, "validation": 24, "test": 21}
_SYLLABLES = ("ba", "do", "ki", "lu", "me", "no", "pa", "ru", "si", "to", "va", "ze")


def synthetic_texts() -> dict[str, LabelledTexts]:
    """Splits of 110, 24 and 21 texts of 4 to 30 words, in equal parts negative and positive; always the same."""
    draw = random.Random("planted texts")  # noqa: S311 (made-up data, not a secret)
    filler = [first + second for first in _SYLLABLES for second in _SYLLABLES]
    splits = {}
    for name, size in _SIZES.items():
        split = LabelledTexts(f"synthetic {name}", unit="row")
        for number in range(1, size + 1):
            label = ("negative", "positive")[number % 2]
            words = draw.choices(filler, k=draw.randint(3, 29))
            words.insert(draw.randrange(len(words) + 1), draw.choice(TELLING[label]))
            split.add(number, " ".join(words), label, text_column="text", label_column="label")
        splits[name] = split
    return splits
