"""What a model card says, read as Markdown and as the hub reads its head."""

import json

import yaml

from lightning_apps.reports.model_card import model_card
from lightning_apps.reports.run_record import read_record
from tests.fakes.run_directory import CONFIG, EVIL, METRICS, PREDICTIONS, SUMMARY, lines, write


def card_of(folder, config=CONFIG, architecture="BertForSequenceClassification", **files):
    whole = {"summary": SUMMARY, "metrics": METRICS, "predictions": lines(PREDICTIONS)}
    write(folder, config=config, **(whole | files))
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    text = model_card(read_record(str(folder)))
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


def test_what_was_measured_how_it_was_made_and_how_it_loads(tmp_path):
    summary = {**SUMMARY, "metrics": {**SUMMARY["metrics"], "test/f1_macro": 0.625, "test/f1_macro_low": 0.5,
               "test/f1_macro_high": 0.75}}  # fmt: skip
    base = {**CONFIG, "model": {"pretrained": "owner/base"}, "data": {"max_length": 64, "path": "/data/reviews"}}
    head, body = card_of(tmp_path / "a", base, summary=summary, data={"samples": {"train": 1000}, "label_names": ["x"]})
    assert head["pipeline_tag"] == "text-classification"
    assert (head["base_model"], head["tags"]) == ("owner/base", ["lightning-apps", "imdb"])
    (model,) = head["model-index"]
    (result,) = model["results"]
    assert result["dataset"] == {"name": "reviews", "type": "imdb", "split": "test"}
    assert result["metrics"] == [{"type": "f1_macro", "value": 0.625, "name": "test/f1_macro"}]
    for line in (
        "| f1\\_macro | 0.5 | 0.75 (0.5 to 0.875) | 0.625 (0.5 to 0.75) |",
        'model = AutoModelForSequenceClassification.from_pretrained(".")',
        "<pre><code>python -m lightning_apps.train experiment=imdb run.resume=auto</code></pre>",
        "- data: 1,000 train",
        "- classes: x",
        "- Texts were read up to data.max\\_length=64 tokens; what is longer was cut or split.",
        "That of the base, owner/base: its own page states it.",
    ):
        assert line in body.splitlines()
    assert "There was no test" not in body


def test_without_a_test_the_validation_that_chose_is_told_as_such(tmp_path):
    head, body = card_of(tmp_path / "a", architecture="GPTNeoXForCausalLM")
    assert head["pipeline_tag"] == "text-generation"
    (result,) = head["model-index"][0]["results"]
    assert (result["dataset"]["split"], [entry["value"] for entry in result["metrics"]]) == ("validation", [0.75, 0.5])
    assert "- There was no test: no sample was measured that did not choose the weights." in body
    assert "Trained from scratch: the licence of the data applies." in body


def test_a_stopped_run_and_the_licence_beside_a_base(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# base\n")
    summary = {**SUMMARY, "status": "stopped", "reason": "SIGTERM", "optimizer_steps": 2}
    head, body = card_of(tmp_path / "a", {**CONFIG, "model": {"pretrained": str(base)}}, summary=summary)
    assert "base_model" not in head  # a folder here is no name on the hub
    assert "- The run is stopped: these are the best weights until then." in body
    assert "- It trained for 2 of 4 planned steps." in body
    assert f"apache-2.0, that of the base, {base}.".replace("_", "\\_") in body


def test_what_a_stranger_wrote_stays_text(tmp_path):
    evil = EVIL + "\n\n# x | ` * [a](javascript:b) \ud800"
    config = {**CONFIG, "run": {"name": evil}, "model": {"pretrained": evil, "_target_": evil}}
    summary = {**SUMMARY, "reason": evil, "command": f"python -m lightning_apps.train {EVIL}"}
    head, body = card_of(tmp_path / "a", config, architecture=evil, summary=summary, data={"label_names": [evil]})
    assert "<script" not in body
    assert "<img" not in body
    assert "](javascript" not in body.replace("\\](", "")
    assert not [line for line in body.splitlines() if line.startswith("# x")]
    assert head["tags"] == ["lightning-apps", "imdb"]
    assert "base_model" not in head
