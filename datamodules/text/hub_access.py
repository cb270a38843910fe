"""Whether the Hugging Face hub answers, asked once and quickly."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


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


@contextmanager
def asking_in_vain_avoided() -> Iterator[None]:
    """Where the hub does not answer, its clients look only into their caches.

    They would ask six times for half a minute, and write two lines each time, whatever `local_files_only` says
    (`datasets` asks for the README of a data set first).
    """
    if hub_is_reachable():
        yield
        return
    import datasets
    from huggingface_hub import constants

    places: list[Any] = [constants, datasets.config]
    before = [place.HF_HUB_OFFLINE for place in places]
    try:
        for place in places:
            place.HF_HUB_OFFLINE = True
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value
