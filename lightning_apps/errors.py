"""Errors that are the user's to mend: one line that names the key, what is allowed, and the remedy."""

import difflib
from pathlib import Path


class ConfigError(ValueError):
    """The configuration or the data is wrong; the commands print the message and exit with code 2."""


class GuardError(RuntimeError):
    """A guard stopped the run; the commands print the message and exit with code 1.

    Attributes:
        guard: which one: `non_finite`, `loss_spike`, `token_ids`, `no_targets`, `collapsed_generator`, `sample_order`.
        crash_dump: folder that holds the evidence, once it is written.
    """

    def __init__(self, guard: str, message: str) -> None:
        super().__init__(message)
        self.guard = guard
        self.crash_dump: Path | None = None

    def __str__(self) -> str:
        message = super().__str__()
        if self.crash_dump is None:
            return message
        return f"{message}; look again with: python -m lightning_apps.replay crash_dump={self.crash_dump}"


class CheckpointWriteError(RuntimeError):
    """The run cannot save its state any more; it ends with exit code 1 and its earlier checkpoints."""


def did_you_mean(word: str, known: list[str]) -> str:
    """` (did you mean x?)`, or nothing where no known word is near."""
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" (did you mean {match[0]}?)" if match else ""


def first_line(error: BaseException) -> str:
    """What an error says in its first line that is not blank, or its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
