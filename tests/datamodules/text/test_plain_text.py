import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from datamodules.text.chunking import tokenize_documents
from datamodules.text.plain_text import count_special_texts, describe_special_texts, special_texts, tokenize_plain
from datamodules.text.tokenized_texts import encode_texts, word_tokenizer
from tests.tiny.shared_files import shared


@pytest.fixture(scope="module")
def words():
    return word_tokenizer(["[ sep ] a b"])


def test_special_tokens_in_raw_text_are_characters(words):
    names = words.convert_ids_to_tokens(tokenize_plain(["a [SEP] b"], words)["input_ids"][0])
    assert names == ["a", "[", "sep", "]", "b"]
    (row,), lengths = encode_texts(["a [SEP] b"], words, max_length=16, truncation="end")
    assert words.convert_ids_to_tokens(row.tolist()) == ["[CLS]", *names, "[SEP]"]
    assert lengths.tolist() == [7]
    (document,) = tokenize_documents(["a [SEP] b"], words)
    assert words.convert_ids_to_tokens(document.ids.tolist()) == names
    assert document.spans.tolist() == [[0, 1], [2, 3], [3, 6], [6, 7], [8, 9]]
    # the tokenizer itself goes on as before
    assert words("[SEP]", add_special_tokens=False)["input_ids"] == [words.sep_token_id]


def test_a_tokenizer_that_knows_no_other_way_is_refused():
    vocabulary = {"<s>": 0, "a": 1, "<unk>": 2}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    pieces = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")
    assert tokenize_plain(["a <unk>"], pieces)["input_ids"] == [[1, 2]]
    with pytest.raises(ValueError, match=r"^a text holds '<s>' \(\.{3}a <s> a\.{3}\), which data\.tokenizer can"):
        tokenize_plain(["a", "a <s> a"], pieces)


def test_they_are_counted(words):
    found = count_special_texts(["[SEP] [SEP]", "[CLS][SEP]", "[sep]"], words)
    assert found == {"[CLS]": 1, "[SEP]": 2}
    assert describe_special_texts(found, "papers").startswith(
        "papers hold texts of special tokens ('[CLS]' in 1, '[SEP]' in 2); they are read as plain text"
    )
    assert describe_special_texts({}, "papers") == ""


@pytest.mark.parametrize("name", ["pythia", "qwen"])
def test_real_texts_without_them_are_what_they_were(name):
    tokenizer = AutoTokenizer.from_pretrained(shared("tokenizers", name))
    lines = shared("data", "arxiv", "validation.jsonl").read_text(encoding="utf-8").split("\n")[:6]
    texts = [json.loads(line)["text"] for line in lines if line]
    assert not count_special_texts(texts, tokenizer)
    before = tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert tokenize_plain(texts, tokenizer)["input_ids"] == before
    special = " b ".join(special_texts(tokenizer))
    (ids,) = tokenize_plain([special], tokenizer)["input_ids"]
    assert not set(ids) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(ids) == special
