import json

import numpy as np
import pytest
import torch

from datamodules.location import CHARACTERS, LocationDataModule, city_text
from datamodules.storage.cache import MANIFEST
from datamodules.text.character_tokenizer import character_tokenizer


@pytest.fixture
def make(composed):
    def build(*overrides):
        config = composed("data.min_population=3000000", "data.num_validation=12", *overrides)
        options = {key: value for key, value in config["data"].items() if key != "_target_"}
        data = LocationDataModule(**options)
        data.prepare_data()
        data.setup()
        return data

    return build


def test_text_of_a_city():
    assert city_text("3625", 3612, 2554) == ("loc(c_3625)=", "3612,2554")
    assert city_text("0000", 7, 0) == ("loc(c_0000)=", "0007,0000")


def test_tokenizer_keeps_every_character(tmp_path):
    from transformers import AutoTokenizer

    character_tokenizer(CHARACTERS).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = "loc(c_3625)=3612,2554"
    assert [tokenizer.convert_ids_to_tokens(number) for number in tokenizer(text)["input_ids"]] == list(text)
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.padding_side == "left"
    assert tokenizer("?")["input_ids"] == [tokenizer.unk_token_id]
    assert len({tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}) == 3


def test_exact_labels_of_one_sentence(make):
    data = make("data.blend_cities=1")
    batch = data.batch("validation", np.array([0]))
    prompt, answer = city_text(str(data.cities["id"][0]), int(data.cities["x"][0]), int(data.cities["y"][0]))
    ids = [*data.tokenizer(prompt + answer)["input_ids"], data.tokenizer.eos_token_id]
    assert batch["input_ids"].tolist() == [ids]
    assert batch["labels"].tolist() == [[-100] * 12 + ids[12:]]
    assert batch["attention_mask"].tolist() == [[1] * 22]
    assert (batch["labels"] != -100).sum() == 10  # nine characters and the end token

    everything = make("data.blend_cities=1", "data.loss_mask=none").batch("validation", np.array([0]))
    assert everything["labels"].tolist() == [[-100, *ids[1:]]]
    assert everything["shared_prefix_length"] == 0  # the prefix is trained, so it is not skipped


def test_splits_are_disjoint_and_complete(make):
    data = make("data.num_test=7")
    rows = [data.rows[split] for split in ("validation", "test", "train")]
    assert [len(rows[0]), len(rows[1])] == [12, 7]
    assert np.concatenate(rows).tolist() == list(range(len(data.tokens)))
    assert make("data.num_test=7", "data.max_train_samples=5").num_train_samples == 5


def test_held_out_cities_do_not_depend_on_the_run_seed(make):
    first, second = make("seed=1"), make("seed=2")
    assert first.prompts("validation").equal(second.prompts("validation"))
    other = make("data.split_seed=7")
    assert not first.prompts("validation").equal(other.prompts("validation"))


def test_too_few_cities_is_a_clear_error(make):
    with pytest.raises(ValueError, match=r"data\.num_validation \+ data\.num_test = 12, but the filters leave"):
        make("data.countries=[DE]")


def test_blending_stays_inside_the_cell_and_is_a_pure_function(make):
    data = make("data.min_population=500000", "data.num_validation=128")
    epochs, indices = np.zeros(200, dtype=np.int64), np.arange(200)
    first = data.training_batch(epochs, indices)["input_ids"]
    assert first.equal(data.training_batch(epochs, indices)["input_ids"])
    # one at a time gives the same: no state, no dependence on the batch
    alone = torch.cat([data.training_batch(epochs[:1], indices[row : row + 1])["input_ids"] for row in range(20)])
    assert alone.equal(first[:20])
    assert not first.equal(data.training_batch(epochs + 1, indices)["input_ids"])
    for text in data.tokenizer.batch_decode(first):
        identifier, answer = text[6:10], text[12:21]
        assert answer[:2] + answer[5:7] == identifier  # the blend keeps the digits that the id promises


def test_blending_averages_training_cities_of_the_same_id(make):
    data = make("data.min_population=500000", "data.num_validation=128", "data.blend_cities=2")
    ids = data.cities["id"]
    counts = {value: int((ids[data.rows["train"]] == value).sum()) for value in set(ids.tolist())}
    lonely = [row for row in data.rows["train"] if counts[ids[row]] == 1][:30]
    indices = np.array(lonely) - data.rows["train"][0]
    batch = data.training_batch(np.zeros(len(indices), dtype=np.int64), indices)
    assert batch["input_ids"].tolist() == data.tokens[np.array(lonely)].tolist()  # nothing to blend with
    pair_id = next(value for value, count in counts.items() if count == 2)
    pair = [row for row in data.rows["train"] if ids[row] == pair_id]
    low, high = sorted(data.cities["x"][pair].tolist())
    seen = set()
    for epoch in range(40):
        tokens = data.training_batch(np.array([epoch]), np.array(pair[:1]) - data.rows["train"][0])["input_ids"]
        seen.add(int(data.tokenizer.decode(tokens[0, 12:16])))
    assert min(seen) >= low
    assert max(seen) <= high


def test_prepared_once_and_never_half(make, cache_root, monkeypatch):
    data = make("data.split_seed=99")
    stamp = (data.folder / "tokens.npy").stat().st_mtime_ns
    assert json.loads((data.folder / MANIFEST).read_text())["facts"]["num_cities"] == len(data.tokens)
    again = make("data.split_seed=99")
    assert again.folder == data.folder
    assert (again.folder / "tokens.npy").stat().st_mtime_ns == stamp
    assert make("data.split_seed=98").folder != data.folder

    def interrupted(self, folder):
        (folder / "tokens.npy").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(LocationDataModule, "_write", interrupted)
    before = sorted(cache_root.rglob("*"))
    with pytest.raises(KeyboardInterrupt):
        make("data.split_seed=97")
    assert sorted(cache_root.rglob("*")) == before
