import re
import subprocess
import sys
import time
from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from datamodules.text.chunking import (
    Chunker,
    Chunking,
    chunk_ranges,
    cut_into_pieces,
    section_numbers,
    tokenize_documents,
)
from datamodules.text.tokenized_texts import word_tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def words():
    """Every letter is a word."""
    return word_tokenizer([" ".join(LETTERS)])


@pytest.fixture(scope="module")
def byte_pairs():
    """Byte pairs as GPT-2 and RoBERTa have them: a token may begin with the space before its word."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(["the cat sat on the mat and the dog sat on the cat"] * 3, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0), add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def ranges(num_tokens, choose="first", room=4, stride=2, max_chunks=3):
    return chunk_ranges(num_tokens, room=room, stride=stride, max_chunks=max_chunks, choose=choose)


@pytest.mark.parametrize(
    ("num_tokens", "expected"),
    [
        (0, [(0, 0)]),
        (1, [(0, 1)]),
        (4, [(0, 4)]),
        (5, [(0, 4), (2, 5)]),
        (6, [(0, 4), (2, 6)]),
        (7, [(0, 4), (2, 6), (4, 7)]),
        (8, [(0, 4), (2, 6), (4, 8)]),
    ],
)
def test_boundaries_to_the_token(num_tokens, expected):
    assert ranges(num_tokens) == expected


def test_sections_are_cut_apart():
    """Sections of 5, 1 and 6 tokens: the second chunk of the first ends with it."""
    expected = [(0, 4), (2, 5), (5, 6), (6, 10), (8, 12)]
    cut = {"room": 4, "stride": 2, "section_starts": [0, 5, 6]}
    assert chunk_ranges(12, max_chunks=9, choose="first", **cut) == expected
    assert chunk_ranges(12, max_chunks=2, choose="first", **cut) == expected[:2]
    assert chunk_ranges(12, max_chunks=2, choose="last", **cut) == expected[3:]
    assert chunk_ranges(12, max_chunks=3, choose="spread", **cut) == [expected[0], expected[2], expected[4]]
    assert section_numbers(expected, np.array([0, 5, 6])) == [0, 0, 1, 2, 2]


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(1, 12), st.integers(1, 12), st.integers(1, 9),
    st.sampled_from(["first", "spread", "last"]),
)  # fmt: skip
def test_chunks_of_a_section_are_those_of_a_text_of_its_own(lengths, room, stride, max_chunks, choose):
    settings = {"room": room, "stride": min(room, stride), "choose": choose}
    starts = np.cumsum([0, *lengths[:-1]])
    alone = [
        (start + a, start + b)
        for start, length in zip(starts.tolist(), lengths, strict=True)
        for a, b in chunk_ranges(length, max_chunks=1000, **settings)
    ]
    assert chunk_ranges(sum(lengths), max_chunks=1000, section_starts=starts, **settings) == alone
    some = chunk_ranges(sum(lengths), max_chunks=max_chunks, section_starts=starts, **settings)
    assert len(some) == min(max_chunks, len(alone))
    assert some == sorted(set(some) & set(alone))


@pytest.mark.parametrize(
    ("text", "sections"),
    [
        ("a b\n\nc d", ["a b", "c d"]),
        ("\n\n a b \r\n \t\r\n\n\n c\nd \n\n", ["a b", "c d"]),
        ("a\nb\rc\u2028d\x85e", ["a b c d e"]),
        ("a\n\u00a0\nb", ["a", "b"]),
        ("\n\n\n", [""]),
        ("", [""]),
    ],
)
def test_blank_lines_part_sections(words, text, sections):
    chunked = Chunker(words, Chunking(9, 4, 9, "first", "blank_lines")).chunk(text)
    assert [words.decode(ids[1:-1]) for ids in chunked.input_ids] == sections
    assert chunked.sections == list(range(len(sections)))
    whole = Chunker(words, Chunking(9, 4, 9, "first")).chunk(text)
    assert [words.decode(ids[1:-1]) for ids in whole.input_ids] == [" ".join(sections)]


def test_sections_of_byte_pairs(byte_pairs):
    """Here newlines are tokens; those between two sections are of the first."""
    chunked = Chunker(byte_pairs, Chunking(64, 62, 9, "first", "blank_lines")).chunk("the cat \n\n  sat\n\nthe dog")
    tokens = ["".join(byte_pairs.convert_ids_to_tokens(ids[1:-1])) for ids in chunked.input_ids]
    assert [text.replace("Ġ", " ").replace("Ċ", "\n") for text in tokens] == ["the cat \n\n ", " sat\n\n", "the dog"]


def test_a_megabyte_of_line_ends_is_no_work(words):
    started = time.process_time()
    text = "\n" * 500_000 + "a" + " " * 500_000 + "\n" + "\r" * 10
    assert [
        words.decode(ids[1:-1])
        for ids in Chunker(words, Chunking(9, 4, 9, "first", "blank_lines")).chunk(text).input_ids
    ] == ["a"]
    assert time.process_time() - started < 60  # hours where the search for blank lines goes back


def test_which_chunks_stay():
    """20 tokens: nine chunks, starting at 0, 2, ... 16."""
    assert ranges(20, "first") == [(0, 4), (2, 6), (4, 8)]
    assert ranges(20, "last") == [(12, 16), (14, 18), (16, 20)]
    assert ranges(20, "spread") == [(0, 4), (8, 12), (16, 20)]
    assert ranges(20, "spread", max_chunks=1) == [(8, 12)]
    assert ranges(21, "spread", max_chunks=4) == [(0, 4), (6, 10), (12, 16), (18, 21)]  # ten chunks: 0, 3, 6, 9


@given(
    st.integers(0, 300), st.integers(1, 20), st.integers(1, 20), st.integers(1, 12),
    st.sampled_from(["first", "spread", "last"]),
)  # fmt: skip
def test_chunks_cover_the_text_and_no_more(num_tokens, room, stride, max_chunks, choose):
    stride = min(room, stride)
    every = chunk_ranges(num_tokens, room=room, stride=stride, max_chunks=1000, choose=choose)
    assert sorted({token for start, stop in every for token in range(start, stop)}) == list(range(num_tokens))
    assert all(start % stride == 0 and stop == min(start + room, num_tokens) for start, stop in every)
    # without its last chunk the text would not be covered
    assert len(every) == 1 or every[-2][1] < num_tokens
    some = chunk_ranges(num_tokens, room=room, stride=stride, max_chunks=max_chunks, choose=choose)
    assert len(some) == min(max_chunks, len(every))
    assert some == sorted(set(some) & set(every))
    if choose != "last" and max_chunks > 1:
        assert some[0] == every[0]
    if choose != "first" and max_chunks > 1:
        assert some[-1] == every[-1]


def test_wrong_settings_name_their_keys(words):
    with pytest.raises(ValueError, match=r"data\.stride=7 is more than the 6 tokens .*at most data\.stride=6"):
        Chunker(words, Chunking(chunk_size=8, stride=7, max_chunks=2, choose="first"))
    with pytest.raises(ValueError, match=r"data\.chunk_size=2 leaves no room for text beside 2 special tokens"):
        Chunker(words, Chunking(chunk_size=2, stride=1, max_chunks=2, choose="first"))
    with pytest.raises(ValueError, match=r"data\.max_chunks=0 must be at least 1"):
        Chunker(words, Chunking(chunk_size=8, stride=1, max_chunks=0, choose="first"))


def test_every_chunk_has_its_special_tokens_and_knows_its_characters(words):
    text = "a b  c\td e f g"
    chunked = Chunker(words, Chunking(chunk_size=5, stride=2, max_chunks=9, choose="first")).chunk(text)
    cut = ["[CLS] a b c [SEP]", "[CLS] c d e [SEP]", "[CLS] e f g [SEP]"]
    assert [words.decode(ids) for ids in chunked.input_ids] == cut
    assert chunked.ranges == [(0, 3), (2, 5), (4, 7)]
    assert chunked.num_tokens == 7
    for spans in chunked.spans:
        assert spans[[0, -1]].tolist() == [[-1, -1], [-1, -1]]
    assert [text[start:end] for start, end in chunked.spans[1][1:-1]] == ["c", "d", "e"]


def test_a_short_text_is_what_the_tokenizer_makes_of_it(words, byte_pairs):
    for tokenizer, text in ((words, "A zebra, b"), (byte_pairs, " the cat  sat—on\nthe mat"), (words, "")):
        (ids,) = (
            Chunker(tokenizer, Chunking(chunk_size=64, stride=8, max_chunks=2, choose="last")).chunk(text).input_ids
        )
        assert ids.tolist() == tokenizer(text)["input_ids"]


def test_an_empty_text_is_one_chunk_of_special_tokens(words):
    chunked = Chunker(words, Chunking(chunk_size=8, stride=4, max_chunks=2, choose="spread")).chunk(" \n ")
    assert [words.decode(ids) for ids in chunked.input_ids] == ["[CLS] [SEP]"]
    assert (chunked.ranges, chunked.num_tokens) == ([(0, 0)], 0)


@given(st.text(alphabet="ab  \n", max_size=60), st.integers(1, 12))
def test_pieces_are_the_text(text, longest):
    pieces = list(cut_into_pieces(text, longest))
    assert "".join(piece for _, piece in pieces) == text
    assert all(text[start : start + len(piece)] == piece for start, piece in pieces)
    assert all(len(piece) <= longest for _, piece in pieces)
    for start, _ in pieces[1:]:  # before white space, or inside a stretch without any place to cut
        before = text[max(0, start - longest) : start]
        assert (text[start].isspace() and not text[start - 1].isspace()) or not any(
            after.isspace() and not one.isspace() for one, after in pairwise(before)
        )


@given(st.lists(st.sampled_from(["the", "cat", "on,", "é", "mat", " ", "\n", "  "]), max_size=30), st.integers(8, 30))
def test_pieces_give_the_tokens_of_the_whole(byte_pairs, parts, longest):
    text = " ".join(parts)
    longest += max((len(gap) for gap in re.findall(r"\s+", text)), default=0)  # so that no word or gap is cut
    pieces = [byte_pairs(piece, add_special_tokens=False)["input_ids"] for _, piece in cut_into_pieces(text, longest)]
    assert list(chain.from_iterable(pieces)) == byte_pairs(text, add_special_tokens=False)["input_ids"]


def test_texts_of_many_pieces_between_short_ones(words, monkeypatch):
    monkeypatch.setattr("datamodules.text.chunking.PIECE_CHARACTERS", 16)
    monkeypatch.setattr("datamodules.text.chunking.BLOCK_PIECES", 3)
    monkeypatch.setattr(cut_into_pieces, "__defaults__", (16,))
    texts = ["a b", "", " ".join(LETTERS * 4), "z", ""]
    made = list(tokenize_documents(texts, words))
    assert [words.decode(tokens.ids) for tokens in made] == texts
    for tokens, text in zip(made, texts, strict=True):
        assert [text[start:end] for start, end in tokens.spans] == text.split()


def test_halves_of_surrogate_pairs_keep_their_place(words):
    (tokens,) = tokenize_documents(["a \ud800 b"], words)
    assert tokens.spans.tolist() == [[0, 1], [2, 3], [4, 5]]


def test_three_megabytes(words):
    """In a process of its own, so that the memory is that of this text; without white space, too."""
    code = """
import resource
from datamodules.text.chunking import Chunker, Chunking
from datamodules.text.tokenized_texts import word_tokenizer
tokenizer = word_tokenizer(["a b c"])
chunker = Chunker(tokenizer, Chunking(chunk_size=512, stride=256, max_chunks=20, choose="spread"))
chunker.chunk("a b c")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
chunked = chunker.chunk("abcd ab c " * 300_000)
assert chunked.num_tokens == 900_000, chunked.num_tokens
assert len(chunked.input_ids) == 20 and chunked.ranges[-1][1] == 900_000
assert chunker.chunk("x" * 100_000).num_tokens > 0
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 250  # MB; 128 when written, 498 in one piece
