import json

import pytest
from transformers import AutoTokenizer

from datamodules.corpus.prepared_store import find_store
from datamodules.corpus.token_store import open_store
from datamodules.text.learned_bpe import END, SMALLEST, learn_bpe, vocabulary_size

OPTIONS = {
    "hub_name": "none", "hub_config": None, "text_column": "text", "label_column": "label", "shared_store": None,
    "max_documents_per_split": None, "num_workers": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "size"), [("bpe:4096", 4096), ("bpe", None), ("EleutherAI/pythia-70m", None), ("./bpe:4096/", None)]
)
def test_a_name_says_how_many_tokens_are_learned(name, size):
    assert vocabulary_size(name) == size


@pytest.mark.parametrize("name", ["bpe:0", "bpe:256", "bpe:99999999"])
def test_sizes_that_cannot_be(name):
    with pytest.raises(ValueError, match=f"data.tokenizer={name}: choose 257"):
        vocabulary_size(name)


def test_every_character_goes_through_and_merges_are_the_most_frequent():
    tokenizer = learn_bpe(["aaab aaab aaab xyz"] * 3, size=SMALLEST + 2)
    assert len(tokenizer) == SMALLEST + 2
    assert tokenizer.convert_tokens_to_ids(END) == tokenizer.eos_token_id == 0
    assert tokenizer.tokenize("aaab") == ["aa", "ab"]
    text = "naïve \u2028 日本 \x00 🙂 \r\n\ttab"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_it_is_learned_from_training_documents_once_for_the_same_source(tmp_path):
    folder = tmp_path / "papers"
    folder.mkdir()
    for split, text in (("train", "learn learn learn "), ("validation", "zebra zebra zebra "), ("test", "zebra ")):
        line = json.dumps({"text": text * 40, "label": "cs.CL"})
        (folder / f"{split}.jsonl").write_text(f"{line}\n" * 20, encoding="utf-8")
    made = find_store(tmp_path / "cache", path=str(folder), tokenizer_name="bpe:300", **OPTIONS)
    tokenizer = AutoTokenizer.from_pretrained(made / "tokenizer")
    assert tokenizer.tokenize("learn") == ["learn"]
    assert tokenizer.tokenize("zebra") == list("zebra")  # what only validation and test hold is not learned
    assert open_store(made).facts["vocab_size"] == len(tokenizer) <= 300
    assert find_store(tmp_path / "cache", path=str(folder), tokenizer_name="bpe:300", **OPTIONS) == made
    assert find_store(tmp_path / "cache", path=str(folder), tokenizer_name="bpe:299", **OPTIONS) != made
