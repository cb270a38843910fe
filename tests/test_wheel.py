"""The wheel, built here: what it holds, and that its commands work in another environment, away from the checkout."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("lightning_apps", "datamodules", "models", "hydra_plugins")
TINY = [
    "model.hidden_size=16",
    "model.num_hidden_layers=1",
    "model.num_attention_heads=2",
    "model.num_key_value_heads=2",
    "model.intermediate_size=16",
    "data.min_population=3000000",
    "data.num_validation=12",
    "data.global_batch_size=8",
    "trainer.max_steps=4",
    "trainer.max_epochs=null",
    "trainer.evaluate_every=2",
    "callbacks.extra.picture=null",
    "hardware=cpu",
]
TOWNS = "# @package _global_\ndefaults:\n  - location\n  - _self_\nexperiment: towns\nseed: 7\n"
VERIFY = """
import sys
from lightning_apps import verify

def run_proofs(config, bench):
    trained = config["experiment"] == "arxiv"
    return [verify.reloaded(config, bench.train("whole"))] if trained else []

verify.run_proofs = run_proofs
for name in ("location", "gsm8k", "arxiv", "imdb", "rating"):
    sys.argv[1:] = [f"experiment={name}"]
    verify.main()
"""
"""Every experiment's small files, data and configuration; one of them trains in a process of its own."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built without a network, from a copy: a build leaves files beside its sources."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in (*PACKAGES, "conf"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder), str(source))
    (path,) = folder.glob("*.whl")
    return path


def pip(*words):
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *words], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def files_below(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_holds_every_module_and_all_of_conf_and_nothing_else(wheel):
    expected = {f"lightning_apps/conf/{name}": data for name, data in files_below(ROOT / "conf").items()}
    for package in PACKAGES:
        expected |= {f"{package}/{name}": data for name, data in files_below(ROOT / package).items()}
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
        assert sorted(names) == sorted(expected)
        assert {name: archive.read(name) for name in names} == expected


def test_the_wheel_says_what_it_is(wheel):
    with zipfile.ZipFile(wheel) as archive:
        info = f"{wheel.name.removesuffix('-py3-none-any.whl')}.dist-info"
        metadata = Parser().parsestr(archive.read(f"{info}/METADATA").decode())
        scripts = archive.read(f"{info}/entry_points.txt").decode().split()
        assert archive.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_payload() == (ROOT / "README.md").read_text(encoding="utf-8")
    commands = {path.stem for path in (ROOT / "lightning_apps").glob("*.py")} - {"__init__", "errors"}
    entries = {f"lightning-apps-{name}=lightning_apps.{name}:main" for name in commands}
    assert scripts[0] == "[console_scripts]"
    assert {"".join(scripts[at : at + 3]) for at in range(1, len(scripts), 3)} == entries


@pytest.fixture(scope="module")
def run(wheel, tmp_path_factory):
    """Run words with the python of an environment that holds the wheel, in a folder that was empty."""
    environment = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / "bin" / "python"
    pip("--python", str(python), "install", "--no-deps", "--no-index", str(wheel))
    (packages,) = environment.glob("lib/python*/site-packages")
    # what the wheel depends on; a .pth file in that folder, such as an editable install's, is not read from here
    (packages / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    folder = tmp_path_factory.mktemp("elsewhere")
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def call(*words):
        done = subprocess.run(
            [str(python), *words], capture_output=True, text=True, cwd=folder, env=variables, timeout=1200
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    call.folder, call.packages = folder, packages
    return call


@pytest.mark.slow
def test_commands_are_those_of_the_wheel(run):
    where = "from lightning_apps.config import composition as c; import models; print(c.CONF, models.__file__)"
    assert run("-c", where).split() == [
        str(run.packages / "lightning_apps" / "conf"), str(run.packages / "models" / "__init__.py")
    ]  # fmt: skip
    assert "Groups, choose with group=option" in run("-m", "lightning_apps.train", "--help")


@pytest.mark.slow
def test_train_evaluate_report(run):
    run("-m", "lightning_apps.train", *TINY, "run.name=tiny")
    directory = run.folder / "outputs" / "location" / "tiny"
    summary = json.loads((directory / "summary.json").read_text())
    assert (summary["status"], summary["optimizer_steps"]) == ("completed", 4)
    run("-m", "lightning_apps.evaluate", f"run={directory}", "checkpoint=last")
    (evaluated,) = directory.glob("evaluations/*/metrics.json")
    assert json.loads(evaluated.read_text())["step"] == 4
    run("-m", "lightning_apps.report", f"run={directory}")
    assert (directory / "report.html").is_file()


@pytest.mark.slow
def test_a_sweep_of_an_experiment_of_ones_own(run):
    folder = run.folder / "mine" / "experiment"
    folder.mkdir(parents=True)
    (folder / "towns.yaml").write_text(TOWNS)
    sweep = ["sweep=grid", "sweep.name=two", "+sweep.grid.optimizer.lr=[1e-3,1e-2]"]
    run("-m", "lightning_apps.train", "--config-dir", "mine", "experiment=towns", *sweep, *TINY)
    summaries = [json.loads(path.read_text()) for path in run.folder.glob("outputs/towns/two-*/summary.json")]
    assert [(summary["status"], summary["seed"]) for summary in summaries] == [("completed", 7)] * 2


@pytest.mark.slow
def test_every_experiment_finds_what_it_is_verified_with(run):
    run("-c", VERIFY)
    tables = {path.parent.name: json.loads(path.read_text()) for path in run.folder.glob("outputs/*/verify.json")}
    assert set(tables) == {"location", "gsm8k", "arxiv", "imdb", "rating"}
    assert [proof["outcome"] for proof in tables["arxiv"]] == ["proved"]
