"""Whether the Hugging Face hub answers, asked once and quickly, and which version it has of a tokenizer."""

import functools
from pathlib import Path


@functools.cache
def hub_is_reachable() -> bool:
    """Whether the hub answers within seconds; its own client repeats a failed name lookup for minutes."""
    import httpx
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return False
    try:
        httpx.head(constants.ENDPOINT, timeout=5)
    except (httpx.HTTPError, OSError):
        return False
    return True


def hub_commit(name: str) -> str | None:
    """The commit of a tokenizer on the hub, or of its newest copy in the cache where the hub does not answer.

    None where neither has it.
    """
    from huggingface_hub import hf_hub_download

    try:
        file = hf_hub_download(name, "tokenizer_config.json", local_files_only=not hub_is_reachable())
    except (OSError, ValueError):  # not there, no access, not cached, no name of a model at all
        return None
    return Path(file).parent.name  # .../snapshots/<commit>/tokenizer_config.json
