"""A run may be a stranger's: what its configuration names is neither imported nor called."""

import re
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import yaml

from lightning_apps import evaluate, explain, export, generate, predict, replay, report, upload
from lightning_apps.config.trusted_targets import check_targets, targets_of, trusted_names
from lightning_apps.diagnostics.crash_dump import read_crash_dump
from lightning_apps.errors import ConfigError
from tests.tiny.tiny_runs import IMDB

SOURCE = Path("run/config.yaml")
SHELL = {"_target_": "subprocess.getoutput", "cmd": "touch owned"}


@pytest.fixture
def config(composed):
    return composed(*IMDB)


@pytest.fixture
def own_package(tmp_path, monkeypatch):
    """A package of the user's; importing it leaves a file behind."""
    folder = tmp_path / "own_package"
    folder.mkdir()
    (folder / "__init__.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w').close()\n")
    (folder / "parts.py").write_text(
        "from os import system\n"
        "from datamodules.imdb import ImdbDataModule\n"
        "class OwnData(ImdbDataModule):\n    pass\n"
        "class NoData:\n    pass\n"
        "def own_net(*, hidden_size):\n    return hidden_size\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path / "imported"
    for name in ("own_package", "own_package.parts"):
        sys.modules.pop(name, None)


def put(config, key, value):
    """The configuration with a value at a dotted key."""
    *sections, name = key.split(".")
    node = changed = deepcopy(config)
    for section in sections:
        node = node.setdefault(section, {})
    node[name] = value
    return changed


def refused(config, trust=()):
    """What the one line says."""
    with pytest.raises(ConfigError) as error:
        check_targets(config, SOURCE, trust)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", ["location", "gsm8k", "arxiv", "imdb", "rating"])
def test_what_conf_names_is_allowed(composed, name):
    config = composed(f"experiment={name}", "logger=tensorboard")
    assert len(list(targets_of(config))) >= 7
    check_targets(config, SOURCE, ())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data", SHELL),
        ("model", SHELL),
        ("module", SHELL),
        ("optimizer", SHELL),
        ("scheduler", SHELL),
        ("callbacks.extra.evaluation", SHELL),
        ("callbacks.extra.new_one", SHELL),
        ("callbacks.early_stopping", SHELL),
        ("callbacks.guards", SHELL),
        ("logger.new_one", SHELL),
        ("trainer.plugins", [1, {"deep": [SHELL]}]),
        ("data.tokenizer", SHELL),
        ("data._target_", ["subprocess.getoutput"]),
        ("data._target_", "datamodules.gsm8k.Path"),  # what one of our modules imported
        ("data._target_", "lightning_apps.evaluate.os.system"),
        ("data._target_", "datamodules.imdb.ImdbDataModule.prepare_data"),
        ("model._target_", "lightning_apps.process.parent_death.die_with_parent"),
        ("model._target_", "datamodules.imdb.ImdbDataModule"),  # ours, but of another key
        ("logger.wandb._target_", "lightning.pytorch.loggers.CSVLogger.save"),
        ("verify_files", "shutil.rmtree"),
    ],
)
def test_what_conf_does_not_name_is_refused_with_the_key(config, key, value):
    said = refused(put(config, key, value))
    assert said.startswith(f"{SOURCE}: {key}"), said
    assert "allowed there: " in said


def test_the_line_names_key_target_allowed_and_remedy(config):
    assert refused(put(config, "data", SHELL)) == (
        "run/config.yaml: data._target_='subprocess.getoutput' would run code that is not this program's; allowed "
        "there: datamodules.arxiv.ArxivDataModule, datamodules.gsm8k.Gsm8kDataModule, datamodules.imdb.ImdbDataModule, "
        "datamodules.location.LocationDataModule, datamodules.rating.RatingDataModule; if that code is yours, or you "
        "trust who wrote it, add trust=[subprocess]"
    )


def test_nothing_is_imported_before_all_is_known_to_be_trusted(config, own_package):
    own = put(config, "data._target_", "own_package.parts.OwnData")
    assert "add trust=[own_package]" in refused(own)
    both = put(own, "scheduler._target_", "other_package.x")
    assert "add trust=[other_package]" in refused(both, ["own_package"])
    assert not own_package.exists()
    check_targets(own, SOURCE, ["own_package"])
    assert own_package.exists()


def test_a_single_name_may_stand_without_brackets(config, own_package):
    check_targets(put(config, "data._target_", "own_package.parts.OwnData"), SOURCE, "own_package.parts")
    assert trusted_names("own_package") == ["own_package"]
    assert trusted_names(None) == []
    for wrong in ("own-package", ["a", 3], ["x..y"], ["*"]):
        with pytest.raises(ConfigError, match=re.escape(f"trust={wrong!r}: give names of packages")):
            trusted_names(wrong)


@pytest.mark.parametrize(
    ("key", "path", "trust", "words"),
    [
        ("data", "own_package.parts.NoData", "own_package", "is not derived from datamodules.contract.ExperimentData"),
        ("data", "own_package.parts.own_net", "own_package", "is not derived from"),
        ("callbacks.extra.x", "own_package.parts.OwnData", "own_package", "lightning.pytorch.callbacks.Callback"),
        ("data", "own_package.parts.ImdbDataModule", "own_package", "does not cover"),
        ("model", "own_package.parts.system", "own_package", "does not cover"),
        ("model", "own_package.parts.number", "own_package", "does not cover"),
        ("model", "own_package_2.parts.net", "own_package", "add trust=[own_package_2]"),
        ("data", "subprocess.getoutput", "subprocess", "is not derived from"),
        ("callbacks.guards", "own_package.parts.own_net", "own_package", "leave the key out"),
    ],
)
def test_trust_covers_what_the_package_defines_and_the_key_needs(config, own_package, key, path, trust, words):
    assert words in refused(put(config, f"{key}._target_", path), [trust])


def test_a_trusted_function_may_build_the_network(config, own_package):
    check_targets(put(config, "model._target_", "own_package.parts.own_net"), SOURCE, ["own_package"])


COMMANDS = {
    "evaluate": (evaluate, []),
    "predict": (predict, ["input=texts.txt"]),
    "generate": (generate, ["prompt=x", "checkpoint=last"]),
    "explain": (explain, []),
    "replay": (replay, ["step=1"]),
    "export": (export, ["to=shared"]),
}
READERS = {"report": (report, []), "upload": (upload, ["to=s3://bucket/x"])}
"""What only reads and copies files; here there is neither a summary nor a server, which is said in one line."""


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_refuses_a_strangers_run_in_one_line(config, name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    directory = tmp_path / "strangers"
    (directory / "checkpoints").mkdir(parents=True)
    (directory / "checkpoints" / "last.ckpt").touch()
    (directory / "config.yaml").write_text(yaml.safe_dump(put(config, "data", SHELL)))
    command, more = COMMANDS[name]
    monkeypatch.setattr(sys, "argv", [name, f"run={directory}", *more])
    with pytest.raises(SystemExit) as end:
        command.main()
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert said.startswith(f"error: {directory}/config.yaml: data._target_='subprocess.getoutput' would run code")
    assert said.count("\n") == 1
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("name", READERS)
def test_what_builds_nothing_runs_nothing_of_a_strangers_run(config, name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    directory = tmp_path / "strangers"
    directory.mkdir()
    (directory / "config.yaml").write_text(yaml.safe_dump(put(config, "data", SHELL)))
    command, more = READERS[name]
    monkeypatch.setattr(sys, "argv", [name, f"run={directory}", *more])
    if name == "report":  # a page tells what there is
        command.main()
        assert "subprocess.getoutput" in (directory / "report.html").read_text()
    else:
        with pytest.raises(SystemExit) as end:
            command.main()
        assert end.value.code == 2
        assert "credentials" in capsys.readouterr().err
    assert not (tmp_path / "owned").exists()


def test_a_crash_dump_is_looked_at_in_the_same_way(config, tmp_path):
    (tmp_path / "crash_dump.json").write_text("{}")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(put(config, "callbacks.extra.x", SHELL)))
    torch.save(torch.zeros(1), tmp_path / "batch.pt")
    with pytest.raises(ConfigError, match=r"config\.yaml: callbacks\.extra\.x\._target_='subprocess\.getoutput'"):
        read_crash_dump(str(tmp_path))


def test_looking_at_a_strangers_configuration_imports_no_torch(config, tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(put(config, "data", SHELL)))
    code = (
        "import sys\n"
        "from lightning_apps.config.open_run import open_run\n"
        "from lightning_apps.errors import ConfigError\n"
        f"try: open_run({str(tmp_path)!r})\n"
        "except ConfigError: print('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
