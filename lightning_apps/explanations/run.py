"""The model of a rating run, and its documents, for explaining."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from datamodules.rating import RatingDataModule
from datamodules.text.chunking import Chunker, Chunking
from lightning_apps.errors import ConfigError, first_line
from lightning_apps.explanations.attribution import CachedEncoder
from lightning_apps.explanations.documents import Document, choose_rows, columns_of, read_documents
from lightning_apps.explanations.explanation import ExplainSettings, Explanation, explain_document
from lightning_apps.process.console import human_time, say, with_progress
from lightning_apps.run_files.directory import RunDirectory
from lightning_apps.run_files.weights import check_exported, load_exported
from lightning_apps.runs.build import available_accelerator, build_datamodule, quiet_libraries
from lightning_apps.runs.preflight import within_positions
from models.encoders.hierarchical import HierarchicalClassifier


class RatingModel:
    """The exported weights of a run with the chunking that trained them.

    Args:
        directory: the run, whose model/ is loaded.
        config: the run's configuration; its data settings say how texts are cut.
        accelerator: auto, cpu, gpu or mps.

    Raises:
        ConfigError: the model cannot be loaded.
    """

    def __init__(self, directory: RunDirectory, config: dict[str, Any], accelerator: str) -> None:
        quiet_libraries()
        data = config["data"]
        name = available_accelerator(accelerator)
        self.device = torch.device({"gpu": "cuda"}.get(name, name))
        check_exported(directory.model)
        self.tokenizer = AutoTokenizer.from_pretrained(directory.model)
        try:
            net: Any = load_exported(HierarchicalClassifier, directory.model)
            data = within_positions(data, net)
            chunking = Chunking(
                data["chunk_size"], data["stride"], data["max_chunks"], data["choose"], data.get("sections", "whole")
            )
            self.chunker = Chunker(self.tokenizer, chunking)
        except ConfigError:
            raise
        except (OSError, ValueError) as error:
            raise ConfigError(f"run={directory.path}: its model/ cannot be loaded ({first_line(error)})") from error
        self.net: HierarchicalClassifier = net.to(self.device).eval()
        self.label_names = [net.config.id2label[number] for number in range(net.config.num_labels)]

    def chunk_text(self, text: str) -> tuple[Tensor, Tensor, NDArray[np.int64], list[int]]:
        """Ids and mask (chunks, length) as in training, characters of each token (chunks, length, 2), and sections."""
        chunked = self.chunker.chunk(text)
        return *pad_chunks(chunked.input_ids, chunked.spans, self.tokenizer.pad_token_id), chunked.sections


def pad_chunks(
    input_ids: Sequence[NDArray[np.int64]], spans: Sequence[NDArray[np.int64]], pad_token_id: int
) -> tuple[Tensor, Tensor, NDArray[np.int64]]:
    """Ids, attention mask (chunks, length) and character spans (chunks, length, 2) of chunks of unequal length."""

    def padded(rows: Sequence[NDArray[np.int64]], value: int) -> Tensor:
        return pad_sequence([torch.from_numpy(row).long() for row in rows], batch_first=True, padding_value=value)

    mask = padded([np.ones(len(row), dtype=np.int64) for row in input_ids], 0)
    return padded(input_ids, pad_token_id), mask, padded(spans, -1).numpy()


def absent_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that stands for a word that is absent: mask, else unknown, else padding.

    The mask token is what encoders met in pretraining where a word was hidden; padding would shift the positions of
    encoders that count them from the ids (RoBERTa).

    Raises:
        ConfigError: the tokenizer has none of the three.
    """
    for number in (tokenizer.mask_token_id, tokenizer.unk_token_id, tokenizer.pad_token_id):
        if number is not None:
            return int(number)
    raise ConfigError("the run's tokenizer has no mask, unknown or padding token that could stand for an absent word")


def documents_of_split(config: dict[str, Any], options: Mapping[str, Any]) -> tuple[list[Document], int]:
    """The chosen documents of a split with labels, and evidence where the data know it; and how many there are.

    Raises:
        ConfigError: the data cannot be read, or have no such split or document.
    """
    split = options["split"]
    datamodule = build_datamodule(config)
    assert isinstance(datamodule, RatingDataModule)  # check_run has looked at the experiment
    if split == "test" and not datamodule.has_test_split:
        raise ConfigError("split=test: the run's data have no test split; choose split=validation")
    labels = [datamodule.label_names[number] for number in datamodule.labels(split).tolist()]
    rows = choose_rows(datamodule.ids(split), labels, **_choice(options))
    found = (datamodule.document(split, row) for row in rows)
    return [
        Document(entry.id, entry.text, datamodule.label_names[entry.label], entry.evidence_spans) for entry in found
    ], len(labels)


def documents_of_file(
    data: Mapping[str, Any], options: Mapping[str, Any], label_names: Sequence[str]
) -> tuple[list[Document], int]:
    """The chosen documents of `input`, and how many there are.

    Raises:
        ConfigError: the file is wrong, or has no such document.
    """
    documents = read_documents(Path(options["input"]), columns=columns_of(data), label_names=label_names)
    names, labels = [entry.id for entry in documents], [entry.label for entry in documents]
    return [documents[row] for row in choose_rows(names, labels, **_choice(options))], len(documents)


def _choice(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: options[key] for key in ("ids", "max_documents", "seed")}


def explain_documents(model: RatingModel, documents: Sequence[Document], options: dict[str, Any]) -> list[Explanation]:
    """Explain documents one by one, and say how far it is."""
    encoder = CachedEncoder(model.net, options["micro_chunks"], absent_token(model.tokenizer), model.device)
    same = ("target", "methods", "steps", "tolerance", "max_steps", "max_sentences", "seed")
    settings = ExplainSettings(
        unit=options["faithfulness"]["unit"], fractions=all_fractions(options), **{key: options[key] for key in same}
    )
    with_curves = options["faithfulness"]["max_documents"]
    with_curves = len(documents) if with_curves is None else with_curves
    # every so many-th document, so that the classes stay in proportion in any order of the data
    measured = set(np.linspace(0, len(documents) - 1, min(with_curves, len(documents))).round().astype(int).tolist())
    checked = set(np.linspace(0, len(documents) - 1, round(options["checks"] * len(documents))).round().astype(int))
    started = time.perf_counter()
    found = []
    for place, document in enumerate(with_progress(documents, name="explaining", unit="document")):
        found.append(
            explain_document(
                document, chunk_text=model.chunk_text, encoder=encoder, label_names=model.label_names,
                settings=settings, measure_curves=place in measured,
                check_seed=options["seed"] + place if place in checked else None,
            )
        )  # fmt: skip
    elapsed_s = time.perf_counter() - started
    say(f"{encoder.num_encoded:,} chunks encoded, {human_time(elapsed_s)}, {elapsed_s / len(found):.3g} s a document")
    return found


def all_fractions(options: dict[str, Any]) -> list[float]:
    """The fractions of the words at which curves are measured, ends included."""
    return [0.0, *options["faithfulness"]["fractions"], 1.0]
