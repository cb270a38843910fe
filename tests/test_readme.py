import re
import shlex
import sys
from pathlib import Path

import pytest

from lightning_apps import doctor, evaluate, explain, generate, predict, prepare, replay, report, train, upload, verify
from lightning_apps.config.composition import CONF

README = (CONF.parent / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^python -m lightning_apps\.(\w+) ?(.*)$", README, flags=re.MULTILINE)


def test_the_two_commands_are_there():
    makefile = Path(CONF.parent / "Makefile").read_text(encoding="utf-8")
    for target in ("train", "test"):
        assert f"make {target} " in README
        assert re.search(rf"^{target}:.*##", makefile, flags=re.MULTILINE)


@pytest.mark.parametrize(("command", "arguments"), COMMANDS)
def test_every_command_of_the_readme_composes(command, arguments, monkeypatch, capsys):
    words = [word for word in shlex.split(arguments) if word != "--multirun"]
    if "--multirun" in arguments:  # each job of the sweep
        words = [word.split(",")[0] for word in words]
    monkeypatch.setattr(sys, "argv", [command, "--cfg", "job", *words])
    commands = (doctor, evaluate, explain, generate, predict, prepare, replay, report, train, upload, verify)
    next(module for module in commands if module.__name__.endswith(f".{command}")).main()
    assert len(COMMANDS) >= 7
    assert capsys.readouterr().out
