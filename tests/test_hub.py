"""The default paths of a new user, data and models by their names on the hub, against one on loopback."""

import json
import os
import subprocess
import sys

import datasets
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import DistilBertConfig, DistilBertForMaskedLM, PreTrainedTokenizerFast

from lightning_apps.experiments.arxiv.small_files import write_papers, write_tokenizer
from lightning_apps.experiments.gsm8k.small_files import write_model, write_sums
from tests.fakes.hub_server import LARGE_BYTES, hub  # noqa: F401 (a fixture)

pytestmark = pytest.mark.slow

WORDS = ["good", "bad", "film", "plot", "a", "the", "was", "very"]


def write_parquet(folder, config, split, rows, features=None):
    """As the hub keeps data sets since it runs no scripts: a folder for each configuration."""
    file = folder / config / f"{split}-00000-of-00001.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(rows, features=features).to_parquet(file)


def write_head(folder, configs):
    """README.md, whose front says which files are which split."""
    lines = ["---", "configs:"]
    for config, splits in configs.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for split in splits:
            lines += [f"  - split: {split}", f"    path: {config}/{split}-*"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))


def write_distilbert(folder):
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: number for number, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    config = DistilBertConfig(
        vocab_size=len(vocabulary), dim=32, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=64
    )
    torch.manual_seed(0)
    # in several files, as large models lie there
    DistilBertForMaskedLM(config).save_pretrained(folder, max_shard_size="20KB")


@pytest.fixture
def filled(hub, tmp_path):  # noqa: F811
    """The hub with what the defaults name, in small."""
    sums = tmp_path / "sums"
    write_sums(sums)
    folder = hub.repository("datasets", "openai/gsm8k")
    for split in ("train", "test"):
        rows = [json.loads(line) for line in (sums / f"{split}.jsonl").read_text().splitlines()]
        write_parquet(folder, "main", split, rows)
        write_parquet(folder, "socratic", split, rows[:2])
    write_head(folder, {"main": ("train", "test"), "socratic": ("train", "test")})
    write_model(hub.repository("models", "Qwen/Qwen2.5-0.5B-Instruct"))

    folder = hub.repository("datasets", "stanfordnlp/imdb")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    for split, count in (("train", 40), ("test", 10), ("unsupervised", 5)):
        rows = [
            {"text": f"the {WORDS[number % 2]} film {'very ' * (number % 7)}{split} {number}", "label": 1 - number % 2}
            for number in range(count)
        ]
        write_parquet(folder, "plain_text", split, rows, features)
    write_head(folder, {"plain_text": ("train", "test", "unsupervised")})
    write_distilbert(hub.repository("models", "distilbert/distilbert-base-uncased"))

    papers = tmp_path / "papers"
    write_papers(papers)
    folder = hub.repository("datasets", "ccdv/arxiv-classification")
    splits = {
        split: [json.loads(line) for line in (papers / f"{split}.jsonl").read_text().splitlines()]
        for split in ("train", "validation", "test")
    }
    names = sorted({row["label"] for row in splits["train"]})
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    for split, rows in splits.items():
        kept = [{"text": row["text"], "label": names.index(row["label"])} for row in rows]
        write_parquet(folder, "no_ref", split, kept, features)
    write_head(folder, {"no_ref": tuple(splits)})
    write_tokenizer(hub.repository("models", "EleutherAI/pythia-70m-deduped"))
    return hub


@pytest.fixture
def train(filled, tmp_path):
    def run(*words):
        env = {key: value for key, value in os.environ.items() if key not in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")}
        env |= {
            "HF_ENDPOINT": filled.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "",
        }  # fmt: skip
        more = [
            "hardware=cpu", "precision=fp32", "trainer.max_tokens=null", "trainer.max_epochs=null",
            "trainer.max_steps=2", f"run.output_root={tmp_path}/outputs", f"run.cache_root={tmp_path}/cache",
            "run.name=run",
        ]  # fmt: skip
        command = [sys.executable, "-m", "lightning_apps.train", *words, *more]
        return subprocess.run(command, capture_output=True, text=True, env=env)

    return run


GSM8K = ["experiment=gsm8k", "data.num_validation=6", "data.global_batch_size=8", "callbacks.extra.generation=null"]


def test_gsm8k_by_its_names_with_a_download_that_broke_off(filled, train, tmp_path):
    weights = filled.repository("models", "Qwen/Qwen2.5-0.5B-Instruct") / "model.safetensors"
    assert weights.stat().st_size >= LARGE_BYTES
    filled.broken = 1
    done = train(*GSM8K)
    assert done.returncode == 0, done.stderr
    assert filled.broken == 0
    data = json.loads((tmp_path / "outputs" / "gsm8k" / "run" / "data.json").read_text())
    assert data["samples"] == {"train": 54, "validation": 6, "test": 8}  # of main, not of socratic
    assert load_file(tmp_path / "outputs" / "gsm8k" / "run" / "model" / "model.safetensors").keys() == (
        load_file(weights).keys()
    )


def test_imdb_by_its_names_weights_in_several_files(filled, train, tmp_path):
    model = filled.repository("models", "distilbert/distilbert-base-uncased")
    assert len(list(model.glob("*.safetensors"))) > 1
    done = train("experiment=imdb", "data.global_batch_size=8", "data.max_length=16")
    assert done.returncode == 0, done.stderr
    data = json.loads((tmp_path / "outputs" / "imdb" / "run" / "data.json").read_text())
    assert data["label_names"] == ["neg", "pos"]
    assert (data["samples"]["train"] + data["samples"]["validation"], data["samples"]["test"]) == (40, 10)


def test_arxiv_by_its_names(filled, train, tmp_path):
    small = ["model.hidden_size=16", "model.num_hidden_layers=1", "model.num_attention_heads=2",
             "model.intermediate_size=16", "data.sequence_length=17", "data.windows_per_epoch=64"]  # fmt: skip
    done = train("experiment=arxiv", *small, "data.global_batch_size=8", "data.preparation_workers=1")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "outputs" / "arxiv" / "run" / "summary.json").read_text())["status"] == "completed"


@pytest.mark.parametrize("kind", ["gated", "missing"])
def test_what_may_not_or_cannot_be_had_is_one_line(filled, train, tmp_path, kind):
    name = "Qwen/Qwen2.5-0.5B-Instruct"
    if kind == "gated":
        filled.gated.add(name)
    else:
        filled.repository("models", name).rename(tmp_path / "elsewhere")
    done = train(*GSM8K)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert name in line
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "outputs").exists()
