"""Share the best weights of a run: safetensors, tokenizer, model card; loaded again and compared before it says done.

  python -m lightning_apps.export run=outputs/gsm8k/default to=shared/gsm8k
  python -m lightning_apps.export run=outputs/imdb/default to=hf://owner/reviews private=false
  python -m lightning_apps.export run=outputs/imdb/default to=shared/reviews onnx=true

The hub is that of HF_ENDPOINT, its token that of HF_TOKEN or `hf auth login`; an object store is that of
AWS_ENDPOINT_URL.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from lightning_apps.config.command_line import run_command
from lightning_apps.config.command_settings import settings_of
from lightning_apps.config.composition import CONF
from lightning_apps.config.open_run import open_run
from lightning_apps.config.package_folder import PREFIX
from lightning_apps.errors import ConfigError
from lightning_apps.run_files.directory import RunDirectory, check_writable, leads_out

HUB = "hf://"
ADAPTERS = "adapter"
"""Folder below `model/` where a run keeps its adapters."""


def export(cfg: DictConfig) -> None:
    """Put a model where others can load it.

    Raises:
        ConfigError: no such run, it has no weights yet, or they are damaged; the place is taken or refuses.
        StorageUnavailableError: the object store is out of reach; the same command goes on later.
    """
    from datamodules.storage.folders import StorageError, StorageUnavailableError, is_remote, upload_folder
    from lightning_apps.process.console import open_console, say
    from lightning_apps.runs.build import quiet_libraries

    options = settings_of("export", cfg)
    to, keeps_adapters = options["to"], options["adapters"] == "kept"
    name = hub_name(to)
    directory, config = open_run(options["run"], trust=options.get("trust"))
    check_source(directory, keeps_adapters=keeps_adapters)
    if options["onnx"]:
        from lightning_apps.run_files.onnx_file import check_onnx

        check_onnx()
        if keeps_adapters:
            raise ConfigError("onnx=true: a file holds whole weights; take adapters=merged")
    quiet_libraries()
    open_console()
    place = local_place(to) if name is None and not is_remote(to) else None
    # beside where it goes, so that renaming it into place copies nothing and no half of it is ever seen
    if place is not None:
        place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=place.parent if place is not None else None) as scratch:
        folder = Path(scratch) / "model"
        gather(directory, config, folder, keeps_adapters=keeps_adapters)
        say(compare(directory, config, folder, keeps_adapters=keeps_adapters))
        if options["onnx"]:
            say(add_onnx(folder))
        if name is not None:
            address = send_to_hub(folder, name, private=options["private"])
        elif place is None:
            try:
                upload_folder(folder, to)
            except StorageUnavailableError:
                raise
            except StorageError as error:
                raise ConfigError(str(error)) from error
            address = to
        else:
            folder.chmod(0o755)
            folder.replace(place)
            address = to
    say(f"exported  {address}")


def local_place(to: str) -> Path:
    """The folder that `to` names, links followed: new, or an empty one that the copy takes the place of.

    Raises:
        ConfigError: something is there already, or nothing can take its place.
    """
    place = Path(to).resolve()
    if place.exists():
        if not place.is_dir() or any(place.iterdir()):
            raise ConfigError(f"to={to} is there already; name a folder that is new or empty")
        # whoever stands in a folder keeps standing in the one that was replaced
        if place == Path.cwd() or place.is_mount():
            raise ConfigError(f"to={to}: this folder cannot be replaced; name one that is new")
    check_writable(place.parent if place.exists() else place, "name another place with to=...")
    return place


def hub_name(to: str) -> str | None:
    """`owner/name` of hf://owner/name; None for other places.

    Raises:
        ConfigError: it is no such name.
    """
    if not to.startswith(HUB):
        return None
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(to.removeprefix(HUB))
    except HFValidationError as error:
        raise ConfigError(f"to={to}: {error}".splitlines()[0]) from error
    return to.removeprefix(HUB)


def check_source(directory: RunDirectory, *, keeps_adapters: bool) -> None:
    """Refuse a run whose weights are not there, are damaged, or lie outside it.

    Raises:
        ConfigError: saying what to do.
    """
    from lightning_apps.run_files.weights import check_exported

    if not (directory.model / "config.json").is_file():
        raise ConfigError(
            f"run={directory.path} has no model/ yet: it was not finished; continue it with run.resume=auto"
        )
    if keeps_adapters and not (directory.model / ADAPTERS / "adapter_model.safetensors").is_file():
        raise ConfigError(f"adapters=kept: run={directory.path} trained no adapters; take adapters=merged")
    if keeps_adapters and _lacks_head(directory):
        raise ConfigError(
            f"adapters=kept: run={directory.path} is of an older version, which kept the adapters without the head "
            "that was trained with them; take adapters=merged"
        )
    for path in directory.model.rglob("*"):
        if leads_out(path, directory.path):
            raise ConfigError(f"{path} is a link that leads out of the run; it is not exported")
    check_exported(directory.model)


def _lacks_head(directory: RunDirectory) -> bool:
    from lightning_apps.reports.model_card import auto_class_of

    if auto_class_of(directory.model) != "AutoModelForSequenceClassification":
        return False
    return not _adapter_settings(directory.model / ADAPTERS).get("modules_to_save")


def _adapter_settings(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")))


def gather(directory: RunDirectory, config: dict[str, Any], folder: Path, *, keeps_adapters: bool) -> None:
    """Copy what belongs to the model into a new folder, and write its card.

    Raises:
        ConfigError: the disk is full.
    """
    from lightning_apps.reports.model_card import write_model_card
    from lightning_apps.run_files.weights import CARD, CHECKSUMS, write_checksums

    source, base = directory.model, None
    left_out = {ADAPTERS, CARD, CHECKSUMS}
    if keeps_adapters:
        left_out |= {path.name for path in source.iterdir() if path.suffix == ".safetensors"}
        left_out |= {"config.json", "generation_config.json", "model.safetensors.index.json"}
        settings = _adapter_settings(source / ADAPTERS)
        pretrained = str(config["model"].get("pretrained"))
        # weights of a package lie elsewhere on another machine
        base = pretrained if pretrained.startswith(PREFIX) else str(settings.get("base_model_name_or_path"))
    try:
        shutil.copytree(source, folder, ignore=lambda at, names: left_out if Path(at) == source else ())
        if keeps_adapters:
            shutil.copytree(source / ADAPTERS, folder, dirs_exist_ok=True)
            named = json.dumps({**settings, "base_model_name_or_path": base}, indent=2, sort_keys=True)
            (folder / "adapter_config.json").write_text(named + "\n", encoding="utf-8")
        write_model_card(str(directory.path), folder, adapters_of=base)
        write_checksums(folder)
    except OSError as error:
        raise ConfigError(f"{error.filename or folder} cannot be written ({error.strerror or error})") from error


def compare(directory: RunDirectory, config: dict[str, Any], folder: Path, *, keeps_adapters: bool) -> str:
    """Load the copy as a stranger would, and hold every tensor against the run's; says what was compared.

    Raises:
        ConfigError: they differ, or the copy cannot be loaded.
    """
    import torch
    import transformers
    from safetensors.torch import load_file

    from lightning_apps.config.binding import target
    from lightning_apps.reports.model_card import auto_class_of
    from lightning_apps.run_files.weights import load_exported

    if keeps_adapters:
        name = "adapter_model.safetensors"
        found, wanted = load_file(folder / name), load_file(directory.model / ADAPTERS / name)
    else:
        target("model", config["model"])  # registers architectures of our own with transformers
        auto_class = getattr(transformers, auto_class_of(directory.model))
        found, wanted = (load_exported(auto_class, place).state_dict() for place in (folder, directory.model))
    differing = [key for key in wanted if key not in found or not torch.equal(found[key], wanted[key])]
    if differing or len(found) != len(wanted):
        raise ConfigError(f"the copy differs from {directory.model} in {', '.join(differing[:3]) or 'its tensors'}")
    words = f"loaded again: {len(found):,} tensors are those of {directory.model}, bit for bit"
    if (folder / "tokenizer_config.json").is_file():
        tokenizer, own = (transformers.AutoTokenizer.from_pretrained(place) for place in (folder, directory.model))
        if tokenizer.get_vocab() != own.get_vocab():
            raise ConfigError(f"the tokenizer of the copy differs from that of {directory.model}")
        words += f"; {len(tokenizer):,} words of its tokenizer too"
    return words


def add_onnx(folder: Path) -> str:
    """Put the model as ONNX beside its weights; says how the two compare.

    Raises:
        ConfigError: this model cannot be written so.
    """
    import transformers

    from lightning_apps.reports.model_card import auto_class_of
    from lightning_apps.run_files.onnx_file import write_onnx
    from lightning_apps.run_files.weights import load_exported, write_checksums

    said = write_onnx(load_exported(getattr(transformers, auto_class_of(folder)), folder), folder)
    write_checksums(folder)
    return said


def send_to_hub(folder: Path, name: str, *, private: bool) -> str:
    """Put a folder into a repository of the hub as one commit, and look what arrived; returns its address.

    Raises:
        ConfigError: no token, no right, or a hub that is out of reach.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = str(api.create_repo(name, private=private, exist_ok=True))
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Weights, tokenizer and card of a run")
        there = {file.rfilename: file.size for file in api.model_info(name, files_metadata=True).siblings or ()}
    except Exception as error:  # its HTTP client, and with it their errors, differ from version to version
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"to={HUB}{name}: {reason or type(error).__name__}; `hf auth login` or HF_TOKEN gives a token that may "
            "write, HF_ENDPOINT names another hub; the same command goes on"
        ) from error
    for path in (path for path in folder.rglob("*") if path.is_file()):
        if there.get(relative := path.relative_to(folder).as_posix()) != path.stat().st_size:
            raise ConfigError(f"to={HUB}{name}: {relative} did not arrive whole; the same command sends it again")
    return address


def main() -> Any:
    """Entry point."""
    return run_command(export, config_path=CONF / "command", config_name="export")


if __name__ == "__main__":
    main()
