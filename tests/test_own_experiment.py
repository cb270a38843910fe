"""docs/own-experiment.md, followed to the letter: its files in an empty folder, its commands as real processes."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_apps.diagnostics.run_comparison import differences
from lightning_apps.run_files.metrics_csv import read_metrics
from tests.asserts.patience import PATIENCE_S

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "own-experiment.md").read_text(encoding="utf-8")
FILES = ("continents.py", "confidence.py", "conf/data/continents.yaml", "conf/experiment/continents.yaml")
METRIC = "confidence.py"
"""The experiment does without."""
SMALL = ["data.min_population=2000000", "trainer.max_epochs=null", "trainer.max_steps=6", "trainer.evaluate_every=3",
         "trainer.save_every=2", "data.global_batch_size=16", "hardware=cpu"]  # fmt: skip
PLAIN = """
import lightning as L

class Data(L.LightningDataModule):
    def prepare_data(self):
        open("prepared", "w").close()

class Module(L.LightningModule):
    def training_step(self, batch, batch_idx):
        return batch.sum()
"""


def blocks(kind):
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)


def page_files():
    return dict(zip(FILES, [*blocks("python"), *blocks("yaml")], strict=True))


@pytest.fixture(scope="module")
def commands():
    """The page's commands by their programs, and train by its last word, as lists of words."""
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    found = {}
    for line in lines:
        _, _, command = line.rpartition("| ")
        words = shlex.split(command)
        found[words[-1] if words[2].endswith("train") else words[2].rpartition(".")[2]] = words
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What a reader of the page has: its files and nothing else."""
    root = tmp_path_factory.mktemp("own")
    for name, text in page_files().items():
        assert f"`{name}`" in PAGE
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "plain.py").write_text(PLAIN)
    return root


def run(folder, words, *more, code=0, given=None, **variables):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}
    done = subprocess.run(
        [sys.executable, *words[1:], *more], cwd=folder, env=environment, input=given, capture_output=True, text=True,
        timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done


def test_the_experiment_is_at_most_a_hundred_lines_and_the_page_counts_them():
    lines = sum(len(text.splitlines()) for name, text in page_files().items() if name != METRIC)
    assert lines <= 100
    assert f"in {lines} lines" in PAGE.replace("\n", " ")


def test_it_trains_and_sums_up(folder, commands):
    done = run(folder, commands["run.name=first"], "run.name=fast", *SMALL)
    files = folder / "outputs" / "continents" / "fast"
    assert [row["step"] for row in read_metrics(files / "metrics.csv") if "val/f1_macro" in row] == [3, 6]
    summary = json.loads((files / "summary.json").read_text())
    assert (summary["status"], summary["optimizer_steps"]) == ("completed", 6)
    assert list(json.loads((files / "baselines.json").read_text())) == ["validation", "test"]
    assert {path.name for path in files.iterdir()} >= {"predictions.jsonl", "summary.png", "sample_log.bin", "model"}
    assert "samples" in done.stdout


def test_a_metric_of_ones_own_chooses_the_best_checkpoint(folder, commands):
    run(folder, commands["callbacks.checkpoints.monitor=val/confidence"], *SMALL)
    summary = json.loads((folder / "outputs" / "continents" / "sure" / "summary.json").read_text())
    assert summary["best"]["metric"] == "val/confidence"
    assert summary["best"]["value"] == summary["best"]["metrics"]["val/confidence"]
    assert {"val/confidence", "test/confidence"} <= summary["metrics"].keys()


def test_doctor_looks_at_it(folder, commands):
    done = run(folder, commands["doctor"], "data.min_population=2000000", "hardware=cpu", "format=json")
    said = json.loads(done.stdout)
    claims = {finding["claim"]: finding["level"] for finding in said["findings"]}
    assert said["level"] != "red"
    assert claims["no test sample is in train"] in ("green", "yellow")
    assert claims["every class can be learned and measured"] == "yellow"  # few cities of that size lie in Oceania
    for claim in ("an evaluation draws nothing", "a gradient reaches every trainable parameter"):
        assert claims[claim] == "green"
    assert not (folder / "outputs" / "continents" / "default").exists()


def test_it_is_planned_and_nothing_is_written(folder, commands):
    before = sorted(path for path in folder.rglob("*") if "__pycache__" not in str(path))
    out = run(folder, commands["plan"], *SMALL).stdout
    assert "6 optimizer steps" in out
    assert "tokens/s on one device" in out
    assert sorted(path for path in folder.rglob("*") if "__pycache__" not in str(path)) == before


REFUSED = {
    "data": ["~data.seed", "data._target_=plain.Data"],
    "module": ["module._target_=plain.Module"],
    "needs": ["callbacks=classification"],
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_lacks_the_contract_is_told_in_the_line_that_the_page_shows(folder, case):
    shown = "\n".join(blocks("text")).splitlines()
    line = next(text for text in shown if text.startswith(f"error: {'callbacks' if case == 'needs' else case}"))
    before = sorted(folder.rglob("*"))
    done = run(folder, ["python", "-m", "lightning_apps.train"], *REFUSED[case], code=2)
    assert (done.stdout, done.stderr) == ("", f"{line}\n")
    written = {path for path in folder.rglob("*") if "__pycache__" not in str(path)}
    assert written == {path for path in before if "__pycache__" not in str(path)}


@pytest.mark.slow
def test_every_command_of_the_page(folder, commands):
    whole = [word.replace("first", "whole") for word in commands["run.name=first"]]
    run(folder, whole, *SMALL)
    run(folder, commands["run.name=first"], *SMALL, code=-9, LIGHTNING_APPS_VERIFY_KILL="on_train_batch_end@3")
    run(folder, commands["run.resume=auto"], *SMALL)
    outputs = folder / "outputs" / "continents"
    one, other = (
        torch.load(outputs / name / "checkpoints/last.ckpt", weights_only=True) for name in ("whole", "first")
    )
    assert differences(one, other) == []
    assert (outputs / "whole/predictions.jsonl").read_text() == (outputs / "first/predictions.jsonl").read_text()

    run(folder, commands["evaluate"])
    measured = json.loads((outputs / "first/evaluations/test-best/metrics.json").read_text())["metrics"]
    trained = json.loads((outputs / "first/summary.json").read_text())["metrics"]
    assert measured["test/accuracy"] == trained["test/accuracy"]

    answer = json.loads(run(folder, commands["predict"], given="Vladivostok\n").stdout)
    assert set(answer["probabilities"]) == {"AF", "AS", "EU", "NA", "OC", "SA"}
    assert answer["label"] == max(answer["probabilities"], key=answer["probabilities"].get)

    replayed = run(folder, commands["replay"]).stdout
    assert "the same 16 samples in the same order" in replayed
    assert replayed.count(": equal") == 2
    assert "DIFFERENT" not in replayed
    run(folder, commands["report"])
    assert list((outputs / "first").glob("report*"))

    run(folder, commands["optimizer.lr=1e-3,3e-3"], *SMALL)
    assert len(list((outputs).glob("*lr=*/summary.json"))) == 2


@pytest.mark.slow
def test_verify_proves_every_claim_of_it(folder, commands):
    run(folder, commands["verify"])
    table = json.loads((folder / "outputs/continents/verify.json").read_text())
    assert {row["outcome"] for row in table} == {"proved", "skipped"}
    assert {row["claim"] for row in table if row["outcome"] == "skipped"} <= {
        "batched = single generation", "packed = unpacked", "compiled = eager"
    }  # fmt: skip
