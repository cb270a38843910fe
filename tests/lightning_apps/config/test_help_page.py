"""`--help` of every command: its own header, every key with its comment, Hydra's flags last, and no torch."""

import importlib
import re
import sys

import pytest

from lightning_apps.config.composition import CONF
from lightning_apps.config.help_page import comments

COMMANDS = {
    "train": "Train one experiment and export its best weights.",
    "prepare": "Prepare an experiment's data, train nothing.",
    "plan": "Look ahead: how long a run takes",
    "doctor": "Look at a run before it starts",
    "verify": None,
    "evaluate": "Evaluate a checkpoint of a run, with the metrics that training used.",
    "predict": "Classify texts with the best weights of a run",
    "generate": "Talk with the model of a run",
    "explain": "Which chunks, sentences and words carried a verdict",
    "replay": "Do one optimizer step of a run again",
    "report": "Gather a run, several side by side, a sweep, or all that lies under outputs/",
    "upload": "Upload a run to an S3-compatible object store",
    "export": "Share the best weights of a run",
}


def help_of(command, monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", [command, *words, "--help"])
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(f"lightning_apps.{command}").main()
    assert stopped.value.code == 0
    return capsys.readouterr().out


def test_every_command_has_a_header_of_its_own(monkeypatch, capsys):
    first = []
    for command, header in COMMANDS.items():
        page = help_of(command, monkeypatch, capsys)
        first.append(page.splitlines()[0])
        assert first[-1].startswith(header or "")
        assert f"python -m lightning_apps.{command} " in page
        assert page.index("Keys") < page.index("Flags (") < page.index("--cfg job")
        assert "$" not in re.sub(r"\$\{", "", page)  # no placeholder of Hydra's is left
    assert len(set(first)) == len(COMMANDS)


@pytest.mark.parametrize(
    "command", ["evaluate", "predict", "generate", "explain", "replay", "report", "upload", "export"]
)
def test_no_comment_is_lost(command, monkeypatch, capsys):
    page = help_of(command, monkeypatch, capsys)
    found = comments(CONF / "command" / f"{command}.yaml", ())
    assert found
    for place, comment in found.items():
        assert re.search(rf"^ +{place[-1]}:.*  # {re.escape(comment)}$", page, re.MULTILINE), place


def test_the_keys_are_those_of_the_words(monkeypatch, capsys):
    page = help_of("train", monkeypatch, capsys, "experiment=imdb", "trainer.clip_norm=3")
    assert "    clip_norm: 3.0  # largest global gradient norm; null = no clipping\n" in page
    assert "    label_names: null  # [negative, positive]: the classes in order; null = as the data name them\n" in page
    assert "      loss_spike: warn  # stop | skip | warn | off\n" in page  # of the file that callbacks/imdb builds on
    assert "  model: bert_tiny, distilbert, " in page


def test_mistakes_are_said_as_ever(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train", "experiment=imdbb", "--help"])
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module("lightning_apps.train").main()
    assert stopped.value.code == 2
    assert "experiment=imdbb: there is no such option (did you mean imdb?)" in capsys.readouterr().err
