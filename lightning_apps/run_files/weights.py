"""Weights from a run directory: read only if they are whole, all there, and finite.

A checkpoint is a zip archive, which has a checksum of each entry; an exported model gets checksums of its files beside
them. One flipped bit in either would else be measured, and what was measured believed.
"""

import json
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datamodules.storage.cache import file_sha256
from lightning_apps.errors import ConfigError, first_line
from lightning_apps.run_files.atomic_files import write_json_atomically
from lightning_apps.run_files.sharded_checkpoint import STATE, read_sharded, sharded_damage

CHECKSUMS = "checksums.json"
CARD = "README.md"
"""The model card, which may be written anew and edited: no checksum holds it."""
"""In an exported model: the SHA-256 of each of its files."""
EXPORT_AGAIN = "the run's command with run.resume=auto exports it again"


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None: torch writes zip archives, each entry with its CRC-32.

    torch.load itself does not compare the checksums. A folder of shards has COMPLETE.
    """
    if path.is_dir():
        return sharded_damage(path)
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    # of what half a file makes zipfile raise, BadZipFile is one; a flag that was flipped makes others
    except (OSError, zipfile.BadZipFile, EOFError, RuntimeError, NotImplementedError, ValueError) as error:
        return str(error) or type(error).__name__
    return None if bad is None else f"checksum of {bad} is wrong"


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's content, on the CPU.

    Raises:
        ConfigError: the file is damaged, or is no checkpoint of a run.
    """
    remedy = f"the checkpoints that are whole: {_others(path)}"
    if (reason := damage(path)) is not None:
        raise ConfigError(f"{path} is damaged ({reason}); {remedy}")
    try:
        content = read_sharded(path) if path.is_dir() else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a file of somebody else makes of torch.load
        raise ConfigError(f"{path} cannot be read as a checkpoint ({first_line(error)}); {remedy}") from error
    if not isinstance(content, dict) or not {"state_dict", "global_step"} <= content.keys():
        raise ConfigError(f"{path} is no checkpoint of a run (state_dict and global_step are not in it); {remedy}")
    return content


def steps_behind(path: Path) -> int:
    """Optimizer steps behind a checkpoint; its tensors are not read.

    Raises:
        Exception: whatever half a file makes of torch.load.
    """
    file = path / STATE if path.is_dir() else path
    return int(torch.load(file, map_location="cpu", weights_only=True, mmap=True)["global_step"])


def _others(path: Path) -> str:
    return ", ".join(sorted(other.stem for other in path.parent.glob("*.ckpt") if damage(other) is None)) or "none"


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], source: Path) -> None:
    """Give a module the weights that were read from `source`.

    Raises:
        ConfigError: they are those of another model, or not all of them are finite.
    """
    if bad := not_finite(weights.items()):
        raise ConfigError(f"{source} holds weights that are NaN or infinite ({bad}); choose an earlier checkpoint")
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise ConfigError(
            f"{source} holds the weights of another model than config.yaml describes ({_in_one_line(error)})"
        ) from error


def load_checkpoint(module: nn.Module, path: Path) -> int:
    """Give a module the weights of a checkpoint; returns the optimizer steps behind it.

    Raises:
        ConfigError: the file is damaged, or its weights are not the module's, or not finite.
    """
    checkpoint = read_checkpoint(path)
    load_weights(module, checkpoint["state_dict"], path)
    return int(checkpoint["global_step"])


def refuse_other_model(module: nn.Module, path: Path, *, given: str) -> None:
    """A checkpoint that was named may be of anything: compare names and shapes, before anything is written.

    Shards are not looked at; reading them says it.

    Raises:
        ConfigError: the weights are not the module's.
    """
    if path.is_dir():
        return
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    weights = content.get("state_dict") if isinstance(content, dict) else None
    if weights is None:
        raise ConfigError(f"{given}: {path} is no checkpoint of a run (state_dict is not in it)")
    stored, own = (
        {name: tuple(value.shape) for name, value in state.items()} for state in (weights, module.state_dict())
    )
    for name in sorted(stored.keys() | own.keys()):
        if stored.get(name) != own.get(name):
            raise ConfigError(
                f"{given}: the checkpoint is of another model ({name} is {stored.get(name, 'absent')} there, "
                f"{own.get(name, 'absent')} here); name one of this model, or start afresh with run.resume=null"
            )


def _in_one_line(error: Exception, most: int = 200) -> str:
    text = " ".join(str(error).partition(":\n")[2].split()) or str(error)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def not_finite(named: Iterable[tuple[str, Tensor]]) -> str | None:
    """Name of the first tensor that holds NaN or an infinity."""
    for name, tensor in named:
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            return name
    return None


def write_checksums(folder: Path) -> None:
    """Note what an exported model's files hold; done last."""
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {CHECKSUMS, CARD}
    write_json_atomically(folder / CHECKSUMS, {name: file_sha256(folder / name) for name in sorted(names)})


def exported_damage(folder: Path) -> str | None:
    """What is wrong with an exported model, or None; one without checksums.json is taken as it is."""
    try:
        stated = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
        files = {name: str(digest) for name, digest in stated.items()}
    except FileNotFoundError:
        return None
    except (ValueError, AttributeError):
        return f"{folder / CHECKSUMS} is damaged"
    for name, digest in files.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
            return f"{path} is missing"
        if file_sha256(path) != digest:
            return f"{path} is damaged: its SHA-256 is not the one it was exported with"
    return None


def check_exported(folder: Path) -> None:
    """Refuse an exported model that is not what was exported.

    Raises:
        ConfigError: a file has changed or is missing.
    """
    if (reason := exported_damage(folder)) is not None:
        raise ConfigError(f"{reason}; {EXPORT_AGAIN}; delete {folder / CHECKSUMS} if you changed it yourself")


def _check_attention(folder: Path) -> None:
    """Refuse a configuration that names a kernel of the hub, which transformers would fetch and run.

    Raises:
        ConfigError: it does.
    """
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return  # from_pretrained says what is wrong
    for key in ("attn_implementation", "_attn_implementation"):
        if isinstance(settings, dict) and "/" in str(settings.get(key)):
            raise ConfigError(
                f"{folder / 'config.json'}: {key}={settings[key]!r} names code of the hub, which no run may choose; "
                "take it out"
            )


def load_exported(model_class: Any, folder: Path, **options: Any) -> Any:
    """`model_class.from_pretrained(folder)` of a whole model, in float32, from safetensors.

    Args:
        model_class: of transformers, or one that inherits from it.
        folder: `model/` of a run.
        options: further arguments of from_pretrained.

    Raises:
        ConfigError: a file is damaged or missing, or a weight is missing or not finite.
        ValueError: from_pretrained, where the class is for another kind of model.
    """
    from safetensors import SafetensorError

    check_exported(folder)
    _check_attention(folder)
    try:
        net, report = model_class.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **options
        )
    except (OSError, SafetensorError, RuntimeError, ImportError) as error:
        raise ConfigError(
            f"{folder} cannot be loaded ({_in_one_line(error)}); run.resume=auto exports it again"
        ) from error
    missing = [*report["missing_keys"], *(entry[0] for entry in report["mismatched_keys"])]
    if missing:
        raise ConfigError(
            f"{folder} lacks weights ({', '.join(sorted(missing)[:3])}); run.resume=auto exports it again"
        )
    if bad := not_finite(net.named_parameters()):
        raise ConfigError(f"{folder} holds weights that are NaN or infinite ({bad}); {EXPORT_AGAIN}")
    return net
