"""The page of one run, made of directories that are complete, broken, running or hostile."""

import base64
import csv
import hashlib
import json
import re

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

from lightning_apps.config.composition import CONF
from lightning_apps.errors import ConfigError
from lightning_apps.process.file_lock import this_process, try_lock
from lightning_apps.reports.curves import MOST_POINTS, charts, thinned
from lightning_apps.reports.page import page
from lightning_apps.reports.run_record import default_settings, flat_text, read_record
from lightning_apps.reports.run_report import commands, error_of, training_words, write_run_report
from tests.asserts.browser import browser, load, violations
from tests.asserts.html_pages import Page
from tests.fakes.run_directory import CONFIG, EVIL, METRICS, PREDICTIONS, SUMMARY, complete, curves_of, lines, write


def read(folder, **options):
    (path,) = write_run_report(str(folder), **options)
    document = path.read_text()
    return document, Page(document)


def test_a_complete_run(tmp_path):
    folder = complete(
        tmp_path / "imdb" / "a",
        baselines={"validation": {"majority class": {"f1_macro": 0.375, "f1_macro_low": 0.25, "f1_macro_high": 0.5}}},
        data={"samples": {"train": 1000}, "digests": {"train": "d1ge57"}},
    )
    document, page = read(folder)
    assert (
        "completed: reached trainer.max_steps=4; 4 of 4 optimizer steps in 2 min; "
        "best val/f1_macro 0.75 (0.5 to 0.875) at step 2" in page.text
    )
    head = ["metric", "validation, last", "validation, best (step 2)", "test", "majority class, validation"]
    start = page.rows.index(head)
    assert page.rows[start + 1 : start + 4] == [
        ["f1_macro", "0.5", "0.75 (0.5 to 0.875)", "–", "0.375 (0.25 to 0.5)"],  # what chose the best first
        ["loss", "0.625", "0.5", "–", "–"],
        ["very_low", "1", "–", "–", "–"],  # the end of no interval
    ]
    assert ["class", "f1"] in page.rows  # single classes fold away
    assert ["good", "0.25"] in page.rows
    start = page.rows.index(["line", "error", "input", "target", "output", "confidence"])
    assert page.rows[start + 1 : start + 4] == [
        ["3", "none", "void", "bad", "", "–"],
        ["2", "0.875", "poor", "bad", "good", "0.875"],
        ["1", "0.125", "fine", "good", "good", "0.875"],
    ]
    assert ["optimizer.lr", "0.25", "5e-05"] in page.rows
    assert ["callbacks.checkpoints.monitor", "val/f1_macro"] in page.rows  # as by default, among all settings only
    for text in ("abc", "torch 2.13.0", "1,000 train", "train d1ge57", "2 min, 60 s of it training", "20 tokens/s",
                 "12.5 % of the measured peak", "1.5 GB", "2,000, 1,000 trainable"):  # fmt: skip
        assert text in page.text
    assert curves_of(document) == [
        {
            "title": "loss",
            "series": [
                {"name": "val", "colour": 1, "points": [[2, 0.5], [4, 0.625]]},
                {"name": "train", "colour": 0, "points": [[1, 1.5], [2, 1.25], [3, None], [4, 1.0]]},
            ],
        }
    ]
    assert "run.resume=auto" not in [part for part in page.text if part.startswith("python -m lightning_apps.train")]


def test_the_policy_names_style_and_script(tmp_path):
    document, page = read(complete(tmp_path / "a"))
    policy = next(value for name, value in page.attributes if name == "content" and "default-src" in value)
    for tag, content in (("style", re.search("<style>(.*?)</style>", document, re.S)[1]),
                         ("script", re.search("<script>(.*?)</script>", document, re.S)[1])):  # fmt: skip
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert not any(name in ("href", "style", "action") or name.startswith("on") for name, _ in page.attributes)


def test_a_run_that_failed_at_its_first_step(tmp_path):
    summary = {"status": "failed", "reason": "ValueError: no", "optimizer_steps": 0, "planned_steps": 4, "best": None,
               "metrics": {}, "command": "python -m lightning_apps.train experiment=imdb"}  # fmt: skip
    folder = write(tmp_path / "a", summary=summary, train="start\n" + "x" * 1_000_000 + "\nValueError: no\n")
    document, page = read(folder)
    assert "failed: ValueError: no; 0 of 4 optimizer steps" in page.text
    assert "Nothing was logged yet." in page.text
    assert "Nothing was evaluated yet." in page.text
    assert any("\nValueError: no" in text for text in page.text)
    assert "python -m lightning_apps.train experiment=imdb run.resume=auto" in page.text
    assert len(document) < 100_000


def test_a_run_that_is_running_or_was_killed(tmp_path):
    folder = write(tmp_path / "a", metrics=METRICS)
    assert read_record(str(folder)).status == "unfinished"
    lock = try_lock(folder / ".lock")
    (folder / ".lock").write_text(json.dumps(this_process() | {"host": "here", "since": "then"}))
    _, page = read(folder)
    outcome = next(text for text in page.text if text.startswith("running: process "))
    assert outcome.endswith(" on host here, since then; 4 optimizer steps")
    assert ["loss", "0.625"] in page.rows  # the last evaluation so far
    assert lock is not None
    assert read_record(str(complete(folder)), is_over=True).status == "completed"


def test_metrics_that_are_not_finite(tmp_path):
    summary = SUMMARY | {"metrics": {"val/loss": float("nan"), "test/loss": float("inf")}, "best": None}
    document, page = read(complete(tmp_path / "a", summary=summary, metrics="step,val/loss\n1,nan\n2,inf\n"))
    assert ["loss", "–", "–"] in page.rows
    assert curves_of(document)[0]["series"][0]["points"] == [[1, None], [2, None]]


def test_text_from_a_stranger(tmp_path):
    summary = SUMMARY | {"reason": EVIL, "command": EVIL, "versions": {EVIL: EVIL}, "best": {"metric": EVIL}}
    rows = [{"input": EVIL, "target": EVIL, "output": EVIL, "score": 0.5, EVIL: EVIL}]
    folder = complete(
        tmp_path / "a", config=CONFIG | {"x": {EVIL: EVIL}, "run": {"name": EVIL}}, summary=summary, train=EVIL,
        metrics=f'step,"train/{EVIL.replace(chr(34), "")}"\n1,2.0\n', predictions=lines(rows),
        data={"samples": {EVIL: 1}}, baselines={"validation": {EVIL: {EVIL: 1}}},
    )  # fmt: skip
    document, page = read(folder)
    assert page.tags.count("script") == 2
    assert "onerror" not in dict(page.attributes)
    assert "<img src=x" not in document
    assert not any("-m lightning_apps.train " in text for text in page.text)  # its command is not offered


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("summary.json", "{", "is damaged"),
        ("summary.json", "[" * 100_000, "is damaged"),
        ("summary.json", json.dumps({key: ["x"] for key in SUMMARY} | {"status": "completed"}), None),
        ("predictions.jsonl", '{"input": "' + "x" * 1_000_000 + '", "score": 0}\nnonsense\n7\n', "2 lines are damaged"),
        ("metrics.csv", "step,a\n" + '"' + "1" * 1_000_000, None),
        ("metrics.csv", 'step,a\n1,"' + "1" * 1_000_000 + '\n"\n2,3\n', "metrics.csv is damaged"),
        ("baselines.json", '{"validation": [1, {"a": 1}]}', None),
        ("summary.png", "no picture", "summary.png is no PNG"),
    ],
)
def test_broken_files_are_told(name, content, told, tmp_path, request):
    before = csv.field_size_limit(131_072)  # readers of data raise it for the whole process
    request.addfinalizer(lambda: csv.field_size_limit(before))
    folder = complete(tmp_path / "a")
    (folder / name).write_text(content)
    document, page = read(folder)
    assert len(document) < 150_000
    assert told is None or any(told in text for text in page.text)


def test_a_large_file_is_cut(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_apps.reports.run_record.MOST_BYTES", 300)
    folder = complete(tmp_path / "a", predictions=lines(PREDICTIONS * 4))
    _, page = read(folder)
    assert "predictions.jsonl is read up to its first 0 MB" in page.text
    assert any(text.startswith("3 of 3 answers") for text in page.text)


def test_links_lead_nowhere(tmp_path):
    folder = complete(tmp_path / "a")
    (tmp_path / "secret").write_text('{"input": "secret", "score": 0}\n')
    (folder / "predictions.jsonl").unlink()
    (folder / "predictions.jsonl").symlink_to(tmp_path / "secret")
    assert "secret" not in read(folder)[0]
    (folder / "summary.json").unlink()
    (folder / "summary.json").symlink_to(tmp_path / "secret")
    with pytest.raises(ConfigError, match="is a link out of the run"):
        write_run_report(str(folder))


def test_a_bomb_of_aliases_is_cut():
    bomb = ["x"] * 9
    for _ in range(12):
        bomb = [bomb] * 9
    nested = {"a": 1}
    for _ in range(12):
        nested = {"a": nested, "b": nested, "c": nested, "d": nested}
    flat = flat_text({"bomb": bomb, "nested": nested})
    assert len(flat) == 2_000
    assert len(flat["bomb"]) == 301


def test_settings_that_hold_themselves_are_cut():
    nested = {"b": 1}
    nested["a"] = nested
    assert max(key.count(".") for key in flat_text(nested)) == 8


def test_the_defaults_of_an_experiment():
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        before = GlobalHydra.instance().hydra
        default_settings("imdb")
        assert GlobalHydra.instance().hydra is before  # of the command that runs
    defaults = default_settings("imdb")
    assert (defaults["optimizer.lr"], defaults["seed"]) == ("5e-05", "42")
    assert default_settings("../imdb") is default_settings("unknown") is None


def test_the_commands_that_go_on(tmp_path):
    folder = complete(tmp_path / "a b", data={"label_names": ["bad", "good"]})
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    path = f"'run={folder}'"
    assert [command.removeprefix("python -m lightning_apps.") for _, command in commands(read_record(str(folder)))] == [
        f"predict {path} input=texts.jsonl output=answers.jsonl", f"export {path} to=hf://OWNER/NAME", f"report {path}",
        f"report {path} run=OTHER",
    ]  # fmt: skip
    (folder / "data.json").unlink()
    assert f"python -m lightning_apps.generate {path} prompt=..." in [
        command for _, command in commands(read_record(str(folder)))
    ]


def test_errors_and_commands():
    assert error_of({"distance_km": None, "score": 1.0}) == float("inf")
    assert [error_of({"score": True}), error_of({"score": 0.25}), error_of({"distance_km": 7.0})] == [0, 0.75, 7]
    assert training_words("python -m lightning_apps.train 'a=[1, 2]' run.overwrite=true") == ["a=[1, 2]"]
    assert training_words("sh -c evil") is training_words("python -m lightning_apps.train 'a") is None
    assert training_words("python -m lightning_apps.train a\nrm") is None


def test_long_curves_keep_their_ends():
    points = [(step, float(step % 7)) for step in range(10_000)]
    kept = thinned([*points, (10_000, 99.0)])
    assert len(kept) <= MOST_POINTS
    assert kept == sorted(kept)
    assert (10_000, 99.0) in kept
    drawn = charts([("a", [{"step": 1, "val/f1/x": 1.0, "val/b": 1.0, "val/b_low": 0.0, "val/b_high": 2.0}])],
                   monitor=None)  # fmt: skip
    assert [chart["title"] for chart in drawn] == ["b"]


# ------------------------------------------------------------------ in a browser


def clicked(document, code):
    """The page with code behind its own script, which the policy names."""
    script = re.search("<script>(.*?)</script>", document, re.S)[1]
    longer = f"{script}\n{code}"
    digest, other = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (script, longer))
    # the policy is in an attribute, where + is not escaped by everyone
    assert document.count(digest) == 1
    return document.replace(digest, other).replace(f"<script>{script}</script>", f"<script>{longer}</script>")


CLICKS = """
const change = (id, set) => { const e = document.getElementById(id); set(e); e.dispatchEvent(new Event("input"));
  e.dispatchEvent(new Event("change")); };
const said = {};
const path = () => document.querySelector("#chart-0 path.series").getAttribute("d");
said.wide = document.documentElement.scrollWidth - innerWidth;
let before = path();
change("smoothing", (e) => { e.value = "0.9"; });
said.smoothed = path() !== before; before = path();
change("log-y", (e) => { e.checked = true; });
said.log = path() !== before; before = path();
document.getElementById("zoom-in").click();
said.zoomed = path() !== before; before = path();
document.getElementById("zoom-all").click();
const svg = document.querySelector("#chart-0 > svg"), box = svg.getBoundingClientRect();
const at = (share) => ({ clientX: box.left + share * box.width, clientY: box.top + 50, bubbles: true });
svg.dispatchEvent(new PointerEvent("pointermove", at(0.99)));
said.hover = document.querySelector("#chart-0 .legend").textContent;
svg.dispatchEvent(new PointerEvent("pointerdown", at(0.3)));
svg.dispatchEvent(new PointerEvent("pointermove", at(0.6)));
before = path();
svg.dispatchEvent(new PointerEvent("pointerup", at(0.6)));
said.dragged = path() !== before;
for (const part of document.querySelectorAll("details")) part.open = true;
const lines = () => [...document.querySelectorAll("table.sortable tbody tr")].map((row) => row.cells[0].textContent);
said.first = lines();
const heads = document.querySelectorAll("table.sortable th button");
heads[0].click();
said.down = lines();
heads[0].click();
said.up = lines();
document.body.dataset.said = JSON.stringify(said);
"""


@browser
@pytest.mark.parametrize("size", ["1280,900", "400,800"])
def test_in_a_browser(size, tmp_path):
    metrics = "step,train/loss,val/loss\n" + "".join(
        f"{n},{2 / n},{1 / n if n % 10 == 0 else ''}\n" for n in range(1, 101)
    )
    document, _ = read(complete(tmp_path / "a", metrics=metrics, summary=SUMMARY | {"reason": EVIL}))
    path = tmp_path / "clicked.html"
    path.write_text(clicked(document, CLICKS))
    dom, console = load(path, size=size, profile=tmp_path / "profile")
    assert console == []
    assert "<title>Run imdb/a</title>" in dom  # nothing of the stranger's ran
    said = json.loads(re.search(r'data-said="(.*?)"', dom)[1].replace("&quot;", '"').replace("&amp;", "&"))
    assert said.pop("wide") <= 0  # nothing but tables and pictures scrolls sideways
    assert said.pop("hover").startswith(" val ")
    assert said == {
        "smoothed": True, "log": True, "zoomed": True, "dragged": True,
        "first": ["3", "2", "1"], "down": ["3", "2", "1"], "up": ["1", "2", "3"],
    }  # fmt: skip


@browser
@pytest.mark.slow
def test_everyone_can_read_it(tmp_path):
    baselines = {"validation": {"majority class": {"f1_macro": 0.375}}}
    folder = complete(tmp_path / "imdb" / "a", baselines=baselines, train="one line\n",
                      summary=SUMMARY | {"status": "failed"})  # fmt: skip
    Image.new("RGB", (600, 400), "white").save(folder / "summary.png")
    (path,) = write_run_report(str(folder))
    assert violations(path, tmp_path) == []


@browser
@pytest.mark.slow
def test_what_not_everyone_can_read_is_found(tmp_path):
    path = tmp_path / "page.html"
    path.write_text(page("base.html", "title").replace(' lang="en"', "").replace("<h1>", '<h1 style="width: 900px">'))
    found = violations(path, tmp_path)
    assert [line.partition(" at ")[0] for line in found] == [
        "1280 dark: html-has-lang",
        "1280 light: html-has-lang",
        "400 dark: 510 pixels wider than the window",
        "400 dark: html-has-lang",
        "400 light: 510 pixels wider than the window",
        "400 light: html-has-lang",
    ]
