"""Tab completion of all console scripts by one line in the start file of a shell; Hydra's own covers a single one."""

import importlib.metadata
from collections.abc import Sequence

REGISTERED = {
    "bash": "complete -o nospace -o default -F hydra_bash_completion {}\n",
    "zsh": "complete -o nospace -o default -F hydra_bash_completion {}\n",  # by bashcompinit
    "fish": "complete -c {} -x -a '(hydra_fish_completion)'\n",
}
"""By shell, what lets Hydra's function complete a command, whichever it is."""


def completion_of_all(words: Sequence[str]) -> str:
    """For `-sc install=bash`: what registers every console script of this package; else, and uninstalled, nothing.

    Args:
        words: of the command line.
    """
    if not {"-sc", "--shell-completion"}.intersection(words):
        return ""
    shell = next((word.removeprefix("install=") for word in words if word.startswith("install=")), "")
    try:
        entries = importlib.metadata.distribution("lightning-apps").entry_points
    except importlib.metadata.PackageNotFoundError:
        return ""
    scripts = [entry.name for entry in entries if entry.group == "console_scripts"]
    return "".join(REGISTERED[shell].format(name) for name in scripts) if shell in REGISTERED else ""
