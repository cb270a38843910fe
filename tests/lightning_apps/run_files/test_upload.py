"""Runs that go to an object store while they train, and come back from it."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from datamodules.storage.folder_lock import locked
from datamodules.storage.folders import StorageError, download_folder, remote_state, upload_folder
from lightning_apps import evaluate, upload
from lightning_apps.config.open_run import open_run
from lightning_apps.diagnostics.run_comparison import differences
from lightning_apps.errors import ConfigError
from lightning_apps.run_files.directory import RunDirectory
from lightning_apps.run_files.upload import upload_run
from lightning_apps.runs.experiment_run import run_experiment
from tests.asserts.patience import PATIENCE_S, wait_until
from tests.fakes.s3_server import SECRET, StallingProxy
from tests.tiny.tiny_runs import LOCATION
from tests.tiny.uploaded_runs import TO, local, small_run, uploaded

RUN = [
    *LOCATION,
    "trainer.max_steps=12",
    "trainer.evaluate_every=4",
    "trainer.save_every=3",
    "callbacks.checkpoints.monitor=val/loss",
    "callbacks.checkpoints.keep=1",
    "callbacks.weight_average=null",
]


def test_training_uploads_and_evaluating_from_there_gives_the_same_digits(s3, composed, tmp_path, monkeypatch, capsys):
    config = composed(*RUN, f"run.upload={TO}", "callbacks.extra.picture=null", name="a")
    run_experiment(config)
    out = capsys.readouterr().out
    assert "run.upload" not in out  # no trouble
    assert "uploaded  s3://bucket/runs/location/a: " in out
    run = Path(config["run"]["output_root"]) / "location" / "a"
    there, here = uploaded(s3), local(run)
    assert here.pop("train.log").startswith(there.pop("train.log"))
    assert there == here
    assert sorted(name for name in there if name.startswith("checkpoints/step")) == ["checkpoints/step=00000012.ckpt"]
    assert not (run / ".upload").exists()
    assert remote_state(f"{TO}/location/a") == "complete"
    assert SECRET not in (run / "config.yaml").read_text() + (run / "train.log").read_text()

    def evaluated(place):
        monkeypatch.setattr(sys, "argv", ["evaluate", f"run={place}", "checkpoint=best"])
        evaluate.main()
        return capsys.readouterr()

    monkeypatch.chdir(tmp_path)
    from_there, from_here = evaluated(f"{TO}/location/a"), evaluated(run)
    assert from_there.out.rpartition("files")[0] == from_here.out.rpartition("files")[0]
    (copy,) = (tmp_path / ".cache" / "runs").iterdir()
    assert f"run={TO}/location/a: its copy in .cache/runs/{copy.name} is used" in from_there.err
    metrics = [json.loads((place / "evaluations/validation-best/metrics.json").read_text()) for place in (copy, run)]
    assert repr(metrics[0]["metrics"]) == repr(metrics[1]["metrics"])

    finished = run_experiment(
        {**config, "run": {**config["run"], "resume": "auto"}}
    )  # it is complete: uploads the rest
    assert finished["status"] == "completed"
    assert "runs/location/a/evaluations/validation-best/metrics.json" in s3.objects()
    assert remote_state(f"{TO}/location/a") == "complete"


def test_a_run_that_fails_is_uploaded_too_and_fails_as_before(s3, composed, monkeypatch, capsys):
    import lightning_apps.runs.experiment_run as experiment_run

    def fail(*args):
        raise RuntimeError("the disk is on fire")

    monkeypatch.setattr(experiment_run, "export_model", fail)
    config = composed(*RUN, f"run.upload={TO}", "callbacks=default", "trainer.max_steps=2", name="a")
    with pytest.raises(RuntimeError, match="the disk is on fire"):
        run_experiment(config)
    assert json.loads(uploaded(s3)["summary.json"])["status"] == "failed"
    assert "uploaded" in capsys.readouterr().out


def test_a_refused_start_uploads_nothing(s3, composed):
    config = composed(*RUN, f"run.upload={TO}", name="a")
    small_run(Path(config["run"]["output_root"]) / "location" / "a")
    with pytest.raises(ConfigError, match="holds another run"):
        run_experiment(config)
    assert s3.objects() == []


def test_wrong_credentials_are_said_once_and_training_ends_well(s3, composed, monkeypatch, capfd):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    config = composed(*RUN, f"run.upload={TO}", "callbacks=default", name="a")
    assert run_experiment(config)["status"] == "completed"
    out, err = capfd.readouterr()
    assert out.count("run.upload: ") <= 1  # none where training was over before the first pass
    assert out.count("NOT UPLOADED: http://127.0.0.1") == 1
    assert "refuses the credentials (SignatureDoesNotMatch)" in out
    assert "Traceback" not in out + err
    assert "wrong-secret" not in out + err


def call(module, *arguments):
    sys.argv = ["upload", *map(str, arguments)]
    try:
        module.main()
    except SystemExit as stopped:
        return stopped.code
    return 0


def test_the_upload_command(s3, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.chdir(tmp_path)
    directory = small_run(tmp_path / "a")
    assert call(upload, f"run={directory.path}") == 0
    assert "uploaded  s3://bucket/runs/location/a: 3 files, 3 of them sent now" in capsys.readouterr().out
    assert uploaded(s3) == local(directory.path)
    assert call(upload, f"run={directory.path}", "to=s3://bucket/other") == 0
    assert "other/location/a/COMPLETE" in s3.objects()
    for arguments, code, expected in (
        (["run=nowhere"], 2, "no run is there"),
        ([f"run={directory.path}", "to=s3://buckte/x"], 2, "there is no bucket 'buckte'"),
        ([f"run={directory.path}", "to=outputs"], 2, "'outputs' is no URL of an object store"),
        (["run=s3://bucket/runs/location/a"], 2, "is in an object store already"),
        ([], 2, "run is missing"),
    ):
        capsys.readouterr()
        assert call(upload, *arguments) == code
        err = capsys.readouterr().err
        assert expected in err
        assert err.count("\n") == 1
    with locked(directory.path):
        assert call(upload, f"run={directory.path}") == 2
    assert "another process is uploading" in capsys.readouterr().err
    monkeypatch.setenv("LIGHTNING_APPS_STORAGE_PATIENCE_S", "0.2")
    s3.stop()
    assert call(upload, f"run={directory.path}") == 1
    err = capsys.readouterr().err
    assert err.startswith("error: StorageUnavailableError: http://127.0.0.1:")
    assert err.count("\n") == 1
    config = yaml.safe_load(directory.config.read_text())
    config["run"]["upload"] = None
    directory.config.write_text(yaml.safe_dump(config))
    assert call(upload, f"run={directory.path}") == 2
    assert "to is missing" in capsys.readouterr().err


def test_a_copy_of_a_run_does_not_replace_the_original(s3, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    original = small_run(tmp_path / "a")
    (tmp_path / "secret").write_text("mine")
    (original.path / "x.png").symlink_to(tmp_path / "secret")  # a link out of a stranger's run is left at home
    (original.path / ".lock").write_text("{}")
    assert call(upload, f"run={original.path}") == 0
    before = uploaded(s3)
    assert set(before) == {"config.yaml", "metrics.csv", "checkpoints/last.ckpt"}
    copy = RunDirectory(shutil.copytree(original.path, tmp_path / "copy", symlinks=True))
    copy.metrics.write_text("step\n1\n2\n")
    assert call(upload, f"run={copy.path}") == 0
    said = capsys.readouterr().out
    assert f"{copy.path} was the run a; it is uploaded as copy" in said
    assert "uploaded  s3://bucket/runs/location/copy: 3 files" in said
    assert uploaded(s3) == before
    assert uploaded(s3, "runs/location/copy")["metrics.csv"] == b"step\n1\n2\n"


def test_a_run_from_an_object_store(s3, tmp_path, monkeypatch, capsys):
    url, root = f"{TO}/location/lr=1e-3,[x]", str(tmp_path / "cache")
    directory = small_run(tmp_path / "a")
    with pytest.raises(ConfigError, match=r"run: s3://bucket/runs.*: nothing is there"):
        open_run(url, root)
    upload_folder(directory.path, url, complete=False)
    with pytest.raises(ConfigError, match=r"run: s3://bucket/runs.* is incomplete"):
        open_run(url, root)
    upload_run(directory.path, url)
    copy, config = open_run(url + "/", root)
    assert copy.path.parent == tmp_path / "cache" / "runs"
    assert copy.path.name.startswith("lr=1e-3,_x_-")
    assert (copy.checkpoints / "last.ckpt").read_bytes() == b"weights of step 1"
    assert config["run"]["cache_root"] == config["data"]["cache_root"] == root  # that of the run is not here
    (copy.path / "evaluations").mkdir()

    before = s3.log.read_text()
    assert open_run(url, root)[0].path == copy.path  # fetched once
    assert s3.log.read_text() == before
    (directory.checkpoints / "last.ckpt").write_bytes(b"weights of step 2")
    upload_run(directory.path, url)
    newer, _ = open_run(url, root)
    assert newer.path != copy.path
    assert (newer.checkpoints / "last.ckpt").read_bytes() == b"weights of step 2"
    assert (copy.path / "evaluations").exists()  # results are nobody's to delete
    (newer.checkpoints / "last.ckpt").write_bytes(b"weights of")
    with pytest.raises(ConfigError, match=r"last\.ckpt is not as it was downloaded; delete"):
        open_run(url, root)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIANOBODY")
    with pytest.raises(ConfigError, match="refuses the credentials"):
        open_run(url, root)


LONGER = [*RUN, "trainer.max_steps=90", "trainer.evaluate_every=20", "trainer.save_every=15", "hardware.num_workers=2"]


def start(tmp_path, cache_root, flag, *more, **environment):
    """A run that does its steps after the 20th one a second until `flag` exists."""
    command = [
        sys.executable, "-m", "lightning_apps.train", *LONGER, f"run.output_root={tmp_path}/outputs",
        f"run.cache_root={cache_root}", "run.name=a", "callbacks.extra.generation=null", "callbacks.extra.picture=null",
        f"+callbacks.extra.wait={{_target_:tests.fakes.wait_for_file.WaitForFile,step:21,path:{flag}}}", *more,
    ]  # fmt: skip
    environment = {**os.environ, "LIGHTNING_APPS_STORAGE_PATIENCE_S": "8", **environment}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def ended(process):
    """Exit code and output of a run; nothing went wrong that the program had not foreseen."""
    out, err = process.communicate(timeout=PATIENCE_S)
    assert "Traceback" not in out + err
    assert SECRET not in out + err
    return process.returncode, out


def until(condition, process):
    wait_until(lambda: condition() or process.poll() is not None)
    assert condition(), process.communicate()


def run_of(tmp_path):
    return tmp_path / "outputs" / "location" / "a"


def checkpoints(path):
    return {file.name: torch.load(file, weights_only=True) for file in sorted((path / "checkpoints").glob("*.ckpt"))}


@pytest.fixture(scope="module")
def reference(tmp_path_factory, cache_root):
    """Checkpoints of the same run without an upload."""
    path = tmp_path_factory.mktemp("reference")
    (path / "go").touch()
    assert ended(start(path, cache_root, path / "go"))[0] == 0
    return checkpoints(run_of(path))


def assert_same_checkpoints(path, reference):
    found = checkpoints(run_of(path))
    assert sorted(found) == sorted(reference) == ["best.ckpt", "last.ckpt", "step=00000090.ckpt"]
    for name, state in found.items():
        for key in ("state_dict", "optimizer_states"):
            assert differences(state[key], reference[name][key]) == []


@pytest.mark.slow
def test_files_arrive_while_the_run_goes_on(s3, tmp_path, cache_root, reference):
    flag = tmp_path / "go"
    process = start(tmp_path, cache_root, flag, f"run.upload={TO}")
    until(lambda: "runs/location/a/checkpoints/best.ckpt" in s3.objects(), process)
    assert remote_state(f"{TO}/location/a") == "incomplete"
    assert "runs/location/a/INCOMPLETE" in s3.objects()
    flag.touch()
    code, out = ended(process)
    assert code == 0
    assert "run.upload" not in out
    assert_same_checkpoints(tmp_path, reference)
    fetched = local(download_folder(f"{TO}/location/a", tmp_path / "fetched"))
    here = local(run_of(tmp_path))
    assert fetched.keys() - {"COMPLETE"} == here.keys()  # those of pruned checkpoints are gone
    assert {name for name in here if fetched[name] != here[name]} == {"train.log"}


@pytest.mark.slow
def test_a_server_that_dies_in_the_middle_of_a_checkpoint(s3, tmp_path, cache_root, reference):
    flag, proxy = tmp_path / "go", StallingProxy(s3, 20_000)  # the first pass takes half, a checkpoint is of 27,000
    process = start(tmp_path, cache_root, flag, f"run.upload={TO}", AWS_ENDPOINT_URL=proxy.endpoint)
    until(proxy.reached.is_set, process)
    s3.stop()
    proxy.close()
    flag.touch()
    code, out = ended(process)
    assert code == 0
    assert out.count("NOT UPLOADED: http://127.0.0.1") == 1
    assert_same_checkpoints(tmp_path, reference)
    assert "runs/location/a/config.yaml" in s3.objects()
    assert "runs/location/a/checkpoints/last.ckpt" not in s3.objects()
    s3.start()
    with pytest.raises(StorageError, match="is incomplete"):
        download_folder(f"{TO}/location/a", tmp_path / "fetched")
    command = next(line for line in out.splitlines() if "lightning_apps.upload" in line)
    done = subprocess.run([sys.executable, *shlex.split(command)[1:]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert uploaded(s3) == local(run_of(tmp_path))
    assert remote_state(f"{TO}/location/a") == "complete"


@pytest.mark.slow
def test_a_server_that_comes_back(s3, tmp_path, cache_root):
    s3.stop()
    flag = tmp_path / "go"
    process = start(tmp_path, cache_root, flag, f"run.upload={TO}", LIGHTNING_APPS_STORAGE_PATIENCE_S="1")
    log = run_of(tmp_path) / "train.log"
    until(lambda: log.exists() and "cannot be reached" in log.read_text(), process)
    s3.start()
    until(lambda: "takes files again" in log.read_text(), process)
    flag.touch()
    code, out = ended(process)
    assert code == 0
    assert out.count("cannot be reached") == 1
    assert remote_state(f"{TO}/location/a") == "complete"


@pytest.mark.slow
def test_a_server_that_was_never_there(s3, tmp_path, cache_root, reference):
    s3.stop()
    (tmp_path / "go").touch()
    code, out = ended(start(tmp_path, cache_root, tmp_path / "go", f"run.upload={TO}"))
    assert code == 0
    assert out.count("NOT UPLOADED: ") == 1
    assert "  0 of 17 files, not checkpoints/best.ckpt" in out
    assert_same_checkpoints(tmp_path, reference)


@pytest.mark.slow
def test_sigterm_saves_uploads_and_exits_with_its_code(s3, tmp_path, cache_root):
    process = start(tmp_path, cache_root, tmp_path / "never", f"run.upload={TO}")
    until(lambda: "runs/location/a/config.yaml" in s3.objects(), process)
    until((run_of(tmp_path) / "checkpoints" / "best.ckpt").exists, process)
    process.send_signal(signal.SIGTERM)
    code, _ = ended(process)
    assert code == 128 + signal.SIGTERM
    assert json.loads(uploaded(s3)["summary.json"])["status"] == "stopped"
    assert remote_state(f"{TO}/location/a") == "complete"


@pytest.mark.slow
def test_a_killed_run_takes_its_upload_with_it_and_resumes(s3, tmp_path, cache_root, reference):
    flag, proxy = tmp_path / "go", StallingProxy(s3, 20_000)
    process = start(tmp_path, cache_root, flag, f"run.upload={TO}", AWS_ENDPOINT_URL=proxy.endpoint)
    until(proxy.reached.is_set, process)
    run = run_of(tmp_path)
    with pytest.raises(BlockingIOError), locked(run, wait=False):
        pass
    process.kill()
    process.wait()
    with locked(run):  # waits for the upload process, whose end releases it
        pass
    proxy.close()
    assert remote_state(f"{TO}/location/a") == "incomplete"
    flag.touch()
    code, _ = ended(start(tmp_path, cache_root, flag, f"run.upload={TO}", "run.resume=auto"))
    assert code == 0
    assert_same_checkpoints(tmp_path, reference)
    assert remote_state(f"{TO}/location/a") == "complete"
    assert not (run / ".upload").exists()
