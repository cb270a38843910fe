"""Made-up documents whose rating is told by the worst sentence in them: data without files or network."""

import random

from datamodules.labelled.texts import LabelledTexts

LABELS = ("General", "Teen", "Mature")
"""In order."""
TELLING = {"Teen": "scuffle", "Mature": "slaughter"}
_SIZES = {"train": 240, "validation": 42, "test": 36}
_SHARES = (3, 2, 1)  # of the labels: unbalanced, as ratings are
_SYLLABLES = ("ba", "do", "ki", "lu", "me", "no", "pa", "ru", "si", "to", "va", "ze")


def synthetic_documents() -> dict[str, LabelledTexts]:
    """Splits of 240, 42 and 36 documents of 2 to 12 sentences of five words each; always the same.

    Half of them General, a third Teen, a sixth Mature. One sentence holds the telling word; a Mature document may hold
    that of Teen too. `evidence_spans` are the sentences that decide. Three documents share a `group`.
    """
    draw = random.Random("planted documents")  # noqa: S311 (made-up data, not a secret)
    filler = [first + second for first in _SYLLABLES for second in _SYLLABLES]
    splits = {}
    for name, size in _SIZES.items():
        split = LabelledTexts(f"synthetic {name}", unit="row")
        for number in range(size):
            place = number % sum(_SHARES)
            label = LABELS[0 if place < 3 else 1 if place < 5 else 2]
            sentences = [draw.choices(filler, k=5) for _ in range(draw.randint(2, 12))]
            deciding = draw.randrange(len(sentences))
            if label != "General":
                sentences[deciding][draw.randrange(5)] = TELLING[label]
            if label == "Mature" and deciding > 0:
                sentences[deciding - 1][draw.randrange(5)] = TELLING["Teen"]
            written = [f"{' '.join(words)}." for words in sentences]
            start = sum(len(sentence) + 1 for sentence in written[:deciding])
            spans = [] if label == "General" else [[start, start + len(written[deciding])]]
            extra = {"id": f"{name}-{number:02}", "group": f"{name}/{number // 3}", "evidence_spans": spans}
            split.add(number + 1, " ".join(written), label, text_column="text", label_column="label", extra=extra)
        splits[name] = split
    return splits
