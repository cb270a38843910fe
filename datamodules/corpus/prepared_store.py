"""Where a token store comes from: given ready, in the cache, shared in a folder or on S3, or tokenized now."""

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from datamodules.corpus.text_source import SUFFIXES, SourceError, TextSource, file_source, hub_source, local_files
from datamodules.corpus.token_store import TOKENS, StoreError, is_store, open_store
from datamodules.corpus.tokenize_corpus import write_store
from datamodules.storage.cache import fingerprint, prepared_folder, read_manifest
from datamodules.storage.folders import (
    download_folder,
    is_remote,
    join_url,
    open_file,
    remote_state,
    split_url,
    upload_folder,
)
from datamodules.storage.object_store import ObjectStore
from datamodules.text.split_names import refuse_unread
from datamodules.text.tokenizer_identity import tokenizer_identity

PREPARATION_VERSION = 2
"""Raise it whenever write_store writes something else for the same settings."""
PROGRESS = partial(tqdm, disable=None, leave=False)
"""A bar on a terminal, and nothing elsewhere."""
SAMPLE_SEED = 0
"""Which documents a first look takes; one sample for every run, so that runs share a store."""


def find_store(
    cache_root: Path,
    *,
    path: str | None,
    hub_name: str,
    hub_config: str | None,
    text_column: str,
    label_column: str,
    tokenizer_name: str,
    shared_store: str | None,
    max_documents_per_split: int | None,
    num_workers: int,
) -> Path:
    """The folder of a token store for these settings, made if need be.

    Args:
        cache_root: where downloads and prepared stores are kept.
        path: source, or a finished store; a folder or an s3:// prefix. None reads from the hub.
        hub_name: data set on the hub.
        hub_config: its configuration.
        text_column: field that holds the document.
        label_column: field that holds its category.
        tokenizer_name: Hugging Face name or path, or bpe:<tokens> for one that is learned from the training split.
        shared_store: s3:// prefix to fetch the store from, or to put it to; None for none.
        max_documents_per_split: None for all.
        num_workers: tokenizing processes.

    Raises:
        ValueError: the source or the shared store cannot be used.
    """
    if path is not None and (ready := _ready_store(path, cache_root)) is not None:
        return ready
    if shared_store is not None and not is_remote(shared_store):
        raise StoreError(
            f"data.store={shared_store}: expected s3://bucket/prefix; folders share run.cache_root instead"
        )
    source = _source(path, hub_name, hub_config, text_column, label_column, cache_root)
    settings = {
        "version": PREPARATION_VERSION,
        "source": source.identity,
        "tokenizer": tokenizer_identity(tokenizer_name),
        "max_documents_per_split": max_documents_per_split,
    }
    cached = cache_root / "arxiv" / fingerprint(settings)
    if shared_store is not None and not is_store(cached) and remote_state(shared_store) == "complete":
        return _fetch(shared_store, cache_root, settings)

    def write(folder: Path) -> dict[str, Any]:
        return write_store(
            folder,
            source,
            tokenizer_name=tokenizer_name,
            max_documents_per_split=max_documents_per_split,
            seed=SAMPLE_SEED,
            num_workers=num_workers,
        )

    folder = prepared_folder(cache_root, "arxiv", settings, write)
    if shared_store is not None and remote_state(shared_store) != "complete":
        open_store(folder)  # what is not whole is not shared
        upload_folder(folder, shared_store, leave_out=lambda name: name.startswith("."), progress=PROGRESS)
    return folder


def _ready_store(path: str, cache_root: Path) -> Path | None:
    """The finished store that `path` names, fetched if it is remote; None where it names a source."""
    if not is_remote(path):
        return Path(path) if is_store(Path(path)) else None
    if TOKENS not in _remote_files(path):
        return None
    return download_folder(path, _download_folder(path, cache_root), progress=PROGRESS)


def _fetch(url: str, cache_root: Path, settings: dict[str, Any]) -> Path:
    """Download a shared store.

    Raises:
        StoreError: it was prepared with other settings.
    """
    folder = download_folder(url, _download_folder(url, cache_root), progress=PROGRESS)
    theirs = read_manifest(folder)["settings"]
    if theirs != settings:
        different = sorted(key for key in settings.keys() | theirs.keys() if settings.get(key) != theirs.get(key))
        raise StoreError(
            f"data.store={url} holds a store prepared otherwise ({', '.join(different)} differ); choose another "
            f"prefix, restore those settings, or train on it as it is: data.path={url} data.store=null"
        )
    return folder


def _download_folder(url: str, cache_root: Path) -> Path:
    return cache_root / "downloads" / hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]


def _source(
    path: str | None, hub_name: str, hub_config: str | None, text_column: str, label_column: str, cache_root: Path
) -> TextSource:
    columns = {"text_column": text_column, "label_column": label_column}
    if path is None:
        return hub_source(hub_name, hub_config, **columns)
    if is_remote(path):
        files = _remote_files(path)
        source = file_source(path, sizes=files, open_file=lambda name: open_file(join_url(path, name)), **columns)
        names = list(files)
    else:
        folder = Path(path)
        if not folder.is_dir():
            what = "this is a file" if folder.is_file() else "no such folder"
            raise SourceError(
                f"data.path={path}: {what}; name a folder that holds train and validation as .jsonl or .parquet"
            )
        sizes = local_files(folder, cache_root / "source_hashes.json")
        source = file_source(path, sizes=sizes, open_file=lambda name: (folder / name).open("rb"), **columns)
        names = [entry.name for entry in folder.iterdir()]
    refuse_unread(path, names, source.splits, SUFFIXES)
    if missing := [split for split in ("train", "validation") if split not in source.splits]:
        # before hours of tokenizing: nothing is cut from train here, and no evaluation can do without
        raise SourceError(
            f"data.path={path}: there is no {missing[0]}.jsonl or {missing[0]}.parquet in it; put some documents of "
            "every category into one"
        )
    return source


def _remote_files(url: str) -> dict[str, dict[str, Any]]:
    """Size and ETag of the files directly below an s3:// prefix."""
    bucket, prefix = split_url(url)
    base = f"{prefix}/" if prefix else ""
    with ObjectStore(bucket) as store:
        listing = {name.removeprefix(base): found for name, found in store.listing(base).items()}
    return {name: found._asdict() for name, found in listing.items() if name and "/" not in name}
