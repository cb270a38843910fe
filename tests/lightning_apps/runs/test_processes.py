"""The processes of a run: on two nodes, going on with another number of them, and not finding each other."""

import json
import os
import socket
import subprocess
import sys

import pytest

from lightning_apps.config.composition import CONF
from lightning_apps.diagnostics.sample_log import sample_log_row
from lightning_apps.run_files.directory import RunDirectory
from tests.asserts.patience import PATIENCE_S
from tests.fakes.ranks import free_port, largest_difference, run_on_ranks, start_ranks
from tests.tiny.tiny_runs import LOCATION

pytestmark = pytest.mark.slow

RUN = [*LOCATION[:-1], "model.num_hidden_layers=2", "data.global_batch_size=13", "data.device_batch_size=3",
       "data.num_validation=13", "trainer.max_steps=6", "trainer.evaluate_every=3", "trainer.log_every=1",
       "callbacks.extra.picture=null", "hardware.num_threads=1"]  # fmt: skip
TOLERANCE = 1e-6  # relative; sums of float32 in another order


def in_folder(root, cache_root, name):
    return [f"run.output_root={root}", f"run.cache_root={cache_root}", f"run.name={name}"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def whole(root, cache_root):
    run_on_ranks(1, [[*RUN, "hardware=cpu", *in_folder(root, cache_root, "whole")]], root)
    return RunDirectory(root / "location" / "whole")


def test_two_nodes_of_torchrun(root, cache_root, whole):
    """Rank, run name and directory come from what all nodes are started with; nobody starts a further process."""
    port = free_port()
    nodes = []
    for node in range(2):
        command = [
            sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={node}", "--nproc-per-node=1",
            "--master-addr=127.0.0.1", f"--master-port={port}", "-m", "lightning_apps.train", *RUN,
            "hardware=cpu_fsdp", "hardware.devices=1", "hardware.num_nodes=2", *in_folder(root, cache_root, "nodes"),
        ]  # fmt: skip
        nodes.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    said = [node.communicate(timeout=PATIENCE_S)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    run = RunDirectory(root / "location" / "nodes")
    assert largest_difference(whole.path, run.path) < TOLERANCE
    assert "on 2 x cpu" in run.log.read_text()
    assert "completed: reached" in said[0]
    assert "completed" not in said[1]  # one speaks


@pytest.mark.parametrize(
    "stages", [[(1, "cpu"), (2, "cpu_ddp"), (1, "cpu")], [(2, "cpu_ddp"), (2, "cpu_fsdp"), (1, "cpu")]]
)
def test_a_run_goes_on_with_another_strategy_and_number_of_processes(root, cache_root, whole, stages):
    """One step each, and the rest on the last: the same samples in the same order, and the same losses."""
    name = "-".join(hardware for _, hardware in stages)
    for number, (world, hardware) in enumerate(stages):
        limit = "00:00:00" if number < len(stages) - 1 else "01:00:00"
        words = [*RUN, f"hardware={hardware}", f"trainer.max_time='{limit}'", *in_folder(root, cache_root, name)]
        run_on_ranks(world, [[*words, *(["run.resume=auto"] if number else [])]], root)
        summary = json.loads((root / "location" / name / "summary.json").read_text())
        assert summary["optimizer_steps"] == (number + 1 if limit == "00:00:00" else 6)
    run = RunDirectory(root / "location" / name)
    assert largest_difference(whole.path, run.path) < TOLERANCE
    for step in range(1, 7):
        assert sample_log_row(whole.sample_log, step).tolist() == sample_log_row(run.sample_log, step).tolist()


def test_a_process_that_never_comes(root, cache_root):
    words = [*RUN, "hardware=cpu_ddp", "hardware.timeout_s=3", *in_folder(root, cache_root, "alone")]
    first, second = start_ranks(2, [sys.executable, "-m", "lightning_apps.train", *words])
    second.kill()
    said, _ = first.communicate(timeout=PATIENCE_S)
    second.communicate()
    assert first.returncode == 1
    (error,) = [line for line in said.split("\n") if line.startswith("error: ")]
    assert "did not meet at 127.0.0.1:" in error
    assert "within 3 s" in error
    assert "hardware.timeout_s" in error


def test_a_port_in_use(root, cache_root):
    words = [*RUN, "hardware=cpu_ddp", "hardware.timeout_s=20", *in_folder(root, cache_root, "port")]
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "lightning_apps.train", *words]
        first, second = start_ranks(2, command, MASTER_PORT=port, MASTER_ADDR="127.0.0.1")
        said, _ = first.communicate(timeout=PATIENCE_S)
    second.kill()
    second.communicate()
    assert first.returncode == 1
    (error,) = [line for line in said.split("\n") if line.startswith("error: ")]
    assert f"port {port} is in use by another program; set MASTER_PORT" in error


def test_a_failing_process_ends_all_with_its_own_error_first(root, cache_root):
    """It is the second one, which Lightning starts; the first one waits for it."""
    broken = (
        "from lightning_apps.experiments.causal_lm import CausalLMExperiment as E; right = E.loss_sum\n"
        "def loss_sum(self, batch):\n"
        "    if self.trainer.global_rank == 1 and self.trainer.global_step == 2:\n"
        "        raise ValueError('a sample cannot be read')\n"
        "    return right(self, batch)\n"
        "E.loss_sum = loss_sum\n"
        "from lightning_apps.train import main; main()\n"
    )
    words = [*RUN, "hardware=cpu_ddp", "trainer.evaluate_every=never", *in_folder(root, cache_root, "failing")]
    script = root / "failing.py"
    script.write_text(broken)
    own = {**os.environ, "PYTHONPATH": str(CONF.parent)}
    done = subprocess.run([sys.executable, script, *words], env=own, capture_output=True, text=True, timeout=PATIENCE_S)
    errors = [line for line in done.stderr.split("\n") if line.startswith("error: ")]
    assert done.returncode == 1, done.stderr
    assert "a sample cannot be read" in errors[0], done.stderr
    assert len(errors) == 1 or "waited for another one that is gone" in errors[1]
    assert "Traceback" not in done.stderr
    assert json.loads((root / "location" / "failing" / "summary.json").read_text())["status"] == "failed"


@pytest.mark.parametrize(
    ("name", "settings", "broken"),
    [
        ("ddp", ["hardware=cpu_ddp"], "checkpoint_files.torch.save"),
        ("consolidated", ["hardware=cpu_fsdp"], "checkpoint_files.torch.save"),
        ("sharded", ["hardware=cpu_fsdp", "callbacks.checkpoints.layout=sharded"], "sharded_checkpoint.save_file"),
    ],
)
def test_all_processes_know_of_a_checkpoint_that_could_not_be_written(root, cache_root, name, settings, broken):
    """In the background, of the best evaluation: one process meets the full disk, and all go on."""
    script = root / "full.py"
    script.write_text(
        "import os\n"
        "from lightning_apps.run_files import checkpoint_files, sharded_checkpoint\n"
        "from lightning_apps.callbacks.checkpoint_writer import CheckpointWriter\n"
        f"write, begin, step = {broken}, CheckpointWriter.begin, 0\n"
        "def note(self, trainer, names):\n"
        "    global step\n"
        "    step = trainer.global_step\n"
        "    return begin(self, trainer, names)\n"
        "def fill(*args, **kwargs):\n"
        "    if step == 3 and os.environ.get('LOCAL_RANK', '0') == os.environ['FULL']:\n"
        "        raise OSError(28, 'No space left on device')\n"
        "    return write(*args, **kwargs)\n"
        f"{broken}, CheckpointWriter.begin = fill, note\n"
        "from lightning_apps.train import main; main()\n"
    )
    best = ["callbacks.checkpoints.monitor=val/loss", "callbacks.checkpoints.mode=max"]
    words = [*RUN, *best, *settings, "callbacks.checkpoints.write=background", "trainer.save_every=3"]
    own = {**os.environ, "PYTHONPATH": str(CONF.parent), "FULL": "1" if name == "sharded" else "0"}
    command = [sys.executable, script, *words, *in_folder(root, cache_root, f"full-{name}")]
    done = subprocess.run(command, env=own, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    reason = "another process could not" if name == "sharded" else "No space left on device"
    assert done.stdout.count(f"checkpoint of step 3 could not be written: {reason}") == 1
    run = RunDirectory(root / "location" / f"full-{name}")
    summary = json.loads(run.summary.read_text())
    assert (summary["status"], summary["best"]["step"]) == ("completed", 6)
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["best.ckpt", "last.ckpt", "step=00000006.ckpt"]
