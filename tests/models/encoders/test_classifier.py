import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig

from models.adapters import merged_copy
from models.encoders.classifier import adapt, classification_loss, pretrained_classifier, random_bert, set_dropouts

pytestmark = pytest.mark.numeric

SIZES = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16,
    "max_position_embeddings": 20, "hidden_dropout": 0.0, "attention_dropout": 0.0, "classifier_dropout": 0.0,
}  # fmt: skip
DATA = {"vocab_size": 30, "pad_token_id": 0, "label_names": ["bad", "good"], "multi_label": False}
LORA = {"rank": 0, "alpha": 8.0, "dropout": 0.0, "target_modules": "all-linear", "dora": False}
OPTIONS = {
    "revision": None, "hidden_dropout": None, "attention_dropout": None, "classifier_dropout": None,
    "replace_head": False, "lora": LORA,
}  # fmt: skip


@pytest.fixture
def saved(tmp_path):
    def save(**data):
        torch.manual_seed(0)
        random_bert(**{**DATA, **data}, **SIZES).save_pretrained(tmp_path)
        return str(tmp_path)

    return save


def load(folder, data=DATA, **options):
    return pretrained_classifier(**data, pretrained=folder, **{**OPTIONS, **options})


def logits(net):
    ids = torch.arange(5, 13).view(2, 4)
    return net.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def test_a_trained_head_is_kept_where_it_fits(saved):
    folder = saved()
    net = load(folder)
    assert net.config.id2label == {0: "bad", 1: "good"}
    assert net.config.problem_type == "single_label_classification"
    plain = AutoModelForSequenceClassification.from_pretrained(folder)
    torch.testing.assert_close(logits(net), logits(plain))
    assert next(net.parameters()).dtype == torch.float32


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["bad", "good", "so-so"], ["a head for 2 classes (bad, good)", "the data have 3", "model.replace_head=true"]),
        (
            ["good", "bad"],
            ["for bad, good, the data number their classes as good, bad", "label_names=[bad,good]"],
        ),
        (["x", "y"], ["a head for 2 classes (bad, good)", "(x, y)", "model.replace_head=true"]),
    ],
)
def test_head_against_classes(saved, names, expected):
    folder = saved()
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the parts are looked at)
        load(folder, {**DATA, "label_names": names})
    for part in expected:
        assert part in str(caught.value)
    assert logits(load(folder, {**DATA, "label_names": names}, replace_head=True)).shape == (2, len(names))


def test_tokenizer_against_embedding_and_missing_weights(saved, tmp_path):
    with pytest.raises(ValueError, match=r"data\.tokenizer has 31 tokens, the embedding .* 30 rows"):
        load(saved(), {**DATA, "vocab_size": 31})
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"model\.pretrained=.*empty cannot be loaded .*model=minilm"):
        load(str(tmp_path / "empty"))


def test_pickled_weights_are_not_read(saved, tmp_path):
    net = load(saved())
    (tmp_path / "model.safetensors").unlink()
    torch.save(net.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot be loaded"):
        load(str(tmp_path))


def test_dropouts_by_their_names(saved):
    net = load(saved(), hidden_dropout=0.2, attention_dropout=0.3, classifier_dropout=0.4)
    layer = net.bert.encoder.layer[0]
    assert (layer.output.dropout.p, layer.attention.self.dropout.p, net.dropout.p) == (0.2, 0.3, 0.4)
    with pytest.raises(ValueError, match=r"model\.hidden_dropout=1: must be at least 0 and below 1"):
        set_dropouts(BertConfig(), hidden_dropout=1)

    class Other:
        pass

    with pytest.raises(ValueError, match="Other has no such dropout"):
        set_dropouts(Other(), classifier_dropout=0.1)


def test_adapters_learn_with_the_head_alone_and_merge(saved):
    folder = saved()
    net = load(folder, lora={**LORA, "rank": 2})
    trained = [name for name, entry in net.named_parameters() if entry.requires_grad]
    assert {name for name in trained if "lora_" not in name} == {"classifier.weight", "classifier.bias"}
    assert not any("pooler" in name for name in trained)
    assert sum("lora_A" in name for name in trained) == 2 * 6  # query, key, value, two outputs, intermediate
    torch.testing.assert_close(logits(net), logits(load(folder)))  # the update is zero at first
    with torch.no_grad():
        for name, entry in net.named_parameters():
            if "lora_B" in name:
                entry.normal_(std=0.5)
    merged = merged_copy(net)
    assert not any("lora" in name for name, _ in merged.named_parameters())
    torch.testing.assert_close(logits(merged), logits(net))
    assert not torch.allclose(logits(merged), logits(load(folder)))
    with pytest.raises(ValueError, match=r"no layer 'querry'; choose from dense, key, query, value"):
        adapt(load(folder), {**LORA, "rank": 2, "target_modules": ["querry"]})


def test_losses_by_hand():
    scores = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    expected = torch.log1p(torch.exp(torch.tensor(-2.0))) + torch.log1p(torch.exp(torch.tensor(1.0)))
    assert float(classification_loss(scores, torch.tensor([0, 0]))) == pytest.approx(float(expected))
    targets = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    single = -torch.log(torch.sigmoid(torch.tensor([2.0, -0.0, -0.0, -1.0])))
    assert float(classification_loss(scores, targets)) == pytest.approx(float(single.sum() / 2))
    smoothed = classification_loss(scores[:1], torch.tensor([0]), label_smoothing=0.2)
    plain, other = (float(classification_loss(scores[:1], torch.tensor([k]))) for k in (0, 1))
    assert float(smoothed) == pytest.approx(0.9 * plain + 0.1 * other)
    both = classification_loss(scores[:1], targets[:1], label_smoothing=0.2)
    flipped = classification_loss(scores[:1], 1 - targets[:1])
    assert float(both) == pytest.approx(
        0.9 * float(classification_loss(scores[:1], targets[:1])) + 0.1 * float(flipped)
    )
