"""Errors that are the user's to mend: one line that names the key, what is allowed, and the remedy."""

import difflib


class ConfigError(ValueError):
    """The configuration or the data is wrong; the commands print the message and exit with code 2."""


class CheckpointWriteError(RuntimeError):
    """The run cannot save its state any more; it ends with exit code 1 and its earlier checkpoints."""


def did_you_mean(word: str, known: list[str]) -> str:
    """` (did you mean x?)`, or nothing where no known word is near."""
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" (did you mean {match[0]}?)" if match else ""
