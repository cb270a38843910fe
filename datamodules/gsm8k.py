"""Chats to learn from and questions to answer: GSM8K, or any jsonl file of chats."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge
from numpy.typing import NDArray
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from typing_extensions import Unpack

from datamodules.chat.files import Chat, chat_rows, hub_rows, split_files, to_chat
from datamodules.chat.own_samples import OwnSamples
from datamodules.chat.rendering import Message, encode_prompt
from datamodules.chat.store import ChatStore, write_chats
from datamodules.contract import IGNORED, Batch, CollateStep, DataReport, ExperimentData, Indices, Loading, Split
from datamodules.gsm8k_proofs import prove_chats
from datamodules.sampling.packing import Document, PackingCollator, packed_batch, padded_batch
from datamodules.storage.cache import file_sha256, prepared_folder, read_manifest
from datamodules.text.hub import TokenizerSource, find_tokenizer
from datamodules.text.hub_access import load_tokenizer
from datamodules.text.split_names import SPLIT_FILES

DATASET = ("openai/gsm8k", "main")
PREPARATION_VERSION = 2
"""Raise it whenever prepare_data writes something else for the same settings."""


class Gsm8kDataModule(ExperimentData):
    """Chats, packed or grouped by length, and prompts for graded generation.

    Args:
        path: folder with train.jsonl and, where there are such, validation.jsonl and test.jsonl; rows hold `question`
            and `answer`, or `messages`. None takes openai/gsm8k from Hugging Face.
        tokenizer: folder, .gguf file or name on Hugging Face.
        tokenizer_package: installed package that carries a .gguf file, used where the hub and its cache have nothing.
        chat_template: Jinja file in place of the tokenizer's own template; None keeps that.
        system_prompt: put before chats without a system turn; None leaves that to the template.
        calculator_annotations: whether GSM8K's `<<48/2=24>>` stay in the answers.
        num_validation: chats cut from train, shuffled by `split_seed`, before anything else; where there is a
            validation.jsonl, that is the validation, and nothing is cut.
        max_train_samples: keep only so many of the rest; None keeps all.
        max_test_samples: keep only the first so many of the test file; None keeps all.
        split_seed: of the cut; the same chats are held out whatever the run's seed.
        max_length: tokens of the longest sample, and of a packed row.
        overlong: `truncate` cuts longer training samples on the right (their stop token is then not trained), `drop`
            leaves them out. A sample whose answer would be cut off whole is left out in any case.
        batching: `packed` puts samples end to end, `length_grouped` beside others of like length.
        source: what is trained on: `given` takes the chats as they are, `own_samples` right solutions that the run's
            model draws to their questions (rejection sampling), see OwnSamples.
        own_samples: how they are drawn.
        **loading: see Loading; with packing `device_batch_size` counts rows of up to `max_length` tokens.
    """

    tokenizer: PreTrainedTokenizerBase
    test_size_key = "data.max_test_samples"

    def __init__(
        self,
        *,
        path: str | None,
        tokenizer: str,
        tokenizer_package: str | None,
        chat_template: str | None,
        system_prompt: str | None,
        calculator_annotations: bool,
        num_validation: Annotated[int, Ge(1)],
        max_train_samples: Annotated[int, Ge(1)] | None,
        max_test_samples: Annotated[int, Ge(1)] | None,
        split_seed: int,
        max_length: Annotated[int, Ge(1)],
        overlong: Literal["truncate", "drop"],
        batching: Literal["packed", "length_grouped"],
        source: Literal["given", "own_samples"] = "given",  # an older run has neither
        own_samples: OwnSamples | None = None,
        **loading: Unpack[Loading],
    ) -> None:
        super().__init__(**loading)
        self.path = None if path is None else Path(path).expanduser()
        self.tokenizer_name = tokenizer
        self.tokenizer_package = tokenizer_package
        self.chat_template = None if chat_template is None else Path(chat_template).expanduser()
        self.system_prompt = system_prompt
        self.calculator_annotations = calculator_annotations
        self.num_validation = num_validation
        self.max_train_samples = max_train_samples
        self.max_test_samples = max_test_samples
        self.split_seed = split_seed
        self.max_length = max_length
        self.overlong = overlong
        self.batching = batching
        self.source = source
        self.own_samples = own_samples
        self.folder: Path | None = None

    # ------------------------------------------------------------------ preparation

    def prepare_data(self) -> None:
        """Write tokens, spans, chats and the tokenizer into the cache, once.

        Raises:
            ValueError: data or tokenizer cannot be had, or a row cannot be used; with its file and line.
        """
        self._prepared()

    def _prepared(self) -> Path:
        files = None if self.path is None else split_files(self.path)
        if self.chat_template is not None and not self.chat_template.is_file():
            raise ValueError(f"data.chat_template={self.chat_template}: there is no such file")
        source = find_tokenizer(self.tokenizer_name, self.tokenizer_package)
        settings: dict[str, Any] = {
            "version": PREPARATION_VERSION,
            "source": list(DATASET) if files is None else {name: file_sha256(file) for name, file in files.items()},
            "tokenizer": source.name,
            "gguf": source.gguf,
            "tokenizer_revision": source.revision,
            "chat_template": None if self.chat_template is None else file_sha256(self.chat_template),
            "system_prompt": self.system_prompt,
            "calculator_annotations": self.calculator_annotations,
        }
        self.gguf_path = source.gguf_path
        return prepared_folder(self.cache_root, "gsm8k", settings, lambda folder: self._write(folder, files, source))

    def _write(self, folder: Path, files: dict[str, Path] | None, source: TokenizerSource) -> dict[str, Any]:
        rows = {name: chat_rows(file) for name, file in files.items()} if files is not None else hub_rows(*DATASET)
        chats = {
            name: [
                to_chat(*row, system_prompt=self.system_prompt, calculator_annotations=self.calculator_annotations)
                for row in rows[name]
            ]
            for name in SPLIT_FILES
            if name in rows
        }
        tokenizer = load_tokenizer(
            source.name, gguf=source.gguf, remedy="name a folder with tokenizer.json, or a .gguf file"
        )
        if self.chat_template is not None:
            tokenizer.chat_template = self.chat_template.read_text(encoding="utf-8")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        facts = {f"num_{name}": write_chats(folder, name, tokenizer, entries) for name, entries in chats.items()}
        tokenizer.padding_side = "left"  # who loads the exported model generates with it
        tokenizer.save_pretrained(folder / "tokenizer")
        return facts

    # ------------------------------------------------------------------ set-up

    def setup(self, stage: str | None = None) -> None:
        """Open the cache and cut the splits.

        Raises:
            ValueError: the splits leave nothing to train on.
        """
        if self.folder is not None:
            return
        if self.source == "own_samples" and self.own_samples is None:
            raise ValueError("data.source=own_samples needs data.own_samples, how they are drawn: leave that as it is")
        self.folder = self._prepared()
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder / "tokenizer")
        files = {
            name: ChatStore(self.folder, name) for name in SPLIT_FILES if (self.folder / f"{name}.jsonl").is_file()
        }
        num_rows = len(files["train"])
        num_cut = 0 if "validation" in files else self.num_validation
        if num_cut >= num_rows:
            raise ValueError(f"data.num_validation={self.num_validation}, but train holds {num_rows} chats: lower it")
        order = list(range(num_rows))
        random.Random(self.split_seed).shuffle(order)  # noqa: S311 (a split, not a secret)
        shuffled = np.array(order, dtype=np.int64)
        self._given = shuffled[num_cut:][: self.max_train_samples]
        self.files: dict[Split, ChatStore] = {
            "train": files["train"],
            "validation": files.get("validation", files["train"]),
        }
        self.rows: dict[Split, NDArray[np.int64]] = {
            "train": self._given,
            "validation": np.arange(len(files["validation"])) if "validation" in files else shuffled[:num_cut],
        }
        if "test" in files:
            self.files["test"] = files["test"]
            self.rows["test"] = np.arange(len(files["test"]))[: self.max_test_samples]
        self.facts_of_samples: dict[str, Any] = {}
        self.left_out = ""
        self._train_on(files["train"], self._given)

    def keep_given(self, holds: Callable[[Chat], bool], *, else_said: str) -> int:
        """Train on those given chats alone for which something holds; to be called before samples are added.

        Args:
            holds: of a chat.
            else_said: what is described of the others.

        Returns:
            How many are left; where none is, nothing has changed.
        """
        store = self.files["train"]
        kept = np.array([row for row in self._given.tolist() if holds(store.chat(row))], dtype=np.int64)
        if 0 < len(kept) < len(self._given):
            self.left_out = f"{len(self._given) - len(kept):,} training samples {else_said}"
            self._given = kept
            self._train_on(store, kept)
        return len(kept)

    def _train_on(self, store: ChatStore, chosen: NDArray[np.int64]) -> None:
        """Let chats (n,) of a store be the training samples, but for those that would be cut before any answer.

        Raises:
            ValueError: nothing is left.
        """
        lengths, first_answers = store.lengths[chosen], store.first_answers[chosen]
        self.num_overlong = int((lengths > self.max_length).sum())
        # a sample cut before its second answer token teaches nothing
        hopeless = (first_answers >= self.max_length) if self.overlong == "truncate" else (lengths > self.max_length)
        self.num_dropped = int(hopeless.sum())
        if hopeless.all():
            raise ValueError(
                f"data.max_length={self.max_length}: no training sample fits (the shortest has {lengths.min()} tokens "
                f"and an answer from {first_answers.min() + 1} on); raise it, or choose data.overlong=truncate"
            )
        self.files["train"], self.rows["train"] = store, chosen[~hopeless]
        self.shared_prefix_length = self._shared_prefix() if self.batching == "packed" else 0
        if self.batching == "length_grouped":
            self.lengths = store.lengths[self.rows["train"]]

    @property
    def awaits_samples(self) -> bool:
        """With `data.source=own_samples`."""
        return self.source == "own_samples"

    def write_with_samples(self, folder: Path, samples: Sequence[Chat]) -> None:
        """Write what add_samples opens: the chats of the train file, then those that a model wrote."""
        store = self.files["train"]
        write_chats(folder, "train", self.tokenizer, [*map(store.chat, range(len(store))), *samples])

    def add_samples(self, folder: Path) -> None:
        """Train on what write_with_samples wrote, once.

        Args:
            folder: a prepared one; its facts are described.

        Raises:
            ValueError: it has nothing to train on.
        """
        assert self.own_samples is not None
        store, num_given = ChatStore(folder, "train"), len(self.files["train"])
        self.facts_of_samples = read_manifest(folder)["facts"]
        own = np.arange(num_given, len(store), dtype=np.int64)
        if not len(own) and not self.own_samples["with_given"]:
            raise ValueError(
                f"data.source=own_samples: none of the {self.facts_of_samples['num_drawn']:,} drawn solutions is right;"
                " start from a better model, draw more (data.own_samples.num_samples), or keep the given answers "
                "(data.own_samples.with_given=true)"
            )
        self._train_on(store, np.concatenate([self._given, own]) if self.own_samples["with_given"] else own)

    def _shared_prefix(self) -> int:
        """Leading tokens that all samples of all splits share, before any answer: the system turn and a header."""
        common: NDArray[np.int64] | None = None
        for split, rows in self.rows.items():
            file = self.files[split]
            # the token before an answer stays with its sample: it predicts the answer's first one
            limits = np.minimum(file.first_answers[rows], self.max_length) - 1
            for row, limit in zip(rows.tolist(), limits.tolist(), strict=True):
                ids = file.ids(row)[:limit]
                common = ids if common is None else common[: _common_length(common, ids)]
        return 0 if common is None else len(common)

    @property
    def net_arguments(self) -> dict[str, Any]:
        """What the network must know of the data."""
        return {
            "vocab_size": len(self.tokenizer),
            "pad_token_id": self.tokenizer.pad_token_id,
            "eos_token_id": self.stop_token_ids[0],
            "gguf": None if self.gguf_path is None else str(self.gguf_path),
        }

    @property
    def stop_token_ids(self) -> list[int]:
        """Tokens that end an answer: the one that is trained, and the tokenizer's own."""
        file, row = self.files["train"], int(self.rows["train"][0])
        own = self.tokenizer.eos_token_id
        return list(dict.fromkeys([int(file.ids(row)[-1]), *([own] if isinstance(own, int) else [])]))

    def num_samples(self, split: Split) -> int:
        """Chats of a split; 0 of test where there is no test file."""
        return len(self.rows.get(split, ()))

    @property
    def longest_sequence(self) -> int:
        """Tokens of the longest training sample."""
        return int(min(self.files["train"].lengths[self.rows["train"]].max(), self.max_length))

    def longest_train_samples(self, count: int) -> NDArray[np.int64]:
        """The longest training samples."""
        return np.argsort(-self.files["train"].lengths[self.rows["train"]], kind="stable")[:count]

    @property
    def tokens_per_sample(self) -> float:
        """Mean number of tokens that one training sample feeds to the model."""
        return float(np.minimum(self.files["train"].lengths[self.rows["train"]], self.max_length).mean())

    def describe(self) -> dict[str, str]:
        """What the data are: sizes, lengths, what was cut or left out."""
        sizes = ", ".join(f"{len(rows):,} {split}" for split, rows in self.rows.items())
        lengths = self.files["train"].lengths[self.rows["train"]]
        cut = self.num_overlong - self.num_dropped if self.overlong == "truncate" else 0
        lines = {
            "data": f"{sizes} chats; {self.tokens_per_sample:.0f} tokens a sample, longest {lengths.max():,}",
            "overlong": f"{self.num_overlong:,} training samples over data.max_length={self.max_length:,}: {cut:,} "
            f"truncated, {self.num_dropped:,} dropped",
        }
        if self.left_out:
            lines["left out"] = self.left_out
        if facts := self.facts_of_samples:
            lines["own samples"] = (
                f"{facts['num_kept']:,} kept of {facts['num_right']:,} right ones among {facts['num_drawn']:,} drawn; "
                f"{facts['num_solved']:,} of {facts['num_asked']:,} training questions solved"
            )
        return lines

    def prove(self, num_examples: int) -> DataReport:
        """What doctor shows: examples, and what can be proved of every sample."""
        return prove_chats(self, num_examples)

    # ------------------------------------------------------------------ samples

    def chat(self, split: Split, index: int) -> Chat:
        """Messages and gold answer of one sample."""
        return self.files[split].chat(int(self.rows[split][index]))

    def document(self, split: Split, index: int) -> Document:
        """Tokens and labels of one sample, cut at `max_length`."""
        file, row = self.files[split], int(self.rows[split][index])
        ids = file.ids(row)[: self.max_length]
        labels = np.full_like(ids, IGNORED)
        for start, stop in file.answers(row):
            labels[start:stop] = ids[start:stop]
        labels[0] = IGNORED  # nothing comes before it; where samples are packed, only another sample would
        return Document(ids, labels)

    def documents(self, split: Split, indices: NDArray[np.int64]) -> list[Document]:
        """Several samples."""
        return [self.document(split, index) for index in indices.tolist()]

    def prompts(self, split: Split) -> list[torch.Tensor]:
        """Tokens before the last answer of every sample of a split, never cut, (length,) int64 each."""
        return [self._prompt(split, index) for index in range(len(self.rows[split]))]

    def _prompt(self, split: Split, index: int) -> torch.Tensor:
        file, row = self.files[split], int(self.rows[split][index])
        return torch.from_numpy(file.ids(row)[: file.answers(row)[-1][0]])

    def few_shot_prompts(self, split: Split, num_shots: int, indices: Sequence[int]) -> list[torch.Tensor]:
        """Prompts of some samples behind the first `num_shots` training samples, as earlier turns of the same chat.

        Raises:
            ValueError: there are fewer training samples.
        """
        if num_shots == 0:
            return [self._prompt(split, index) for index in indices]
        if num_shots > self.num_train_samples:
            raise ValueError(f"{num_shots} worked examples are asked for, train holds {self.num_train_samples}")
        shots: list[Message] = [
            message
            for index in range(num_shots)
            for message in self.chat("train", index).messages
            if message["role"] != "system"
        ]
        prompts = []
        for index in indices:
            messages = self.chat(split, index).messages[:-1]
            system = [message for message in messages[:1] if message["role"] == "system"]
            ids = encode_prompt(self.tokenizer, [*system, *shots, *messages[len(system) :]])
            prompts.append(torch.tensor(ids, dtype=torch.int64))
        return prompts

    # ------------------------------------------------------------------ batches

    def _batch(self, documents: list[Document]) -> Batch:
        if self.batching == "packed":
            return packed_batch(documents, shared_prefix_length=self.shared_prefix_length)
        return padded_batch(documents, pad_token_id=self.net_arguments["pad_token_id"])

    def batch(self, split: Split, indices: Indices) -> Batch:
        """Samples of a split as they are."""
        return self._batch(self.documents(split, indices))

    def packed_and_single(self, count: int) -> tuple[Batch, list[Batch]]:
        """Some training samples packed into one row, and each of them as a batch of its own."""
        documents = self.documents("train", np.arange(min(count, self.num_train_samples)))
        alone = [padded_batch([entry], pad_token_id=self.net_arguments["pad_token_id"]) for entry in documents]
        return packed_batch(documents, shared_prefix_length=self._shared_prefix()), alone

    def largest_batch(self, rows: int) -> Batch:
        """The most that a micro-batch of so many rows can hold: what must fit into memory."""
        lengths = self.files["train"].lengths[self.rows["train"]]
        longest = self.document("train", int(lengths.argmax()))
        repeats = self.max_length // len(longest.ids) if self.batching == "packed" else 1
        return self._batch([longest] * (rows * repeats))

    def memory_probe(self) -> tuple[Batch, Batch, int]:
        """Batches of one and of two of the longest samples."""
        longest = np.resize(self.longest_train_samples(2), 2)
        return self.batch("train", longest[:1]), self.batch("train", longest), 1

    def step_collator(self, share: int) -> CollateStep:
        """Makes the step batches of a device that gets up to `share` samples of each."""
        if self.batching == "length_grouped":
            return super().step_collator(share)
        return PackingCollator(
            self._training_documents,
            max_length=self.max_length,
            rows_per_micro_batch=self.device_batch_size,
            shared_prefix_length=self.shared_prefix_length,
            weigh=self.weigh,
        )

    def _training_documents(self, indices: NDArray[np.int64]) -> list[Document]:
        return self.documents("train", indices)


def _common_length(one: NDArray[np.int64], other: NDArray[np.int64]) -> int:
    shared = min(len(one), len(other))
    differs = np.flatnonzero(one[:shared] != other[:shared])
    return int(differs[0]) if len(differs) else shared
