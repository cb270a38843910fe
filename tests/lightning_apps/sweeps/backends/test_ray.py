"""The back end of Ray on a cluster of two nodes, really started on this machine; one of them is killed."""

import signal

import pytest

from lightning_apps.errors import ConfigError
from lightning_apps.sweeps.backends.backend import BackendError, Sign
from lightning_apps.sweeps.backends.settings import RaySettings
from tests.fakes.cluster_jobs import task, wait

ray = pytest.importorskip("ray", reason="the extra [ray] is not installed")
RayBackend = pytest.importorskip("lightning_apps.sweeps.backends.ray").RayBackend
Cluster = pytest.importorskip("ray.cluster_utils").Cluster
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster():
    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    yield started
    ray.shutdown()
    started.shutdown()


def test_jobs_signals_an_engine_that_was_killed_and_a_lost_node(cluster, tmp_path):
    second_node = cluster.add_node(num_cpus=1, resources={"second": 1})
    backend = RayBackend(tmp_path, RaySettings(address=cluster.address), places=None)
    assert str(backend) == "3 on Ray, 2 nodes"
    fine, wrong, long = (backend.submit(task(tmp_path, *job)) for job in [("a", 0, 0), ("b", 0, 2), ("c", 90, 0)])
    assert wait(backend, fine, "ended") == Sign("ended", 0)
    assert wait(backend, wrong, "ended") == Sign("ended", 2)
    wait(backend, long, "running")

    backend.close()  # as the death of the engine would
    backend = RayBackend(tmp_path, RaySettings(address=cluster.address, resources={"second": 1}), places=1)
    assert backend.recover({"a": fine, "c": long}) == {"c": long}
    elsewhere = backend.submit(task(tmp_path, "d", 90, 0))
    queued = backend.submit(task(tmp_path, "e", 90, 0))
    wait(backend, elsewhere, "running")
    assert backend.poll(queued) == Sign("queued")  # the second node has one core
    backend.cancel(queued, signal.SIGTERM)
    assert backend.poll(queued).phase == "ended"
    cluster.remove_node(second_node, allow_graceful=False)
    sign = wait(backend, elsewhere, "ended")
    assert (sign.code, sign.again) == (None, True)
    assert backend.poll(long) == Sign("running")

    backend.cancel(long, signal.SIGTERM)
    assert wait(backend, long, "ended") == Sign("ended", 128 + signal.SIGTERM)
    assert (tmp_path / "c.log").read_text() == f"started\nsignal {signal.SIGTERM.value}\n"
    with pytest.raises(BackendError, match=r"hardware\.num_nodes=1"):
        backend.submit(task(tmp_path, "f", nodes=2))
    backend.close()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense"])
def test_a_cluster_that_is_not_there_is_one_line(tmp_path, address):
    with pytest.raises(ConfigError, match=rf"^sweep\.ray\.address={address}: .*ray start --head"):
        RayBackend(tmp_path, RaySettings(address=address), places=1)
