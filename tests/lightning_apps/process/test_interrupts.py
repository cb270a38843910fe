"""Ctrl-C at any moment of a command, its imports included."""

import os
import signal
import subprocess
import sys

import pytest

from lightning_apps.process import interrupts

STOPPED = (130, "error: stopped by Ctrl-C\n")
COMMAND = [sys.executable, "-m", "lightning_apps.train", "--cfg", "job"]
SENDS = """
import importlib.abc, os, signal, sys
class Sends(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == {name!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Sends())
"""
"""A sitecustomize that sends the signal where a module begins to be imported."""


def interrupted_at(name, folder, *command):
    (folder / "sitecustomize.py").write_text(SENDS.format(name=name))
    path = os.pathsep.join([str(folder), *sys.path])
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    return done.returncode, done.stderr


@pytest.mark.parametrize("name", ["lightning_apps.train", "hydra", "omegaconf", "lightning_apps.config.checks"])
def test_one_line_while_the_command_imports(name, tmp_path):
    assert interrupted_at(name, tmp_path, *COMMAND) == STOPPED


def test_one_line_while_torch_is_imported(tmp_path):
    run = ["hardware=cpu", f"run.output_root={tmp_path}/outputs"]
    command = [sys.executable, "-m", "lightning_apps.train", *run]
    assert interrupted_at("torch.nn", tmp_path, *command) == STOPPED
    assert not (tmp_path / "outputs").exists()


def test_one_line_from_a_console_script(tmp_path):
    script = tmp_path / "lightning-apps-train"
    script.write_text("from lightning_apps.train import main\nmain()\n")
    assert interrupted_at("hydra", tmp_path, sys.executable, str(script), "--cfg", "job") == STOPPED


def test_one_line_while_the_configuration_is_composed(tmp_path):
    """hydra.core.plugins imports its plugins when it composes; what they read in between is no import."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal\n"
        "import yaml\n"
        "load = yaml.load\n"
        "def sends(*args, **kwargs):\n    os.kill(os.getpid(), signal.SIGINT)\n    return load(*args, **kwargs)\n"
        "yaml.load = sends\n"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(COMMAND, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert (done.returncode, done.stderr) == STOPPED


def test_a_program_that_imports_the_package_keeps_its_own_handling():
    code = "import signal, lightning_apps; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_an_interrupt_is_raised_where_it_is_caught():
    handler = signal.signal(signal.SIGINT, interrupts.interrupt)
    try:
        with interrupts.caught(), pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, handler)


def test_what_a_shell_had_ignored_stays_ignored(monkeypatch):
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        interrupts.arm_in_commands(["python", "-m", "lightning_apps.train"])
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, handler)
