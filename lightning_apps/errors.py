"""Errors that are the user's to mend: one line that names the key, what is allowed, and the remedy."""


class ConfigError(ValueError):
    """The configuration or the data is wrong; the commands print the message and exit with code 2."""


class CheckpointWriteError(RuntimeError):
    """The run cannot save its state any more; it ends with exit code 1 and its earlier checkpoints."""
