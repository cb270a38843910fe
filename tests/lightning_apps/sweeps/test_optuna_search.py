"""A search as the engine asks it, with jobs whose results are written here and not trained."""

import csv
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("optuna")
import optuna

from lightning_apps.errors import ConfigError
from lightning_apps.run_files.directory import RunDirectory
from lightning_apps.sweeps import spaces
from lightning_apps.sweeps.grid import SweepSettings, make_job, read_axis
from lightning_apps.sweeps.optuna_search import JOURNAL, OptunaSearch, read_objective
from lightning_apps.sweeps.search_pictures import draw_search
from lightning_apps.sweeps.spaces import check_search
from lightning_apps.sweeps.state import JobRecord, SweepState
from tests.fakes.fake_sweep import SETTINGS

LR = "optimizer.lr=tag(log,interval(1e-5,1e-1))"
SPACE = (LR, "model.hidden_size=range(16,65,16)", "optimizer=adamw,muon")


def axes_of(*words):
    axes = [read_axis(word, None) for word in words]
    return {axis.key: axis for axis in axes}


def settings_of(**changes):
    return SweepSettings(**{**SETTINGS, "search": "optuna", "trials": 6, **changes})


def loss_of(values):
    """Least at a learning rate of 1e-3; a larger model is better."""
    return abs(math.log10(values["optimizer.lr"]) + 3) + 1 / values.get("model.hidden_size", 64)


class Sweep:
    """A search in a folder; what one start leaves, another finds."""

    def __init__(self, folder, *words, objective=None, state=None, is_closed=lambda: False, **changes):
        axes = axes_of(*(words or SPACE))
        folder.mkdir(exist_ok=True)
        self.state = state or SweepState("s", "location", "python", {}, {}, [], {"objective": {}})
        self.settings = settings_of(**changes)

        def make_record(values):
            job = make_job(axes, values)
            return JobRecord(job.name, dict(values), list(job.overrides), str(folder / "location" / job.name))

        self.search = OptunaSearch(
            folder=folder, settings=self.settings, axes=axes, objective=objective or {"val/loss": "min"},
            state=self.state, make_record=make_record, is_closed=is_closed,
        )  # fmt: skip

    def run(self, most=100, result=loss_of, *, failing=()):
        """Run up to so many jobs one after the other; returns their values."""
        ran = []
        while len(ran) < most and (record := self.search.next()) is not None:
            record.status = "running"
            if len(ran) in failing:
                record.status, record.reason = "failed", "error: boom"
            else:
                evaluate(record, [3 * result(record.values), result(record.values)])
                record.status = "done"
            self.search.ended(record)
            ran.append(record.values)
        return ran

    def states(self):
        return [trial.state.name for trial in self.search.study.trials]


def evaluate(record, losses, *, finished=True, metric="val/loss", **others):
    """What a run writes: an evaluation a line, and the summary of one that is complete."""
    directory = RunDirectory(Path(record.run_directory))
    directory.path.mkdir(parents=True, exist_ok=True)
    with directory.metrics.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["step", metric])
        writer.writerows([[10 * (at + 1), repr(loss)] for at, loss in enumerate(losses)])
    if finished:
        best = {"metric": metric, "mode": "min", "value": min(losses), "metrics": {metric: min(losses), **others}}
        directory.summary.write_text(json.dumps({"status": "completed", "reason": "", "best": best, "wall_s": 1.0}))


def test_a_search_runs_its_budget_and_no_more(tmp_path):
    sweep = Sweep(tmp_path)
    ran = sweep.run()
    assert len(ran) == 6
    assert sweep.states() == ["COMPLETE"] * 6
    assert {type(values["model.hidden_size"]) for values in ran} == {int}
    assert {values["model.hidden_size"] for values in ran} <= {16, 32, 48, 64}
    assert all(1e-5 <= values["optimizer.lr"] <= 1e-1 for values in ran)
    assert {values["optimizer"] for values in ran} <= {"adamw", "muon"}
    assert [trial.value for trial in sweep.search.study.trials] == [loss_of(values) for values in ran]
    assert sweep.search.is_well()
    assert Sweep(tmp_path, state=sweep.state).run() == []
    # a larger budget goes on
    assert len(Sweep(tmp_path, state=sweep.state, trials=8).run()) == 2


@pytest.mark.parametrize("sampler", ["tpe", "random", "cmaes"])
def test_a_seed_repeats_a_search_however_often_it_is_killed(sampler, tmp_path):
    whole = Sweep(tmp_path / "whole", sampler=sampler, trials=14).run()
    assert Sweep(tmp_path / "other", sampler=sampler, trials=14, seed=1).run() != whole
    parts, state = [], None
    for _ in range(5):
        killed = Sweep(tmp_path / "killed", sampler=sampler, trials=14, state=state)
        parts += killed.run(most=3)
        state = killed.state
    assert parts == whole
    assert len({repr(values) for values in whole}) == 14


def test_a_grid_tries_each_combination_once(tmp_path):
    words = ("model.hidden_size=range(16,65,16)", "optimizer=adamw,muon", "optimizer.lr=1e-3,1e-2")
    sweep = Sweep(tmp_path, *words, sampler="grid", trials=100)
    assert sweep.search.total == 16
    ran = sweep.run(most=7)
    ran += Sweep(tmp_path, *words, sampler="grid", trials=100, state=sweep.state).run()
    assert len(ran) == len({repr(values) for values in ran}) == 16


def test_a_trial_that_ran_when_its_engine_was_killed_goes_on(tmp_path):
    first = Sweep(tmp_path)
    first.run(most=2)
    lost = [first.search.next(), first.search.next()]
    journal = tmp_path / JOURNAL
    with journal.open("ab") as file:  # killed while it wrote
        file.write(b'{"op_code": 4, "wor')
    (tmp_path / f"{JOURNAL}.lock").touch()
    lost[0].status = "pending"  # as the engine finds it, which has looked at the runs
    lost[1].status = "done"
    evaluate(lost[1], [loss_of(lost[1].values)])
    second = Sweep(tmp_path, state=first.state)
    ran = second.run()
    assert ran[0] == lost[0].values
    assert len(ran) == 3  # one went on, one had ended meanwhile, and two more make six
    assert second.states() == ["COMPLETE"] * 6
    assert [json.loads(line) for line in journal.read_text().splitlines()]


def test_a_lost_state_is_made_again_from_the_journal(tmp_path):
    sweep = Sweep(tmp_path)
    sweep.run(most=2)
    record = sweep.search.next()
    again = Sweep(tmp_path)
    assert [job.name for job in again.state.jobs] == [job.name for job in sweep.state.jobs]
    assert again.search.next().name == record.name


def test_values_that_were_tried_before_are_not_trained_again(tmp_path):
    sweep = Sweep(tmp_path, "optimizer.lr=1e-3,1e-2", trials=5)
    assert len(sweep.run()) == 2
    assert sweep.states() == ["COMPLETE"] * 5
    assert len(sweep.state.jobs) == 2


def test_a_failed_trial_counts_until_somebody_asks_for_it_again(tmp_path):
    sweep = Sweep(tmp_path, trials=3)
    sweep.run(failing=(1,))
    assert sweep.states() == ["COMPLETE", "FAIL", "COMPLETE"]
    assert Sweep(tmp_path, trials=3, state=sweep.state).run() == []
    sweep.state.jobs[1].status = "pending"  # what retry_failed does
    again = Sweep(tmp_path, trials=3, state=sweep.state)
    assert again.run() == [sweep.state.jobs[1].values]
    assert again.states() == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]


def test_a_search_whose_few_values_all_fail_ends(tmp_path):
    sweep = Sweep(tmp_path, "optimizer.lr=choice(1e-3,1e-2)", trials=6)
    assert sorted(values["optimizer.lr"] for values in sweep.run(failing=(0, 1))) == [1e-3, 1e-2]
    assert sweep.states() == ["FAIL"] * 6
    assert not sweep.search.is_well()
    assert Sweep(tmp_path, "optimizer.lr=choice(1e-3,1e-2)", trials=6, state=sweep.state).run() == []
    for record in sweep.state.jobs:
        record.status = "pending"  # what retry_failed does
    again = Sweep(tmp_path, "optimizer.lr=choice(1e-3,1e-2)", trials=6, state=sweep.state)
    assert len(again.run()) == 2
    assert again.states() == ["FAIL"] * 6 + ["COMPLETE"] * 6
    assert again.search.is_well()


def out_of_time(record, losses):
    """As the engine leaves a job that trainer.max_time ended."""
    evaluate(record, losses, finished=False)
    best = {"metric": "val/loss", "mode": "min", "value": min(losses), "metrics": {}} if losses else None
    summary = {"status": "stopped", "reason": "trainer.max_time: 4 s are over", "best": best}
    RunDirectory(Path(record.run_directory)).summary.write_text(json.dumps(summary))
    record.status, record.reason = "pending", summary["reason"]


def test_a_time_budget_is_no_failure_and_gives_a_result(tmp_path):
    sweep = Sweep(tmp_path, "optimizer.lr=1e-3,1e-2", trials=5)
    for _ in range(2):
        record = sweep.search.next()
        out_of_time(record, [loss_of(record.values)])
        sweep.search.ended(record)
    assert sweep.search.next() is None  # values that are drawn again are not trained again
    assert sweep.states() == ["COMPLETE"] * 5
    assert sweep.search.is_well()
    assert Sweep(tmp_path, "optimizer.lr=1e-3,1e-2", trials=5, state=sweep.state).run() == []


def test_a_job_whose_time_was_over_before_its_engine_came_back_is_told(tmp_path):
    sweep = Sweep(tmp_path, trials=1)
    record = sweep.search.next()
    out_of_time(record, [1.0])
    again = Sweep(tmp_path, trials=1, state=sweep.state)
    assert again.search.next() is None
    assert again.states() == ["COMPLETE"]
    assert again.search.is_well()


def test_a_job_whose_time_was_over_before_its_first_evaluation_gets_as_much_again(tmp_path):
    sweep = Sweep(tmp_path, "optimizer.lr=1e-3,1e-2", trials=3)
    while (record := sweep.search.next()) is not None:
        out_of_time(record, [])
        sweep.search.ended(record)
    assert sweep.states() == ["FAIL"] * 3
    assert not sweep.search.is_well()
    again = Sweep(tmp_path, "optimizer.lr=1e-3,1e-2", trials=3, state=sweep.state)
    assert len(again.run(most=2)) == 2
    assert again.search.is_well()


def test_values_that_need_no_job_are_drawn_until_no_job_is_started(tmp_path):
    asked = []
    sweep = Sweep(tmp_path, "optimizer.lr=1e-3,1e-2", trials=None, is_closed=lambda: asked.append(0) or len(asked) > 9)
    assert len(sweep.run()) == 2
    assert sweep.states() == ["COMPLETE"] * 9


def test_a_loss_that_is_no_number_is_a_failure(tmp_path):
    sweep = Sweep(tmp_path, trials=2)
    sweep.run(result=lambda values: math.nan)
    assert sweep.states() == ["FAIL", "FAIL"]
    assert not sweep.search.is_well()
    assert sweep.search.closing_lines(["python"]) == []


@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_a_job_that_is_worse_than_the_others_is_given_up(pruner, tmp_path):
    sweep = Sweep(tmp_path, trials=30, pruner=pruner)
    given_up, evaluations = [], 0
    while (record := sweep.search.next()) is not None:
        record.status = "running"
        losses = [loss_of(record.values) * (1 + 1 / at) for at in range(1, 10)]
        for number in range(1, 10):
            evaluate(record, losses[:number], finished=number == 9)
            evaluations += 1
            if sweep.search.look(record):
                record.status, record.reason = "pruned", "pruned"
                given_up.append(record)
                break
        else:
            record.status = "done"
        sweep.search.ended(record)
    assert [trial.state.name for trial in sweep.search.study.trials].count("PRUNED") == len(given_up)
    assert 5 <= len(given_up) < 25
    assert evaluations < 30 * 9
    best = min(loss_of(record.values) for record in sweep.state.jobs)
    assert sweep.search.study.best_value == pytest.approx(best * (1 + 1 / 9), rel=0.5)


def test_what_the_pruner_gave_up_stays_so_when_the_engine_is_killed_before_the_job_ended(tmp_path):
    sweep = Sweep(tmp_path, trials=7, pruner="median")
    sweep.run(most=6, result=lambda values: 1.0)
    record = sweep.search.next()
    evaluate(record, [100.0], finished=False)
    assert sweep.search.look(record)
    record.status = "pending"
    again = Sweep(tmp_path, trials=7, pruner="median", state=sweep.state)
    assert again.search.next() is None
    assert again.states() == ["COMPLETE"] * 6 + ["PRUNED"]
    assert record.status == "pruned"


def test_a_metric_that_no_run_logs_is_one_line_and_loses_nothing(tmp_path):
    sweep = Sweep(tmp_path, objective={"val/accuracy": "max"})
    record = sweep.search.next()
    evaluate(record, [2.0, 1.0])
    with pytest.raises(ConfigError, match=r"sweep\.objective=val/accuracy: no run logs it; evaluations log val/loss$"):
        sweep.search.look(record)
    record.status = "done"
    with pytest.raises(ConfigError, match="no run logs it"):
        sweep.search.ended(record)
    again = Sweep(tmp_path, state=sweep.state)  # with one that is there
    assert len(again.run()) == 5  # the values of the first are drawn again, and its job is done
    with pytest.raises(ConfigError, match=r"is of a search for val/loss; choose another sweep\.name"):
        Sweep(tmp_path, state=sweep.state, objective={"val/accuracy": "max"})


def test_several_objectives(tmp_path):
    sweep = Sweep(tmp_path, objective={"val/loss": "min", "val/accuracy": "max"}, trials=3)
    for loss, accuracy in ((1.0, 0.5), (2.0, 0.9), (3.0, 0.4)):
        record = sweep.search.next()
        evaluate(record, [loss], **{"val/accuracy": accuracy})
        record.status = "done"
        sweep.search.ended(record)
    lines = sweep.search.closing_lines(["python", "-m", "lightning_apps.train"])
    assert [re.sub(": hidden.*", "", line) for line in lines[::2]] == [
        "best  val/loss 1, val/accuracy 0.5", "best  val/loss 2, val/accuracy 0.9",
    ]  # fmt: skip


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_several_objectives_guide_a_sampler(sampler, tmp_path):
    sweep = Sweep(tmp_path, objective={"val/loss": "min", "val/accuracy": "max"}, trials=16, sampler=sampler)
    while (record := sweep.search.next()) is not None:
        loss = loss_of(record.values)
        evaluate(record, [loss], **{"val/accuracy": 1 / (1 + loss)})
        record.status = "done"
        sweep.search.ended(record)
    assert sweep.states() == ["COMPLETE"] * 16


def test_the_best_is_a_command_and_the_report_has_pictures(tmp_path):
    sweep = Sweep(tmp_path, trials=12)
    sweep.run(failing=(3,))
    best, command = sweep.search.closing_lines(["python", "-m", "lightning_apps.train"])
    values = min((job.values for job in sweep.state.jobs if job.status == "done"), key=loss_of)
    assert best.startswith(f"best  val/loss {loss_of(values):.6g}: ")
    expected = f"optimizer.lr={values['optimizer.lr']} model.hidden_size={values['model.hidden_size']}"
    assert command == f"  python -m lightning_apps.train {expected} optimizer={values['optimizer']}"
    sweep.search.note_importance()
    shares = sweep.state.search["importance"]["val/loss"]
    assert max(shares, key=shares.get) == "optimizer.lr"
    grid = {"optimizer.lr": [LR], "model.hidden_size": ["range(16,65,16)"], "optimizer": ["adamw,muon"]}
    search = json.loads(json.dumps({**sweep.state.search, "objective": {"val/loss": "min"}}))
    paths = [path for path, _, _ in draw_search(search, grid, tmp_path)]
    assert [path.name for path in paths] == [
        "search_history_val_loss.png", "search_importance_val_loss.png", "search_parallel_val_loss.png",
    ]  # fmt: skip
    assert all(path.stat().st_size > 5000 for path in paths)
    assert draw_search({"objective": {"val/loss": "min"}}, grid, tmp_path) == []


def test_the_dashboard_opens_the_journal(tmp_path):
    dashboard = pytest.importorskip("optuna_dashboard")
    Sweep(tmp_path).run()
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(tmp_path / JOURNAL)))
    assert dashboard.wsgi(storage) is not None
    (study,) = optuna.get_all_study_summaries(storage)
    assert (study.n_trials, study.study_name) == (6, "sweep")


@pytest.mark.parametrize(
    ("words", "changes", "expected"),
    [
        ((), {}, "sweep.search: nothing is searched"),
        (("optimizer.lr=interval(1,0)",), {}, r"optimizer\.lr=interval\(1,0\): the lower end must be below"),
        (("optimizer.lr=interval(0,inf)",), {}, "the lower end must be below"),
        (("optimizer.lr=tag(log,interval(0,1))",), {}, "a logarithmic interval begins above 0"),
        (("optimizer.lr=tag(log,choice(1,2))",), {}, "only an interval or a range can be logarithmic"),
        (("seed=tag(log,range(1,9,2))",), {}, "a range with steps cannot be logarithmic"),
        (("seed=tag(log,range(0,9))",), {}, "a logarithmic range begins above 0"),
        (("optimizer.lr=tag(lgo,interval(1,2))",), {}, "unknown tag lgo"),
        ((LR,), {"trials": 0}, "sweep.trials=0: must be at least 1"),
        ((LR,), {"trials": None}, "sweep.trials=null: give sweep.max_time"),
        ((LR,), {"sampler": "grid"}, r"sweep.sampler=grid: optimizer\.lr=tag.* has no values to list"),
        (("optimizer=adamw,muon",), {"sampler": "cmaes"}, "sweep.sampler=cmaes searches numbers"),
    ],
)
def test_a_wrong_space_is_one_line(words, changes, expected):
    with pytest.raises(ConfigError, match=expected) as error:
        check_search(settings_of(**changes), axes_of(*words))
    assert "\n" not in str(error.value)


def test_without_the_package_a_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(spaces.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the package optuna: pip install 'lightning-apps\[optuna\]'"):
        check_search(settings_of(), axes_of(LR))


def test_a_search_keeps_its_space(tmp_path):
    sweep = Sweep(tmp_path)
    sweep.run(most=1)
    with pytest.raises(ConfigError, match=r"optimizer=adamw,muon,x: a search cannot change what it chooses"):
        Sweep(tmp_path, *SPACE[:2], "optimizer=adamw,muon,x", state=sweep.state)
    with pytest.raises(ConfigError, match=r"the search knows .*, now the space has optimizer\.lr; choose another"):
        Sweep(tmp_path, LR, state=sweep.state)
    narrower = "optimizer.lr=tag(log,interval(1e-4,1e-2))"
    assert Sweep(tmp_path, narrower, *SPACE[1:], state=sweep.state).run(most=1)[0]["optimizer.lr"] <= 1e-2


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, {"val/f1": "max"}),
        ("val/f1", {"val/f1": "max"}),
        ("val/loss", {"val/loss": "min"}),
        ({"val/loss": "min", "val/x": "max"}, {"val/loss": "min", "val/x": "max"}),
        ("val/x", r"sweep\.objective=val/x: say which way"),
        ("test/loss", "selection looks at val/ metrics only"),
        ({"val/x": "down"}, "sweep.objective.val/x='down': allowed are min, max"),
    ],
)
def test_what_the_search_is_after(given, expected):
    settings, checkpoints = settings_of(objective=given), {"monitor": "val/f1", "mode": "max"}
    if isinstance(expected, dict):
        assert read_objective(settings, checkpoints) == expected
        return
    with pytest.raises(ConfigError, match=expected):
        read_objective(settings, checkpoints)


def test_with_several_objectives_nothing_is_pruned():
    settings = replace(settings_of(pruner="median"), objective={"val/loss": "min", "val/x": "max"})
    with pytest.raises(ConfigError, match=r"sweep\.pruner=median: with several objectives"):
        read_objective(settings, {"monitor": "val/loss", "mode": "min"})
