"""Checkpoint files: whole or not there, on file systems that can do less, and copied before they are written."""

import errno
import io
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_apps.run_files.checkpoint_files import copied_to_cpu, name_atomically


def test_nothing_is_replaced_where_a_copy_does_not_fit(tmp_path, monkeypatch):
    def refuse(self, target):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    best, last, written = (tmp_path / name for name in ("best.ckpt", "last.ckpt", ".new.part"))
    best.write_text("old")
    written.write_text("new" * 100_000)
    monkeypatch.setattr(
        "lightning_apps.run_files.checkpoint_files.open_new", lambda path: os.open("/dev/full", os.O_WRONLY)
    )
    with pytest.raises(OSError, match="No space left"):
        name_atomically(written, [best, last])
    assert best.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["best.ckpt"]


def test_links_where_there_are_some(tmp_path):
    written = tmp_path / ".new.part"
    written.write_text("new")
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "best.ckpt").symlink_to(tmp_path / "victim")
    name_atomically(written, [tmp_path / "best.ckpt", tmp_path / "last.ckpt"])
    assert (tmp_path / "best.ckpt").samefile(tmp_path / "last.ckpt")
    assert (tmp_path / "victim").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.ckpt", "last.ckpt", "victim"]


def file_of(checkpoint):
    written = io.BytesIO()
    torch.save(checkpoint, written)
    return written.getvalue()


def trained_state():
    """Weights of which two are tied, one a view of another, and an optimizer's moments, after a step."""
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4))
    net[1].weight = net[0].weight
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.randn(3, 4)).sum().backward()
    optimizer.step()
    state = {"state_dict": net.state_dict(), "optimizer_states": [optimizer.state_dict()], "global_step": 1}
    return optimizer, {**state, "row": net[0].weight.detach()[1], "nested": {"a": [1, None, (2.5, "b")]}}


def test_a_copy_is_the_same_file_and_training_does_not_change_it():
    optimizer, state = trained_state()
    before = file_of(state)
    copied = copied_to_cpu(state)
    assert file_of(copied) == before
    optimizer.step()
    assert file_of(state) != before
    assert file_of(copied) == before


@pytest.mark.gpu
def test_a_copy_of_what_is_on_a_device_is_the_file_of_what_is_on_a_cpu():
    _, state = trained_state()
    memo = {}
    moved = torch.utils._pytree.tree_map_only(
        torch.Tensor, lambda tensor: memo.setdefault(tensor.data_ptr(), tensor.cuda()), state["state_dict"]
    )
    copied = copied_to_cpu({"state_dict": moved})
    assert all(tensor.device.type == "cpu" for tensor in copied["state_dict"].values())
    assert copied["state_dict"]["0.weight"].data_ptr() == copied["state_dict"]["1.weight"].data_ptr()
    for name, tensor in state["state_dict"].items():
        assert torch.equal(copied["state_dict"][name], tensor)
