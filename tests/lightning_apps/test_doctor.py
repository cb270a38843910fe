import re
import sys

import pytest

from datamodules.contract import Check, DataReport, Example
from datamodules.text.tokenized_texts import RaggedArray
from lightning_apps import doctor
from lightning_apps.runs.build import build_datamodule


@pytest.fixture
def arguments(small_gsm8k, cache_root):
    return [
        "doctor", "experiment=gsm8k", f"data.path={small_gsm8k}/data", f"model.pretrained={small_gsm8k}/model",
        "data.num_validation=6", f"run.cache_root={cache_root}",
    ]  # fmt: skip


def run(monkeypatch, arguments):
    monkeypatch.setattr(sys, "argv", arguments)
    doctor.main()


def test_trained_tokens_are_marked_and_every_claim_is_proved(arguments, monkeypatch, capsys):
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
    claims = re.findall(r"^(ok|FAILED) +(\S.*?)  ", out, flags=re.MULTILINE)
    assert len(claims) == 6
    assert {outcome for outcome, _ in claims} == {"ok"}
    assert sum(int(count) for count in re.findall(r"^ +\d+ to +\d+ .* (\d+)$", out, flags=re.MULTILINE)) == 54


def test_truncation_is_a_failed_claim(arguments, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, [*arguments, "data.max_length=60"])
    assert stopped.value.code == 1
    assert re.search(
        r"FAILED +no training sample is truncated +\d+ training samples over data.max_length=60",
        capsys.readouterr().out,
    )


def test_colour_where_there_is_one():
    report = DataReport([Example("one", [("ask", False), ("say", True)])], [Check("claim", False, "0 of 1")], [])
    assert "ask\x1b[1;32msay\x1b[0m" in doctor.report_lines(report, colour=True)
    plain = doctor.report_lines(report, colour=False)
    assert "ask⟦say⟧" in plain
    assert plain[-1] == "FAILED  claim  0 of 1"


def test_experiments_without_proofs_are_prepared_and_opened(monkeypatch, capsys, cache_root):
    run(monkeypatch, ["doctor", "experiment=location", "data.num_validation=9", f"run.cache_root={cache_root}"])
    assert "experiment location proves nothing more" in capsys.readouterr().out


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
