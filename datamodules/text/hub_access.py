"""The Hugging Face hub: whether it answers, asked once and quickly, and what is had from it or from its caches."""

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase


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
        print(
            f"the Hugging Face hub is not reachable: the proxy settings of the environment cannot be used "
            f"({first_line(error)}); "
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


def load_hub_dataset(dataset: str, /, *, said: str, remedy: str, **options: Any) -> Any:
    """A data set as `datasets.load_dataset` gives it; without an answer from the hub, what an earlier run has fetched.

    Args:
        dataset: its name on the hub.
        said: how messages call it, such as `data.dataset=name`.
        remedy: what to do where it cannot be had.
        **options: of load_dataset.

    Raises:
        ValueError: it cannot be had.
    """
    import datasets

    download = datasets.DownloadConfig(local_files_only=not hub_is_reachable())
    try:
        with asking_in_vain_avoided():
            return datasets.load_dataset(dataset, download_config=download, **options)
    except Exception as error:  # the library raises its own and those of three HTTP layers
        raise ValueError(f"{said} cannot be loaded ({first_line(error)}); {remedy}") from error


def load_tokenizer(name: str, *, remedy: str, gguf: str | None = None) -> PreTrainedTokenizerBase:
    """A tokenizer by its name on the hub or its folder; without an answer from the hub, from its cache.

    Args:
        name: what the user chose.
        remedy: what to do where it cannot be had.
        gguf: file in the folder that holds it; None for the Hugging Face layout.

    Raises:
        ValueError: it cannot be had.
    """
    options = {} if gguf is None else {"gguf_file": gguf}
    try:
        is_folder = Path(name).is_dir()
        return AutoTokenizer.from_pretrained(name, local_files_only=not is_folder and not hub_is_reachable(), **options)
    except Exception as error:  # transformers, tokenizers and huggingface_hub each have their own
        raise ValueError(f"data.tokenizer={name} cannot be loaded ({first_line(error)}); {remedy}") from error


def first_line(error: Exception) -> str:
    """What an error says in its first line that is not blank, or its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


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
