"""ONNX files of classifiers; of language models see tests/lightning_apps/test_export.py."""

from types import SimpleNamespace

import onnx_ir
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from lightning_apps.errors import ConfigError
from lightning_apps.run_files import onnx_file
from lightning_apps.run_files.onnx_file import check_onnx, write_onnx
from models.encoders.hierarchical import HierarchicalClassifier


@pytest.fixture
def net():
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=50,
            max_position_embeddings=12, num_labels=3,
        )
    )  # fmt: skip


def test_a_classifier_for_any_number_of_texts_of_any_length(net, tmp_path):
    import onnxruntime

    assert write_onnx(net, tmp_path).startswith("model.onnx: logits of other shapes within ")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for rows, length in ((1, 12), (4, 1)):
        ids = torch.arange(rows * length).view(rows, length) % 50
        found = session.run(["logits"], {"input_ids": ids.numpy(), "attention_mask": torch.ones_like(ids).numpy()})[0]
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(found), net(ids).logits, rtol=1e-4, atol=1e-5)


def test_a_large_model_keeps_its_weights_beside_the_file(net, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "LARGEST_FILE", 0)
    write_onnx(net, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]


def test_a_file_that_computes_something_else_is_refused(net, tmp_path, monkeypatch):
    save = torch.onnx.ONNXProgram.save

    def other(program, *args, **kwargs):
        weight = program.model.graph.initializers["net.classifier.weight"]
        weight.const_value = onnx_ir.tensor(torch.ones(3, 16).numpy())
        save(program, *args, **kwargs)

    monkeypatch.setattr(torch.onnx.ONNXProgram, "save", other)
    with pytest.raises(ConfigError, match=r"model\.onnx differs from the model by .* take onnx=false"):
        write_onnx(net, tmp_path)


def test_a_full_disk_is_one_line(net, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.onnx.ONNXProgram, "save", full)
    with pytest.raises(ConfigError, match=r"model\.onnx cannot be made \(.*No space left on device\); take onnx=false"):
        write_onnx(net, tmp_path)


def test_what_cannot_be_written_is_refused_with_the_remedy(net, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="reads chunks of documents, and an ONNX file takes token ids alone"):
        check_onnx(SimpleNamespace(forward=HierarchicalClassifier.forward))

    def forward(**kwargs):
        raise ValueError("no padding token")

    monkeypatch.setattr(net, "forward", forward)
    with pytest.raises(ConfigError, match=r"BertForSequenceClassification \(no padding token\); take onnx=false"):
        write_onnx(net, tmp_path)
    monkeypatch.setattr(onnx_file, "PACKAGES", ("onnx", "no_such_package"))
    with pytest.raises(ConfigError, match=r"onnx=true needs no_such_package: pip install 'lightning-apps\[onnx\]'"):
        check_onnx()
