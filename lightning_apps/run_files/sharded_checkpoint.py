"""A checkpoint as a folder: each rank writes the shards that it holds, and COMPLETE comes last.

    last.ckpt/
      shard-00001-model-00001-of-00001.safetensors ...   one file a rank
      state.ckpt                                         all else; an empty tensor stands for each that is in shards
      COMPLETE                                           size and SHA-256 of each file, as in an upload

torch.distributed.checkpoint would write its metadata as a pickle, which a stranger's folder could use to run code, and
its own safetensors writer makes all ranks plan together, which a thread beside training must not. The shards are in the
layout of that writer, so that its HuggingFaceStorageReader reads them; state.ckpt is for
`torch.load(..., weights_only=True)`.
"""

import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._pytree import KeyPath, tree_map_with_path

from datamodules.storage.atomic_files import written_aside
from datamodules.storage.cache import file_sha256
from datamodules.storage.errors import StorageError
from datamodules.storage.marker import MARKER, MarkedFile, marker_text, read_marker

STATE = "state.ckpt"
ALIASES = "same_tensors"
"""Key of state.ckpt: name of a tensor -> the name that its shards have; tied weights are written once."""
OFFSETS, SAVED_OFFSETS, VERSION = "DCP_SHARDING_INFO", "saved_offsets", "DCP_VERSION"
"""What torch.distributed.checkpoint calls them in the header of a safetensors file."""


class Shard(NamedTuple):
    """A rank's part of a tensor.

    Attributes:
        values: on the CPU.
        offsets: of its first element, one for each dimension.
    """

    values: Tensor
    offsets: list[int]


def name_of(path: KeyPath) -> str:
    """A tensor's name: the keys that lead to it, joined by dots."""
    return ".".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path)


def split(checkpoint: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Shard]]:
    """What every rank knows, and the shards of this one by name; both are copies that training does not change.

    Args:
        checkpoint: with DTensors, each sharded over all ranks.
    """
    shards: dict[str, Shard] = {}
    first: dict[int, str] = {}  # by the memory of a shard
    aliases: dict[str, str] = {}

    def leave_out(path: KeyPath, leaf: Any) -> Any:
        if not isinstance(leaf, DTensor):
            return leaf
        name, held = name_of(path), leaf.to_local().detach()
        known = first.setdefault(held.data_ptr(), name) if held.numel() else name
        if known != name:
            aliases[name] = known
        elif held.numel():
            (chunk,) = leaf.__create_chunk_list__()  # what torch.distributed.checkpoint asks a tensor for
            shards[name] = Shard(held.to("cpu", copy=True), list(chunk.offsets))
        return torch.empty(leaf.shape, dtype=leaf.dtype, device="meta")

    state = tree_map_with_path(leave_out, checkpoint)
    return {**state, ALIASES: aliases}, shards


def write_shards(folder: Path, shards: Mapping[str, Shard], *, rank: int) -> dict[str, MarkedFile]:
    """Write this rank's file; returns what COMPLETE says of it.

    Raises:
        OSError: it cannot be written.
    """
    path = folder / f"shard-{rank + 1:05}-model-00001-of-00001.safetensors"
    held = {name: shard.values.contiguous() for name, shard in shards.items()}
    offsets = {name: {SAVED_OFFSETS: shard.offsets} for name, shard in shards.items()}
    try:
        save_file(held, path, metadata={"format": "pt", VERSION: "1.0", OFFSETS: json.dumps(offsets)})
    except SafetensorError as error:
        raise OSError(str(error)) from error
    return {path.name: flushed(path)}


def flushed(path: Path) -> MarkedFile:
    """Bring a file to the disk; returns its size and checksum."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    return MarkedFile(path.stat().st_size, file_sha256(path))


def write_complete(folder: Path, files: Mapping[str, MarkedFile]) -> None:
    """Say that the folder is whole; the last thing that is written into it."""
    with written_aside(folder / MARKER) as file:
        file.write(marker_text(files).encode())


def sharded_damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint that is a folder, or None; it may be a stranger's."""
    try:
        files = read_marker((folder / MARKER).read_bytes(), str(folder))
    except FileNotFoundError:
        return f"{MARKER} is missing: its write did not come to the end"
    except (OSError, StorageError) as error:
        return str(error)
    if STATE not in files:
        return f"{STATE} is missing"
    for name, stated in files.items():
        path = folder / name
        if path.is_symlink() or not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != stated.size or file_sha256(path) != stated.sha256:
            return f"checksum of {name} is wrong"
    return None if zipfile.is_zipfile(folder / STATE) else f"{STATE} is damaged"


def read_sharded(folder: Path) -> dict[str, Any]:
    """The checkpoint as one process would have written it, on the CPU; sharded_damage() has found nothing.

    Raises:
        ValueError: the shards are not those of the tensors that state.ckpt knows.
    """
    state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    aliases = state.pop(ALIASES)
    whole: dict[str, Tensor] = {}

    def allocate(path: KeyPath, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.is_meta:
            return leaf
        name = aliases.get(name_of(path), name_of(path))
        if name not in whole:
            whole[name] = torch.empty(leaf.shape, dtype=leaf.dtype)
        return whole[name]

    checkpoint: dict[str, Any] = tree_map_with_path(allocate, state)
    missing = {name: tensor.numel() for name, tensor in whole.items()}
    for file in read_marker((folder / MARKER).read_bytes(), str(folder)):
        if file == STATE:
            continue
        with safe_open(folder / file, framework="pt") as shards:
            offsets = json.loads(shards.metadata()[OFFSETS])
            for name in shards.keys():  # noqa: SIM118 (no mapping)
                values, start = shards.get_tensor(name), offsets[name][SAVED_OFFSETS]
                place = tuple(slice(at, at + size) for at, size in zip(start, values.shape, strict=True))
                if whole[name][place].shape != values.shape or values.dtype != whole[name].dtype:
                    raise ValueError(f"{file} holds another shape or type of {name}")
                whole[name][place] = values
                missing[name] -= values.numel()
    if lacking := [name for name, count in missing.items() if count]:
        raise ValueError(f"{folder} lacks a part of {lacking[0]}")
    return checkpoint
