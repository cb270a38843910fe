import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    ElectraConfig,
    MPNetConfig,
    RobertaConfig,
)

from models.encoders.build_hierarchical import pretrained_hierarchical
from models.encoders.document_pooling import AdditivePooling, MultiHeadPooling, SumPooling, document_pooling
from models.encoders.hierarchical import HierarchicalClassifier, HierarchicalConfig
from tests.asserts.rounding import assert_same_sum
from tests.tiny.tiny_hierarchical import DATA, LENGTHS, SETTINGS, SIZES, batch, make

pytestmark = pytest.mark.numeric

SMALL = {"vocab_size": 30, "pad_token_id": 0, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
         "intermediate_size": 24, "max_position_embeddings": 16}  # fmt: skip
ARCHITECTURES = [
    BertConfig(**SMALL),
    RobertaConfig(**SMALL),
    ElectraConfig(**SMALL, embedding_size=8),
    MPNetConfig(**SMALL),
    DistilBertConfig(vocab_size=30, dim=16, n_layers=3, n_heads=2, hidden_dim=24, max_position_embeddings=16),
]


TERMS = sum(map(sum, LENGTHS)) * SIZES["intermediate_size"]
"""A gradient's entry sums over tokens what sums over units."""


def alone(flat):
    """The same documents, one in each batch, padded to its own longest chunk only."""
    rows = torch.arange(len(flat["input_ids"])).split(flat["chunk_counts"].tolist())
    for own, count in zip(rows, flat["chunk_counts"], strict=True):
        longest = int(flat["attention_mask"][own].sum(1).max())
        yield {
            "input_ids": flat["input_ids"][own, :longest],
            "attention_mask": flat["attention_mask"][own, :longest],
            "chunk_counts": count[None],
        }


@pytest.mark.parametrize("chunk_pooling", ["first", "mean"])
@pytest.mark.parametrize("pooling", ["additive", "multi_head", "sum", "mean", "max"])
def test_a_flat_batch_is_one_document_at_a_time(chunk_pooling, pooling):
    net = make(chunk_pooling=chunk_pooling, document_pooling=pooling).eval()
    flat = batch()
    together = net(**flat)
    single = [net(**one) for one in alone(flat)]
    torch.testing.assert_close(together.logits, torch.cat([one.logits for one in single]))
    torch.testing.assert_close(together.chunk_weights, torch.cat([one.chunk_weights for one in single]))
    sums = [weights.sum() for weights in together.chunk_weights.split(flat["chunk_counts"].tolist())]
    torch.testing.assert_close(torch.stack(sums), torch.ones(4))
    assert not torch.allclose(together.logits[0], together.logits[2], atol=1e-3)


def gradients(net, batches):
    net.zero_grad()
    for one in batches:
        net(**one).logits.square().sum().backward()
    return {name: entry.grad.clone() for name, entry in net.named_parameters() if entry.grad is not None}


def largest(gradients):
    """Of all parameters: that of a key's bias is a sum that cancels, since softmax does not see it."""
    return max(float(gradient.abs().max()) for gradient in gradients.values())


def test_gradients_of_a_flat_batch_are_those_of_its_documents():
    net = make(freeze_embeddings=False).train()
    together, single = gradients(net, [batch()]), gradients(net, alone(batch()))
    assert together.keys() == dict(net.named_parameters()).keys()
    for name, gradient in together.items():
        assert_same_sum(gradient, single[name], terms=TERMS, largest=largest(single), msg=name)


@pytest.mark.parametrize("config", ARCHITECTURES, ids=lambda config: config.model_type)
def test_any_encoder(config, tmp_path):
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    settings = {**SETTINGS, "hidden_dropout": None, "attention_dropout": None}
    net = pretrained_hierarchical(**DATA, **settings, pretrained=str(tmp_path), revision=None).eval()
    flat = batch([[9, 4], [12]])
    torch.testing.assert_close(net(**flat).logits, torch.cat([net(**one).logits for one in alone(flat)]))
    # the encoder is the one that was saved
    hidden = AutoModel.from_pretrained(tmp_path)(flat["input_ids"], flat["attention_mask"]).last_hidden_state
    torch.testing.assert_close(net.encode(flat["input_ids"], flat["attention_mask"]), hidden[:, 0])
    assert len(net.layers) == 3
    net.train()(**flat).logits.sum().backward()
    without = [name for name, entry in net.named_parameters() if entry.requires_grad and entry.grad is None]
    assert without == []  # a pooler that nobody reads would be here
    assert not any(entry.requires_grad for entry in net.embeddings.parameters())


def test_padding_changes_nothing():
    net = make().eval()
    tight, wide = batch(), batch()
    wide["input_ids"] = torch.nn.functional.pad(tight["input_ids"], (0, 5), value=7)
    wide["attention_mask"] = torch.nn.functional.pad(tight["attention_mask"], (0, 5))
    assert torch.equal(net(**wide).logits, net(**tight).logits)
    # what stands in the padding is not looked at
    noise = {**tight, "input_ids": torch.where(tight["attention_mask"] == 1, tight["input_ids"], 9)}
    torch.testing.assert_close(net(**noise).logits, net(**tight).logits)


@pytest.mark.parametrize("micro_chunks", [1, 4, 100])
def test_micro_chunks_change_nothing_and_are_padded_to_their_own_longest(micro_chunks):
    net = make(micro_chunks=micro_chunks).eval()
    fed = []
    net.encoder.register_forward_pre_hook(
        lambda _, args, kwargs: fed.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    torch.testing.assert_close(net(**batch()).logits, make().eval()(**batch()).logits)
    expected = {1: [(1, n) for n in (9, 9, 9, 9, 9, 7, 6, 5, 4, 3, 1)], 4: [(4, 9), (4, 9), (3, 4)], 100: [(11, 9)]}
    assert fed == expected[micro_chunks]


def test_word_embeddings_in_place_of_ids():
    net = make().eval()
    flat = batch()
    embeds = net.get_input_embeddings()(flat["input_ids"]).detach().requires_grad_()
    vectors = net.encode(attention_mask=flat["attention_mask"], inputs_embeds=embeds)
    torch.testing.assert_close(vectors, net.encode(flat["input_ids"], flat["attention_mask"]))
    net.classify(vectors, flat["chunk_counts"])[0].sum().backward()
    seen = embeds.grad.abs().sum(-1) > 0
    assert torch.equal(seen, flat["attention_mask"] == 1)  # through frozen embeddings, and to no padding
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        net.encode(flat["input_ids"], flat["attention_mask"], inputs_embeds=embeds)


def test_counts_that_do_not_add_up():
    net = make()
    with pytest.raises(ValueError, match=r"5 chunks cannot be documents of \[3, 1\] chunks"):
        net.classify(torch.zeros(5, 16), torch.tensor([3, 1]))
    with pytest.raises(ValueError, match=r"documents of \[4, 0\]"):
        net.classify(torch.zeros(4, 16), torch.tensor([4, 0]))


@pytest.mark.parametrize("pooling", ["additive", "sum"])
def test_chunks_of_a_section_are_averaged(pooling):
    net = make(document_pooling=pooling).eval()
    flat = batch()
    vectors = net.encode(flat["input_ids"], flat["attention_mask"])
    a, b, c, *others = vectors
    logits, weights = net.classify(vectors, [3, len(others)], [0, 0, 1, *range(len(others))])
    means = torch.stack([(a + b) / 2, c])
    expected, of_sections = net.classify(means, [2])
    torch.testing.assert_close(logits[:1], expected)
    first, second = of_sections.tolist()
    torch.testing.assert_close(weights[:3], torch.tensor([first / 2, first / 2, second]))
    torch.testing.assert_close(logits[1:], net.classify(vectors[3:], [len(others)])[0])
    # the number of a section says nothing, and the same one may come again in the next document
    assert torch.equal(net.classify(vectors[:3], [3], [7, 7, 2])[0], net.classify(vectors[:3], [3], [0, 0, 1])[0])
    with pytest.raises(ValueError, match="2 numbers of sections are not those of 3 chunks"):
        net.classify(vectors[:3], [3], [0, 1])


def test_a_sum_counts():
    """Two features: whether a chunk's first value is above its second, and the other way round."""
    pooling = SumPooling(2, 2)
    with torch.no_grad():
        pooling.project.weight.copy_(torch.tensor([[20.0, -20.0], [-20.0, 20.0]]))
    table = torch.tensor([[[5.0, 1.0], [1.0, 5.0], [3.0, 1.0]], [[1.0, 2.0], [9.0, 9.0], [9.0, 9.0]]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    counts, weights = pooling(table, mask)
    torch.testing.assert_close(counts, torch.tensor([[2.0, 1.0], [0.0, 1.0]]))
    torch.testing.assert_close(weights, torch.tensor([[1 / 3] * 3, [1.0, 0.0, 0.0]]))
    # a head that knows counts tells two of two from two of eight; it would not, were they scaled to one size
    net = make(document_pooling="sum", attention_size=6).eval()
    vector = torch.randn(1, 16, generator=torch.Generator().manual_seed(0))
    once, twice = (
        net.chunk_attention(vector[None], torch.ones(1, 1, dtype=torch.bool))[0],
        net.chunk_attention(vector.repeat(2, 1)[None], torch.ones(1, 2, dtype=torch.bool))[0],
    )
    torch.testing.assert_close(twice, 2 * once)
    assert net.head[0].in_features == 6
    torch.testing.assert_close(net.classify(vector.repeat(2, 1), [2])[0], net.head(twice))


def test_pooling_by_hand():
    table = torch.tensor([[[1.0, 5.0], [3.0, 1.0], [99.0, 99.0]], [[2.0, -1.0], [0.0, 0.0], [0.0, 0.0]]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    mean, weights = document_pooling("mean", 2, attention_size=1, attention_heads=1)(table, mask)
    assert mean.tolist() == [[2.0, 3.0], [2.0, -1.0]]
    assert weights.tolist() == [[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]
    largest, weights = document_pooling("max", 2, attention_size=1, attention_heads=1)(table, mask)
    assert largest.tolist() == [[3.0, 5.0], [2.0, -1.0]]
    assert weights.tolist() == [[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]
    additive = AdditivePooling(2, 1)
    with torch.no_grad():
        additive.project.weight.copy_(torch.tensor([[1.0, 0.0]]))
        additive.project.bias.fill_(-1.0)
        additive.score.weight.fill_(2.0)
    pooled, weights = additive(table, mask)
    scores = torch.tensor([0.0, 2 * torch.tanh(torch.tensor(2.0))])
    torch.testing.assert_close(weights[0, :2], torch.softmax(scores, 0))
    torch.testing.assert_close(pooled[0], torch.softmax(scores, 0) @ table[0, :2])
    assert pooled[1].tolist() == [2.0, -1.0]
    heads = MultiHeadPooling(2, 1)
    with torch.no_grad():
        heads.query.copy_(torch.tensor([[1.0, -1.0]]))
        for part in (heads.key, heads.value, heads.output):
            part.weight.copy_(torch.eye(2))
            part.bias.zero_()
    pooled, weights = heads(table, mask)
    expected = torch.softmax(torch.tensor([-4.0, 2.0]) / 2**0.5, 0)  # query times key over the root of the head's width
    torch.testing.assert_close(weights, torch.stack([torch.cat([expected, torch.zeros(1)]), torch.eye(3)[0]]))
    torch.testing.assert_close(pooled, torch.stack([expected @ table[0, :2], table[1, 0]]))
    with pytest.raises(ValueError, match=r"model\.attention_heads=3: the width 16 is no multiple"):
        make(document_pooling="multi_head", attention_heads=3)


def test_saved_and_loaded_as_any_transformers_model(tmp_path):
    net = make(document_pooling="multi_head", head_size=5).eval()
    net.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert isinstance(again, HierarchicalClassifier)
    assert torch.equal(again(**batch()).logits, net(**batch()).logits)
    assert again.config.id2label == {0: "General", 1: "Teen", 2: "Mature"}
    assert again.config.encoder.model_type == "bert"
    one = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3, dtype=torch.int64)}
    assert torch.equal(again(**one).logits, again(**one, chunk_counts=torch.tensor([1])).logits)
    said = again(**one, labels=torch.tensor([2]))
    torch.testing.assert_close(said.loss, -torch.log_softmax(said.logits, -1)[0, 2])


def test_the_encoder_of_a_classifier_is_taken(tmp_path):
    torch.manual_seed(3)
    sentiment = BertForSequenceClassification(BertConfig(**SMALL, num_labels=2))
    sentiment.save_pretrained(tmp_path / "imdb")
    options = {**DATA, **SETTINGS, "revision": None}
    net = pretrained_hierarchical(**options, pretrained=str(tmp_path / "imdb"))
    for name, weights in net.encoder.state_dict().items():
        assert torch.equal(weights, sentiment.bert.state_dict()[name]), name
    assert net.config.num_labels == 3
    net.save_pretrained(tmp_path / "rating")
    second = pretrained_hierarchical(**{**options, "chunk_pooling": "mean"}, pretrained=str(tmp_path / "rating"))
    for name, weights in second.encoder.state_dict().items():
        assert torch.equal(weights, net.encoder.state_dict()[name]), name
    hidden = second.eval().encoder(**{key: batch()[key] for key in ("input_ids", "attention_mask")}).last_hidden_state
    assert hidden.shape == (11, 9, 16)  # all positions, as the mean needs them


def test_checkpoints_that_do_not_fit(tmp_path):
    options = {**DATA, **SETTINGS, "revision": None}
    with pytest.raises(ValueError, match=r"model\.pretrained=.* cannot be loaded .*hierarchical_minilm"):
        pretrained_hierarchical(**options, pretrained=str(tmp_path))
    AutoModel.from_config(BertConfig(**{**SMALL, "num_hidden_layers": 2})).save_pretrained(tmp_path)
    config = BertConfig(**SMALL)
    config.save_pretrained(tmp_path)  # one layer more than there are weights
    with pytest.raises(ValueError, match=r"16 weights of the encoder are not there, such as encoder\.layer\.2\."):
        pretrained_hierarchical(**options, pretrained=str(tmp_path))
    with pytest.raises(ValueError, match=r"data\.tokenizer has 31 tokens, the embedding .* 30 rows"):
        pretrained_hierarchical(**{**options, "vocab_size": 31}, pretrained=str(tmp_path))
    with pytest.raises(ValueError, match=r"model\.freeze_layers=4: the encoder has 3 layers"):
        make(freeze_layers=4)


def test_frozen_layers_are_the_bottom_ones_and_drop_nothing_out():
    net = make(freeze_layers=2, hidden_dropout=0.5).train()
    trained = {name for name, entry in net.named_parameters() if entry.requires_grad}
    assert {name.split(".layer.")[1][0] for name in trained if ".layer." in name} == {"2"}
    outputs = [[], [], []]
    for number, layer in enumerate(net.layers):
        layer.register_forward_hook(lambda _, args, output, number=number: outputs[number].append(output))
    for _ in range(2):
        net(**batch([[9, 9]]))
    first, second, third = outputs
    assert torch.equal(*second)
    assert torch.equal(*first)
    assert not first[0].requires_grad
    assert not torch.equal(*third)
    for parameter in net.layers[0].parameters():  # as gradual unfreezing does
        parameter.requires_grad_()
    outputs[:] = [[], [], []]
    for _ in range(2):
        net(**batch([[9, 9]]))
    assert not torch.equal(*outputs[0])
    assert net.layers[1].training  # frozen, but not all below it
    assert not any(part.training for part in net.eval().modules())


def test_dropout_on_frozen_embeddings_regularizes_a_first_layer_that_learns():
    net = make(hidden_dropout=0.5, freeze_layers=0).train()
    net(**batch())
    assert net.embeddings.training
    net = make(hidden_dropout=0.5, freeze_layers=1).train()
    net(**batch())
    assert not net.embeddings.training


def kept_bytes(net, flat):
    """What autograd keeps for the backward pass."""
    parameters = {entry.untyped_storage().data_ptr() for entry in net.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = (storage, storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        net(**flat).logits.sum()
    return sum(size for _, size in kept.values())


def test_what_is_kept_for_the_backward_pass():
    flat = batch([[16] * 8] * 4)
    whole = kept_bytes(make().train(), flat)
    assert kept_bytes(make(freeze_layers=2).train(), flat) < 0.5 * whole
    by_layer, by_chunk = make().train(), make(recompute="chunks").train()
    by_layer.activation_checkpointing_enable({"use_reentrant": False})
    by_chunk.activation_checkpointing_enable({"use_reentrant": False})
    layer_inputs = 32 * 16 * 16 * 4
    assert 3 * layer_inputs <= kept_bytes(by_layer, flat) < 0.5 * whole
    assert kept_bytes(by_chunk, flat) < layer_inputs


@pytest.mark.parametrize("recompute", ["layers", "chunks"])
@pytest.mark.parametrize("freeze_layers", [0, 1])
def test_recomputing_gives_the_same_gradients(recompute, freeze_layers):
    options = {"freeze_layers": freeze_layers, "hidden_dropout": 0.3, "attention_dropout": 0.3}
    plain, sparing = make(**options).train(), make(recompute=recompute, **options).train()
    sparing.activation_checkpointing_enable({"use_reentrant": False})
    calls = [0, 0, 0]
    for number, layer in enumerate(sparing.layers):
        layer.attention.register_forward_hook(lambda *_, number=number: calls.__setitem__(number, calls[number] + 1))
    asking = []  # whether the first layer's output asks for a gradient
    sparing.layers[0].register_forward_hook(lambda _, args, output: asking.append(output.requires_grad))
    found = []
    for net in (plain, sparing):
        torch.manual_seed(5)  # what is dropped
        found.append(gradients(net, [batch()]))
    expected, again = found
    assert expected.keys() == again.keys()
    for name, gradient in expected.items():
        assert_same_sum(again[name], gradient, terms=TERMS, largest=largest(expected), msg=name)
    # four micro-batches; a frozen layer at the bottom is not computed again where layers are
    once = 4 if freeze_layers and recompute == "layers" else 8
    assert calls == [once, 8, 8]
    assert set(asking) == {freeze_layers == 0}


def test_parameters_by_part():
    counts = make(freeze_layers=1).parameter_counts()
    layer = 4 * (16 * 16 + 16) + 2 * 2 * 16 + (16 * 24 + 24) + (24 * 16 + 16)
    assert counts == {
        "embeddings": (30 * 16 + 16 * 16 + 2 * 16 + 2 * 16, 0),
        "layers": (3 * layer, 2 * layer),
        "chunk_attention": (16 * 8 + 8 + 8, 16 * 8 + 8 + 8),
        "norm": (32, 32),
        "head": (16 * 16 + 16 + 16 * 3 + 3,) * 2,
    }
    net = make(document_pooling="mean")
    assert "chunk_attention" not in net.parameter_counts()
    assert sum(total for total, _ in net.parameter_counts().values()) == sum(p.numel() for p in net.parameters())


def test_a_configuration_is_its_own_copy():
    config = HierarchicalConfig(encoder=BertConfig(**SMALL).to_dict(), num_labels=3, micro_chunks=5)
    again = HierarchicalConfig.from_dict(config.to_dict())
    assert again.encoder.hidden_size == 16
    assert (again.micro_chunks, again.num_labels) == (5, 3)
