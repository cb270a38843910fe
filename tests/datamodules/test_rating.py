import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from datamodules.labelled.document_facts import evidence_spans
from datamodules.labelled.grouped_split import group_numbers, grouped_rows
from datamodules.labelled.store import LabelledRows
from datamodules.labelled.synthetic_documents import TELLING
from datamodules.rating import RatingDataModule
from datamodules.sampling.balanced_order import BalancedOrder
from datamodules.sampling.step_batches import StepCollator
from datamodules.sampling.step_loader import StepSampler
from tests.tiny.labelled_files import folder
from tests.tiny.tiny_runs import RATING_DATA

GROUPS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 14)), min_size=12, max_size=80)


@pytest.fixture
def make(composed):
    def build(*overrides):
        config = composed(*RATING_DATA, *overrides)
        settings = {key: value for key, value in config["data"].items() if key != "_target_"}
        RatingDataModule.check(settings)  # as the program does before it builds
        data = RatingDataModule(**settings)
        data.prepare_data()
        data.setup()
        return data

    return build


def documents(count, start=0, words=3):
    """Made-up documents, no two alike, every third of them Teen and every sixth Mature."""
    for number in range(start, start + count):
        label = "Mature" if number % 6 == 5 else "Teen" if number % 3 == 2 else "General"
        yield " ".join(f"w{number}x{word}" for word in range(words)), label


def test_exact_batch(make):
    data = make()
    rows = np.array([0, 3])
    batch = data.training_batch(np.zeros(2, dtype=np.int64), rows)
    expected = []
    for row in rows:
        first, *tokens, last = data.tokenizer(data.texts("train")[row])["input_ids"]
        assert data.tokenizer.convert_ids_to_tokens([first, last]) == ["[CLS]", "[SEP]"]
        starts = [start for start in range(0, len(tokens), 8) if start == 0 or start - 8 + 14 < len(tokens)]
        expected.append([[first, *tokens[start : start + 14], last] for start in starts][:4])
    flat = [chunk for chunks in expected for chunk in chunks]
    assert batch["chunk_counts"] == [len(chunks) for chunks in expected]
    assert max(batch["chunk_counts"]) > 1
    assert batch["attention_mask"].sum(1).tolist() == [len(chunk) for chunk in flat]
    for ids, mask, chunk in zip(batch["input_ids"], batch["attention_mask"], flat, strict=True):
        assert ids[mask == 1].tolist() == chunk
        assert (ids[mask == 0] == data.tokenizer.pad_token_id).all()
    assert batch["labels"].tolist() == [0, 1]
    assert batch["input_ids"].dtype == torch.int64


def test_texts_from_outside_are_cut_as_in_training(make):
    data = make("data.choose=spread")
    inside = data.training_batch(np.zeros(4, dtype=np.int64), np.arange(4))
    outside = data.text_batch(data.texts("train")[:4], data.tokenizer)
    assert outside.keys() == {"input_ids", "attention_mask", "chunk_counts", "chunk_lengths"}
    for key, values in outside.items():
        assert torch.equal(torch.as_tensor(values), torch.as_tensor(inside[key])), key


def test_no_chunk_spans_two_sections(make, tmp_path):
    """Sections of 20 and 5 tokens, chunks of 14 each 8: two and one; the same inside and from outside."""
    rows = [
        (f"{text}\n\n{' '.join(f'z{number}' for number in range(5))}", label) for text, label in documents(6, words=20)
    ]
    files = folder(tmp_path, train=rows, validation=documents(6, start=100))
    data = make(files, "data.sections=blank_lines")
    inside = data.training_batch(np.zeros(2, dtype=np.int64), np.arange(2))
    assert inside["chunk_counts"] == [3, 3]
    assert inside["chunk_sections"] == [0, 0, 1] * 2
    assert inside["chunk_lengths"] == [16, 14, 7] * 2
    outside = data.text_batch([text for text, _ in rows[:2]], data.tokenizer)
    for key, values in outside.items():
        assert torch.equal(torch.as_tensor(values), torch.as_tensor(inside[key])), key
    assert (
        "3 of 16 tokens in the median training document of 25 tokens, in 2 sections, 18 in all"
        in data.describe()["chunks"]
    )
    whole = make(files)
    assert whole.folder == data.folder  # sections are a setting of chunks
    assert whole.describe()["chunks"].endswith(
        "; blank lines part the median document into 2 sections (data.sections=blank_lines)"
    )
    assert "sections" not in make().describe()["chunks"]


def test_blank_and_short_texts_from_outside(make):
    data = make()
    batch = data.text_batch(["", "slaughter"], data.tokenizer)
    assert batch["chunk_counts"] == [1, 1]
    assert [data.tokenizer.decode(ids[mask == 1]) for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)] == ["[CLS] [SEP]", "[CLS] slaughter [SEP]"]  # fmt: skip # noqa: E501


def test_settings_of_chunks_need_no_other_preparation(make):
    assert make("data.max_chunks=2", "data.choose=last").folder == make().folder
    data = make("data.max_chunks=1", "data.choose=last")
    assert data.tokens_per_sample == data.lengths[data.rows["train"]].mean() <= 16
    assert "are longer than 1 chunks, of which data.choose=last keeps" in data.describe()["chunks"]


def test_how_much_is_read(make, tmp_path):
    """Documents of 40 and of 10 tokens: two chunks of 14 that overlap by 6 read 22 of 40."""
    rows = [*documents(5, words=40), *documents(5, start=60, words=10)]
    data = make(folder(tmp_path, train=rows, validation=documents(6, start=100)), "data.max_chunks=2")
    assert data.covered.tolist()[:10] == [22] * 5 + [10] * 5
    assert data.lengths.tolist()[:10] == [32] * 5 + [12] * 5
    assert "50% are longer than 2 chunks" in data.describe()["chunks"]
    assert "36% of all tokens are never read" in data.describe()["chunks"]  # 90 of 250


def test_what_is_known_of_documents(make):
    data = make()
    assert data.label_names == ["General", "Teen", "Mature"]
    assert data.ids("test")[:2] == ["test-00", "test-01"]
    for split in ("train", "test"):
        for index, name in enumerate(data.ids(split)):
            document = data.document(split, index)
            assert (document.id, document.text) == (name, data.texts(split)[index])
            label = data.label_names[document.label]
            if label == "General":
                assert document.evidence_spans == []
                continue
            ((start, end),) = document.evidence_spans
            assert TELLING[label] in document.text[start:end]
            assert TELLING[label] not in document.text[:start] + document.text[end:]
            assert document.text[start:end].count(".") == 1


def test_facts_of_files(make, tmp_path):
    rows = [
        ("one two three", "General", {"name": 7, "why": [[0, 3]]}),
        ("four five six", "Teen", {"name": "b", "why": []}),
        ("seven eight", "Mature", {"name": "c"}),
    ]
    source = folder(tmp_path, train=rows, validation=[("x y z", "Teen", {"name": "v"})])
    columns = ["data.id_column=name", "data.evidence_spans_column=why"]
    with pytest.raises(
        ValueError, match=r"train\.jsonl, line 3: there is no column 'why'.*data\.evidence_spans_column="
    ):
        make(source, *columns)
    rows[2][2]["why"] = None
    source = folder(tmp_path, train=rows, validation=[("x y z", "Teen", {"name": "v", "why": None})])
    data = make(source, *columns)
    assert data.ids("train") == ["7", "b", "c"]
    assert [data.document("train", index).evidence_spans for index in range(3)] == [[(0, 3)], [], None]
    assert make(source).ids("train") == ["train-0", "train-1", "train-2"]  # their columns have other names


@pytest.mark.parametrize("value", [[[3, 3]], [[0, 99]], [[-1, 2]], [[0]], "x", {"a": 1}, [[0.0, 1.0]], "[[0, 3]", 5])
def test_wrong_evidence_names_its_place(value):
    with pytest.raises(ValueError, match=r"^here: "):
        evidence_spans(value, "a text", "here")


def test_evidence_in_a_field_of_text():
    assert evidence_spans("[[0, 1], [2, 6]]", "a text", "here") == [(0, 1), (2, 6)]
    assert evidence_spans("", "a text", "here") is None


@given(GROUPS, st.floats(0.1, 0.6), st.integers(0, 3))
def test_whole_groups_are_held_out(samples, share, seed):
    labels, groups = (np.array(column) for column in zip(*samples, strict=True))
    if len(set(groups.tolist())) < 2:
        with pytest.raises(ValueError, match="every sample is of one group"):
            grouped_rows(labels, groups, 3, seed=seed)
        return
    rows = grouped_rows(labels, groups, round(share * len(labels)), seed=seed)
    chosen, rest = set(groups[rows].tolist()), set(np.delete(groups, rows).tolist())
    assert chosen
    assert rest
    assert not chosen & rest
    assert rows.tolist() == sorted(rows.tolist())


def test_held_out_groups_keep_the_shares_of_classes():
    draw = np.random.default_rng(0)
    groups = np.repeat(np.arange(100), 4)
    labels = draw.choice(3, size=400, p=[0.65, 0.25, 0.1])
    rows = grouped_rows(labels, groups, 80, seed=1)
    assert abs(len(rows) - 80) <= 4
    expected = np.bincount(labels) * 0.2
    assert np.abs(np.bincount(labels[rows]) - expected).max() <= 2
    assert not np.array_equal(rows, grouped_rows(labels, groups, 80, seed=2))


def test_a_document_without_a_group_is_one_of_its_own():
    assert group_numbers(["a", None, "a", None, "1"]).tolist() == [0, 1, 0, 2, 3]


def test_one_source_stays_in_one_split(make, tmp_path):
    rows = [(text, label, {"group": number // 4}) for number, (text, label) in enumerate(documents(60))]
    data = make(folder(tmp_path, train=rows), "data.validation_share=0.2", "data.test_share=0.2")
    seen = {split: {data.facts.groups[row] for row in data.rows[split]} for split in ("train", "validation", "test")}
    assert sum(map(len, seen.values())) == 15
    assert len(set.union(*seen.values())) == 15
    assert 8 <= len(data.rows["test"]) <= 16
    assert all(np.bincount(data.labels(split), minlength=3).min() > 0 for split in seen)
    again = make("data.validation_share=0.2", "data.test_share=0.2", "seed=5", f"data.path={tmp_path}")
    assert again.ids("test") == data.ids("test")


def test_groups_across_given_splits(make, tmp_path):
    def grouped(rows, *groups):
        return [(text, label, {"group": group}) for (text, label), group in zip(rows, groups, strict=True)]

    train = grouped(documents(6), "a", "a", "b", "c", "d", "e")
    source = folder(
        tmp_path, train=train, validation=grouped(documents(3, start=50), "a", "x", "y"),
        test=grouped(documents(3, start=80), "b", "y", "z"),
    )  # fmt: skip
    data = make(source)
    assert data.num_train_samples == 3
    said = "\n".join(data.notices)
    assert "3 training texts are of groups that are in another split too (training shares 1 with validation and 1 with test); they are left out" in said  # fmt: skip # noqa: E501
    assert "1 groups are in validation and test alike" in said
    assert make(source, "data.leaks=warn").num_train_samples == 6
    with pytest.raises(ValueError, match=r"3 training texts are of groups .*data\.leaks=drop"):
        make(source, "data.leaks=error")


def test_classes_that_are_missing(make, tmp_path):
    train = [row for row in documents(24) if row[1] != "Teen"]
    validation = [row for row in documents(12, start=50) if row[1] != "Mature"]
    said = "\n".join(make(folder(tmp_path, train=train, validation=validation)).notices)
    assert "no training sample is labelled 'Teen': it can only be guessed" in said
    assert "validation has no sample of Mature: its averages are over the other classes" in said
    one = [row for row in documents(24) if row[1] == "Teen"]
    with pytest.raises(ValueError, match="every sample is labelled 'Teen'; a classifier needs two classes"):
        make(folder(tmp_path, train=one, validation=validation))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"text": "a b", "label": "Matuer"}\n', r"train\.jsonl, line 2: label 'Matuer' .*did you mean Mature\?"),
        (b'{"text": "  ", "label": "Teen"}\n', r"train\.jsonl, line 2: text is empty"),
        (b'{"text": "f\xfcr", "label": "Teen"}\n', r"train\.jsonl, line 2: byte 12 \(0xfc\) is not UTF-8"),
        (b'{"text": "a", "label": "Teen", "evidence_spans": [[0, 2]]}\n', r"train\.jsonl, line 2: the evidence span"),
        (b'{"text": "a"}\n', r"train\.jsonl, line 2: there is no column 'label'"),
    ],
)
def test_bad_lines_are_named(make, tmp_path, content, expected):
    (tmp_path / "train.jsonl").write_bytes(b'{"text": "one word", "label": "General"}\n' + content)
    with pytest.raises(ValueError, match=expected):
        make(f"data.path={tmp_path}")


def test_a_document_of_one_word_and_a_very_long_one(make, tmp_path):
    rows = [*documents(12), ("alone", "Teen"), ("long " * 200_000, "Mature")]
    data = make(folder(tmp_path, train=rows, validation=documents(6, start=60)), "data.choose=spread")
    assert data.chunk_counts[12:14].tolist() == [1, 4]
    assert data.tokens.lengths[12:14].tolist() == [1, 200_000]
    assert data.training_batch(np.zeros(2, dtype=np.int64), np.array([12, 13]))["input_ids"].shape == (5, 16)


def test_settings_that_contradict_each_other(make):
    with pytest.raises(ValueError, match=r"data\.stride=15 is more than the 14 tokens .*at most data\.stride=14"):
        make("data.stride=15")
    with pytest.raises(ValueError, match=r"data\.ordered=true needs the order of the classes, data\.label_names="):
        make("data.label_names=null")
    assert make("data.label_names=null", "data.ordered=false").label_names == ["General", "Mature", "Teen"]
    with pytest.raises(ValueError, match=r"data\.path is missing: name a folder .*data\.dataset=synthetic"):
        make("data.dataset=null")


def test_micro_batches_hold_documents_of_like_length(make):
    data = make()
    lengths = data.lengths[data.rows["train"]]
    sampler = StepSampler(num_samples=data.num_train_samples, global_batch_size=16, num_steps=9, seed=5)
    epoch, indices = sampler.key(3)
    step = StepCollator(data.training_batch, 5, lengths)((epoch, indices))
    assert step.sample_ids.tolist() == indices.tolist()
    fed = [int(batch["attention_mask"].sum()) for batch in step.micro_batches]
    assert len(fed) == 4
    assert fed == sorted(fed, reverse=True)
    for batch in step.micro_batches:
        ids = batch["sample_ids"].numpy()
        counts = data.chunk_counts[data.rows["train"]][ids]
        assert batch["chunk_counts"] == counts.tolist()
        assert len(batch["input_ids"]) == counts.sum()
        assert int(batch["attention_mask"].sum()) == lengths[ids].sum()


@given(
    st.lists(st.integers(0, 3), min_size=2, max_size=40).filter(lambda labels: len(set(labels)) > 1), st.integers(0, 9)
)
def test_balanced_epochs(labels, seed):
    labels = np.array(labels)
    order = BalancedOrder(labels, seed=seed)
    epochs = [order(epoch, np.arange(len(labels))) for epoch in range(6)]
    for chosen in epochs:
        assert {key: int((labels[chosen] == key).sum()) for key in order.counts} == order.counts
    assert max(order.counts.values()) - min(order.counts.values()) <= 1
    assert sum(order.counts.values()) == len(labels)
    for key in order.counts:  # each sample of a class as often as the others, over epochs
        drawn = np.concatenate([chosen[labels[chosen] == key] for chosen in epochs])
        times = np.bincount(drawn, minlength=len(labels))[labels == key]
        assert times.max() - times.min() <= 1
    places = np.random.default_rng(seed).permutation(len(labels))
    assert order(3, places).tolist() == epochs[3][places].tolist()  # any place is looked up alone


def test_balanced_sampling_reaches_the_steps_and_the_class_counts(make):
    data = make("data.sampling=balanced")
    assert data.class_counts == [80, 80, 80]
    assert make().class_counts == [120, 80, 40]
    sampler = StepSampler(num_samples=240, global_batch_size=16, num_steps=30, seed=5, draw=data.draw)
    ids = np.concatenate([sampler.key(step)[1] for step in range(15)])
    assert np.bincount(data.labels("train")[ids]).tolist() == [80, 80, 80]
    assert sampler.key(20)[1].tolist() == list(sampler)[20][1].tolist()
    shares = [list(StepSampler(num_samples=240, global_batch_size=16, num_steps=30, seed=5, draw=data.draw, rank=rank, world_size=2))[20][1] for rank in (0, 1)]  # fmt: skip # noqa: E501
    assert sorted(np.concatenate(shares).tolist()) == sorted(sampler.key(20)[1].tolist())


def test_groups_do_not_touch_data_without_them(make):
    """Without groups the rows of imdb's hold-out stay what they were."""
    data = make()
    folder, facts = data.folder, {"label_names": data.label_names, "sizes": [["train", 318]]}
    options = {"validation_share": 0.1, "split_seed": 1, "max_train_samples": None, "max_evaluation_samples": None}
    rows = LabelledRows(folder, facts, leaks="warn", **options).rows
    assert len(rows["validation"]) == 32
    assert np.bincount(data.store.labels[rows["validation"]]).tolist() == [16, 11, 5]
