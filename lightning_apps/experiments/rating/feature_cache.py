"""A frozen encoder reads each chunk once, for all epochs, evaluations and runs with the same weights and chunks."""

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray

from datamodules.rating import RatingDataModule
from datamodules.storage.cache import prepared_folder
from lightning_apps.process.console import say, with_progress
from lightning_apps.training.sharding import whole_weights
from models.encoders.chunk_vectors import KEY_BYTES, ChunkVectors, chunk_key
from models.encoders.hierarchical import HierarchicalClassifier

FEATURE_CACHE_VERSION = 1
"""Raise it whenever the vectors of the same chunks and weights come out otherwise."""


class FeatureCache(L.Callback):
    """Gives a HierarchicalClassifier the vectors of the chunks it is going to meet; only where its encoder is frozen.

    Training without it gives the same results to the last digit, only slower. Vectors are kept under the cache root,
    one folder for each split; a killed preparation leaves nothing and repeats its split.
    """

    needs = RatingDataModule

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Before training: both splits that it reads."""
        self._remember(trainer, pl_module, ["train", "validation"])

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Before an evaluation that is no part of training."""
        if trainer.state.fn == "validate":
            self._remember(trainer, pl_module, [trainer.datamodule.evaluation_split])  # type: ignore[attr-defined]

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Before the test, whose split no evaluation has read."""
        self._remember(trainer, pl_module, ["test"])

    def _remember(self, trainer: L.Trainer, pl_module: L.LightningModule, splits: list[str]) -> None:
        net: Any = pl_module.net
        if not isinstance(net, HierarchicalClassifier) or not net.encoder_is_frozen:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        encoder = {
            "version": FEATURE_CACHE_VERSION,
            "encoder": encoder_identity(net),
            "precision": str(trainer.precision),
            "device": pl_module.device.type,
        }
        keys: list[bytes] = []
        vectors = []
        for split in splits:
            chunks = {chunk_key(chunk): chunk for chunk in data.split_chunks(split)}
            settings = {**encoder, "chunks": hashlib.sha256(b"".join(chunks)).hexdigest()}
            with trainer.precision_plugin.forward_context(), whole_weights(net):
                write = partial(write_chunk_vectors, net=net, chunks=chunks, split=split)
                folder = prepared_folder(data.cache_root, "rating_chunk_vectors", settings, write)
            found = np.load(folder / "keys.npy", allow_pickle=False)
            keys += [row.tobytes() for row in found]
            vectors.append(torch.from_numpy(np.load(folder / "vectors.npy", allow_pickle=False)))
        net.chunk_vectors = ChunkVectors(keys, torch.cat(vectors))


def write_chunk_vectors(
    folder: Path, net: HierarchicalClassifier, chunks: Mapping[bytes, NDArray[np.int64]], split: str
) -> dict[str, Any]:
    """Encode chunks and write `keys.npy` (n, KEY_BYTES) uint8 and `vectors.npy` (n, hidden) float32; facts about them.

    Args:
        folder: where to write.
        net: whose encoder is frozen.
        chunks: token ids by their chunk_key.
        split: named in the progress.
    """
    say(f"reading {len(chunks):,} chunks of {split} once; their vectors are kept, as nothing of the encoder is trained")
    was_training = net.training
    net.eval()
    net.chunk_vectors = None
    vectors = []
    for chunk in with_progress(chunks.values(), name=f"encoding {split}", unit="chunk"):
        ids = torch.from_numpy(chunk)[None].to(net.device)
        vectors.append(net.encode(ids)[0].float().cpu())
    net.train(was_training)
    np.save(folder / "keys.npy", np.frombuffer(b"".join(chunks), dtype=np.uint8).reshape(-1, KEY_BYTES))
    np.save(folder / "vectors.npy", torch.stack(vectors).numpy())
    return {"chunks": len(chunks), "split": split}


def encoder_identity(net: HierarchicalClassifier) -> str:
    """Digest of everything that a chunk's vector depends on, but for the machine: weights, settings, pooling."""
    settings = net.config.encoder.to_dict()
    for name in ("_name_or_path", "transformers_version", "architectures", "id2label", "label2id", "problem_type"):
        settings.pop(name, None)
    digest = hashlib.sha256(json.dumps([settings, net.config.chunk_pooling], sort_keys=True, default=str).encode())
    for name, value in net.encoder.state_dict().items():
        digest.update(name.encode())
        # a moving average of weights that never change turns -0.0 into 0.0, which gives the same vectors
        unsigned = value.detach().cpu().contiguous() + 0
        digest.update(unsigned.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
