"""The command explain on a small run, and every mistake that a user can make."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import BertConfig, RobertaConfig

from datamodules.text.chunking import Chunker, Chunking
from datamodules.text.tokenized_texts import word_tokenizer
from lightning_apps import explain as explain_command
from lightning_apps.errors import ConfigError
from lightning_apps.explanations.attribution import CachedEncoder, Chunks, class_target
from lightning_apps.explanations.documents import DEFAULT_COLUMNS, choose_rows, read_documents
from lightning_apps.explanations.integrated_gradients import integrated_gradients
from lightning_apps.explanations.run import pad_chunks
from lightning_apps.explanations.text_units import read_words
from lightning_apps.runs.build import build_datamodule
from lightning_apps.runs.experiment_run import run_experiment
from models.encoders.hierarchical import HierarchicalClassifier, HierarchicalConfig

NAMES = ["General", "Teen", "Mature"]
TEXT = "the knight rode home . the dragon slept . nobody was hurt . " * 6


def small_net(vocab_size, kind=BertConfig, **settings):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    encoder = kind(
        vocab_size=vocab_size, pad_token_id=0, max_position_embeddings=24, initializer_range=0.5, dtype=torch.float32,
        **sizes,
    )  # fmt: skip
    config = HierarchicalConfig(
        encoder=encoder, attention_size=8, micro_chunks=3, id2label=dict(enumerate(NAMES)),
        label2id={name: number for number, name in enumerate(NAMES)}, dtype=torch.float32, **settings,
    )  # fmt: skip
    return HierarchicalClassifier(config)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run directory as training leaves it, with random weights."""
    path = tmp_path_factory.mktemp("outputs") / "rating" / "small"
    tokenizer = word_tokenizer([TEXT])
    small_net(len(tokenizer)).save_pretrained(path / "model")
    tokenizer.save_pretrained(path / "model")
    data = {
        "_target_": "datamodules.rating.RatingDataModule",
        "chunk_size": 18,
        "stride": 8,
        "max_chunks": 4,
        "choose": "spread",
    }
    data |= {"text_column": "text", "label_column": "label", "ordered": True}
    model = {"_target_": "models.encoders.build_hierarchical.random_hierarchical"}
    (path / "config.yaml").write_text(yaml.safe_dump({"experiment": "rating", "data": data, "model": model}))
    return path


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["explain", *arguments, "accelerator=cpu"])
    explain_command.main()


def mistake(monkeypatch, capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        command(monkeypatch, *arguments)
    line = capsys.readouterr().err
    assert (stopped.value.code, line.count("\n")) == (2, 1), line
    return line


@pytest.mark.parametrize("kind", [BertConfig, RobertaConfig])
@pytest.mark.parametrize("sections", ["whole", "blank_lines"])
@pytest.mark.parametrize(
    "settings", [{}, {"chunk_pooling": "mean", "document_pooling": "multi_head"}, {"document_pooling": "sum"}]
)
def test_integrated_gradients_of_real_architectures(kind, settings, sections):
    """What embeddings give and what ids give are the same function, padding and positions included."""
    tokenizer = word_tokenizer([TEXT])
    net = small_net(len(tokenizer), kind, **settings)
    text = TEXT[:140].replace("hurt . ", "hurt .\n\n", 1)
    chunked = Chunker(tokenizer, Chunking(18, 8, 4, "first", sections)).chunk(text)
    assert chunked.sections == ([0, 1, 2] if sections == "whole" else [0, 1, 1])
    ids, mask, spans = pad_chunks(chunked.input_ids, chunked.spans, tokenizer.pad_token_id)
    assert len({len(row) for row in chunked.input_ids}) > 1  # so that some are padded
    words, word = read_words(text, spans, max_sentences=400)
    encoder = CachedEncoder(net, 2, tokenizer.unk_token_id)
    chunks = Chunks(ids, mask, word, len(words.spans), chunked.sections)
    target = class_target(1, "Teen", 3)
    errors = [
        integrated_gradients(chunks, encoder, target, steps=steps, tolerance=0, max_steps=1)[1] for steps in (3, 41)
    ]
    assert abs(errors[1].value - errors[1].baseline) > 1e-3
    assert errors[1].error < 1e-4
    assert errors[1].error < errors[0].error


def test_the_whole_command(run, tmp_path, monkeypatch, capsys):
    text = "<script>let a</script> " + TEXT
    start = text.index("dragon")
    rows = [
        {"id": "long", "text": text, "label": "Teen", "evidence_spans": [[start, start + 13]]},
        {"text": "", "label": "General"},
        {"id": 7, "text": "dragon"},
        {"id": "unread", "text": TEXT * 9, "label": "Teen", "evidence_spans": [[400, 402]]},
    ]
    (tmp_path / "some.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    command(monkeypatch, f"run={run}", f"input={tmp_path / 'some.jsonl'}", "steps=25", "tolerance=1", "target=higher",
            "faithfulness.fractions=[0.2]", "checks=0.25")  # fmt: skip
    said = capsys.readouterr().out
    folder = run / "explanations" / "some.jsonl"
    found = [json.loads(line) for line in (folder / "explanations.jsonl").read_text().splitlines()]
    assert [row["id"] for row in found] == ["long", "line 2", "7", "unread"]
    for row in found:
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-6)
        assert row["prediction"] == max(row["probabilities"], key=row["probabilities"].get)
        assert sum(chunk["weight"] for chunk in row["chunks"]) == pytest.approx(1, abs=1e-5)
        assert row["target"] == "higher"
        assert row["completeness"]["error"] < 0.02
    long, empty, word, unread = found
    assert long["chunks"][0]["span"][0] == 0
    for entry in long["top_words"]["integrated_gradients"]:
        assert text[slice(*entry["span"])] == entry["word"]
    scores = [entry["score"] for entry in long["top_words"]["integrated_gradients"]]
    assert scores == sorted(scores, reverse=True)
    assert set(long["evidence"]) == {"chunk_attention", "integrated_gradients", "occlusion", "random"}
    assert len(long["faithfulness"]["occlusion"]["deletion"]) == 3
    area = long["faithfulness"]["occlusion"]
    assert area["deletion_area"] == pytest.approx(
        0.1 * (area["deletion"][0] + area["deletion"][1]) + 0.4 * (area["deletion"][1] + area["deletion"][2])
    )
    assert (empty["num_words"], empty["top_words"]["occlusion"], empty["faithfulness"]) == (0, [], {})
    assert (word["num_words"], len(word["chunks"])) == (1, 1)
    assert unread["num_words_read"] < unread["num_words"] == 9 * 78
    assert unread["evidence"] is None
    assert [row["sanity"] is None for row in found] == [False, True, True, True]
    assert area["comprehensiveness"][3] == pytest.approx(area["deletion"][0] - area["deletion"][1])  # a fifth
    assert area["sufficiency"][3] == pytest.approx(area["deletion"][0] - area["insertion"][1])
    results = json.loads((folder / "faithfulness.json").read_text())
    assert results["sanity"]["num_documents"] == 1
    assert results["sanity"]["stages"] == ["head", "pooling", "layer 2", "layer 1", "embeddings"]
    for method, entry in results["sanity"]["methods"].items():
        assert entry["signed"][-1]["value"] == pytest.approx(
            np.mean([row["sanity"]["signed"][method][-1] for row in found if row["sanity"]])
        )
        assert entry["shifted"] is False
    assert results["agreement"]["pairs"][0]["methods"] == ["chunk_attention", "integrated_gradients"]
    assert "fall of it without the best words" in said
    assert "Shifted embeddings that compute the same change no score" in said
    evidence = results["evidence"]
    assert (evidence["num_documents"], evidence["num_without_evidence"], evidence["num_evidence_not_read"]) == (1, 2, 1)
    assert evidence["scores"]["pointing_word"]["random"]["value"] > 0
    assert results["num_documents"] == 3
    assert results["completeness_error"]["largest"] == max(row["completeness"]["error"] for row in found)
    assert "completeness error of integrated gradients (25 " in said
    assert "explanations.html" in said
    page = (folder / "explanations.html").read_text()
    assert page.count("<script") == 1
    assert "&lt;script&gt;let a&lt;/script&gt;" in page
    assert (folder / "faithfulness.png").is_file()


def test_any_other_file_is_one_document_and_methods_can_be_left_out(run, tmp_path, monkeypatch):
    (tmp_path / "story.txt").write_text("the knight\n\nrode home .\n")
    arguments = ["methods=[occlusion]", "faithfulness.max_documents=0", "target=Mature"]
    command(monkeypatch, f"run={run}", f"input={tmp_path / 'story.txt'}", *arguments)
    (row,) = [json.loads(line) for line in (run / "explanations/story.txt/explanations.jsonl").read_text().splitlines()]
    assert (row["id"], row["num_words"], row["target"], row["completeness"]) == ("story.txt", 5, "Mature", None)
    assert row["faithfulness"] == {}


SYNTHETIC = [
    "experiment=rating", "model=hierarchical_tiny", "data.dataset=synthetic", "data.chunk_size=32", "data.stride=16",
    "data.device_batch_size=8", "data.global_batch_size=8", "hardware=cpu", "callbacks.extra.picture=null",
    "callbacks.extra.evaluation.baselines=false", "optimizer.lr=0.003", "optimizer.groups=[]", "model.hidden_dropout=0",
    "model.head_dropout=0", "trainer.max_epochs=null", "trainer.max_steps=150", "trainer.evaluate_every=50",
]  # fmt: skip


def test_documents_of_a_split(composed, tmp_path, monkeypatch, capsys):
    """A split of the run's own data: ids, labels and evidence as the data have them; no training is needed."""
    config = composed(*SYNTHETIC, name="a")
    data = build_datamodule(config)
    small_net(len(data.tokenizer)).save_pretrained(tmp_path / "a" / "model")
    data.tokenizer.save_pretrained(tmp_path / "a" / "model")
    (tmp_path / "a" / "config.yaml").write_text(
        yaml.safe_dump({**config, "data": {**config["data"], "chunk_size": 20}})
    )
    command(monkeypatch, f"run={tmp_path / 'a'}", "split=validation", "max_documents=6", "methods=[occlusion]",
            "faithfulness.max_documents=2")  # fmt: skip
    folder = tmp_path / "a" / "explanations" / "validation"
    rows = [json.loads(line) for line in (folder / "explanations.jsonl").read_text().splitlines()]
    assert [row["label"] for row in rows].count("General") == 3
    known = {
        data.document("validation", index).id: data.document("validation", index)
        for index in range(len(data.ids("validation")))
    }
    for row in rows:
        document = known[row["id"]]
        assert row["label"] == NAMES[document.label]
        assert row["evidence_spans"] == [list(span) for span in document.evidence_spans]
        for entry in row["top_words"]["occlusion"]:
            assert document.text[slice(*entry["span"])] == entry["word"]
    assert [bool(row["faithfulness"]) for row in rows] == [True, False, False, False, False, True]
    arguments = (f"run={tmp_path / 'a'}", "split=validation")
    assert "ids=nobody: no such document" in mistake(monkeypatch, capsys, *arguments, "ids=[nobody]")
    command(monkeypatch, *arguments, "ids=[validation-05]", "methods=[chunk_attention]")
    assert len((folder / "explanations.jsonl").read_text().splitlines()) == 1


@pytest.mark.slow
def test_a_trained_run_is_explained_by_the_evidence(composed, monkeypatch):
    config = composed(*SYNTHETIC, name="a")
    assert run_experiment(config)["metrics"]["test/f1_macro"] > 0.9
    run = Path(config["run"]["output_root"]) / "rating" / "a"
    command(monkeypatch, f"run={run}", "max_documents=null")
    results = json.loads((run / "explanations/test/faithfulness.json").read_text())
    for method in ("integrated_gradients", "occlusion"):
        assert results["evidence"]["scores"]["pointing_sentence"][method]["value"] > 0.9
        assert results["curves"]["deletion"]["area"][method]["minus_random"]["high"] < 0
        assert results["curves"]["insertion"]["area"][method]["minus_random"]["low"] > 0
    assert results["completeness_error"]["median"] < 0.05
    assert results["by_prediction"]["General"]["num_documents"] > 0


@pytest.mark.slow
def test_ten_megabytes(run, tmp_path, monkeypatch):
    (tmp_path / "big.txt").write_text("the knight rode home . " * 435_000 + "x" * 100_000)
    arguments = ["faithfulness.fractions=[0.5]", "steps=3", "max_steps=3", "page.words=20"]
    command(monkeypatch, f"run={run}", f"input={tmp_path / 'big.txt'}", *arguments)
    (row,) = [json.loads(line) for line in (run / "explanations/big.txt/explanations.jsonl").read_text().splitlines()]
    assert row["num_words"] == 5 * 435_000 + 1
    assert len(row["chunks"]) == 4
    assert row["num_words_read"] <= 4 * 16
    assert (run / "explanations/big.txt/explanations.html").stat().st_size < 400_000


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["split=tset"], "split='tset' (did you mean test?): allowed are validation, test, train"),
        (["target=Matur", "input={file}"], "target='Matur' (did you mean Mature?): allowed are predicted, higher, Gen"),
        (["methods=[attention]"], "methods=['attention'] (did you mean chunk_attention?): allowed are chunk_attention"),
        (["methods=[]"], "methods=[]: name each at most once, and one at least"),
        (["steps=1"], "steps=1: must be an odd number from 3"),
        (["steps=8"], "steps=8: must be an odd number from 3"),
        (["max_documents=0"], "max_documents=0: must be at least 1, or null"),
        (["faithfulness.unit=letter"], "faithfulness.unit='letter': allowed are sentence, word"),
        (["faithfulness.fractions=[0.5,0.2]"], "faithfulness.fractions=[0.5, 0.2]: must rise"),
        (["input=nowhere.txt"], "input=nowhere.txt: there is no such file"),
        (["input={file}", "ids=[b]"], "ids=b: no such document; there are 1, from a to a"),
        (["checks=2"], "checks=2.0: must lie between 0 and 1"),
        (["stpes=3"], "stpes does not exist (did you mean steps?)"),
    ],
)
def test_wrong_settings(run, tmp_path, monkeypatch, capsys, arguments, expected):
    file = tmp_path / "a.jsonl"
    file.write_text('{"id": "a", "text": "x"}')
    line = mistake(monkeypatch, capsys, f"run={run}", *(argument.format(file=file) for argument in arguments))
    assert expected in line


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"text": "a"}\n\n{"text": "\xff"}\n', "input={path}: a.jsonl, line 3: byte 11 (0xff) is not UTF-8"),
        (b'{"text": "a"}\nnothing\n', "line 2: not JSON"),
        (b'{"txt": "a"}\n', "line 1: there is no field 'text' (did you mean txt?)"),
        (b'{"text": 3}\n', "line 1: text is not a text"),
        (
            b'{"text": "a", "label": "Tean"}\n',
            "the run knows no label 'Tean' (did you mean Teen?); allowed are",
        ),
        (
            b'{"text": "a", "evidence_spans": [[0, 2]]}\n',
            "line 1: the evidence span [0, 2] is not [start, end) within the 1",
        ),
        (b'{"text": "a", "evidence_spans": [[true, 1]]}\n', "the evidence span [True, 1] is not"),
        (b"\n", "it holds no document"),
    ],
)
def test_wrong_input(tmp_path, content, expected):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        read_documents(path, columns=DEFAULT_COLUMNS, label_names=NAMES)
    assert expected.format(path=path) in str(error.value)
    assert "\n" not in str(error.value)


def test_labels_are_those_that_training_takes(tmp_path):
    """Names, and where these are no numbers their positions; where they are, numbers are names however written."""
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": "a", "label": label}) + "\n" for label in (0, "1", 2.0, "Teen", None)))
    found = read_documents(path, columns=DEFAULT_COLUMNS, label_names=NAMES)
    assert [entry.label for entry in found] == ["General", "Teen", "Mature", "Teen", None]
    path.write_text('{"text": "a", "label": 1}\n{"text": "a", "label": "2.0"}\n')
    found = read_documents(path, columns=DEFAULT_COLUMNS, label_names=["1", "2", "3"])
    assert [entry.label for entry in found] == ["1", "2"]
    path.write_text('{"text": "a", "label": 0}\n')
    with pytest.raises(ConfigError, match="line 1: the run knows no label 0"):
        read_documents(path, columns=DEFAULT_COLUMNS, label_names=["1", "2", "3"])


def test_a_text_file_that_is_not_utf8(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "a.txt").write_bytes(b"one\ntwo\nthr\xe9e\n")
    line = mistake(monkeypatch, capsys, f"run={run}", f"input={tmp_path / 'a.txt'}")
    assert "a.txt, line 3: byte 4 (0xe9) is not UTF-8; save the file as UTF-8" in line


def test_runs_that_cannot_be_explained(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert "run=away: no run is there" in mistake(monkeypatch, capsys, "run=away")
    assert "run is missing" in mistake(monkeypatch, capsys)
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.yaml").write_text(yaml.safe_dump({"experiment": "imdb", "data": {}, "model": {}}))
    line = mistake(monkeypatch, capsys, f"run={other}")
    assert "experiment imdb does not rate documents in chunks; explain needs a run of experiment=rating" in line
    (other / "config.yaml").write_text((run / "config.yaml").read_text())
    line = mistake(monkeypatch, capsys, f"run={other}")
    assert "has no model/ yet: it was not finished; continue it with run.resume=auto" in line


def test_the_choice_keeps_classes_in_proportion():
    labels = ["General"] * 66 + ["Teen"] * 24 + ["Mature"] * 10
    names = [f"n{number}" for number in range(100)]
    chosen = choose_rows(names, labels, ids=None, max_documents=20, seed=3)
    assert [sum(labels[row] == name for row in chosen) for name in NAMES] == [13, 5, 2]
    assert chosen == sorted(set(chosen))
    assert chosen == choose_rows(names, labels, ids=None, max_documents=20, seed=3)
    assert chosen != choose_rows(names, labels, ids=None, max_documents=20, seed=4)
    assert choose_rows(names, labels, ids=None, max_documents=None, seed=3) == list(range(100))
    assert choose_rows(names, labels, ids=["n7", "n3"], max_documents=1, seed=0) == [7, 3]


def test_padding():
    ids, mask, spans = pad_chunks([np.array([1, 2, 3]), np.array([1, 3])], [np.zeros((3, 2)), np.ones((2, 2))], 9)
    assert ids.tolist() == [[1, 2, 3], [1, 3, 9]]
    assert mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert spans[1].tolist() == [[1, 1], [1, 1], [-1, -1]]
