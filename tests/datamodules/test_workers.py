"""Loader workers: the same batches from any number of them, however they start."""

import io
import pickle
from multiprocessing.reduction import ForkingPickler
from types import SimpleNamespace

import pytest
import torch

from lightning_apps.config.checks import check_config
from lightning_apps.errors import ConfigError
from lightning_apps.runs.build import build_datamodule, build_module, build_plan
from tests.tiny.tiny_runs import ARXIV, IMDB, LOCATION, RATING

RUNS = {
    "location": [*LOCATION, "data.blend_cities=2"],
    "gsm8k": [
        "experiment=gsm8k", "data.num_validation=6", "data.global_batch_size=8", "data.max_length=160",
        "trainer.max_epochs=null", "trainer.max_steps=3", "hardware=cpu",
    ],
    "gsm8k_grouped": [
        "experiment=gsm8k", "data.num_validation=6", "data.global_batch_size=8", "data.max_length=160",
        "data.batching=length_grouped", "data.device_batch_size=3", "trainer.max_epochs=null", "trainer.max_steps=3",
        "hardware=cpu",
    ],
    "arxiv": ARXIV,
    "imdb": IMDB,
    "rating": [*RATING, "data.sampling=balanced"],
}  # fmt: skip


@pytest.fixture
def opened(composed, small_gsm8k):
    """The data of a run, with a module and a trainer, as they are while it trains."""

    def make(name, *overrides):
        own = [f"data.path={small_gsm8k}/data", f"model.pretrained={small_gsm8k}/model"] if "gsm8k" in name else []
        config = composed(*RUNS[name], *own, *overrides)
        check_config(config)
        data = build_datamodule(config)
        build_module(config, data, build_plan(config, data))
        data.trainer = SimpleNamespace(
            max_steps=3, global_step=0, global_rank=0, world_size=1, unpicklable=lambda: None
        )
        return data

    return make


def flat(batches):
    """Every value of every micro-batch."""
    return [
        {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in micro.items()}
        | {"samples": step.sample_ids.tolist(), "weight_sum": step.weight_sum}
        for step in batches
        for micro in step.micro_batches
    ]


@pytest.mark.parametrize("name", RUNS)
def test_what_workers_get_can_be_sent_to_a_new_process(opened, name):
    """As spawn sends it; the batch that comes of it there is the batch that is made here."""
    loader = opened(name, "hardware.num_workers=2").train_dataloader()
    buffer = io.BytesIO()
    ForkingPickler(buffer).dump((loader.dataset, loader.collate_fn))
    _, collate = pickle.loads(buffer.getvalue())
    key = next(iter(loader.sampler))
    assert flat([collate(key)]) == flat([loader.collate_fn(key)])


@pytest.mark.slow  # each worker imports torch
@pytest.mark.parametrize(
    ("name", "methods", "workers"),
    [
        ("location", ("fork", "spawn", "forkserver"), (2, 4)),
        *((name, ("spawn",), (2,)) for name in RUNS if name != "location"),
    ],
)
def test_any_number_of_workers_started_in_any_way_makes_the_same_batches(opened, name, methods, workers):
    expected = flat(opened(name).train_dataloader())
    assert len(expected) >= 3
    for method in methods:
        for count in workers:
            data = opened(name, f"hardware.num_workers={count}", f"hardware.worker_start_method={method}")
            assert flat(data.train_dataloader()) == expected, (method, count)


def test_a_start_method_reaches_the_loader(opened):
    loader = opened("location", "hardware.num_workers=2", "hardware.worker_start_method=spawn").train_dataloader()
    assert loader.multiprocessing_context.get_start_method() == "spawn"
    alone = opened("location", "hardware.worker_start_method=spawn").train_dataloader()
    assert alone.multiprocessing_context is None
    with pytest.raises(ConfigError, match="allowed are fork, spawn, forkserver, or null"):
        opened("location", "hardware.worker_start_method=thread")
