"""The back end of SLURM: submitit's local executor really started; scripts, states and numbers against a fake site."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lightning_apps.errors import ConfigError
from lightning_apps.sweeps.backends.backend import Handle, Sign
from lightning_apps.sweeps.backends.settings import SlurmSettings
from tests.asserts.patience import wait_until
from tests.fakes.cluster_jobs import JOB, task, wait

slurm = pytest.importorskip("lightning_apps.sweeps.backends.slurm", reason="needs [slurm]", exc_type=ImportError)
SlurmBackend = slurm.SlurmBackend

SCRIPT = """#!/bin/bash

# Parameters
#SBATCH --account=lab
#SBATCH --array=0-1%2
#SBATCH --cpus-per-task=4
#SBATCH --error=FOLDER/slurm/%A_%a/%A_%a_0_log.err
#SBATCH --gpus-per-node=2
#SBATCH --hint=nomultithread
#SBATCH --job-name=rates-TOKEN
#SBATCH --mem=16GB
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=2
#SBATCH --open-mode=append
#SBATCH --output=FOLDER/slurm/%A_%a/%A_%a_0_log.out
#SBATCH --partition=long
#SBATCH --signal=USR1@90
#SBATCH --time=30
#SBATCH --wckey=submitit

# setup
module load cuda

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output FOLDER/slurm/%A_%a/%A_%a_%t_log.out --error FOLDER/slurm/%A_%a/%A_%a_%t_log.err PYTHON -u \
-m submitit.core._submit FOLDER/slurm/%j
"""


def test_submitits_own_executor_runs_jobs_and_passes_signals_on(tmp_path):
    backend = SlurmBackend(tmp_path, "rates", SlurmSettings(), places=3, cluster="local")
    assert str(backend) == "3 on local"
    fine, wrong, long = (backend.submit(task(tmp_path, *job)) for job in [("a", 0, 0), ("b", 0, 2), ("c", 60, 0)])
    assert wait(backend, fine, "ended") == Sign("ended", 0)
    assert wait(backend, wrong, "ended") == Sign("ended", 2)
    while not (tmp_path / "c.log").exists() or "started" not in (tmp_path / "c.log").read_text():
        assert backend.poll(long).phase == "running"
        time.sleep(0.05)
    backend.cancel(long, signal.SIGTERM)
    assert wait(backend, long, "ended") == Sign("ended", 128 + signal.SIGTERM)
    assert (tmp_path / "c.log").read_text() == f"started\nsignal {signal.SIGTERM.value}\n"


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Commands of SLURM that write down what they were asked, and answer from files; returns their folder."""
    folder = tmp_path / "site"
    folder.mkdir()
    answers = {"sbatch": 'cp "$1" HERE/script; echo "Submitted batch job 7"', "srun": "exit 0", "scancel": "exit 0"}
    for name in ("sbatch", "srun", "scancel", "sacct", "squeue"):
        script = answers.get(name, f"cat HERE/{name}.txt 2>/dev/null").replace("HERE", str(folder))
        (folder / name).write_text(f'#!/bin/sh\necho "$@" >> {folder}/{name}.asked\n{script}\n')
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.setattr(slurm, "ASK_S", 0)
    monkeypatch.setattr(slurm, "APPEARS_S", 0.0)
    return folder


def states(site: Path, *rows: str) -> None:
    (site / "sacct.txt").write_text("\n".join(["JobID|State|NodeList", *rows]) + "\n")
    slurm.SlurmJob.watcher._last_status_check = float("-inf")  # submitit asks every two seconds at the most


def test_the_script_that_sbatch_gets(tmp_path, site):
    (tmp_path / "site.yaml").write_text("slurm_additional_parameters: {hint: nomultithread}\nslurm_partition: short\n")
    settings = SlurmSettings(
        partition="long", timeout_min=30, cpus_per_task=4, mem_gb=16, account="lab", setup=["module load cuda"],
        file=str(tmp_path / "site.yaml"),
    )  # fmt: skip
    backend = SlurmBackend(tmp_path, "rates", settings, places=8)
    assert str(backend) == "8 on slurm, partition long"
    handles = [backend.submit(task(tmp_path, name, accelerator="gpu", devices=2)) for name in "ab"]
    assert [backend.poll(handle) for handle in handles] == [Sign("queued"), Sign("queued")]
    script = (site / "script").read_text().rstrip() + "\n"
    script = re.sub(r"rates-[0-9a-f]{8}", "rates-TOKEN", script)
    assert script == SCRIPT.replace("FOLDER", str(tmp_path)).replace("PYTHON", sys.executable)
    known = json.loads((tmp_path / "slurm" / "slurm.json").read_text())
    assert known == {"submitting": {}, "jobs": {handles[0].key: "7_0", handles[1].key: "7_1"}}


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("PENDING", Sign("queued")),
        ("REQUEUED", Sign("queued")),
        ("RUNNING", Sign("running")),
        ("NODE_FAIL", Sign("ended", None, "the node failed", again=True)),
        ("PREEMPTED", Sign("ended", None, "pre-empted", again=True)),
        ("OUT_OF_MEMORY", Sign("ended", -9, "out of memory")),
        ("CANCELLED by 1000", Sign("ended", -9, "cancelled")),
        ("TIMEOUT", Sign("ended", -9, "the time limit of the job is over")),
    ],
)
def test_what_slurm_says_of_a_job(tmp_path, site, state, expected):
    backend = SlurmBackend(tmp_path, "rates", SlurmSettings(), places=1)
    handle = backend.submit(task(tmp_path, "a"))
    backend.poll(handle)
    states(site, f"7|{state}|node1", "7.batch|RUNNING|node1")
    assert backend.poll(handle) == expected


def test_a_folder_that_the_nodes_do_not_share(tmp_path, site):
    backend = SlurmBackend(tmp_path, "rates", SlurmSettings(), places=1)
    handle = backend.submit(task(tmp_path, "a"))
    backend.poll(handle)
    states(site, "7|COMPLETED|node1")
    backend.poll(handle)
    sign = backend.poll(handle)
    assert (sign.phase, sign.code) == ("ended", 1)
    assert sign.note == f"completed, and left no exit code in {tmp_path / 'slurm'}: do the nodes share this folder?"


def test_an_engine_that_was_killed_finds_its_jobs_again(tmp_path, site):
    first = SlurmBackend(tmp_path, "rates", SlurmSettings(), places=2)
    handles = {name: first.submit(task(tmp_path, name)) for name in "ab"}
    first.poll(handles["a"])
    lost = first.submit(task(tmp_path, "c"))  # killed before it was submitted
    states(site, "7_[0-1]|PENDING|")
    second = SlurmBackend(tmp_path, "rates", SlurmSettings(), places=2)
    assert second.recover({**handles, "c": lost, "d": Handle("")}) == handles
    states(site, "7_0|RUNNING|node1", "7_1|OUT_OF_MEMORY|node1")
    assert [second.poll(handle).phase for handle in handles.values()] == ["running", "ended"]

    # killed after sbatch, before it could write the number down
    number = json.loads((tmp_path / "slurm" / "slurm.json").read_text())
    keys = [handle.key for handle in handles.values()]
    (tmp_path / "slurm" / "slurm.json").write_text(json.dumps({"submitting": {"rates-01234567": keys}, "jobs": {}}))
    (site / "squeue.txt").write_text("7\n7\n")
    third = SlurmBackend(tmp_path, "rates", SlurmSettings(), places=2)
    assert third.recover(handles) == handles
    assert "--name=rates-01234567" in (site / "squeue.asked").read_text()
    assert json.loads((tmp_path / "slurm" / "slurm.json").read_text()) == number


def test_signals_reach_the_jobs_of_the_cluster(tmp_path, site):
    backend = SlurmBackend(tmp_path, "rates", SlurmSettings(), places=2)
    sent, waiting = backend.submit(task(tmp_path, "a")), None
    backend.poll(sent)
    waiting = backend.submit(task(tmp_path, "b"))
    for handle in (sent, waiting):
        backend.cancel(handle, signal.SIGUSR1)
    backend.cancel(sent, signal.SIGKILL)
    assert (site / "scancel.asked").read_text() == "--signal=SIGTERM 7\n7\n"
    assert backend.poll(waiting) == Sign("ended", None, "cancelled before it was submitted")


def test_mistakes_are_one_line(tmp_path, site, monkeypatch):
    with pytest.raises(ConfigError, match=r"^sweep\.slurm\.file=.*none\.yaml: .*No such file"):
        SlurmBackend(tmp_path, "rates", SlurmSettings(file=str(tmp_path / "none.yaml")), places=1)
    (tmp_path / "site.yaml").write_text("slurm_partitoin: gpu\n")
    with pytest.raises(ConfigError, match=r"^sweep\.backend=slurm: .*partitoin.*use sweep\.backend=local$"):
        SlurmBackend(tmp_path, "rates", SlurmSettings(file=str(tmp_path / "site.yaml")), places=1)
    (site / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition specified: lnog' >&2; exit 1\n")
    backend = SlurmBackend(tmp_path, "rates", SlurmSettings(partition="lnog"), places=1)
    sign = backend.poll(backend.submit(task(tmp_path, "a")))
    assert (sign.phase, sign.code) == ("ended", None)
    assert sign.note.startswith("sbatch refused it: ")
    assert "invalid partition specified: lnog" in sign.note
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match=r'^sweep\.backend=slurm: Could not detect "srun"'):
        SlurmBackend(tmp_path, "rates", SlurmSettings(), places=1)


WORKER = """
import signal, sys
from pathlib import Path
from lightning_apps.sweeps.backends.slurm import SlurmTask

task = SlurmTask(sys.argv[4:], Path(sys.argv[1]), Path(sys.argv[2]), code=Path(sys.argv[3]))
def preempt(*_):
    again = task.checkpoint()
    sys.exit(7 if again.function is task and task.process is None else 8)
signal.signal(signal.SIGUSR1, preempt)
task()
"""


def test_a_job_that_loses_its_place_saves_and_is_queued_again(tmp_path):
    log, code = tmp_path / "log", tmp_path / "code"
    job = [sys.executable, "-c", JOB, "300", "0"]
    with subprocess.Popen([sys.executable, "-c", WORKER, log, tmp_path, code, *job]) as worker:
        wait_until(lambda: log.exists() and "started" in log.read_text())
        worker.send_signal(signal.SIGUSR1)
        assert worker.wait(50) == 7  # less than what a job is given before it is killed
    assert log.read_text() == f"started\nsignal {signal.SIGUSR1.value}\n"
    assert not code.exists()  # it has not ended
