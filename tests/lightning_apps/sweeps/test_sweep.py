"""The sweep command: what it composes and refuses, and whole sweeps of tiny runs."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir

from lightning_apps import train, verify
from lightning_apps.config.checks import check_config
from lightning_apps.config.composition import CONF, plain
from lightning_apps.errors import ConfigError
from lightning_apps.run_files.metrics_csv import read_metrics
from lightning_apps.runs.build import wandb_run_id
from lightning_apps.sweeps import check_jobs as check_jobs_module
from lightning_apps.sweeps import places, sweep
from lightning_apps.sweeps.backends.local import is_running
from lightning_apps.sweeps.check_jobs import check_jobs
from lightning_apps.sweeps.grid import SweepSettings, expand, grid_axes
from lightning_apps.sweeps.places import make_places, num_cores
from lightning_apps.sweeps.state import read_state
from lightning_apps.sweeps.sweep import only_runner, without
from tests.asserts.patience import wait_until
from tests.fakes.fake_sweep import SETTINGS
from tests.tiny.tiny_runs import LOCATION

RUN = [*LOCATION, "trainer.max_steps=6", "trainer.evaluate_every=3", "callbacks.extra.picture=null"]


@pytest.fixture
def in_process(tmp_path, cache_root, monkeypatch):
    """The command in this process, with everything but training: jobs are noted, not run."""
    monkeypatch.chdir(tmp_path)
    noted = []

    class NoEngine(sweep.Engine):
        def run(self, source):
            self.source = source
            noted.extend(source.jobs)
            return 0

    def call(*arguments, run=RUN):
        noted.clear()
        flag = [word for word in arguments if word == "--multirun"]
        given = [*flag, *(word for word in arguments if word not in flag), *run, f"run.cache_root={cache_root}"]
        monkeypatch.setattr(sys, "argv", ["train", *given])
        train.main()
        return list(noted)

    monkeypatch.setattr(sweep, "Engine", NoEngine)
    monkeypatch.setattr(check_jobs_module, "ProcessPoolExecutor", InThisProcess)
    return call


class InThisProcess:
    """Checks the jobs here, where torch is imported already."""

    def __init__(self, *args, **kwargs): ...

    def __enter__(self):
        return self

    def __exit__(self, *args): ...

    def submit(self, function, *args):
        function(*args)
        return self

    def result(self): ...


GRID = ["sweep=grid", "sweep.name=s", "+sweep.grid.seed=[0,1]"]


def test_every_job_is_the_train_command_with_its_own_overrides(in_process, capsys):
    jobs = in_process(*GRID, "+sweep.grid.optimizer.lr=[1e-3,1e-2]", "sweep.overrides=['trainer.clip_norm=0.5']")
    assert [job.name for job in jobs] == ["lr=0.001,seed=0", "lr=0.01,seed=0", "lr=0.001,seed=1", "lr=0.01,seed=1"]
    assert jobs[1].overrides[0] == "experiment=location"
    assert jobs[1].overrides[1] == "trainer.clip_norm=0.5"
    own = ["seed=0", "optimizer.lr=0.01", "run.name='s-lr=0.01,seed=0'", "run.resume=auto", "run.group=s"]
    assert jobs[1].overrides[-5:] == own
    assert set(RUN) < set(jobs[1].overrides)
    assert not any(word.startswith("sweep") for job in jobs for word in job.overrides)
    assert jobs[1].run_directory == "outputs/location/s-lr=0.01,seed=0"
    state = read_state(Path("outputs/sweeps/s"))
    assert state.settings["trainer"]["clip_norm"] == 0.5
    assert "seed" not in state.settings
    assert "lr" not in state.settings["optimizer"]
    assert "s: 4 jobs of experiment location (2 seed x 2 lr)" in capsys.readouterr().out


def test_the_command_of_a_job_composes_to_its_place_in_the_grid(in_process):
    job = in_process(*GRID, "+sweep.grid.optimizer=[adamw,muon]", "+sweep.grid.data.countries=[[FR,DE],null]")[1]
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config = plain(compose("config", overrides=job.overrides))
    assert config["data"]["countries"] is None
    assert config["optimizer"]["_target_"] == "lightning_apps.training.optimizers.adamw"
    check_config(config)


def test_a_sweep_chooses_its_experiment_and_the_command_line_another(tmp_path):
    for group, name, text in (
        ("experiment", "other", "# @package _global_\ndefaults:\n  - override /data: location\nexperiment: other\n"),
        ("sweep", "mine", "defaults:\n  - grid\n  - override /experiment@_global_.experiment: other\nname: mine\n"),
    ):
        (tmp_path / group).mkdir()
        (tmp_path / group / f"{name}.yaml").write_text(text)
    search = f"hydra.searchpath=[file://{tmp_path}]"
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        assert compose("config", overrides=[search, "sweep=mine"]).experiment == "other"
        assert compose("config", overrides=[search, "sweep=mine", "experiment=location"]).experiment == "location"
        assert compose("config", overrides=[search]).sweep.grid == {}


def test_jobs_look_for_options_where_the_command_did(in_process, tmp_path):
    (tmp_path / "mine" / "sweep").mkdir(parents=True)
    text = "defaults:\n  - grid\nname: mine\ngrid:\n  seed: [3]\n"
    (tmp_path / "mine" / "sweep" / "mine.yaml").write_text(text)
    commands = []
    call = sweep.train_command
    sweep.train_command = lambda path: commands.append(path) or call(path)
    try:
        jobs = in_process("--config-dir", str(tmp_path / "mine"), "sweep=mine")
    finally:
        sweep.train_command = call
    assert [job.name for job in jobs] == ["seed=3"]
    assert commands == [[f"hydra.searchpath=['file://{tmp_path}/mine']"]]


def test_arxiv_scaling_composes_and_checks():
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        cfg = compose("config", overrides=["sweep=arxiv_scaling"])
        assert cfg.experiment == "arxiv"
        jobs = expand(grid_axes(plain(cfg)["sweep"]["grid"]))
        assert len(jobs) == 45
        check_config(plain(compose("config", overrides=["experiment=arxiv", *jobs[-1].overrides])))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["sweep=grd"], ["sweep=grd", "did you mean grid?", "arxiv_scaling"]),
        (["sweep=null"], ["sweep=null", "options of sweep", "~sweep"]),
        (["sweep=grid"], ["nothing is swept: list values, --multirun seed=0,1,2"]),
        (["sweep.name=s"], ["nothing is swept", "+sweep.grid.seed=[0,1,2]"]),
        (["--multirun", "seed=7"], ["nothing is swept"]),
        (["--multirun", "seed=1,2,1"], ["seed=1,2,1 lists 1 twice"]),
        (["--multirun", "seed=1,2", *GRID], ["seed=1,2 and sweep.grid.seed=[0,1] sweep one key"]),
        (["--multirun", "optimizer.lr=interval(0,1)"], ["an interval has no values to list", "sweep.search=optuna"]),
        (["--multirun", "sweep.search=optuna"], ["sweep.search: nothing is searched"]),
        (
            ["--multirun", "sweep.search=optuna", "optimizer.lr=interval(-1,0)"],
            ["job lr=-1.0: optimizer.lr"],
        ),
        (
            ["--multirun", "sweep.search=hyperopt", "seed=0,1"],
            ["allowed are optuna, or null"],
        ),
        (["--multirun", "sweep.search=optuna", "sweep.seed=-1", "seed=0,1"], ["sweep.seed=-1"]),
        (
            ["--multirun", "sweep.search=optuna", "sweep.objective=test/loss", "seed=0,1"],
            ["looks at val/ metrics only"],
        ),
        (["--multirun", "run.name=a,b"], ["run.name=a,b: run cannot be swept"]),
        (["--multirun", "sweep.retries=1,2"], ["sweep.retries=1,2: sweep cannot be swept"]),
        (["--multirun", "model=glob(nothing*)"], ["model=glob(nothing*): give at least one value"]),
        (["--multirun", "optimizer.lrr=1,2"], ["optimizer.lrr does not exist"]),
        (["sweep=grid", "sweep.grid.seed=[0]"], ["sweep.grid.seed", "add it with +sweep.grid.seed=<value>"]),
        (["sweep=grid", "sweep.grid={seed:[0]}"], ["sweep.grid", "add each with +sweep.grid.<name>=<value>"]),
        ([*GRID, "sweep.paralel=2"], ["sweep.paralel", "did you mean parallel?"]),
        ([*GRID, "sweep.parallel=two"], ["sweep.parallel='two'", "int"]),
        ([*GRID, "sweep.on_failure=retry"], ["sweep.on_failure='retry'", "allowed are continue, stop"]),
        ([*GRID, "sweep.name=a/b"], ["sweep.name='a/b'"]),
        ([*GRID, "seed=7"], ["seed=7: the sweep sets seed"]),
        ([*GRID, "run.name=x"], ["run.name=x", "choose another sweep.name"]),
        ([*GRID, "sweep.overrides=['seed=7']"], ["sweep.overrides: seed=7: the sweep sets seed"]),
        (
            [*GRID, "sweep.overrides=[experiment=imdb]"],
            ["sweep.overrides: experiment=imdb: ", "write experiment=imdb on the command line"],
        ),
        (
            [*GRID, "trainer.fast_dev_run=true"],
            ["job seed=0: trainer.fast_dev_run=True keeps nothing", "try one run without the sweep"],
        ),
        ([*GRID, "sweep.devices=[0,1]"], ["sweep.devices names GPUs", "hardware=gpu"]),
        ([*GRID, "+sweep.grid.optimizer.lrr=[1]"], ["optimizer.lrr does not exist"]),
        ([*GRID, "+sweep.grid.optimizer.lr=[1e-3,-1]"], ["job lr=-1,seed=0: optimizer.lr=-1", "not negative"]),
        ([*GRID, "+sweep.grid.trainer.max_tokens=[a]"], ["job max_tokens=a,seed=0: trainer.max_tokens", "'a'"]),
    ],
)
def test_mistakes_get_one_line_and_write_nothing(arguments, expected, in_process, capsys):
    with pytest.raises(SystemExit) as stopped:
        in_process(*arguments)
    err = capsys.readouterr().err
    assert stopped.value.code == 2, err
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    for part in expected:
        assert part in err
    assert not Path("outputs").exists()


def test_multirun_is_the_sweep(in_process, capsys):
    jobs = in_process("--multirun", "seed=range(0,2)", "optimizer=choice(adamw,muon)", "hardware.devices=2")
    assert [job.name for job in jobs] == [
        "optimizer=adamw,seed=0", "optimizer=muon,seed=0", "optimizer=adamw,seed=1", "optimizer=muon,seed=1",
    ]  # fmt: skip
    name = read_state(next(Path("outputs/sweeps").iterdir())).name
    own = ["seed=0", "optimizer=muon", f"run.name='{name}-optimizer=muon,seed=0'", "run.resume=auto"]
    assert jobs[1].overrides[-5:] == [*own, f"run.group='{name}'"]
    assert f"directory  outputs/sweeps/{name}" in capsys.readouterr().out
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config = plain(compose("config", overrides=jobs[1].overrides))
    assert config["hardware"]["devices"] == 2
    # values may be added, and a sweep that has a name is found by either door
    more = in_process("--multirun", "seed=range(0,3)", "optimizer=choice(adamw,muon)", "hardware.devices=2")
    assert [job.run_directory for job in more[:4]] == [job.run_directory for job in jobs]
    assert len(more) == 6
    (one,) = in_process("--multirun", "sweep.name=s", "seed=choice(5)")
    assert in_process("sweep.name=s", "+sweep.grid.seed=[5]")[0].run_directory == one.run_directory


def test_another_sweeper_is_refused(in_process, capsys):
    """It would start every job in this process, and Lightning the whole sweep again in each rank (Lightning#11300)."""
    with pytest.raises(SystemExit) as stopped:
        in_process("--multirun", "hydra/sweeper=basic", "seed=1,2", "hardware.devices=2")
    assert stopped.value.code == 2
    assert "leave hydra/sweeper away" in capsys.readouterr().err
    assert not Path("outputs/location").exists()


def test_multirun_of_several_experiments(in_process):
    jobs = in_process("--multirun", "experiment=location,arxiv", "sweep.name=both", run=["hardware=cpu"])
    assert [job.run_directory for job in jobs] == [
        f"outputs/{experiment}/both-experiment={experiment}" for experiment in ("location", "arxiv")
    ]


def test_a_start_that_contradicts_the_sweep_is_refused(in_process, capsys):
    in_process(*GRID)
    before = Path("outputs/sweeps/s/sweep.json").read_text()
    for argument, expected in (
        ("trainer.clip_norm=0.5", "was started with other settings (trainer.clip_norm: 1.0 then, 0.5 now)"),
        ("+sweep.grid.optimizer.lr=[1e-3]", "has the grid keys seed, now they are optimizer.lr, seed"),
    ):
        with pytest.raises(SystemExit) as stopped:
            in_process(*GRID, argument)
        assert stopped.value.code == 2
        assert expected in capsys.readouterr().err
    assert Path("outputs/sweeps/s/sweep.json").read_text() == before
    assert len(in_process(*GRID[:2], "+sweep.grid.seed=[1,2]", "hardware.num_workers=1")) == 2
    assert [job.name for job in read_state(Path("outputs/sweeps/s")).jobs] == ["seed=1", "seed=2", "seed=0"]


def test_a_run_that_was_made_otherwise_is_not_taken_for_a_job(in_process, capsys):
    (job, _) = in_process(*GRID)
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config = plain(compose("config", overrides=job.overrides))
    config["model"]["init_scale"] = 2.0
    Path(job.run_directory).mkdir(parents=True)
    Path(job.run_directory, "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit):
        in_process(*GRID)
    err = capsys.readouterr().err
    assert "s-seed=0 holds a run with other settings (model.init_scale: 2.0 then, 1.0 now)" in err


def test_two_runners_of_one_sweep_do_not_meet(tmp_path):
    with only_runner(tmp_path), pytest.raises(ConfigError, match=rf"another command.*process {os.getpid()} on "):  # noqa: SIM117
        with only_runner(tmp_path):
            raise AssertionError
    with only_runner(tmp_path):
        assert (tmp_path / "sweep.lock").exists()


def settings_with(**changes):
    return SweepSettings(**{**SETTINGS, **changes})


@pytest.mark.parametrize(
    ("parallel", "devices", "hardware", "cores", "expected"),
    [
        (None, None, ("cpu", 1), 8, [(None, None)]),
        (4, None, ("cpu", 1), 8, [(None, 2)] * 4),
        (4, None, ("cpu", 2), 8, [(None, 1)] * 4),
        (16, None, ("cpu", 1), 8, [(None, 1)] * 16),
        (None, [0, 1, 2], ("gpu", 1), 12, [("0", 4), ("1", 4), ("2", 4)]),
        (4, [0, "MIG-a"], ("gpu", 1), 8, [("0", 2), ("MIG-a", 2), ("0", 2), ("MIG-a", 2)]),
        (None, [0, 1, 2, 3], ("gpu", 2), 8, [("0,1", 4), ("2,3", 4)]),
    ],
)
def test_places_for_jobs(parallel, devices, hardware, cores, expected, monkeypatch):
    monkeypatch.setattr(places, "num_cores", lambda: cores)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    configs = {"a": {"hardware": {"accelerator": hardware[0], "devices": hardware[1]}}}
    rooms = make_places(settings_with(parallel=parallel, devices=devices), configs)
    assert [(slot.devices, slot.threads) for slot in rooms] == expected
    monkeypatch.setenv("OMP_NUM_THREADS", "3")  # the user's choice stays
    assert make_places(settings_with(parallel=4), configs)[0].threads is None
    with pytest.raises(ConfigError, match=r"3 devices cannot be shared out to jobs of hardware\.devices=2"):
        make_places(settings_with(devices=[0, 1, 2]), {"a": {"hardware": {"accelerator": "gpu", "devices": 2}}})


def test_settings_without_the_grid():
    assert without({"a": {"b": 1, "c": {"d": 2, "e": 3}}, "seed": 4}, ["a.c.d", "seed", "x.y"]) == {
        "a": {"b": 1, "c": {"e": 3}}
    }


def test_long_names_of_jobs_stay_apart_at_wandb():
    ids = {wandb_run_id("arxiv", f"arxiv_scaling-{'x' * 50},seed={seed}") for seed in range(3)}
    assert len(ids) == 3
    assert all(len(run_id) == 64 for run_id in ids)
    assert wandb_run_id("location", "default") == "location-default"
    assert wandb_run_id("location", "model.hidden_size=64") == "location-model.hidden_size=64"


def test_wandb_accepts_every_id():
    """W&B's own check, of names that differ in nothing but the signs that it refuses."""
    wandb = pytest.importorskip("wandb")
    names = [f"seed=1{sign}optimizer.lr=3e-4" for sign in ",:;#?/'% _\\@[]"]
    ids = [wandb_run_id("location", name) for name in names]
    assert len(set(ids)) == len(names)
    assert ids == [wandb_run_id("location", name) for name in names]
    for run_id in ids:
        assert len(run_id) <= 64
        assert wandb.Settings(run_id=run_id).run_id == run_id
        assert run_id.startswith("location-seed=1_optimizer.lr=3e-4")
    assert wandb_run_id("location", "seed=1,optimizer.lr=3e-4") == ids[0]


def test_verify_is_for_one_experiment(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["verify", *GRID])
    with pytest.raises(SystemExit) as stopped:
        verify.main()
    assert stopped.value.code == 2
    assert "without sweep=..." in capsys.readouterr().err


def test_a_wrong_job_is_named(composed):
    with pytest.raises(ConfigError, match=r"job b: optimizer\.lr=-1"):
        check_jobs({"a": composed(*LOCATION), "b": composed(*LOCATION, "optimizer.lr=-1")})


# Whole sweeps


def command(tmp_path, cache_root, *arguments):
    where = [f"run.output_root={tmp_path}", f"run.cache_root={cache_root}", "sweep=grid", "sweep.name=s"]
    return [sys.executable, "-m", "lightning_apps.train", *RUN, *where, *arguments]


def run(*args):
    return subprocess.run(command(*args), capture_output=True, text=True, timeout=1200)


def statuses(tmp_path):
    return {job.name: job.status for job in read_state(tmp_path / "sweeps" / "s").jobs}


@pytest.mark.slow
def test_a_search_by_two_places_is_complete_after_two_kills(tmp_path, cache_root):
    space = ["sweep.search=optuna", "sweep.trials=6", "sweep.parallel=2", "optimizer.lr=tag(log,interval(1e-4,1e-2))"]
    line = command(tmp_path, cache_root, *space)
    line.insert(3, "--multirun")
    for number in (1, 3):  # as soon as so many trials have ended
        engine = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(lambda: number <= len(list((tmp_path / "location").glob("s-lr=*/summary.json"))))  # noqa: B023
        engine.kill()
        engine.wait()
    done = subprocess.run(line, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    state = read_state(tmp_path / "sweeps" / "s")
    assert [job.status for job in state.jobs] == ["done"] * 6
    assert [trial["state"] for trial in state.search["trials"].values()] == ["complete"] * 6
    assert len({trial["job"] for trial in state.search["trials"].values()}) == 6
    for job in state.jobs:  # each step once, whatever happened in between
        assert [step for step, _ in losses(Path(job.run_directory))] == list(range(1, 7))
    assert "best  val/haversine_km_median_penalized " in done.stdout
    assert (tmp_path / "sweeps" / "s" / "report.html").is_file()
    again = subprocess.run(line, capture_output=True, text=True, timeout=1200)
    assert again.returncode == 0
    assert "started" not in again.stdout


@pytest.mark.slow
def test_a_search_gives_a_job_up_and_the_job_is_saved(tmp_path, cache_root):
    """Five good rates make the median; the sixth job is far behind."""
    budget = ["trainer.max_steps=100", "trainer.evaluate_every=10", "callbacks.weight_average=null"]
    search = ["sweep.search=optuna", "sweep.pruner=median", "sweep.objective=val/loss"]
    for number, space in ((5, "interval(0.01,0.02)"), (6, "interval(1e-6,2e-6)")):
        line = command(tmp_path, cache_root, *budget, *search, f"sweep.trials={number}", f"optimizer.lr={space}")
        line.insert(3, "--multirun")
        done = subprocess.run(line, capture_output=True, text=True, timeout=1200)
        assert done.returncode == 0, done.stdout + done.stderr
    state = read_state(tmp_path / "sweeps" / "s")
    assert [job.status for job in state.jobs] == ["done"] * 5 + ["pruned"]
    directory = Path(state.jobs[-1].run_directory)
    summary = json.loads((directory / "summary.json").read_text())
    assert (summary["status"], summary["reason"]) == ("stopped", "pruned")
    assert summary["optimizer_steps"] < 100
    assert (directory / "checkpoints" / "last.ckpt").is_file()
    assert losses(directory)[-1][0] == summary["optimizer_steps"]
    assert state.search["trials"]["5"]["state"] == "pruned"
    assert "5 of 6 jobs done, 1 pruned" in done.stdout


@pytest.mark.slow
def test_a_sweep_with_a_failing_job(tmp_path, cache_root):
    # a learning rate of 1e30 passes every check and makes NaN, which the guards answer with exit code 1
    grid = ["+sweep.grid.optimizer.lr=[1e30,1e-3]"]
    done = run(tmp_path, cache_root, *grid)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr == ""
    assert statuses(tmp_path) == {"lr=1e+30": "failed", "lr=0.001": "done"}
    assert "sweep ended: 1 of 2 jobs done" in done.stdout
    assert "FAILED   lr=1e+30 (exit code 1): error: GuardError: " in done.stdout
    assert "peak learning rate" not in done.stdout  # the jobs' own output stays in their logs
    assert "peak learning rate" in (tmp_path / "sweeps" / "s" / "logs" / "lr=1e+30.log").read_text()
    again = run(tmp_path, cache_root, *grid)
    assert again.returncode == 1
    assert "1 done, 1 failed before" in again.stdout
    assert "started" not in again.stdout


def wait_for_steps(tmp_path, names, number):
    paths = [tmp_path / "location" / f"s-{name}" / "metrics.csv" for name in names]
    wait_until(lambda: all(path.exists() and path.read_text().count("\n") > number for path in paths))


def losses(directory):
    return [(row["step"], row["train/loss"]) for row in read_metrics(directory / "metrics.csv")]


LONG = [
    "trainer.max_steps=400",
    "trainer.evaluate_every=never",
    "trainer.save_every=50",
    "callbacks.weight_average=null",
]


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_a_sweep_that_was_stopped_or_killed_goes_on_where_it_was(signum, tmp_path, cache_root):
    arguments = [*LONG, "+sweep.grid.seed=[0,1]", "sweep.parallel=2"]
    first = subprocess.Popen(
        command(tmp_path, cache_root, *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for_steps(tmp_path, ["seed=0", "seed=1"], 60)
    first.send_signal(signum)
    out, err = first.communicate(timeout=600)
    assert first.returncode == (-9 if signum == signal.SIGKILL else 128 + signum), err
    if signum == signal.SIGTERM:
        assert "go on with\n  python -m lightning_apps.train" in out
        assert statuses(tmp_path) == {"seed=0": "pending", "seed=1": "pending"}
        steps = [len(losses(tmp_path / "location" / f"s-seed={seed}")) for seed in (0, 1)]
        assert all(60 <= count < 400 for count in steps)
    # at once: orphans of a killed runner are still saving
    second = run(tmp_path, cache_root, *arguments)
    assert second.returncode == 0, second.stdout + second.stderr
    assert second.stdout.count("resumes") == 2
    assert statuses(tmp_path) == {"seed=0": "done", "seed=1": "done"}
    assert not any(is_running(tmp_path / "sweeps" / "s", name) for name in ("seed=0", "seed=1"))
    state = read_state(tmp_path / "sweeps" / "s")
    assert [job.attempts for job in state.jobs] == [2, 2]
    if signum == signal.SIGKILL:
        overrides = [word for word in state.job("seed=1").overrides if not word.startswith("run.")]
        whole = [f"run.output_root={tmp_path}", f"run.cache_root={cache_root}", "run.name=whole"]
        command_of_one = [sys.executable, "-m", "lightning_apps.train", *overrides, *whole]
        threads = str(max(1, num_cores() // 2))  # as many as a job of two at once has: sums depend on it
        environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)}
        subprocess.run(command_of_one, check=True, capture_output=True, env=environment)
        assert losses(tmp_path / "location" / "s-seed=1") == losses(tmp_path / "location" / "whole")


@pytest.mark.slow
def test_jobs_of_several_processes(tmp_path, cache_root):
    arguments = ["+sweep.grid.seed=[0]", "hardware=cpu_ddp"]
    done = run(tmp_path, cache_root, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert statuses(tmp_path) == {"seed=0": "done"}
    summary = json.loads((tmp_path / "location" / "s-seed=0" / "summary.json").read_text())
    assert (summary["status"], summary["optimizer_steps"]) == ("completed", 6)
