"""Whole runs of the rating experiment, seconds long, and what follows from them."""

import json
import sys

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lightning_apps import evaluate as evaluate_command
from lightning_apps import predict as predict_command
from lightning_apps import replay as replay_command
from lightning_apps.config.checks import check_config
from lightning_apps.errors import ConfigError
from lightning_apps.experiments.rating.module import weights_of_classes
from lightning_apps.experiments.training_history import training_history
from lightning_apps.run_files.directory import RunDirectory
from lightning_apps.run_files.metrics_csv import read_metrics
from lightning_apps.runs import experiment_run
from lightning_apps.runs.build import build_datamodule, build_module, build_plan
from lightning_apps.runs.experiment_run import run_experiment
from lightning_apps.runs.preflight import check_before_start
from models.encoders.classifier import weighted_cross_entropy
from tests.asserts.killed_runs import Killed, assert_same, final_state, killed, resumed
from tests.tiny.tiny_runs import IMDB, RATING, RATING_DATA, directory_of

pytestmark = pytest.mark.numeric

QUICK = [*RATING, "callbacks=default", "trainer.max_steps=4", "trainer.evaluate_every=2"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache_root):
    from hydra import compose, initialize_config_dir

    from lightning_apps.config.composition import CONF, plain

    root = tmp_path_factory.mktemp("outputs")
    learning = ["data.chunk_size=32", "data.stride=16", "data.device_batch_size=null", "optimizer.groups=[]"]
    overrides = [*RATING_DATA, *learning, "optimizer.lr=0.01", "trainer.max_epochs=3", "logger=tensorboard"]
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        cfg = compose(
            "config",
            overrides=[
                *overrides,
                "precision=fp32",
                f"run.output_root={root}",
                f"run.cache_root={cache_root}",
                "run.name=a",
            ],
        )
    config = plain(cfg)
    return RunDirectory(root / "rating" / "a"), config, run_experiment(config)


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_it_learns_what_was_made_up(finished):
    _, _, summary = finished
    assert summary["best"]["metrics"]["val/f1_macro"] > 0.9
    assert summary["metrics"]["test/kappa"] > 0.9
    assert summary["parameters"]["parts"]["chunk_attention"] == {"total": 544, "trainable": 544}
    assert sum(part["total"] for part in summary["parameters"]["parts"].values()) == summary["parameters"]["total"]


def test_metrics_and_baselines(finished):
    directory, _, summary = finished
    rows = [row for row in read_metrics(directory.metrics) if "val/loss" in row]
    assert [row["step"] for row in rows] == [15, 30, 45]
    for row in rows:
        for name in ("accuracy", "f1_macro", "weighted_score", "kappa"):
            assert row[f"val/{name}_low"] <= row[f"val/{name}"] + 1e-9
            assert row[f"val/{name}"] <= row[f"val/{name}_high"] + 1e-9
        weighted = 0.3 * row["val/f1/general"] + 0.3 * row["val/f1/teen"] + 0.4 * row["val/f1/mature"]
        assert row["val/weighted_score"] == pytest.approx(weighted)
    baselines = json.loads(directory.baselines.read_text())
    assert baselines["test"]["majority class"]["kappa"] == 0
    assert baselines["test"]["majority class"]["f1_macro"] == pytest.approx(2 / 9)
    assert 0.5 < baselines["test"]["TF-IDF + LR"]["accuracy"] < summary["metrics"]["test/accuracy"]
    assert "f1 macro" in directory.log.read_text()
    assert list((directory.path / "tensorboard").glob("events*"))


def test_history(finished):
    directory, _, _ = finished
    history = json.loads(directory.history.read_text())
    rows = read_metrics(directory.metrics)
    assert [entry["step"] for entry in history] == [15, 30, 45]
    assert [entry["epoch"] for entry in history] == [1, 2, 3]
    for entry, start in zip(history, (0, 15, 30), strict=True):
        losses = [row["train/loss"] for row in rows if start < row["step"] <= start + 15]
        assert entry["train/loss"] == pytest.approx(np.mean(losses))
        row = next(row for row in rows if row["step"] == entry["step"])
        assert {key: value for key, value in entry.items() if key.startswith("val/")} == {
            key: value for key, value in row.items() if key.startswith("val/")
        }


def test_history_of_what_json_has_no_word_for():
    rows = [{"step": 1, "train/loss": 2.0, "train/epoch": 0.5}, {"step": 2, "val/loss": float("nan"), "val/f1": 1.0}]
    assert training_history(rows) == [{"step": 2, "epoch": 0.5, "train/loss": 2.0, "val/loss": None, "val/f1": 1.0}]


def test_predictions_name_their_documents(finished):
    rows = rows_of(finished[0].predictions)
    assert [row["id"] for row in rows] == [f"test-{number:02}" for number in range(36)]
    assert {row["output"] for row in rows} == {"General", "Teen", "Mature"}


def test_the_exported_model_gives_the_same_answers(finished):
    directory, config, _ = finished
    net = AutoModelForSequenceClassification.from_pretrained(directory.model)
    tokenizer = AutoTokenizer.from_pretrained(directory.model)
    data = build_datamodule(config)
    with torch.no_grad():
        said = torch.softmax(net(**data.text_batch(data.texts("test"), tokenizer)).logits, -1)
    for row, probabilities in zip(rows_of(directory.predictions), said.tolist(), strict=True):
        assert row["probabilities"] == pytest.approx(probabilities, abs=1e-5)


def called(monkeypatch, command, *arguments):
    monkeypatch.setattr(sys, "argv", ["x", *arguments])
    return command.main()


def test_predict_evaluate_and_replay(finished, monkeypatch, tmp_path):
    directory, config, summary = finished
    texts = build_datamodule(config).texts("test")
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    long = "ba do ki " * 50_000 + "slaughter"
    lines = [*({"id": number, "text": text} for number, text in enumerate(texts)), {"text": "slaughter"}, {"text": ""}]
    source.write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"text": long}]))
    called(monkeypatch, predict_command, f"run={directory.path}", f"input={source}", f"output={out}", "accelerator=cpu")
    answers = rows_of(out)
    for answer, told in zip(answers[: len(texts)], rows_of(directory.predictions), strict=True):
        assert answer["label"] == told["output"]
        assert list(answer["probabilities"].values()) == pytest.approx(told["probabilities"], abs=1e-5)
    assert answers[len(texts)]["label"] == "Mature"
    assert len(answers) == len(texts) + 3  # a blank document and one of 150,001 words have answers too
    called(monkeypatch, evaluate_command, f"run={directory.path}", "split=validation", "checkpoint=best")
    found = json.loads((directory.evaluations / "validation-best" / "metrics.json").read_text())["metrics"]
    assert repr(found) == repr(dict(sorted(summary["best"]["metrics"].items())))
    called(monkeypatch, replay_command, f"run={directory.path}", "step=3")


def test_weights_of_classes_by_hand():
    assert weights_of_classes([6, 3, 1], "inverse_frequency", beta=0.9) == pytest.approx([10 / 18, 10 / 9, 10 / 3])
    assert weights_of_classes([6, 0, 2], "inverse_frequency", beta=0.9) == pytest.approx([8 / 12, 0, 8 / 4])
    assert weights_of_classes([6, 3, 1], None, beta=0.9) == [1, 1, 1]
    assert weights_of_classes([6, 3, 1], [1, 2, 0], beta=0.9) == [1, 2, 0]
    raw = [0.5 / (1 - 0.5**count) for count in (6, 3, 1)]
    by_number = weights_of_classes([6, 3, 1], "effective_number", beta=0.5)
    assert by_number == pytest.approx([3 * value / sum(raw) for value in raw])
    absent = weights_of_classes([6, 0, 1], "effective_number", beta=0.5)
    assert absent == pytest.approx([2 * raw[0] / (raw[0] + raw[2]), 0, 2 * raw[2] / (raw[0] + raw[2])])
    assert weights_of_classes([6, 3, 1], "effective_number", beta=0.0) == pytest.approx([1, 1, 1])
    near = weights_of_classes([6, 3, 1], "effective_number", beta=1 - 1e-9)
    inverse = np.array([1 / 6, 1 / 3, 1])
    assert near == pytest.approx((3 * inverse / inverse.sum()).tolist(), rel=1e-5)


@pytest.mark.parametrize("weights", [[1.0, 2.0], [1.0, -1.0, 1.0], [0.0, 0.0, 0.0]])
def test_wrong_weights_are_refused(weights):
    with pytest.raises(ConfigError, match=r"module\.class_weights=.*give 3 weights, one for each class"):
        weights_of_classes([6, 3, 1], weights, beta=0.9)


def test_losses_by_hand():
    logits, labels = torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 0.0]]), torch.tensor([0, 2])
    weights = torch.tensor([0.5, 1.0, 3.0])
    log = torch.log_softmax(logits, -1)
    plain = -torch.stack([0.5 * log[0, 0], 3.0 * log[1, 2]])
    torch.testing.assert_close(weighted_cross_entropy(logits, labels, weights), plain.sum())
    easy = torch.stack([1 - log[0, 0].exp(), 1 - log[1, 2].exp()]) ** 2
    torch.testing.assert_close(weighted_cross_entropy(logits, labels, weights, focal_gamma=2.0), (easy * plain).sum())
    smooth = weighted_cross_entropy(logits, labels, weights, label_smoothing=0.3)
    torch.testing.assert_close(smooth, 0.7 * plain.sum() - 0.1 * (log * weights).sum())
    mean = torch.nn.functional.cross_entropy(logits, labels, weights, label_smoothing=0.3)
    torch.testing.assert_close(smooth / 3.5, mean)
    certain = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    weighted_cross_entropy(certain, torch.tensor([0]), weights, focal_gamma=0.5).backward()
    assert torch.isfinite(certain.grad).all()


def parts(composed, *overrides):
    config = composed(*RATING, "trainer.max_steps=20", *overrides, name="parts")
    data = build_datamodule(config)
    plan = build_plan(config, data)
    return config, plan, build_module(config, data, plan), data


def test_weights_come_from_the_training_split_as_it_is_drawn(composed):
    weights = parts(composed)[2].class_weights
    assert weights.tolist() == pytest.approx([240 / (3 * 120), 240 / (3 * 80), 240 / (3 * 40)])
    assert parts(composed, "data.sampling=balanced")[2].class_weights.tolist() == [1, 1, 1]
    assert "class_weights" not in parts(composed)[2].state_dict()


def test_the_loss_of_a_step_is_its_weighted_mean_however_it_is_cut(composed):
    def losses(size):
        config = composed(*QUICK, f"data.device_batch_size={size}", name=f"by{size}")
        run_experiment(config)
        return [row["train/loss"] for row in read_metrics(directory_of(config).metrics)]

    whole = losses("null")
    assert losses(5) == pytest.approx(whole, rel=1e-4)
    config, _, module, data = parts(composed, *QUICK)
    batch = data.training_batch(np.zeros(16, dtype=np.int64), first_step(config, data))
    with torch.no_grad():
        logits = module.logits(batch)
    weights = torch.tensor([240 / 360, 240 / 240, 240 / 120])
    expected = torch.nn.functional.cross_entropy(logits, batch["labels"], weight=weights)
    assert whole[0] == pytest.approx(float(expected), rel=1e-5)
    assert whole[0] != pytest.approx(float(torch.nn.functional.cross_entropy(logits, batch["labels"])), rel=1e-3)


def first_step(config, data):
    from datamodules.sampling.step_loader import StepSampler

    size, seed = config["data"]["global_batch_size"], config["data"]["seed"]
    sampler = StepSampler(num_samples=data.num_train_samples, global_batch_size=size, num_steps=1, seed=seed)
    return sampler.key(0)[1]


@pytest.mark.parametrize("pooling", ["additive", "multi_head", "mean", "max"])
@pytest.mark.parametrize("frozen", [[], ["model.freeze_embeddings=true", "model.freeze_layers=1"]])
def test_every_trainable_parameter_is_in_exactly_one_group(composed, pooling, frozen):
    config = composed(*RATING_DATA, f"model.document_pooling={pooling}", *frozen, name="groups")
    data = build_datamodule(config)
    module = build_module(config, data, build_plan(config, data))
    groups = module.configure_optimizers()["optimizer"].param_groups
    grouped = [parameter for group in groups for parameter in group["params"]]
    trainable = {parameter for parameter in module.parameters() if parameter.requires_grad}
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == trainable
    rates = {name: group["initial_lr"] for group in groups for name, entry in module.net.named_parameters() if any(entry is one for one in group["params"])}  # fmt: skip # noqa: E501
    for name, rate in rates.items():
        assert rate == (4e-5 if name.startswith("head.") else 2e-5), name
    assert any(name.startswith("encoder.embeddings") for name in rates) == (not frozen)


RESUMED = {
    "plain": ["model.hidden_dropout=0.2", "model.attention_dropout=0.2", "module.label_smoothing=0.1"],
    "balanced": ["data.sampling=balanced", "module.focal_gamma=2.0", "model.document_pooling=multi_head"],
    "unfreezing": ["optimizer.unfreeze=[{pattern: embeddings, at_step: 0.9}, {pattern: layer., at_step: 5}]",
                   "model.hidden_dropout=0.2"],
    "recomputed": ["hardware.gradient_checkpointing=true", "model.recompute=chunks", "model.hidden_dropout=0.2"],
}  # fmt: skip


@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_run_ends_as_the_whole_one(name, composed, monkeypatch):
    run = [*RATING, "callbacks.extra.picture=null", "callbacks.extra.evaluation.baselines=false", "trainer.max_steps=9",
           "trainer.evaluate_every=3", "trainer.save_every=2", "data.max_train_samples=60", *RESUMED[name]]  # fmt: skip
    whole, broken = composed(*run, name="whole"), composed(*run, name="broken")
    run_experiment(whole)
    killed(monkeypatch, broken, "on_train_batch_end", 5)
    run_experiment(resumed(broken))
    assert_same(final_state(whole), final_state(broken))
    assert directory_of(whole).history.read_text() == directory_of(broken).history.read_text()


def test_layers_learn_from_their_step_on(composed):
    unfreeze = "optimizer.unfreeze=[{pattern: layer., at_step: 3}, {pattern: embeddings, at_step: 0.8}]"
    run = [*QUICK, unfreeze, "trainer.max_steps=6", "trainer.save_every=1", "scheduler=constant"]
    config = composed(*run, name="unfrozen")
    run_experiment(config)
    paths = [directory_of(config).checkpoint(str(step)) for step in range(1, 7)]
    states = [torch.load(path, weights_only=True)["state_dict"] for path in paths]
    for part, first in ((".layer.", 3), (".embeddings.", 5)):  # `first` steps without them
        names = [name for name in states[0] if part in name]
        assert all(states[0][name].equal(states[first - 1][name]) for name in names)
        assert not all(states[first - 1][name].equal(states[first][name]) for name in names)
    assert not states[0]["net.head.0.weight"].equal(states[1]["net.head.0.weight"])
    both = ["optimizer.unfreeze=[{pattern: embeddings, at_step: 3}]", "model.freeze_embeddings=true"]
    with pytest.raises(ConfigError, match=r"keeps frozen for the whole run \(or model\.freeze_embeddings"):
        parts(composed, *both)


def test_early_stopping_is_on_by_default(composed):
    config = composed(*RATING, "trainer.max_epochs=9", "callbacks.extra.evaluation.baselines=false",
                      "callbacks.extra.picture=null", "data.max_train_samples=30", "optimizer.lr=0",
                      "callbacks.early_stopping.patience=2")  # fmt: skip
    assert composed(*RATING)["callbacks"]["early_stopping"] == {"patience": 5, "min_delta": 0.001}
    summary = run_experiment(config)
    assert summary["reason"] == "early stopping at step 6"  # two steps an epoch, nothing learned
    assert summary["best"]["metric"] == "val/f1_macro"


def test_a_run_that_stopped_early_and_is_resumed_stays_stopped(composed, monkeypatch):
    config = composed(*RATING, "trainer.max_epochs=9", "callbacks.extra.evaluation.baselines=false",
                      "callbacks.extra.picture=null", "data.max_train_samples=30", "optimizer.lr=0",
                      "callbacks.early_stopping.patience=2", name="late")  # fmt: skip

    def die(*args, **kwargs):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(experiment_run, "finish", die)
        patch.setattr(experiment_run, "write_summary", lambda *args: {})
        with pytest.raises(Killed):
            run_experiment(config)
    last = directory_of(config).checkpoint("last")
    before = last.read_bytes()
    summary = run_experiment({**config, "run": {**config["run"], "resume": "auto"}})
    assert (summary["reason"], summary["optimizer_steps"]) == ("early stopping at step 6", 6)
    assert last.read_bytes() == before


def test_an_encoder_of_an_imdb_run_is_taken_over(composed):
    sentiment = composed(*IMDB, "callbacks=default", name="x")
    run_experiment(sentiment)
    exported = directory_of(sentiment).model
    source = AutoModelForSequenceClassification.from_pretrained(exported)
    pretrained = [word for word in RATING if not word.startswith("model")]
    config = composed(*pretrained, "model=hierarchical_minilm", f"model.pretrained={exported}", "trainer.max_steps=2", name="t")  # fmt: skip # noqa: E501
    data = build_datamodule(config)
    plan = build_plan(config, data)
    module = build_module(config, data, plan)
    for name, weights in module.net.encoder.state_dict().items():
        assert weights.equal(source.bert.state_dict()[name]), name
    assert data.tokenizer.get_vocab() == AutoTokenizer.from_pretrained(exported).get_vocab()
    assert module.net.config.num_labels == 3
    check_before_start(config, plan, module, data, directory_of(config))


@pytest.mark.parametrize("weights", ["[0.5,0.5]", "[0.5,0.5,-1]", "[0,0,0]"])
def test_scores_that_do_not_weigh_the_classes(composed, weights):
    config = composed(*RATING, f"callbacks.extra.evaluation.score_weights={weights}", name="scores")
    with pytest.raises(ConfigError, match=r"score_weights=.*: give 3 weights, one for each of General, Teen, Mature"):
        run_experiment(config)
    assert not directory_of(config).path.exists()
    check_config(composed(*RATING, "callbacks.extra.evaluation.score_weights=null"))


def test_chunks_beyond_the_models_positions(composed):
    with pytest.raises(ConfigError, match=r"40 tokens, the model positions for 32; .*data\.chunk_size=32"):
        run_experiment(composed(*RATING, "data.chunk_size=40", "model.max_position_embeddings=32", name="long"))


def test_memory_is_estimated_from_chunks(composed, monkeypatch):
    from lightning_apps.runs import preflight
    from lightning_apps.runs.memory_estimate import AvailableMemory, step_memory

    config, _, module, data = parts(composed)
    one, two, chunks = data.memory_probe()
    assert (len(one["input_ids"]), len(two["input_ids"]), chunks) == (1, 2, 4)
    fixed, each = step_memory(module, one, two, chunks)
    # what is kept for a whole document is measured to be that of its chunks
    from lightning_apps.runs.memory_estimate import TRANSIENT, saved_bytes

    longest = data.longest_train_samples(1)
    whole = TRANSIENT * saved_bytes(module, data.training_batch(np.zeros(1, dtype=np.int64), longest))
    assert each == pytest.approx(whole, rel=0.15)
    monkeypatch.setattr(preflight, "available_memory_bytes", lambda name: AvailableMemory(fixed, fixed, shared=True))
    with pytest.raises(ConfigError, match=r"of 4 in a micro-batch"):
        preflight.check_memory(config, module, data)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.stride=16", r"data\.stride=16: chunks of data\.chunk_size=16 tokens.*smaller stride"),
        ("data.max_chunks=0", r"data\.max_chunks=0: must be at least 1"),
        ("data.test_share=1.0", r"data\.test_share=1\.0: must be at least 0"),
        ("data.choose=middle", r"data\.choose='middle': allowed are first, spread, last"),
        ("model.document_pooling=median", r"model\.document_pooling='median'"),
        ("data.sections=pages", r"data\.sections='pages': allowed are whole, blank_lines"),
        ("module.class_weights=balanced", r"module\.class_weights='balanced'"),
        ("module.label_smoothing=1.0", r"module\.label_smoothing=1\.0"),
    ],
)
def test_mistakes_are_found_before_anything_is_read(composed, override, expected):
    with pytest.raises(ConfigError, match=expected):
        check_config(composed(*RATING, override))


def test_mistakes_that_the_module_finds(composed):
    with pytest.raises(ConfigError, match=r"module\.focal_gamma=-1"):
        parts(composed, "module.focal_gamma=-1.0")
    with pytest.raises(ConfigError, match=r"module\.effective_number_beta=1\.0"):
        parts(composed, "module.class_weights=effective_number", "module.effective_number_beta=1.0")


def test_all_documents_weigh_nothing(composed):
    from lightning_apps.errors import GuardError

    with pytest.raises(GuardError, match=r"every sample has the weight 0.*module\.class_weights"):
        run_experiment(composed(*QUICK, "module.class_weights=[0,0,1]", "data.max_train_samples=6",
                                "data.global_batch_size=4", name="zero"))  # fmt: skip


@pytest.mark.slow
def test_verify_proves_its_claims(tmp_path, cache_root):
    import subprocess

    command = [sys.executable, "-m", "lightning_apps.verify", "experiment=rating", f"run.output_root={tmp_path}"]
    done = subprocess.run([*command, f"run.cache_root={cache_root}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    table = json.loads((tmp_path / "rating" / "verify.json").read_text())
    assert sum(row["outcome"] == "proved" for row in table) >= 11
    assert table[-1]["claim"] == "vectors of a frozen encoder kept = read again in every epoch"
    assert table[-1]["difference"] == 0
