"""A checkpoint of shards: read whole, its damage seen, its folder put in the place of another in one moment."""

import pytest
import torch
from torch.distributed.checkpoint import HuggingFaceStorageReader, load

from lightning_apps.errors import ConfigError
from lightning_apps.run_files import checkpoint_files
from lightning_apps.run_files.checkpoint_files import (
    AtomicCheckpointIO,
    name_atomically,
    newest_whole_checkpoint,
    remove,
)
from lightning_apps.run_files.sharded_checkpoint import ALIASES, STATE, Shard, flushed, write_complete, write_shards
from lightning_apps.run_files.weights import damage, read_checkpoint, steps_behind

WEIGHT = torch.arange(10.0).view(5, 2)


def shards_in(folder, *, step=7, cut=3, marked=True, dtype=torch.float32):
    """What two ranks write of one tied weight, of which the first holds `cut` rows."""
    folder.mkdir()
    stands_for_it = torch.empty(5, 2, device="meta")
    state = {
        "state_dict": {"embed": stands_for_it, "head": stands_for_it, "scale": torch.tensor(2.0)},
        "global_step": step,
        ALIASES: {"state_dict.head": "state_dict.embed"},
    }
    files = write_shards(folder, {"state_dict.embed": Shard(WEIGHT[:cut].to(dtype), [0, 0])}, rank=0)
    files |= write_shards(folder, {"state_dict.embed": Shard(WEIGHT[3:], [3, 0])}, rank=1)
    AtomicCheckpointIO().save_checkpoint(state, folder / STATE)
    if marked:
        write_complete(folder, {**files, STATE: flushed(folder / STATE)})
    return folder


def test_what_is_read_is_whole(tmp_path):
    folder = shards_in(tmp_path / "last.ckpt")
    assert damage(folder) is None
    content = read_checkpoint(folder)
    assert content.keys() == {"state_dict", "global_step"}
    weights = content["state_dict"]
    assert torch.equal(weights["embed"], WEIGHT)
    assert weights["head"].data_ptr() == weights["embed"].data_ptr()  # tied
    assert (float(weights["scale"]), content["global_step"], steps_behind(folder)) == (2.0, 7, 7)


def test_torch_distributed_checkpoint_reads_the_shards(tmp_path):
    folder = shards_in(tmp_path / "last.ckpt")
    found = {"state_dict.embed": torch.empty(5, 2)}
    load(found, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    assert torch.equal(found["state_dict.embed"], WEIGHT)


def flip_last_byte(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["shard-00001", "shard-00002", "state.ckpt"])
def test_damage_is_seen(name, tmp_path):
    folder = shards_in(tmp_path / "last.ckpt")
    (path,) = folder.glob(f"{name}*")
    flip_last_byte(path)
    assert damage(folder) == f"checksum of {path.name} is wrong"
    path.unlink()
    assert damage(folder) == f"{path.name} is missing"
    path.symlink_to("/etc/hostname")
    assert damage(folder) == f"{path.name} is missing"
    with pytest.raises(ConfigError, match="is damaged"):
        read_checkpoint(folder)


def test_a_folder_without_an_end_or_with_names_that_lead_out_is_none(tmp_path):
    folder = shards_in(tmp_path / "last.ckpt", marked=False)
    assert damage(folder) == "COMPLETE is missing: its write did not come to the end"
    write_complete(folder, {"../last.ckpt/state.ckpt": flushed(folder / STATE)})
    assert "nothing of it is used" in damage(folder)
    write_complete(folder, {"other": flushed(folder / STATE)})
    assert damage(folder) == "state.ckpt is missing"


@pytest.mark.parametrize(
    ("made", "says"),
    [({"cut": 2}, "lacks a part of state_dict.embed"), ({"dtype": torch.float64}, "another shape or type")],
)
def test_shards_that_are_not_those_of_the_tensors(made, says, tmp_path):
    folder = shards_in(tmp_path / "last.ckpt", **made)
    assert damage(folder) is None
    with pytest.raises(ConfigError, match=says):
        read_checkpoint(folder)


@pytest.mark.parametrize("can_exchange", [True, False])
def test_folders_and_files_take_each_others_names(can_exchange, tmp_path, monkeypatch):
    if not can_exchange:
        monkeypatch.setattr(checkpoint_files, "exchange", lambda one, other: False)
    targets = [tmp_path / "best.ckpt", tmp_path / "last.ckpt"]
    for step in (1, 2):
        name_atomically(shards_in(tmp_path / ".new.part", step=step), targets)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.ckpt", "last.ckpt"]
    assert [steps_behind(target) for target in targets] == [2, 2]
    assert (targets[0] / STATE).samefile(targets[1] / STATE)
    AtomicCheckpointIO().save_checkpoint({"global_step": 3, "state_dict": {}}, tmp_path / ".new.part")
    name_atomically(tmp_path / ".new.part", targets[1:])
    assert [steps_behind(target) for target in targets] == [2, 3]
    name_atomically(shards_in(tmp_path / ".new.part", step=4), targets[1:])
    assert [steps_behind(target) for target in targets] == [2, 4]
    remove(targets[0])
    remove(targets[0])
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_linux_exchanges(tmp_path):
    one, other = shards_in(tmp_path / "one.ckpt", step=1), shards_in(tmp_path / "other.ckpt", step=2)
    assert checkpoint_files.exchange(one, other)
    assert (steps_behind(one), steps_behind(other)) == (2, 1)


def test_the_newest_that_is_whole(tmp_path):
    shards_in(tmp_path / "step=00000003.ckpt", step=3)
    flip_last_byte(shards_in(tmp_path / "last.ckpt", step=6) / STATE)
    reports = []
    assert newest_whole_checkpoint(tmp_path, reports.append) == tmp_path / "step=00000003.ckpt"
    assert reports == [f"{tmp_path / 'last.ckpt'} is damaged (checksum of state.ckpt is wrong); trying the one before"]
