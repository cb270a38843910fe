"""Made-up documents whose rating is told by the worst sentence in them: data without files or network."""

import random

from datamodules.labelled_text import LabelledTexts

LABELS = ("General", "Teen", "Mature")
"""In order."""
TELLING = {"Teen": ("insolent", "scuffle", "wager"), "Mature": ("slaughter", "torture", "depraved")}
_SIZES = {"train": 96, "validation": 24, "test": 21}
_SHARES = (3, 2, 1)  # of the labels: unbalanced, as ratings are
_SYLLABLES = ("ba", "do", "ki", "lu", "me", "no", "pa", "ru", "si", "to", "va", "ze")


def planted_documents() -> dict[str, LabelledTexts]:
    """Splits of 96, 24 and 21 documents of 2 to 24 sentences of five words each; always the same.

    Half of them General, a third Teen, a sixth Mature. One sentence holds a telling word; a Mature document may hold a
    telling one of Teen too. `evidence_spans` are the sentences that decide. Three documents share a `group`.
    """
    draw = random.Random("planted documents")  # noqa: S311 (made-up data, not a secret)
    filler = [first + second for first in _SYLLABLES for second in _SYLLABLES]
    splits = {}
    for name, size in _SIZES.items():
        split = LabelledTexts(f"planted {name}", unit="row")
        for number in range(size):
            place = number % sum(_SHARES)
            label = LABELS[0 if place < 3 else 1 if place < 5 else 2]
            sentences = [draw.choices(filler, k=5) for _ in range(draw.randint(2, 24))]
            deciding = draw.randrange(len(sentences))
            if label != "General":
                sentences[deciding][draw.randrange(5)] = draw.choice(TELLING[label])
            if label == "Mature" and deciding > 0:
                sentences[deciding - 1][draw.randrange(5)] = draw.choice(TELLING["Teen"])
            written = [f"{' '.join(words)}." for words in sentences]
            start = sum(len(sentence) + 1 for sentence in written[:deciding])
            spans = [] if label == "General" else [[start, start + len(written[deciding])]]
            extra = {"id": f"{name}-{number:02}", "group": f"{name}/{number // 3}", "evidence_spans": spans}
            split.add(number + 1, " ".join(written), label, text_column="text", label_column="label", extra=extra)
        splits[name] = split
    return splits
