"""Runs side by side, and the list of all runs."""

import json
import sys

import pytest

from lightning_apps import report as report_command
from lightning_apps.report import with_one_run
from lightning_apps.reports.comparison import write_comparison
from lightning_apps.reports.index import write_index
from lightning_apps.reports.run_report import write_run_report
from tests.asserts.browser import browser, load, violations
from tests.asserts.html_pages import Page
from tests.fakes.run_directory import CONFIG, EVIL, PREDICTIONS, SUMMARY, complete, curves_of, lines, write

OTHER = CONFIG | {"optimizer": {"lr": 0.5}, "run": {"name": "b=1,c"}}
WORSE = [PREDICTIONS[0] | {"output": "bad", "score": 0.25}, PREDICTIONS[1], PREDICTIONS[2]]


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "outputs"
    complete(root / "imdb" / "a")
    best = {"metric": "val/f1_macro", "step": 4, "metrics": {"val/f1_macro": 0.25, "val/loss": 0.75}}
    complete(root / "imdb" / "b=1,c", config=OTHER, summary=SUMMARY | {"best": best}, predictions=lines(WORSE))
    write(root / "imdb" / EVIL.replace("/", "_"), metrics="step,val/loss\n3,nan\n")
    (root / "imdb" / "z").mkdir()
    (root / "imdb" / "z" / "config.yaml").write_text("[")
    return root


def test_two_runs_side_by_side(outputs, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["report", "run=outputs/imdb/a", "run=outputs/imdb/b=1,c"])
    report_command.main()
    assert capsys.readouterr().out == "\nwrote  outputs/imdb/comparison.html\n"
    document = (outputs / "imdb" / "comparison.html").read_text()
    page = Page(document)
    assert [row for row in page.rows if row[0] == "optimizer.lr"] == [["optimizer.lr", "0.25", "0.5"]]
    assert not any(row[0] == "seed" for row in page.rows)  # the same in both
    assert ["val/f1_macro", "0.75 (0.5 to 0.875)", "0.25"] in page.rows
    (row,) = (row for row in page.rows if row[:2] == ["imdb/b=1,c", "label"])
    assert row[2:5] == ["3", "0.33333", "0"]  # of three answers one is right, then none
    assert row[5].startswith("-0.3333 (")
    assert row[6:] == ["0", "1", "1"]
    charts = curves_of(document)
    assert [chart["title"] for chart in charts] == ["val/loss", "train/loss"]
    assert [series["name"] for series in charts[0]["series"]] == ["imdb/a", "imdb/b=1,c"]


def test_runs_of_other_samples_have_no_paired_interval(outputs):
    rows = [row | {"input": "other"} for row in PREDICTIONS]
    complete(outputs / "imdb" / "c", predictions=lines(rows))
    complete(outputs / "imdb" / "d", predictions=lines([{"input": 1, "score": "x"}] * 3))
    places = [str(outputs / "imdb" / name) for name in ("a", "c", "d")]
    (path,) = write_comparison(places)
    assert "No other run answered the samples of the first." in Page(path.read_text()).text
    assert write_comparison([places[2], places[2]])  # scores that are no numbers


def test_several_runs_become_a_list():
    assert with_one_run(["run=a", "out=b"]) == ["run=a", "out=b"]
    assert with_one_run(["run=a,b", "out=c", "run=d"]) == ["out=c", 'run=["a,b","d"]']


def test_all_runs_are_listed(outputs, monkeypatch, capsys):
    (outputs / "imdb" / "a" / "report.html").write_text("")
    (outputs / "sweeps" / "s").mkdir(parents=True)
    (outputs / "sweeps" / "s" / "sweep.json").write_text("{}")
    monkeypatch.setattr(sys, "argv", ["report"])
    report_command.main()
    said = capsys.readouterr().out.splitlines()
    assert said[0].split() == ["run", "status", "steps", "time", "chosen", "by", "value"]
    assert said[2].split("  ")[0] == "imdb/a"
    assert said[2].endswith("4      2 min  val/f1_macro  0.75 (0.5 to 0.875)")
    assert "damaged: " in said[4]
    assert said[-1] == "wrote  outputs/index.html"
    document = (outputs / "index.html").read_text()
    page = Page(document)
    assert [value for name, value in page.attributes if name == "href"] == ["imdb/a/report.html"]
    assert "<img src=x" not in document
    assert ["completed", "4", "2 min", "val/f1_macro", "0.75 (0.5 to 0.875)"] in [row[1:] for row in page.rows]
    assert ["s"] in page.rows


@browser
@pytest.mark.parametrize("size", ["1280,900", "400,800"])
def test_in_a_browser(size, outputs, tmp_path):
    (path,) = write_comparison([str(outputs / "imdb" / name) for name in ("a", "b=1,c")])
    dom, console = load(path, size=size, profile=tmp_path / "profile")
    assert console == []
    assert dom.count('class="series"') == 4
    assert json.loads(dom.partition('id="chart-data">')[2].partition("</script>")[0])


@browser
@pytest.mark.slow
def test_everyone_can_read_them(outputs, tmp_path):
    write_run_report(str(outputs / "imdb" / "a"))  # the list links to it
    (outputs / "sweeps" / "s").mkdir(parents=True)
    (outputs / "sweeps" / "s" / "sweep.json").write_text("{}")
    (index,), _ = write_index(outputs)
    (compared,) = write_comparison([str(outputs / "imdb" / name) for name in ("a", "b=1,c")])
    assert [found for path in (index, compared) for found in violations(path, tmp_path)] == []
