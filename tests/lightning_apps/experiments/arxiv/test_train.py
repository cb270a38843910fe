import csv
import itertools
import json

import numpy as np
import pytest
import torch

from datamodules.arxiv import ArxivDataModule, choose_categories
from lightning_apps.config.binding import bind
from lightning_apps.errors import ConfigError
from lightning_apps.run_files.directory import RunDirectory
from lightning_apps.run_files.metrics_csv import read_metrics
from lightning_apps.runs.experiment_run import run_experiment
from tests.tiny.tiny_runs import ARXIV

pytestmark = pytest.mark.numeric


@pytest.fixture
def make(composed):
    def build(*overrides) -> ArxivDataModule:
        data = bind("data", composed(*ARXIV, *overrides)["data"])()
        data.prepare_data()
        data.setup()
        return data

    return build


AVAILABLE = ["a", "b", "c", "d", "e"]


def test_categories_are_chosen_deterministically_and_nested():
    for seed in range(5):
        choices = [choose_categories(AVAILABLE, num_categories=k, category_seed=seed, names=None) for k in range(1, 6)]
        for smaller, larger in itertools.pairwise(choices):
            assert set(smaller) < set(larger)
            assert smaller == sorted(smaller)
        assert choices[-1] == AVAILABLE
    different = {tuple(choose_categories(AVAILABLE, num_categories=1, category_seed=s, names=None)) for s in range(20)}
    assert len(different) == 5
    assert choose_categories(AVAILABLE, num_categories=None, category_seed=0, names=["d", "b"]) == ["b", "d"]


@pytest.mark.parametrize("k", [0, 6, -1])
def test_k_out_of_range_is_refused(k):
    with pytest.raises(ValueError, match=rf"data.num_categories={k}: the data have 5 categories .*; choose 1 to 5"):
        choose_categories(AVAILABLE, num_categories=k, category_seed=0, names=None)


def test_unknown_names_are_refused(make):
    with pytest.raises(ValueError, match=r"data.categories=\['x'\]: x not in the data; there are bio, math, phys"):
        make("data.num_categories=null", "data.categories=[x]")
    with pytest.raises(ValueError, match="exclude each other"):
        make("data.categories=[bio]")


def test_k_of_all_equals_no_filter(make):
    everything, filtered = make("data.num_categories=null"), make("data.num_categories=3")
    indices = np.arange(64)
    for epoch in (0, 3):
        epochs = np.full_like(indices, epoch)
        assert everything.training_batch(epochs, indices)["input_ids"].equal(
            filtered.training_batch(epochs, indices)["input_ids"]
        )
    assert filtered.held_out == []


def test_a_batch_to_the_token(make):
    data = make("data.num_categories=null", "data.categories=[math]")
    batch = data.training_batch(np.array([0, 0]), np.array([0, 1]))
    assert batch["input_ids"].shape == (2, 17)
    assert batch["labels"][:, 1:].equal(batch["input_ids"][:, 1:])
    assert batch["labels"][:, 0].tolist() == [-100, -100]
    assert batch["num_tokens"] == 2 * 16
    assert data.tokens_per_sample == 16
    words = set(data.tokenizer.decode(batch["input_ids"].flatten()).split())
    assert words & {"group", "ring", "field", "proof"}
    assert not words & {"cell", "gene", "quark", "photon"}
    rows, starts = data.training_windows(np.array([0]), np.array([0]))
    document = data.store.index[rows[0]]
    own = data.store.tokens[document["offset"] : document["offset"] + document["length"]].astype(int).tolist()
    place = int(starts[0] - document["offset"])
    assert batch["input_ids"][0].tolist() == own[place : place + 17]


def test_short_documents_are_left_out_and_counted(make):
    data = make("data.num_categories=3")
    assert data.train_documents.num_too_short.tolist() == [1, 1, 1]
    assert "3 shorter than 17 tokens are left out" in data.describe()["categories"]


def test_the_evaluation_set_is_fixed_and_knows_what_is_held_out(make):
    data = make("data.evaluation_windows_per_category=4")
    evaluated = data.evaluation_set("validation")
    assert evaluated.ranges.categories == [*data.chosen, *data.held_out]
    assert len(evaluated.windows.starts) == 12
    batch = data.batch("validation", np.arange(12))
    assert batch["held_out"].tolist() == [False] * 8 + [True] * 4
    assert batch["category"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    again = make("data.evaluation_windows_per_category=4", "data.seed=9").batch("validation", np.arange(12))
    assert batch["input_ids"].equal(again["input_ids"])
    without = make("data.evaluate_held_out=false", "data.evaluation_windows_per_category=4")
    assert len(without.evaluation_set("validation").windows.starts) == 8


def test_splits_without_a_window_are_found_before_training(make, tmp_path):
    for split, text in (("train", "cell gene " * 30), ("validation", "cell gene"), ("test", "cell gene")):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"text": text, "label": "bio"}) + "\n")
    words = [f"data.path={tmp_path}", "data.num_categories=null"]
    with pytest.raises(ValueError, match="category bio: none of its 1 validation documents has 17 tokens"):
        make(*words)
    (tmp_path / "validation.jsonl").write_text((tmp_path / "train.jsonl").read_text())
    assert not make(*words).has_test_split  # training goes on without a test


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_same_seed_gives_the_same_windows_on_any_worker_count(make, num_workers):
    from datamodules.sampling.step_batches import StepCollator
    from datamodules.sampling.step_loader import StepLoader, StepSampler

    data = make()
    sampler = StepSampler(num_samples=64, global_batch_size=8, num_steps=20, seed=data.seed)
    loader = StepLoader(sampler, StepCollator(data.training_batch, 3), lambda: 0, num_workers=num_workers)
    seen = [torch.cat([batch["input_ids"] for batch in step.micro_batches]) for step in loader]
    for step, tokens in enumerate(seen):
        ids = list(StepSampler(num_samples=64, global_batch_size=8, num_steps=20, seed=data.seed))[step]
        epoch, indices = ids
        assert tokens.equal(data.training_batch(np.full_like(indices, epoch), indices)["input_ids"])
    assert not seen[0].equal(seen[8])  # the second epoch draws other windows


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from lightning_apps.config.composition import CONF, plain

    root = tmp_path_factory.mktemp("arxiv")
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        cfg = compose("config", overrides=[*ARXIV, "callbacks.checkpoints.loss_ratio=0.999", "optimizer.lr=0.01"])
    OmegaConf.update(cfg, "run.output_root", str(root / "outputs"))
    OmegaConf.update(cfg, "run.cache_root", str(root / "cache"))
    OmegaConf.update(cfg, "run.name", "finished")
    config = plain(cfg)
    return RunDirectory(root / "outputs" / "arxiv" / "finished"), run_experiment(config)


def test_a_run_leaves_what_the_house_promises(finished):
    directory, summary = finished
    assert summary["status"] == "completed"
    assert summary["tokens_seen"] == 1536
    assert summary["optimizer_steps"] == 12
    for prefix in ("val", "test"):
        for name in ("loss", "perplexity", "bits_per_byte", "held_out_loss", "in_context_gain", "loss_low"):
            assert np.isfinite(summary["metrics"][f"{prefix}/{name}"])
        assert summary["metrics"][f"{prefix}/perplexity"] == pytest.approx(np.exp(summary["metrics"][f"{prefix}/loss"]))
    for name in ("validation.npz", "test.npz", "test.csv", "test_categories.csv", "test.png"):
        assert (directory.in_context / name).is_file()
    with (directory.in_context / "test_categories.csv").open() as file:
        groups = {row["group"]: float(row["loss"]) for row in csv.DictReader(file)}
    assert groups["chosen"] == pytest.approx(summary["metrics"]["test/loss"], rel=1e-5)
    assert groups["held_out"] == pytest.approx(summary["metrics"]["test/held_out_loss"], rel=1e-5)
    predictions = [json.loads(line) for line in directory.predictions.read_text().splitlines()]
    assert [sorted(row) for row in predictions] == [["input", "output", "score", "target"]] * 4
    assert directory.picture.is_file()


def test_coverage_counts_every_window_once(finished):
    directory, _ = finished
    rows = [row for row in read_metrics(directory.metrics) if "train/unique_tokens" in row]
    assert [row["step"] for row in rows] == [4, 8, 12]
    last = rows[-1]
    assert last["train/repeats"] == pytest.approx(96 * 17 / last["train/unique_tokens"])
    assert rows[0]["train/unique_tokens"] < last["train/unique_tokens"]


def test_checkpoints_are_spaced_in_loss(finished):
    directory, _ = finished
    spaced = sorted(
        (float(path.stem.removeprefix("loss=")) for path in directory.checkpoints.glob("loss=*.ckpt")), reverse=True
    )
    rows = [row["val/loss"] for row in read_metrics(directory.metrics) if "val/loss" in row]
    expected = [rows[0]]
    for loss in rows[1:]:
        if loss <= 0.999 * expected[-1]:
            expected.append(loss)
    assert len(expected) > 1
    assert spaced == pytest.approx(expected, abs=5e-5)


def test_evaluate_measures_one_thing_alone_and_a_pretrained_baseline(finished, monkeypatch, tmp_path, capsys):
    import sys

    from lightning_apps import evaluate

    directory, summary = finished
    command = ["evaluate", f"run={directory.path}", "split=test"]
    monkeypatch.setattr(sys, "argv", [*command, "metrics=in_context"])
    evaluate.main()
    found = json.loads((directory.evaluations / "test-best" / "metrics.json").read_text())
    for name, value in found["metrics"].items():
        assert value == summary["metrics"][name]
    assert (directory.evaluations / "test-best" / "in_context" / "test.npz").is_file()
    assert not (directory.evaluations / "test-best" / "predictions.jsonl").exists()

    # its own export is a model like any other: the same numbers
    monkeypatch.setattr(sys, "argv", [*command, "metrics=[in_context]", f"model.pretrained={directory.model}"])
    evaluate.main()
    (folder,) = [path for path in directory.evaluations.iterdir() if path.name != "test-best"]
    baseline = json.loads((folder / "metrics.json").read_text())
    assert baseline["pretrained"] == str(directory.model)
    assert baseline["metrics"] == found["metrics"]
    capsys.readouterr()
    for wrong, message in (
        ("metrics=in_contxt", "metrics=in_contxt: the run measures no such thing (did you mean in_context?)"),
        ("model.pretrained=nowhere", "model.pretrained=nowhere: its tokenizer cannot be loaded"),
    ):
        monkeypatch.setattr(sys, "argv", [*command, wrong])
        with pytest.raises(SystemExit) as stopped:
            evaluate.main()
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err


def test_a_loss_ratio_outside_0_and_1_is_refused(composed):
    from lightning_apps.config.checks import check_config

    with pytest.raises(ConfigError, match=r"loss_ratio=1\.5: must lie between 0 and 1"):
        check_config(composed("callbacks.checkpoints.loss_ratio=1.5"))


def test_a_step_is_done_again_to_the_last_digit_and_a_nan_is_traced(finished, composed, monkeypatch, capsys):
    import sys

    from lightning_apps import replay
    from lightning_apps.errors import GuardError

    directory, _ = finished
    monkeypatch.setattr(sys, "argv", ["replay", f"run={directory.path}", "step=5"])
    replay.main()  # exits with 1 where a digit differs
    capsys.readouterr()
    config = composed(*ARXIV, name="nan")
    build = ArxivDataModule.training_batch

    def spoil(self, epochs, indices):
        batch = build(self, epochs, indices)
        if self.trainer is not None and self.trainer.global_step == 2:
            self.trainer.lightning_module.net.gpt_neox.embed_in.weight.data[:] = float("nan")
        return batch

    monkeypatch.setattr(ArxivDataModule, "training_batch", spoil)
    with pytest.raises(GuardError, match="step 3") as stopped:
        run_experiment(config)
    assert "embed_in" in str(stopped.value)
    assert stopped.value.crash_dump.is_dir()
