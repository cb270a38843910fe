"""Experiment gsm8k from end to end on sums: training, resumption, adapters, grading, comparison with the base."""

import json
import shutil

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_apps.errors import ConfigError
from lightning_apps.evaluate import evaluate
from lightning_apps.experiments.experiment import Experiment
from lightning_apps.run_files.directory import RunDirectory
from lightning_apps.run_files.metrics_csv import read_metrics
from lightning_apps.runs.build import build_datamodule, build_module, build_plan
from lightning_apps.runs.experiment_run import run_experiment
from lightning_apps.runs.replayed_step import replay_step
from lightning_apps.statistics.paired_comparison import compare_predictions, comparison_lines
from lightning_apps.verify import bits_that_differ, loss_difference
from tests.tiny.tiny_runs import directory_of

pytestmark = pytest.mark.numeric

STEPS = 6


@pytest.fixture
def config(composed, small_gsm8k):
    def make(*overrides, name="run"):
        return composed(
            "experiment=gsm8k", f"data.path={small_gsm8k}/data", f"model.pretrained={small_gsm8k}/model",
            "data.num_validation=6", "data.global_batch_size=8", "data.device_batch_size=null", "data.max_length=160",
            "trainer.max_epochs=null",
            f"trainer.max_steps={STEPS}", "trainer.evaluate_every=3", "callbacks.extra.generation.num_samples=4",
            "callbacks.extra.generation.max_new_tokens=8", "optimizer.lr=1e-3", "hardware=cpu", *overrides, name=name,
        )  # fmt: skip

    return make


def predictions(directory):
    return [json.loads(line) for line in directory.predictions.read_text().splitlines()]


def test_a_run_grades_every_question_and_exports_a_model_that_says_the_same(config):
    settings = config()
    summary = run_experiment(settings)
    directory = directory_of(settings)
    assert summary["status"] == "completed"
    for split in ("val", "test"):
        for name in ("numeric", "lmeval_strict", "lmeval_flexible"):
            values = [summary["metrics"][f"{split}/accuracy_{name}{end}"] for end in ("_low", "", "_high")]
            assert values == sorted(values)
    rows = predictions(directory)  # of the test split, in full, whatever num_samples says
    assert len(rows) == 8
    assert directory.picture.stat().st_size > 20_000
    assert set(rows[0]) >= {"input", "target", "output", "score", "answer_numeric", "right_lmeval_strict", "truncated"}
    net = AutoModelForCausalLM.from_pretrained(directory.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory.model)
    for row in rows:
        messages = [{"role": "user", "content": row["input"]}]
        prompt = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        produced = net.generate(**prompt, max_new_tokens=8, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        assert tokenizer.decode(produced, skip_special_tokens=True) == row["output"]


def test_packed_and_padded_and_split_steps_learn_the_same(config):
    runs = {}
    for name, overrides in {
        "packed": [],
        "split": ["data.device_batch_size=1"],
        "grouped": ["data.batching=length_grouped", "data.device_batch_size=3"],
        "sdpa": ["model.attention=sdpa"],
    }.items():
        settings = config(*overrides, "callbacks.extra.generation=null", name=name)
        run_experiment(settings)
        runs[name] = directory_of(settings)
    for name in ("split", "grouped", "sdpa"):
        assert loss_difference(runs["packed"], runs[name]) < 1e-4, name


def test_a_resumed_run_ends_bit_for_bit_like_one_that_was_left_alone(config):
    whole = config(name="whole")
    run_experiment(whole)
    stopped = config("callbacks.guards.loss_spike=warn", name="stopped")

    import lightning_apps.callbacks.step_log as step_log

    original = step_log.StepLog.on_train_batch_end

    class KilledError(Exception):
        pass

    def kill(self, trainer, *arguments):
        original(self, trainer, *arguments)
        if trainer.global_step == 5:
            raise KilledError

    step_log.StepLog.on_train_batch_end = kill
    try:
        with pytest.raises(KilledError):
            run_experiment(stopped)
    finally:
        step_log.StepLog.on_train_batch_end = original
    stopped["run"]["resume"] = "auto"
    run_experiment(stopped)
    assert bits_that_differ(directory_of(whole), directory_of(stopped)) == 0
    assert predictions(directory_of(whole)) == predictions(directory_of(stopped))


@pytest.mark.parametrize("dora", ["false", "true"])
def test_adapters_learn_and_are_exported_merged_and_apart(config, dora):
    settings = config("model.lora.rank=4", f"model.lora.dora={dora}")
    summary = run_experiment(settings)
    directory = directory_of(settings)
    assert 0 < summary["parameters"]["trainable"] < 0.5 * summary["parameters"]["total"]
    assert (directory.model / "adapter" / "adapter_model.safetensors").is_file()
    data = build_datamodule(settings)
    module = build_module(settings, data, build_plan(settings, data))
    module.load_state_dict(torch.load(directory.checkpoint("best"), weights_only=True)["state_dict"])
    merged = AutoModelForCausalLM.from_pretrained(directory.model, dtype=torch.float32)
    ids = data.prompts("test")[0][None]
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, module.net.eval()(ids).logits, rtol=1e-4, atol=1e-4)


def test_self_consistency_and_worked_examples(config):
    settings = config(
        "callbacks.extra.generation.self_consistency={num_samples:3,temperature:1.0,top_p:1.0}",
        "callbacks.extra.generation.num_shots=2",
        "data.max_test_samples=3",
        "trainer.max_steps=1",
    )
    summary = run_experiment(settings)
    rows = predictions(directory_of(settings))
    assert [len(row["samples"]) for row in rows] == [3, 3, 3]
    assert {"test/accuracy_self_consistency_low", "val/accuracy_of_samples"} <= summary["metrics"].keys()


def test_the_tuned_model_is_compared_with_its_base(config, monkeypatch, capsys):
    settings = config("optimizer.lr=1e-2", "callbacks.extra.generation.num_samples=null")
    run_experiment(settings)
    directory = directory_of(settings)
    options = {
        "run": str(directory.path), "split": "test", "checkpoint": "best", "accelerator": None, "compare": "base",
        "out": None, "metrics": None, "model": {"pretrained": None},
    }  # fmt: skip
    metrics = evaluate(OmegaConf.create(options))
    assert (
        metrics["test/loss"]
        < json.loads((directory.evaluations / "test-base" / "metrics.json").read_text())["metrics"]["test/loss"]
    )
    found = json.loads((directory.evaluations / "test-best" / "comparison.json").read_text())
    assert [entry["score"] for entry in found] == ["right_numeric", "right_lmeval_strict", "right_lmeval_flexible"]
    assert found[0]["num_questions"] == 8
    assert "questions won" in capsys.readouterr().out
    assert predictions(RunDirectory(directory.evaluations / "test-best")) == predictions(directory)


def verdicts(*values, **changes):
    return [{"input": f"q{number}", "right_numeric": value, **changes} for number, value in enumerate(values)]


def test_a_worse_model_is_said_loudly():
    base, tuned = verdicts(*[True] * 12, False), verdicts(*[False] * 12, True)
    (comparison,) = compare_predictions(base, tuned)
    assert (comparison.won, comparison.lost) == (1, 12)
    assert comparison.difference == pytest.approx(-11 / 13)
    text = "\n".join(comparison_lines(comparison, ("base", "best")))
    assert "WARNING: best is WORSE than base by 84.6 points, beyond chance" in text
    (better,) = compare_predictions(tuned, base)
    assert "WARNING" not in "\n".join(comparison_lines(better, ("base", "best")))
    (slightly,) = compare_predictions(verdicts(True, True), verdicts(True, False))
    assert "though not beyond chance" in "\n".join(comparison_lines(slightly, ("base", "best")))


def test_comparisons_pair_the_same_questions_and_know_other_scores():
    distances = [{"input": f"q{number}", "score": value} for number, value in enumerate([3.0, 2.0, None, 5.0])]
    nearer = [{**row, "score": None if row["score"] is None else row["score"] - 1.0} for row in distances]
    (comparison,) = compare_predictions(distances, nearer)
    assert (comparison.num_questions, comparison.difference, comparison.p_value) == (3, -1.0, None)
    assert "questions higher" in comparison_lines(comparison, ("base", "best"))[0]
    with pytest.raises(ConfigError, match="asked different questions"):
        compare_predictions(verdicts(True, True), verdicts(True))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model.quantize=4bit"], "model.quantize=4bit freezes the weights: give adapters to train"),
        (["model.quantize=4bit", "model.lora.rank=4"], "model.quantize=4bit needs"),
        (["model.lora.rank=-2"], "model.lora.rank=-2: must be a number that is not negative"),
        (["model.lora.rank=2", "model.lora.target_modules=[nothing]"], "nothing"),
        (["model.attention=flash_attention_2"], "model.attention=flash_attention_2: "),
        (["callbacks.extra.generation.num_shots=-1"], "num_shots=-1: must be a number that is not negative"),
    ],
)
def test_mistakes_are_named(overrides, expected, config):
    with pytest.raises(ConfigError, match=expected):
        run_experiment(config(*overrides))


def test_a_vocabulary_that_is_too_small_is_named(config, small_gsm8k, tmp_path):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    Qwen2ForCausalLM(Qwen2Config(vocab_size=9, intermediate_size=8, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"the tokenizer has \d+ tokens, the embedding of .* 9 rows"):
        run_experiment(config(f"model.pretrained={tmp_path}", f"data.tokenizer={small_gsm8k}/model"))


def test_weights_are_float32_whatever_the_file_holds(config, small_gsm8k, tmp_path):
    net = AutoModelForCausalLM.from_pretrained(small_gsm8k / "model", dtype=torch.bfloat16)
    net.save_pretrained(tmp_path)
    settings = config(f"model.pretrained={tmp_path}", f"data.tokenizer={small_gsm8k}/model", "precision=bf16_mixed")
    data = build_datamodule(settings)
    module = build_module(settings, data, build_plan(settings, data))
    assert {entry.dtype for entry in module.parameters()} == {torch.float32}


def test_mixed_precision_keeps_the_loss(config):
    """Float32 weights under bf16 products: the losses of the first steps stay within one per cent of float32's."""
    curves = []
    for precision in ("fp32", "bf16_mixed"):
        settings = config(f"precision={precision}", "callbacks.extra.generation=null", name=precision)
        run_experiment(settings)
        curves.append(
            [row["train/loss"] for row in read_metrics(directory_of(settings).metrics) if "train/loss" in row]
        )
    assert len(curves[0]) == STEPS
    assert np.abs(np.array(curves[1]) / np.array(curves[0]) - 1).max() < 0.01


def test_a_pretrained_network_is_trained_with_its_dropout_and_replayed_so(config, small_gsm8k, tmp_path, monkeypatch):
    """from_pretrained gives networks in eval mode, and Lightning keeps the mode that it finds."""
    shutil.copytree(small_gsm8k / "model", tmp_path / "model")
    described = json.loads((tmp_path / "model/config.json").read_text())
    (tmp_path / "model/config.json").write_text(json.dumps(described | {"attention_dropout": 0.3}))
    settings = config(
        f"model.pretrained={tmp_path}/model", "callbacks.extra.generation=null", "trainer.max_steps=2",
        "data.device_batch_size=4",
    )  # fmt: skip
    module = build_module(settings, data := build_datamodule(settings), build_plan(settings, data))
    assert all(part.training for part in module.modules())
    run_experiment(settings)
    (*_, logged) = [row for row in read_metrics(directory_of(settings).metrics) if "train/loss" in row]
    data = build_datamodule(settings)
    assert replay_step(settings, directory_of(settings), data, 2).values["train/loss"] == logged["train/loss"]
    monkeypatch.setattr(Experiment, "on_fit_start", lambda module: module.eval(), raising=False)
    assert replay_step(settings, directory_of(settings), data, 2).values["train/loss"] != logged["train/loss"]
