"""A method that ignores the model is exposed, methods that use it are not; and the model is untouched by the checks."""

import numpy as np
import pytest
import torch
from transformers import ModernBertConfig

from lightning_apps.explanations.attribution import Attribution, CachedEncoder, Chunks, class_target
from lightning_apps.explanations.explanation import ExplainSettings, attribute
from lightning_apps.explanations.faithfulness import mean_with_interval
from lightning_apps.explanations.sanity import (
    Sanity,
    cascade,
    check_sanity,
    rank_correlation,
    redraw,
    restored,
    shift_embeddings,
    summarise_sanity,
)
from lightning_apps.explanations.text_units import ReadWords
from models.encoders.hierarchical import HierarchicalClassifier, HierarchicalConfig
from tests.tiny.tiny_hierarchical import batch, make

pytestmark = pytest.mark.numeric

METHODS = ["chunk_attention", "integrated_gradients", "occlusion"]
SETTINGS = ExplainSettings(
    target="predicted", methods=METHODS, steps=5, tolerance=0.0, max_steps=5, max_sentences=400, unit="sentence",
    fractions=[0.0, 1.0], seed=0,
)  # fmt: skip


def strong_net():
    """Weights as large as after training, so that the chunks of a document differ."""
    net = make()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.6, generator=torch.Generator().manual_seed(parameter.numel()))
    return net


def document(net, seed):
    """Scores of one document by every method, again and again, and by two methods that are wrong in a known way."""
    given = batch([[12] * 5], seed=seed)
    word = np.arange(60).reshape(5, 12)
    chunks = Chunks(given["input_ids"], given["attention_mask"], word, 60, range(5))
    words = ReadWords(np.stack([np.arange(60), np.arange(60) + 1], axis=1), np.arange(60) // 12, 60)
    encoder = CachedEncoder(net, 3, 3)
    target = class_target(1, "Teen", 3)

    def explain():
        encoder.forget()
        _, weights = encoder.read(chunks)
        found = attribute(chunks, encoder, target, weights, words, SETTINGS)[0]
        length = given["input_ids"].double().numpy()  # looks at the text alone
        found["of_text"] = Attribution(length.ravel(), length.sum(axis=1))
        # gradient times input is of the point that happens to be zero
        embedded = net.get_input_embeddings()(chunks.input_ids).detach().requires_grad_()
        vectors = net.encode(attention_mask=chunks.attention_mask, inputs_embeds=embedded)
        logits, _ = net.classify(vectors, [5])
        (slope,) = torch.autograd.grad((logits[0] * target.logit_weights).sum(), embedded)
        product = (slope * embedded).sum(dim=-1).detach().double().numpy()
        found["gradient_times_input"] = Attribution(product.ravel(), product.sum(axis=1))
        return found

    return explain


def test_who_ignores_the_model_is_exposed():
    net = strong_net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    checked = []
    for seed in range(3):
        explain = document(net, seed)
        checked.append(check_sanity(net, explain, explain(), seed=seed))
    found = summarise_sanity(checked)
    assert found["num_documents"] == 3
    assert found["stages"] == ["head", "pooling", "layer 3", "layer 2", "layer 1", "embeddings"]
    survive = {method: entry["survives"] for method, entry in found["methods"].items()}
    assert survive == {**dict.fromkeys(METHODS), "of_text": "scores", "gradient_times_input": None}
    assert [entry["value"] for entry in found["methods"]["of_text"]["signed"]] == pytest.approx([1.0] * 6)
    for method in METHODS:
        assert abs(found["methods"][method]["signed"][-1]["value"]) < 0.4
    # the weights of the pooling are not of the head
    assert found["methods"]["chunk_attention"]["signed"][0]["value"] == pytest.approx(1.0)
    shifted = {method: entry["shifted"] for method, entry in found["methods"].items()}
    assert shifted == {**dict.fromkeys([*METHODS, "of_text"], False), "gradient_times_input": True}
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_cascade_holds_every_parameter_once():
    for net in (make(), make(num_hidden_layers=1), make(num_hidden_layers=5, document_pooling="multi_head")):
        parameters = [parameter for _, part in cascade(net) for parameter in part]
        assert len(parameters) == len(set(parameters))
        assert set(parameters) == set(net.parameters())
    names = [name for name, _ in cascade(make(num_hidden_layers=5))]
    assert names == ["head", "pooling", "layer 5", "layers 3-4", "layers 1-2", "embeddings"]


def test_drawn_parameters_keep_their_scale():
    weight = torch.nn.Parameter(torch.randn(400, 50) * 3 + 1)
    alone = torch.nn.Parameter(torch.ones(1))
    before = weight.detach().clone()
    redraw([weight, alone], torch.Generator().manual_seed(1))
    assert float(weight.detach().mean()) == pytest.approx(float(before.mean()), abs=0.1)
    assert float(weight.detach().std()) == pytest.approx(float(before.std()), rel=0.02)
    assert abs(np.corrcoef(weight.detach().ravel(), before.ravel())[0, 1]) < 0.03
    assert alone.tolist() == [1.0]


def test_parameters_come_back_after_a_failure():
    net = torch.nn.Linear(3, 2)
    before = net.weight.detach().clone()

    def fail():
        with restored(net):
            redraw(list(net.parameters()), torch.Generator().manual_seed(0))
            assert not torch.equal(net.weight, before)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert torch.equal(net.weight, before)


def test_the_shift_changes_no_prediction():
    net = strong_net().eval()
    with torch.no_grad():
        before = net(**batch()).logits
        with restored(net):
            assert shift_embeddings(net, torch.Generator().manual_seed(0))
            moved = net.get_input_embeddings().weight.clone()
            torch.testing.assert_close(net(**batch()).logits, before, rtol=0, atol=2e-4)
    assert float((moved - net.get_input_embeddings().weight).std()) > 0.3


def test_rotary_positions_cannot_take_a_shift():
    encoder = ModernBertConfig(vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                               intermediate_size=16, pad_token_id=0)  # fmt: skip
    net = HierarchicalClassifier(HierarchicalConfig(encoder=encoder, attention_size=8, num_labels=2))
    before = net.get_input_embeddings().weight.detach().clone()
    assert not shift_embeddings(net, torch.Generator().manual_seed(0))
    assert torch.equal(net.get_input_embeddings().weight, before)


def test_rank_correlation_by_hand():
    assert rank_correlation(np.arange(5.0), np.arange(5.0) ** 3) == pytest.approx(1)
    assert rank_correlation(np.arange(5.0), -np.arange(5.0)) == pytest.approx(-1)
    # ranks 1, 2.5, 2.5, 4, 5 against 1 ... 5
    assert rank_correlation(np.array([0, 1, 1, 2, 3.0]), np.arange(5.0)) == pytest.approx(9.5 / np.sqrt(10 * 9.5))
    assert np.isnan(
        rank_correlation(np.array([0, 1, 1, 2, 2.0]), np.arange(5.0))
    )  # three scores have no ranks to speak of
    assert np.isnan(rank_correlation(np.zeros(0), np.zeros(0)))


def sanity(signed, absolute, shift):
    return Sanity(["head", "embeddings"], {"a": [0.9, signed]}, {"a": [0.9, absolute]}, shift)


def test_verdicts_are_of_the_last_stage_and_its_interval():
    def verdict(*values):
        found = summarise_sanity([sanity(*value) for value in values])["methods"]["a"]
        return found["survives"], found["shifted"]

    assert verdict((0.6, 0.1, {"a": 0.002})) == ("scores", False)
    assert verdict((0.4, 0.6, {"a": 0.02})) == ("magnitudes", True)
    assert verdict((0.4, 0.4, None)) == (None, False)
    assert verdict((0.9, 0.1, None), (0.2, 0.1, None)) == (None, False)  # the mean is high, its interval reaches down
    assert verdict((np.nan, np.nan, None), (0.8, 0.1, None)) == ("scores", False)
    assert verdict((np.nan, np.nan, None)) == (None, False)
    found = summarise_sanity([sanity(0.2, 0.3, None), sanity(0.4, 0.5, None)])["methods"]["a"]
    assert found["signed"][1] == {**mean_with_interval([0.2, 0.4]), "num_documents": 2}
    assert found["shift"] is None
    assert summarise_sanity([]) == {"num_documents": 0, "stages": [], "methods": {}}
