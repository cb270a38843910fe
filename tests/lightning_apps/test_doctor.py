import json
import re
import sys

import pytest

from datamodules.contract import DataReport, Example
from datamodules.text.tokenized_texts import RaggedArray
from lightning_apps import doctor
from lightning_apps.runs.build import build_datamodule
from lightning_apps.runs.doctor.examination import Examination
from lightning_apps.runs.doctor.finding import Finding
from tests.tiny.tiny_runs import ARXIV, IMDB, LOCATION, RATING


@pytest.fixture
def arguments(small_gsm8k, cache_root):
    return [
        "doctor", "experiment=gsm8k", f"data.path={small_gsm8k}/data", f"model.pretrained={small_gsm8k}/model",
        "data.num_validation=6", "precision=fp32", f"run.cache_root={cache_root}",
    ]  # fmt: skip


def run(monkeypatch, arguments):
    monkeypatch.setattr(sys, "argv", arguments)
    doctor.main()


def test_trained_tokens_are_marked_and_every_claim_is_proved(arguments, monkeypatch, capsys):
    with pytest.raises(SystemExit):  # one of the made-up questions is in train and in test
        run(monkeypatch, arguments)
    out = capsys.readouterr().out
    examples = re.findall(r"--- [^\n]*train.jsonl, line \d+, (\d+) tokens\n(.*?)\n\n", out, flags=re.DOTALL)
    assert len(examples) == 3
    for tokens, text in examples:
        prompt, answer = re.fullmatch(
            r"(.*<\|im_start\|>assistant\n)⟦(.*#### \d+<\|im_end\|>)⟧", text, re.DOTALL
        ).groups()
        assert "⟦" not in prompt + answer
        specials = len(re.findall(r"<\|im_(?:start|end)\|>", prompt + answer))
        assert int(tokens) == len(re.sub(r"<\|im_(?:start|end)\|>", "", prompt + answer)) + specials
    red = re.findall(r"^  red +(.*)$", out, flags=re.MULTILINE)
    assert len(red) == 1
    assert red[0].startswith("no test sample is in train: 1 of 8 are, word for word")
    assert "green   every sample has tokens to learn: 0 of 68 samples without" in out
    assert sum(int(count) for count in re.findall(r"^ +\d+ to +\d+ .* (\d+)$", out, flags=re.MULTILINE)) == 54


def test_truncation_is_red_and_has_a_remedy(arguments, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, [*arguments, "data.max_length=60"])
    assert stopped.value.code == 1
    claim = r"red +no training sample is truncated: +\d+ training samples over data.max_length=60.*\n"
    assert re.search(claim + r" +remedy: data.max_length=100\n", capsys.readouterr().out)


def test_a_remedy_that_is_a_command_has_the_other_words_too():
    words = ["experiment=imdb", "data.path=my texts", "trainer.max_steps=9", "+trainer.plugins=null"]
    own = "trainer.overfit_batches=1 trainer.max_steps=50"
    command = "python -m lightning_apps.train"
    whole = f"{command} experiment=imdb 'data.path=my texts' +trainer.plugins=null {own}"
    assert doctor.with_words(f"{command} {own}", words) == whole
    assert doctor.with_words("data.max_length=100", words) == "data.max_length=100"


def test_colour_where_there_is_one():
    example = DataReport([Example("one", [("ask", False), ("say", True)])], [], [])
    found = Examination([Finding("red", "data", "claim", "0 of 1", "a=1")], example, {})
    assert "ask\x1b[1;32msay\x1b[0m" in doctor.lines(found, colour=True)
    assert "  \x1b[1;31mred   \x1b[0m  claim: 0 of 1" in doctor.lines(found, colour=True)
    plain = doctor.lines(found, colour=False)
    assert "ask\u27e6say\u27e7" in plain
    assert plain[-3:] == ["  red     claim: 0 of 1", "          remedy: a=1", ""]


def test_a_text_cannot_steer_the_terminal():
    example = DataReport([Example("one", [("a\x1b[2Jb\n\u0107\u202e", True)])], [], [])
    assert "\u27e6a\\x1b[2Jb\n\u0107\\u202e\u27e7" in doctor.lines(Examination([], example, {}), colour=False)


EXPERIMENTS = {
    "location": [*LOCATION, "model.hidden_size=32"],
    "imdb": IMDB,
    "rating": RATING,
    "arxiv": ARXIV,
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_is_looked_at_and_nothing_is_left(name, monkeypatch, capsys, cache_root, tmp_path):
    monkeypatch.chdir(tmp_path)
    words = [word for word in EXPERIMENTS[name] if not word.startswith("experiment=")]
    run(monkeypatch, ["doctor", f"experiment={name}", *words, f"run.cache_root={cache_root}", "format=json"])
    said = json.loads(capsys.readouterr().out)
    assert said["level"] != "red"
    assert said["experiment"] == name
    assert {finding["area"] for finding in said["findings"]} >= {"settings", "machine", "data", "model"}
    assert ("generation" in {finding["area"] for finding in said["findings"]}) == (name in ("location", "arxiv"))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["format=jsn"], "format=jsn (did you mean json?): allowed are text, json"),
        (["sweep.name=a"], "doctor looks at one run: experiment=..., without sweep=..."),
        (["scheduler.warmup_steps=900000"], "the warmup must be shorter than the run"),
        (["model.hiden_size=1"], "did you mean hidden_size?"),
    ],
)
def test_a_wrong_configuration_is_one_line(words, message, monkeypatch, capsys, cache_root):
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, ["doctor", "experiment=location", *LOCATION, f"run.cache_root={cache_root}", *words])
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


def claims(data):
    return {check.claim: check for check in data.prove(1).checks}


def broken(composed, small_gsm8k, **changes):
    data = build_datamodule(
        composed(
            "experiment=gsm8k", f"data.path={small_gsm8k}/data", f"model.pretrained={small_gsm8k}/model",
            "data.num_validation=6",
        )
    )  # fmt: skip
    for name, value in changes.items():
        setattr(data, name, value)
    return data


def test_each_claim_can_fail(composed, small_gsm8k):
    data = broken(composed, small_gsm8k)
    assert all(check.holds for check in claims(data).values())
    train = data.files["train"]
    whole = train.tokens
    row = int(data.rows["train"][3])

    def change(place, token):
        """Another token in one chat, and the other chats as they were."""
        train.tokens = RaggedArray(whole.values.copy(), whole.ends)
        train.tokens[row][place] = token

    # a stop token that is missing, as where a template ends its answers otherwise
    change(-1, 9)
    failed = [claim for claim, check in claims(data).items() if not check.holds]
    assert failed == ["every whole sample trains its stop token, and generation stops at it"]

    # a prompt that is not what the model will be asked with
    change(1, 9)
    assert [claim for claim, check in claims(data).items() if not check.holds] == [
        "training prompts = inference prompts"
    ]

    # a second BOS
    train.tokens = whole
    data.tokenizer.bos_token = "<|im_start|>"
    assert claims(data)["a single BOS"].holds
    change(1, data.tokenizer.bos_token_id)
    assert not claims(data)["a single BOS"].holds

    # a sample without a target
    train.tokens = whole
    train.spans = RaggedArray(train.spans.values.copy(), train.spans.ends)
    train.spans[row][:] = 0
    assert not claims(data)["every sample has tokens to learn"].holds
