"""Reviews with characters at which str.splitlines splits, through the whole chain of a run."""

import json
import sys

from PIL import Image

from datamodules.text.jsonl import read_rows, write_jsonl
from lightning_apps import evaluate as evaluate_command
from lightning_apps.run_files.directory import RunDirectory
from lightning_apps.runs.experiment_run import run_experiment

SEPARATORS = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029\0\r\ud800"
RUN = ["experiment=imdb", "model=bert_tiny", "model.hidden_size=16", "model.intermediate_size=16",
       "model.num_hidden_layers=1", "data.max_length=64", "hardware=cpu", "trainer.max_epochs=null",
       "trainer.max_steps=4", "trainer.evaluate_every=2"]  # fmt: skip


def test_every_review_comes_back_from_predictions(composed, tmp_path, monkeypatch, capsys):
    reviews = [
        {"text": f"a {word} film{SEPARATORS[number % 11]}number {number}{SEPARATORS}end", "label": label}
        for number in range(22)
        for word, label in (("good", "positive"), ("bad", "negative"))
    ]
    for name, rows in {"train": reviews, "validation": reviews[:12], "test": reviews[12:30]}.items():
        write_jsonl(tmp_path / "data" / f"{name}.jsonl", rows)
    summary = run_experiment(composed(*RUN, f"data.path={tmp_path / 'data'}", name="a"))
    assert summary["status"] == "completed"
    directory = RunDirectory(tmp_path / "outputs" / "imdb" / "a")
    found = read_rows(directory.predictions)  # of the test, the last evaluation of a run
    assert [(row["input"], row["target"]) for row in found] == [(row["text"], row["label"]) for row in reviews[12:30]]
    assert Image.open(directory.picture).size[0] >= 1600
    assert "failed (" not in directory.log.read_text()

    monkeypatch.setattr(sys, "argv", ["evaluate", f"run={directory.path}", "split=validation", "compare=base"])
    evaluate_command.main()
    rows = read_rows(directory.evaluations / "validation-best" / "predictions.jsonl")
    assert [row["input"] for row in rows] == [row["text"] for row in reviews[:12]]
    (compared,) = json.loads((directory.evaluations / "validation-best" / "comparison.json").read_text())
    assert (compared["score"], compared["num_questions"]) == ("score", 12)
    assert "questions higher" in capsys.readouterr().out
