"""The small corpus, written once for each test process, and overrides that make a run of arxiv on it last a second."""

import tempfile
from pathlib import Path

from lightning_apps.experiments.arxiv.small_files import write_small_files

_folder = tempfile.TemporaryDirectory()  # goes with the process
PAPERS = Path(_folder.name)
TINY = [
    "experiment=arxiv",
    *write_small_files(PAPERS),
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
