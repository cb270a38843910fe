"""Checkpoint files: written aside and named once they are whole, and which of them a run goes on from."""

import contextlib
import copy
import ctypes
import os
import secrets
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor
from torch.utils._pytree import tree_leaves

from datamodules.storage.atomic_files import fsync_folder, open_new, written_aside
from lightning_apps.run_files.sharded_checkpoint import read_sharded
from lightning_apps.run_files.weights import damage


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint aside, flushes it to the disk, and renames it: it is there whole or not at all."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint, or leave what was there.

        Args:
            checkpoint: what torch.save can write.
            path: of a local file; its folder is made if need be.
            storage_options: of Lightning's signature; nothing here reads them.
        """
        with written_aside(Path(path)) as file:
            # torch's writer turns a full disk into a RuntimeError about its archive; a file object keeps the errno
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """What a file or a folder of shards holds, on the CPU."""
        return read_sharded(Path(path)) if Path(path).is_dir() else super().load_checkpoint(path, *args, **kwargs)


def second_name(source: Path, aside: Path) -> None:
    """Make `aside` the same file as `source`, or a copy of it where the file system has no hard links.

    A folder becomes a folder of such files.

    exFAT, SMB, FUSE and drive mounts answer with EPERM, ENOTSUP, ENOSYS and others; what really is wrong with a disk,
    copying meets as well.
    """
    if source.is_dir():
        aside.mkdir()
        for entry in source.iterdir():
            second_name(entry, aside / entry.name)
        fsync_folder(aside)
        return
    try:
        aside.hardlink_to(source)
    except OSError:
        with contextlib.suppress(OSError):
            aside.unlink()  # some mounts leave an empty file
        with source.open("rb") as whole, os.fdopen(open_new(aside), "wb") as copy:
            shutil.copyfileobj(whole, copy, 1 << 20)
            copy.flush()
            os.fsync(copy.fileno())


def replace(aside: Path, target: Path) -> None:
    """Give a file or folder its name, replacing whatever file or folder has it.

    A folder cannot be renamed over another: the two change places, and the old one goes. Where the file system cannot
    do that, there is a moment in which neither has the name.
    """
    if not aside.is_dir() and (target.is_symlink() or not target.is_dir()):
        aside.replace(target)
    elif not target.exists() and not target.is_symlink():
        aside.rename(target)
    elif exchange(aside, target):
        remove(aside)
    else:
        old = target.with_name(f".{target.name}.{secrets.token_hex(8)}.part")
        target.rename(old)
        aside.rename(target)
        remove(old)


def exchange(one: Path, other: Path) -> bool:
    """Let two entries of a folder change places in one moment; false where that is not possible (Linux has a call)."""
    at_cwd, rename_exchange = -100, 2
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    return rename is not None and rename(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), rename_exchange) == 0


def remove(path: Path) -> None:
    """Delete a checkpoint, file or folder, if it is there; a folder loses its name first, so that none is ever half."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    if not path.name.startswith("."):
        path = path.rename(path.with_name(f".{path.name}.{secrets.token_hex(8)}.part"))
    shutil.rmtree(path)


def name_atomically(written: Path, targets: Sequence[Path]) -> None:
    """Give a file or folder its names, replacing what had them: all are made aside, then each takes its name, in order.

    What can fail, a full disk above all, fails before the first of them is replaced.

    Args:
        written: the file or folder; it is renamed to the last of the names.
        targets: in the same folder.
    """
    *others, last = targets
    asides = [target.with_name(f".{target.name}.{secrets.token_hex(8)}.part") for target in others]
    try:
        for aside in asides:
            second_name(written, aside)
        for aside, target in zip(asides, others, strict=True):
            replace(aside, target)
        replace(written, last)
    except BaseException:
        for aside in (*asides, written):
            with contextlib.suppress(OSError):
                remove(aside)
        raise
    fsync_folder(last.parent)


def newest_whole_checkpoint(folder: Path, report: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that is not damaged: last, then periodic ones from the newest, then best.

    Args:
        folder: the run's checkpoints.
        report: told of each damaged file that is passed over.
    """
    for path in (folder / "last.ckpt", *reversed(periodic_checkpoints(folder)), folder / "best.ckpt"):
        if not path.exists():
            continue
        reason = damage(path)
        if reason is None:
            return path
        report(f"{path} is damaged ({reason}); trying the one before")
    return None


def periodic_checkpoints(folder: Path) -> list[Path]:
    """Periodic checkpoints of a run, oldest first."""
    return sorted(folder.glob("step=*.ckpt"))


def copied_to_cpu(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """A copy that training no longer changes: torch.save writes the same bytes of it as of tensors on a CPU.

    Tensors that share memory (tied weights, views) share it in the copy.
    """
    storages: dict[int, torch.UntypedStorage] = {}
    copies: dict[int, Any] = {}  # deepcopy takes from here what it would copy on the device
    for tensor in tree_leaves(checkpoint):
        if isinstance(tensor, Tensor) and tensor.device.type not in ("cpu", "meta"):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in storages:
                storages[storage.data_ptr()] = storage.cpu()
            on_cpu = torch.empty(0, dtype=tensor.dtype)
            on_cpu.set_(storages[storage.data_ptr()], tensor.storage_offset(), tensor.size(), tensor.stride())
            copies[id(tensor)] = on_cpu
    return copy.deepcopy(checkpoint, copies)
