"""Reports of synthetic sweeps: numbers exact, pages self-contained and escaped."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from jinja2 import ChoiceLoader, DictLoader, UndefinedError
from matplotlib.axes import Axes
from PIL import Image

from lightning_apps import report as report_command
from lightning_apps.errors import ConfigError
from lightning_apps.process.file_lock import try_lock
from lightning_apps.reports.page import ENVIRONMENT, Table, page
from lightning_apps.run_files.directory import RunDirectory
from lightning_apps.statistics.t_interval import mean_interval
from lightning_apps.sweeps.analysis import effects, growing_groups, in_context, scaling
from lightning_apps.sweeps.report import write_sweep_report
from lightning_apps.sweeps.results import find_sweep, read_curve, read_sweep, show
from lightning_apps.sweeps.scaling_picture import PositionLine, colours, draw_in_context, metric_unit, short_count
from lightning_apps.sweeps.state import read_state
from tests.asserts.browser import browser, violations
from tests.asserts.html_pages import Page
from tests.fakes.synthetic_sweep import loss_of, write_sweep

STUDY = {
    "seed": [0, 1, 2],
    "trainer": {"max_tokens": [10**6, 4 * 10**6, 16 * 10**6]},
    "data": {"num_categories": [1, 2, 3]},
}
MISSING = "max_tokens=16000000,num_categories=3,seed=2"
EVIL = "<script>alert('x')</script>"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = write_sweep(tmp_path_factory.mktemp("study"), STUDY, leave_out=(MISSING,))
    files, said = write_sweep_report(folder)
    return folder, files, said


def test_every_file_is_there_and_the_pictures_are_pictures(study):
    _, files, _ = study
    names = [
        "report.html",
        "table.csv",
        "results.json",
        "final_num_categories.png",
        "loss_tokens.png",
        "in_context.png",
    ]
    assert [path.name for path in files] == names
    for path in files[3:]:
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert len(picture.convert("RGB").resize((60, 30)).getcolors(4000)) > 10  # not blank


def test_the_table_has_every_digit(study):
    folder, _, _ = study
    rows = list(csv.DictReader((folder / "table.csv").open()))
    assert len(rows) == 27
    for row in rows:
        if row["job"] == MISSING:
            assert (row["status"], row["reason"], row["val/loss"]) == ("missing", "not started", "")
            continue
        categories, tokens, seed = (int(row[key]) for key in ("data.num_categories", "trainer.max_tokens", "seed"))
        assert float(row["val/loss"]) == loss_of(categories, tokens, seed)
        summary = folder.parents[1] / "arxiv" / f"study-{row['job']}" / "summary.json"
        assert float(row["val/perplexity"]) == json.loads(summary.read_text())["metrics"]["val/perplexity"]
        assert (row["status"], int(row["tokens_seen"])) == ("completed", tokens)
        assert float(row["wall_s"]) == 10.0 + seed


def test_means_and_intervals_over_seeds(study):
    folder, _, _ = study
    groups = json.loads((folder / "results.json").read_text())["groups"]
    assert len(groups) == 9
    for group in groups:
        categories, tokens = group["values"]["data.num_categories"], group["values"]["trainer.max_tokens"]
        seeds = (0, 1) if (categories, tokens) == (3, 16 * 10**6) else (0, 1, 2)
        expected = mean_interval([loss_of(categories, tokens, seed) for seed in seeds])
        assert group["metrics"]["val/loss"] == pytest.approx(vars(expected))
        assert len(group["runs"]) == len(seeds)


def test_the_page_shows_the_same_numbers(study):
    folder, _, _ = study
    page = Page((folder / "report.html").read_text())
    mean = mean_interval([loss_of(2, 4 * 10**6, seed) for seed in range(3)])
    row = next(row for row in page.rows if row[:3] == ["4,000,000", "2", "3"])
    assert row[3] == f"{mean.value:,.5g} ± {mean.high - mean.value:.2g}"
    run = next(row for row in page.rows if row[:4] == ["1", "4,000,000", "2", "completed"])
    assert run[4:8] == ["20", "4,000,000", "11", f"{loss_of(2, 4 * 10**6, 1):.5g}"]
    text = " ".join(page.text)
    assert "26 completed, 1 missing" in text
    assert f"{MISSING}: missing (not started)" in text


def test_the_page_needs_nothing_from_outside(study):
    folder, _, _ = study
    document = (folder / "report.html").read_text()
    page = Page(document)
    assert not {"script", "link", "iframe", "object", "form"} & set(page.tags)
    sources = [value for name, value in page.attributes if name in ("src", "href", "srcset", "action", "poster")]
    assert len(sources) == 3
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert "url(" not in document
    assert "//" not in " ".join(value for name, value in page.attributes if name != "src" and value)
    alternatives = [value for name, value in page.attributes if name == "alt"]
    assert len(alternatives) == 3
    assert all(len(text) > 40 for text in alternatives)
    policy = [value for name, value in page.attributes if name == "content"]
    assert any("default-src 'none'" in value for value in policy)
    assert ("lang", "en") in page.attributes
    assert any("width=device-width" in value for value in policy)
    assert "@media print" in document


def test_scaling_over_budgets(study):
    folder, _, said = study
    (first, _, third) = scaling(read_sweep(folder))
    assert first.fixed == {"data.num_categories": 1}
    assert first.source == "budgets"
    (law,) = first.laws
    assert (law.num_points, law.method, law.exponent.n, law.tokens) == (9, "seeds", 3, (1e6, 1.6e7))
    x, y = np.log([1e6, 4e6, 1.6e7]), np.log([loss_of(1, tokens, 1) for tokens in (1e6, 4e6, 1.6e7)])
    assert law.exponent.value == pytest.approx(-np.polyfit(x, y, 1)[0])
    assert any("bend" in caution for caution in law.cautions)  # the synthetic law has an offset
    assert "needs at least 5" in first.refusals[0]
    assert third.laws[0].exponent.n == 2
    sentence = next(text for text in said if text.startswith("Loss against tokens"))
    assert "final losses of separate budgets, 1,000,000 to 16,000,000 tokens" in sentence
    assert "Mind for all of them: the points bend" in sentence


def test_scaling_within_runs_where_budgets_are_too_few(tmp_path):
    folder = write_sweep(tmp_path, {"seed": [0, 1], "data": {"num_categories": [1, 2]}})
    series = scaling(read_sweep(folder))[0]
    assert series.source == "curve"
    pure, offset = series.laws
    # 20 evaluations, of which 2 lie in the warmup of a tenth
    assert (pure.num_points, offset.num_points) == (36, 36)
    assert pure.tokens == (600_000.0, 4_000_000.0)
    assert offset.exponent.value == pytest.approx(0.3, abs=1e-4)
    assert offset.irreducible == pytest.approx(2.1, rel=2e-3)
    assert series.believed is offset
    _, said = write_sweep_report(folder)
    assert any("not the law of separate budgets" in text for text in said)


def test_evaluations_between_logged_steps_keep_their_place(tmp_path):
    write_sweep(tmp_path, {"seed": [0]})
    directory = RunDirectory(tmp_path / "arxiv" / "study-seed=0")
    whole = read_curve(directory)
    with directory.metrics.open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        if int(row["step"]) % 5:  # as trainer.log_every=5 leaves it
            row["train/tokens"] = row["train/loss"] = ""
    with directory.metrics.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    np.testing.assert_allclose(read_curve(directory), whole)
    assert len(whole[0]) == 18


def test_the_words_follow_the_numbers(study):
    _, _, said = study
    text = "\n".join(said)
    assert "val/loss against num_categories, change for each step of 1" in text
    assert "at max_tokens 1,000,000 it rises, +0.1 (" in text
    assert "from 3.6 at 1 to 3.8 at 3" in text
    assert "The exponent of A * D^-alpha falls with num_categories" in text
    assert "num_categories 1: 0.35 (0.35 to 0.35, 3 seeds)" in text  # held-out above chosen
    assert "This falls with num_categories: -0.05 " in text
    assert "Read with care" in text


def test_no_direction_is_named_without_evidence(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.fakes.synthetic_sweep.loss_of", lambda k, d, s: 3.0 + 0.1 * ((7 * k + 5 * s) % 4))
    noisy = write_sweep(tmp_path, {"seed": [0, 1, 2], "data": {"num_categories": [1, 2, 3]}}, in_context=False)
    (effect,) = effects(read_sweep(noisy), "val/loss")
    assert not effect.slope.excludes_zero
    _, said = write_sweep_report(noisy)
    assert "it shows no clear direction" in said[0]
    # a loss that never falls has no power law
    assert any("not to be believed (the interval of the exponent includes 0" in text for text in said)
    one = write_sweep(tmp_path, {"seed": [0], "data": {"num_categories": [1, 2]}}, name="one", in_context=False)
    _, said = write_sweep_report(one)
    assert "it has too few runs to name a direction" in said[0]
    assert "(one seed, no interval)" in said[0]


def test_in_context_curves(study):
    folder, _, _ = study
    first = in_context(read_sweep(folder))[0]
    assert first.fixed == {"trainer.max_tokens": 16 * 10**6, "data.num_categories": 1}  # the largest budget only
    assert first.num_seeds == 3
    position = np.arange(1, 41)
    curves = [loss_of(1, 16e6, seed) + 0.5 * np.exp(-position / 8) * (1 + 0.05 * seed) for seed in range(3)]
    mean, low, high = first.curves.chosen
    np.testing.assert_allclose(mean, np.mean(curves, axis=0))
    expected = mean_interval([curve[17] for curve in curves])
    assert (low[17], high[17]) == pytest.approx((expected.low, expected.high))
    # the picture pools positions within each run before it averages over runs
    groups = growing_groups(40)
    assert [group.start for group in groups[1:]] == [group.stop for group in groups[:-1]]
    assert (groups[0], groups[-1].stop) == (slice(0, 1), 40)
    expected = mean_interval([curve[groups[-1]].mean() for curve in curves])
    assert first.pooled.chosen[0][-1] == pytest.approx(expected.value)
    assert first.pooled.chosen[1][-1] == pytest.approx(expected.low)
    assert first.pooled.position[-1] == position[groups[-1]].mean()
    assert first.gains[1] == pytest.approx(curves[1][:4].mean() - curves[1][-4:].mean())
    assert first.gaps == pytest.approx({0: 0.35, 1: 0.35, 2: 0.35})


def test_a_sweep_without_categories_or_budgets_has_no_study(tmp_path):
    grid = {"seed": [0, 1], "optimizer": ["adamw", "muon"], "model": {"init_scale": [0.5, 1.0]}}
    folder = write_sweep(tmp_path, grid, experiment="location", in_context=False)
    files, said = write_sweep_report(folder)
    assert [path.name for path in files[3:]] == ["final_optimizer.png", "final_init_scale.png", "loss_tokens.png"]
    assert any(text.startswith("val/loss by optimizer: at init_scale 0.5 lowest with adamw") for text in said)
    assert any(text.startswith("val/loss against init_scale") for text in said)
    assert not any("tokens" in text or "context" in text for text in said)
    assert "Power laws" not in (folder / "report.html").read_text()


def test_lists_mappings_and_null_are_values_without_an_order(tmp_path):
    grid = {
        "seed": [0, 1],
        "optimizer": {"betas": [[0.9, 0.95], [0.9, 0.99]]},
        "data": {"num_categories": [1, 2, None], "mixture": [{"a": 1}, {"a": 2}]},
        "trainer": {"max_tokens": [10**6, None]},
    }
    folder = write_sweep(tmp_path, grid)
    files, said = write_sweep_report(folder)
    names = ["final_betas.png", "final_num_categories.png", "final_mixture.png", "loss_tokens.png", "in_context.png"]
    assert [path.name for path in files[3:]] == names
    text = "\n".join(said)
    others = "mixture {'a': 1}, max_tokens 1,000,000 lowest with"
    assert f"val/loss by betas: at num_categories 1, {others} [0.9, 0.95]" in text
    assert f"val/loss by num_categories: at betas [0.9, 0.95], {others} 1" in text
    rows = list(csv.DictReader((folder / "table.csv").open()))
    assert [row["optimizer.betas"] for row in rows[::12]] == ["[0.9, 0.95]", "[0.9, 0.99]"] * 2


def test_every_status_is_told(tmp_path):
    grid = {"seed": [0, 1, 2, 3, 4, 5]}
    folder = write_sweep(tmp_path, grid, leave_out=("seed=1", "seed=2", "seed=3", "seed=4"), in_context=False)
    state = read_state(folder)
    state.job("seed=1").status, state.job("seed=1").reason = "failed", "error: boom"
    state.job("seed=2").status, state.job("seed=2").attempts = "running", 1  # its runner was killed
    stopped = tmp_path / "arxiv" / "study-seed=5" / "summary.json"
    stopped.write_text(stopped.read_text().replace('"completed"', '"stopped"').replace("reached the budget", "SIGTERM"))
    state.write(folder)
    (folder / "locks").mkdir()
    lock = try_lock(folder / "locks" / "seed=4.lock")
    jobs = {job.name: (job.status, job.reason) for job in read_sweep(folder).jobs}
    assert lock is not None
    assert jobs == {
        "seed=0": ("completed", "reached the budget"),
        "seed=1": ("failed", "error: boom"),
        "seed=2": ("interrupted", "ended without a summary"),
        "seed=3": ("missing", "not started"),
        "seed=4": ("running", "still at work"),
        "seed=5": ("stopped", "SIGTERM"),
    }
    assert [len(group.jobs) for group in read_sweep(folder).groups()] == [1]  # what is not complete does not count


def test_a_sweep_without_any_result_has_a_report(tmp_path):
    folder = write_sweep(
        tmp_path, {"seed": [0], "data": {"num_categories": [1]}}, leave_out=("num_categories=1,seed=0",)
    )
    files, said = write_sweep_report(folder)
    assert said[0].startswith("Nothing yet")
    assert len(files) == 3


def test_results_can_be_moved(study, tmp_path):
    import shutil

    folder, _, _ = study
    shutil.copytree(folder.parent.parent, tmp_path / "moved")
    moved = read_sweep(tmp_path / "moved" / "sweeps" / "study")
    assert len(moved.completed) == 26
    assert all(job.directory.is_relative_to(tmp_path) for job in moved.completed)


def test_a_damaged_file_of_a_run_is_named(tmp_path):
    folder = write_sweep(tmp_path, {"seed": [0], "data": {"num_categories": [1]}})
    (tmp_path / "arxiv" / "study-num_categories=1,seed=0" / "in_context" / "test.npz").write_bytes(b"PK\x03\x04 no")
    with pytest.raises(ConfigError, match=r"num_categories=1,seed=0: a file of this run cannot be read"):
        read_sweep(folder)


@pytest.mark.parametrize("text", ['{"status": "completed"}', '{"status": "completed", "reason": "", "metrics": []}'])
def test_an_odd_summary_of_a_run_is_named(text, tmp_path):
    folder = write_sweep(tmp_path, {"seed": [0], "data": {"num_categories": [1]}})
    (tmp_path / "arxiv" / "study-num_categories=1,seed=0" / "summary.json").write_text(text)
    with pytest.raises(ConfigError, match=r"num_categories=1,seed=0: a file of this run cannot be read"):
        read_sweep(folder)


def test_npz_from_outside_is_never_unpickled(tmp_path):
    folder = write_sweep(tmp_path, {"seed": [0]})
    path = tmp_path / "arxiv" / "study-seed=0" / "in_context" / "test.npz"
    np.savez(path, position=np.array([{}], dtype=object))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_sweep(folder)


def test_everything_is_escaped(tmp_path):
    grid = {"seed": [0, 1], "data": {"path": [EVIL, "b"]}}
    folder = write_sweep(tmp_path, grid, in_context=False)
    state = read_state(folder)
    state.name, state.command = EVIL, f'train {EVIL} & "more"'
    state.jobs[0].name, state.jobs[0].status, state.jobs[0].reason = EVIL, "failed", EVIL
    Path(tmp_path / "arxiv" / Path(state.jobs[0].run_directory).name / "summary.json").unlink()
    state.write(folder)
    write_sweep_report(folder)
    page = Page((folder / "report.html").read_text())
    assert "script" not in page.tags
    assert " ".join(page.text).count(EVIL) >= 4


LATER = """{% extends "base.html" %}{% from "parts.html" import bullets, facts, figure, table %}
{% block content %}{{ bullets([evil]) }}{{ facts([(evil, evil)]) }}{{ table(content) }}
{{ figure(picture, '"' ~ evil, evil) }}{% endblock %}"""


def test_a_page_of_ones_own_stands_on_the_layout_and_its_parts_escape_their_text(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"png")
    monkeypatch.setattr(ENVIRONMENT, "loader", ChoiceLoader([DictLoader({"later.html": LATER}), ENVIRONMENT.loader]))
    content = Table(EVIL, [EVIL, "b"], [[EVIL, "c"]], text=(0,), long=(1,))
    document = page("later.html", EVIL, evil=EVIL, content=content, picture=tmp_path / "a.png")
    parsed = Page(document)
    assert "script" not in parsed.tags
    assert document.count("<script") == 0
    assert " ".join(parsed.text).count(EVIL) == 9
    assert ("alt", f'"{EVIL}') in parsed.attributes
    assert ("src", "data:image/png;base64,cG5n") in parsed.attributes
    assert [value for name, value in parsed.attributes if name == "class"] == ["scroll", "text", "long", "text", "long",
                                                                               "scroll"]  # fmt: skip
    with pytest.raises(UndefinedError):  # a page with a hole is none
        page("later.html", EVIL, evil=EVIL, content=content)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["output_root=none"], "none: no run is there; output_root=... looks elsewhere"),
        (["run=3"], "run: must be the directory of a run, or a list of them"),
        (["run=[arxiv/a]"], "run=[...]: 1 runs; from 2 to 20 can be laid side by side"),
        (["run=a", "run=b"], "run=a: no run is there"),
        (["sweep=a", "run=b"], "name one of sweep="),
        (["sweep=a"], "sweep=a: no sweep is there (no sweep.json); in outputs/sweeps: known"),
        (["run=a"], "run=a: no run is there"),
        (["swep=a"], "did you mean sweep?"),
    ],
)
def test_mistakes_get_one_line(arguments, expected, tmp_path, monkeypatch, capsys):
    write_sweep(tmp_path / "outputs", {"seed": [0]}, name="known", leave_out=("seed=0",))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["report", *arguments])
    with pytest.raises(SystemExit) as stopped:
        report_command.main()
    err = capsys.readouterr().err
    assert (stopped.value.code, err.count("\n")) == (2, 1)
    assert expected in err


def test_the_command_takes_a_name_or_a_path(tmp_path, monkeypatch, capsys):
    folder = write_sweep(tmp_path / "outputs", {"seed": [0, 1]}, name="known", in_context=False)
    monkeypatch.chdir(tmp_path)
    assert find_sweep("known") == Path("outputs/sweeps/known")
    monkeypatch.setattr(sys, "argv", ["report", f"sweep={folder}"])
    report_command.main()
    assert "wrote  " in capsys.readouterr().out
    assert (folder / "report.html").is_file()


def test_words_for_values():
    assert [show(value) for value in (1000000, 0.001, True, "adamw", None)] == [
        "1,000,000",
        "0.001",
        "True",
        "adamw",
        "None",
    ]
    assert [short_count(value) for value in (500, 2e5, 1.6e7, 1.5e9)] == ["500", "200 k", "16 M", "1.5 B"]
    assert metric_unit("test/held_out_loss") == "nats per token"
    assert metric_unit("val/bits_per_byte") == "bits per byte"
    assert len(set(colours(5, ordered=True))) == 5
    assert colours(1, ordered=True) == colours(1, ordered=False)


def test_a_line_keeps_its_colour_where_another_is_missing(tmp_path, monkeypatch):
    drawn, plot = [], Axes.plot

    def watched(self, *args, **options):
        drawn.append((options["label"], options["color"]))
        return plot(self, *args, **options)

    monkeypatch.setattr(Axes, "plot", watched)
    lines = {label: PositionLine(label, np.arange(1.0, 9), np.arange(8.0), None, None) for label in "abc"}
    panels = {"chosen": list(lines.values()), "held-out": [lines["a"], lines["c"]]}
    draw_in_context(tmp_path / "a.png", panels, ordered=True, band="none")
    assert [label for label, _ in drawn] == ["a", "b", "c", "a", "c"]
    assert len(dict.fromkeys(drawn)) == 3


@browser
@pytest.mark.slow
def test_everyone_can_read_it(study, tmp_path):
    _, (path, *_), _ = study
    assert violations(path, tmp_path) == []
