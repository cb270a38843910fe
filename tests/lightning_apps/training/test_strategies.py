"""DDP and FSDP2 on two processes against one process: what each strategy must keep, in one start of both ranks."""

import json

import pytest
import torch

from lightning_apps.diagnostics.sample_log import sample_log_row
from lightning_apps.experiments.gsm8k.small_files import write_small_files
from lightning_apps.run_files.directory import RunDirectory
from tests.fakes.ranks import largest_difference, losses, run_on_ranks
from tests.tiny.tiny_runs import ARXIV, IMDB, LOCATION, RATING

pytestmark = pytest.mark.slow

SHORT = ["callbacks.extra.picture=null", "hardware.num_threads=1", "trainer.log_every=1"]
TWO_BLOCKS = "model.num_hidden_layers=2"
UNEVEN = [*LOCATION[:-1], TWO_BLOCKS, "data.global_batch_size=13", "data.device_batch_size=3", "data.num_validation=13",
          "trainer.max_steps=6", "trainer.evaluate_every=3", "trainer.save_every=3"]  # fmt: skip
GSM8K = ["experiment=gsm8k", "data.num_validation=6", "data.max_length=160", "data.global_batch_size=5",
         "data.device_batch_size=2", "trainer.max_epochs=null", "trainer.max_steps=3", "trainer.evaluate_every=3",
         "callbacks.extra.generation.num_samples=3", "callbacks.extra.generation.max_new_tokens=6",
         "data.max_test_samples=3", "optimizer.lr=1e-3"]  # fmt: skip
IN_EPOCH = "trainer.evaluate_every=3"
RUNS = {
    "location": UNEVEN,
    "untied, average": [*UNEVEN, "model.tie_word_embeddings=false", "callbacks.weight_average={decay: 0.9}"],
    "schedule_free": [*UNEVEN, "optimizer=schedule_free", "callbacks.weight_average=null"],
    "written in the background": [*UNEVEN, "callbacks.checkpoints.write=background"],
    "muon": [*UNEVEN, "optimizer=muon"],
    "unfreezing": [*UNEVEN, "optimizer.unfreeze=[{pattern: embed, at_step: 2}, {pattern: layers.0, at_step: 4}]"],
    "recomputed": [*UNEVEN, "hardware.gradient_checkpointing=true", "hardware.find_device_batch_size=true"],
    "gsm8k": [*GSM8K, "{gsm8k}"],
    "gsm8k, lora": [*GSM8K, "{gsm8k}", "model.lora.rank=2", "data.batching=length_grouped"],
    "arxiv": [*(word for word in ARXIV[:-1] if "max_tokens" not in word), "trainer.max_tokens=null",
              "trainer.max_steps=4"],
    "imdb": [*IMDB[:-1], "data.device_batch_size=3", "data.global_batch_size=7", "model.hidden_dropout=0",
             "model.classifier_dropout=0"],
    "rating": [*(word for word in RATING if word != "hardware=cpu"), "data.global_batch_size=7", "trainer.max_steps=4",
               "trainer.evaluate_every=2", "trainer.max_epochs=null"],
    "rating, frozen encoder": [*(word for word in RATING if word != "hardware=cpu"), "data.global_batch_size=7",
               "trainer.max_steps=4", "trainer.evaluate_every=2", "trainer.max_epochs=null", "model.freeze_layers=1"],
}  # fmt: skip
TOLERANCE = 1e-6
"""Relative: sums of float32 in another order (2e-7 measured)."""
HARDWARE = ("cpu", "cpu_ddp", "cpu_fsdp")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, cache_root):
    """(run, hardware) -> its directory."""
    root = tmp_path_factory.mktemp("strategies")
    gsm8k = write_small_files(root / "gsm8k")

    def overrides(name, hardware):
        words = [other for word in RUNS[name] for other in (gsm8k if word == "{gsm8k}" else [word])]
        where = [f"run.output_root={root}", f"run.cache_root={cache_root}", f"run.name={folder(name, hardware)}"]
        return [*words, *SHORT, f"hardware={hardware}", *where]

    def folder(name, hardware):
        return f"{name.replace(', ', '-').replace(' ', '_')}-{hardware}"

    run_on_ranks(1, [overrides(name, "cpu") for name in RUNS], root)
    run_on_ranks(2, [overrides(name, hardware) for hardware in HARDWARE[1:] for name in RUNS], root)

    def directory(name, hardware):
        (found,) = root.glob(f"*/{folder(name, hardware)}")
        return RunDirectory(found)

    return directory


@pytest.mark.parametrize("hardware", HARDWARE[1:])
@pytest.mark.parametrize("name", RUNS)
def test_two_processes_are_as_good_as_one(trained, name, hardware):
    one, two = trained(name, "cpu"), trained(name, hardware)
    assert largest_difference(one.path, two.path) < TOLERANCE
    summaries = [json.loads(run.summary.read_text()) for run in (one, two)]
    for key in ("tokens_seen", "target_tokens_seen", "optimizer_steps", "parameters", "status"):
        assert summaries[0][key] == summaries[1][key], key
    steps = summaries[0]["optimizer_steps"]
    for step in range(1, steps + 1):
        assert sample_log_row(one.sample_log, step).tolist() == sample_log_row(two.sample_log, step).tolist()
    rows = [run.predictions.read_text().split("\n") if run.predictions.exists() else [] for run in (one, two)]
    assert len(rows[0]) == len(rows[1])
    log = two.log.read_text()
    assert "evaluated again" in log
    assert "WARNING" not in log


@pytest.mark.parametrize("name", RUNS)
def test_a_checkpoint_is_what_one_process_writes(trained, name):
    one, two = (
        torch.load(trained(name, hardware).checkpoint("last"), weights_only=True) for hardware in ("cpu", "cpu_fsdp")
    )
    assert one.keys() == two.keys()
    assert [*one["state_dict"]] == [*two["state_dict"]]
    for key, value in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][key], value, rtol=1e-3, atol=1e-5)
    first, second = one["optimizer_states"][0], two["optimizer_states"][0]
    assert first["state"].keys() == second["state"].keys()
    for number, values in first["state"].items():
        assert {name: (value.shape, value.dtype) for name, value in values.items() if torch.is_tensor(value)} == {
            name: (value.shape, value.dtype)
            for name, value in second["state"][number].items()
            if torch.is_tensor(value)
        }


def test_losses_are_there(trained):
    assert len(losses(trained("location", "cpu").path)) == 6
