import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.corpus.token_store import INDEX_ROW, StoreError, TokenStore, write_index
from datamodules.corpus.token_windows import document_ranges, random_windows, read_windows, sequential_windows

CATEGORIES = ["bio", "math", "phys"]


@pytest.fixture(scope="module")
def make_store(tmp_path_factory):
    """Documents as (split, category, length); token ids tell the document they belong to."""

    def make(documents, vocab_size=10_000):
        rows = np.zeros(len(documents), dtype=INDEX_ROW)
        for name, column in zip(("split", "category", "length"), zip(*documents, strict=True), strict=True):
            rows[name] = column
        lengths = rows["length"].astype(np.int64)
        rows["document"] = np.arange(len(rows))
        rows["offset"] = np.cumsum(lengths) - lengths
        rows["num_bytes"] = 4 * lengths
        folder = tmp_path_factory.mktemp("windows")
        present = sorted({category for _, category, _ in documents})
        groups = write_index(folder / "index.bin", rows)
        tokens = np.repeat(np.arange(len(rows)), lengths).astype(np.uint16)
        index = np.fromfile(folder / "index.bin", dtype=INDEX_ROW)
        assert present == list(range(len(present)))
        return TokenStore(folder, tokens, index, CATEGORIES[: len(present)], groups, {"vocab_size": vocab_size})

    return make


def documents_strategy():
    lengths = st.integers(1, 30)
    one_each = [st.tuples(st.just(0), st.just(category), st.integers(8, 30)) for category in range(3)]
    more = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), lengths), max_size=30)
    return st.tuples(*one_each, more).map(lambda drawn: [*drawn[:3], *drawn[3]])


@given(documents_strategy(), st.integers(2, 8), st.integers(0, 99), st.sets(st.sampled_from(CATEGORIES), min_size=1))
def test_no_window_crosses_a_document_a_category_or_a_split(make_store, documents, length, seed, chosen):
    store = make_store(documents)
    ranges = document_ranges(store, "train", sorted(chosen), length=length)
    indices = np.arange(200)
    rows, starts = random_windows(ranges, indices // 50, indices, seed=seed)
    windows = read_windows(store, starts, length)
    assert (windows == windows[:, :1]).all()  # each token says which document it is of
    for document in np.unique(windows[:, 0]):
        split, category, size = documents[document]
        assert split == 0
        assert CATEGORIES[category] in chosen
        assert size >= length
    assert (store.index["document"][rows] == windows[:, 0]).all()
    in_document = starts - store.index["offset"][rows]
    assert (in_document >= 0).all()
    assert (in_document + length <= store.index["length"][rows]).all()


def test_documents_are_drawn_evenly_and_every_offset_is_reached(make_store):
    store = make_store([(0, 0, 20), (0, 0, 12), (0, 0, 5), (0, 1, 40), (1, 0, 30)])
    ranges = document_ranges(store, "train", ["bio", "math"], length=10)
    assert ranges.counts.tolist() == [2, 1]
    assert ranges.num_too_short.tolist() == [1, 0]
    indices = np.arange(30_000)
    rows, starts = random_windows(ranges, np.zeros_like(indices), indices, seed=5)
    counts = np.bincount(rows, minlength=len(store.index))
    assert np.flatnonzero(counts).tolist() == [0, 1, 3]
    assert abs(counts[[0, 1, 3]] - 10_000).max() < 5 * np.sqrt(30_000 * 2 / 9)  # five standard deviations
    for row, places in ((0, 11), (1, 3), (3, 31)):
        offsets = starts[rows == row] - store.index["offset"][row]
        assert np.unique(offsets).tolist() == list(range(places))
        expected = len(offsets) / places
        assert abs(np.bincount(offsets) - expected).max() < 5 * np.sqrt(expected)


def test_windows_are_a_pure_function_of_seed_epoch_and_index(make_store):
    store = make_store([(0, 0, 30), (0, 1, 25)])
    ranges = document_ranges(store, "train", ["bio", "math"], length=5)
    epochs, indices = np.repeat([0, 1], 50), np.tile(np.arange(50), 2)
    together = random_windows(ranges, epochs, indices, seed=1)[1]
    shuffled = np.random.default_rng(0).permutation(100)
    assert (
        random_windows(ranges, epochs[shuffled], indices[shuffled], seed=1)[1].tolist() == together[shuffled].tolist()
    )
    one = [random_windows(ranges, epochs[n : n + 1], indices[n : n + 1], seed=1)[1][0] for n in range(100)]
    assert one == together.tolist()
    assert together[:50].tolist() != together[50:].tolist()  # another epoch draws again
    assert random_windows(ranges, epochs, indices, seed=2)[1].tolist() != together.tolist()


def test_all_categories_equal_no_filter(make_store):
    """K = all draws what a store without categories would."""
    documents = [(0, number % 3, 10 + number) for number in range(12)]
    with_categories = make_store(documents)
    ranges = document_ranges(with_categories, "train", CATEGORIES, length=6)
    assert ranges.counts.sum() == 12
    assert ranges.rows(np.arange(12)).tolist() == list(range(12))
    assert np.sort(with_categories.index["document"]).tolist() == list(range(12))


@given(documents_strategy(), st.integers(2, 8))
def test_sequential_windows_tile_each_document_once(make_store, documents, length):
    store = make_store(documents)
    ranges = document_ranges(store, "train", CATEGORIES, length=length)
    windows = sequential_windows(ranges, max_per_category=None)
    covered = np.zeros(len(store.tokens), dtype=int)
    for start in windows.starts:
        covered[start : start + length] += 1
    assert covered.max() == 1
    for row in store.index[store.index["split"] == 0]:
        whole = row["length"] // length * length
        own = covered[row["offset"] : row["offset"] + row["length"]]
        assert own[:whole].all()
        assert not own[whole:].any()
    assert windows.num_bytes.tolist() == pytest.approx([4 * (length - 1)] * len(windows.starts))


def test_a_choice_of_evaluation_windows_is_spread_over_the_documents(make_store):
    store = make_store([(0, 0, length) for length in range(10, 110)])
    ranges = document_ranges(store, "train", ["bio"], length=10)
    few = sequential_windows(ranges, max_per_category=50)
    everything = sequential_windows(ranges, max_per_category=None)
    assert len(few.starts) == 50
    assert set(few.starts.tolist()) <= set(everything.starts.tolist())
    assert np.median(store.index["length"][few.rows]) == pytest.approx(
        np.median(store.index["length"][everything.rows]), abs=3
    )


def test_a_category_without_a_long_document_is_named(make_store):
    store = make_store([(0, 0, 30), (0, 1, 5), (1, 1, 50)])
    with pytest.raises(StoreError, match=r"category math: none of its 1 train documents has 10 tokens; lower data.seq"):
        document_ranges(store, "train", ["bio", "math"], length=10)
    with pytest.raises(StoreError, match="category bio: it has no validation document"):
        document_ranges(store, "validation", ["bio"], length=2)


def test_a_split_without_any_document_is_named_with_its_file(make_store):
    store = make_store([(0, 0, 30), (1, 0, 50)])
    with pytest.raises(StoreError) as error:
        document_ranges(store, "test", ["bio"], length=2)
    assert str(error.value) == (
        f"{store.folder}: no category has a test document; prepare it from a folder that holds test.jsonl or "
        "test.parquet"
    )


def test_a_token_outside_the_vocabulary_is_found_in_the_batch(make_store):
    store = make_store([(0, 0, 12), (0, 0, 12)], vocab_size=1)
    with pytest.raises(StoreError, match=r"tokens.bin: token 12 is 1, outside the vocabulary of 1"):
        read_windows(store, np.array([8]), 8)
