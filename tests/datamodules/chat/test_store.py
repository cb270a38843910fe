import numpy as np

from datamodules.chat.store import ChatStore
from datamodules.text.jsonl import write_jsonl
from datamodules.text.tokenized_texts import save_ragged


def test_a_chat_of_several_answers_begins_with_its_first(tmp_path):
    chats = [{"messages": [], "gold": gold, "origin": f"train.jsonl, line {gold}"} for gold in ("1", "2")]
    save_ragged(tmp_path / "train.tokens", [np.arange(10, 19), np.arange(5)], np.int32)
    save_ragged(tmp_path / "train.answers", [np.array([2, 4, 6, 9]), np.array([3, 5])], np.int64)
    write_jsonl(tmp_path / "train.jsonl", chats)
    store = ChatStore(tmp_path, "train")
    assert (len(store), store.lengths.tolist(), store.first_answers.tolist()) == (2, [9, 5], [2, 3])
    assert (store.answers(0), store.answers(1)) == ([(2, 4), (6, 9)], [(3, 5)])
    assert (store.ids(1).tolist(), store.chat(1).gold) == ([0, 1, 2, 3, 4], "2")
