import pytest

from lightning_apps.process.rank import global_rank, is_first_process

VARIABLES = ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK")


@pytest.mark.parametrize(
    ("environment", "devices", "rank"),
    [
        ({}, 2, 0),
        ({"RANK": "0", "LOCAL_RANK": "0"}, 1, 0),  # torchrun --nproc-per-node 1
        ({"RANK": "3", "LOCAL_RANK": "1"}, 2, 3),  # torchrun on two nodes
        ({"RANK": "2", "LOCAL_RANK": "0"}, 2, 2),
        ({"RANK": "1", "SLURM_PROCID": "0", "LOCAL_RANK": "1"}, 2, 1),  # torchrun in a Slurm job
        ({"SLURM_PROCID": "0"}, 2, 0),
        ({"SLURM_PROCID": "3"}, 2, 3),  # srun
        ({"SLURM_PROCID": "0", "LOCAL_RANK": "1"}, 2, 1),  # started by Lightning in an interactive allocation
        ({"SLURM_PROCID": "2", "LOCAL_RANK": "0"}, 2, 2),  # srun, and a wrapper that sets LOCAL_RANK
        ({"LOCAL_RANK": "1"}, 2, 1),  # started by Lightning
        ({"NODE_RANK": "1"}, 4, 4),  # Lightning on the second node
        ({"NODE_RANK": "1", "LOCAL_RANK": "2"}, 4, 6),
        ({"RANK": "", "LOCAL_RANK": "x"}, 2, 0),
    ],
)
def test_global_rank(environment, devices, rank, monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert global_rank(devices) == rank
    assert is_first_process({"devices": devices}) == (rank == 0 or devices == 1)


def test_runs_of_one_process_side_by_side_are_all_first(monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", "3")
    assert is_first_process({"devices": 1})
    assert not is_first_process({"devices": 1, "num_nodes": 4})
