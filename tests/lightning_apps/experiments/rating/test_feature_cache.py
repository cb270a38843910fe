"""A frozen encoder reads each chunk once: the vectors are the same, and so is everything that follows from them."""

import json

import pytest
import torch

from lightning_apps.experiments.rating.feature_cache import encoder_identity
from lightning_apps.run_files.directory import RunDirectory
from lightning_apps.run_files.metrics_csv import read_metrics
from lightning_apps.runs.experiment_run import run_experiment
from models.encoders.chunk_vectors import ChunkVectors, chunk_key
from models.encoders.hierarchical import HierarchicalClassifier
from tests.tiny.tiny_hierarchical import batch, make
from tests.tiny.tiny_runs import RATING

pytestmark = pytest.mark.numeric

FROZEN = [
    *RATING,
    "model.freeze_embeddings=true",
    "model.freeze_layers=1",
    "trainer.max_steps=6",
    "trainer.evaluate_every=3",
]


def frozen(**changes):
    return make(freeze_embeddings=True, freeze_layers=3, **changes)


def test_vectors_of_a_frozen_encoder_do_not_depend_on_their_batch():
    net = frozen(hidden_dropout=0.5).train()
    flat = batch([[9, 4, 7], [12]])
    together = net.encode(flat["input_ids"], flat["attention_mask"])
    for row, ids in enumerate(flat["input_ids"]):
        length = int(flat["attention_mask"][row].sum())
        assert torch.equal(net.encode(ids[None, :length])[0], together[row])
    # what learns above the encoder still gets its gradient
    net(**flat).logits.sum().backward()
    assert all(entry.grad is not None for entry in net.parameters() if entry.requires_grad)


def test_known_vectors_are_looked_up_and_others_computed():
    net = frozen().eval()
    flat = batch([[9, 4, 7], [12]])
    computed = net.encode(flat["input_ids"], flat["attention_mask"])
    known = flat["input_ids"][1, : int(flat["attention_mask"][1].sum())]
    net.chunk_vectors = ChunkVectors([chunk_key(known.numpy())], torch.full((1, computed.shape[1]), 3.0))
    found = net.encode(flat["input_ids"], flat["attention_mask"])
    assert found[1].unique().tolist() == [3.0]
    assert torch.equal(found[[0, 2, 3]], computed[[0, 2, 3]])
    # a memory belongs to frozen weights: once something learns it is not asked
    net.layers[2].requires_grad_()
    torch.testing.assert_close(net.encode(flat["input_ids"], flat["attention_mask"]), computed)


def test_identity_is_that_of_weights_and_settings():
    net = frozen()
    assert encoder_identity(net) == encoder_identity(frozen())
    assert encoder_identity(net) != encoder_identity(frozen(chunk_pooling="mean"))
    with torch.no_grad():
        next(iter(net.layers[2].parameters())).flatten()[0] += 1e-6
    assert encoder_identity(net) != encoder_identity(frozen())


def test_identity_knows_no_sign_of_zero():
    """A moving average of weights that never change gives 0.0 for -0.0, and would have every chunk read again."""
    nets = frozen(), frozen()
    for net, zero in zip(nets, (0.0, -0.0), strict=True):
        with torch.no_grad():
            next(iter(net.layers[2].parameters())).flatten()[0] = zero
    assert encoder_identity(nets[0]) == encoder_identity(nets[1])


@pytest.fixture
def counted(monkeypatch):
    """Chunks that an encoder read."""
    read = []
    encode = HierarchicalClassifier._encode_micro_batch

    def count(self, given, mask, is_padded):
        read.append(len(given))
        return encode(self, given, mask, is_padded)

    monkeypatch.setattr(HierarchicalClassifier, "_encode_micro_batch", count)
    return read


def losses(root, name):
    return [
        {key: value for key, value in row.items() if not key.endswith(("_per_s", "mfu", "memory"))}
        for row in read_metrics(RunDirectory(root / "rating" / name).metrics)
    ]


@pytest.fixture
def cache_root(tmp_path):
    return tmp_path / "cache"  # not the one of all tests: what is counted here must be read for the first time


def test_runs_with_and_without_a_memory_are_the_same_to_the_last_digit(composed, tmp_path, cache_root, counted):
    run_experiment(composed(*FROZEN, "run.name=with"))
    read_once = sum(counted)
    folders = list((cache_root / "rating_chunk_vectors").iterdir())
    manifests = [json.loads((folder / "manifest.json").read_text())["facts"] for folder in folders]
    assert sorted(facts["split"] for facts in manifests) == ["test", "train", "validation"]
    # the measurement of memory before the run reads a few more
    assert sum(facts["chunks"] for facts in manifests) <= read_once <= sum(facts["chunks"] for facts in manifests) + 8
    counted.clear()
    run_experiment(composed(*FROZEN, "run.name=again", "module.label_smoothing=0.1"))
    assert sum(counted) <= 8
    run_experiment(composed(*FROZEN, "run.name=without", "callbacks.extra.feature_cache=null"))
    assert sum(counted) > read_once / 2  # six steps meet some documents of training only
    assert losses(tmp_path / "outputs", "with") == losses(tmp_path / "outputs", "without")
