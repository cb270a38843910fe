import numpy as np
import pytest

from datamodules.labelled.synthetic_texts import synthetic_texts
from datamodules.text.near_duplicates import Repeat, find_repeats, jaccard, minhash, shingles

TEXTS = synthetic_texts()["train"].texts
LONG = " ".join(TEXTS[:12])


def repeats(texts, others):
    return find_repeats(minhash(texts), minhash(others), texts.__getitem__, others.__getitem__)


def test_shingles_are_sets_of_five_words():
    assert len(shingles("a b c d e")) == 1
    assert len(shingles("a b c d e f")) == 2
    assert shingles("A,  b\nc. D e!").tolist() == shingles("a b c d e").tolist()
    assert shingles("a b c d f").tolist() != shingles("a b c d e").tolist()
    assert len(shingles("word")) == len(shingles("!!!")) == 1
    assert jaccard(shingles("a b c d e f"), shingles("a b c d e g")) == 1 / 3


def test_the_same_words_are_found_however_they_are_written():
    assert repeats(["nothing of it", LONG.upper(), "one two"], [TEXTS[0], LONG, "one, two"]) == [
        Repeat(1, 1, 1.0),
        Repeat(2, 2, 1.0),
    ]


def test_of_equally_similar_texts_the_first_is_named():
    assert repeats([LONG], ["other words altogether", LONG, LONG]) == [Repeat(0, 1, 1.0)]


def test_nearly_the_same_is_found_and_half_the_same_is_not():
    words = LONG.split()
    nearly = " ".join([*words[:80], "CHANGED", *words[81:]])
    half = " ".join(words[: len(words) // 2])
    (found,) = repeats([nearly, half], ["other words altogether", LONG])
    assert (found.row, found.other) == (0, 1)
    assert found.similarity == pytest.approx(jaccard(shingles(nearly), shingles(LONG)))
    assert 0.9 < found.similarity < 1


def test_signatures_estimate_similarity():
    words = LONG.split()
    texts = [LONG, " ".join(words[: 2 * len(words) // 3])]
    signatures = minhash(texts)
    true = jaccard(shingles(texts[0]), shingles(texts[1]))
    assert float((signatures[0] == signatures[1]).mean()) == pytest.approx(true, abs=0.2)


def test_signatures_do_not_depend_on_the_neighbours():
    together = minhash([LONG, *TEXTS])
    assert np.array_equal(together[0], minhash([LONG])[0])
    assert minhash([]).shape == (0, 64)


def test_boilerplate_shared_by_all_keeps_the_work_bounded():
    """A thousand equal texts against a thousand equal texts: twenty comparisons for each, not a thousand."""
    texts = [LONG] * 1000
    asked = []
    found = find_repeats(
        minhash(texts), minhash(texts), texts.__getitem__, lambda row: (asked.append(row), texts[row])[1]
    )
    assert len(found) == 1000
    assert len(asked) <= 20
