"""What can be proved of chat data before anything is trained on them."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from datamodules.chat.rendering import encode_prompt, render_chat
from datamodules.protocols import Check, DataReport, Example, Split
from datamodules.sampling.packing import first_fit_decreasing
from datamodules.sampling.step_batches import IGNORED

if TYPE_CHECKING:  # that module calls this one
    from datamodules.gsm8k import Gsm8kDataModule

BAR = 40  # characters of the longest bar
MOST_PROMPTS = 2_000
"""Prompts, evenly spread, that are rendered and tokenized once more: a millisecond each."""
TEMPLATE = "data.chat_template=<a Jinja file>"
"""Remedy where the tokenizer's own chat template does not go with training."""


def prove_chats(data: "Gsm8kDataModule", num_examples: int) -> DataReport:
    """Look at every sample of every split."""
    lengths = np.minimum(data.files["train"].lengths[data.rows["train"]], data.max_length)
    return DataReport(
        examples=[_example(data, index) for index in range(min(num_examples, data.num_train_samples))],
        checks=[_targets(data), _stops(data), _bos(data), _prompts(data), _overlong(data), _packing(data, lengths)],
        pictures=[_histogram(lengths, data.max_length)],
    )


def _example(data: "Gsm8kDataModule", index: int) -> Example:
    document = data.document("train", index)
    borders = np.flatnonzero(np.diff(document.labels != IGNORED)) + 1
    pieces = zip(np.split(document.ids, borders), np.split(document.labels, borders), strict=True)
    stretches = [(str(data.tokenizer.decode(ids)), bool(labels[0] != IGNORED)) for ids, labels in pieces]
    return Example(f"{data.chat('train', index).origin}, {len(document.ids)} tokens", stretches)


def _samples(data: "Gsm8kDataModule") -> list[tuple[Split, int]]:
    return [(split, index) for split in data.rows for index in range(len(data.rows[split]))]


def _targets(data: "Gsm8kDataModule") -> Check:
    counts = np.array([(data.document(*sample).labels != IGNORED).sum() for sample in _samples(data)])
    tokens = sum(len(data.document(*sample).ids) for sample in _samples(data))
    return Check(
        "every sample has tokens to learn",
        bool((counts > 0).all()),
        f"{(counts == 0).sum():,} of {len(counts):,} samples without; {counts.min():,} to {counts.max():,} each, "
        f"{counts.sum() / tokens:.1%} of all tokens are trained",
        f"data.max_length={2 * data.max_length}",
    )


def _stops(data: "Gsm8kDataModule") -> Check:
    stops, whole, missing = set(data.stop_token_ids), 0, []
    for split, index in _samples(data):
        document = data.document(split, index)
        if len(document.ids) == data.files[split].lengths[data.rows[split][index]]:  # not truncated
            whole += 1
            if document.labels[-1] not in stops:
                missing.append(data.chat(split, index).origin)
    names = " ".join(repr(data.tokenizer.decode([token])) for token in data.stop_token_ids)
    return Check(
        "every whole sample trains its stop token, and generation stops at it",
        not missing,
        f"{whole - len(missing):,} of {whole:,} end in one of {names}" + (f"; not {missing[0]}" if missing else ""),
        TEMPLATE,
    )


def _bos(data: "Gsm8kDataModule") -> Check:
    bos, text = data.tokenizer.bos_token_id, data.tokenizer.bos_token
    if bos is None:
        return Check("a single BOS", True, "the tokenizer has none")
    wrong, numbers = [], set()
    for split, index in _samples(data):
        ids = data.document(split, index).ids
        # some tokenizers name the mark of each turn their BOS: as many as the template wrote, none of them doubled
        chat = data.chat(split, index)
        written = render_chat(data.tokenizer, chat.messages).text.count(text)
        found = int((ids == bos).sum())
        doubled = bool(((ids[1:] == bos) & (ids[:-1] == bos)).any())
        truncated = len(ids) < data.files[split].lengths[data.rows[split][index]]
        if doubled or (found != written and not truncated):
            wrong.append(chat.origin)
        numbers.add(found)
    return Check(
        "a single BOS",
        not wrong,
        f"{text!r} stands {min(numbers)} to {max(numbers)} times in a sample, as the template writes it, never twice "
        "in a row" + (f"; but not in {wrong[0]}" if wrong else ""),
        TEMPLATE,
    )


def _prompts(data: "Gsm8kDataModule") -> Check:
    wrong, between = [], set()
    samples = _samples(data)
    chosen = samples[:: -(-len(samples) // MOST_PROMPTS)]
    for split, index in chosen:
        messages = data.chat(split, index).messages[:-1]
        prompt = data.few_shot_prompts(split, 0, [index])[0].tolist()
        asked = data.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        plain = data.tokenizer(asked, add_special_tokens=False)["input_ids"]
        if prompt[: len(plain)] != plain or encode_prompt(data.tokenizer, messages) != prompt:
            wrong.append(data.chat(split, index).origin)
        else:
            between.add(data.tokenizer.decode(prompt[len(plain) :]))
    extra = sorted(between - {""})
    return Check(
        "training prompts = inference prompts",
        not wrong,
        f"{len(wrong):,} of {len(chosen):,} differ from apply_chat_template(add_generation_prompt=True)"
        + (f", the first is {wrong[0]}" if wrong else "")
        + (f"; {extra[0]!r}, which the template writes before answers, is part of both" if extra else ""),
        TEMPLATE,
    )


def _overlong(data: "Gsm8kDataModule") -> Check:
    words = data.describe()["overlong"]
    longest = int(data.files["train"].lengths.max())
    remedy = f"data.max_length={longest}"
    return Check("no training sample is truncated", data.num_overlong == 0 or data.overlong == "drop", words, remedy)


def _packing(data: "Gsm8kDataModule", lengths: NDArray[np.int64]) -> Check:
    size = data.global_batch_size
    batches = [lengths[start : start + size] for start in range(0, len(lengths), size)]
    padded = sum(int(batch.max()) * len(batch) for batch in batches)
    rows = sum(len(first_fit_decreasing(batch.tolist(), data.max_length)) for batch in batches)
    return Check(
        "no token is lost to padding" if data.batching == "packed" else "samples of like length share a batch",
        True,
        f"padding whole steps of {size} would feed {padded / lengths.sum() - 1:.0%} more; packed into rows of "
        f"{data.max_length:,}: {lengths.sum() / (rows * data.max_length):.0%} full",
    )


def _histogram(lengths: NDArray[np.int64], max_length: int) -> str:
    counts, edges = np.histogram(lengths, bins=min(12, max(1, len(np.unique(lengths)))))
    lines = [f"tokens of {len(lengths):,} training samples (mean {lengths.mean():.0f}, limit {max_length:,})"]
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        bar = "#" * (-(-int(count) * BAR // int(counts.max())))
        lines.append(f"{low:7.0f} to {high:5.0f}  {bar:{BAR}}  {count:,}")
    return "\n".join(lines)
