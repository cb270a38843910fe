"""Options outside conf/: `--config-dir` and `hydra.searchpath` reach hints, checks, completion and child processes."""

import json
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from lightning_apps import doctor, plan, prepare, train, verify
from lightning_apps.config.composition import CONF
from lightning_apps.config.search_path import group_options, is_group, search_path, search_path_override
from tests.tiny.tiny_runs import LOCATION

TOWNS = """# @package _global_
defaults:
  - location
  - _self_

experiment: big_towns
seed: 7

data:
  min_population: 4000000
  num_validation: 12
  global_batch_size: 16
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A folder of one's own beside the current one, with an experiment that is a delta over location."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "it's mine"
    (folder / "experiment").mkdir(parents=True)
    (folder / "experiment" / "towns.yaml").write_text(TOWNS)
    return folder


@pytest.fixture
def call(monkeypatch, capsys):
    """Run a command as from the command line; returns exit code, stdout and stderr."""

    def run(command, *words):
        monkeypatch.setattr(sys, "argv", ["command", *words])
        code = 0
        try:
            command.main()
        except SystemExit as stopped:
            code = stopped.code
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.mark.parametrize(
    "words",
    [
        ["--config-dir", "mine"],
        ["seed=1", "--config-dir=mine"],
        ["-cd", "mine"],
        ["-c", "job", "--config-dir", "mine"],
        ["--multirun", "hydra.searchpath=[mine]"],
        ["hydra.searchpath=['file://mine']"],
    ],
)
def test_every_way_to_name_a_folder_gives_its_absolute_url(words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert search_path(words) == [f"file://{tmp_path}/mine"]


@pytest.mark.parametrize(
    "words", [[], ["-c", "job"], ["--config-name", "x"], ["--config-dir"], ["hydra.searchpath=[", "data.path=mine"]]
)
def test_nothing_is_added_where_nothing_is_named(words):
    assert search_path(words) == []
    assert search_path_override(words) == []


def test_folder_first_then_packages_as_hydra_searches():
    words = ["hydra.searchpath=[pkg://one.conf,/two]", "--config-dir", "/three"]
    assert search_path(words) == ["file:///three", "pkg://one.conf", "file:///two"]
    (override,) = search_path_override(words)
    parsed = OverridesParser.create().parse_override(override)
    assert parsed.get_key_element() == "hydra.searchpath"
    assert parsed.value() == search_path(words)


def test_options_of_folders_and_packages(tmp_path, monkeypatch):
    for folder in ("a/experiment", "package/conf/experiment", "package/conf/flavour"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "a/experiment/one.yaml").touch()
    (tmp_path / "a/experiment/notes.txt").touch()
    (tmp_path / "package/conf/experiment/two.yaml").touch()
    monkeypatch.syspath_prepend(tmp_path)
    ours = ["arxiv", "gsm8k", "imdb", "location", "rating"]
    assert group_options(CONF, "experiment", []) == ours
    words = ["--config-dir", str(tmp_path / "a"), "hydra.searchpath=[pkg://package.conf,pkg://nobody.conf]"]
    assert group_options(CONF, "experiment", words) == sorted([*ours, "one", "two"])
    assert is_group(CONF, "flavour", words)
    assert not is_group(CONF, "flavour", words[:2])


@pytest.mark.parametrize("command", [train, prepare, doctor, plan, verify])
def test_hints_know_the_experiments_of_the_folder(command, call, mine):
    code, _, err = call(command, "--config-dir", mine.name, "experiment=twns")
    assert code == 2
    assert err == (
        "error: experiment=twns: there is no such option (did you mean towns?); allowed: arxiv, gsm8k, imdb, location, "
        "rating, towns\n"
    )


def test_hints_know_the_keys_of_an_experiment_of_the_folder(call, mine):
    code, _, err = call(train, "--config-dir", mine.name, "experiment=towns", "data.min_populatio=3")
    assert code == 2
    assert err.startswith("error: data.min_populatio does not exist (did you mean min_population?); data has: ")


def test_a_group_of_the_folder_is_known_as_one(call, mine):
    (mine / "flavour").mkdir()
    (mine / "flavour" / "sour.yaml").write_text("ph: 3\n")
    code, _, err = call(train, f'hydra.searchpath=["{mine}"]', "+flavour=swet")
    assert (code, err) == (2, "error: flavour=swet: there is no such option; allowed: sour\n")


def test_completion_knows_the_experiments_of_the_folder(call, mine, monkeypatch):
    mine = mine.rename(mine.with_name("mine"))  # a line is split at spaces
    monkeypatch.setenv("COMP_LINE", f"lightning-apps-train --config-dir {mine.name} experiment=t")
    assert call(train, "-sc", "query=bash")[:2] == (0, "experiment=towns\n")
    monkeypatch.setenv("COMP_LINE", "lightning-apps-train experiment=l")
    assert call(train, "-sc", "query=bash")[:2] == (0, "experiment=location\n")
    monkeypatch.setenv("COMP_LINE", "lightning-apps-train --config-dir nowhere experiment=l")
    assert call(train, "-sc", "query=bash")[:2] == (0, "experiment=location\n")


@pytest.mark.parametrize(("more", "seed"), [([], 7), (["seed=8"], 8)])
def test_an_experiment_of_the_folder_may_set_the_seed_and_the_command_line_another(more, seed, call, mine):
    code, out, _ = call(train, "--config-dir", mine.name, "experiment=towns", *more, "--cfg", "job")
    assert code == 0
    assert f"\nseed: {seed}\n" in out


def test_an_experiment_of_the_folder_is_prepared_and_looked_at(call, mine, cache_root):
    words = ["--config-dir", mine.name, "experiment=towns", f"run.cache_root={cache_root}"]
    assert call(prepare, *words)[0] == 0
    code, out, _ = call(doctor, *words)
    assert code == 0
    assert "  green   a gradient reaches every trainable parameter: " in out


def test_verify_hands_the_folder_on_and_finds_the_runs(call, mine, cache_root, monkeypatch):
    seen = []

    def note(config, bench):
        seen.append((config, bench))
        return []

    monkeypatch.setattr(verify, "run_proofs", note)
    words = ["--config-dir", mine.name, "experiment=towns", f"run.cache_root={cache_root}", "trainer.max_steps=4"]
    assert call(verify, *words)[0] == 0
    ((config, bench),) = seen
    assert config["experiment"] == bench.experiment == "big_towns"
    assert config["data"]["min_population"] == 3000000  # location's own settings for verify
    assert bench.last_step == 4
    assert list(bench.arguments[:2]) == [
        f"hydra.searchpath=['file://{mine!s}']".replace("it's", "it\\'s"),
        "experiment=towns",
    ]
    assert json.loads(Path("outputs/big_towns/verify.json").read_text()) == []


@pytest.mark.slow
def test_verify_trains_an_experiment_of_the_folder_in_processes_of_their_own(call, mine, cache_root, monkeypatch):
    monkeypatch.setattr(verify, "run_proofs", lambda config, bench: [verify.reloaded(config, bench.train("whole"))])
    monkeypatch.chdir(mine.parent)
    monkeypatch.setenv("PYTHONPATH", str(CONF.parent))
    tiny = [word for word in LOCATION if not word.startswith("data.min_population")]
    words = ["--config-dir", mine.name, "experiment=towns", f"run.cache_root={cache_root}", "trainer.max_steps=4"]
    assert call(verify, *words, *tiny)[0] == 0
    (proof,) = json.loads(Path("outputs/big_towns/verify.json").read_text())
    assert (proof["outcome"], proof["difference"]) == ("proved", 0.0)
