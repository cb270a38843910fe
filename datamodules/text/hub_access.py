"""Whether the Hugging Face hub answers, asked once and quickly."""

import functools


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
