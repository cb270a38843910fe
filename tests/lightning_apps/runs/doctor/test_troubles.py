"""Troubles that are planted one by one: doctor says red or yellow, names the culprit and a remedy to paste."""

import json
import re
import socket

import numpy as np
import pytest
import torch
from torch import nn

from datamodules.contract import IGNORED
from lightning_apps.runs.build import build_datamodule, build_module, build_plan
from lightning_apps.runs.doctor import machine
from lightning_apps.runs.doctor.data import check_data
from lightning_apps.runs.doctor.examination import examine, parts_fit
from lightning_apps.runs.doctor.machine import check_machine, disk
from lightning_apps.runs.doctor.network import check_generation, check_network
from lightning_apps.runs.doctor.settings import check_settings
from lightning_apps.runs.memory_estimate import AvailableMemory
from tests.fakes.s3_server import BUCKET
from tests.tiny.labelled_files import folder as labelled_folder
from tests.tiny.tiny_runs import IMDB, LOCATION, directory_of

PASTE = re.compile(
    r"['~]?[a-z_]+(\.[\w-]+)*=\S.*|python -m lightning_apps\.\w+( .*)?|~logger\.\w+|leave out \w+ samples .*"
)
REVIEWS = [
    "the plot of this long film wanders from one slow scene into another and nobody in the cast seems to know why "
    f"the {number} people who wrote it wanted anybody to care about number {number} at all"
    for number in range(40)
]


def troubles(findings):
    """Level and counted text of what is not green, by claim; each has a remedy to paste."""
    bad = [finding for finding in findings if finding.level != "green"]
    for finding in bad:
        assert PASTE.fullmatch(finding.remedy), finding
    assert all(not finding.remedy for finding in findings if finding.level == "green")
    return {finding.claim: (finding.level, finding.counted) for finding in bad}


@pytest.fixture
def location(composed):
    """Configuration, data and module of a tiny `location`, without a trouble."""

    def make(*overrides):
        config = composed(*LOCATION, "trainer.max_steps=20", *overrides, name="doctor")
        data = build_datamodule(config)
        return config, data, build_module(config, data, build_plan(config, data))

    return make


# ---------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("override", "claim", "counted"),
    [
        ("optimizer.lr=0.2", "the learning rate is a usual one", "optimizer.lr=0.2"),
        ("optimizer.lr=1e-7", "the learning rate is a usual one", "optimizer.lr=1e-07"),
        ("scheduler.warmup_steps=15", "the warmup is a small part of the run", "15 of 20 optimizer steps"),
        ("trainer.evaluate_every=never", "the run is evaluated on the way", "0 evaluations"),
        ("trainer.limit_val_batches=0", "the run is evaluated on the way", "0 evaluations"),
        ("data.global_batch_size=5000", "a step holds fewer samples than there are", "global_batch_size=5,000 of 110"),
        ("callbacks.early_stopping={patience:50}", "what waits for evaluations can act", "early_stopping waits for 50"),
        ("trainer.max_steps=9000", "the data are not repeated without end", "epochs of 14 steps"),
    ],
)
def test_an_odd_setting_is_yellow(location, override, claim, counted):
    config, data, module = location(override)
    found = troubles(check_settings(config, config, build_plan(config, data), module.net, data))
    assert list(found) == [claim]
    assert found[claim][0] == "yellow"
    assert counted in found[claim][1]


def test_what_differs_from_the_defaults_is_listed(location):
    config, data, module = location()
    defaults = {**config, "optimizer": {**config["optimizer"], "lr": 0.5}, "hardware": {}}
    (first, *_) = check_settings(config, defaults, build_plan(config, data), module.net, data)
    assert (first.level, first.counted) == ("green", "optimizer.lr=0.005 (default 0.5)")


# ---------------------------------------------------------------------- machine


def test_a_disk_that_is_too_small(location, monkeypatch):
    config, data, module = location("trainer.save_every=1")
    plan, directory = build_plan(config, data), directory_of(config)
    assert disk(config, plan, module, directory).level == "green"
    usage = type("Usage", (), {"total": 10**6, "used": 10**6 - 5000, "free": 5000})
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    found = disk(config, plan, module, directory)
    assert (found.level, found.remedy) == ("red", "callbacks.checkpoints.keep=1 trainer.save_every=never")
    assert "5 KB are free" in found.counted


@pytest.mark.parametrize(
    ("free", "total", "probed", "level"),
    [
        (10**9, 10**9, 1e10, "green"),
        (2000, 10**9, 1e10, "yellow"),
        (2000, 3000, 1e10, "red"),
        (2000, 10**9, 0, "yellow"),
        (2000, 3000, 0, "red"),
    ],
)
def test_memory_that_is_too_small(location, monkeypatch, free, total, probed, level):
    config, data, module = location()
    there = AvailableMemory(free, total, shared=True)
    monkeypatch.setattr(machine, "PROBED", probed)
    for place in ("lightning_apps.runs.preflight", "lightning_apps.runs.doctor.machine"):
        monkeypatch.setattr(f"{place}.available_memory_bytes", lambda accelerator: there)
    found = machine.memory(config, module, data)
    assert found.level == level
    assert found.remedy == ("" if level == "green" else "data.device_batch_size=1 hardware.gradient_checkpointing=true")


def test_a_folder_that_cannot_be_written(composed, tmp_path):
    (tmp_path / "file").write_text("in the way")
    config = composed(*LOCATION, name="a")
    config["run"]["output_root"] = str(tmp_path / "file" / "outputs")
    claim = "the run directory can be written and is free"
    assert troubles(check_machine(config, directory_of(config)))[claim][0] == "red"
    config["run"] |= {"output_root": str(tmp_path / "outputs"), "cache_root": str(tmp_path / "file" / "cache")}
    assert list(troubles(check_machine(config, directory_of(config)))) == ["the cache can be written"]
    assert not (tmp_path / "outputs").exists()


def test_a_run_in_the_way_is_yellow(composed):
    config = composed(*LOCATION, name="a")
    directory = directory_of(config)
    directory.path.mkdir(parents=True)
    directory.config.write_text("experiment: location\n")
    (found,) = [entry for entry in check_machine(config, directory) if entry.level != "green"]
    assert (found.level, found.remedy) == ("yellow", "run.name=a-2")


def test_a_bucket_is_written_read_and_deleted_or_said(composed, s3, monkeypatch):
    monkeypatch.setenv("LIGHTNING_APPS_STORAGE_PATIENCE_S", "3")
    claim = "run.upload can be written, read and deleted"
    config = composed(*LOCATION, f"run.upload=s3://{BUCKET}/runs", name="a")
    (found,) = machine.object_stores(config)
    assert (found.level, found.claim) == ("green", claim)
    assert s3.objects() == []  # nothing stays
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    found = troubles(machine.object_stores(config))
    assert found[claim][0] == "red"
    assert "refuses the credentials" in found[claim][1]


def test_an_address_that_is_read_only(composed, s3):
    config = composed("experiment=arxiv", f"data.path=s3://{BUCKET}/papers", name="a")
    assert troubles(machine.object_stores(config))["data.path can be read"][0] == "red"
    s3.path("papers").mkdir()
    s3.path("papers/train.jsonl").write_text("{}\n")
    assert machine.object_stores(config)[0].level == "green"


def test_a_logger_that_cannot_be_reached(composed, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("WANDB_MODE", "online")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
        config = composed(*LOCATION, "logger=[wandb,tensorboard]", name="a")
        assert troubles(machine.loggers(config)) == {}
    found = {finding.claim: finding for finding in machine.loggers(config)}
    assert found["logger.tensorboard can be reached"].level == "green"
    gone = found["logger.wandb can be reached"]
    assert (gone.level, gone.remedy) == ("yellow", "logger.wandb.offline=true")
    assert f"http://127.0.0.1:{port} takes no connection" in gone.counted


def test_a_logger_without_an_account(composed, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    config = composed(*LOCATION, "logger=wandb", name="a")
    (found,) = machine.loggers(config)
    assert (found.level, found.remedy) == ("red", "logger.wandb.offline=true")


# ---------------------------------------------------------------------- data


@pytest.fixture
def texts(composed, tmp_path):
    """Configuration and data of labelled texts: texts of each split in, a configuration out."""

    def make(train, validation, *overrides, labels=("bad", "good")):
        rows = {
            name: [(text, labels[number % len(labels)]) for number, text in enumerate(split)]
            for name, split in (("train", train), ("validation", validation))
        }
        words = ["data.tokenizer=words", "data.leaks=warn", *overrides]
        config = composed(*IMDB, labelled_folder(tmp_path, **rows), *words, name="doctor")
        config["data"]["dataset"] = None
        return config, build_datamodule(config)

    return make


LEAK = "no validation sample is in train"


def found_in(config, data, **options):
    findings, _ = check_data(config, data, num_examples=1, **options)
    return troubles(findings)


def test_a_review_copied_into_train(texts):
    clean = found_in(*texts(REVIEWS[:30:2], ["short and sweet", "long and sour"]))
    assert LEAK not in clean
    found = found_in(*texts([*REVIEWS[:30:2], "short and sweet"], ["short and sweet", "long and sour"]))
    level, counted = found[LEAK]
    assert level == "red"
    assert counted == "1 of 2 are, word for word, such as 'short and sweet'"


def test_a_review_nearly_copied_into_train(texts):
    original = " ".join(f"word{number}" for number in range(80))
    found = found_in(*texts([*REVIEWS[:3], original], [original.replace("word40", "another"), "long and sour"]))
    assert found["no validation sample is nearly in train"][0] == "yellow"
    assert "1 of 1 share" in found["no validation sample is nearly in train"][1]
    assert LEAK not in found


def test_labels_that_are_all_the_same(texts):
    config, data = texts(["good film", "bad film", "fine film", "poor film"], ["nice film", "sad film"])
    data.store.labels[:] = 1
    assert found_in(config, data)["every class can be learned and measured"][0] == "red"


def test_labels_that_were_shuffled(texts):
    words = ["awful dull weak", "lovely bright strong"]
    config, data = texts([f"{words[number % 2]} {number}" for number in range(60)],
                         [f"{words[number % 2]} {100 + number}" for number in range(40)])  # fmt: skip
    claim = "labels have to do with texts"
    assert claim not in found_in(config, data)
    data.store.labels[:] = np.random.default_rng(0).permutation(data.store.labels)
    assert found_in(config, data)[claim][0] == "yellow"


def test_most_texts_are_cut(texts):
    config, data = texts([*REVIEWS[:10], "short one"], ["short and sweet", "long and sour"], "data.max_length=16")
    level, counted = found_in(config, data)["few samples are cut"]
    assert (level, "91% of 11 are longer than 16 tokens" in counted) == ("yellow", True)


def test_cities_that_are_there_twice(location):
    config, data, _ = location()
    assert found_in(config, data) == {}
    data.rows["train"] = np.concatenate([data.rows["train"], data.rows["train"][:20]])
    level, counted = found_in(config, data)["few training samples are there twice"]
    assert (level, counted.startswith("20 of 130 ")) == ("yellow", True)


@pytest.mark.parametrize("trained", ["nothing", "question"])
def test_an_answer_mask_that_is_wrong(location, monkeypatch, trained):
    config, data, _ = location()
    right = data._batch

    def wrong(tokens):
        batch = right(tokens)
        if trained == "nothing":
            batch["labels"][:] = IGNORED
        else:
            batch["labels"][:, 5 : data.prompt_length] = batch["input_ids"][:, 5 : data.prompt_length]
        return batch

    monkeypatch.setattr(data, "_batch", wrong)
    claim = "every sample has tokens to learn" if trained == "nothing" else "no question is trained"
    assert found_in(config, data)[claim][0] == "red"


def test_a_batch_that_draws(location, monkeypatch):
    config, data, _ = location()
    right = data.training_batch

    def noisy(epochs, indices):
        batch = right(epochs, indices)
        batch["input_ids"][:, 3] = np.random.default_rng().integers(4)
        return {**batch, "noise": torch.from_numpy(np.random.default_rng().random(3))}

    monkeypatch.setattr(data, "training_batch", noisy)
    assert found_in(config, data)["a batch depends on its numbers alone"][0] == "red"


# ---------------------------------------------------------------------- model and generation


def looked_at(config, data, module):
    return troubles(check_network(config, module, data))


def test_a_sound_model_is_green(location):
    config, data, module = location("model.hidden_size=32")
    assert looked_at(config, data, module) == {}
    assert check_generation(module, data)[0].level == "green"


def test_a_rate_that_is_far_too_high(location):
    found = looked_at(*location("model.hidden_size=32", "optimizer.lr=1.0"))
    level, counted = found["the peak learning rate does not blow the loss up"]
    assert (level, "at its peak rate 1" in counted) == ("red", True)


def test_a_layer_that_no_gradient_reaches(location):
    config, data, module = location("model.hidden_size=32", "model.num_hidden_layers=2")
    layer = module.net.model.layers[0].mlp
    layer.register_forward_hook(lambda part, given, out: out.detach())
    found = looked_at(config, data, module)
    level, counted = found["a gradient reaches every trainable parameter"]
    assert level == "red"
    assert "none: model.layers.0.mlp.gate_proj.weight, model.layers.0.mlp.up_proj.weight" in counted


def test_dropout_that_is_left_on_in_evaluation(location):
    config, data, module = location("model.hidden_size=32")
    module.net.model.embed_tokens.register_forward_hook(lambda part, given, out: nn.functional.dropout(out, 0.5))
    assert looked_at(config, data, module)["an evaluation draws nothing"][0] == "red"


def test_weights_that_begin_far_off(location):
    config, data, module = location("model.hidden_size=32")
    with torch.no_grad():
        module.net.lm_head.weight.mul_(1000.0)
    assert looked_at(config, data, module)["the first loss is not worse than guessing"][0] == "red"


def test_a_head_that_hears_nothing_of_the_rest(location, monkeypatch):
    config, data, module = location("model.hidden_size=32")
    right = module.loss_sum
    monkeypatch.setattr(module, "loss_sum", lambda batch: (right(batch)[0].detach().requires_grad_(), right(batch)[1]))
    found = looked_at(config, data, module)
    assert found["one batch can be learned by heart"][0] == "red"
    assert found["a gradient reaches every trainable parameter"][0] == "red"


def test_nothing_is_trained(location):
    config, data, module = location("model.hidden_size=32")
    module.net.requires_grad_(requires_grad=False)
    assert looked_at(config, data, module)["something is trained"][0] == "red"


@pytest.mark.parametrize(
    ("overrides", "claim", "remedy"),
    [
        (
            [*LOCATION, "callbacks.checkpoints.monitor=val/nothing"],
            "an evaluation measures what chooses the best",
            "callbacks.checkpoints.monitor=val/loss callbacks.checkpoints.mode=min",
        ),
        (
            [*IMDB, "model.max_position_embeddings=8"],
            "no sequence is longer than the model has positions",
            "data.max_length=8",
        ),
    ],
)
def test_what_train_would_refuse_is_red(composed, overrides, claim, remedy):
    config = composed(*overrides, name="doctor")
    data = build_datamodule(config)
    plan = build_plan(config, data)
    found = parts_fit(config, plan, build_module(config, data, plan), data, directory_of(config))
    assert [(finding.level, finding.claim, finding.remedy) for finding in found] == [("red", claim, remedy)]


def test_a_network_that_fails_is_red_and_not_the_end(composed, monkeypatch):
    config = composed(*LOCATION, "trainer.max_steps=20", name="doctor")

    def fail(*_):
        raise RuntimeError("shapes do not match\nand more")

    monkeypatch.setattr("lightning_apps.experiments.causal_lm.CausalLMExperiment.loss_sum", fail)
    found = troubles(examine(config, config).findings)
    assert found["the model can be looked at"] == ("red", "RuntimeError: shapes do not match")


def test_a_batch_that_is_answered_otherwise(location, monkeypatch):
    _, data, module = location("model.hidden_size=32")
    right = module.net.generate

    def wrong(input_ids, **options):
        produced = right(input_ids=input_ids, **options)
        return torch.cat(
            [produced[:, : input_ids.shape[1]], produced[:, input_ids.shape[1] :] + (len(input_ids) > 1)], 1
        )

    monkeypatch.setattr(module.net, "generate", wrong)
    monkeypatch.setattr("models.decoding.generation.attends_packed", lambda net: False)
    (found,) = check_generation(module, data)
    assert found.level == "red"
    json.dumps(vars(found))
