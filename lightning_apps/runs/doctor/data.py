"""What doctor says of data: counts, leaks between splits, labels, lengths, what is cut, what is trained."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.contract import (
    IGNORED,
    SPLITS,
    AnswersPrompts,
    CutsTexts,
    DataReport,
    Example,
    ExperimentData,
    Indices,
    LabelledData,
    ProvesData,
    ReadsTexts,
    Split,
    digest_of,
)
from datamodules.labelled.labels import class_counts, odd_classes
from datamodules.sampling.step_batches import labels_are_tokens
from datamodules.text.near_duplicates import find_repeats, minhash
from lightning_apps.run_files.settings import flat_settings
from lightning_apps.runs.doctor.finding import OVERRIDE, Finding, judged, said

Config = Mapping[str, Any]

MOST_EXACT = 20_000
"""Samples of each split that are compared word for word."""
MOST_NEAR = {"train": 1_500, "validation": 500, "test": 500}
"""Samples of each split whose shingles are compared, evenly spread over it."""
MOST_CHARACTERS = 4_000
"""Of each of those texts."""
SHORTEST_NEAR = 20
"""Words below which two texts that differ in one of them are two texts."""
MOST_TOKENIZED = 200
"""Texts, or samples, whose length is measured."""
TOKENIZED = 500_000
"""Characters that are tokenized once more, to see how many texts are cut."""
MOST_LINEAR = 600
"""Training texts of the linear model that looks for a signal, and half as many to judge it on."""
MUCH_CUT, MUCH_DOUBLED, MUCH_LEAKED = 0.25, 0.05, 0.1
ROWS = 64  # samples in a batch that doctor asks for


def check_data(
    config: Config, data: ExperimentData, *, num_examples: int, positions: int | None = None
) -> tuple[list[Finding], DataReport]:
    """All checks of this file, and examples to look at.

    Args:
        config: of the run.
        data: set up.
        num_examples: samples to show.
        positions: longest sequence that the network takes; None where it is not bounded.
    """
    report = data.prove(num_examples) if isinstance(data, ProvesData) else DataReport([], [], [])
    tokens = token_rows(data, "train", MOST_TOKENIZED)
    texts = {split: sample_texts(data, split) for split in present(data)}
    found = [counts(data), same_batch(data), *notices(config, data)]
    found += [duplicates(texts["train"], reader(data)), *leaks(config, texts, reader(data))]
    found += [
        Finding(
            "green" if check.holds else "red", "data", check.claim, check.counted, "" if check.holds else check.remedy
        )
        for check in report.checks
    ]
    if isinstance(data, LabelledData):
        found += [balance(data, present(data)), *signal(data)]
    if not report.checks:
        found += [*lengths(config, data, tokens, positions), *masks(config, data)]
        report = DataReport(token_examples(data, num_examples), [], [])
    return found, report


def present(data: ExperimentData) -> list[Split]:
    """The splits that have samples; `test` by the data's own word."""
    return [split for split in SPLITS if split != "test" or data.has_test_split]


def spread(total: int, most: int) -> Indices:
    """At most so many of `total` numbers, evenly spread."""
    return np.unique(np.linspace(0, total - 1, min(total, most)).round().astype(np.int64))


# ---------------------------------------------------------------------- counts


def counts(data: ExperimentData) -> Finding:
    """Samples of each split, and what tells these data from others."""
    sizes = {split: data.num_samples(split) for split in present(data)}
    digest = digest_of(data.fingerprint())
    listed = ", ".join(f"{count:,} {split}" for split, count in sizes.items())
    empty = not sizes["train"] or not sizes["validation"]
    remedy = "data.max_train_samples=null"
    return judged("data", "there are samples to train and to evaluate on", f"{listed}; fingerprint {digest}", red=empty,
                  remedy=remedy)  # fmt: skip


def same_batch(data: ExperimentData) -> Finding:
    """Whether a batch depends on its numbers alone: runs could not be resumed or replayed otherwise."""
    indices = spread(data.num_train_samples, 4)
    one, other = (digest_of(data.training_batch(np.zeros_like(indices), indices)) for _ in range(2))
    return judged(
        "data",
        "a batch depends on its numbers alone",
        f"{len(indices)} training samples read twice: {'equal' if one == other else 'NOT equal'}",
        red=one != other,
        remedy="python -m lightning_apps.verify",
    )


def notices(config: Config, data: ExperimentData) -> list[Finding]:
    """What the data say of themselves; yellow where they name a setting that would change it."""
    classes = balance_sentences(data, present(data)) if isinstance(data, LabelledData) else []
    settings = {f"{key}={value}" for key, value in flat_settings(config).items()}
    found = []
    for notice in data.notices:
        if notice not in classes:  # balance says those
            wanted = [word for word in OVERRIDE.findall(notice) if word not in settings]
            claim = "the data have nothing to say of themselves"
            found.append(said("yellow", "data", claim, notice) if wanted else judged("data", claim, notice))
    return found


# ---------------------------------------------------------------------- the same sample twice


def sample_texts(data: ExperimentData, split: Split) -> list[str]:
    """Each sample of a split as text, at most MOST_EXACT: as the data give it, else its token ids."""
    if isinstance(data, LabelledData):
        whole = data.texts(split)
        return [whole[index].strip() for index in spread(len(whole), MOST_EXACT)]
    return [" ".join(map(str, row.tolist())) for row in token_rows(data, split, MOST_EXACT)]


def reader(data: ExperimentData) -> Callable[[str], str]:
    """What makes a text for people of one of sample_texts."""
    tokenizer = data.tokenizer
    if isinstance(data, LabelledData) or tokenizer is None:
        return str
    return lambda text: str(tokenizer.decode([int(word) for word in text.split()]))


def token_rows(data: ExperimentData, split: Split, most: int) -> list[NDArray[np.int64]]:
    """Token ids of some samples of a split, (length,) each, without padding; none where a batch holds no tokens."""
    numbers = data.evaluated(split)
    chosen = numbers[spread(len(numbers), most)]
    rows: list[NDArray[np.int64]] = []
    for start in range(0, len(chosen), ROWS):
        part = chosen[start : start + ROWS]
        batch = data.batch(split, part)
        if "input_ids" not in batch:
            return []
        if len(batch["input_ids"]) == len(part):
            rows += _unpadded(batch)
        else:  # packed samples, or chunks of documents
            rows += [np.concatenate(_unpadded(data.batch(split, one))) for one in np.split(part, len(part))]
    return rows


def _unpadded(batch: Mapping[str, Any]) -> list[NDArray[np.int64]]:
    ids = batch["input_ids"].numpy()
    mask = batch["attention_mask"].numpy().astype(bool) if "attention_mask" in batch else np.ones(ids.shape, dtype=bool)
    return [row[kept] for row, kept in zip(ids, mask, strict=True)]


def duplicates(train: Sequence[str], read: Callable[[str], str]) -> Finding:
    """Training samples that are there more than once, word for word."""
    firsts: dict[str, int] = {}
    doubled = [number for number, text in enumerate(train) if firsts.setdefault(text, number) != number]
    return judged(
        "data",
        "few training samples are there twice",
        f"{len(doubled):,} of {len(train):,} are word for word another one"
        + (_quoted(read(train[doubled[0]])) if doubled else ""),
        yellow=len(doubled) > MUCH_DOUBLED * len(train),
        remedy=f"leave out training samples {_numbers(doubled)}",
    )


def _quoted(text: str) -> str:
    return f", such as {' '.join(text.split())[:60]!r}"


def _numbers(rows: Sequence[int]) -> str:
    return ", ".join(map(str, rows[:20])) + (f" and {len(rows) - 20:,} more" if rows[20:] else "")


def leaks(config: Config, texts: Mapping[Split, Sequence[str]], read: Callable[[str], str]) -> list[Finding]:
    """Samples of validation or test that are, exactly or nearly, in train: scores would flatter."""
    train = set(texts["train"])
    some = _long(texts["train"], MOST_NEAR["train"], read)
    signatures = minhash(some)
    found = []
    for split in [name for name in texts if name != "train"]:
        rows = [row for row, text in enumerate(texts[split]) if text in train]
        drop = "data.leaks=drop" if "leaks" in config["data"] else ""
        found.append(
            judged(
                "data",
                f"no {split} sample is in train",
                f"{len(rows):,} of {len(texts[split]):,} are, word for word"
                + (_quoted(read(texts[split][rows[0]])) if rows else ""),
                red=len(rows) > MUCH_LEAKED * len(texts[split]),
                yellow=bool(rows),
                remedy=drop or f"leave out {split} samples {_numbers(rows)}",
            )
        )
        asked = _long([text for text in texts[split] if text not in train], MOST_NEAR[split], read)
        near = find_repeats(minhash(asked), signatures, asked.__getitem__, some.__getitem__)
        worst = max(near, key=lambda repeat: repeat.similarity, default=None)
        example = "" if worst is None else f"{_quoted(asked[worst.row])} ({worst.similarity:.0%} alike)"
        found.append(
            judged(
                "data",
                f"no {split} sample is nearly in train",
                f"{len(near):,} of {len(asked):,} share most of their five-word shingles with one of {len(some):,}"
                + example,
                yellow=bool(near),
                remedy=drop or f"leave out {split} samples like {asked[worst.row][:60] if worst else ''!r}",
            )
        )
    return found


def _long(texts: Sequence[str], most: int, read: Callable[[str], str]) -> list[str]:
    chosen = [read(texts[index])[:MOST_CHARACTERS] for index in spread(len(texts), most)]
    return [text for text in chosen if text.count(" ") >= SHORTEST_NEAR - 1]


# ---------------------------------------------------------------------- labels


def balance_sentences(data: LabelledData, splits: Sequence[Split]) -> list[str]:
    """What is odd about the classes of each split."""
    return odd_classes({split: data.labels(split) for split in splits}, data.label_names)


def balance(data: LabelledData, splits: Sequence[Split]) -> Finding:
    """Whether there are several classes, in every split, and none is rare."""
    train = class_counts(data.labels("train"), len(data.label_names))
    shares = sorted(zip(train.tolist(), data.label_names, strict=True), reverse=True)[:8]
    listed = ", ".join(f"{name} {count / max(train.sum(), 1):.0%}" for count, name in shares)
    odd = balance_sentences(data, splits)
    return judged(
        "data",
        "every class can be learned and measured",
        "; ".join([f"{len(train)} classes in train: {listed}", *odd]),
        red=int((train > 0).sum()) < 2 and not data.multi_label,
        yellow=bool(odd),
        remedy="callbacks.checkpoints.monitor=val/f1_macro callbacks.checkpoints.mode=max",
    )


def signal(data: LabelledData) -> list[Finding]:
    """Whether labels have to do with texts: a linear model over words beats guessing on the validation split.

    Nothing where samples bear several labels.
    """
    labels = {split: data.labels(split) for split in ("train", "validation")}
    if labels["train"].ndim > 1 or len(np.unique(labels["train"])) < 2 or not len(labels["validation"]):
        return []
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import recall_score

    rows: dict[Split, Indices] = {
        "train": spread(len(labels["train"]), MOST_LINEAR),
        "validation": spread(len(labels["validation"]), MOST_LINEAR // 2),
    }
    chosen = {}
    for split, picked in rows.items():
        texts = data.texts(split)
        chosen[split] = [texts[index][:MOST_CHARACTERS] for index in picked]
    words = TfidfVectorizer(sublinear_tf=True)
    model = LogisticRegression(C=10.0, class_weight="balanced", max_iter=200)
    model.fit(words.fit_transform(chosen["train"]), labels["train"][rows["train"]])
    truth = labels["validation"][rows["validation"]]
    whole = float(np.mean([len(text) < MOST_CHARACTERS for text in chosen["validation"]]))
    recalls = recall_score(truth, model.predict(words.transform(chosen["validation"])), average=None,
                           labels=np.unique(truth), zero_division=0)  # fmt: skip
    sizes = np.bincount(truth)[np.unique(truth)]
    chance = 1 / len(np.unique(labels["train"]))
    error = float(np.sqrt(np.sum(chance * (1 - chance) / sizes)) / len(sizes))
    score, judges = float(np.mean(recalls)), whole > 0.5
    counted = (
        f"a linear model of {len(rows['train']):,} training texts has a mean recall of {score:.0%} on {len(truth):,} "
        f"validation texts, guessing {chance:.0%} (standard error {error:.0%})"
    )
    return [
        judged(
            "data",
            "labels have to do with texts",
            counted + ("" if judges else f"; it reads {MOST_CHARACTERS:,} characters, most texts go on"),
            yellow=judges and score < chance + 2 * error,
            remedy="python -m lightning_apps.train trainer.overfit_batches=1 trainer.max_steps=50 "
            "trainer.evaluate_every=0.5",
        )
    ]


# ---------------------------------------------------------------------- lengths and masks


def lengths(
    config: Config, data: ExperimentData, rows: Sequence[NDArray[np.int64]], positions: int | None
) -> list[Finding]:
    """Tokens of samples, and how many are cut; nothing where samples are no tokens."""
    if not rows:
        return []
    sizes = np.array([len(row) for row in rows])
    median = float(np.median(sizes))
    counted = f"{len(sizes):,} training samples hold {sizes.min():,} to {sizes.max():,} tokens, median {median:,.0f}"
    claim = "few samples are cut"
    if isinstance(data, LabelledData) and isinstance(data, CutsTexts) and isinstance(data, ReadsTexts):
        texts = data.texts("train")
        size = sum(map(len, texts)) / max(len(texts), 1)
        some = [texts[index] for index in spread(len(texts), max(1, min(MOST_TOKENIZED, int(TOKENIZED / size))))]
        assert data.tokenizer is not None
        cut = data.num_cut(some, data.text_batch(some, data.tokenizer), data.tokenizer) / len(some)
        counted += f"; {cut:.0%} of {len(some):,} are longer than {data.length_limit}"
    else:  # lengths that differ, and pile up at the longest
        cut = float((sizes == sizes.max()).mean()) if len(np.unique(sizes)) > 8 else 0.0
        counted += f"; {cut:.0%} of them are as long as the longest" if cut else ""
    key = "data.max_chunks" if "max_chunks" in config["data"] else data.length_key
    limit = config["data"].get(key.removeprefix("data."))
    longer = 2 * (limit if isinstance(limit, int) else int(sizes.max()))
    if positions is not None and key == data.length_key and longer > positions:
        remedy = "data.truncation=middle" if "truncation" in config["data"] else f"{key}={positions}"
    else:
        remedy = f"{key}={longer}"
    return [judged("data", claim, counted, yellow=cut > MUCH_CUT, remedy=remedy)]


def masks(config: Config, data: ExperimentData) -> list[Finding]:
    """Which tokens are trained: some of every sample, and none of a question; nothing where labels are no tokens."""
    chosen = spread(data.num_train_samples, MOST_TOKENIZED)
    found = [data.training_batch(np.zeros(1, dtype=np.int64), one) for one in np.split(chosen, len(chosen))]
    if not all(labels_are_tokens(batch) for batch in found):
        return []
    trained = [(batch["labels"] != IGNORED).flatten().numpy() for batch in found]
    numbers = np.array([mask.sum() for mask in trained])
    sizes = np.array([len(mask) for mask in trained])
    without = int((numbers == 0).sum())
    findings = [
        judged(
            "data",
            "every sample has tokens to learn",
            f"{without:,} of {len(chosen):,} have none; {numbers.min():,} to {numbers.max():,} each, "
            f"{numbers.sum() / sizes.sum():.0%} of all tokens are trained",
            red=bool(without),
            remedy=f"{data.length_key}={2 * int(sizes.max())}",
        )
    ]
    if isinstance(data, AnswersPrompts) and numbers.sum() < (sizes - 1).sum():  # else all is trained, as meant
        asked = [len(prompt) for prompt in data.prompts("train")][: data.num_train_samples]
        wrong = sum(
            bool(mask[: asked[index]].any())
            for index, mask in zip(chosen.tolist(), trained, strict=True)
            if index < len(asked)
        )
        findings.append(
            judged(
                "data",
                "no question is trained",
                f"{wrong:,} of {len(chosen):,} samples have labels inside their prompt",
                red=bool(wrong),
                remedy="data.loss_mask=answer_only"
                if "loss_mask" in config["data"]
                else "python -m lightning_apps.verify",
            )
        )
    return findings


def token_examples(data: ExperimentData, count: int) -> list[Example]:
    """Some training samples as text, in stretches that are trained or not; none where that cannot be shown."""
    examples = []
    for index in spread(data.num_train_samples, count):
        batch = data.training_batch(np.zeros(1, dtype=np.int64), np.array([index]))
        if data.tokenizer is None or not labels_are_tokens(batch):
            return []
        ids, labels = batch["input_ids"].flatten().numpy(), batch["labels"].flatten().numpy()
        borders = np.flatnonzero(np.diff(labels != IGNORED)) + 1
        pieces = zip(np.split(ids, borders), np.split(labels, borders), strict=True)
        stretches = [(str(data.tokenizer.decode(part)), bool(marks[0] != IGNORED)) for part, marks in pieces]
        examples.append(Example(f"training sample {index:,}, {len(ids)} tokens", stretches))
    return examples
