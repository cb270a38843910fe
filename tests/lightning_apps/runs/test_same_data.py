"""Data that changed after a run began: refused when it goes on, said when it is measured."""

import json
import sys

import pytest
import yaml

from lightning_apps import evaluate
from lightning_apps.errors import ConfigError
from lightning_apps.run_files.directory import read_summary
from lightning_apps.runs.build import build_datamodule
from lightning_apps.runs.experiment_run import run_experiment
from tests.tiny.labelled_files import folder
from tests.tiny.tiny_runs import ARXIV, IMDB, LOCATION, RATING, directory_of

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


def rows(prefix, count, names=("bad", "good")):
    return [(f"{prefix} {WORDS[n % 12]} {WORDS[n // 12]}", names[n % 2]) for n in range(count)]


@pytest.fixture
def trained(composed, tmp_path):
    """A run on files, the configuration that goes on with it, and the files' folder."""
    files = tmp_path / "files"
    files.mkdir()
    data = folder(files, train=rows("train", 20), validation=rows("valid", 8), test=rows("test", 6))
    config = composed(*IMDB, data, "data.leaks=warn", name="run")
    run_experiment(config)
    config["run"]["resume"] = "auto"
    summary = read_summary(directory_of(config))
    directory_of(config).summary.write_text(json.dumps({**summary, "status": "stopped"}))
    return config, files


def swapped(entries):
    return [(text, {"bad": "good", "good": "bad"}[label]) for text, label in entries]


def renamed(entries):
    return [(text, {"bad": "worse", "good": "good"}[label]) for text, label in entries]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"train": swapped(rows("train", 20))}, "other texts or labels among the 20 train samples"),
        (
            {"train": rows("train", 18)},  # fewer words to learn, so that texts elsewhere are read otherwise too
            "20 train samples then, 18 now; other texts or labels among the 8 validation samples; "
            "other texts or labels among the 6 test samples",
        ),
        ({"validation": swapped(rows("valid", 8))}, "other texts or labels among the 8 validation samples"),
        ({"test": swapped(rows("test", 6))}, "other texts or labels among the 6 test samples"),
        (
            {
                "train": renamed(rows("train", 20)),
                "validation": renamed(rows("valid", 8)),
                "test": renamed(rows("test", 6)),
            },
            "classes bad, good then, good, worse now; other texts or labels among the 20 train samples; "
            "other texts or labels among the 8 validation samples",
        ),
    ],
)
def test_a_run_does_not_go_on_with_other_data(trained, changed, words):
    config, files = trained
    folder(files, **changed)
    before = directory_of(config).metrics.read_bytes()
    with pytest.raises(ConfigError) as error:
        run_experiment(config)
    assert str(error.value) == (
        f"run.resume: the data are not those that {directory_of(config).path} was started with ({words}); "
        "restore them, or choose another run.name"
    )
    assert directory_of(config).metrics.read_bytes() == before


def test_a_run_goes_on_with_the_same_data(trained):
    config, files = trained
    (files / "train.jsonl").touch()
    assert run_experiment(config)["status"] == "completed"
    directory_of(config).data.unlink()  # a run that is older than data.json goes on too
    assert run_experiment(config)["status"] == "completed"


def evaluated(directory, monkeypatch, capsys):
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["evaluate", f"run={directory.path}", "split=test"])
    try:
        code = evaluate.main() and 0
    except SystemExit as end:
        code = end.code
    captured = capsys.readouterr()
    return code or 0, captured.out + captured.err


def accuracy(directory):
    found = json.loads((directory.evaluations / "test-best" / "metrics.json").read_text())
    return found["metrics"]["test/accuracy"]


@pytest.mark.numeric
def test_classes_in_another_order_are_matched_by_name(trained, monkeypatch, capsys):
    config, _ = trained
    directory = directory_of(config)
    code, said = evaluated(directory, monkeypatch, capsys)
    assert (code, "WARNING" in said) == (0, False), said
    first = accuracy(directory)
    # the run's own order is not that of the names, so that data without label_names give another
    kept = json.loads(directory.data.read_text())
    assert kept["label_names"] == ["bad", "good"]
    config["data"]["label_names"] = ["good", "bad"]
    directory.config.write_text(yaml.safe_dump(config))
    code, said = evaluated(directory, monkeypatch, capsys)
    assert code == 0, said
    assert "WARNING: the data are not those that" in said
    assert "classes bad, good then, good, bad now" in said
    assert "classes are matched by their names" in said
    assert accuracy(directory) == first


def test_changed_data_are_measured_and_said(trained, monkeypatch, capsys):
    config, files = trained
    directory = directory_of(config)
    folder(files, test=rows("test", 4))
    code, said = evaluated(directory, monkeypatch, capsys)
    assert code == 0, said
    assert f"WARNING: the data are not those that {directory.path} was trained with: 6 test samples then, 4 now" in said


def test_other_classes_are_refused(trained, monkeypatch, capsys):
    config, files = trained
    folder(files, **{name: renamed(rows(name, 8)) for name in ("train", "validation", "test")})
    code, said = evaluated(directory_of(config), monkeypatch, capsys)
    assert code == 2
    assert "knows the classes bad, good, the data hold good, worse; give it data with its classes" in said


@pytest.mark.parametrize(
    ("run", "other"),
    [
        (LOCATION, "data.split_seed=7"),
        (ARXIV, "data.category_seed=5"),
        (RATING, "data.max_train_samples=100"),
    ],
)
def test_every_experiment_tells_its_data_from_others(composed, run, other):
    first, again, changed = (
        build_datamodule(composed(*run, *more)).fingerprint() for more in ([], ["data.num_workers=0"], [other])
    )
    assert first == again != changed
    assert json.loads(json.dumps(first)) == first
