import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from datamodules.imdb import ImdbDataModule
from datamodules.text.tokenized_texts import (
    cut,
    encode_texts,
    special_tokens_around,
    word_tokenizer,
)
from tests.tiny.labelled_files import folder
from tests.tiny.tiny_runs import IMDB_DATA


@pytest.fixture
def make(composed):
    def build(*overrides):
        config = composed(*IMDB_DATA, *overrides)
        data = ImdbDataModule(**{key: value for key, value in config["data"].items() if key != "_target_"})
        data.prepare_data()
        data.setup()
        return data

    return build


def test_exact_batch(make):
    data = make()
    first, second = data.texts("train")[:2]
    batch = data.training_batch(np.zeros(2, dtype=np.int64), np.array([0, 1]))
    ids = [data.tokenizer(text)["input_ids"] for text in (first, second)]
    longest = max(map(len, ids))
    assert batch["input_ids"].tolist() == [row + [data.tokenizer.pad_token_id] * (longest - len(row)) for row in ids]
    assert batch["attention_mask"].tolist() == [[1] * len(row) + [0] * (longest - len(row)) for row in ids]
    assert batch["labels"].tolist() == [1, 0]
    assert data.tokenizer.convert_ids_to_tokens(ids[0])[0] == "[CLS]"
    assert data.label_names == ["negative", "positive"]


def test_splits_come_from_the_source_in_its_order(make, tmp_path):
    """Named so that an alphabetical order of the splits would mix them up."""
    rows = [(f"text number {number} is about {number}", "ab"[number % 2]) for number in range(9)]
    data = make(folder(tmp_path, train=rows[:4], validation=rows[4:6], test=rows[6:]))
    assert data.texts("train") == [text for text, _ in rows[:4]]
    assert data.texts("validation") == [text for text, _ in rows[4:6]]
    assert data.texts("test") == [text for text, _ in rows[6:]]
    assert data.labels("test").tolist() == [0, 1, 0]


def test_validation_is_cut_where_there_is_none(make, tmp_path):
    rows = [(f"a text that tells of the number {number} alone", "ab"[number % 4 == 0]) for number in range(40)]
    source = folder(tmp_path, train=rows)
    data = make(source, "data.validation_share=0.2")
    assert data.num_train_samples == 32
    assert np.bincount(data.labels("validation")).tolist() == [6, 2]  # a quarter, as in the whole
    assert sorted([*data.texts("train"), *data.texts("validation")]) == sorted(text for text, _ in rows)
    assert not data.has_test_split
    again = make(source, "data.validation_share=0.2", "seed=7")
    assert again.texts("validation") == data.texts("validation")  # whatever the run's seed
    assert make(source, "data.validation_share=0.2", "data.split_seed=7").texts("validation") != data.texts(
        "validation"
    )
    smaller = make(source, "data.max_train_samples=8", "data.max_evaluation_samples=2")
    assert np.bincount(smaller.labels("train")).tolist() == [6, 2]
    assert len(smaller.texts("validation")) == 2
    with pytest.raises(ValueError, match=r"data\.validation_share=0\.01 of 40 training samples is 0"):
        make(source, "data.validation_share=0.01")


def leaky(tmp_path):
    long = "the film begins in a small town by the sea where nothing has happened for as long as anyone can remember"
    rows = [(f"{number} says more of {number} than {number} says of itself", "ab"[number % 2]) for number in range(6)]
    return folder(
        tmp_path,
        train=[*rows, (long, "a"), (f"{long} it", "b")],
        validation=[("short text here", "a"), (long.upper(), "a")],
        test=[("another one", "a"), ("yet another", "b")],
    )


def test_leaks(make, tmp_path):
    source = leaky(tmp_path)
    data = make(source)
    assert data.num_train_samples == 6
    (notice,) = (text for text in data.notices if "are in another split" in text)
    assert "2 training texts are in another split too (2 in validation; 1 word for word" in notice
    assert "'the film begins in a small town by the sea" in notice
    assert "(100% like one in validation)" in notice
    assert "left out of training (data.leaks=drop)" in notice
    kept = make(source, "data.leaks=warn")
    assert kept.num_train_samples == 8
    assert "scores will flatter; data.leaks=drop" in kept.notices[0]
    with pytest.raises(ValueError, match=r"2 training texts are .*choose data\.leaks=drop"):
        make(source, "data.leaks=error")


def test_odd_classes_are_said(make, tmp_path):
    rows = [(f"one text of its own kind, number {number}", "abb"[min(number, 2)]) for number in range(20)]
    data = make(folder(tmp_path, train=rows, validation=[("x y z", "b")]), "data.label_names=[a,b,c]")
    said = "\n".join(data.notices)
    assert "no training sample is labelled 'c'" in said
    assert "validation has no sample of a, c" in said
    unbalanced = make(folder(tmp_path, train=rows, validation=[("x y z", "b")]))
    assert "'a' is 5.0% of the training labels" in "\n".join(unbalanced.notices)


def test_one_class_only_is_refused_even_where_two_are_named(make, tmp_path):
    with pytest.raises(ValueError, match="every sample is labelled 'a'; a classifier needs two classes"):
        make(folder(tmp_path, train=[("one", "a"), ("two", "a")], test=[("three", "b")]), "data.label_names=[a,b]")


def test_several_labels(make, tmp_path):
    rows = [("one", ["a", "b"]), ("two", []), ("three and four", ["b"])]
    data = make(folder(tmp_path, train=rows, validation=rows), "data.multi_label=true", "data.leaks=warn")
    batch = data.training_batch(np.zeros(3, dtype=np.int64), np.arange(3))
    assert batch["labels"].tolist() == [[1, 1], [0, 0], [0, 1]]
    assert batch["labels"].dtype == torch.float32
    assert data.net_arguments["multi_label"] is True


def test_the_cache_follows_bytes_not_paths(make, tmp_path):
    rows = [("one", "a"), ("two", "b"), ("three", "a")]
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
    first = make(folder(tmp_path / "x", train=rows, validation=rows), "data.leaks=warn")
    again = make(folder(tmp_path / "y", train=rows, validation=rows), "data.leaks=warn")
    assert again.folder == first.folder
    changed = make(folder(tmp_path / "y", train=[*rows, ("four", "b")], validation=rows), "data.leaks=warn")
    assert changed.folder != first.folder
    assert make("data.max_length=9").folder != make().folder


@pytest.mark.parametrize("truncation", ["end", "middle", "start"])
def test_truncation_to_the_token(truncation):
    tokenizer = word_tokenizer(["a b c d e f g h i j"])
    (row,), lengths = encode_texts(["a b c d e f g h i j"], tokenizer, max_length=10, truncation=truncation)
    kept = {"end": "a b c d e f g h", "middle": "a b e f g h i j", "start": "c d e f g h i j"}[truncation]
    assert tokenizer.decode(row) == f"[CLS] {kept} [SEP]"
    assert lengths.tolist() == [12]
    if truncation == "end":
        assert row.tolist() == tokenizer("a b c d e f g h i j", truncation=True, max_length=10)["input_ids"]


@given(st.integers(0, 40), st.integers(1, 20), st.sampled_from(["end", "middle", "start"]))
def test_cut_keeps_as_much_as_fits(length, room, truncation):
    ids = np.arange(length)
    kept = cut(ids, room, truncation)
    assert len(kept) == min(length, room)
    assert kept.tolist() == sorted(kept.tolist())
    if length > room:
        assert (0 in kept) == (truncation == "end" or (truncation == "middle" and room >= 4))
        assert (length - 1 in kept) == (truncation != "end")


def test_special_tokens_and_room():
    tokenizer = word_tokenizer(["a b"])
    before, after = special_tokens_around(tokenizer)
    assert tokenizer.convert_ids_to_tokens([*before, *after]) == ["[CLS]", "[SEP]"]
    with pytest.raises(ValueError, match=r"data\.max_length=2 leaves no room beside 2 special tokens"):
        encode_texts(["a"], tokenizer, max_length=2, truncation="end")


def test_unknown_tokenizer_is_a_clear_error(make, tmp_path):
    with pytest.raises(ValueError, match=r"data\.tokenizer=.* cannot be loaded .*model=minilm"):
        make(f"data.tokenizer={tmp_path}", "data.max_length=33")


def test_windows_hold_the_planned_samples_in_micro_batches_of_like_length(make):
    from datamodules.sampling.step_batches import StepCollator, micro_batch_ids
    from datamodules.sampling.step_loader import StepSampler

    data = make()
    lengths = data.lengths[data.rows["train"]]
    epoch, indices = StepSampler(num_samples=110, global_batch_size=16, num_steps=4, seed=5).key(3)
    step = StepCollator(data.training_batch, 6, lengths)((epoch, indices))
    assert step.sample_ids.tolist() == indices.tolist()  # the sample log's order
    ids = micro_batch_ids(step)
    assert list(map(len, ids)) == [6, 6, 4]
    rows = [row for rows in ids for row in rows]
    assert sorted(rows) == sorted(indices.tolist())
    assert [lengths[row] for row in rows] == sorted(lengths[indices], reverse=True)
    for batch, rows in zip(step.micro_batches, ids, strict=True):
        assert batch["labels"].tolist() == data.labels("train")[rows].tolist()
        assert batch["attention_mask"].sum(1).tolist() == lengths[rows].tolist()


def test_what_it_says_of_itself(make):
    said = make("data.max_length=16").describe()
    assert list(said) == ["train", "validation", "test", "tokens"]
    assert said["train"] == "110 samples: negative 55 (50.0%), positive 55 (50.0%)"
    assert "longer than 16 and cut at the end" in said["tokens"]
