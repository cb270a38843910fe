"""Overrides that make a run of each experiment take a second or two, and where such a run is found."""

import tempfile
from pathlib import Path
from typing import Any

from lightning_apps.experiments.arxiv.small_files import write_small_files
from lightning_apps.run_files.directory import RunDirectory

LOCATION = [
    "model.hidden_size=16",
    "model.num_hidden_layers=1",
    "model.num_attention_heads=2",
    "model.num_key_value_heads=2",
    "model.intermediate_size=16",
    "data.min_population=3000000",
    "data.num_validation=12",
    "data.global_batch_size=8",
    "hardware=cpu",
]
"""About 170 cities and five thousand parameters: a run takes a second."""

IMDB_DATA = ["experiment=imdb", "model=bert_tiny", "data.dataset=synthetic"]
IMDB = [*IMDB_DATA, "model.hidden_size=16", "model.intermediate_size=16", "model.num_hidden_layers=1",
        "trainer.max_steps=4", "trainer.evaluate_every=2", "hardware=cpu"]  # fmt: skip

RATING_DATA = [
    "experiment=rating", "model=hierarchical_tiny", "data.dataset=synthetic", "data.chunk_size=16", "data.stride=8",
    "data.max_chunks=4", "hardware=cpu",
]  # fmt: skip
RATING = [*RATING_DATA, "model.hidden_size=16", "model.intermediate_size=16", "model.num_hidden_layers=1",
        "data.device_batch_size=4", "optimizer.lr=0.01", "optimizer.groups=[]"]  # fmt: skip

PAPERS_FOLDER = tempfile.TemporaryDirectory()  # goes with the process
PAPERS = Path(PAPERS_FOLDER.name)
ARXIV_DATA = write_small_files(PAPERS)
ARXIV = [
    "experiment=arxiv",
    *ARXIV_DATA,
    "model.hidden_size=16",
    "model.num_hidden_layers=1",
    "model.num_attention_heads=2",
    "model.intermediate_size=16",
    "data.full_dataset=true",
    "data.preparation_workers=1",
    "data.sequence_length=17",
    "data.windows_per_epoch=64",
    "data.num_categories=2",
    "data.global_batch_size=8",
    "trainer.max_tokens=1536",
    "trainer.evaluate_every=4",
    "hardware=cpu",
]


def directory_of(config: dict[str, Any]) -> RunDirectory:
    return RunDirectory(Path(config["run"]["output_root"]) / config["experiment"] / config["run"]["name"])
