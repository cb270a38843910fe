"""Whether the Hugging Face hub answers, asked once and quickly, and which version it has of a tokenizer."""

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@functools.cache
def hub_is_reachable() -> bool:
    """Whether the hub answers within seconds; its own client repeats a failed name lookup for minutes.

    Proxy settings that the HTTP client cannot use (an IPv6 range in NO_PROXY, socks5 without socksio) make the hub
    unreachable like a missing network does. Its client is then told to stay offline: it would trip over them as well,
    even where all that is asked for is cached.
    """
    import httpx
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return False
    try:
        httpx.head(constants.ENDPOINT, timeout=5)
    except (httpx.HTTPError, OSError):
        return False
    except Exception as error:  # httpx.InvalidURL and ImportError, neither of them an HTTPError
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        print(
            f"the Hugging Face hub is not reachable: the proxy settings of the environment cannot be used ({reason}); "
            "what is cached or packaged goes on",
            file=sys.stderr,
        )
        constants.HF_HUB_OFFLINE = True
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
