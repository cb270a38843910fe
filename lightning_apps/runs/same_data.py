"""The data of a run belong to it: others are refused when it goes on, and said when it is measured."""

import json
from collections.abc import Mapping
from typing import Any

from datamodules.contract import ExperimentData, LabelledData
from lightning_apps.errors import ConfigError
from lightning_apps.process.console import say
from lightning_apps.run_files.atomic_files import write_json_atomically
from lightning_apps.run_files.directory import RunDirectory
from lightning_apps.runs.build import build_datamodule

Fingerprint = Mapping[str, Any]


def read_fingerprint(directory: RunDirectory) -> dict[str, Any] | None:
    """What the run's data were; None where it does not say, or no longer.

    A run that is older than data.json has none, and one that was damaged decides nothing.
    """
    try:
        found = json.loads(directory.data.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    known = isinstance(found, dict) and all(isinstance(found.get(key), dict) for key in ("samples", "digests"))
    return found if known else None


def data_differences(before: Fingerprint, now: Fingerprint) -> list[str]:
    """What differs between two fingerprints, in words; none where they are of the same data."""
    found = []
    names, names_now = before.get("label_names"), now.get("label_names")
    if names != names_now:
        found.append(f"classes {_listed(names)} then, {_listed(names_now)} now")
    for split in {**before["samples"], **now["samples"]}:
        count, count_now = before["samples"].get(split, 0), now["samples"].get(split, 0)
        if count != count_now:
            found.append(f"{count:,} {split} samples then, {count_now:,} now")
        elif before["digests"].get(split) != now["digests"].get(split):
            found.append(f"other texts or labels among the {count:,} {split} samples")
    return found


def _listed(names: list[str] | None) -> str:
    if names is None:
        return "none"
    return ", ".join(map(str, names[:8])) + (", ..." if len(names) > 8 else "")


def refuse_other_data(directory: RunDirectory, datamodule: ExperimentData) -> None:
    """Continuing on other data would be another experiment, with classes that may mean something else.

    Raises:
        ConfigError: naming what differs.
    """
    before = read_fingerprint(directory)
    different = [] if before is None else data_differences(before, datamodule.fingerprint())
    if different:
        raise ConfigError(
            f"run.resume: the data are not those that {directory.path} was started with ({'; '.join(different[:3])}); "
            "restore them, or choose another run.name"
        )


def keep_fingerprint(directory: RunDirectory, datamodule: ExperimentData) -> None:
    """Write data.json."""
    write_json_atomically(directory.data, datamodule.fingerprint())


def build_data_of_run(config: dict[str, Any], directory: RunDirectory, *, completed: bool = True) -> ExperimentData:
    """The data of a run that is to be measured, with its classes in the order in which its network knows them.

    Data that have changed may be measured, for that can be what somebody wants; it is said.

    Args:
        config: of the run; `data.label_names` becomes that of the run where the data now give another.
        directory: of the run.
        completed: see build_datamodule; without it, samples that a model adds are not compared.

    Raises:
        ConfigError: the data cannot be read, or hold other classes than the run.
    """
    datamodule = build_datamodule(config, completed=completed)
    before = read_fingerprint(directory)
    if before is None:
        return datamodule
    now = datamodule.fingerprint()
    if not completed and datamodule.awaits_samples:
        now["samples"]["train"] = before["samples"].get("train", 0)
        now["digests"]["train"] = before["digests"].get("train")
    different = data_differences(before, now)
    if different:
        say(f"WARNING: the data are not those that {directory.path} was trained with: {'; '.join(different)}")
    names = before.get("label_names")
    if names is None or not isinstance(datamodule, LabelledData) or datamodule.label_names == names:
        return datamodule
    if not set(datamodule.label_names) <= set(names):
        raise ConfigError(
            f"run={directory.path} knows the classes {_listed(names)}, the data hold "
            f"{_listed(datamodule.label_names)}; give it data with its classes"
        )
    say("classes are matched by their names, not by their order in the data")
    config["data"]["label_names"] = names
    return build_datamodule(config, completed=completed)
