"""Rejection sampling: what is drawn, kept and trained on, that it is drawn once, and never from a held-out question."""

import json
import shutil

import pytest
from omegaconf import OmegaConf

import lightning_apps.experiments.gsm8k.own_samples as own_samples
from datamodules.storage.cache import read_manifest
from lightning_apps.errors import ConfigError
from lightning_apps.evaluate import evaluate
from lightning_apps.experiments.gsm8k.own_samples import solution_key
from lightning_apps.runs.build import build_datamodule
from lightning_apps.runs.experiment_run import run_experiment
from models.decoding.generation import generate_answers
from tests.tiny.tiny_runs import directory_of

pytestmark = pytest.mark.numeric


@pytest.fixture
def config(composed, small_gsm8k, tmp_path):
    def make(*overrides, name="run"):
        made = composed(
            "experiment=gsm8k", f"data.path={small_gsm8k}/data", f"model.pretrained={small_gsm8k}/model",
            "data.num_validation=6", "data.global_batch_size=8",
            "data.max_length=160", "data.source=own_samples", "data.own_samples.num_samples=4",
            "data.own_samples.temperature=1.0", "data.own_samples.max_new_tokens=24", "data.own_samples.batch_size=16",
            "trainer.max_epochs=null", "trainer.max_steps=2", "trainer.evaluate_every=2",
            "callbacks.extra.generation=null", "callbacks.extra.picture=null", "hardware=cpu", *overrides, name=name,
        )  # fmt: skip
        made["data"]["cache_root"] = str(tmp_path / "cache")  # of this test: what others drew would be there already
        return made

    return make


def questions(data, split):
    return [data.chat(split, index).messages[0]["content"] for index in range(len(data.rows[split]))]


class Solver:
    """Draws as the program does, two tokens each, and remembers which prompts were asked."""

    def __init__(self, monkeypatch, *, fails_after=None):
        self.asked = []
        self.fails_after = fails_after
        self.calls = 0
        monkeypatch.setattr(own_samples, "generate_answers", self.generate)

    def generate(self, net, prompts, *, sampling, **options):
        self.calls += 1
        if self.fails_after is not None and self.calls > self.fails_after:
            raise KeyboardInterrupt
        assert len(sampling.seeds) == len(set(sampling.seeds)) == len(prompts)
        self.asked += [tuple(prompt.tolist()) for prompt in prompts]
        return generate_answers(net, prompts, sampling=sampling, **{**options, "max_new_tokens": 2})


def answered(monkeypatch, texts_of):
    """Let every drawn solution be what `texts_of(question, number)` says; None is one that was cut."""

    def keep(data, drawn, *, options):
        made = {
            row: [texts_of(data.files["train"].chat(row), number) for number in range(len(solutions))]
            for row, solutions in drawn.items()
        }
        return original(data, made, options=options)

    original = own_samples.keep_right
    monkeypatch.setattr(own_samples, "keep_right", keep)


def two_ways(chat, number):
    total = chat.gold
    return [f"{total} - 0 = {total}\n#### {total}", f"1 * {total} = {total}\n#### {total}", "#### 1000", None][number]


def test_right_solutions_are_added_once_each_to_the_given_ones(config, monkeypatch):
    Solver(monkeypatch)
    answered(monkeypatch, two_ways)
    given = build_datamodule(config("data.source=given"))
    data = build_datamodule(config())
    asked = own_samples.questions_to_ask(given)
    assert 0 < len(asked) <= 54
    assert questions(data, "train")[:54] == questions(given, "train")
    assert len(questions(data, "train")) == 54 + 2 * len(asked)
    assert questions(data, "train")[54:] == [questions(given, "train")[index] for index in asked for _ in range(2)]
    chat = data.chat("train", 54)
    assert chat.messages[1]["content"] == two_ways(chat, 0)
    document = data.document("train", 54)
    assert data.tokenizer.decode(document.labels[document.labels != -100]) == two_ways(chat, 0) + "<|im_end|>"
    assert data.facts_of_samples == {
        "num_asked": len(asked), "num_drawn": 4 * len(asked), "num_right": 2 * len(asked), "num_solved": len(asked),
        "num_kept": 2 * len(asked),
    }  # fmt: skip
    assert data.describe()["own samples"] == (
        f"{2 * len(asked)} kept of {2 * len(asked)} right ones among {4 * len(asked)} drawn; "
        f"{len(asked)} of {len(asked)} training questions solved"
    )
    for split in ("validation", "test"):
        assert questions(data, split) == questions(given, split)
    (capped, alone) = (
        build_datamodule(config(f"data.own_samples.{word}")) for word in ("per_question=1", "with_given=false")
    )
    assert capped.num_train_samples == 54 + len(asked)
    assert alone.num_train_samples == 2 * len(asked)


def test_they_come_behind_the_train_file_where_validation_is_a_file_too(config, small_gsm8k, monkeypatch, tmp_path):
    Solver(monkeypatch)
    answered(monkeypatch, two_ways)
    shutil.copytree(small_gsm8k / "data", tmp_path / "data")
    shutil.copy(tmp_path / "data" / "test.jsonl", tmp_path / "data" / "validation.jsonl")
    data = build_datamodule(config(f"data.path={tmp_path}/data"))
    origins = [data.chat("train", index).origin for index in range(data.num_train_samples)]
    assert all(origin.startswith(f"{tmp_path}/data/train.jsonl") for origin in origins[:60])
    assert all(origin.startswith("own sample ") for origin in origins[60:])
    assert len(origins) == 60 + data.facts_of_samples["num_kept"] > 60


def test_no_question_that_is_held_out_is_ever_asked(config, small_gsm8k, monkeypatch):
    solver = Solver(monkeypatch)
    data = build_datamodule(config())
    held_out = {*questions(data, "validation"), *questions(data, "test")}
    prompts = {tuple(prompt.tolist()) for split in ("validation", "test") for prompt in data.prompts(split)}
    assert held_out & set(questions(data, "train"))  # these data have such: the file repeats short sums
    assert solver.asked
    assert not prompts & set(solver.asked)


def test_a_second_start_draws_nothing_and_an_interrupted_one_goes_on(config, monkeypatch, tmp_path):
    monkeypatch.setattr(own_samples, "SOLUTIONS_A_PART", 20 * 4)
    solver = Solver(monkeypatch, fails_after=2)
    with pytest.raises(KeyboardInterrupt):
        build_datamodule(config())
    kept = tmp_path / "cache" / "gsm8k_drawn"
    assert len(list(kept.glob("*/manifest.json"))) == 2
    assert not list((tmp_path / "cache").glob("gsm8k_own_samples/*/manifest.json"))
    solver.fails_after, solver.calls, asked = None, 0, len(solver.asked)
    first = build_datamodule(config())
    parts = -(-first.facts_of_samples["num_asked"] // 20)
    assert solver.calls == parts - 2
    assert len(solver.asked) == first.facts_of_samples["num_drawn"]  # nothing twice, in both starts together
    assert asked == 2 * 20 * 4
    build_datamodule(config())
    assert solver.calls == parts - 2
    build_datamodule(config("data.own_samples.temperature=0.9"))
    assert solver.calls == 2 * parts - 2


def test_the_same_seed_draws_the_same_file_whatever_the_batch(config, tmp_path):
    def drawn(**changes):
        settings = config(
            "data.max_train_samples=16", *(f"data.own_samples.{name}={value}" for name, value in changes.items())
        )
        settings["data"]["cache_root"] = str(tmp_path / str(len(changes)) / str(changes))
        data = build_datamodule(settings)
        folder = next((tmp_path / str(len(changes)) / str(changes) / "gsm8k_drawn").glob("*/drawn.jsonl"))
        return [json.loads(line) for line in folder.read_text().splitlines()], data

    rows, data = drawn()
    assert rows == drawn(batch_size=3)[0]
    assert rows != drawn(seed=7)[0]
    assert {len(row["solutions"]) for row in rows} == {4}
    assert any(text is not None for row in rows for text in row["solutions"])
    assert data.facts_of_samples["num_drawn"] == 4 * len(rows)


def test_a_run_trains_on_them_and_the_next_round_starts_from_its_model(config, monkeypatch, tmp_path, capsys):
    solver = Solver(monkeypatch)
    answered(monkeypatch, two_ways)
    longer = ("trainer.max_steps=null", "trainer.max_epochs=1", "trainer.evaluate_every=0.5")
    first = config(*longer, "scheduler.warmup_steps=10", name="first")  # longer than an epoch of the given answers
    run_experiment(first)
    directory = directory_of(first)
    assert json.loads(directory.data.read_text())["samples"]["train"] > 54
    asked = len(solver.asked)
    run_experiment(config(f"model.pretrained={directory.model}", name="second"))
    assert len(solver.asked) == 2 * asked  # another model draws anew
    capsys.readouterr()
    for name in ("gsm8k_own_samples", "gsm8k_drawn"):
        shutil.move(tmp_path / "cache" / name, tmp_path / name)
    for split in ("validation", "test"):  # neither needs what was drawn for training
        evaluate(OmegaConf.create({
            "run": str(directory.path), "split": split, "checkpoint": "best", "accelerator": None, "compare": None,
            "out": None, "metrics": None, "model": {"pretrained": None},
        }))  # fmt: skip
    assert len(solver.asked) == 2 * asked
    assert "WARNING" not in capsys.readouterr().out
    for name in ("gsm8k_own_samples", "gsm8k_drawn"):
        shutil.move(tmp_path / name, tmp_path / "cache" / name)
    manifests = [read_manifest(path.parent) for path in (tmp_path / "cache/gsm8k_own_samples").glob("*/manifest.json")]
    assert len({entry["settings"]["model"] for entry in manifests}) == 2


def test_a_model_that_solves_nothing_is_named(config, monkeypatch):
    Solver(monkeypatch)
    answered(monkeypatch, lambda chat, number: "#### 1000")
    assert build_datamodule(config()).num_train_samples == 54
    with pytest.raises(ConfigError, match=r"none of the \d+ drawn solutions is right; start from a better model"):
        build_datamodule(config("data.own_samples.with_given=false"))


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("48 / 2 = 24 clips\n#### 24", "In May: 48/2=24.\n#### 24", True),
        ("5 x $1,000 = $5,000\n#### 5000", "5*1000 = 5000\n#### 5000", True),
        ("3 + 4 = 7\n#### 7", "4 + 3 = 7\n#### 7", False),
        ("1 + 1 = 2\n2 + 3 = 5\n#### 5", "2 + 3 = 5\n#### 5", False),
        ("It is  Seven.\n#### 7", "it is seven.\n#### 7", True),
        ("It is seven.\n#### 7", "Seven it is.\n#### 7", False),
    ],
)
def test_solutions_are_alike_by_their_equations(one, other, alike):
    assert (solution_key(one) == solution_key(other)) == alike
