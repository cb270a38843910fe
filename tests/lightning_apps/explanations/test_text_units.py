"""Words and sentences: exact characters."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lightning_apps.explanations.text_units import WORD, inside_spans, read_words


def by_tokens(text, *spans, most=400):
    return read_words(text, np.array(spans, dtype=np.int64).reshape(-1, 2), max_sentences=most)


def test_tokens_find_their_words():
    text = "  unhappy Zoë!\n\n42"
    #         un     happy   " Zoë" with its space, "!", blank, 42, special
    words, word = by_tokens(text, (2, 4), (4, 9), (9, 13), (13, 14), (14, 16), (16, 18), (-1, -1), (0, 0))
    assert [text[slice(*span)] for span in words.spans] == ["unhappy", "Zoë!", "42"]
    assert word.tolist() == [0, 0, 1, 1, -1, 2, -1, -1]
    assert words.num_words == 3
    assert words.sentence.tolist() == [0, 0, 1]
    assert [text[slice(*span)] for span in words.sentence_spans] == ["unhappy Zoë!", "42"]


def test_words_that_were_not_read_are_left_out_and_part_sentences():
    text = "one two three four five six"
    words, word = by_tokens(text, (0, 3), (4, 7), (20, 23), (26, 27))  # six is read in part
    assert [text[slice(*span)] for span in words.spans] == ["one", "two", "five", "six"]
    assert word.tolist() == [0, 1, 2, 3]
    assert words.sentence.tolist() == [0, 0, 1, 1]
    assert words.num_words == 6


def test_sentences():
    def cut(text, most=400):
        words, _ = by_tokens(text, *(match.span() for match in WORD.finditer(text)), most=most)
        return [text[slice(*span)] for span in words.sentence_spans]

    assert cut('He said "no." Then? (Yes!) End') == ['He said "no."', "Then?", "(Yes!)", "End"]
    assert cut("he came . \nshe left . ") == ["he came .", "she left ."]
    assert cut('"he left . " ( she did not . ) so . . .') == ['"he left . "', "( she did not . )", "so . . ."]
    assert cut("a line\nbroken\n\nnext") == ["a line\nbroken", "next"]
    assert [len(part.split()) for part in cut("word " * 100)] == [40, 40, 20]
    assert cut("a. b. c. d. e.", most=2) == ["a. b. c.", "d. e."]
    assert cut("") == []


@given(st.text(alphabet="ab.\n \u00e9\U0001f600", max_size=60), st.integers(1, 5))
def test_every_word_is_a_slice_and_in_one_sentence(text, most):
    words, word = by_tokens(text, *((index, index + 1) for index in range(len(text))), most=most)
    assert [text[slice(*span)] for span in words.spans] == text.split()
    for index, number in enumerate(word):
        start, end = words.spans[number] if number >= 0 else (0, 0)
        assert (start <= index < end) is not text[index].isspace()
    assert words.num_sentences <= most
    assert (np.diff(words.sentence) >= 0).all()
    assert set(words.sentence.tolist()) == set(range(words.num_sentences))


def test_regions():
    spans = np.array([[0, 3], [3, 6], [6, 9]])
    assert inside_spans(spans, [[3, 6]]).tolist() == [False, True, False]
    assert inside_spans(spans, [[5, 7], [0, 1]]).tolist() == [True, True, True]
    assert inside_spans(spans, []).tolist() == [False, False, False]
