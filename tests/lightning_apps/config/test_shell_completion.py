"""The lines of docs/runs.md complete every console script, in real shells."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_apps.config.composition import CONF
from lightning_apps.config.shell_completion import completion_of_all

PAGE = (CONF.parent / "docs" / "runs.md").read_text(encoding="utf-8")
TYPED = "lightning-apps-{} model=qwen2_t"
ASK = {
    # as a shell does at TAB, without a terminal
    "bash": "COMP_LINE='{typed}' COMP_POINT=${{#COMP_LINE}}; COMP_WORDS=({typed}) COMP_CWORD=1; "
    "complete -p lightning-apps-{command} && hydra_bash_completion && echo ${{COMPREPLY[@]}}",
    "zsh": "COMP_LINE='{typed}' COMP_CWORD=1; [[ -n ${{_comps[lightning-apps-{command}]}} ]] && "
    "emulate sh -c hydra_bash_completion && echo ${{COMPREPLY[@]}}",
    "fish": "complete -C '{typed}'",
}


@pytest.fixture
def installed(tmp_path):
    """PATH with the console scripts of this tree."""
    for name in ("train", "doctor"):
        script = tmp_path / f"lightning-apps-{name}"
        script.write_text(f"#!{sys.executable}\nfrom lightning_apps.{name} import main\nmain()\n")
        script.chmod(0o755)
    return {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(CONF.parent)}


def line_of(shell):
    (line,) = re.findall(rf"^\| {shell} \|.*\| `(.*)` \|$", PAGE, re.MULTILINE)
    return line.replace("\\|", "|")


@pytest.mark.parametrize("command", ["train", "doctor"])
@pytest.mark.parametrize("shell", ASK)
def test_the_documented_line_completes_every_command(shell, command, installed):
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell} here")
    asked = ASK[shell].format(typed=TYPED.format(command), command=command)
    done = subprocess.run([shell, "-c", f"{line_of(shell)}\n{asked}"], env=installed, capture_output=True, text=True)
    assert done.stdout.split()[-1] == "model=qwen2_tiny", done.stdout + done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_console_script_is_registered_once(shell):
    distribution = importlib.metadata.distribution("lightning-apps")
    scripts = [entry.name for entry in distribution.entry_points if entry.group == "console_scripts"]
    registered = completion_of_all(["-sc", f"install={shell}"])
    assert re.findall(r"lightning-apps-\w+", registered) == scripts
    assert len(scripts) == len(set(scripts)) > 10


def test_nothing_is_registered_where_nothing_was_asked_for():
    assert completion_of_all(["install=bash"]) == ""
    assert completion_of_all(["-sc", "query=bash"]) == ""
    assert completion_of_all(["-sc", "install=tcsh"]) == ""


def test_console_scripts_are_the_commands():
    text = (CONF.parent / "pyproject.toml").read_text(encoding="utf-8")
    named = re.findall(r'^lightning-apps-(\w+) = "lightning_apps\.\1:main"$', text, re.MULTILINE)
    commands = {path.stem for path in Path(CONF.parent / "lightning_apps").glob("*.py")} - {"__init__", "errors"}
    assert sorted(named) == sorted(commands)
