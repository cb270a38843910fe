"""Whole runs of the imdb experiment, seconds long, and what follows from them."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lightning_apps import evaluate as evaluate_command
from lightning_apps import predict as predict_command
from lightning_apps.errors import ConfigError
from lightning_apps.experiments.classification_metrics import classification_metrics
from lightning_apps.generate import load_model
from lightning_apps.predict import Classifier, read_texts
from lightning_apps.run_files.directory import RunDirectory
from lightning_apps.run_files.metrics_csv import read_metrics
from lightning_apps.runs.experiment_run import run_experiment
from tests.tiny.labelled_files import folder
from tests.tiny.tiny_runs import IMDB

pytestmark = pytest.mark.numeric

RUN = [*IMDB, "data.device_batch_size=6", "optimizer.lr=0.01", "trainer.max_steps=24", "trainer.evaluate_every=6"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache_root):
    from hydra import compose, initialize_config_dir

    from lightning_apps.config.composition import CONF, plain

    root = tmp_path_factory.mktemp("outputs")
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        cfg = compose(
            "config",
            overrides=[*RUN, "precision=fp32", f"run.output_root={root}", f"run.cache_root={cache_root}", "run.name=a"],
        )
    config = plain(cfg)
    return RunDirectory(root / "imdb" / "a"), config, run_experiment(config)


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_metrics_of_every_evaluation(finished):
    directory, _, summary = finished
    rows = [row for row in read_metrics(directory.metrics) if "val/loss" in row]
    assert [row["step"] for row in rows] == [6, 12, 18, 24]
    for row in rows:
        assert row["val/accuracy_low"] <= row["val/accuracy"] <= row["val/accuracy_high"]
        assert row["val/f1_macro_low"] <= row["val/f1_macro"] <= row["val/f1_macro_high"]
        assert {"val/auroc", "val/calibration_error", "val/f1/negative", "val/recall/positive"} <= row.keys()
    assert summary["best"]["metric"] == "val/f1_macro"
    assert {"test/accuracy", "test/f1_macro", "test/loss"} <= summary["metrics"].keys()
    assert summary["target_tokens_seen"] == sum([16] * 21) + 3 * 14  # 110 texts: every seventh step holds 14


def test_predictions_give_the_metrics(finished, monkeypatch, capsys):
    """best.ckpt evaluated again: the metrics that were logged for it, and predictions that bear them out."""
    directory, _, summary = finished
    monkeypatch.setattr(sys, "argv", ["evaluate", f"run={directory.path}", "split=validation", "checkpoint=best"])
    evaluate_command.main()
    found = json.loads((directory.evaluations / "validation-best" / "metrics.json").read_text())["metrics"]
    assert repr(found) == repr(dict(sorted(summary["best"]["metrics"].items())))  # repr: NaN is equal to NaN here
    table = (directory.evaluations / "validation-best" / "per_class.csv").read_text().splitlines()
    assert table[0] == "split,class,f1,precision,recall"
    assert table[1] == ",".join(
        ["val", "negative", *(repr(found[f"val/{key}/negative"]) for key in ("f1", "precision", "recall"))]
    )
    printed = capsys.readouterr().out
    assert printed.index("val/loss ") < printed.index("val/accuracy ") < printed.index("val/f1_macro ")
    assert "negative  " not in printed
    rows = rows_of(directory.evaluations / "validation-best" / "predictions.jsonl")
    assert len(rows) == 24
    names = ["negative", "positive"]
    again = classification_metrics(
        torch.tensor([row["probabilities"] for row in rows], dtype=torch.float64),
        torch.tensor([names.index(row["target"]) for row in rows]),
        names,
    )
    assert again["accuracy"] == pytest.approx(found["val/accuracy"])
    assert again["auroc"] == pytest.approx(found["val/auroc"], abs=0.02)  # rounded probabilities tie here and there
    for row in rows:
        assert row["output"] == names[row["probabilities"].index(max(row["probabilities"]))]
        assert row["score"] == row["probabilities"][names.index(row["target"])]
        assert row["confidence"] == max(row["probabilities"])


def test_the_best_is_said_to_be_the_same(finished):
    directory, _, _ = finished
    log = directory.log.read_text()
    assert "evaluated again: val/f1_macro is the same" in log
    assert "WARNING" not in log
    assert log.count("baseline on validation: TF-IDF + LR") == 1
    assert re.search(r"; TF-IDF \+ LR 0\.\d{3}, the model [+-]\d\.\d{3} \(paired 95 % [+-]\S+ to [+-]\S+\)\n", log)
    baselines = json.loads(directory.baselines.read_text())
    assert baselines["validation"]["majority class"]["accuracy"] == 0.5
    assert baselines["validation"]["TF-IDF + LR"]["accuracy"] > 0.7
    with Image.open(directory.picture) as picture:
        assert picture.size == (1600, 1160)


def test_the_exported_model_works_with_transformers_alone(finished):
    directory, _, _ = finished
    net = AutoModelForSequenceClassification.from_pretrained(directory.model)
    tokenizer = AutoTokenizer.from_pretrained(directory.model)
    assert net.config.id2label == {0: "negative", 1: "positive"}
    for row in rows_of(directory.predictions)[:4]:  # those of the test split, the last evaluation
        encoded = tokenizer(row["input"], return_tensors="pt", return_token_type_ids=False)
        probabilities = torch.softmax(net(**encoded).logits[0], -1).tolist()
        assert probabilities == pytest.approx(row["probabilities"], abs=1e-5)


def predicted(monkeypatch, *arguments, stdin=None):
    monkeypatch.setattr(sys, "argv", ["predict", *arguments])
    if stdin is not None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
    predict_command.main()


def test_predict_keeps_the_order_and_gives_the_same_probabilities(finished, monkeypatch, tmp_path, capsys):
    directory, _, _ = finished
    told = rows_of(directory.predictions)
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"id": f"x{n}", "text": row["input"]}) + "\n\n" for n, row in enumerate(told)))
    predicted(
        monkeypatch, f"run={directory.path}", f"input={source}", f"output={out}", "batch_size=2", "accelerator=cpu"
    )
    rows = rows_of(out)
    assert [row["id"] for row in rows] == [f"x{n}" for n in range(len(told))]
    assert [row["line"] for row in rows] == [2 * n + 1 for n in range(len(told))]
    for row, before in zip(rows, told, strict=True):
        assert row["label"] == before["output"]
        assert list(row["probabilities"].values()) == pytest.approx(before["probabilities"], abs=1e-5)
        assert row["probability"] == row["probabilities"][row["label"]]
    capsys.readouterr()
    predicted(monkeypatch, f"run={directory.path}", "input=-", stdin=b"a brilliant film\r\n\r\ndull dull dull\n")
    out, _ = capsys.readouterr()
    assert [json.loads(line)["line"] for line in out.splitlines()] == [1, 3]


def test_predict_may_write_what_it_reads(finished, monkeypatch, tmp_path, capsys):
    """The result takes the file's place when it is whole; what goes wrong on the way leaves the earlier one."""
    run, file = f"run={finished[0].path}", tmp_path / "reviews.jsonl"
    file.write_text('{"id": 1, "text": "a brilliant film"}\n{"id": 2, "text": "dull dull"}\n')
    file.chmod(0o640)
    predicted(monkeypatch, run, f"input={file}", f"output={file}", "text_column=text")
    rows = rows_of(file)
    assert [(row["line"], row["id"]) for row in rows] == [(1, 1), (2, 2)]
    assert file.stat().st_mode & 0o777 == 0o640
    before = file.read_bytes()
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\n' * 6 + "not json\n")
    for output, expected in ((file, "bad.jsonl, line 7: not JSON"), (tmp_path, "it is a folder")):
        with pytest.raises(SystemExit) as stopped:
            predicted(monkeypatch, run, f"input={tmp_path / 'bad.jsonl'}", f"output={output}", "batch_size=1")
        assert stopped.value.code == 2
        assert expected in capsys.readouterr().err
    assert file.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.jsonl", "reviews.jsonl"]


def test_predict_reads_tables_as_training_does(finished, monkeypatch, tmp_path, capsys):
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = ["a brilliant\nfilm, indeed", "dull"]
    table = pa.table({"id": ["a", "b"], "text": texts})
    pq.write_table(table, tmp_path / "in.parquet")
    (tmp_path / "in.csv").write_text('id,text\r\na,"a brilliant\nfilm, indeed"\r\nb,dull\r\n')
    (tmp_path / "in.json").write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    (tmp_path / "in.jsonl").write_bytes((tmp_path / "in.json").read_bytes())
    found = {}
    for ending in ("csv", "json", "jsonl", "parquet"):
        predicted(monkeypatch, f"run={finished[0].path}", f"input={tmp_path / f'in.{ending}'}")
        found[ending] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row.pop("line") for row in found["csv"]] == [2, 4]
    assert [row["id"] for row in found["csv"]] == ["a", "b"]
    assert [row.pop("line") for row in found["json"]] == [1, 2]
    assert [row.pop("line") for row in found["jsonl"] + found["parquet"]] == [1, 2, 1, 2]
    assert found["csv"] == found["json"] == found["jsonl"] == found["parquet"]
    for arguments, expected in (
        (["input=-", "format=csv"], "format=csv: standard input is read as jsonl or text; name a file, input=FILE"),
        ([f"input={tmp_path / 'in.csv'}", "text_column=texts"], "in.csv, line 2: there is no field 'texts' (did you"),
    ):
        with pytest.raises(SystemExit):
            predicted(monkeypatch, f"run={finished[0].path}", *arguments)
        assert expected in capsys.readouterr().err


def test_predict_cuts_what_the_model_has_no_positions_for(finished, monkeypatch, tmp_path, capsys):
    directory, config, _ = finished
    classifier = Classifier(directory, {**config, "data": {**config["data"], "max_length": 500}}, "cpu")
    long = "dull " * 300
    cut, whole = classifier.probabilities([long, "dull"])[0], classifier.probabilities(["dull " * 62])[0]
    assert cut == pytest.approx(whole, abs=1e-6)
    assert (classifier.num_cut, classifier.num_texts, classifier.limit) == (1, 3, "64 tokens")
    predicted(monkeypatch, f"run={directory.path}", "input=-", stdin=f"{long}\nfine\n".encode())
    limit = min(config["data"]["max_length"], 64)
    err = capsys.readouterr().err
    assert err.endswith(f"1 of 2 texts are longer than {limit} tokens and were cut as in training\n")


def test_predict_streams(finished):
    """The first answers come before the input has ended, and no more of it is read than they need."""
    directory, config, _ = finished
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield b"one more text\n"

    classifier = Classifier(directory, config, "cpu")
    answers = classifier.answers(read_texts(endless(), "stdin", kind="text", text_column="text"), 4)
    assert [next(answers)["line"] for _ in range(40)] == list(range(1, 41))
    assert len(taken) == 64


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            b'{"text": "fine"}\n{"txt": "x"}\n',
            ["in.jsonl, line 2", "no field 'text'", "did you mean txt?", "text_column="],
        ),
        (b'{"text": "fine"}\nnot json\n', ["in.jsonl, line 2", "not JSON"]),
        (b'{"text": "f\xfcr"}\n', ["in.jsonl, line 1", "byte 12 (0xfc)"]),
        (b'{"text": 5}\n', ["in.jsonl, line 1", "text is not a text"]),
    ],
)
def test_predict_names_bad_lines(finished, content, expected, monkeypatch, tmp_path, capsys):
    (tmp_path / "in.jsonl").write_bytes(content)
    with pytest.raises(SystemExit) as stopped:
        predicted(monkeypatch, f"run={finished[0].path}", f"input={tmp_path / 'in.jsonl'}", "batch_size=1")
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    for part in expected:
        assert part in err


def test_predict_refuses_what_is_no_finished_classification_run(finished, monkeypatch, tmp_path, capsys):
    directory, _, _ = finished

    def refused(*arguments):
        with pytest.raises(SystemExit) as stopped:
            predicted(monkeypatch, *arguments)
        assert stopped.value.code == 2
        return capsys.readouterr().err

    assert "there is no such file" in refused(f"run={directory.path}", "input=nowhere.jsonl")
    assert "no run is there" in refused(f"run={tmp_path}", "input=-")
    assert "(did you mean jsonl?)" in refused(f"run={directory.path}", "input=-", "format=json")
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "config.yaml").write_bytes(directory.config.read_bytes())
    assert "has no model/ yet: it was not finished" in refused(f"run={tmp_path / 'unfinished'}", "input=-")


def test_micro_batches_do_not_change_the_loss(composed):
    def losses(size):
        no_dropout = ["model.hidden_dropout=0.0", "model.classifier_dropout=0.0"]
        config = composed(
            *RUN,
            *no_dropout,
            "callbacks=default",
            "trainer.max_steps=4",
            f"data.device_batch_size={size}",
            name=f"by{size}",
        )
        run_experiment(config)
        directory = RunDirectory(Path(config["run"]["output_root"]) / "imdb" / f"by{size}")
        return [row["train/loss"] for row in read_metrics(directory.metrics)]

    whole = losses("null")
    assert losses(5) == pytest.approx(whole, rel=1e-5)


def test_several_labels_end_to_end(composed, tmp_path):
    def labels(number):
        return ["sun"] * (number % 2) + ["rain"] * (number % 3 == 0)

    rows = [(" ".join([f"text {number}", *labels(number)]), labels(number)) for number in range(30)]
    source = folder(tmp_path, train=rows, validation=rows[:8])
    short = ["trainer.max_steps=4", "trainer.evaluate_every=2"]
    config = composed(*RUN, source, *short, "data.multi_label=true", "data.leaks=warn", name="many")
    summary = run_experiment(config)
    directory = RunDirectory(Path(config["run"]["output_root"]) / "imdb" / "many")
    assert {"val/accuracy", "val/accuracy_per_label", "val/f1/rain"} <= summary["metrics"].keys()
    (answer,) = Classifier(directory, config, "cpu").answers(read_texts([b"sun"], "x", kind="text", text_column=""), 4)
    assert answer["labels"] == [name for name, value in answer["probabilities"].items() if value >= 0.5]
    with Image.open(directory.picture) as picture:
        assert picture.format == "PNG"


def test_location_runs_do_not_predict(composed):
    with pytest.raises(ConfigError, match="experiment location does not classify texts"):
        Classifier(RunDirectory(Path("x")), composed(), "cpu")


@pytest.mark.slow
def test_verify_proves_its_claims(tmp_path, cache_root):
    command = [sys.executable, "-m", "lightning_apps.verify", "experiment=imdb", f"run.output_root={tmp_path}"]
    done = subprocess.run([*command, f"run.cache_root={cache_root}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    table = json.loads((tmp_path / "imdb" / "verify.json").read_text())
    assert sum(row["outcome"] == "proved" for row in table) >= 9


def test_a_classifier_generates_no_text(finished):
    directory, settings, _ = finished
    with pytest.raises(ConfigError, match="its model generates no text; predict says which label a text has"):
        load_model(directory, settings, "best")
